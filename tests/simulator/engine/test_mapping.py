"""Folds cover a GEMM once, in the order of time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig
from simulator.engine.mapping import fold_count, folds

sizes = st.integers(1, 20)


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
