"""Fault maps: what they hold, what they refuse, and what they say about the hardware."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, InputError, Kind, Site
from simulator.faults import FAULT_DTYPE
from tests.support.strategies import configs, fault_maps

CONFIG = ArrayConfig(4, 5)
AT_0, AT_1, FLIP = Kind.STUCK_AT_0, Kind.STUCK_AT_1, Kind.FLIP


@st.composite
def maps(draw: st.DrawFn) -> FaultMap:
    return draw(fault_maps(draw(configs()), 50))


def fault_map(*faults: Fault) -> FaultMap:
    return FaultMap.from_faults(CONFIG, faults)


@given(maps(), st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(faults: FaultMap, random: Any) -> None:
    listed = list(faults) * 2
    random.shuffle(listed)
    again = FaultMap.from_faults(faults.config, listed)
    assert again == faults
    assert hash(again) == hash(faults)
    assert again.digest() == faults.digest()
    assert list(again) == list(faults)


@given(maps())
def test_a_table_gives_the_same_map(faults: FaultMap) -> None:
    table = faults.table
    assert FaultMap(faults.config, table[::-1]) == faults
    assert FaultMap.from_arrays(faults.config, **{name: table[name] for name in FAULT_DTYPE.names or ()}) == faults
    fields = [(f.row, f.col, f.site, f.bit, f.kind, -1 if f.cycle is None else f.cycle) for f in faults]
    assert fields == sorted(fields)


def test_it_cannot_be_changed() -> None:
    source = np.array([(0, 0, Site.PSUM, 3, AT_1, -1)], FAULT_DTYPE)
    faults = FaultMap(CONFIG, source)
    with pytest.raises(ValueError, match="read-only"):
        faults.table["bit"] = 5
    with pytest.raises(AttributeError):
        faults.config = CONFIG  # type: ignore[misc]
    source["bit"] = 7
    assert faults.table["bit"].tolist() == [3]


@given(maps())
def test_fusing_with_itself_or_nothing_changes_nothing(faults: FaultMap) -> None:
    assert faults | faults == faults
    assert faults | FaultMap(faults.config) == faults


def test_fusing_keeps_all_faults() -> None:
    a, b = Fault(0, 1, Site.PSUM, 3, AT_1), Fault(2, 2, Site.WEIGHT, 0, FLIP, 9)
    assert fault_map(a) | fault_map(b) == fault_map(b, a)
    assert len(fault_map(a) | fault_map(a, b)) == 2


def test_fusing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="fault maps of different arrays"):
        fault_map() | FaultMap(replace(CONFIG, acc_bits=20))
    with pytest.raises(ValueError, match="the same bit is stuck at 0 and at 1"):
        fault_map(Fault(1, 1, Site.PSUM, 2, AT_0)) | fault_map(Fault(1, 1, Site.PSUM, 2, AT_1))
    with pytest.raises(TypeError):
        fault_map() | 3  # type: ignore[operator]


@settings(max_examples=60)
@given(maps(), st.randoms(use_true_random=False))
def test_permutations_move_faults_and_can_be_undone(faults: FaultMap, random: Any) -> None:
    config = faults.config
    rows, cols = list(range(config.rows)), list(range(config.cols))
    random.shuffle(rows)
    random.shuffle(cols)
    moved = faults.permute_rows(rows).permute_columns(cols)
    expected = [
        replace(
            fault,
            row=0 if fault.site == Site.ACCUMULATOR else rows.index(fault.row),
            col=cols.index(fault.col),
        )
        for fault in faults
    ]
    assert moved == FaultMap.from_faults(config, expected)
    assert moved.permute_rows(np.argsort(rows)).permute_columns(np.argsort(cols)) == faults


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4], [0, 1, 2, 3, 4]])
def test_orders_that_are_no_permutation_are_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"row order is not a permutation: expected each of 0\.\.3 exactly once"):
        fault_map().permute_rows(order)


@given(maps())
def test_required_bypass_by_its_definition(faults: FaultMap) -> None:
    config = faults.config
    expected = np.zeros((config.rows, config.cols), bool)
    unusable = set()
    for fault in faults:
        if fault.kind == FLIP:
            continue
        if fault.site == Site.ACTIVATION:
            expected[fault.row, fault.col :] = True
        elif fault.site == Site.WEIGHT_LOAD:
            expected[fault.row :, fault.col] = True
        elif fault.site == Site.ACCUMULATOR:
            unusable.add(fault.col)
        else:
            expected[fault.row, fault.col] = True
    assert faults.required_bypass().tolist() == expected.tolist()
    assert faults.unusable_columns().tolist() == sorted(unusable)


@given(maps())
def test_summary_counts(faults: FaultMap) -> None:
    listed = list(faults)
    summary = faults.summary()
    places = {(fault.row, fault.col) for fault in listed if fault.site != Site.ACCUMULATOR}
    assert summary.faults == len(faults) == len(listed)
    assert summary.faulty_pes == len(places) == faults.faulty_pes().sum()
    assert summary.fault_rate == len(places) / faults.config.pe_count
    assert summary.required_bypass == faults.required_bypass().sum()
    assert summary.by_site == {site.name: sum(fault.site == site for fault in listed) for site in Site}
    assert summary.by_kind == {kind.name: sum(fault.kind == kind for fault in listed) for kind in Kind}
    assert faults.has_flips == any(fault.kind == FLIP for fault in listed)


def test_digest_tells_every_field_apart() -> None:
    fault = Fault(1, 2, Site.PRODUCT, 3, FLIP, 4)
    changes: list[dict[str, Any]] = [
        {},
        {"row": 2},
        {"col": 3},
        {"site": Site.PSUM},
        {"bit": 4},
        {"cycle": 5},
        {"kind": AT_1, "cycle": None},
    ]
    digests = {fault_map(replace(fault, **change)).digest() for change in changes}
    digests |= {
        FaultMap(replace(CONFIG, **change)).digest() for change in ({}, {"acc_bits": 31}, {"act_signed": False})
    }
    assert len(digests) == len(changes) + 3


@pytest.mark.integration
def test_digest_is_the_same_in_every_process() -> None:
    script = (
        "from simulator import *\n"
        "print(FaultMap.from_faults(ArrayConfig(4, 5), [Fault(1, 2, Site.PRODUCT, 3, Kind.FLIP, 4)]).digest())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fault_map(Fault(1, 2, Site.PRODUCT, 3, FLIP, 4)).digest()


def test_it_shows_what_it_is() -> None:
    assert repr(fault_map(Fault(0, 0, Site.PSUM, 0, AT_0))).startswith("FaultMap(4x5, 1 faults, ")
    assert fault_map() != "nothing"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(4, 0, Site.PSUM, 0, AT_0), r"row=4, .*: expected row 0\.\.3"),
        (Fault(0, 5, Site.PSUM, 0, AT_0), r"col=5, .*: expected col 0\.\.4"),
        (Fault(1, 0, Site.ACCUMULATOR, 0, AT_0), "expected row 0$"),
        (Fault(0, 0, Site.WEIGHT, 8, AT_0), "bit is beyond the width of its net"),
        (Fault(0, 0, Site.ACTIVATION, 8, AT_0), "bit is beyond"),
        (Fault(0, 0, Site.PRODUCT, 16, AT_0), "bit is beyond"),
        (Fault(0, 0, Site.PSUM, 32, AT_0), "bit is beyond"),
        (Fault(-1, 0, Site.PSUM, 0, AT_0), "'row' holds -1: expected 0"),
        (Fault(0, 70000, Site.PSUM, 0, AT_0), r"'col' holds 70000: expected 0\.\.65535"),
        (Fault(0, 0, Site.PSUM, 0, FLIP), "FLIP needs the clock cycle"),
        (Fault(0, 0, Site.PSUM, 0, FLIP, -2), "FLIP needs the clock cycle it happens in, 0 or later"),
        (Fault(0, 0, Site.PSUM, 0, AT_0, 3), "only FLIP has a cycle"),
    ],
)
def test_faults_outside_the_array_or_their_net_are_refused(fault: Fault, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fault_map(fault)


def test_both_stuck_values_on_a_bit_are_refused() -> None:
    with pytest.raises(ValueError, match="stuck at 0 and at 1; keep one of the two"):
        fault_map(Fault(1, 1, Site.PSUM, 2, AT_0), Fault(1, 1, Site.PSUM, 2, AT_1))
    assert len(fault_map(Fault(1, 1, Site.PSUM, 2, AT_0), Fault(1, 1, Site.PRODUCT, 2, AT_1))) == 2


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"row": [0.5]}, InputError, "'row' holds float64: expected integers"),
        ({"bit": [1, 2]}, ValueError, r"'bit' has shape \(2,\): expected \(1,\)"),
        ({"site": [9]}, ValueError, "unknown site: expected one of 0 WEIGHT"),
        ({"site": [7]}, ValueError, "unknown site"),
        ({"kind": [3]}, ValueError, "unknown kind: expected one of 0 STUCK_AT_0"),
        ({"kind": [2]}, ValueError, "a FLIP needs the clock cycle"),
        ({"cycle": [8]}, ValueError, "only a FLIP has a cycle: expected -1"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"row": [0], "col": [0], "site": [Site.PSUM], "bit": [0], "kind": [AT_0]}
    assert len(FaultMap.from_arrays(CONFIG, **good)) == 1
    with pytest.raises(kind, match=message):
        FaultMap.from_arrays(CONFIG, **{**good, **change})


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="fault table has dtype int64"):
        FaultMap(CONFIG, np.zeros(3, np.int64))
