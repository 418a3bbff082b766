"""A cycle-level, bit-accurate weight-stationary systolic array with faulty processing elements."""

from simulator.config import ArrayConfig
from simulator.engine.gemm import GemmResult, simulate_gemm
from simulator.engine.timing import Timing, gemm_timing
from simulator.engine.trace import Trace
from simulator.faults import Fault, FaultMap, Kind, Site
from simulator.sampling import FaultModel, sample_faults

__all__ = [
    "ArrayConfig",
    "Fault",
    "FaultMap",
    "FaultModel",
    "GemmResult",
    "Kind",
    "Site",
    "Timing",
    "Trace",
    "gemm_timing",
    "sample_faults",
    "simulate_gemm",
]
