"""Random faulty GEMMs that are to show differences between implementations, made small, and in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efat.records import parse
from simulator import ArrayConfig, FaultMap, InputError, Kind, Site, gemm_timing
from simulator.config import SMALLEST_OPERAND_BITS
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import first_line
from simulator.faults import FAULT_DTYPE, PERMANENT
from simulator.files import replaced
from simulator.gates.designs import DESIGNS

_VERSION = 1
_FIELDS = FAULT_DTYPE.names or ()
_SMALL_SIDE, _LARGE_SIDE = 6, 24
_LONGEST_X = 40
_MOST_COMPILED_PES, _MOST_COMPILED_GATES = 20, 400
"""PEs, and PEs times partial products of each: beyond these an array takes long to compile and to simulate."""


@dataclass(frozen=True, eq=False)
class Case:
    """One GEMM, X [M, K] times W [K, N], on one chip; `bypass` is bool [rows, cols]."""

    config: ArrayConfig
    x: Int64Array
    w: Int64Array
    faults: FaultMap
    bypass: BoolArray

    def __str__(self) -> str:
        faults = "\n".join(f"  {fault}" for fault in self.faults) or "  none"
        bypassed = [tuple(place) for place in np.argwhere(self.bypass).tolist()] or "none"
        return (
            f"{self.config}\nx = {self.x.tolist()}\nw = {self.w.tolist()}\nfaults:\n{faults}\n"
            f"bypassed PEs (row, col): {bypassed}"
        )

    def save(self, path: Path) -> None:
        """Write it as JSON, which `load_case` reads."""
        content = {
            "efat_validate_case": _VERSION,
            "array": self.config.as_dict(),
            "x": self.x.tolist(),
            "w": self.w.tolist(),
            "shape": [len(self.x), *self.w.shape],
            "fault_fields": list(_FIELDS),
            "faults": self.faults.table.tolist(),
            "bypass": np.argwhere(self.bypass).tolist(),
        }
        with replaced(path) as beside:
            beside.write_text(json.dumps(content) + "\n")


def load_case(path: Path) -> Case:
    """Read what `Case.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no case, or holds something impossible.
    """
    content = parse(path, "efat validate")
    if not isinstance(content, dict) or content.get("efat_validate_case") != _VERSION:
        raise InputError(f"{path} is no case of version {_VERSION}: expected a file that efat validate wrote")
    try:
        return _case_of(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{path} is damaged: {what}") from None


def _case_of(content: dict[str, Any]) -> Case:
    config = ArrayConfig(**content["array"])
    m, k, n = (int(size) for size in content["shape"])
    faults = _integers(content["faults"], (-1, len(_FIELDS)))
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    places = _integers(content["bypass"], (-1, 2))
    if ((places < 0) | (places >= bypass.shape)).any():
        raise ValueError(f"a bypassed PE lies outside the array of {config.rows}x{config.cols}")
    bypass[places[:, 0], places[:, 1]] = True
    fault_map = FaultMap.from_arrays(config, **dict(zip(_FIELDS, faults.T, strict=True)))
    return Case(config, _integers(content["x"], (m, k)), _integers(content["w"], (k, n)), fault_map, bypass)


def _integers(values: Any, shape: tuple[int, int]) -> Int64Array:
    array = np.array(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"it holds {array.dtype} where integers were expected")
    return array.astype(np.int64).reshape(shape)


def random_case(
    random: np.random.Generator,
    size: tuple[int, int] | None = None,
    sites: Sequence[Site] = tuple(Site),
    pool: Sequence[ArrayConfig] | None = None,
) -> Case:
    """Draw a case: any widths, several folds, all kinds of faults, adversarial numbers.

    The array is one of `pool`; without one it has `size` rows and columns, or, if that is None, any, mostly few.
    """
    config = _config(random, size) if pool is None else pool[int(random.integers(len(pool)))]
    m = int(random.integers(0, _LONGEST_X if random.random() < 0.1 else 8))
    k = int(random.integers(1, 2 * config.rows + 4))
    n = int(random.integers(1, 2 * config.cols + 4))
    faults = _faults(random, config, gemm_timing(config, m, k, n).serial if m else 0, sites)
    x, w = _numbers(random, (m, k), config.act_range), _numbers(random, (k, n), config.weight_range)
    return Case(config, x, w, faults, _bypass(random, faults))


def config_pool(random: np.random.Generator, count: int, size: tuple[int, int] | None = None) -> list[ArrayConfig]:
    """Some arrays for an implementation that compiles each of them: of this size, or any that are compiled fast."""
    pool: list[ArrayConfig] = []
    while len(pool) < count:
        config = _config(random, size)
        gates = config.pe_count * config.weight_bits * config.act_bits
        if size is not None or (config.pe_count <= _MOST_COMPILED_PES and gates <= _MOST_COMPILED_GATES):
            pool.append(config)
    return pool


def _config(random: np.random.Generator, size: tuple[int, int] | None) -> ArrayConfig:
    if size is None:
        largest = _SMALL_SIDE if random.random() < 0.8 else _LARGE_SIDE
        rows, cols = (int(side) for side in random.integers(1, largest + 1, 2))
    else:
        rows, cols = size
    weight_bits, act_bits = 8, 8
    if random.random() < 0.5:
        weight_bits, act_bits = (int(bits) for bits in random.integers(SMALLEST_OPERAND_BITS, 9, 2))
    least = weight_bits + act_bits
    acc_bits = (least, 32, int(random.integers(least, 33)))[random.integers(3)]
    act_signed, design = bool(random.random() < 0.5), str(random.choice(DESIGNS))
    return ArrayConfig(rows, cols, weight_bits, act_bits, act_signed, acc_bits, design)


def _numbers(random: np.random.Generator, shape: tuple[int, int], limits: tuple[int, int]) -> Int64Array:
    low, high = limits
    style = random.integers(6)
    if style == 0:
        return np.full(shape, low, np.int64)
    if style == 1:
        return np.full(shape, high, np.int64)
    if style == 2:
        even = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 2 == 0
        return np.where(even, low, high).astype(np.int64)
    values = random.integers(low, high + 1, shape)
    if style == 3:
        values[random.random(shape) > 0.15] = 0
    return values


def _faults(random: np.random.Generator, config: ArrayConfig, cycles: int, sites: Sequence[Site]) -> FaultMap:
    """A few faults or many; anywhere, in one row, in one column or in one PE."""
    count = int(random.integers(0, 9 if random.random() < 0.7 else 2 + config.pe_count))
    row = random.integers(config.rows, size=count)
    col = random.integers(config.cols, size=count)
    site = random.choice(np.array([int(site) for site in sites]), count)
    crowd = random.integers(5)
    if crowd in (0, 2):
        row[:] = row[:1]
    if crowd in (1, 2):
        col[:] = col[:1]
    row[site == Site.ACCUMULATOR] = 0
    bit = np.zeros(count, np.int64)
    for one_site in sites:
        chosen = site == one_site
        bit[chosen] = random.integers(one_site.bits(config), size=int(chosen.sum()))
    transient = random.random(count) < (random.choice([0.0, 0.3, 1.0]) if cycles else 0.0)
    kind = np.where(transient, int(Kind.FLIP), random.integers(2, size=count))
    cycle = np.where(transient, random.integers(max(cycles, 1), size=count), PERMANENT)
    # No bit is stuck at both values: of all permanent faults of one bit the first stays.
    table = np.stack([row, col, site, bit, cycle, kind])
    _, first = np.unique(table[:5], axis=1, return_index=True)
    row, col, site, bit, cycle, kind = table[:, first]
    return FaultMap.from_arrays(config, row=row, col=col, site=site, bit=bit, kind=kind, cycle=cycle)


def _bypass(random: np.random.Generator, faults: FaultMap) -> BoolArray:
    style = random.integers(4)
    if style == 0:
        return faults.required_bypass()
    shape = (faults.config.rows, faults.config.cols)
    mask: BoolArray = random.random(shape) < (0.3 if style == 1 else 0.0)
    return mask


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A small case that fails, too: fewer faults, fewer bypassed PEs, smaller array and operands, small numbers.

    None of the steps makes it smaller still.
    """
    smaller: Case | None = case
    while smaller is not None:
        case = smaller
        smaller = next((simpler for simpler in _simpler(case) if fails(simpler)), None)
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Cases that are a step smaller, the largest steps first."""
    yield from _with_fewer_faults(case)
    for bypass in _emptier(case.bypass):
        yield replace(case, bypass=bypass)
    yield from _with_smaller_operands(case)
    for axis in (0, 1):
        for line in range(case.bypass.shape[axis]):
            if case.bypass.shape[axis] > 1:
                yield _without_line(case, axis, line)
    for name in ("x", "w"):
        values = getattr(case, name)
        if (values > 1).any() or (values < 0).any():
            yield replace(case, **{name: (values != 0).astype(np.int64)})
        for fewer in _emptier(values):
            yield replace(case, **{name: fewer})


def _emptier(values: npt.NDArray[Any]) -> Iterator[Any]:
    """All of them zero, if they are not; then each one that is not."""
    if values.any():
        yield np.zeros_like(values)
    for place in np.argwhere(values).tolist():
        fewer = values.copy()
        fewer[tuple(place)] = 0
        yield fewer


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
    moved = table[~placed | (table[name] != line)]
    moved[name] -= ((moved["site"] != Site.ACCUMULATOR) | (axis == 1)) & (moved[name] > line)
    x, w = case.x, case.w
    used = w.shape[axis]
    if line < used <= length and used > 1:
        w = np.delete(w, line, axis)
        x = np.delete(x, line, 1) if axis == 0 else x
    return Case(config, x, w, FaultMap(config, moved), np.delete(case.bypass, line, axis))


def _parts(length: int) -> Iterator[slice]:
    """All, then halves, quarters and so on down to single items; the last ones first."""
    size = length
    while size:
        for stop in range(length, 0, -size):
            yield slice(max(0, stop - size), stop)
        size //= 2
