"""Kernels kept on disk are the ones their sources say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KERNEL = """
import constants
from simulator.kernels import kernels

@kernels(constants)
def answer():
    return constants.ANSWER
"""
ASK = "import kernel; print(kernel.answer(), sum(kernel.answer.stats.cache_hits.values()))"


def test_kernels_are_kept_until_a_module_they_use_changes(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)

    def ask(constant: int) -> list[str]:
        (tmp_path / "constants.py").write_text(f"ANSWER = {constant}\n")
        command = [sys.executable, "-B", "-c", ASK]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert ask(41) == ["41", "0"]
    assert ask(41) == ["41", "1"]
    assert ask(42) == ["42", "0"]
    assert ask(41) == ["41", "1"]
