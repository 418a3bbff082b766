"""Tables of how a network does on random chips, made up for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from efat.planning.selection import Constraint
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import ResilienceTable
from efat.setup import Setup
from simulator import ArrayConfig


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
        "array": ArrayConfig(8, 8).as_dict(),
        "fault_model": {"pattern": "uniform"},
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
