"""Whole networks on both engines: every logit compared, chip by chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from efat.inference.simulation import simulate
from efat.validation import DEFAULT_IMAGES
from simulator.lots.chips import Chip
from training.data.classification import bits_of
from training.data.datasets import Normalization
from training.layers.convert import put_on_chip
from training.layers.quantized import Engine

BATCH = 64


@dataclass(frozen=True)
class ChipComparison:
    """Logits of one chip under the emulation and the cycle engine.

    Attributes:
        chip: its id.
        logits: how many were compared.
        mismatches: how many differ in any bit.
    """

    chip: str
    logits: int
    mismatches: int


@dataclass
class NetworkValidation:
    """A network and chips to compare it on; everything is loaded and checked when it is made.

    Args:
        network: as for `efat simulate`.
        lot: HDF5 file of chips.
        weights: file of weights, or None.
        data: images, or None.
        images: test images to use; None for the first 64, or all if there are fewer.
        normalization: as for `training.data.workloads.load_workload`.

    Attributes:
        simulation: what runs on both engines.
    """

    network: str
    lot: Path
    weights: Path | None = None
    data: Path | None = None
    images: int | None = None
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        self.simulation = simulate(
            self.network,
            self.lot,
            weights=self.weights,
            data=self.data,
            normalization=self.normalization,
            images=self.images,
            run=False,
        )
        if self.images is None:
            self.simulation.images = self.simulation.images[:DEFAULT_IMAGES]

    @property
    def images_per_chip(self) -> int:
        """Images that each chip classifies."""
        return len(self.simulation.images)

    @property
    def chips(self) -> list[Chip]:
        """The chips, in order."""
        return self.simulation.chips

    def run(self) -> Iterator[ChipComparison]:
        """Compare chip by chip, as the chips are: with the PEs that their fuses bypass, and those of the weights."""
        simulation = self.simulation
        engines: tuple[Engine, ...] = ("emulation", "cycle")
        for chip in simulation.chips:
            logits = {}
            for engine in engines:
                network = put_on_chip(simulation.networks.network(chip), simulation.accelerator(chip, engine))
                with torch.inference_mode():
                    parts = [network(batch) for batch in torch.split(simulation.images, BATCH)]
                logits[engine] = bits_of(torch.cat(parts))
            difference = logits["emulation"] != logits["cycle"]
            yield ChipComparison(chip.id, difference.numel(), int(difference.sum()))
