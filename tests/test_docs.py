"""Every command and every Python example in the README and in docs/ is run."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from simulator.rtl import unavailable
from tests.support.programs import OF_A_PROCESS, ROOT, efat_arguments, run_efat, run_python

pytestmark = pytest.mark.integration

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return CODE_BLOCK.findall(page.read_text())


def commands(block: str) -> list[str]:
    """Lines after a `$ ` prompt, with their continuation lines."""
    joined = block.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def environment() -> dict[str, str]:
    """What commands find in their environment, beside what the tests do."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line; calls of `efat` run here, where everything is imported already."""
    arguments = efat_arguments(command)
    return shell(command, folder) if arguments is None else run_efat(arguments, folder, environment())


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment()}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=everything, capture_output=True, text=True, timeout=600, check=False
    )


def run_example(program: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program with warnings as errors, in a process of its own where it may need one."""
    if OF_A_PROCESS.search(program.read_text()):
        return shell(f"{shlex.quote(sys.executable)} -W error {shlex.quote(program.name)}", program.parent)
    return run_python(program, [], program.parent, environment())


def make_recipe(target: str) -> str:
    """What make would run for a target, without running it."""
    listed = shell(f"make --dry-run --always-make {target}", ROOT)
    assert listed.returncode == 0, listed.stderr
    return listed.stdout


def lacking(shown: str) -> str | None:
    """What a command or an example needs that is not installed here."""
    if "rtl_gemm" in shown or "--against rtl" in shown:
        return unavailable()
    program = shown.split()[0]
    return f"{program} is not installed" if program in ("verilator", "yosys") and not shutil.which(program) else None


def succeeds(shown: str, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{shown}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    """Commands and Python examples, from top to bottom in one folder."""
    left_out = []
    for number, (language, block) in enumerate(blocks(page)):
        if language == "console":
            for command in commands(block):
                reason = lacking(command)
                if reason is not None:
                    left_out.append(reason)
                    continue
                words = shlex.split(command)
                if words[0] == "make":
                    assert make_recipe(words[1]).strip()
                else:
                    succeeds(command, run(command, tmp_path))
        elif language == "python" and ">>>" not in block:
            reason = lacking(block)
            if reason is not None:
                left_out.append(reason)
                continue
            program = tmp_path / f"example{number}.py"
            program.write_text(block)
            succeeds(block, run_example(program))
    if left_out:
        pytest.skip("; ".join(sorted(set(left_out))))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sessions_give_what_they_show(page: Path) -> None:
    assert doctest.testfile(str(page), module_relative=False).failed == 0


LESS = {"--count 20": "--count 5", "--repeats 3": "--repeats 1", "--levels 5,10,20,40": "--levels 5,20"}
"""What is changed of the demo for it to be quick."""


@pytest.mark.parametrize("less", [LESS, pytest.param({}, marks=pytest.mark.slow)], ids=["quick", "whole"])
def test_demo_runs(less: dict[str, str], tmp_path: Path) -> None:
    recipe = make_recipe("demo")
    for option, other in less.items():
        assert option in recipe
        recipe = recipe.replace(option, other)
    demo = [line for line in recipe.splitlines() if line.startswith((".venv/bin/efat ", "mkdir "))]
    assert len(demo) > 1, "make demo runs no efat command"
    for number, line in enumerate(demo):
        command = line.replace(".venv/bin/efat", "efat")
        # What is installed is run at least once.
        done = run(command, tmp_path) if number > 1 else shell(command, tmp_path)
        succeeds(command, done)
    (promised,) = [block for language, block in blocks(ROOT / "README.md") if language == "text"]
    first, *_, last = promised.splitlines()
    # Rounding differs between processors, and so may what is learned: numbers may differ.
    number_or_not = re.sub(r"\d+", r"\\d+", re.escape(first))
    assert re.search(number_or_not, done.stdout)
    assert last in done.stdout.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_import_what_is_exported(page: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            code = "\n".join(re.findall(r"^(?:>>> |\.\.\. )(.*)$", block, re.MULTILINE)) if ">>>" in block else block
            for node in ast.walk(ast.parse(code)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
                for module in modules:
                    package, _, inside = module.partition(".")
                    if package in ("efat", "simulator", "training"):
                        assert not inside, f"{page.name} imports {module}: expected what {package} exports"
                        if isinstance(node, ast.ImportFrom):
                            assert set(names) <= set(import_module(package).__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("package", ["efat", "simulator", "training"])
def test_reference_has_all_that_is_exported(package: str) -> None:
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    listed = re.findall(rf"^::: {package}\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(importlib.import_module(package).__all__)
