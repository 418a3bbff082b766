"""The cycle engine beyond its outputs: cycles by stepping, traces, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, FaultModel, Site, gemm_timing, sample_faults, simulate_gemm
from simulator.engine.trace import check_window
from tests.support.oracle import oracle_gemm
from tests.support.strategies import GemmCase, gemm_cases

REGISTERS = ("shift", "weight", "east", "product", "south")


@settings(max_examples=100)
@given(case=gemm_cases())
def test_cycles_are_counted_by_stepping(case: GemmCase) -> None:
    result = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass)
    assert result.cycles == oracle_gemm(case.x, case.w, case.config).cycles
    assert result.cycles == result.timing.serial
    assert result.timing == gemm_timing(case.config, len(case.x), *case.w.shape)


@settings(max_examples=200)
@given(case=gemm_cases(), data=st.data())
def test_every_register_in_every_cycle_is_that_of_the_oracle(case: GemmCase, data: st.DataObject) -> None:
    cycles = gemm_timing(case.config, len(case.x), *case.w.shape).serial
    first = data.draw(st.integers(0, cycles - 1))
    window = (first, data.draw(st.integers(first + 1, cycles)))
    result = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, record=window)
    expected = oracle_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, record=window)
    assert result.trace is not None
    assert result.trace.first_cycle == first
    assert len(result.trace) == window[1] - first
    for name in REGISTERS:
        assert getattr(result.trace, name).tolist() == expected.trace[name].tolist(), name
    assert result.outputs.tolist() == expected.outputs.tolist()


def test_trace_crosses_the_engine_s_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(2, 3)
    x, w = random.integers(-128, 128, (1100, 2)), random.integers(-128, 128, (2, 3))
    faults = sample_faults(config, FaultModel(0.5), seed)
    result = simulate_gemm(x, w, config, faults, record=(990, 1060))
    expected = oracle_gemm(x, w, config, faults, record=(990, 1060))
    assert result.trace is not None
    for name in REGISTERS:
        assert np.array_equal(getattr(result.trace, name), expected.trace[name]), name


@pytest.mark.parametrize("shape", [(3000, 4, 4), (3000, 30, 4), (50, 40, 40), (2200, 9, 20)])
def test_results_do_not_depend_on_the_number_of_threads(
    shape: tuple[int, int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.engine.gemm._WORK_PER_THREAD", 1)
    random = np.random.default_rng(seed)
    m, k, n = shape
    config = ArrayConfig(8, 6)
    cycles = gemm_timing(config, m, k, n).serial
    kinds = {0: 1.0, 1: 1.0, 2: 1.0}
    model = FaultModel(0.5, sites=dict.fromkeys(Site, 1.0), kinds=kinds, cycles=cycles)  # type: ignore[arg-type]
    faults = sample_faults(config, model, seed)
    x, w = random.integers(-128, 128, (m, k)), random.integers(-128, 128, (k, n))
    alone = simulate_gemm(x, w, config, faults, threads=1)
    for threads in (2, 3, 8):
        together = simulate_gemm(x, w, config, faults, threads=threads)
        assert np.array_equal(together.outputs, alone.outputs)
        assert together.cycles == alone.cycles


def test_operands_may_have_any_layout_and_integer_type(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(4, 4)
    x, w = random.integers(-128, 128, (6, 10)), random.integers(-128, 128, (10, 9))
    expected = x @ w
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        assert np.array_equal(simulate_gemm(x.astype(dtype), w.astype(dtype), config).outputs, expected)
    assert np.array_equal(simulate_gemm(np.asfortranarray(x), w[::-1][::-1], config).outputs, expected)
    assert np.array_equal(simulate_gemm(x.tolist(), w.tolist(), config).outputs, expected)
    unsigned = ArrayConfig(4, 4, act_signed=False)
    bytes_ = random.integers(0, 256, (6, 10), dtype=np.uint8)
    assert np.array_equal(simulate_gemm(bytes_, w, unsigned).outputs, bytes_.astype(int) @ w)


def test_operands_are_not_changed(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(3, 3)
    x, w = random.integers(-128, 128, (6, 3)).astype(np.int16), random.integers(-128, 128, (3, 3)).astype(np.int16)
    before = x.copy(), w.copy()
    simulate_gemm(x, w, config, sample_faults(config, FaultModel(1.0), seed))
    assert np.array_equal(x, before[0])
    assert np.array_equal(w, before[1])


@pytest.mark.parametrize("window", [(5, 5), (-1, 3), (0, 1000), (7, 2)])
def test_impossible_windows_are_refused(window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \(first, stop\) with 0 <= first < stop <= 5 cycles"):
        simulate_gemm([[1]], [[1]], ArrayConfig(2, 2), record=window)


def test_a_trace_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="record at most 102 cycles at a time"):
        check_window(ArrayConfig(1024, 1024), (0, 3000), 5000)


def test_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threads is 0: expected at least 1"):
        simulate_gemm([[1]], [[1]], ArrayConfig(1, 1), threads=0)
