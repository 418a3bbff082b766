"""Folds cover a GEMM once, in the order of time; formulas of clock cycles against events on a time line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, gemm_timing
from simulator.engine.timing import fold_count, folds

sizes = st.integers(1, 12)


def double_buffered_by_events(config: ArrayConfig, m: int, folds: int) -> int:
    """Follow each fold's load, stream and drain.

    Row 0's first activation meets the top left PE when the fold's weights are there: after their load, and after the
    fold before has sent its last row. The next load starts when this fold starts, into registers that are free then.
    """
    start = config.rows
    for _ in range(folds - 1):
        loaded = start + config.rows
        sent = start + m
        start = max(loaded, sent)
    last_row_enters = start + max(m, 1) - 1
    crosses_the_array = (config.rows - 1) + (config.cols - 1)
    return last_row_enters + crosses_the_array + 1 if m else start + crosses_the_array


@given(sizes, sizes, st.integers(0, 40), st.integers(1, 30), st.integers(1, 30))
def test_cycles_are_those_of_the_events(rows: int, cols: int, m: int, k: int, n: int) -> None:
    config = ArrayConfig(rows, cols)
    timing = gemm_timing(config, m, k, n)
    assert timing.folds == -(-k // rows) * -(-n // cols)
    assert timing.serial == timing.folds * timing.cycles_per_fold == timing.folds * (2 * rows + cols + m - 2)
    assert timing.scalesim == timing.serial - 1
    assert timing.double_buffered == double_buffered_by_events(config, m, timing.folds)
    assert timing.double_buffered <= timing.serial or m == 0


@given(sizes, sizes, st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
def test_utilisation_is_a_fraction_of_all_pes(rows: int, cols: int, m: int, k: int, n: int) -> None:
    timing = gemm_timing(ArrayConfig(rows, cols), m, k, n)
    assert timing.serial_utilisation == m * k * n / (rows * cols * timing.serial)
    assert 0 < timing.serial_utilisation <= timing.double_buffered_utilisation < 1


def test_nothing_to_do_is_no_utilisation() -> None:
    assert gemm_timing(ArrayConfig(2, 2), 0, 3, 3).serial_utilisation == 0


@given(sizes, sizes, sizes, sizes)
def test_folds_cover_every_weight_once(rows: int, cols: int, k: int, n: int) -> None:
    config = ArrayConfig(rows, cols)
    covered = np.zeros((k, n), int)
    listed = list(folds(config, k, n))
    for index, fold in enumerate(listed):
        assert fold.index == index
        assert fold.k_start % rows == 0
        assert fold.n_start % cols == 0
        assert 1 <= fold.used_rows <= rows
        assert 1 <= fold.used_cols <= cols
        covered[fold.k_start : fold.k_stop, fold.n_start : fold.n_stop] += 1
    assert (covered == 1).all()
    assert len(listed) == fold_count(config, 1, k, n)
    assert [(fold.n_start, fold.k_start) for fold in listed] == sorted((fold.n_start, fold.k_start) for fold in listed)


@pytest.mark.parametrize("shape", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_impossible_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected M >= 0, K >= 1 and N >= 1"):
        fold_count(ArrayConfig(2, 2), *shape)
