"""`efat multiplier`, and lots whose PEs multiply with a file: what is shown, written and refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from simulator import Kind, Site, simulate_gemm
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.lots.chips import ChipLot
from simulator.multipliers.fault_classes import compare, fault_classes
from simulator.multipliers.multiplier import exact_products
from tests.support import netlist_cases
from tests.support.programs import refused, run

SAMPLE = Path(__file__).parents[4] / "tests" / "support" / "data" / "mult3x2_unsigned_acts.v"
NETLIST = ["--netlist", "mine.v", "--unsigned-acts"]
SMALL = ["--weight-bits", "3", "--act-bits", "2"]


@pytest.fixture
def netlist(folder: Path) -> Path:
    return Path(shutil.copy(SAMPLE, folder / "mine.v"))


@pytest.fixture
def truncated(folder: Path) -> np.ndarray:
    """A table of unsigned operands in `mul8u.bin`: the lowest bit of the product is missing."""
    numbers = np.arange(256)
    table = np.multiply.outer(numbers, numbers) & ~1
    table.astype("<u2").tofile(folder / "mul8u.bin")
    return table


def test_list_shows_every_design(folder: Path) -> None:
    result = run("multiplier", "list")
    assert result.exit_code == 0, result.output
    for design in DESIGNS:
        netlist = build_netlist(design, 8, 8)
        row = next(line for line in result.output.splitlines() if line.split()[:1] == [design])
        assert row.split()[1:] == [str(len(netlist.gates)), str(netlist.depth), str(netlist.locations)]


def test_list_evaluates_faults_when_asked(folder: Path) -> None:
    result = run("multiplier", "list", *SMALL, "--unsigned-acts", "--faults", "--json", "list.json")
    assert result.exit_code == 0, result.output
    assert "3-bit signed weights by 2-bit unsigned activations" in result.output
    listed = json.loads(Path("list.json").read_text())
    assert list(listed) == list(DESIGNS)
    for design, row in listed.items():
        expected = compare(fault_classes(build_netlist(design, 3, 2, act_signed=False)))
        assert row["faults"]["classes"] == expected.classes
        assert row["faults"]["disturbed"] == list(expected.disturbed)
    assert "faults" not in json.loads(run("multiplier", "list", "--json", "-").stdout)["dadda"]


def test_faults_of_a_design_are_shown(folder: Path) -> None:
    result = run("multiplier", "faults", "--design", "dadda", *SMALL, "--top", "4")
    assert result.exit_code == 0, result.output
    classes = fault_classes(build_netlist("dadda", 3, 2))
    assert f"The 4 of {len(classes)} classes" in result.output
    assert sum(line.startswith(" gate ") for line in result.output.splitlines()) == 4
    assert f"{max(one.disturbed for one in classes):.2%}" in result.output
    quiet = run("multiplier", "faults", *SMALL, "--top", "0")
    assert "classes that disturb" not in quiet.output


def test_all_classes_are_written(folder: Path) -> None:
    result = run("multiplier", "faults", *SMALL, "--csv", "c.csv", "--json", "c.json", "--png", "c.png")
    assert result.exit_code == 0, result.output
    classes = sorted(fault_classes(build_netlist("array", 3, 2)), key=lambda one: -one.disturbed)
    written = json.loads(Path("c.json").read_text())
    assert written["comparison"]["classes"] == len(classes) == len(written["classes"])
    with Path("c.csv").open() as file:
        lines = list(csv.DictReader(file))
    for one, row, line in zip(classes, written["classes"], lines, strict=True):
        assert [(fault["location"], Kind[fault["kind"]]) for fault in row["faults"]] == one.faults
        assert line["members"] == " ".join(f"{place}:STUCK_AT_{stuck}" for place, stuck in one.faults)
        assert row["disturbed"] == float(line["disturbed"]) == one.disturbed
        assert row["bits"] == [float(line[f"bit_{bit}"]) for bit in range(5)] == one.bits.tolist()
        assert row["mean_absolute_error"] == float(line["mean_absolute_error"]) == one.errors.mean_absolute
        assert (row["nearest_bit"], Kind[row["nearest_kind"]], row["bit_model_wrong"]) == one.nearest
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


def test_faults_of_a_netlist_are_shown_with_its_ports(netlist: Path) -> None:
    result = run("multiplier", "faults", *NETLIST, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["gates"] == 16
    result = run("multiplier", "faults", *NETLIST)
    assert "mult3x2: 16 gates; weight is port w (3 bits), activation a (2 bits), product p" in result.output


def test_errors_of_a_table_are_shown(folder: Path, truncated: np.ndarray) -> None:
    result = run("multiplier", "table", "mul8u.bin", "--table-unsigned", "--json", "t.json")
    assert result.exit_code == 0, result.output
    assert "raw, 8-bit unsigned weights by 8-bit unsigned activations, activation first (symmetric)" in result.output
    written = json.loads(Path("t.json").read_text())
    # A quarter of all pairs have two odd operands, and each such product is one too small.
    assert written["mean_absolute_error"] == written["error_probability"] == 0.25
    assert (written["worst_case_error"], written["mean_error"]) == (1, -0.25)
    assert "25.0000%" in result.output


def test_doubtful_signs_of_a_table_are_said(folder: Path) -> None:
    np.save("zeros.npy", np.zeros((256, 256), np.int16))
    result = run("multiplier", "table", "zeros.npy", "--table-signed", "--json", "t.json")
    doubt = json.loads(Path("t.json").read_text())["doubt"]
    assert "the products do not show the signs; products that are always 0 would be no worse" in doubt
    assert doubt in " ".join(result.output.split())


def test_tables_are_converted(folder: Path, truncated: np.ndarray) -> None:
    options = ["--table-unsigned", "--sign-magnitude", "--write", "mul8s.npy"]
    assert run("multiplier", "table", "mul8u.bin", *options).exit_code == 0
    written = np.load("mul8s.npy")
    assert written.dtype == np.int16
    assert written[5, 256 - 3] == -truncated[5, 3] == -14
    result = run("multiplier", "table", "mul8s.npy", "--table-signed")
    assert "NumPy, 8-bit signed weights by 8-bit signed activations, weight first (symmetric)" in result.output
    assert run("multiplier", "table", "mul8u.bin", "--table-unsigned", "--write", "mul8u.npy").exit_code == 0
    assert np.array_equal(np.load("mul8u.npy"), truncated)


def test_errors_of_a_netlist_are_shown(netlist: Path) -> None:
    result = run("multiplier", "table", "mine.v", "--unsigned-acts", "--write", "mine.npy")
    assert result.exit_code == 0, result.output
    assert "weight is port w" in result.output
    assert np.array_equal(np.load("mine.npy"), exact_products(3, 2, act_signed=False))


def test_lots_may_have_any_multiplier(netlist: Path) -> None:
    common = ["chips", "generate", "--array", "4x4", "--count", "2", "--fault-rate", "0.5", "--site", "multiplier"]
    options = [*SMALL, "--unsigned-acts", "--multiplier", "mine.v"]
    result = run(*common, *options, "-o", "gates.h5")
    assert result.exit_code == 0, result.output
    assert "weight is port w (3 bits)" in result.output
    with ChipLot(Path("gates.h5")) as lot:
        assert lot.config.pe_multiplier.locations == 48
        chip = lot["chip-0000"]
        assert set(chip.faults.table["site"].tolist()) == {Site.MULTIPLIER}
    shown = run("chips", "show", "gates.h5").output
    assert "multiplier mine.v" in " ".join(shown.split())
    assert "Multiplier mine.v: exact." in shown
    assert run(*common, "--multiplier", "dadda", "-o", "dadda.h5").exit_code == 0
    with ChipLot(Path("dadda.h5")) as lot:
        assert lot.config.multiplier == "dadda"


def test_faulty_pes_may_multiply_by_a_table(folder: Path, truncated: np.ndarray) -> None:
    common = ["chips", "generate", "--array", "4x4", "--count", "1", "--fault-rate", "0.5", "--site", "multiplier"]
    options = ["--faulty-multiplier", "mul8u.bin", "--table-unsigned", "--sign-magnitude", "-o", "lot.h5"]
    result = run(*common, *options)
    assert result.exit_code == 0, result.output
    with ChipLot(Path("lot.h5")) as lot:
        chip = lot["chip-0000"]
        assert lot.config.pe_multiplier.exact
    faulty = np.zeros((4, 4), bool)
    faulty[chip.faults.table["row"], chip.faults.table["col"]] = True
    assert faulty.sum() == 8
    # One input of 3 at a time: each PE multiplies it by its weight of -5, the faulty ones by the table.
    outputs = simulate_gemm(3 * np.eye(4, dtype=int), np.full((4, 4), -5), lot.config, chip.faults).outputs
    assert np.array_equal(outputs, np.where(faulty, -14, -15))


def test_imported_lots_may_have_any_multiplier(netlist: Path) -> None:
    Path("f.csv").write_text("chip,row,col,site,bit,kind,cycle\nc,1,2,MULTIPLIER,47,STUCK_AT_1,\n")
    options = ["--array", "4x4", *SMALL, "--unsigned-acts", "-o", "lot.h5"]
    assert run("chips", "import", "f.csv", *options, "--multiplier", "mine.v").exit_code == 0
    with ChipLot(Path("lot.h5")) as lot:
        assert lot["c"].faults.table["bit"].tolist() == [47]
    Path("f.csv").write_text("chip,row,col,site,bit,kind,cycle\nc,1,2,MULTIPLIER,48,STUCK_AT_1,\n")
    assert "48" in refused("chips", "import", "f.csv", *options[:-1], "again.h5", "--multiplier", "mine.v")


def test_input_that_cannot_be_used_is_refused(netlist: Path, truncated: np.ndarray) -> None:
    faults = ["multiplier", "faults"]
    assert refused(*faults, "--design", "array", *NETLIST) == "--design and --netlist: expected one of them"
    assert refused(*faults, *NETLIST, "--act-bits", "2").startswith("--act-bits: the netlist says how wide")
    assert refused(*faults, "--weight-port", "w") == "--weight-port: only a --netlist has ports to choose"
    doubted = refused(*faults, *NETLIST[:2])
    assert "exactly, not signed weights by signed activations: take an array of unsigned activations" in doubted
    assert refused(*faults, "--top", "3", "--json", "-") == "--top: --json - prints all classes and no table"
    assert "no input is named 'x': it has inputs w (3 bits), a (2 bits)" in refused(
        *faults, *NETLIST, "--act-port", "x"
    )
    assert refused(*faults, "--netlist", "none.v").startswith("none.v: no such file")
    assert "mine.v is the file to read" in refused(*faults, *NETLIST, "--csv", "mine.v")
    assert "c.csv is named for two outputs" in refused(*faults, *SMALL, "--csv", "c.csv", "--png", "c.csv")
    assert "no such folder" in refused(*faults, *SMALL, "--png", "none/c.png")
    table = ["multiplier", "table", "mul8u.bin"]
    assert "sign convention not stated" in refused(*table)
    assert "state the signs that it was made for" in refused(*table, "--table-signed")
    assert "expected 64, 32 words" in refused(*table, *SMALL, "--table-unsigned")
    assert "expected a name that ends in .npy" in refused(*table, "--table-unsigned", "--write", "t.bin")
    assert refused(*table, "--table-unsigned", "--unsigned-acts") == "--unsigned-acts: --table-unsigned says so already"
    assert refused(*table, "--unsigned-acts").startswith("--unsigned-acts: say with --table-signed that the table has")
    assert refused(*table, "--weight-port", "w") == "--weight-port: only a netlist has ports to choose"
    of_netlist = ["multiplier", "table", "mine.v", "--unsigned-acts"]
    assert refused(*of_netlist, "--weight-bits", "3").startswith("--weight-bits: the netlist says how wide")
    assert refused(*of_netlist, "--table-first", "weight").startswith("--table-first: a netlist's operands are ports")
    assert "operands are signed already" in refused(*of_netlist, "--sign-magnitude")
    np.save("mul8s.npy", exact_products(8, 8))
    signed = ["multiplier", "table", "mul8s.npy", "--table-signed", "--sign-magnitude"]
    assert "operands are signed already: expected unsigned ones" in refused(*signed)


def test_multipliers_that_do_not_fit_the_array_are_refused(netlist: Path, truncated: np.ndarray) -> None:
    common = ["chips", "generate", "--array", "4x4", "--count", "1", "--fault-rate", "0.5", "-o", "lot.h5"]
    assert "expected 8 and 8 bits, as the array has" in refused(*common, "--multiplier", "mine.v", "--unsigned-acts")
    assert "booth: neither a file nor one of the designs" in refused(*common, "--multiplier", "booth")
    unsigned = ["--multiplier", "mul8u.bin", "--table-unsigned"]
    assert "multiply magnitudes by it, and signs apart (--sign-magnitude)" in refused(*common, *unsigned)
    assert "sign convention not stated" in refused(*common, "--multiplier", "mul8u.bin")
    no_place = refused(*common, *unsigned, "--sign-magnitude", "--site", "multiplier")
    assert "mul8u.bin is a table for all PEs and has no place for faults" in no_place
    two = ["--multiplier", "dadda", "--faulty-multiplier", "mul8u.bin", "--table-unsigned", "--sign-magnitude"]
    assert "--multiplier dadda has no effect beside --faulty-multiplier" in refused(*common, *two)
    unused = refused(*common, "--faulty-multiplier", "mul8u.bin", "--table-unsigned", "--sign-magnitude")
    assert unused == "--faulty-multiplier: no fault would use it: add --site multiplier"


def test_an_unsigned_netlist_is_found_out_and_can_be_wrapped(folder: Path) -> None:
    Path("mul4u.v").write_text(
        netlist_cases.truncated(build_netlist("array", 4, 4, weight_signed=False, act_signed=False), 2)
    )
    common = ["chips", "generate", "--array", "4x4", "--count", "1", "--fault-rate", "0.1", "-o", "lot.h5"]
    common += ["--weight-bits", "4", "--act-bits", "4"]
    message = refused(*common, "--multiplier", "mul4u.v")
    # For operands of 0..3 the lowest two bits of the products add up to 16, and all other pairs are alike.
    assert "but for unsigned weights by unsigned activations 1: weights of an array are signed" in message
    assert "'efat multiplier table mul4u.v --table-unsigned --sign-magnitude --write TABLE.npy'" in message
    refused(*common, "--multiplier", "mul4u.v", "--unsigned-acts")
    shown = run("multiplier", "table", "mul4u.v", "--table-unsigned", "--sign-magnitude", "--write", "mul4s.npy")
    assert shown.exit_code == 0, shown.output
    assert "unsigned weights by unsigned activations: mean absolute error 1\n" in shown.output
    numbers = np.arange(16) - 16 * (np.arange(16) > 7)
    exact = np.multiply.outer(numbers, numbers)
    assert np.array_equal(np.load("mul4s.npy"), np.sign(exact) * (np.abs(exact) & ~3))
    made = run(*common, "--multiplier", "mul4s.npy", "--table-signed")
    assert "mul4s.npy: product table, mean absolute error" in made.output
    assert made.exit_code == 0, made.output
