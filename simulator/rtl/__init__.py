"""The reference RTL: the array in synthesizable SystemVerilog, and GEMMs on it in Icarus Verilog through cocotb."""

from simulator.rtl.cosimulation import CosimulationError, RtlUnavailableError, unavailable
from simulator.rtl.gemm import RtlResult, rtl_gemm

__all__ = ["CosimulationError", "RtlResult", "RtlUnavailableError", "rtl_gemm", "unavailable"]
