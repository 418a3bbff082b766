"""Reads and writes of the three SRAMs around the array while it computes a GEMM, one fold after the other.

A weight is read in the load cycle that feeds it. Activation (m, k) is read in the streaming cycle in which it enters
its row r = k mod rows, which is cycle m + r. Partial sum (m, n) is written in the streaming cycle in which it leaves
its column c = n mod cols, which is cycle m + (rows - 1) + c; if an earlier k-fold has written it before, it is read
back in that same cycle. Nothing is read or written for PEs that hold no weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.config import ArrayConfig
from simulator.engine.mapping import fold_count
from simulator.engine.timing import gemm_timing


@dataclass(frozen=True)
class SramTraffic:
    """What goes between one SRAM and the array during one GEMM.

    Attributes:
        reads: words read.
        writes: words written.
        word_bytes: bytes of a word: its bits, rounded up to whole bytes.
        average_bytes_per_cycle: bytes read and written, over all serial clock cycles.
        peak_bytes_per_cycle: most bytes read and written in one clock cycle.
    """

    reads: int
    writes: int
    word_bytes: int
    average_bytes_per_cycle: float
    peak_bytes_per_cycle: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return (self.reads + self.writes) * self.word_bytes


@dataclass(frozen=True)
class Traffic:
    """What goes between the SRAMs and the array during one GEMM, in serial timing.

    Attributes:
        ifmap: activations, read once for each n-fold.
        filter: weights, each read once.
        ofmap: partial sums: written once for each k-fold, read back in each k-fold but the first.
        average_bytes_per_cycle: bytes of all three, over all serial clock cycles.
        peak_bytes_per_cycle: most bytes of all three in one clock cycle.
    """

    ifmap: SramTraffic
    filter: SramTraffic
    ofmap: SramTraffic
    average_bytes_per_cycle: float
    peak_bytes_per_cycle: int


def gemm_traffic(config: ArrayConfig, m: int, k: int, n: int) -> Traffic:
    """Reads and writes of `X[m, k] @ W[k, n]`.

    Args:
        config: the array; its widths give the bytes of a word.
        m: rows of X, >= 0.
        k: reduction length, >= 1.
        n: outputs, >= 1.

    Raises:
        InputError: a size is out of its range.

    >>> traffic = gemm_traffic(ArrayConfig(32, 32), 196, 384, 192)
    >>> traffic.ifmap.reads, traffic.filter.reads, traffic.ofmap.writes  # as SCALE-Sim 3.0.0 counts them
    (451584, 73728, 451584)
    """
    cycles = gemm_timing(config, m, k, n).serial
    k_folds, n_folds = fold_count(config, m, k, 1), fold_count(config, m, 1, n)
    act_bytes, weight_bytes, sum_bytes = (
        -(-bits // 8) for bits in (config.act_bits, config.weight_bits, config.acc_bits)
    )
    rows, cols = min(config.rows, k), min(config.cols, n)
    transfers = 2 if k_folds > 1 else 1

    def sram(reads: int, writes: int, word_bytes: int, peak_words: int) -> SramTraffic:
        return SramTraffic(reads, writes, word_bytes, (reads + writes) * word_bytes / cycles, peak_words * word_bytes)

    ifmap = sram(m * k * n_folds, 0, act_bytes, min(rows, m))
    weights = sram(k * n, 0, weight_bytes, cols)
    ofmap = sram(m * n * (k_folds - 1), m * n * k_folds, sum_bytes, transfers * min(cols, m))
    # A fold with more rows or columns moves at least as much in every cycle, so the fullest folds hold the peak: the
    # first one, and the fullest of those that read partial sums back.
    peaks = [weights.peak_bytes_per_cycle, _streaming_peak(config, m, rows, cols, act_bytes, sum_bytes)]
    if k_folds > 1:
        later_rows = min(config.rows, k - config.rows)
        peaks.append(_streaming_peak(config, m, later_rows, cols, act_bytes, transfers * sum_bytes))
    return Traffic(
        ifmap=ifmap,
        filter=weights,
        ofmap=ofmap,
        average_bytes_per_cycle=(ifmap.bytes + weights.bytes + ofmap.bytes) / cycles,
        peak_bytes_per_cycle=max(peaks),
    )


def _streaming_peak(
    config: ArrayConfig, m: int, used_rows: int, used_cols: int, row_bytes: int, column_bytes: int
) -> int:
    """Most bytes in one streaming cycle of a fold, activations and partial sums together.

    The bytes of each kind rise, stay and fall linearly over the cycles. The sum of two such lines is largest where one
    of them begins to stay or begins to fall.
    """
    first_sum = config.rows - 1
    bends = [min(used_rows, m) - 1, max(used_rows, m) - 1]
    bends += [first_sum + min(used_cols, m) - 1, first_sum + max(used_cols, m) - 1]
    return max(
        row_bytes * _lanes_in_use(cycle, m, used_rows) + column_bytes * _lanes_in_use(cycle - first_sum, m, used_cols)
        for cycle in bends
    )


def _lanes_in_use(cycle: int, m: int, lanes: int) -> int:
    """How many of `lanes`, of which number i carries values in cycles i..i + m - 1, carry one in this cycle."""
    return max(0, min(cycle, lanes - 1) - max(0, cycle - m + 1) + 1)
