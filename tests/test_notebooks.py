"""The notebooks of examples/ run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="in the extra `test-all`")
    nbclient = pytest.importorskip("nbclient", reason="in the extra `test-all`")
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.get("execution_count") for cell in content.cells if cell.cell_type == "code")
