"""Resilience of tests: tables, and what is measured for them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from efat.campaigns.workers import in_line, processes
from efat.image_split import SplitRequest
from efat.planning.selection import Constraint
from efat.resilience.measurement import run_resilience
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import RandomFaults, ResilienceTable
from efat.resilience.units import Resilience
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel
from tests.support.networks import ARRAY, OWN_PE
from training.data.batches import Batches
from training.data.datasets import Dataset
from training.learning.fit import fit
from training.learning.recipe import Recipe


def table_of(
    correct: npt.ArrayLike,
    predictors: Mapping[str, npt.ArrayLike],
    *,
    rates: npt.ArrayLike | None = None,
    levels: npt.ArrayLike | None = None,
    **others: Any,
) -> ResilienceTable:
    """A table of these values, of 100 images and otherwise of what does not matter.

    Args:
        correct: [rates, repeats, levels].
        predictors: [rates, repeats], by name.
        rates: None for 0.01, 0.02 and so on.
        levels: None for 0, 10, 20 and so on.
        others: further fields.
    """
    counts = np.asarray(correct, np.int64)
    values: dict[str, Any] = {
        "images": 100,
        "float_correct": 97,
        "fault_free_correct": 95,
        "start_correct": 95,
        "array": ArrayConfig(8, 8).record,
        "fault_model": RandomFaults.of(FaultModel(0.0)),
        "setup": Setup("digits-cnn"),
        "setup_identity": {"weights": "0" * 64},
        "harden_iterations": 0,
        "seed": 0,
    }
    return ResilienceTable(
        rates=np.arange(1, len(counts) + 1) / 100 if rates is None else np.asarray(rates, np.float64),
        levels=10 * np.arange(counts.shape[2]) if levels is None else np.asarray(levels, np.int64),
        correct=counts,
        predictors={name: np.asarray(severity, np.float64) for name, severity in predictors.items()},
        **{**values, **others},
    )


def constraints() -> st.SearchStrategy[Constraint]:
    """Any constraint."""
    fractions = st.floats(0, 1)
    accuracies = st.builds(Constraint, accuracy=fractions, margin=fractions)
    return accuracies | st.builds(Constraint, max_drop=fractions, margin=fractions)


@st.composite
def tables(draw: st.DrawFn, names: tuple[str, ...] = ("weights",)) -> ResilienceTable:
    """Few chips or some; accuracies at random or as retraining gives them; severities with many ties, zeros or none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
    rates, _, levels = shape
    images = draw(st.sampled_from([1, 3, 50, 10_000]))
    style = draw(st.sampled_from(["any", "close", "retrained"]))
    if style == "any":
        correct = random.integers(0, images + 1, shape)
    elif style == "close":
        correct = np.clip(images - random.integers(0, 4, shape), 0, images)
    else:
        lost = np.linspace(0.1, 0.6, rates)[:, None, None] / np.arange(1, levels + 1)
        correct = np.rint(images * np.clip(1 - lost + 0.1 * random.standard_normal(shape), 0, 1)).astype(np.int64)
    if draw(st.booleans()):
        diverged = random.integers(0, 4 * levels, shape[:2])[..., None]
        correct = np.where(np.arange(levels) >= diverged, -1, correct)
    grid = draw(st.sampled_from([3, 10, 1_000_000]))
    trend = draw(st.sampled_from([0.0, 1.0])) * np.arange(rates)[:, None] / rates
    severities = [np.rint(grid * (random.random(shape[:2]) + trend) / 2) / grid for _ in names]
    return table_of(
        correct,
        dict(zip(names, severities, strict=True)),
        rates=np.sort(random.choice(1000, rates, replace=False)) / 1000,
        levels=np.append(0, np.sort(random.choice(np.arange(1, 200), levels - 1, replace=False))),
        images=images,
        float_correct=images,
        fault_free_correct=int(random.integers(images // 2, images + 1)),
        start_correct=int(random.integers(images // 2, images + 1)),
        harden_iterations=int(random.integers(0, 1000)),
        seed=int(random.integers(0, 2**63)),
    )


ALL = st.sets(st.sampled_from(PREDICTORS), min_size=1).map(lambda names: tuple(sorted(names)))
"""Names of some predictors."""


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
    return Setup("tests.support.resilience:small_network", inputs / "weights.safetensors", inputs, **given)


def small_resilience(folder: Path, **changes: Any) -> Resilience:
    """Two rates, two chips of each."""
    setup = changes.pop("setup", None)
    given: dict[str, Any] = {"rates": (0.1, 0.3), "repeats": 2, "levels": LEVELS, "seed": 3, **changes}
    model = given.pop("model", FaultModel(0.0, sites=dict.fromkeys(OWN_PE, 1.0)))
    return Resilience(small_setup(folder) if setup is None else setup, given.pop("config", ARRAY), model, **given)


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    run_resilience(Path(sys.argv[1]) / OUT, small_resilience(Path(sys.argv[1]), repeats=6), executor)
