"""Quantised GEMMs on the simulated array: the public entry to the cycle engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.bits import Int32Array
from simulator.config import ArrayConfig
from simulator.faults import BoolArray, FaultMap, Kind
from simulator.mapping import fold_count
from simulator.timing import Timing, gemm_timing
from simulator.trace import Trace, check_window


@dataclass(frozen=True)
class GemmResult:
    """What one GEMM on the array gave.

    Attributes:
        outputs: int32 [M, N], read out of the column accumulators.
        cycles: clock cycles stepped, one fold after the other (serial timing).
        timing: clock cycles per fold and in total in both timing modes, and utilisation.
        trace: the registers in the recorded window, or None.
    """

    outputs: Int32Array
    cycles: int
    timing: Timing
    trace: Trace | None = None


def simulate_gemm(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    config: ArrayConfig,
    faults: FaultMap | None = None,
    *,
    bypass: npt.ArrayLike | None = None,
    record: tuple[int, int] | None = None,
    threads: int | None = None,
) -> GemmResult:
    """Multiply `x @ w` on the array, cycle by cycle and bit by bit.

    Args:
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        record: window of clock cycles (first, one past the last) whose registers to return.
        threads: threads to work in parallel; None for one per available core. Results do not depend on it.

    Returns:
        Outputs, cycle counts and, if asked for, the trace.

    Raises:
        TypeError: `x` or `w` does not hold integers, or `bypass` is not boolean.
        ValueError: shapes that do not fit, values out of range, K = 0 or N = 0, faults of another array, a FLIP in a
            cycle that the GEMM does not have, or an impossible `record` window.
    """
    raise RuntimeError("engine under construction")
