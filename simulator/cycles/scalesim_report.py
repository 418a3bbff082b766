"""`COMPUTE_REPORT.csv` as SCALE-Sim 3.0.0 writes it for a weight-stationary array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from simulator.config import ArrayConfig
from simulator.cycles.scalesim import GemmLayer
from simulator.engine.timing import gemm_timing
from simulator.files import replaced

COLUMNS = (
    "LayerID",
    "Total Cycles (incl. prefetch)",
    "Total Cycles",
    "Stall Cycles",
    "Overall Util %",
    "Mapping Efficiency %",
    "Compute Util %",
)


@dataclass(frozen=True)
class ComputeReportRow:
    """One layer in the terms of SCALE-Sim.

    Attributes:
        total_cycles: "Total Cycles", one less than the serial clock cycles.
        overall_utilisation: "Overall Util %": multiply-accumulates over `total_cycles` of all PEs, in percent.
        mapping_efficiency: "Mapping Efficiency %": PEs that hold a weight, over all PEs, in the mean of all folds.
        compute_utilisation: "Compute Util %": multiply-accumulates of a fold over the cycles that SCALE-Sim takes for
            it there, `2 * rows + 2 * cols + m - 3`, of all PEs, in the mean of all folds. (That is `cols - 1` more
            than a fold has in its "Total Cycles".)
    """

    total_cycles: int
    overall_utilisation: float
    mapping_efficiency: float
    compute_utilisation: float


def compute_report_row(config: ArrayConfig, layer: GemmLayer) -> ComputeReportRow:
    """What SCALE-Sim reports of a layer, or of each of its groups."""
    timing = gemm_timing(config, layer.m, layer.k, layer.n)
    # Sums over all folds of the PEs used: each weight sits on one PE in one fold.
    weights, places = layer.k * layer.n, timing.folds * config.pe_count
    fold_cycles = 2 * config.rows + 2 * config.cols + layer.m - 3
    return ComputeReportRow(
        total_cycles=timing.scalesim,
        overall_utilisation=100 * layer.m * weights / (config.pe_count * timing.scalesim),
        mapping_efficiency=100 * weights / places,
        compute_utilisation=100 * layer.m * weights / (places * fold_cycles),
    )


def write_compute_report(
    path: str | Path, config: ArrayConfig, layers: Iterable[GemmLayer], *, stalls: bool = False
) -> None:
    """Write the report of a whole network.

    Memory behind the array is not modelled. Without stalls, their cycles are 0, as SCALE-Sim has them with
    `InterfaceBandwidth: CALC`; with stalls, what depends on them is left empty: total cycles, stall cycles and overall
    utilisation. Cycles including prefetch, which depend on SCALE-Sim's model of DRAM, are always left empty.

    Args:
        path: the file; it appears, or replaces an older one, only when it is complete.
        config: the array.
        layers: the layers, numbered from 0 in the report; of a layer with groups each one is a line, as SCALE-Sim has
            the channels of depth-wise convolutions.
        stalls: whether SCALE-Sim would have the array wait for its memories, see `ScaleSimConfig.stalls`.
    """
    with replaced(Path(path)) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        file.write(", ".join(COLUMNS) + ",\n")
        for number, layer in enumerate(chain.from_iterable(repeat(layer, layer.groups) for layer in layers)):
            row = compute_report_row(config, layer)
            timed = ("", "", "") if stalls else (row.total_cycles, 0, row.overall_utilisation)
            cells = (number, "", *timed, row.mapping_efficiency, row.compute_utilisation)
            file.write(", ".join(map(str, cells)) + ",\n")
