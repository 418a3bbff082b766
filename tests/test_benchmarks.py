"""Benchmarks run and print their tables; what they measure is not judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import ROOT, run_python

pytestmark = pytest.mark.integration

BENCHMARKS = ROOT / "benchmarks"

RUNS = [
    pytest.param("cycle_engine.py --quick", ["G PE-cycles/s", "images/s", "of the limit"]),
    pytest.param("emulation.py --quick", ["x float32", "Against the cycle engine", "Lowering all 20 layers"]),
    pytest.param("rtl_speed.py --quick", ["M PE-cycles/s", "ratio", "build"], marks=pytest.mark.slow),
    pytest.param(
        "fault_effect.py --images 20 --maps 1 --png effect.png",
        ["as they are", "wrote effect.png"],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "fault_aware_training.py speed --batch 2 --rounds 1 --size 16",
        ["FAP+T", "x quantisation-aware"],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "alignment.py --size 16 --largest 2 --train 16 --images 40",
        ["squared weights", "lines", "ms to place a chip", "2 aligned"],
    ),
    pytest.param(
        "propagation.py --size 16 --images 3 --faults 20 --flips 40 --full 2",
        ["stuck, one image: all", "flips: masked in their layer", "the same class"],
    ),
    pytest.param(
        "efat_vs_baselines.py --size 16 --chips 3 --rates 0.05 0.2 --repeats 1 --levels 0 12 --images 40 --workers 0",
        ["aligned  ", "3 / 3", "its resilience took"],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "fault_aware_training.py curves --size 16 --rates 0.2 --maps 1 --iterations 2 --images 40 --png curves.png",
        ["fam+t", "40 held-out images", "wrote curves.png"],
    ),
]


def test_every_benchmark_is_run() -> None:
    assert {str(run.values[0]).split()[0] for run in RUNS} == {path.name for path in BENCHMARKS.glob("*.py")}


@pytest.mark.parametrize(("run", "expected"), RUNS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_benchmark_runs(run: str, expected: list[str], tmp_path: Path) -> None:
    name, *arguments = run.split()
    done = run_python(BENCHMARKS / name, arguments, tmp_path, {})
    assert done.returncode == 0, done.stderr
    if "not installed" in done.stdout:
        pytest.skip(done.stdout.strip())
    for text in expected:
        assert text in done.stdout
