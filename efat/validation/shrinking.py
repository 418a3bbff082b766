"""From a case that shows a difference to a small one that still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from efat.validation.cases import Case
from simulator import FaultMap, Site


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Make a case smaller while it fails: fewer faults, fewer bypassed PEs, smaller array and operands, small numbers.

    Args:
        case: one that fails.
        fails: whether a case shows the difference.

    Returns:
        A case that fails, and none of the steps makes it smaller still.
    """
    smaller: Case | None = case
    while smaller is not None:
        case = smaller
        smaller = next((simpler for simpler in _simpler(case) if fails(simpler)), None)
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Cases that are a step smaller, the largest steps first."""
    yield from _with_fewer_faults(case)
    if case.bypass.any():
        yield replace(case, bypass=np.zeros_like(case.bypass))
    for row, col in np.argwhere(case.bypass).tolist():
        bypass = case.bypass.copy()
        bypass[row, col] = False
        yield replace(case, bypass=bypass)
    yield from _with_smaller_operands(case)
    for axis in (0, 1):
        for line in range(case.bypass.shape[axis]):
            if case.bypass.shape[axis] > 1:
                yield _without_line(case, axis, line)
    yield from _with_smaller_numbers(case)


def _with_fewer_faults(case: Case) -> Iterator[Case]:
    """Without some of the faults: with the numbers there are, and with some on every PE that show most faults."""
    table, (rows, cols) = case.faults.table, case.bypass.shape
    all_ones = -1 if case.config.act_signed else case.config.act_range[1]
    for part in _parts(len(table)):
        fewer = FaultMap(case.config, np.delete(table, part))
        yield replace(case, faults=fewer)
        for x, w in ((1, -1), (all_ones, 1), (all_ones, -1), (0, -1), (all_ones, 0)):
            yield replace(case, faults=fewer, x=np.full((1, rows), x), w=np.full((rows, cols), w))


def _with_smaller_operands(case: Case) -> Iterator[Case]:
    """Without some rows of X, outputs or reduction indices."""
    (m, k), n = case.x.shape, case.w.shape[1]
    for part in _parts(m):
        yield replace(case, x=np.delete(case.x, part, 0))
    for part in _parts(n):
        if part.stop - part.start < n:
            yield replace(case, w=np.delete(case.w, part, 1))
    for part in _parts(k):
        if part.stop - part.start < k:
            yield replace(case, x=np.delete(case.x, part, 1), w=np.delete(case.w, part, 0))
    for index in range(k if k > 1 else 0):
        yield replace(case, x=case.x[:, [index]], w=case.w[[index]])


def _without_line(case: Case, axis: int, line: int) -> Case:
    """Without one row (axis 0) or column (axis 1) of the array, and what the operands have there if they fit on it."""
    name, side = ("row", "rows") if axis == 0 else ("col", "cols")
    length = case.bypass.shape[axis]
    config = replace(case.config, **{side: length - 1})
    table = case.faults.table
    # Accumulators have no row.
    placed = (table["site"] != Site.ACCUMULATOR) | (axis == 1)
    table = table[~placed | (table[name] != line)]
    placed = (table["site"] != Site.ACCUMULATOR) | (axis == 1)
    moved = table.copy()
    moved[name] -= placed & (table[name] > line)
    x, w = case.x, case.w
    used = w.shape[axis]
    if line < used <= length and used > 1:
        w = np.delete(w, line, axis)
        x = np.delete(x, line, 1) if axis == 0 else x
    return Case(config, x, w, FaultMap(config, moved), np.delete(case.bypass, line, axis))


def _with_smaller_numbers(case: Case) -> Iterator[Case]:
    """Zeros, or ones, in place of some numbers."""
    for name in ("x", "w"):
        values = getattr(case, name)
        if values.any():
            yield replace(case, **{name: np.zeros_like(values)})
        if (values > 1).any() or (values < 0).any():
            yield replace(case, **{name: (values != 0).astype(np.int64)})
        for place in np.argwhere(values != 0).tolist():
            fewer = values.copy()
            fewer[tuple(place)] = 0
            yield replace(case, **{name: fewer})


def _parts(length: int) -> Iterator[slice]:
    """All, then halves, quarters and so on down to single items; the last ones first."""
    size = length
    while size:
        for stop in range(length, 0, -size):
            yield slice(max(0, stop - size), stop)
        size //= 2
