"""A cycle-level, bit-accurate weight-stationary systolic array with faulty processing elements.

What is exported is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.config import ArrayConfig
    from simulator.engine.gemm import GemmResult, simulate_gemm
    from simulator.engine.timing import Timing, gemm_timing
    from simulator.engine.trace import Trace
    from simulator.errors import InputError
    from simulator.faults import Fault, FaultMap, Kind, Site
    from simulator.lots.chips import Chip, ChipLot, write_lot
    from simulator.sampling import FaultModel, sample_faults

__all__ = [
    "ArrayConfig",
    "Chip",
    "ChipLot",
    "Fault",
    "FaultMap",
    "FaultModel",
    "GemmResult",
    "InputError",
    "Kind",
    "Site",
    "Timing",
    "Trace",
    "gemm_timing",
    "sample_faults",
    "simulate_gemm",
    "write_lot",
]

_MODULES = {
    "ArrayConfig": "config",
    "Chip": "lots.chips",
    "ChipLot": "lots.chips",
    "Fault": "faults",
    "FaultMap": "faults",
    "FaultModel": "sampling",
    "GemmResult": "engine.gemm",
    "InputError": "errors",
    "Kind": "faults",
    "Site": "faults",
    "Timing": "engine.timing",
    "Trace": "engine.trace",
    "gemm_timing": "engine.timing",
    "sample_faults": "sampling",
    "simulate_gemm": "engine.gemm",
    "write_lot": "lots.chips",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
