"""The state of every register of the array, cycle by cycle, in a window of clock cycles."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.config import ArrayConfig
from simulator.dtypes import Int32Array
from simulator.errors import InputError

LARGEST_TRACE_BYTES = 2 << 30
_ARRAYS = 5


@dataclass(frozen=True)
class Trace:
    """What every PE held in each clock cycle from `first_cycle` on; arrays are int32 [cycles, rows, cols].

    Registers are shown as they stand after the clock edge that ends the cycle. In load cycles the datapath is not
    clocked, so `east`, `product` and `south` are 0 there. Columns that no output is mapped to are shown too.

    Attributes:
        first_cycle: clock cycle of entry 0, counted over the GEMM in serial timing.
        shift: weight shift registers (the load chain).
        weight: stationary weight registers; WEIGHT faults sit on their outputs and do not show here, but a FLIP of a
            WEIGHT net inverts what is stored.
        east: activation registers.
        product: multiplier outputs (a net, not a register), faults applied.
        south: partial-sum registers.
    """

    first_cycle: int
    shift: Int32Array
    weight: Int32Array
    east: Int32Array
    product: Int32Array
    south: Int32Array

    def __len__(self) -> int:
        return len(self.south)


def check_window(config: ArrayConfig, window: tuple[int, int], total_cycles: int) -> tuple[int, int]:
    """A window of clock cycles (first, one past the last), refused if outside the GEMM or taking more than 2 GiB."""
    first, stop = window
    if not 0 <= first < stop <= total_cycles:
        raise InputError(f"record={window}: expected (first, stop) with 0 <= first < stop <= {total_cycles} cycles")
    size = (stop - first) * config.pe_count * 4 * _ARRAYS
    if size > LARGEST_TRACE_BYTES:
        cycles = LARGEST_TRACE_BYTES // (config.pe_count * 4 * _ARRAYS)
        raise InputError(f"record={window} takes {size >> 20} MiB: record at most {cycles} cycles at a time")
    return first, stop
