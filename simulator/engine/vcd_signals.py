"""What a waveform shows: its signals, when they change, and how they follow from recorded registers.

Clock cycle t of the GEMM (serial timing, from 0) lasts from the rising edge of `clock` at t periods to the next one;
the falling edge is half-way between. From rising edge to rising edge all signals show entry t of the trace. In
streaming cycles these are the nets of that cycle, that is, what the PE's registers take over with the edge that ends
the cycle: at any one time `product` is `activation` times `weight_used`, and `psum` is the `psum` of the northern
neighbour one cycle before plus `product`, faults applied. In load cycles the datapath is not clocked and shows 0.
Signals are two's complement, `activation` only if activations are signed.

Scope `array` has `clock`, `load` (1 in load cycles), `fold` (index of the fold), `cycle` (t, as `Fault.cycle` counts)
and `fold_cycle` (counted within the fold), and a scope `pe_R_C` for each PE, with

- `weight_load`: what stands in the load chain's shift register with the end of the cycle;
- `weight`: likewise the stationary weight register, before the stuck bits on its output, FLIPs included;
- `weight_used`: the multiplier's weight operand, the stuck bits of the register's output applied;
- `activation`: the multiplier's activation operand, which goes on east;
- `product`: what the multiplier gives;
- `psum`: what the PE hands on south (a bypassed PE: what came from the north);
- the same with `_fault_free` at the end of the name: without faults and without bypass;
- `differs`: 1 where any of the values is not the fault-free one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from simulator.bits import Int32Array
from simulator.config import ArrayConfig
from simulator.engine.masks import stuck_masks
from simulator.engine.trace import Trace
from simulator.errors import InputError
from simulator.faults import FaultMap, Site

DEFAULT_CLOCK_MHZ = 700.0

ARRAY_SIGNALS = (("clock", 1), ("load", 1), ("fold", 32), ("cycle", 64), ("fold_cycle", 32))
"""Name and width of the signals of the whole array; all are wires."""

_FAULT_FREE = "_fault_free"
_BLOCK_VALUES = 1 << 18
"""Values dealt with at a time, of all signals and some cycles."""


class WaveformError(InputError):
    """A waveform that cannot be made of this GEMM."""


def pe_signals(config: ArrayConfig) -> list[tuple[str, str, int]]:
    """Name, type and width of a PE's signals, in the order of `shown_values`."""
    signals = (
        ("weight_load", "reg", config.weight_bits),
        ("weight", "reg", config.weight_bits),
        ("weight_used", "wire", config.weight_bits),
        ("activation", "wire", config.act_bits),
        ("product", "wire", config.product_bits),
        ("psum", "wire", config.acc_bits),
    )
    pairs = [(name + suffix, kind, bits) for name, kind, bits in signals for suffix in ("", _FAULT_FREE)]
    return [*pairs, ("differs", "wire", 1)]


_ARRAY_SIGNALS = (("clock", 1), ("load", 1), ("fold", 32), ("cycle", 64), ("fold_cycle", 32))


def check_pes(config: ArrayConfig, pes: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """The chosen PEs (row, col) in order and each once; all of the array for None.

    Raises:
        WaveformError: a PE is not in the array, or none is chosen.
    """
    if pes is None:
        return [(row, col) for row in range(config.rows) for col in range(config.cols)]
    for row, col in pes:
        if not (0 <= row < config.rows and 0 <= col < config.cols):
            raise WaveformError(
                f"PE {row},{col} is not in the {config.rows}x{config.cols} array: "
                f"expected row 0..{config.rows - 1} and column 0..{config.cols - 1}"
            )
    if not pes:
        raise WaveformError("no PEs are chosen: expected at least one")
    return sorted(set(pes))


def shown_values(
    traces: Iterable[tuple[Trace, Trace]], faults: FaultMap, pes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Int32Array]]:
    """What PEs show, some cycles at a time: the first of them, and int32 [cycles, PEs * signals], each PE's together.

    Args:
        traces: (faulty, fault-free) traces of the same cycles.
        faults: the faults of the faulty run.
        pes: the PEs (row, col).

    Raises:
        WaveformError: traces of different arrays or cycles.
    """
    config = faults.config
    rows, cols = (np.array(axis, np.int64) for axis in zip(*pes, strict=True))
    keep, force = (masks[rows, cols].astype(np.int32) for masks in stuck_masks(faults, Site.WEIGHT, np.int16))
    signals = len(pe_signals(config))
    step = max(1, _BLOCK_VALUES // (len(pes) * signals))
    for pair in traces:
        _check_pair(config, *pair)
        for start in range(0, len(pair[0]), step):
            part = slice(start, min(start + step, len(pair[0])))
            block = np.empty((part.stop - start, len(pes), signals), np.int32)
            for place, trace in enumerate(pair):
                weight = trace.weight[part, rows, cols]
                used = weight if place else (weight & keep) | force
                nets = (net[part, rows, cols] for net in (trace.east, trace.product, trace.south))
                for signal, values in enumerate((trace.shift[part, rows, cols], weight, used, *nets)):
                    block[:, :, 2 * signal + place] = values
            block[:, :, -1] = (block[:, :, 0:-1:2] != block[:, :, 1:-1:2]).any(axis=2)
            yield pair[0].first_cycle + start, block.reshape(len(block), -1)


def _check_pair(config: ArrayConfig, faulty: Trace, fault_free: Trace) -> None:
    expected = (len(faulty), config.rows, config.cols)
    for trace in (faulty, fault_free):
        if trace.south.shape != expected:
            raise WaveformError(
                f"a trace has shape {trace.south.shape}: expected {expected}, "
                "its partner's cycles and the array of the faults"
            )
    if faulty.first_cycle != fault_free.first_cycle:
        raise WaveformError(
            f"the faulty trace begins in cycle {faulty.first_cycle} and the fault-free one in cycle "
            f"{fault_free.first_cycle}: expected the same cycles"
        )


def half_period(clock_mhz: float, stop: int) -> int:
    """Half a clock period in femtoseconds, checked for timestamps up to the beginning of cycle `stop`."""
    half = round(5e8 / clock_mhz) if clock_mhz > 0 else 0
    if half < 1 or stop * 2 * half >= 1 << 63:
        raise WaveformError(
            f"clock of {clock_mhz:g} MHz: expected a half period of at least a femtosecond, and cycle {stop} "
            "within 2^63 femtoseconds"
        )
    return half
