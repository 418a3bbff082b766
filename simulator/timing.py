"""Clock cycles of a GEMM on the array, without running it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.config import ArrayConfig
from simulator.mapping import fold_count


@dataclass(frozen=True)
class Timing:
    """Clock cycles of one GEMM of `m` x `k` by `k` x `n`.

    Attributes:
        folds: number of folds, `ceil(k / rows) * ceil(n / cols)`.
        cycles_per_fold: clock cycles of one fold when folds do not overlap, `2 * rows + cols + m - 2`.
        serial: clock cycles with one fold after the other: the count of SCALE-Sim's weight-stationary model
            (Samajdar et al. 2018, arXiv 1811.02883), which prints one less.
        double_buffered: clock cycles when the next fold's weights load while this one streams. Weights switch as a
            wavefront, so only the first load and the last drain are exposed; a fold cannot be shorter than its load.
        serial_utilisation: multiply-accumulates done, over those that all PEs could do in `serial` cycles.
        double_buffered_utilisation: the same for `double_buffered`.
    """

    folds: int
    cycles_per_fold: int
    serial: int
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
        ValueError: a size is out of its range.

    >>> gemm_timing(ArrayConfig(32, 32), 196, 384, 192).serial  # SCALE-Sim 3.0.0 prints 20879
    20880
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
        double_buffered=double_buffered,
        serial_utilisation=work / (config.pe_count * serial),
        double_buffered_utilisation=work / (config.pe_count * double_buffered),
    )
