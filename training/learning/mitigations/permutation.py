"""FAM: choose which weights sit on the bypassed PEs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from simulator.lots.chips import Chip
from training.layers.deployment import Deployment
from training.layers.trainable import trainable_layers
from training.learning.mitigations.assignment import assign_positions
from training.learning.mitigations.mitigation import Mitigation


@dataclass(frozen=True)
class Permutation(Mitigation):
    """Fault-aware mapping (FAM): permute outputs over columns and reduction indices over rows, so that least is lost.

    SalvageDNN, Hanif & Shafique 2020 (doi 10.1098/rsta.2019.0164): per layer, an assignment problem over the saliency
    of the weights that fall on bypassed PEs; the saliency of a weight is its magnitude here. Outputs and reduction
    indices may also take the places that a layer leaves free in its last folds, which costs no clock cycles. The
    permutation is undone where operands are fed and outputs collected: without bypass, nothing changes.

    Args:
        columns: whether outputs are permuted.
        rows: whether reduction indices are permuted.
    """

    columns: bool = True
    rows: bool = True

    def deploy(self, deployment: Deployment, chip: Chip, network: nn.Module) -> Deployment:
        """Choose the places for what is bypassed so far."""
        config = chip.faults.config
        unusable = chip.faults.unusable_columns()
        placements = dict(deployment.placements)
        for name, layer in trainable_layers(network).items():
            groups, k, n = layer.gemm_shape
            saliency = layer.weight.detach().abs().double().cpu().numpy().reshape(groups, n, k)
            placement = assign_positions(
                saliency, deployment.bypass, unusable, config, columns=self.columns, rows=self.rows
            )
            if placement.is_in_order:
                placements.pop(name, None)
            else:
                placements[name] = placement
        return deployment.with_placements({name: placements[name] for name in sorted(placements)})
