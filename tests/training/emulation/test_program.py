"""Programs: what they hold, what is remembered, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, InputError, Kind, Site, sample_faults, simulate_gemm
from tests.support.strategies import GemmCase, gemm_cases
from training import lower
from training.emulation.program import _layout

CONFIG = ArrayConfig(4, 4)


def stuck(row: int, col: int, site: Site, bit: int = 0, kind: Kind = Kind.STUCK_AT_1) -> Fault:
    return Fault(row, col, site, bit, kind)


def test_a_summary_counts_what_there_is_to_do() -> None:
    faults = FaultMap.from_faults(
        CONFIG,
        [
            stuck(0, 1, Site.ACTIVATION),
            stuck(1, 2, Site.PSUM),
            stuck(2, 2, Site.PRODUCT),
            stuck(2, 3, Site.WEIGHT),
            Fault(3, 3, Site.PSUM, 4, Kind.FLIP, cycle=9),
        ],
    )
    bypass = np.zeros((4, 4), np.bool_)
    bypass[3, 0] = True
    # 6 outputs on 4 columns: column 0 and 1 come twice, columns 2 and 3 once; 8 reduction indices fill the rows twice.
    program = lower(np.ones((8, 6), int), CONFIG, faults, bypass=bypass)
    assert program.summary() == {
        "columns": 6,
        "folds": 4,
        "variants": 5,
        "cuts": 2,
        "corrections": 2,
        "bypassed": 4,
        "flips": 1,
    }
    assert (program.k, program.n) == (8, 6)


def test_weight_faults_and_bypass_change_weights_and_nothing_else() -> None:
    faults = FaultMap.from_faults(CONFIG, [stuck(1, 1, Site.WEIGHT, 3), stuck(0, 2, Site.WEIGHT_LOAD, 6)])
    bypass = np.eye(4, dtype=bool)
    program = lower(np.zeros((4, 4), int), CONFIG, faults, bypass=bypass)
    assert not len(program.layout.row)
    assert not len(program.layout.step_pair)
    expected = np.zeros((4, 4), int)
    expected[:, 2] = 64
    expected[2, 2] = 0
    assert program.effective_weights.tolist() == expected.tolist()


@settings(max_examples=200)
@given(case=gemm_cases(kinds=(Kind.STUCK_AT_0, Kind.STUCK_AT_1)))
def test_effective_weights_are_what_the_multipliers_get(case: GemmCase) -> None:
    table = case.faults.table
    wide = ArrayConfig(case.config.rows, case.config.cols, case.config.weight_bits, case.config.act_bits)
    faults = FaultMap(wide, table[np.isin(table["site"], (Site.WEIGHT, Site.WEIGHT_LOAD))])
    seen = simulate_gemm(np.eye(len(case.w), dtype=int), case.w, wide, faults, bypass=case.bypass).outputs
    program = lower(case.w, case.config, case.faults, bypass=case.bypass)
    assert program.effective_weights.tolist() == seen.tolist()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_programs_are_read_only_and_do_not_change_with_their_inputs(seed: int) -> None:
    random = np.random.default_rng(seed)
    faults = sample_faults(CONFIG, FaultModel(0.5), seed)
    w = random.integers(-128, 128, (6, 5)).astype(np.int8)
    bypass = random.random((4, 4)) < 0.3
    program = lower(w, CONFIG, faults, bypass=bypass)
    kept = w.copy(), bypass.copy()
    w[:] = 0
    bypass[:] = True
    assert np.array_equal(program.w, kept[0])
    assert np.array_equal(program.chip.bypass, kept[1])
    arrays = [program.w, program.effective_weights, *program.weights, *program.layout[1:]]
    for array in arrays:
        assert not array.flags.writeable


def test_what_depends_on_faults_alone_is_worked_out_once(seed: int) -> None:
    faults = sample_faults(CONFIG, FaultModel(0.3), seed)
    first = lower(np.ones((5, 5), int), CONFIG, faults)
    misses = _layout.cache_info().misses
    second = lower(np.full((5, 5), 7), CONFIG, FaultMap(CONFIG, faults.table))
    assert second.layout is first.layout
    assert _layout.cache_info().misses == misses


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.5]], CONFIG), InputError, "w holds float64: expected integers"),
        (([[128]], CONFIG), ValueError, "w holds 128: expected -128..127"),
        (([1], CONFIG), ValueError, r"w has shape \(1,\)"),
        ((np.zeros((0, 2), int), CONFIG), ValueError, "K >= 1 and N >= 1"),
        (([[1]], CONFIG, FaultMap(ArrayConfig(2, 2))), ValueError, "of another array"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lower(*arguments)
