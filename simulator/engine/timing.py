"""Which part of a GEMM sits where on the array, and when: its folds and their clock cycles, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.config import ArrayConfig
from simulator.dtypes import Int64Array
from simulator.errors import InputError


@dataclass(frozen=True)
class Fold:
    """One filling of the array with weights.

    Indices `k_start:k_stop` of the reduction sit on the rows from 0 on, outputs `n_start:n_stop` on the columns.
    `index` is its place in time, from 0: n-folds are the outer loop, k-folds the inner one.
    """

    index: int
    k_start: int
    k_stop: int
    n_start: int
    n_stop: int

    @property
    def used_rows(self) -> int:
        """Rows that hold weights; the others hold zeros."""
        return self.k_stop - self.k_start

    @property
    def used_cols(self) -> int:
        """Columns whose outputs are collected."""
        return self.n_stop - self.n_start


def fold_count(config: ArrayConfig, m: int, k: int, n: int) -> int:
    """Number of folds of `X[m, k] @ W[k, n]`; an `InputError` if `m` is negative, or `k` or `n` not positive."""
    if m < 0 or k < 1 or n < 1:
        raise InputError(f"GEMM is M={m}, K={k}, N={n}: expected M >= 0, K >= 1 and N >= 1")
    return -(-k // config.rows) * -(-n // config.cols)


def folds(config: ArrayConfig, k: int, n: int) -> Iterator[Fold]:
    """The folds of a GEMM with reduction length `k` and `n` outputs, in the order of time.

    >>> [(fold.k_start, fold.n_start) for fold in folds(ArrayConfig(2, 2), 3, 4)]
    [(0, 0), (2, 0), (0, 2), (2, 2)]
    """
    index = 0
    for n_start in range(0, n, config.cols):
        for k_start in range(0, k, config.rows):
            yield Fold(
                index=index,
                k_start=k_start,
                k_stop=min(k_start + config.rows, k),
                n_start=n_start,
                n_stop=min(n_start + config.cols, n),
            )
            index += 1


@dataclass(frozen=True)
class Timing:
    """Clock cycles of one GEMM of `m` x `k` by `k` x `n`.

    Attributes:
        folds: number of folds, `ceil(k / rows) * ceil(n / cols)`.
        cycles_per_fold: clock cycles of one fold when folds do not overlap, `2 * rows + cols + m - 2`.
        serial: clock cycles with one fold after the other.
        scalesim: what SCALE-Sim 3.0.0 (Samajdar et al. 2018, arXiv 1811.02883) prints as "Total Cycles" of a
            weight-stationary array: the number of its last cycle, counted from 0, so `serial - 1`.
        double_buffered: clock cycles when the next fold's weights load while this one streams. Weights switch as a
            wavefront, so only the first load and the last drain are exposed; a fold cannot be shorter than its load.
        serial_utilisation: multiply-accumulates done, over those that all PEs could do in `serial` cycles.
        double_buffered_utilisation: the same for `double_buffered`.
    """

    folds: int
    cycles_per_fold: int
    serial: int
    scalesim: int
    double_buffered: int
    serial_utilisation: float
    double_buffered_utilisation: float


def load_cycles(config: ArrayConfig) -> int:
    """Cycles in which a fold's weights are loaded."""
    return config.rows


def stream_cycles(config: ArrayConfig, m: int) -> int:
    """Cycles in which a fold's `m` activation rows stream through and its outputs drain."""
    return m + config.rows + config.cols - 2


def gemm_timing(config: ArrayConfig, m: int, k: int, n: int) -> Timing:
    """Clock cycles of `X[m, k] @ W[k, n]`.

    Args:
        config: the array.
        m: rows of X, >= 0.
        k: reduction length, >= 1.
        n: outputs, >= 1.

    Raises:
        InputError: a size is out of its range.

    >>> timing = gemm_timing(ArrayConfig(32, 32), 196, 384, 192)
    >>> timing.serial, timing.scalesim
    (20880, 20879)
    """
    folds = fold_count(config, m, k, n)
    per_fold = load_cycles(config) + stream_cycles(config, m)
    serial = folds * per_fold
    double_buffered = load_cycles(config) + (folds - 1) * max(m, load_cycles(config)) + stream_cycles(config, m)
    work = m * k * n
    return Timing(
        folds=folds,
        cycles_per_fold=per_fold,
        serial=serial,
        scalesim=serial - 1,
        double_buffered=double_buffered,
        serial_utilisation=work / (config.pe_count * serial),
        double_buffered_utilisation=work / (config.pe_count * double_buffered),
    )


def output_cycles(config: ArrayConfig, m: int, k: int, n: int, *, double_buffered: bool = False) -> Int64Array:
    """The clock cycle in which each partial sum is stored, while it is on the adder of the last row.

    With the first row of X at PE (0, 0) in cycle t of a fold, row m's output of column c is stored in cycle
    t + m + (rows - 1) + c. In serial timing t is the fold's first cycle after its load, in double-buffered timing folds
    follow each other every `max(m, rows)` cycles.

    Args:
        config: the array.
        m: rows of X, >= 0.
        k: reduction length, >= 1.
        n: outputs, >= 1.
        double_buffered: whether the next fold's weights load while one streams.

    Returns:
        int64 [k-folds, m, n]; the last k-fold's are the cycles in which the outputs are complete.

    Raises:
        InputError: a size is out of its range.

    >>> output_cycles(ArrayConfig(2, 2), m=1, k=4, n=2).tolist()  # Two folds of 5 cycles.
    [[[3, 4]], [[8, 9]]]
    """
    timing = gemm_timing(config, m, k, n)
    k_folds = -(-k // config.rows)
    fold = np.arange(n) // config.cols * k_folds + np.arange(k_folds)[:, None, None]
    period = max(m, load_cycles(config)) if double_buffered else timing.cycles_per_fold
    row, column = np.arange(m)[:, None], np.arange(n) % config.cols
    cycles: Int64Array = fold * period + load_cycles(config) + row + (config.rows - 1) + column
    return cycles
