"""`efat chips`: lots are made, shown, imported and exported, and bad input leaves nothing behind."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.lots.chips import Chip, ChipLot, write_lot
from tests.support.programs import refused, run

GENERATE = ["chips", "generate", "--array", "8x6", "--count", "4", "--fault-rate", "0.25", "-o", "lot.h5"]


@pytest.fixture
def lot(folder: Path) -> Path:
    assert run(*GENERATE).exit_code == 0
    return folder / "lot.h5"


def chips(path: Path) -> list[Chip]:
    with ChipLot(path) as opened:
        return list(opened)


def test_generate_makes_the_lot_asked_for(lot: Path) -> None:
    made = chips(lot)
    assert [chip.id for chip in made] == ["chip-0000", "chip-0001", "chip-0002", "chip-0003"]
    assert [int(chip.faults.faulty_pes().sum()) for chip in made] == [12] * 4
    assert len({chip.faults.digest() for chip in made}) == 4
    with ChipLot(lot) as opened:
        assert (opened.config.rows, opened.config.cols) == (8, 6)
        assert opened.provenance["seed"] == "0"


def test_generate_gives_the_same_chips_in_lots_of_any_size(lot: Path) -> None:
    assert run(*GENERATE[:-1], "more.h5", "--count", "9").exit_code == 0
    assert chips(Path("more.h5"))[:4] == chips(lot)
    assert run(*GENERATE[:-1], "other.h5", "--seed", "1").exit_code == 0
    assert chips(Path("other.h5"))[0] != chips(lot)[0]


def test_generate_honours_sites_kinds_and_widths(folder: Path) -> None:
    options = ["--site", "psum=3", "--site", "Weight-Load", "--kind", "flip", "--cycles", "50"]
    result = run(*GENERATE, *options, "--weight-bits", "4", "--act-bits", "3", "--unsigned-acts", "--acc-bits", "9")
    assert result.exit_code == 0, result.output
    made = chips(folder / "lot.h5")
    config = made[0].faults.config
    assert (config.weight_bits, config.act_bits, config.act_signed, config.acc_bits) == (4, 3, False, 9)
    tables = np.concatenate([chip.faults.table for chip in made])
    assert set(tables["site"].tolist()) == {Site.PSUM, Site.WEIGHT_LOAD}
    assert set(tables["kind"].tolist()) == {Kind.FLIP}
    assert tables["cycle"].max() < 50


def test_generate_draws_rates_from_a_range(folder: Path) -> None:
    result = run("chips", "generate", "--array", "64x64", "--count", "60", "--fault-rate", "0.01:0.5", "-o", "lot.h5")
    assert result.exit_code == 0
    rates = np.array([chip.faults.faulty_pes().mean() for chip in chips(folder / "lot.h5")])
    assert rates.min() >= 0.0099
    assert rates.max() <= 0.5001
    # Even on a logarithmic scale: half of them below the geometric mean of the range, 0.07.
    assert 0.25 < (rates < 0.0707).mean() < 0.75


@pytest.mark.parametrize("pattern", ["uniform", "clustered", "lines"])
def test_generate_knows_every_pattern(folder: Path, pattern: str) -> None:
    assert run(*GENERATE, "--pattern", pattern).exit_code == 0
    assert len(chips(folder / "lot.h5")[0].faults) == 12


def test_generate_replaces_only_when_told(lot: Path) -> None:
    before = lot.read_bytes()
    assert "lot.h5 is there already" in refused(*GENERATE, "--seed", "5")
    assert lot.read_bytes() == before
    assert run(*GENERATE, "--seed", "5", "--force").exit_code == 0
    assert lot.read_bytes() != before


def test_show_prints_a_row_for_each_chip(lot: Path) -> None:
    result = run("chips", "show", "lot.h5")
    assert result.exit_code == 0
    for chip in chips(lot):
        row = next(line for line in result.output.splitlines() if chip.id in line)
        assert chip.digest()[:12] in row
        assert "25.00%" in row
    assert "4 chips of 8x6 PEs" in result.output
    assert "fuses" not in result.output


def test_pes_bypassed_by_fuses_are_shown_and_kept(folder: Path) -> None:
    config = ArrayConfig(2, 5)
    mask = np.zeros((2, 5), np.bool_)
    mask[1, 3:] = True
    broken = FaultMap.from_faults(config, [Fault(1, 4, Site.PSUM, 3, Kind.STUCK_AT_1)])
    made = [Chip("fused", FaultMap(config), mask), Chip("broken", broken, mask), Chip("sound", FaultMap(config))]
    write_lot("lot.h5", config, made)
    shown = run("chips", "show", "lot.h5").output
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}
    digests = [chip.digest()[:12] for chip in made]
    assert len(set(digests)) == 3
    assert rows["fused"] == ["0", "0", "0.00%", "0", "2", "0", digests[0]]
    assert rows["broken"] == ["1", "1", "10.00%", "1", "2", "0", digests[1]]
    assert "Fused PEs, which a chip's fuses bypass: 0 to 2 per chip, in 2 of 3 chips." in shown
    assert max(len(line) for line in shown.splitlines() if "0%" in line and "to" not in line) <= 80
    lines = [
        line.strip()
        for line in run("chips", "show", "lot.h5", "--chip", "broken", "--png", "b.png").output.splitlines()
    ]
    assert "; fuses bypass 2 PEs" in " ".join(lines[:2])
    assert "│      x S │" in lines
    assert any("x bypassed by fuses without a fault of its own 1" in line for line in lines)
    assert json.loads(run("chips", "show", "lot.h5", "--chip", "fused", "--json", "-").output)["bypassed_by_fuses"] == 2
    assert run("chips", "export", "lot.h5", "-o", "faults.csv").output == (
        "Wrote 1 fault and 4 PEs bypassed by fuses to faults.csv\n"
    )
    result = run("chips", "import", "faults.csv", "--array", "2x5", "-o", "again.h5")
    assert result.output == "Wrote 3 chips with 1 fault and 4 PEs bypassed by fuses to again.h5\n"
    assert chips(Path("again.h5")) == made


def test_show_abbreviates_a_long_lot(folder: Path) -> None:
    assert run(*GENERATE, "--count", "50").exit_code == 0
    result = run("chips", "show", "lot.h5")
    assert "... and 10 more" in result.output
    assert "chip-0039" in result.output
    assert "chip-0040" not in result.output


def test_show_prints_a_fault_map(folder: Path) -> None:
    faults = ["a,1,2,psum,20,stuck_at_1", "a,0,3,activation,0,stuck_at_0", "a,0,1,ACCUMULATOR,3,STUCK_AT_1"]
    Path("faults.csv").write_text("\n".join(["chip,row,col,site,bit,kind", *faults]))
    assert run("chips", "import", "faults.csv", "--array", "2x5", "-o", "lot.h5").exit_code == 0
    result = run("chips", "show", "lot.h5", "--chip", "a")
    assert result.exit_code == 0
    shown = [line.strip() for line in result.output.splitlines()]
    assert "│      A · │ row 0" in shown
    assert "│    S     │" in shown
    assert "C        accumulators" in shown
    assert any(line.split() == ["PSUM", "STUCK_AT_1", "1", "2", "20"] for line in shown)


def test_show_draws_a_large_map_in_blocks(folder: Path) -> None:
    assert run(*GENERATE, "--array", "256x128").exit_code == 0
    result = run("chips", "show", "lot.h5", "--chip", "chip-0001")
    assert result.exit_code == 0
    assert "a character for 8x2 PEs" in result.output
    assert max(len(line) for line in result.output.splitlines() if "\N{BOX DRAWINGS LIGHT VERTICAL}" in line) <= 80


def test_show_draws_a_picture(lot: Path) -> None:
    result = run("chips", "show", "lot.h5", "--chip", "chip-0002", "--png", "map.png")
    assert result.exit_code == 0
    image = Path("map.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 5000


@pytest.mark.parametrize("name", ["[/bold]", "[red]x", "a$\\frac$", ":smile:", "100%"])
def test_names_are_shown_as_they_are(folder: Path, name: str) -> None:
    source = Path(f"{name.replace('/', '')}.csv")
    source.write_text(f"chip,row,col,site,bit,kind,cycle\n{name},1,1,psum,3,stuck_at_0,\n")
    assert run("chips", "import", str(source), "--array", "8x6", "-o", "lot.h5").exit_code == 0
    table = " ".join(run("chips", "show", "lot.h5").output.split())
    assert f" {name} " in table
    assert f"imported from {source}" in table
    result = run("chips", "show", "lot.h5", "--chip", name, "--png", "map.png")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{name}: 1 faults on 1 of 48 PEs")


def test_what_is_read_is_never_written_over(lot: Path) -> None:
    Path("faults.csv").write_text("chip,row,col,site,bit,kind\na,1,1,psum,3,stuck_at_0\n")
    Path("link.h5").symlink_to("lot.h5")
    chip = ["chips", "show", "lot.h5", "--chip", "chip-0000"]
    for command in (
        ["chips", "show", "lot.h5", "--json", "lot.h5"],
        ["chips", "show", "lot.h5", "--json", "link.h5"],
        [*chip, "--json", "./lot.h5"],
        [*chip, "--png", "lot.h5"],
        ["chips", "export", "lot.h5", "-o", "lot.h5", "--force"],
        ["chips", "import", "faults.csv", "--array", "8x6", "-o", "faults.csv", "--force"],
    ):
        assert "is the file to read: choose another name to write" in refused(*command)


def test_show_writes_json(lot: Path) -> None:
    result = run("chips", "show", "lot.h5", "--json", "-")
    shown = json.loads(result.stdout)
    assert (shown["array"]["rows"], shown["array"]["cols"], shown["array"]["acc_bits"]) == (8, 6, 32)
    assert [row["chip"] for row in shown["chips"]] == [chip.id for chip in chips(lot)]
    assert shown["chips"][0]["digest"] == chips(lot)[0].faults.digest()
    assert run("chips", "show", "lot.h5", "--chip", "chip-0003", "--json", "chip.json").exit_code == 0
    assert json.loads(Path("chip.json").read_text()) == shown["chips"][3]


def test_export_and_import_give_the_same_chips(lot: Path) -> None:
    assert run("chips", "export", "lot.h5", "-o", "faults.csv").exit_code == 0
    result = run("chips", "import", "faults.csv", "--array", "8x6", "-o", "again.h5")
    assert result.output == "Wrote 4 chips with 48 faults to again.h5\n"
    assert chips(Path("again.h5")) == chips(lot)


def test_missing_and_wrong_files_are_refused(lot: Path) -> None:
    assert "nothing.h5: no such file" in refused("chips", "show", "nothing.h5")
    Path("text.h5").write_text("not HDF5")
    assert "text.h5 is not an HDF5 file" in refused("chips", "show", "text.h5")
    Path("short.h5").write_bytes(lot.read_bytes()[:900])
    assert "short.h5 is not an HDF5 file or is damaged" in refused("chips", "show", "short.h5")
    with h5py.File("other.h5", "w") as file:
        file["numbers"] = np.arange(3)
    assert "other.h5: it is of another kind" in refused("chips", "show", "other.h5")
    assert "is a folder" in refused("chips", "show", ".")
    Path("faults.csv").write_bytes(b"\xff\xfe\x00")
    assert "faults.csv is not a CSV file" in refused("chips", "import", "faults.csv", "--array", "8x6", "-o", "x.h5")


def tamper(field: str, value: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        table = file["faults"][:]
        table[field][5] = value
        file["faults"][:] = table

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (tamper("row", 8), "expected row 0..7"),
        (tamper("col", 6), "expected col 0..5"),
        (tamper("site", 99), "unknown site"),
        (tamper("kind", 7), "unknown kind"),
        (tamper("bit", 40), "beyond the width of its net"),
        (lambda file: file["offsets"].__setitem__(1, 1 << 40), "offsets do not divide"),
        (lambda file: file.attrs.__setitem__("rows", 5000), "rows is 5000: expected 1..1024"),
        (lambda file: file.attrs.__setitem__("version", 99), "version 99"),
    ],
)
def test_wrong_values_inside_a_file_are_refused(lot: Path, change: Callable[[h5py.File], None], expected: str) -> None:
    with h5py.File(lot, "r+") as file:
        change(file)
    message = refused("chips", "show", "lot.h5")
    assert message.startswith("lot.h5")
    assert expected in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--array", "64"], "'64' is not a size"),
        (["--array", "0x4"], "rows is 0: expected 1..1024"),
        (["--array", "4x2000"], "cols is 2000: expected 1..1024"),
        (["--fault-rate", "1.5"], "'1.5': expected fractions"),
        (["--fault-rate", "-0.1"], "'-0.1': expected fractions"),
        (["--fault-rate", "0.5:0.1"], "'0.5:0.1': expected fractions"),
        (["--fault-rate", "1"], "'1' means that all PEs are faulty: for 1 percent give 0.01 or 1%, or 100%"),
        (["--fault-rate", "1%:101%"], "'1%:101%': expected fractions"),
        (["--fault-rate", "nan"], "'nan' is not a rate"),
        (["--fault-rate", "many"], "'many' is not a rate"),
        (["--site", "elbow"], "'elbow' is no site: expected one of weight, weight_load,"),
        (["--site", "psum=-1"], "expected a weight of 0 or more"),
        (["--site", "psum=0"], "at least one above 0"),
        (["--kind", "stuck"], "'stuck' is no kind"),
        (["--kind", "flip"], "FLIP faults need the number of clock cycles"),
        (["--count", "0"], "0 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--acc-bits", "12"], "acc_bits is 12: expected 16..32"),
        (["--pattern", "clustered", "--cluster-alpha", "0"], "cluster_alpha is 0.0"),
        (["--cluster-alpha", "2"], "--cluster-alpha has no effect: the pattern is uniform; add --pattern clustered"),
        (["--site", "accumulator", "--pattern", "lines"], "--pattern has no effect: only accumulators break"),
        (["--site", "psum=3", "--site", "PSUM"], "--site psum is given twice: expected it once, such as psum=2"),
        (["--kind", "stuck-at-1", "--kind", "stuck-at-1"], "--kind stuck_at_1 is given twice"),
        (["--cycles", "100"], "--cycles has no effect: only flips happen in a clock cycle"),
        (["--table-unsigned"], "--table-unsigned has no effect: it is for product tables, and --multiplier array is a"),
        (["--sign-magnitude", "--multiplier", "dadda"], "--sign-magnitude has no effect"),
        (["--pattern", "spiral"], "'spiral' is not one of"),
        (["-o", "nowhere/lot.h5"], "nowhere: no such folder"),
        (["-o", "."], "is a folder"),
        (["-o", "/dev/null", "--force"], "/dev/null is not a regular file"),
    ],
)
def test_wrong_options_are_refused(folder: Path, options: list[str], expected: str) -> None:
    assert expected in refused(*GENERATE, *options)


def test_unknown_chip_is_refused_with_near_names(lot: Path) -> None:
    assert "no chip 'chip-00002'" in (message := refused("chips", "show", "lot.h5", "--chip", "chip-00002"))
    assert "did you mean" in message
    assert "it has chip-0000, chip-0001, chip-0002, ..." in refused("chips", "show", "lot.h5", "--chip", "Z")


def test_a_picture_needs_a_chip(lot: Path) -> None:
    assert "--png draws one chip" in refused("chips", "show", "lot.h5", "--png", "map.png")


def test_import_names_the_line_and_the_array(folder: Path) -> None:
    Path("faults.csv").write_text(
        "chip,row,col,site,bit,kind,cycle\na,1,1,psum,3,stuck_at_0,\na,9,1,psum,3,stuck_at_0,\n"
    )
    message = refused("chips", "import", "faults.csv", "--array", "8x8", "-o", "lot.h5")
    assert "faults.csv, line 3" in message
    assert "expected row 0..7" in message


def test_output_that_cannot_be_written_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "no permission to write it" in refused(*GENERATE)


def test_output_that_turns_out_read_only_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "lot.h5")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    assert refused(*GENERATE) == "lot.h5: Permission denied"


@pytest.mark.integration
def test_interrupted_generate_leaves_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "efat", *GENERATE, "--array", "256x256", "--count", "1000000"]
    # Whatever the shell of the tests does with Ctrl-C.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding) as process:
        for _ in range(600):
            if any(folder.iterdir()):
                break
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_interrupted_export_keeps_the_old_file(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("faults.csv").write_text("old")

    def interrupt(*_: object) -> FaultMap:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.lots.chips.FaultMap", interrupt)
    result = run("chips", "export", "lot.h5", "-o", "faults.csv", "--force")
    assert result.exit_code == 130
    assert Path("faults.csv").read_text() == "old"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["faults.csv", "lot.h5"]
