"""The command imports what the packages export, and their tools for errors, files and command lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

CLI = Path(import_module("efat.cli").__file__ or "").parent
TOOLS = {"simulator.errors", "simulator.files", "efat.command_lines", "efat.display", "training.layers.user_code"}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules and names that are imported while a program runs; types are for those who read it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        else:
            yield from imported(node)


@pytest.mark.parametrize("path", sorted(CLI.rglob("*.py")), ids=lambda path: path.stem)
def test_the_command_imports_what_is_exported(path: Path) -> None:
    for module, name in imported(ast.parse(path.read_text())):
        package = module.partition(".")[0]
        own = f"{module}.".startswith("efat.cli.") or (module, name) == ("efat", "cli")
        if package in ("efat", "simulator", "training") and not own and not {module, f"{module}.{name}"} & TOOLS:
            assert module == package, f"{path.name} imports {module}.{name}"
            assert not name or name in import_module(package).__all__, f"{path.name} imports {module}.{name}"
