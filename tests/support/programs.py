"""The `efat` command and other programs, in the tests' own process or in one that tests may kill."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from click.testing import CliRunner, Result

from efat.cli import main

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PLAIN = re.compile(r"""[\w\s./:,=+@%'"-]*""")
"""What means the same to a shell and to `shlex`."""
OF_A_PROCESS = re.compile(r"__main__|multiprocessing|subprocess|os\.fork|workers|signal")
"""What a program says that may want a process of its own."""


def efat_arguments(command: str) -> list[str] | None:
    """Arguments of a line for the shell that is one call of `efat`; None where it is more, or may be."""
    if not PLAIN.fullmatch(command):
        return None
    program, *arguments = shlex.split(command)
    return arguments if program == "efat" else None


def run_efat(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the `efat` command, with warnings as errors.

    Args:
        arguments: its arguments.
        folder: where it runs.
        environment: variables, on top of those of this process.

    Returns:
        Exit code and output, with the traceback in `stderr`, as of a process.
    """
    given = ["efat", *arguments]
    with _like_a_process(given, None, folder, environment):
        return _ended(given, lambda: main(args=list(arguments), prog_name="efat"))


def run_python(
    program: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a Python program as `python -W error` would.

    Args:
        program: the file.
        arguments: its arguments.
        folder: where it runs.
        environment: variables, on top of those of this process.

    Returns:
        Exit code and output, with the traceback in `stderr`, as of a process.
    """
    given = [str(program), *arguments]
    with _like_a_process(given, program.parent, folder, environment):
        return _ended(given, lambda: runpy.run_path(str(program), run_name="__main__"))


@contextmanager
def _like_a_process(
    arguments: list[str], imports: Path | None, folder: Path, environment: Mapping[str, str]
) -> Iterator[None]:
    """Begin like a new process does, and leave nothing behind that another test could notice.

    Args:
        arguments: of the program, its name first.
        imports: folder of the program, where it finds modules; None for one that is installed.
        folder: where it runs.
        environment: variables, on top of those of this process.
    """
    before, threads, known = Path.cwd(), torch.get_num_threads(), set(sys.modules)
    # Tests find each other, and what is in the folder they were started in; programs must do without.
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != TESTS]
    path = path if imports is None else [str(imports), *path]
    importlib.invalidate_caches()
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(sys, "path", path),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("error")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
            forget_modules(known, [folder, *([] if imports is None else [imports])])


def forget_modules(known: Set[str], folders: Sequence[Path]) -> None:
    """Have modules imported anew: another test may write another module of the same name.

    Args:
        known: names of modules to keep.
        folders: where the others are that are forgotten.
    """
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and any(Path(file).resolve().is_relative_to(folder.resolve()) for folder in folders):
            del sys.modules[name]


def _ended(arguments: list[str], program: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    output, errors = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(written, encoding="utf-8", write_through=True) for written in (output, errors)]
    code = 0
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            program()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)  # noqa: T201
        except Exception:
            code = 1
            traceback.print_exc()
    return subprocess.CompletedProcess(arguments, code, output.getvalue().decode(), errors.getvalue().decode())


def started(program: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """A process of its own that runs a program of the tests."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(program), *map(str, arguments)], env=environment)


def children(process: int | str = "self") -> list[int]:
    """Numbers of the processes that a process has started; this one if none is named."""
    try:
        found = Path(f"/proc/{process}/task").glob("*/children")
        return [int(child) for path in found for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their names, those of unfinished writing left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
