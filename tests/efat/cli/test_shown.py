"""What commands print of a user's own network on chips with long names: all of it, and commands that run."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.cells import cell_len
from safetensors.torch import save_file

import efat
from efat.cli import main, render
from efat.cli.render import ResultsTable, results_table
from efat.retraining.manifest import Manifest
from simulator import FaultModel, sample_faults
from simulator.lots.chips import Chip, write_lot
from tests.support.networks import ARRAY, OWN_PE
from tests.support.pages import read_page
from tests.support.resilience import RECIPE, small_images
from training.data.batches import Batches
from training.data.datasets import Dataset
from training.learning.fit import fit

pytestmark = pytest.mark.integration

NETWORK = "own_networks:small"
INPUTS = "own data"
IDS = [f"wafer-17_lot-2026-11-30_die-{number:02d}_site-{number:05d}" for number in range(2)]
MODULE = """
from torch import nn


def small():
    print("a network of my own")
    network = nn.Sequential()
    features = nn.Sequential()
    features.add_module("convolution_of_the_first_stage", nn.Conv2d(1, 4, 3, padding=1))
    features.add_module("rectifier", nn.ReLU())
    network.add_module("features_of_a_network", features)
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier_with_a_long_name_of_its_own", nn.Linear(144, 3))
    return network
"""
TOPOLOGY = """Layer name, M, N, K,
features.stage_1.block_12.convolution_3x3_expanded, 123456789, 4096, 25088,
classifier, 1, 1000, 4096,
"""
OWN = ["--network", NETWORK, "--weights", f"{INPUTS}/weights.safetensors", "--data", INPUTS]
LEVELS = ",".join(map(str, range(12)))
COMMANDS = {
    "chips show": ["chips", "show", "lot.h5"],
    "one chip": ["chips", "show", "lot.h5", "--chip", IDS[0]],
    "cycles": ["cycles", "--array", "128x128", "--topology", "long.csv", "--gemm"],
    "presets": ["cycles", "--list-presets"],
    "multiplier list": ["multiplier", "list", "--weight-bits", "3", "--act-bits", "3", "--faults"],
    "multiplier faults": ["multiplier", "faults", "--weight-bits", "3", "--act-bits", "3"],
    "multiplier table": ["multiplier", "table", "mine.npy", "--table-signed"],
    "simulate": ["simulate", *OWN, "--lot", "lot.h5"],
    "explain one": ["explain", *OWN, "--lot", "lot.h5", "--chip", IDS[0], "--images", "20"],
    "explain": ["explain", *OWN, "--lot", "lot.h5", "--chip", IDS[0], "--images", "20", "--image", "0"],
    "propagate": [
        "propagate",
        *OWN,
        "--lot",
        "lot.h5",
        "--site",
        "weight",
        "--bit",
        "weight=6-7",
        "--exhaustive",
        "--images",
        "6",
        "-o",
        "prop",
    ],
    "validate": ["validate", "--cases", "40", "--array", "4x4"],
    "validate network": ["validate", *OWN, "--lot", "lot.h5", "--images", "2"],
    "retrain-chip": [
        *("retrain-chip", *OWN, "--lot", "lot.h5", "--chip", IDS[0], "--mitigation", "fap+t", "--iterations", "2"),
        *("--batch", "10", "-o", "one chip"),
    ],
    "resilience": [
        *("resilience", *OWN, "--lot", "lot.h5", "--rates", "0.1,0.3", "--repeats", "2", "--levels", LEVELS),
        *("--batch", "10", "--learning-rate", "0.05", "--site", "weight", "-o", "res"),
    ],
    "plan": [
        *("plan", "--resilience", "res", "--lot", "lot.h5", "--accuracy", "0.9", "--network", NETWORK),
        *("-o", "p.json"),
    ],
    "retrain": ["retrain", "--plan", "p.json", "--network", NETWORK, "-o", "retrained lot"],
    "simulate manifest": [
        *("simulate", "--manifest", "retrained lot/manifest.json", "--network", NETWORK, "--lot", "lot.h5"),
        *("--engine", "emulation"),
    ],
    "report": ["report", "retrained lot"],
    "report of propagation": ["report", "prop"],
}
WITH_JSON = [
    *("chips show", "one chip", "cycles", "multiplier list", "multiplier faults", "multiplier table", "simulate"),
    *("explain one", "explain", "propagate", "validate", "validate network", "simulate manifest"),
]
IN_LINE = ("propagate", "resilience", "retrain")


@dataclass(frozen=True)
class Shown:
    """What a command printed in a pipe, its tables, and what it printed with `--json -`."""

    output: str
    tables: list[ResultsTable]
    json: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all of it."""
    return tmp_path_factory.mktemp("shown")


