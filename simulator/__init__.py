"""A cycle-level, bit-accurate weight-stationary systolic array with faulty processing elements.

What is exported is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.config import PRESETS, ArrayConfig, ArrayPreset
    from simulator.cycles.counts import Traffic, gemm_traffic
    from simulator.cycles.scalesim import ConvLayer, GemmLayer, ScaleSimConfig, TopologyKindError, read_scalesim_config
    from simulator.engine.fold_trace import FoldWindow
    from simulator.engine.gemm import GemmResult, simulate_gemm
    from simulator.engine.timing import Timing, gemm_timing, output_cycles
    from simulator.engine.trace import Trace
    from simulator.engine.vcd import WaveformTooLargeError, write_gemm_vcd, write_vcd
    from simulator.errors import InputError
    from simulator.faults import Fault, FaultMap, Kind, Site
    from simulator.gates.designs import build_netlist
    from simulator.gates.files import is_netlist_name, read_netlist
    from simulator.gates.netlist import Netlist
    from simulator.lots.chips import Chip, ChipLot, append_chips, write_lot
    from simulator.lots.csv import read_fault_list
    from simulator.multipliers.files import TableSigns
    from simulator.multipliers.multiplier import Multiplier
    from simulator.rtl.gemm import RtlResult, rtl_gemm
    from simulator.sampling import FaultModel, sample_faults

__all__ = [
    "PRESETS",
    "ArrayConfig",
    "ArrayPreset",
    "Chip",
    "ChipLot",
    "ConvLayer",
    "Fault",
    "FaultMap",
    "FaultModel",
    "FoldWindow",
    "GemmLayer",
    "GemmResult",
    "InputError",
    "Kind",
    "Multiplier",
    "Netlist",
    "RtlResult",
    "ScaleSimConfig",
    "Site",
    "TableSigns",
    "Timing",
    "TopologyKindError",
    "Trace",
    "Traffic",
    "WaveformTooLargeError",
    "append_chips",
    "build_netlist",
    "gemm_timing",
    "gemm_traffic",
    "is_netlist_name",
    "output_cycles",
    "read_fault_list",
    "read_netlist",
    "read_scalesim_config",
    "rtl_gemm",
    "sample_faults",
    "simulate_gemm",
    "write_gemm_vcd",
    "write_lot",
    "write_vcd",
]

_EXPORTS = {
    "config": "PRESETS ArrayConfig ArrayPreset",
    "cycles.scalesim": "ConvLayer GemmLayer ScaleSimConfig TopologyKindError read_scalesim_config",
    "cycles.counts": "Traffic gemm_traffic",
    "engine.fold_trace": "FoldWindow",
    "engine.gemm": "GemmResult simulate_gemm",
    "engine.timing": "Timing gemm_timing output_cycles",
    "engine.trace": "Trace",
    "engine.vcd": "WaveformTooLargeError write_gemm_vcd write_vcd",
    "errors": "InputError",
    "faults": "Fault FaultMap Kind Site",
    "gates.designs": "build_netlist",
    "gates.files": "is_netlist_name read_netlist",
    "gates.netlist": "Netlist",
    "lots.chips": "Chip ChipLot append_chips write_lot",
    "lots.csv": "read_fault_list",
    "multipliers.files": "TableSigns",
    "multipliers.multiplier": "Multiplier",
    "rtl.gemm": "RtlResult rtl_gemm",
    "sampling": "FaultModel sample_faults",
}
"""By module, the names that it has."""

_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
