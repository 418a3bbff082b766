"""Running the `efat` command in tests, in the current folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from efat.cli import main


def run(*arguments: str) -> Result:
    """Run a command, as on a terminal of the usual width."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, list(arguments))


def done(*arguments: str) -> Result:
    """Run a command that must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def written(*arguments: str) -> tuple[dict[str, Any], str]:
    """What a command that must succeed writes as JSON, and what it shows."""
    shown = done(*arguments, "--json", "written.json").output
    return json.loads(Path("written.json").read_text()), shown


def refused(*arguments: str) -> str:
    """The one line with which a command refuses its input: exit code 2, no traceback, nothing written."""
    before = {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()}
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()} == before
    lines = result.output.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert errors == lines[-1:]
    return errors[0].removeprefix("Error: ")
