"""Which of the things that are known of a chip before it is retrained foretells best how well it will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efat.planning.severity import Float64Array
from efat.resilience.table import PREDICTORS, ResilienceTable
from simulator.errors import InputError

MOST_PARTS = 200
"""Into which the chips are divided to compare predictors. With no more chips, each is foretold from all others."""


@dataclass(frozen=True)
class Foretelling:
    """How well a predictor foretells the accuracy of chips.

    Attributes:
        predictor: its name.
        error: root of the mean squared error, in accuracy points (hundredths); None if there was nothing to compare.
    """

    predictor: str
    error: float | None


def severities(table: ResilienceTable, predictor: str) -> Float64Array:
    """How bad each random chip is, float64 [rates, repeats].

    Args:
        table: what was measured.
        predictor: a name in it.

    Raises:
        InputError: another name.
    """
    if predictor not in table.predictors:
        raise InputError(f"predictor {predictor!r} is not in the table: expected one of {', '.join(table.predictors)}")
    return table.predictors[predictor]


def compare_predictors(table: ResilienceTable, candidates: Sequence[str] | None = None) -> tuple[Foretelling, ...]:
    """Compare how well predictors foretell the accuracy of chips that were left out.

    Each chip is left out in turn (of more than `MOST_PARTS`, several at once), and its accuracy at each level foretold
    from the others by isotonic regression on the predictor. Chips whose retraining had diverged are left aside.

    Args:
        table: what was measured.
        candidates: predictors in the table; None for all.

    Returns:
        One for each candidate, the simplest first, as in `PREDICTORS`.

    Raises:
        InputError: there are no candidates, or one is not in the table.
    """
    names = list(table.predictors) if candidates is None else list(candidates)
    if not names:
        raise InputError(f"there are no predictors to choose from: expected some of {', '.join(table.predictors)}")
    severity = {name: severities(table, name).reshape(-1) for name in names}
    accuracy = table.accuracy.reshape(-1, len(table.levels))
    return tuple(Foretelling(name, _error(severity[name], accuracy)) for name in PREDICTORS if name in severity)


def best_predictor(compared: Sequence[Foretelling]) -> str:
    """The predictor with the least error; of equally good ones, up to rounding, the simplest.

    Args:
        compared: from `compare_predictors`.
    """
    errors = [math.inf if one.error is None else one.error for one in compared]
    least = min(errors)
    return next(
        one.predictor for one, error in zip(compared, errors, strict=True) if error <= least * (1 + 1e-9) + 1e-9
    )


def _error(severity: Float64Array, accuracy: Float64Array) -> float | None:
    """Root of the mean squared error in points: of severity [chips] for accuracy [chips, levels]."""
    from sklearn.isotonic import IsotonicRegression

    squares: list[Float64Array] = []
    for reached in accuracy.T:
        known = np.isfinite(reached)
        x, y = severity[known], reached[known]
        parts = min(len(x), MOST_PARTS)
        if parts < 2:
            continue
        for part in range(parts):
            left_out = np.arange(len(x)) % parts == part
            regression = IsotonicRegression(increasing=False, out_of_bounds="clip")
            regression.fit(x[~left_out], y[~left_out])
            squares.append((regression.predict(x[left_out]) - y[left_out]) ** 2)
    return 100 * math.sqrt(float(np.concatenate(squares).mean())) if squares else None
