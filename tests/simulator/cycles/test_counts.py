"""Memory traffic: closed forms against a list of every word that is read or written, cycle by cycle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, gemm_timing, simulate_gemm
from simulator.cycles.counts import SramTraffic, gemm_traffic
from simulator.engine.timing import folds
from tests.support.strategies import configs

sizes = st.integers(1, 14)


def moves(config: ArrayConfig, m: int, k: int, n: int) -> Counter[tuple[str, int]]:
    """Words read or written in each clock cycle, one by one, with the cycles that docs/machine.md gives."""
    counted: Counter[tuple[str, int]] = Counter()
    rows, cols = config.rows, config.cols
    for fold in folds(config, k, n):
        load = fold.index * (2 * rows + cols + m - 2)
        stream = load + rows
        for i in range(rows):
            row = rows - 1 - i
            if row < fold.used_rows:
                counted["filter reads", load + i] += fold.used_cols
        for sent in range(m):
            for row in range(fold.used_rows):
                counted["ifmap reads", stream + sent + row] += 1
            for col in range(fold.used_cols):
                stored = stream + sent + (rows - 1) + col
                counted["ofmap writes", stored] += 1
                if fold.k_start > 0:
                    counted["ofmap reads", stored] += 1
    return counted


def bytes_of(bits: int) -> int:
    return 1 if bits <= 8 else 2 if bits <= 16 else 3 if bits <= 24 else 4


@given(configs(), st.integers(0, 14), sizes, sizes)
def test_counts_and_peaks_are_those_of_the_list(config: ArrayConfig, m: int, k: int, n: int) -> None:
    counted = moves(config, m, k, n)
    cycles = gemm_timing(config, m, k, n).serial
    assert all(0 <= cycle < cycles for _, cycle in counted)
    traffic = gemm_traffic(config, m, k, n)
    srams: dict[str, SramTraffic] = {"ifmap": traffic.ifmap, "filter": traffic.filter, "ofmap": traffic.ofmap}
    widths = {"ifmap": config.act_bits, "filter": config.weight_bits, "ofmap": config.acc_bits}
    in_cycle: Counter[int] = Counter()
    for name, sram in srams.items():
        assert sram.word_bytes == bytes_of(widths[name])
        of_sram: Counter[int] = Counter()
        totals = Counter({"reads": 0, "writes": 0})
        for (what, cycle), words in counted.items():
            if what.startswith(name):
                totals[what.split()[1]] += words
                of_sram[cycle] += words * bytes_of(widths[name])
        assert (sram.reads, sram.writes) == (totals["reads"], totals["writes"])
        assert sram.bytes == sum(of_sram.values())
        assert sram.peak_bytes_per_cycle == max(of_sram.values(), default=0)
        assert sram.average_bytes_per_cycle == sram.bytes / cycles
        in_cycle.update(of_sram)
    assert traffic.peak_bytes_per_cycle == max(in_cycle.values())
    assert traffic.average_bytes_per_cycle == in_cycle.total() / cycles


def test_words_are_read_when_the_engine_needs_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(rows=4, cols=3)
    m, k, n = 5, 7, 5
    x, w = random.integers(1, 128, (m, k)), random.integers(1, 128, (k, n))
    cycles = gemm_timing(config, m, k, n).serial
    trace = simulate_gemm(x, w, config, record=(0, cycles)).trace
    assert trace is not None
    counted = moves(config, m, k, n)
    # No operand is 0, so a register that is not 0 took a word in: activations in the first column. What a row without
    # weights gets is padding, 0.
    taken = (trace.east[:, :, 0] != 0).sum(axis=1)
    assert taken.tolist() == [counted["ifmap reads", cycle] for cycle in range(cycles)]
    # The first row's shift registers hold the weight just fed.
    for fold in folds(config, k, n):
        load = fold.index * gemm_timing(config, m, k, n).cycles_per_fold
        fed = (trace.shift[load : load + config.rows, 0, :] != 0).sum(axis=1)
        assert fed.tolist() == [counted["filter reads", load + i] for i in range(config.rows)]


# SRAM IFMAP Reads, SRAM Filter Reads and SRAM OFMAP Writes in the DETAILED_ACCESS_REPORT.csv of SCALE-Sim 3.0.0 (PyPI)
# on a 32x32 weight-stationary array.
@pytest.mark.parametrize(
    ("m", "n", "k", "ifmap_reads", "filter_reads", "ofmap_writes"),
    [
        (196, 192, 384, 451584, 73728, 451584),
        (196, 1176, 64, 464128, 75264, 460992),
        (5, 40, 33, 330, 1320, 400),
        (12100, 64, 147, 3557400, 9408, 3872000),
    ],
)
def test_counts_are_those_of_scalesim(
    m: int, n: int, k: int, ifmap_reads: int, filter_reads: int, ofmap_writes: int
) -> None:
    traffic = gemm_traffic(ArrayConfig(32, 32), m, k, n)
    assert (traffic.ifmap.reads, traffic.filter.reads, traffic.ofmap.writes) == (
        ifmap_reads,
        filter_reads,
        ofmap_writes,
    )


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="K=0"):
        gemm_traffic(ArrayConfig(2, 2), 1, 0, 1)
