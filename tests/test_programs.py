"""Programs that run in the tests' process end like processes, and leave it as it was."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from simulator import ArrayConfig, FaultMap
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import efat_arguments, run_efat, run_python


@pytest.mark.parametrize(
    "command",
    [
        "efat cycles | head",
        "efat cycles > table",
        "efat cycles; ls",
        "efat cycles && ls",
        "efat cycles &",
        "efat chips show *.h5",
        "efat chips show lot?.h5",
        "efat chips show [ab].h5",
        "efat chips show ~/lot.h5",
        "efat chips show $LOT",
        "efat chips show `ls`",
        "efat chips show a\\ b",
        "efat cycles # all of them",
        "COLUMNS=80 efat cycles",
        "python -m efat cycles",
    ],
)
def test_what_needs_a_shell_is_left_to_one(command: str) -> None:
    assert efat_arguments(command) is None


def test_arguments_are_those_that_a_shell_gives() -> None:
    words = ["chips", "show", "a lot.h5", "--site", "psum=2", "--cycles", ":16"]
    assert efat_arguments("efat  chips show 'a lot.h5' --site \"psum=2\" --cycles :16 ") == words


CHANGES = """
import os, sys, warnings
import beside, torch
os.environ["COLUMNS"] = "7"
os.mkdir("below")
os.chdir("below")
sys.path.append("below")
warnings.simplefilter("ignore")
torch.set_num_threads(torch.get_num_threads() + 1)
torch.manual_seed(1)
print(__name__, sys.argv[1:], beside.__name__)
"""


def state() -> dict[str, object]:
    """What a program can change for those that come after it."""
    return {
        "folder": Path.cwd(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "main": sys.modules["__main__"],
        "filters": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().tolist(),
    }


def test_a_program_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    program = tmp_path / "program.py"
    program.write_text(CHANGES)
    before = state()
    done = run_python(program, ["a", "b"], tmp_path, {"COLUMNS": "33"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "__main__ ['a', 'b'] beside\n", "")
    assert state() == before
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    ("program", "code", "output", "errors"),
    [
        ("print(1)", 0, "1\n", ""),
        ("raise SystemExit", 0, "", ""),
        ("raise SystemExit(3)", 3, "", ""),
        ("print(1); raise SystemExit('no 2')", 1, "1\n", "no 2\n"),
        ("print(1); print(2 / 0)", 1, "1\n", "ZeroDivisionError: division by zero\n"),
        ("import warnings; warnings.warn('old')", 1, "", "UserWarning: old\n"),
        ("import os; print(os.environ['COLUMNS'], file=__import__('sys').stderr)", 0, "", "33\n"),
        ("import oracle", 1, "", "ModuleNotFoundError: No module named 'oracle'\n"),
    ],
)
def test_a_program_ends_like_a_process(
    program: str, code: int, output: str, errors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "oracle", raising=False)  # which other tests import
    file = tmp_path / "program.py"
    file.write_text(program)
    done = run_python(file, [], tmp_path, {"COLUMNS": "33"})
    assert (done.returncode, done.stdout) == (code, output)
    assert done.stderr.endswith(errors)
    assert ("program.py" in done.stderr) == ("Error" in errors or "Warning" in errors)


def test_a_command_ends_like_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run_efat(["chips", "show", "lot.h5"], tmp_path, {})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ")
    assert run_efat(["--version"], tmp_path, {}).stdout.startswith("efat ")

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug, not an input")

    monkeypatch.setattr("simulator.lots.chips.ChipLot.__init__", broken)
    bug = run_efat(["chips", "show", "lot.h5"], tmp_path, {})
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert bug.stderr.endswith("ValueError: a bug, not an input\n")


NETWORK = "from torch import nn\n\ndef own():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, {}))\n"


def test_own_networks_are_those_of_the_folder(tmp_path: Path, seed: int) -> None:
    """A module of the same name is another one in another folder."""
    random = np.random.default_rng(seed)
    for classes in (2, 3):
        folder = tmp_path / str(classes)
        folder.mkdir()
        (folder / "networks.py").write_text(NETWORK.format(classes))
        torch.save({"1.weight": torch.rand(classes, 4), "1.bias": torch.zeros(classes)}, folder / "weights.pt")
        images, labels = random.integers(0, 256, (2, 2, 2), dtype=np.uint8), random.integers(0, classes, 2)
        np.savez(folder / "images.npz", images=images, labels=labels)
        write_lot(folder / "lot.h5", ArrayConfig(2, 2), [Chip("one", FaultMap(ArrayConfig(2, 2)))])
        own = ["--network", "networks:own", "--weights", "weights.pt", "--data", "images.npz"]
        done = run_efat(["simulate", *own, "--lot", "lot.h5"], folder, {})
        assert done.returncode == 0, done.stderr
        assert "networks" not in sys.modules
