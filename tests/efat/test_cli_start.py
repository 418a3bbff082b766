"""The command as a whole: quick to start, helpful, and its names those of the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from efat.cli import main, printing
from efat.cli.group import LazyGroup
from efat.cli.multiplier_options import DESIGNS
from efat.cli.options import KINDS, SITES
from simulator import Kind, Site
from simulator.gates import designs

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

    monkeypatch.setattr("simulator.chips.ChipLot.__init__", broken)
    result = CliRunner().invoke(main, ["chips", "show", "lot.h5"])
    assert isinstance(result.exception, ValueError)


def test_a_full_disk_is_a_failure_not_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "lot.h5")

    monkeypatch.setattr("simulator.chips.ChipLot.__init__", full)
    result = CliRunner().invoke(main, ["chips", "show", "lot.h5"])
    assert result.exit_code == 1
    assert result.output == "Error: lot.h5: No space left on device\n"
