"""A network in training on its chip: which chip each step runs on, and the weights that are held at zero."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from simulator.errors import InputError
from simulator.faults import BoolArray
from training.layers.accelerator import Accelerator
from training.layers.deployment import Deployment
from training.layers.trainable import TrainableLayer, move, trainable_layers
from training.learning.fit import Hooks
from training.learning.mitigations.combination import Strategy
from training.learning.mitigations.mitigation import Step

Pruned = Mapping[str, BoolArray]
"""Weights that are pruned, by the layer's name: bool [outputs, weights of an output], as
`training.layers.placement.Placement.at_weights` gives them."""


class OnChip(Hooks):
    """Puts each step on the chip it is for, and holds the weights at bypassed PEs at zero."""

    def __init__(
        self,
        model: nn.Module,
        chip: Accelerator,
        deployment: Deployment,
        strategy: Strategy,
        budget: Step,
        always_kept: Mapping[str, Tensor],
    ) -> None:
        """Put the model on its chip and prune it.

        Args:
            model: from `trainable`.
            chip: the chip as deployed.
            deployment: what is bypassed, and where operands sit.
            strategy: says which chip a step is for.
            budget: the first step.
            always_kept: weights that are not pruned on any chip, by layer, bool of the shape of its weights; layers
                that are not named keep all of theirs.
        """
        self._model = model
        self._chip = chip
        self._deployment = deployment
        self._mitigations = strategy.mitigations
        self._budget = budget
        self._always_kept = always_kept
        self._present: Accelerator | None = None
        self._held: list[tuple[TrainableLayer, Tensor]] = []
        self._holds_anew = False
        self._unpruned: list[tuple[TrainableLayer, Tensor, Tensor]] = []
        layers = trainable_layers(model)
        for name, kept in always_kept.items():
            # As for weights at bypassed PEs: what would move them is zero, whatever the optimiser.
            layers[name].weight.register_hook(kept.mul)  # type: ignore[no-untyped-call]
        self.before_step(0)

    def before_step(self, iteration: int) -> None:
        """Put the model on the chip that the step is for, and prune what that chip cannot hold."""
        accelerator = self._chip
        for mitigation in self._mitigations:
            accelerator = mitigation.chip_for(replace(self._budget, iteration=iteration), accelerator)
        self._on(accelerator)
        if self._holds_anew:
            self._hold()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set weights at bypassed PEs to zero again; their gradients are zero, so momentum stays so, too."""
        self._hold()
        if self._holds_anew:
            for layer, kept in self._held:
                for value in optimizer.state.get(layer.weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                        value.mul_(kept)
            self._holds_anew = False

    def before_evaluation(self) -> None:
        """Put the model on its chip, and prune all that sits on bypassed PEs, whatever the steps have come to."""
        self._on(self._chip)
        self._unpruned = [(layer, kept, layer.weight.detach().clone()) for layer, kept in self._held]
        self._hold()

    def after_evaluation(self) -> None:
        """Take back what was pruned."""
        for layer, kept, weight in self._unpruned:
            layer.weight.data.copy_(torch.where(kept, layer.weight.data, weight))
        self._unpruned = []

    def _hold(self) -> None:
        for layer, kept in self._held:
            layer.weight.data.mul_(kept)

    def _on(self, accelerator: Accelerator) -> None:
        if self._present is not None and _are_alike(accelerator, self._present):
            return
        self._present = accelerator
        move(self._model, accelerator, self._deployment.placements)
        # PEs that are bypassed for one step only, as hardening does, keep their weights.
        bypass = self._deployment.bypass if accelerator.bypass is None else self._deployment.bypass & accelerator.bypass
        self._held = []
        for name, layer in trainable_layers(self._model).items():
            kept, always = layer.acting(bypass), self._always_kept.get(name)
            if kept is not None and always is not None:
                kept = kept & always
            elif kept is None:
                kept = always
            if kept is not None:
                self._held.append((layer, kept))
        self._holds_anew = True


def _are_alike(one: Accelerator, other: Accelerator) -> bool:
    """Whether two chips compute the same."""
    if one is other:
        return True
    if one.bypass is None or other.bypass is None:
        return False
    return one.faults == other.faults and bool((one.bypass == other.bypass).all()) and one.engine == other.engine


def kept_weights(model: nn.Module, pruned: Pruned) -> dict[str, Tensor]:
    """Find the weights that are kept whatever the chip.

    Args:
        model: from `trainable`.
        pruned: weights that are pruned.

    Returns:
        Bool of the shape of the weights, of each layer that has any to prune.

    Raises:
        InputError: a layer that is not there, or a mask that does not fit.
    """
    layers = trainable_layers(model)
    kept = {}
    for name, zeros in pruned.items():
        if name not in layers:
            raise InputError(f"weights of a layer {name!r} are to be pruned, and the network has none: name another")
        weight = layers[name].weight
        expected = (len(weight), weight[0].numel())
        if zeros.dtype != np.bool_ or zeros.shape != expected:
            raise InputError(
                f"weights of layer {name!r} to be pruned are {zeros.dtype} {zeros.shape}: expected bool {expected}"
            )
        kept[name] = torch.from_numpy(~zeros).view(weight.shape).to(weight.device)
    return kept


def digest_of_pruned(pruned: Pruned) -> str:
    """SHA-256 (hex) of layers and masks."""
    found = hashlib.sha256()
    for name in sorted(pruned):
        found.update(f"{name} {pruned[name].shape}\n".encode())
        found.update(np.packbits(pruned[name]).tobytes())
    return found.hexdigest()
