"""A small network on random chips, and a program that measures it: `python resilience_runs.py FOLDER WORKERS`."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from efat.campaigns.workers import in_line, processes
from efat.image_split import SplitRequest
from efat.resilience.measurement import run_resilience
from efat.resilience.units import Resilience
from efat.setup import Setup
from simulator import FaultModel
from tests.support.tiny_networks import ARRAY, OWN_PE
from training.data.batches import Batches
from training.data.datasets import Dataset
from training.learning.fit import fit
from training.learning.recipe import Recipe

RECIPE = Recipe(batch=10, learning_rate=0.05)
LEVELS = (0, 2, 5)
OUT, INPUTS = "out", "inputs"


def small_network() -> nn.Sequential:
    """Two convolutions, one of them grouped, and a linear layer, for images of 1x6x6 in three classes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 3),
    )


def normalised_network() -> nn.Sequential:
    """One with batch normalisation, whose weights are random."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def small_images(count: int, seed: int) -> Dataset:
    """Images whose class is where they are bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.normal(size=(count, 1, 6, 6)).astype(np.float32)
    images[np.arange(count), 0, 2 * labels] += 1
    return Dataset(f"small {seed}", torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), 3)


TRAIN, HELD_OUT, UNSEEN = small_images(90, 1), small_images(30, 2), small_images(40, 3)
"""To learn from, to tune on, and to verify with."""


@cache
def trained_weights() -> dict[str, Tensor]:
    """Of the small network."""
    torch.manual_seed(5)
    network = small_network()
    fit(network, Batches(TRAIN, 10, 0), HELD_OUT, 60, RECIPE)
    return network.state_dict()


def small_setup(folder: Path, **changes: Any) -> Setup:
    """The small network, its weights and its data in files."""
    inputs = folder / INPUTS
    if not inputs.exists():
        inputs.mkdir()
        save_file(trained_weights(), inputs / "weights.safetensors")
        for name, data in (("train", TRAIN), ("test", HELD_OUT), ("unseen", UNSEEN)):
            np.savez(inputs / f"{name}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    split = SplitRequest(verify_data=inputs / "unseen.npz")
    given: dict[str, Any] = {"mitigation": "fap+t", "recipe": RECIPE, "split": split, **changes}
    return Setup("tests.support.resilience_runs:small_network", inputs / "weights.safetensors", inputs, **given)


def small_resilience(folder: Path, **changes: Any) -> Resilience:
    """Two rates, two chips of each."""
    setup = changes.pop("setup", None)
    given: dict[str, Any] = {"rates": (0.1, 0.3), "repeats": 2, "levels": LEVELS, "seed": 3, **changes}
    model = given.pop("model", FaultModel(0.0, sites=dict.fromkeys(OWN_PE, 1.0)))
    return Resilience(small_setup(folder) if setup is None else setup, given.pop("config", ARRAY), model, **given)


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    run_resilience(Path(sys.argv[1]) / OUT, small_resilience(Path(sys.argv[1]), repeats=6), executor)
