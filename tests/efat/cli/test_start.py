"""The command as a whole: quick to start, helpful, and its names those of the library."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from efat.cli import main, printing
from efat.cli.group import LazyGroup
from efat.cli.parameters import DESIGNS, KINDS, MITIGATION_NAMES, NETWORK_NAMES, SITES
from simulator import ArrayConfig, FaultMap, Kind, Site
from simulator.gates import designs
from simulator.lots.chips import Chip, write_lot
from training.data.workloads import WORKLOADS
from training.learning.mitigations.combination import NAMES, Mitigations

pytestmark = pytest.mark.integration

HEAVY = ("torch", "numba", "numpy", "h5py", "scipy", "sklearn", "matplotlib", "rich", "vcd", "cocotb")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["chips", "--help"],
        ["chips", "generate", "--help"],
        ["cycles", "--help"],
        ["explain", "--help"],
        ["propagate", "--help"],
        ["resilience", "--help"],
        ["retrain-chip", "--help"],
        ["simulate", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom efat.cli import main\n"
        f"sys.argv = ['efat', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: efat" in done.stdout + done.stderr


def test_version_is_shown() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("efat ")


def test_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["frobnicate"])
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.output


def test_every_listed_command_is_there_and_has_examples() -> None:
    assert isinstance(main, LazyGroup)
    assert main.list_commands(None) == [  # type: ignore[arg-type]
        "chips",
        "cycles",
        "explain",
        "multiplier",
        "plan",
        "propagate",
        "report",
        "resilience",
        "retrain",
        "retrain-chip",
        "simulate",
        "validate",
    ]
    for arguments in (
        ["cycles"],
        ["explain"],
        ["propagate"],
        ["resilience"],
        ["retrain-chip"],
        ["simulate"],
        ["chips", "generate"],
        ["chips", "show"],
        ["chips", "import"],
        ["chips", "export"],
        ["multiplier", "list"],
        ["multiplier", "faults"],
        ["multiplier", "table"],
    ):
        result = CliRunner().invoke(main, [*arguments, "--help"])
        assert result.exit_code == 0
        assert f"efat {' '.join(arguments)} " in result.output.split("Example", 1)[1]


def test_names_of_options_are_those_of_the_library() -> None:
    assert [site.name for site in Site] == list(SITES)
    assert [kind.name for kind in Kind] == list(KINDS)
    assert list(designs.DESIGNS) == list(DESIGNS)


def test_completion_offers_commands_and_sites() -> None:
    def complete(words: str) -> str:
        script = "from efat.cli import main; main(prog_name='efat')"
        return subprocess.run(
            [sys.executable, "-c", script],
            env={"_EFAT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "simulate" in complete("efat ")
    assert "psum" in complete("efat chips generate --site ")
    assert "tpu-v1" in complete("efat cycles --array ")


def test_all_that_is_printed_is_cleaned() -> None:
    folder = Path(printing.__file__).parent
    assert [path.name for path in sorted(folder.glob("*.py")) if "click.echo(" in path.read_text()] == ["printing.py"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug, not an input")

    monkeypatch.setattr("simulator.lots.chips.ChipLot.__init__", broken)
    result = CliRunner().invoke(main, ["chips", "show", "lot.h5"])
    assert isinstance(result.exception, ValueError)


def test_a_full_disk_is_a_failure_not_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "lot.h5")

    monkeypatch.setattr("simulator.lots.chips.ChipLot.__init__", full)
    result = CliRunner().invoke(main, ["chips", "show", "lot.h5"])
    assert result.exit_code == 1
    assert result.output == "Error: lot.h5: No space left on device\n"


def test_who_stops_reading_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("efat.cli.commands.cycles._show_presets", stopped)
    result = CliRunner().invoke(main, ["cycles", "--list-presets"])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, result.output) == (1, "")


def test_what_a_user_may_have_meant_is_asked(folder: Path) -> None:
    write_lot("lot.h5", ArrayConfig(4, 4), [Chip("chip-0003", FaultMap(ArrayConfig(4, 4)))])
    for arguments, meant in (
        (["explian"], "explain"),
        (["simulate", "--netwrok", "x", "--lot", "lot.h5"], "--network"),
        (["simulate", "--network", "restnet18", "--lot", "lot.h5"], "resnet18"),
        (["cycles", "--array", "4x4", "--network", "LeNet"], "lenet5"),
        (["cycles", "--array", "gemini", "--network", "lenet5"], "gemmini"),
        (["chips", "show", "lot.h5", "--chip", "chip-003"], "chip-0003"),
        (["validate", "--sites", "psums"], "psum"),
        (["propagate", "--site", "weight-laod"], "weight_load"),
        (["propagate", "--bit", "actvation=1"], "activation"),
        (["chips", "generate", "--kind", "stuck-at-3"], "stuck_at_0"),
        (["chips", "import", "x.csv", "--array", "4x4", "--multiplier", "wallis", "-o", "y.h5"], "wallace"),
        (["resilience", "--network", "digits-cnn", "--array", "4x4", "--mitigation", "fab+t", "-o", "x"], "fap+t"),
        (["resilience", "--network", "digits-cnn", "--array", "4x4", "--optimizer", "adamw", "-o", "x"], "AdamW"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        error = result.stderr.splitlines()[-1]
        assert re.search(rf"[Dd]id you mean .*{re.escape(meant)}", error), error


def test_completion_offers_what_there_is(folder: Path) -> None:
    config = ArrayConfig(4, 4)
    write_lot("lot.h5", config, [Chip(name, FaultMap(config)) for name in ("wafer-1 a", "wafer-2", "other")])

    def complete(words: str, incomplete: str) -> list[str]:
        found = ShellComplete(main, {}, "efat", "_EFAT_COMPLETE").get_completions(words.split(), incomplete)
        return [item.value for item in found]

    assert complete("simulate --network", "res") == ["resnet20", "resnet18"]
    assert complete("simulate --mitigation", "fap") == ["fap", "fap+bn"]
    assert complete("retrain-chip --mitigation", "fam-r") == [name for name in NAMES if name.startswith("fam-r")]
    for words in ("simulate --lot lot.h5 --chip", "explain --lot lot.h5 --chip", "chips show lot.h5 --chip"):
        assert complete(words, "wa") == ["wafer-1 a", "wafer-2"]
    assert complete("simulate --chip", "") == complete("simulate --lot none.h5 --chip", "") == []


def test_what_completion_knows_is_what_there_is() -> None:
    assert tuple(WORKLOADS) == NETWORK_NAMES
    assert NAMES == MITIGATION_NAMES
    for name in NAMES:
        Mitigations.named(name)


def test_errors_are_one_line_that_a_terminal_does_not_obey(folder: Path) -> None:
    Path("own_broken.py").write_text("raise RuntimeError('\\x1b[31mred\\x1b[0m\\nand more')")
    write_lot("lot.h5", ArrayConfig(4, 4), [Chip("a", FaultMap(ArrayConfig(4, 4)))])
    np.savez("x.npz", images=np.zeros((3, 1, 4, 4), np.float32), labels=np.zeros(3, np.int64))
    for arguments, shown in (
        (
            ["simulate", "--lot", "lot.h5", "--network", "own_broken:net", "--data", "x.npz"],
            r"RuntimeError: \x1b[31mred",
        ),
        (["simulate", "--lot", "lot.h5", "--network", "\x1b]0;title\x07"], r"\x1b]0;title\x07"),
        (["chips", "show", "no\x1b[2J\nfile"], r"no\x1b[2J file: no such file"),
        (["\x1b[31mred"], r"\x1b[31mred"),
        (["simulate", "--\x1b[31mred"], r"\x1b[31mred"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert shown in result.stderr.splitlines()[-1]
        assert result.stderr.replace("\n", "").isprintable()
