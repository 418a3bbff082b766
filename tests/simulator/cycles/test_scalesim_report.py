"""COMPUTE_REPORT.csv against what SCALE-Sim wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from simulator import ArrayConfig
from simulator.cycles.scalesim import GemmLayer, compute_report_row, write_compute_report

# COMPUTE_REPORT.csv of SCALE-Sim 3.0.0 (PyPI; NumPy 2.2) on a 32x32 weight-stationary array, InterfaceBandwidth CALC.
# The last two are ResNet-18's first layer and a 3x3 convolution of one channel and five filters.
HEADER = (
    "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, "
    "Compute Util %,"
)
REPORTED = {
    GemmLayer("L0", 196, 384, 192): (20879, 67.58944393888596, 100.0, 61.059190031152625),
    GemmLayer("L1", 196, 64, 1176): (21459, 67.13267160631902, 99.32432432432432, 60.64662793634753),
    GemmLayer("small", 5, 33, 40): (395, 1.6317246835443038, 32.2265625, 1.2394831730769231),
    GemmLayer("tiny", 3, 2, 2): (96, 0.01220703125, 0.390625, 0.0091552734375),
    GemmLayer("Conv1", 12100, 147, 64): (121939, 91.16750998450044, 91.875, 90.93558282208589),
    GemmLayer("DP", 49, 9, 5): (142, 1.5164227552816902, 4.39453125, 1.2375404094827587),
}


@pytest.mark.parametrize("layer", REPORTED, ids=lambda layer: layer.name)
def test_rows_are_those_of_scalesim(layer: GemmLayer) -> None:
    total, *found = compute_report_row(ArrayConfig(32, 32), layer)
    cycles, *percents = REPORTED[layer]
    assert total == cycles
    # SCALE-Sim adds up folds in floating point; the last digits differ.
    assert found == pytest.approx(percents, rel=1e-13)


def test_the_file_has_the_columns_of_scalesim(tmp_path: Path) -> None:
    path = tmp_path / "COMPUTE_REPORT.csv"
    path.write_text("an older one")
    write_compute_report(path, ArrayConfig(32, 32), REPORTED)
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER
    rows = list(csv.DictReader(lines, skipinitialspace=True))
    assert [int(row["LayerID"]) for row in rows] == list(range(len(REPORTED)))
    assert [int(row["Total Cycles"]) for row in rows] == [cycles for cycles, *_ in REPORTED.values()]
    assert {row["Stall Cycles"] for row in rows} == {"0"}
    assert {row["Total Cycles (incl. prefetch)"] for row in rows} == {""}
    assert float(rows[2]["Mapping Efficiency %"]) == 32.2265625


def test_what_stalls_would_change_is_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "COMPUTE_REPORT.csv"
    write_compute_report(path, ArrayConfig(32, 32), REPORTED, stalls=True)
    rows = list(csv.DictReader(path.read_text().splitlines(), skipinitialspace=True))
    for name in ("Total Cycles", "Stall Cycles", "Overall Util %"):
        assert {row[name] for row in rows} == {""}
    assert float(rows[2]["Mapping Efficiency %"]) == 32.2265625
    assert float(rows[2]["Compute Util %"]) == 1.2394831730769231
