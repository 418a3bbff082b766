"""From a case that shows a difference to a small one that still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from efat.validation.cases import Case
from simulator import FaultMap


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Make a case smaller while it fails: fewer faults, fewer bypassed PEs, smaller operands, smaller numbers.

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
    table = case.faults.table
    for part in _parts(len(table)):
        yield replace(case, faults=FaultMap(case.config, np.delete(table, part)))
    if case.bypass.any():
        yield replace(case, bypass=np.zeros_like(case.bypass))
    for row, col in np.argwhere(case.bypass).tolist():
        bypass = case.bypass.copy()
        bypass[row, col] = False
        yield replace(case, bypass=bypass)
    m, k = case.x.shape
    n = case.w.shape[1]
    for part in _parts(m):
        yield replace(case, x=np.delete(case.x, part, 0))
    for part in _parts(n):
        if part.stop - part.start < n:
            yield replace(case, w=np.delete(case.w, part, 1))
    for part in _parts(k):
        if part.stop - part.start < k:
            yield replace(case, x=np.delete(case.x, part, 1), w=np.delete(case.w, part, 0))
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
