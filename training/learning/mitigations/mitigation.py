"""The interface of all mitigations: what is done before retraining, and which chip each step of it runs on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from simulator.lots.chips import Chip
from training.data.batches import Batches
from training.layers.accelerator import Accelerator
from training.layers.deployment import Deployment


@dataclass(frozen=True)
class TrainingStep:
    """Where a retraining stands.

    Args:
        iteration: of this mini-batch, from 0.
        iterations: how many there will be.
        seed: of the retraining; random streams derive from it and `iteration`, so that a run can go on anywhere.
    """

    iteration: int
    iterations: int
    seed: int


class Mitigation:
    """One thing that is done about a chip's broken PEs. Several combine: each takes over what the one before left."""

    def deploy(self, deployment: Deployment, chip: Chip, network: nn.Module) -> Deployment:
        """Decide what is bypassed and where operands sit.

        Args:
            deployment: as it is so far.
            chip: the chip.
            network: from `training.layers.trainable`, with the weights to deploy; not changed.
        """
        return deployment

    def settle(self, network: nn.Module, batches: Batches) -> None:
        """Change what can be changed without gradients, once the network is on its chip.

        Args:
            network: from `training.layers.trainable`, on the chip as deployed; changed in place.
            batches: of training images.
        """

    def chip_for(self, step: TrainingStep, accelerator: Accelerator) -> Accelerator:
        """The chip that a mini-batch of retraining runs on.

        Args:
            step: the mini-batch.
            accelerator: the chip as the mitigations before have it; for the first, the chip itself as deployed.
        """
        return accelerator
