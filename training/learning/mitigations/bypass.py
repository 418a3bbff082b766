"""FAP: bypass broken PEs and prune what would sit on them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from simulator.lots.chips import Chip
from training.layers.deployment import Deployment
from training.layers.trainable import trainable_layers
from training.learning.mitigations.assignment import in_order_on_usable_columns
from training.learning.mitigations.mitigation import Mitigation


@dataclass(frozen=True)
class Bypass(Mitigation):
    """Fault-aware pruning (FAP): bypass every PE that the faults require, and prune the weights mapped there.

    Zhang et al. 2018, arXiv 1802.04657, section 4: with retraining of the weights that are left it is FAP+T. What a
    fault requires is more than its own PE where it spoils a row or column: `FaultMap.required_bypass`. Columns whose
    accumulator is broken get no outputs, which bypass does not help.
    """

    def deploy(self, deployment: Deployment, chip: Chip, network: nn.Module) -> Deployment:
        """Bypass what the faults require beside what is bypassed already, and skip columns that cannot be used."""
        deployment = deployment.with_bypass(deployment.bypass | chip.faults.required_bypass())
        unusable = chip.faults.unusable_columns()
        if not len(unusable):
            return deployment
        placements = dict(deployment.placements)
        for name, layer in trainable_layers(network).items():
            placements[name] = in_order_on_usable_columns(*layer.gemm_shape, unusable, chip.faults.config)
        return deployment.with_placements(placements)
