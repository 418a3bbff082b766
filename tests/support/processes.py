"""Programs that tests start, kill, and compare the folders of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
