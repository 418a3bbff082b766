"""A cycle-level, bit-accurate weight-stationary systolic array with faulty processing elements."""

from simulator.array import GemmResult, simulate_gemm
from simulator.config import ArrayConfig
from simulator.faults import Fault, FaultMap, Kind, Site
from simulator.sampling import FaultModel, sample_faults
from simulator.timing import Timing, gemm_timing
from simulator.trace import Trace

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
