"""Kernels kept on disk are the ones their sources say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = """
import constants
from simulator.kernels import kernels

@kernels(constants)
def answer():
    return constants.ANSWER
"""
ASK = "import kernel; print(kernel.answer(), sum(kernel.answer.stats.cache_hits.values()))"


@pytest.mark.integration
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


TYPED_KERNEL = """
from place import Pair
from simulator.kernels import kernels

@kernels()
def total(pair):
    return pair.one + pair.two
"""
PAIR = "from typing import NamedTuple\n\nclass Pair(NamedTuple):\n    one: int\n    two: int\n"


@pytest.mark.integration
def test_what_is_kept_may_name_modules_that_are_gone(tmp_path: Path) -> None:
    def ask(place: str) -> str:
        (tmp_path / f"{place}.py").write_text(PAIR)
        (tmp_path / "kernel.py").write_text(TYPED_KERNEL.replace("place", place))
        command = [sys.executable, "-B", "-c", f"import kernel, {place}; print(kernel.total({place}.Pair(1, 2)))"]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        (tmp_path / f"{place}.py").unlink()
        return answer.stdout + answer.stderr

    assert ask("here") == "3\n"
    assert ask("there") == "3\n"
