"""`efat cycles`: what it prints and writes, and `--array` in all its forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efat.cli.parameters import ARRAY_PRESETS
from simulator import ArrayConfig, simulate_gemm
from simulator.config import PRESETS
from simulator.lots.chips import ChipLot
from tests.support.programs import refused, run

CFG = "[general]\nrun_name = first\n[architecture_presets]\nArrayHeight: 32\nArrayWidth: 32\nDataflow: ws\n"
GEMMS = "Layer,M,N,K,\nL0,196,192,384,\nL1,196,1176,64,\n"
CONVS = "Layer name, IFMAP Height, IFMAP Width, ...\nConv1,224,224,7,7,3,64,2,\nConv2,9,9,3,3,4,5,1,\n"


@pytest.fixture
def files(folder: Path) -> Path:
    Path("array.cfg").write_text(CFG)
    Path("gemms.csv").write_text(GEMMS)
    Path("convs.csv").write_text(CONVS)
    return folder


def as_json(*arguments: str) -> dict[str, Any]:
    result = run("cycles", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def reported_cycles(path: str = "COMPUTE_REPORT.csv") -> list[int]:
    with Path(path).open(newline="") as file:
        return [int(row["Total Cycles"]) for row in csv.DictReader(file, skipinitialspace=True)]


def test_gemms_are_counted(files: Path) -> None:
    result = run("cycles", "--config", "array.cfg", "--topology", "gemms.csv", "--gemm")
    assert result.exit_code == 0, result.output
    rows = [[cell for cell in line.split() if cell != "x"] for line in result.output.splitlines()]
    # Cycles as SCALE-Sim 3.0.0 prints them, then serial and double-buffered: 72 and 74 folds of 290 cycles.
    assert ["L0", "196", "384", "192", "72", "20,879", "20,880", "14,206", "67.6%", "99.3%"] in rows
    assert ["L1", "196", "64", "1176", "74", "21,459", "21,460", "14,598", "67.1%", "98.7%"] in rows
    assert ["L0", "451,584", "73,728", "413,952", "451,584"] in rows
    # 451584 bytes in 20880 cycles; 73728; (413952 + 451584) x 4; all three.
    assert ["L0", "21.63", "32", "3.53", "32", "165.81", "256", "190.97", "288"] in rows
    assert ["total", "146", "42,338", "42,340", "28,804", "67.4%", "99.0%"] in rows
    assert "gemms.csv (first) on 32x32" in result.output
    assert reported_cycles() == [20879, 21459]


def test_convolutions_are_counted(files: Path) -> None:
    result = run("cycles", "--array", "32x32", "--topology", "convs.csv", "--report", "other.csv")
    assert result.exit_code == 0, result.output
    # The first is ResNet-18's: SCALE-Sim 3.0.0 prints 121939.
    assert reported_cycles("other.csv") == [121939, 2 * (2 * 32 + 32 + 49 - 2) - 1]
    assert not Path("COMPUTE_REPORT.csv").exists()


def test_json_has_everything(files: Path) -> None:
    found = as_json("--config", "array.cfg", "--topology", "gemms.csv", "--gemm", "--acc-bits", "17", "--act-bits", "4")
    assert found["run_name"] == "first"
    assert (found["array"]["rows"], found["array"]["acc_bits"]) == (32, 17)
    first = found["layers"][0]
    assert (first["name"], first["m"], first["k"], first["n"]) == ("L0", 196, 384, 192)
    assert (first["folds"], first["scalesim"], first["serial"], first["double_buffered"]) == (72, 20879, 20880, 14206)
    sram = first["traffic"]["ofmap"]
    assert (sram["reads"], sram["writes"], sram["word_bytes"]) == (413952, 451584, 3)
    assert sram["average_bytes_per_cycle"] == (413952 + 451584) * 3 / 20880
    total = found["total"]
    for name in ("folds", "scalesim", "serial", "double_buffered"):
        assert total[name] == sum(layer[name] for layer in found["layers"])
    for name in ("ifmap", "filter", "ofmap"):
        parts = [layer["traffic"][name] for layer in found["layers"]]
        whole = total["traffic"][name]
        assert (whole["reads"], whole["writes"]) == (sum(p["reads"] for p in parts), sum(p["writes"] for p in parts))
        assert whole["peak_bytes_per_cycle"] == max(part["peak_bytes_per_cycle"] for part in parts)
        moved = (whole["reads"] + whole["writes"]) * whole["word_bytes"]
        assert whole["average_bytes_per_cycle"] == moved / total["serial"]
    work = 196 * 384 * 192 + 196 * 64 * 1176
    assert total["multiply_accumulates"] == work
    assert total["serial_utilisation"] == work / (1024 * total["serial"])
    assert reported_cycles() == [20879, 21459]


def test_json_goes_to_a_file_beside_the_tables(files: Path) -> None:
    result = run("cycles", "--array", "32x32", "--topology", "convs.csv", "--json", "counts.json")
    assert "Conv1" in result.output
    assert [layer["name"] for layer in json.loads(Path("counts.json").read_text())["layers"]] == ["Conv1", "Conv2"]


def test_serial_cycles_are_those_the_engine_steps(files: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for rows, cols in random.integers(1, 7, (5, 2)).tolist():
        shapes = random.integers(1, 15, (10, 3)).tolist()
        Path("random.csv").write_text("h\n" + "".join(f"L,{m},{n},{k},\n" for m, k, n in shapes))
        found = as_json("--array", f"{rows}x{cols}", "--topology", "random.csv", "--gemm")
        config = ArrayConfig(rows, cols)
        stepped = [
            simulate_gemm(random.integers(-128, 128, (m, k)), random.integers(-128, 128, (k, n)), config).cycles
            for m, k, n in shapes
        ]
        assert [layer["serial"] for layer in found["layers"]] == stepped
        assert reported_cycles() == [cycles - 1 for cycles in stepped]


def test_networks_are_counted(folder: Path) -> None:
    found = as_json("--array", "8x8", "--network", "digits-cnn", "--batch", "3")
    shapes = [(layer["name"], layer["m"], layer["k"], layer["n"]) for layer in found["layers"]]
    assert shapes[0] == ("conv1", 3 * 64, 9, 16)
    assert shapes[-1] == ("linear2", 3, 48, 10)
    assert (
        "digits-cnn, 3 images on 8x8"
        in run("cycles", "--array", "8x8", "--network", "digits-cnn", "--batch", "3").output
    )


def test_ones_own_network_is_counted_with_its_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cycles_own.py").write_text(
        "from torch import nn\n\ndef network():\n"
        "    return nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(6 * 4, 3))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    own = ["cycles", "--array", "4x4", "--network", "cycles_own:network"]
    result = run(*own, "--input", "6x4x4")
    rows = [[cell for cell in line.split() if cell != "x"] for line in result.output.splitlines()]
    # Six GEMMs of 3 folds, each of 2 * 4 + 4 + 4 - 2 cycles.
    assert ["0", "4", "9", "1", "6", "18", str(6 * (3 * 14 - 1)), str(18 * 14)] in [row[:8] for row in rows]
    assert "cycles_own:network, 1 image of 6x4x4 on 4x4" in result.output
    assert "Counted are Conv2d and Linear layers: nothing else of a network runs on the array." in result.output
    assert reported_cycles() == [*[3 * 14 - 1] * 6, 6 * 11 - 1]
    found = as_json(*own[1:], "--input", "6x4x4")
    assert [layer["groups"] for layer in found["layers"]] == [6, 1]
    assert found["total"]["multiply_accumulates"] == 6 * 4 * 9 + 24 * 3
    assert "give it with --input, such as 3x32x32" in refused(*own)
    assert "'6x4': expected channels x height x width of an image, such as 3x32x32" in refused(*own, "--input", "6x4")
    assert "does not take 3x4x4 images" in refused(*own, "--input", "3x4x4")


def test_long_topologies_are_abbreviated_on_the_terminal_only(folder: Path) -> None:
    Path("many.csv").write_text("h\n" + "".join(f"L{i},1,1,1,\n" for i in range(203)))
    result = run("cycles", "--array", "2x2", "--topology", "many.csv", "--gemm", "--json", "many.json")
    assert "L199 " in result.output
    assert "L200 " not in result.output
    assert result.output.count("... 3 more") == 3
    assert "first 200 of 203 layers: --json has them all" in result.output
    assert len(json.loads(Path("many.json").read_text())["layers"]) == len(reported_cycles()) == 203


@pytest.mark.parametrize(("array", "size"), [("gemmini", (16, 16)), ("TPU-v4", (128, 128)), ("array.cfg", (32, 32))])
def test_array_takes_presets_and_configurations(files: Path, array: str, size: tuple[int, int]) -> None:
    found = as_json("--array", array, "--topology", "convs.csv")["array"]
    assert (found["rows"], found["cols"]) == size
    assert run("chips", "generate", "--array", array, "--count", "1", "--fault-rate", "0", "-o", "a.h5").exit_code == 0
    with ChipLot(Path("a.h5")) as lot:
        assert (lot.config.rows, lot.config.cols) == size
    Path("faults.csv").write_text("chip,row,col,site,bit,kind\na,1,1,PSUM,2,STUCK_AT_0\n")
    assert run("chips", "import", "faults.csv", "--array", array, "-o", "b.h5").exit_code == 0


@pytest.mark.parametrize("option", ["--array", "--config"])
def test_stalls_that_are_not_modelled_are_said(files: Path, option: str) -> None:
    Path("array.cfg").write_text(f"{CFG}[run_presets]\nInterfaceBandwidth: USER\n")
    shown = run("cycles", option, "array.cfg", "--topology", "gemms.csv", "--gemm").output
    assert "With InterfaceBandwidth: USER SCALE-Sim has the array wait for its memories." in shown
    with Path("COMPUTE_REPORT.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    assert [(row["Total Cycles"], row["Stall Cycles"]) for row in rows] == [("", "")] * 2
    found = as_json(option, "array.cfg", "--topology", "gemms.csv", "--gemm")
    assert (found["stalls_not_modelled"], found["run_name"]) == ("InterfaceBandwidth: USER", "first")
    assert as_json("--array", "32x32", "--topology", "convs.csv")["stalls_not_modelled"] is None


def test_array_and_config_may_agree(files: Path) -> None:
    assert as_json("--array", "32x32", "--config", "array.cfg", "--topology", "convs.csv")["run_name"] == "first"


def test_presets_are_listed_with_their_sources(folder: Path) -> None:
    result = run("cycles", "--list-presets")
    assert result.exit_code == 0
    for preset in PRESETS.values():
        (row,) = (line for line in result.output.splitlines() if f" {preset.name} " in line)
        assert f"{preset.rows}x{preset.cols}" in row
        assert preset.source in row
    assert not list(folder.iterdir())


def test_names_of_presets_are_those_of_the_library() -> None:
    assert list(PRESETS) == list(ARRAY_PRESETS)


HERE = ["cycles", "--array", "32x32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cycles", "--topology", "convs.csv"], "no array: give its size with --array 32x32"),
        (HERE, "no layers: give a SCALE-Sim topology with --topology"),
        ([*HERE, "--topology", "convs.csv", "--network", "lenet5"], "--topology and --network are both given"),
        ([*HERE, "--network", "lenet5", "--gemm"], "--gemm is given without --topology"),
        ([*HERE, "--topology", "convs.csv", "--batch", "2"], "--batch is given without --network"),
        ([*HERE, "--topology", "convs.csv", "--input", "3x4x4"], "--input is given without --network"),
        ([*HERE, "--network", "alexnet"], "network 'alexnet' is unknown: choose one of digits-cnn"),
        ([*HERE, "--topology", "gemms.csv"], "expected a convolution; add --gemm"),
        ([*HERE, "--topology", "convs.csv", "--gemm"], "expected a GEMM; leave out --gemm"),
        ([*HERE, "--topology", "nothing.csv"], "nothing.csv: no such file; expected a SCALE-Sim topology"),
        ([*HERE, "--topology", "."], ". is a folder: expected a SCALE-Sim topology"),
        ([*HERE, "--topology", "convs.csv", "--act-bits", "9"], "act_bits is 9: expected 2..8"),
        (["cycles", "--array", "2000x2", "--topology", "convs.csv"], "rows is 2000: expected 1..1024"),
        (["cycles", "--array", "0x2", "--topology", "convs.csv"], "rows is 0: expected 1..1024"),
        (["cycles", "--array", "tpu-v9", "--topology", "convs.csv"], "'tpu-v9' is not a size and not the name of an"),
        (
            ["cycles", "--array", "nothing.cfg", "--topology", "convs.csv"],
            "nothing.cfg: no such file; expected a SCALE",
        ),
        (["cycles", "--array", "os.cfg", "--topology", "convs.csv"], "Dataflow is 'os': expected ws"),
        (["cycles", "--array", "convs.csv", "--topology", "convs.csv"], "convs.csv is not a SCALE-Sim configuration"),
        (["cycles", "--config", "os.cfg", "--topology", "convs.csv"], "Dataflow is 'os': expected ws"),
        (
            ["cycles", "--config", "binary.cfg", "--topology", "convs.csv"],
            "binary.cfg is not a SCALE-Sim configuration",
        ),
        (
            ["cycles", "--config", "array.cfg", "--array", "8x32", "--topology", "convs.csv"],
            "--array gives 8x32 and arr",
        ),
        ([*HERE, "--topology", "convs.csv", "--report", "convs.csv"], "convs.csv is the file to read"),
        ([*HERE, "--topology", "convs.csv", "--json", "convs.csv"], "convs.csv is the file to read"),
        ([*HERE, "--topology", "convs.csv", "--json", "x", "--report", "./x"], "is named by --json and by --report"),
        ([*HERE, "--topology", "convs.csv", "--report", "no/such/folder"], "no such folder to write folder into"),
        ([*HERE, "--list-presets"], "--array has no effect beside --list-presets"),
        ([*HERE, "--topology", "bad.csv"], "bad.csv, line 3: stride is 'two': expected a whole number"),
    ],
)
def test_bad_input_is_one_line(files: Path, arguments: list[str], message: str) -> None:
    Path("os.cfg").write_text(CFG.replace("ws", "os"))
    Path("binary.cfg").write_bytes(b"\x00\xff\xfe\x01")
    Path("bad.csv").write_text(CONVS.replace("5,1,", "5,two,"))
    assert message in refused(*arguments)
