"""Where on the array faults matter: the share of images whose top-1 they change, by PE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efat.propagation.estimates import Estimates
from simulator import Kind, Site
from simulator.faults import BoolArray, Float64Array, Int64Array

MOST_CELLS = 64
"""Cells along a side of the array; a cell of a larger array stands for several PEs."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Shares of images whose top-1 a fault changes, by the place of the fault.

    Args:
        kinds: of the faults, for people: `stuck-at faults` or `flips`.
        rows: of the array.
        cols: of the array.
        step: PEs along a side of a cell; those at the last row and column may have fewer.
        cells: float64 [down, across], mean share over the sampled faults of a cell's PEs, each counted as often as it
            stands for others of its stratum; NaN without any.
        accumulators: float64 [across], likewise for the faults of the accumulators below the array's columns.
        faults: int64 [down + 1, across], sampled faults behind them; those of accumulators in the last row.
    """

    kinds: str
    rows: int
    cols: int
    step: int
    cells: Float64Array
    accumulators: Float64Array
    faults: Int64Array

    @property
    def largest(self) -> float:
        """The largest share in it."""
        return float(np.nanmax(np.append(self.cells, self.accumulators)))


def heat_maps(estimates: Estimates) -> list[HeatMap]:
    """One for faults that stay and one for upsets, as their shares do not compare; those with samples only.

    Args:
        estimates: of what was found.
    """
    flips = estimates.propagation.faults["kind"] == Kind.FLIP
    found = []
    for kinds, chosen in (("stuck-at faults", ~flips), ("flips", flips)):
        if chosen.any():
            found.append(_heat_map(estimates, chosen, kinds))
    return found


def _heat_map(estimates: Estimates, chosen: BoolArray, kinds: str) -> HeatMap:
    array = estimates.propagation.array
    rows, cols = int(array["rows"]), int(array["cols"])
    table = estimates.propagation.faults[chosen]
    below = table["site"] == Site.ACCUMULATOR
    row = np.where(below, 0, table["row"]).astype(np.int64)
    col = table["col"].astype(np.int64)
    step = _step(rows, cols, row[~below], col[~below])
    down, across = -(-rows // step), -(-cols // step)
    cell = np.where(below, down, row // step) * across + col // step
    weights = estimates.weights[chosen]
    shares = (table["top1"].astype(np.float64) + table["top5"]) / np.maximum(table["images"], 1)
    size = (down + 1) * across
    total = np.bincount(cell, weights, size)
    changed = np.bincount(cell, weights * shares, size)
    with np.errstate(invalid="ignore"):
        means = np.where(total > 0, changed / total, np.nan).reshape(down + 1, across)
    return HeatMap(
        kinds=kinds,
        rows=rows,
        cols=cols,
        step=step,
        cells=means[:-1],
        accumulators=means[-1],
        faults=np.bincount(cell, minlength=size).reshape(down + 1, across),
    )


def _step(rows: int, cols: int, row: Int64Array, col: Int64Array) -> int:
    """The finest cells of which half have a sample, but not so fine that there are too many."""
    step = -(-max(rows, cols) // MOST_CELLS)
    while step < max(rows, cols):
        cells = -(-rows // step) * -(-cols // step)
        across = -(-cols // step)
        if not len(row) or 2 * len(np.unique(row // step * across + col // step)) >= cells:
            break
        step *= 2
    return step