@pytest.fixture(scope="module")
def shown(made: Path) -> dict[str, Shown]:
    """Every command, run once in the folder; the lot is retrained from what the ones before it leave."""
    folder = made
    tables: list[ResultsTable] = []

    def recorded(*given: Any, **named: Any) -> ResultsTable:
        tables.append(ResultsTable(*given, **named))
        return tables[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(render, "ResultsTable", recorded)
        _write_inputs(folder)
        found = {}
        for name, arguments in COMMANDS.items():
            tables.clear()
            more = ["--workers", "0"] if name in IN_LINE else []
            result = CliRunner().invoke(main, [*arguments, *more])
            assert result.exit_code == 0, (name, result.output)
            found[name] = Shown(result.stdout, list(tables), "")
            if name in WITH_JSON:
                alone = CliRunner().invoke(main, [*arguments, *more, "--json", "-"])
                assert alone.exit_code == 0, (name, alone.output)
                found[name] = replace(found[name], json=alone.stdout)
    return found


def easy_images(count: int, seed: int) -> Dataset:
    """Images that nearly all are classified correctly by whoever has learned for long enough."""
    data = small_images(count, seed)
    data.images[torch.arange(count), 0, 2 * data.labels] += 3
    return data


def _write_inputs(folder: Path) -> None:
    (folder / "own_networks.py").write_text(MODULE)
    (folder / "long.csv").write_text(TOPOLOGY)
    np.save(folder / "mine.npy", np.multiply.outer(np.arange(-128, 128), np.arange(-128, 128)).astype(np.int16))
    (folder / INPUTS).mkdir()
    train, test = (easy_images(count, seed) for count, seed in ((90, 1), (60, 2)))
    for name, data in (("train", train), ("test", test)):
        np.savez(folder / INPUTS / f"{name}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    import own_networks  # type: ignore[import-not-found]

    torch.manual_seed(5)
    network = own_networks.small()
    # For a short time only, so that there is something to learn from retraining.
    fit(network, Batches(train, 10, 0), test, 2, RECIPE)
    save_file(network.state_dict(), folder / INPUTS / "weights.safetensors")
    model = FaultModel(0.2, sites=dict.fromkeys(OWN_PE, 1.0))
    chips = [Chip(name, sample_faults(ARRAY, model, seed)) for seed, name in enumerate(IDS)]
    write_lot(folder / "lot.h5", ARRAY, chips)


def printed(table: ResultsTable, width: int, *, terminal: bool) -> list[str]:
    """Lines of a table."""
    file = io.StringIO()
    console = render._Output(
        file=file, width=width, force_terminal=terminal, color_system=None, markup=False, soft_wrap=not terminal
    )
    console.print(table)
    return file.getvalue().splitlines()


def cells(table: ResultsTable) -> list[str]:
    return [cell for row in table._rows for cell in row.cells if cell]


@pytest.mark.parametrize(
    "name", ["x", "x" * 40, "x" * 70, "x" * 79, "\N{CJK UNIFIED IDEOGRAPH-82AF}" * 30, "a\x1b[31mb\nc"]
)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_is_as_wide_as_the_terminal_at_most(name: str, width: int) -> None:
    table = results_table("of what it shows", ["chip", "group"], ["faulty\nPEs", "bypassed\nPEs", "accuracy"])
    table.add_row(name, "group-0001", "1,234,567", "12", "97.5%", end_section=True)
    table.add_row("another")
    table.add_note("and more")
    lines = printed(table, width, terminal=True)
    assert all(cell_len(line) <= width for line in lines)
    assert (lines[0], lines[-1]) == ("of what it shows", "and more")
    text = "".join(line.rstrip() for line in lines)
    row = (name.replace("\x1b", r"\x1b").replace("\n", r"\n"), "group-0001", "1,234,567", "12", "97.5%")
    assert all(cell in text for cell in row)
    in_pipe = [line.split() for line in printed(table, width, terminal=False)]
    assert list(row) in in_pipe


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (110, True), (80, False)], ids=["80", "110", "pipe"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_cell_is_whole(name: str, width: int, terminal: bool, shown: dict[str, Shown]) -> None:
    for table in shown[name].tables:
        lines = printed(table, width, terminal=terminal)
        text = "\n".join(lines)
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert not terminal or all(len(line) <= width for line in lines)
        for cell in cells(table):
            assert cell.strip() in text, f"{cell}\n{text}"
    assert bool(shown[name].tables) == (name not in ("report", "report of propagation"))


@pytest.mark.parametrize("name", WITH_JSON)
def test_json_is_all_that_is_on_standard_output(name: str, shown: dict[str, Shown]) -> None:
    assert json.loads(shown[name].json)


def test_all_options_for_json_are_tried() -> None:
    def options(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                yield from options(inner, (*words, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield words

    tried = {tuple(COMMANDS[name]) for name in WITH_JSON}
    for words in options(main, ()):
        assert any(arguments[: len(words)] == words for arguments in tried), words


def test_what_other_processes_print_is_not_in_the_json() -> None:
    script = """
import os, pathlib, click
from efat.cli.options import json_option, write_json

@click.command()
@json_option("it")
def command(json_path):
    os.system("echo noise")
    write_json(json_path, {"found": 1})
    print("more noise")

command()
"""
    done = subprocess.run([sys.executable, "-c", script, "--json", "-"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"found": 1}
    assert done.stderr == "noise\nmore noise\n"


PRINTED = {
    "explain one": ["To see how: efat explain "],
    "retrain-chip": ["Try it: efat simulate "],
    "resilience": ["Try it: efat plan "],
    "plan": ["Carry it out: efat retrain "],
    "retrain": ["Look at it: efat report "],
}


def run_printed(command: str) -> None:
    """Run a command as a user does who copies it."""
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "efat"
    result = CliRunner().invoke(main, [*arguments, *(["--workers", "0"] if arguments[0] in IN_LINE else [])])
    assert result.exit_code == 0, (command, result.output)


@pytest.mark.parametrize("name", COMMANDS)
def test_printed_commands_run(name: str, made: Path, shown: dict[str, Shown], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in shown[name].output.splitlines() if ": efat " in line]
    beginnings = PRINTED.get(name, [])
    if name == "explain":
        # Whether another image is worth a look depends on which images the faults spoil.
        return
    assert len(lines) == len(beginnings)
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    for line, beginning in zip(lines, beginnings, strict=True):
        assert beginning in line
        run_printed(line[line.index("efat ") :])


@pytest.mark.parametrize("folder", ["retrained lot", "prop"])
def test_what_a_page_says_how_to_do_again_can_be_done(
    folder: str, made: Path, shown: dict[str, Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the user's own files and without what was made of them."""
    for name in ("own_networks.py", "lot.h5"):
        shutil.copy(made / name, tmp_path)
    shutil.copytree(made / INPUTS, tmp_path / INPUTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = read_page((made / folder / "report.html").read_text())
    commands = page.one("pre").text.split("\n\n")
    assert [command.split()[1] for command in commands] == (
        ["propagate", "report"] if folder == "prop" else ["resilience", "plan", "retrain", "simulate", "report"]
    )
    for command in commands:
        run_printed(command)
    if folder == "prop":
        results = [efat.Propagation.load(path / folder / "propagation.h5") for path in (made, tmp_path)]
        assert np.array_equal(results[0].faults, results[1].faults)
    else:
        manifests = [Manifest.load(path / folder / "manifest.json") for path in (made, tmp_path)]
        assert manifests[0].groups == manifests[1].groups
        assert manifests[0].chips == manifests[1].chips
