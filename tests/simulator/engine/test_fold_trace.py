"""One fold recorded piece by piece: the same registers as the whole GEMM's."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, FaultModel, Kind, Trace, sample_faults, simulate_gemm
from simulator.engine.fold_trace import FoldWindow, WindowError, record_fold
from tests.support.strategies import GemmCase, gemm_cases

REGISTERS = [field.name for field in fields(Trace) if field.name != "first_cycle"]


@st.composite
def windows(draw: st.DrawFn, case: GemmCase) -> FoldWindow:
    """Some cycles of some fold."""
    timing = FoldWindow.of(case.x, case.w, case.config)
    folds = -(-timing.k // case.config.rows) * -(-timing.n // case.config.cols)
    first = draw(st.integers(0, timing.cycles_per_fold - 1))
    stop = draw(st.integers(first + 1, timing.cycles_per_fold) | st.just(timing.cycles_per_fold))
    return FoldWindow.of(case.x, case.w, case.config, draw(st.integers(0, folds - 1)), first, stop)


@given(data=st.data(), cycles_per_piece=st.integers(1, 9), permanent=st.booleans())
def test_pieces_are_the_trace_of_the_whole_gemm(data: st.DataObject, cycles_per_piece: int, permanent: bool) -> None:
    kinds = (Kind.STUCK_AT_0, Kind.STUCK_AT_1) if permanent else tuple(Kind)
    case = data.draw(gemm_cases(kinds))
    window = data.draw(windows(case))
    whole = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, record=window.gemm_cycles).trace
    assert whole is not None
    size = cycles_per_piece * case.config.pe_count * 20
    pieces = list(record_fold(case.x, case.w, window, case.faults, bypass=case.bypass, piece_bytes=size))
    assert max(map(len, pieces)) <= cycles_per_piece
    cycle = window.gemm_cycles[0]
    for piece in pieces:
        assert piece.first_cycle == cycle
        cycle += len(piece)
    assert cycle == window.gemm_cycles[1]
    for name in REGISTERS:
        recorded = np.concatenate([getattr(piece, name) for piece in pieces])
        assert recorded.tolist() == getattr(whole, name).tolist(), name


def test_pieces_far_from_the_beginning_of_a_long_fold(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(13, 9)
    faults = sample_faults(config, FaultModel(0.2), seed)
    x, w = random.integers(-128, 128, (3000, 20)), random.integers(-128, 128, (20, 9))
    window = FoldWindow.of(x, w, config, fold=1, first=2000, stop=2100)
    whole = simulate_gemm(x, w, config, faults, record=window.gemm_cycles).trace
    assert whole is not None
    pieces = list(record_fold(x, w, window, faults, piece_bytes=30 * config.pe_count * 20))
    assert [len(piece) for piece in pieces] == [30, 30, 30, 10]
    for name in REGISTERS:
        assert np.array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(whole, name)), name


@given(data=st.data(), cycles_per_piece=st.integers(1, 9))
def test_chosen_pes_are_those_of_the_whole_array(data: st.DataObject, cycles_per_piece: int) -> None:
    case = data.draw(gemm_cases((Kind.STUCK_AT_0, Kind.STUCK_AT_1)))
    window = data.draw(windows(case))
    pe = st.tuples(st.integers(0, case.config.rows - 1), st.integers(0, case.config.cols - 1))
    pes = data.draw(st.lists(pe, min_size=1, max_size=3))
    whole = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, record=window.gemm_cycles).trace
    size = cycles_per_piece * case.config.pe_count * 20
    pieces = list(record_fold(case.x, case.w, window, case.faults, bypass=case.bypass, pes=pes, piece_bytes=size))
    for name in REGISTERS:
        recorded = np.concatenate([getattr(piece, name) for piece in pieces])
        assert recorded.shape == getattr(whole, name).shape
        for row, col in pes:
            assert recorded[:, row, col].tolist() == getattr(whole, name)[:, row, col].tolist(), name


def test_a_piece_has_at_least_one_cycle() -> None:
    window = FoldWindow.of([[1]], [[2]], ArrayConfig(3, 3))
    pieces = list(record_fold([[1]], [[2]], window, piece_bytes=1))
    assert [len(piece) for piece in pieces] == [1] * len(window) == [1] * (2 * 3 + 3 + 1 - 2)


def test_cycles_of_a_fold_and_of_the_gemm() -> None:
    x, w = np.zeros((10, 5), int), np.zeros((5, 7), int)
    window = FoldWindow.of(x, w, ArrayConfig(2, 4), fold=4, first=3)
    assert window.cycles_per_fold == 2 * 2 + 4 + 10 - 2
    assert (window.first, window.stop, len(window)) == (3, 16, 13)
    assert window.gemm_cycles == (4 * 16 + 3, 5 * 16)


@pytest.mark.parametrize(
    ("fold", "first", "stop", "message"),
    [
        (6, None, None, "fold 6: the GEMM of M=10, K=5, N=7 has 6 folds on the 2x4 array, expected 0..5"),
        (-1, None, None, "fold -1"),
        (0, -1, None, "cycles -1:16: a fold has 16 cycles, expected first:stop with 0 <= first < stop <= 16"),
        (0, 16, None, "cycles 16:16"),
        (0, 5, 5, "cycles 5:5"),
        (0, None, 17, "cycles 0:17"),
    ],
)
def test_windows_that_are_not_there(fold: int, first: int | None, stop: int | None, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        FoldWindow.of(np.zeros((10, 5), int), np.zeros((5, 7), int), ArrayConfig(2, 4), fold, first, stop)


def test_operands_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"x is \(2, 3\) and w is \(2, 3\)"):
        FoldWindow.of(np.zeros((2, 3), int), np.zeros((2, 3), int), ArrayConfig(2, 4))
    window = FoldWindow.of(np.zeros((2, 3), int), np.zeros((3, 3), int), ArrayConfig(2, 4))
    with pytest.raises(ValueError, match="no PEs are chosen"):
        record_fold(np.zeros((2, 3), int), np.zeros((3, 3), int), window, pes=[])
    with pytest.raises(ValueError, match="PE 1,4 is not in the 2x4 array"):
        record_fold(np.zeros((2, 3), int), np.zeros((3, 3), int), window, pes=[(1, 4)])
    with pytest.raises(ValueError, match=r"bypass has shape \(3, 4\): expected \(2, 4\)"):
        record_fold(np.zeros((2, 3), int), np.zeros((3, 3), int), window, bypass=np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match=r"x is \(1, 3\) and w is \(3, 3\): expected \(2, 3\) and \(3, 3\)"):
        record_fold(np.zeros((1, 3), int), np.zeros((3, 3), int), window)
