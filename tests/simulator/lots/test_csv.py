"""Fault lists as CSV: what is written is read, and every mistake names its line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.errors import InputError
from simulator.lots.chips import Chip
from simulator.lots.csv import read_fault_list, write_fault_list
from tests.support.strategies import configs, fault_maps

CONFIG = ArrayConfig(4, 4)
HEADER = "chip,row,col,site,bit,kind,cycle"


def chips_of(folder: Path, text: str | bytes) -> list[Chip]:
    path = folder / "faults.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_fault_list(path, CONFIG)


@st.composite
def chips(draw: st.DrawFn) -> tuple[ArrayConfig, list[Chip]]:
    config = draw(configs())
    names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
    ids = draw(st.lists(names, unique=True, min_size=1, max_size=4))
    sides = (config.rows, config.cols)
    masks = [
        np.random.default_rng(draw(st.integers(0, 99))).random(sides) < draw(st.sampled_from([0, 0.3, 1])) for _ in ids
    ]
    return config, [Chip(name, draw(fault_maps(config, 100)), mask) for name, mask in zip(ids, masks, strict=True)]


@settings(max_examples=60)
@given(chips())
def test_what_is_written_is_read(made: tuple[ArrayConfig, list[Chip]]) -> None:
    config, listed = made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faults.csv"
        bypassed = sum(int(chip.bypass.sum()) for chip in listed if chip.bypass is not None)
        assert write_fault_list(path, listed) == (sum(len(chip.faults) for chip in listed), bypassed)
        assert read_fault_list(path, config) == listed


def test_columns_in_any_order_names_in_any_case_lines_of_a_chip_anywhere(tmp_path: Path) -> None:
    text = (
        "\ufeffKind, cycle ,site,bit,chip,col,row\r\n"
        "stuck_at_1,,psum,20,a,2,1\r\n"
        "\r\n"
        " FLIP ,7, Weight ,3, b ,0,0\r\n"
        "STUCK_AT_0,,ACCUMULATOR,1,a,3,0\r\n"
    )
    psum, accumulator = Fault(1, 2, Site.PSUM, 20, Kind.STUCK_AT_1), Fault(0, 3, Site.ACCUMULATOR, 1, Kind.STUCK_AT_0)
    assert chips_of(tmp_path, text) == [
        Chip("a", FaultMap.from_faults(CONFIG, [psum, accumulator])),
        Chip("b", FaultMap.from_faults(CONFIG, [Fault(0, 0, Site.WEIGHT, 3, Kind.FLIP, 7)])),
    ]


def test_the_cycle_column_may_be_missing(tmp_path: Path) -> None:
    (chip,) = chips_of(tmp_path, "chip,row,col,site,bit,kind\na,1,1,PRODUCT,2,STUCK_AT_0\n")
    assert list(chip.faults) == [Fault(1, 1, Site.PRODUCT, 2, Kind.STUCK_AT_0)]


def test_a_chip_without_faults_is_a_line_of_its_own(tmp_path: Path) -> None:
    found = chips_of(tmp_path, f"{HEADER}\nwell,,,,,,\nill,1,1,PRODUCT,2,STUCK_AT_0,\n")
    assert [(chip.id, len(chip.faults)) for chip in found] == [("well", 0), ("ill", 1)]


def test_bypassed_pes_are_lines_of_their_own(tmp_path: Path) -> None:
    lines = [
        "a,1,2,BYPASS,,,",
        "b,0,0,PSUM,3,STUCK_AT_0,",
        "a,3,0,PSUM,3,STUCK_AT_0,",
        " a,0,3, bypass ,, ,",
        "c,,,,,,",
    ]
    a, b, c = chips_of(tmp_path, "\n".join([HEADER, *lines]))
    assert np.argwhere(a.bypass).tolist() == [[0, 3], [1, 2]]
    assert list(a.faults) == [Fault(3, 0, Site.PSUM, 3, Kind.STUCK_AT_0)]
    assert (b.bypass, c.bypass) == (None, None)
    write_fault_list(tmp_path / "again.csv", [a, c])
    assert (tmp_path / "again.csv").read_text().splitlines()[1:] == [
        "a,3,0,PSUM,3,STUCK_AT_0,",
        "a,0,3,BYPASS,,,",
        "a,1,2,BYPASS,,,",
        "c,,,,,,",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["a,1,1,PSUM,3,STUCK_AT_0,", "a,1,1,BYPASS,3,,"],
            "line 3: bit is '3': expected nothing, as a bypassed PE has",
        ),
        (["a,1,1,BYPASS,,STUCK_AT_0,"], "line 2: kind is 'STUCK_AT_0': expected nothing"),
        (["", "a,1,1,BYPASS,,,7"], "line 3: cycle is '7': expected nothing"),
        (["a,1,1,BYPASS,,,", "a,4,1,BYPASS,,,"], r"line 3: row of a bypassed PE is 4: expected 0\.\.3"),
        (["a,1,1,BYPASS,,,", "a,1,,BYPASS,,,"], "line 3: col is ''"),
        (["a,1,1,BYPASSED,,,"], "site is 'BYPASSED': expected one of .*ACCUMULATOR, BYPASS"),
        (["a,x,1,PSUM,3,STUCK_AT_0,"], "line 2: row is 'x': expected a whole number, 0 to 65535"),
        (["a,+1,1,PSUM,3,STUCK_AT_0,", "a,y,1,PSUM,3,STUCK_AT_0,"], "line 3: row is 'y'"),
        (["a,1,1,PSUM,3,STUCK_AT_0,", "a,1,1,PSUM,1_0,STUCK_AT_0,"], "line 3: bit is '1_0'"),
        (["a,70000,1,PSUM,3,STUCK_AT_0,"], "line 2: row is '70000': expected a whole number, 0 to 65535"),
        (["a,1,1,PSUM,3,STUCK_AT_0,", "a,-1,1,PSUM,3,STUCK_AT_0,"], "line 3: row is '-1'"),
        (["", "", "a,1,1.5,PSUM,3,STUCK_AT_0,"], "line 4: col is '1.5'"),
        (["a,1,,PSUM,3,STUCK_AT_0,"], "line 2: col is ''"),
        (["a,1,1,ELBOW,3,STUCK_AT_0,"], "line 2: site is 'ELBOW': expected one of WEIGHT, WEIGHT_LOAD"),
        (["a,1,1,PSUM,3,STUCK,"], "line 2: kind is 'STUCK': expected one of STUCK_AT_0, STUCK_AT_1, FLIP"),
        (["a,1,1,PSUM,99999999999999999999999,STUCK_AT_0,"], "line 2: bit is"),
        (["a,1,1,PSUM,3,FLIP,soon"], "line 2: cycle is 'soon': expected a clock cycle"),
        (["a,1,1,PSUM,3,STUCK_AT_0,", "b,1,1,PSUM,3,FLIP,x"], "line 3: cycle is 'x'"),
        (["a,1,1,PSUM,3,FLIP,"], "line 2: .*a FLIP needs the clock cycle"),
        (["a,1,1,PSUM,3,STUCK_AT_0,4"], "line 2: .*only a FLIP has a cycle"),
        (["b,1,1,PSUM,3,STUCK_AT_0,", "a,4,1,PSUM,3,STUCK_AT_0,"], r"line 3: .*site=PSUM, .*expected row 0\.\.3"),
        (["a,1,1,WEIGHT,8,STUCK_AT_0,"], "line 2: .*beyond the width"),
        (["a,1,1,ACCUMULATOR,8,STUCK_AT_0,"], "line 2: .*expected row 0"),
        (["a,1,1,PSUM,3,STUCK_AT_0,", "a,1,1,PSUM,3,STUCK_AT_1,"], "chip 'a': .*stuck at 0 and at 1"),
        (["a,1,1,PSUM,3"], "line 2: 5 cells: expected 7, as in the header"),
        ([",1,1,PSUM,3,STUCK_AT_0,"], "line 2: chip is empty"),
        ([f"{'x' * 70},1,1,PSUM,3,STUCK_AT_0,"], "expected 1 to 64 bytes"),
        ([], "has a header but no chips"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chips_of(tmp_path, "\n".join([HEADER, *lines]) + "\n")


@pytest.mark.parametrize(
    "header", ["", "chip,row,col,site,bit", f"{HEADER},colour", f"{HEADER},row", "1,2,3,PSUM,5,STUCK_AT_0,"]
)
def test_wrong_headers_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(InputError, match=r"line 1: header is .*: expected chip,row,col,site,bit,kind,cycle"):
        chips_of(tmp_path, f"{header}\na,1,1,PSUM,3,STUCK_AT_0,\n")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", f"{HEADER}\n".encode() + b'"a,1,1,PSUM,3,STUCK_AT_0,\n'])
def test_files_that_are_no_csv_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="is not a CSV file in UTF-8"):
        chips_of(tmp_path, content)


def test_a_line_break_inside_a_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a cell has a line break in it"):
        chips_of(tmp_path, f'{HEADER}\n"a\nb",1,1,PSUM,3,STUCK_AT_0,\n')


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected a CSV file"):
        read_fault_list(tmp_path / "nothing.csv", CONFIG)


def test_long_lists_are_read_across_blocks(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    places = random.permutation(4 * 4 * 32)[:400]
    lines = [f"c{i % 7},{p // 128},{p // 32 % 4},PSUM,{p % 32},STUCK_AT_1," for i, p in enumerate(places.tolist() * 20)]
    found = chips_of(tmp_path, "\n".join([HEADER, *lines]))
    assert len(found) == 7
    assert {(f.row, f.col, f.bit) for chip in found for f in chip.faults} == {
        (p // 128, p // 32 % 4, p % 32) for p in places.tolist()
    }
