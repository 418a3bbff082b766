"""Running Yosys, Icarus Verilog and Verilator in tests, which skip with the reason where these are not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test without a program; the reason says how to get it."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed: apt-get install {program}"
    )


def tool(folder: Path, *command: str) -> str:
    """Run a program in a folder and give what it printed; it must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def yosys(folder: Path, script: str) -> str:
    """Run a script of Yosys in a folder."""
    return tool(folder, "yosys", "-q", "-p", script)
