"""Batch normalisation that gets to know the chip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from simulator.errors import InputError
from training.data.batches import Batches
from training.learning.mitigations.mitigation import Mitigation


@dataclass(frozen=True)
class BatchNormStatistics(Mitigation):
    """Measure the means and variances of batch normalisation anew, on the chip, before anything else is learned.

    Batch normalisation stays a float operation on each channel behind the array, so its statistics can be changed on
    any chip. Pruned or faulty sums have other means and variances than those it was trained with; measuring them takes
    a few forward passes and no gradients (adaptive batch normalisation, Li et al. 2016, arXiv 1603.04779).

    Args:
        batches: mini-batches of training images that they are measured on.

    Raises:
        InputError: no batches.
    """

    batches: int = 8

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise InputError(f"batch normalisation is measured on {self.batches} batches: expected 1 or more")

    def settle(self, network: nn.Module, batches: Batches) -> None:
        """Replace the running statistics by those of the first batches, each batch counting alike."""
        norms = [
            module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        device = next(network.parameters()).device
        with torch.no_grad():
            for iteration in range(self.batches):
                network(batches.at(iteration)[0].to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
