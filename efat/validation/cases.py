"""Random faulty GEMMs, chosen to find differences between implementations of the array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator import ArrayConfig, FaultMap, Kind, Site, gemm_timing
from simulator.config import SMALLEST_OPERAND_BITS
from simulator.dtypes import BoolArray, Int64Array
from simulator.faults import PERMANENT
from simulator.gates.designs import DESIGNS

_SMALL_SIDE, _LARGE_SIDE = 6, 24
_LONGEST_X = 40
_MOST_COMPILED_PES, _MOST_COMPILED_GATES = 20, 400
"""PEs, and PEs times partial products of each: beyond these an array takes long to compile and to simulate."""


@dataclass(frozen=True, eq=False)
class Case:
    """One GEMM on one chip.

    Attributes:
        config: the array.
        x: int64 [M, K].
        w: int64 [K, N].
        faults: of the array.
        bypass: bool [rows, cols].
    """

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


def random_case(
    random: np.random.Generator,
    size: tuple[int, int] | None = None,
    sites: Sequence[Site] = tuple(Site),
    pool: Sequence[ArrayConfig] | None = None,
) -> Case:
    """Draw a case: any widths, several folds, all kinds of faults, adversarial numbers.

    Args:
        random: where from.
        size: rows and columns of the array; None for any, mostly small ones.
        sites: nets that may be faulty.
        pool: the arrays to choose from; None for any of that size.
    """
    config = _config(random, size) if pool is None else pool[int(random.integers(len(pool)))]
    m = int(random.integers(0, _LONGEST_X if random.random() < 0.1 else 8))
    k = int(random.integers(1, 2 * config.rows + 4))
    n = int(random.integers(1, 2 * config.cols + 4))
    faults = _faults(random, config, gemm_timing(config, m, k, n).serial if m else 0, sites)
    return Case(
        config,
        _numbers(random, (m, k), config.act_range),
        _numbers(random, (k, n), config.weight_range),
        faults,
        _bypass(random, faults),
    )


def config_pool(random: np.random.Generator, count: int, size: tuple[int, int] | None = None) -> list[ArrayConfig]:
    """Arrays for an implementation that compiles each of them: small ones unless a size is given.

    Args:
        random: where from.
        count: how many.
        size: rows and columns; None for any that are compiled fast.
    """
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
