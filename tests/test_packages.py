"""What is packed can be used without the folder that it was packed from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import ROOT


def called(*command: object, **environment: str) -> str:
    """What a command that must succeed prints."""
    given = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **environment}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_package_installs_and_validates(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("build", reason="in the extra `test-all`")
    # The wheel is made from the sdist, as those who download that do.
    called(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    (package,) = (tmp_path / "dist").glob(f"*.{suffix}")
    called(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "installed", package)
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "installed")
    assert called(sys.executable, "-c", "import efat; print(efat.__file__)", PYTHONPATH=there).startswith(there)
    called(sys.executable, "-m", "efat", "validate", "--cases", "200", PYTHONPATH=there)
    lot = ("--lot", "lot.h5")
    generate = ("chips", "generate", "--array", "16x16", "--count", "1", "--fault-rate", "0.02", "-o", "lot.h5")
    called(sys.executable, "-m", "efat", *generate, PYTHONPATH=there)
    called(
        sys.executable, "-m", "efat", "simulate", "--network", "digits-cnn", *lot, "--images", "20", PYTHONPATH=there
    )
