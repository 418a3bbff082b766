"""Waveforms: what a GEMM's PEs hold, cycle by cycle, as a value change dump (VCD, IEEE 1364) for GTKWave and the like.

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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import Int32Array
from simulator.engine.fold_trace import FoldWindow, WaveformError, check_pes, record_fold
from simulator.engine.masks import stuck_masks
from simulator.engine.timing import load_cycles
from simulator.engine.trace import Trace
from simulator.errors import InputError
from simulator.faults import FaultMap, Kind, Site
from simulator.files import replaced

DEFAULT_CLOCK_MHZ = 700.0

ARRAY_SIGNALS = (("clock", 1), ("load", 1), ("fold", 32), ("cycle", 64), ("fold_cycle", 32))
"""Name and width of the signals of the whole array; all are wires."""

_FAULT_FREE = "_fault_free"
_BLOCK_VALUES = 1 << 18
"""Values dealt with at a time, of all signals and some cycles."""

DEFAULT_LIMIT_BYTES = 256_000_000


class WaveformTooLargeError(WaveformError):
    """A waveform whose file might be larger than its limit."""


@dataclass(frozen=True)
class Waveform:
    """A waveform that was written.

    Attributes:
        size: bytes of the file.
        signals: signals in it.
        cycles: clock cycles it shows.
    """

    size: int
    signals: int
    cycles: int


def write_vcd(
    path: Path | str,
    traces: Iterable[tuple[Trace, Trace]],
    faults: FaultMap,
    *,
    cycles_per_fold: int,
    pes: Sequence[tuple[int, int]] | None = None,
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
    comment: str = "",
    progress: Callable[[int], None] | None = None,
) -> Waveform:
    """Write recorded registers as a value change dump; the head of this module says which value stands when.

    Args:
        path: the file to write; it appears whole or not at all.
        traces: (faulty, fault-free) traces of the same cycles of one GEMM, as `simulate_gemm(record=...)` gives them:
            int32 arrays [cycles, rows, cols]; more than one pair if they follow each other in time.
        faults: the faults of the faulty run; their stuck WEIGHT bits, which traces do not show, are in `weight_used`.
        cycles_per_fold: clock cycles of one fold in serial timing, `GemmResult.timing.cycles_per_fold`.
        pes: the PEs (row, col) to show; None for all.
        clock_mhz: clock frequency in MHz; timestamps are in femtoseconds.
        comment: text for the head of the file.
        progress: called with the number of cycles just written.

    Raises:
        ModuleNotFoundError: pyvcd is not installed.
        WaveformError: no traces, of different arrays or cycles, or with a gap between them; PEs outside the array; or a
            clock whose half period is less than a femtosecond or whose timestamps do not fit 63 bits.
        OSError: the file cannot be written.
    """
    chosen = check_pes(faults.config, pes)
    if cycles_per_fold < load_cycles(faults.config):
        raise WaveformError(
            f"cycles_per_fold is {cycles_per_fold}: expected at least the {faults.config.rows} load cycles"
        )
    with replaced(Path(path)) as beside:
        with beside.open("w", encoding="ascii", newline="\n") as file:
            blocks = _shown_values(traces, faults, chosen)
            signals, cycles = _dump(
                file,
                blocks,
                faults.config,
                chosen,
                cycles_per_fold,
                clock_mhz,
                comment,
                progress or (lambda done: None),
            )
        size = beside.stat().st_size
    return Waveform(size, signals, cycles)


def write_gemm_vcd(
    path: Path | str,
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    faults: FaultMap,
    window: FoldWindow,
    *,
    bypass: npt.ArrayLike | None = None,
    pes: Sequence[tuple[int, int]] | None = None,
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
    limit: int | None = DEFAULT_LIMIT_BYTES,
    comment: str = "",
    progress: Callable[[int], None] | None = None,
) -> Waveform:
    """Step one fold of `x @ w` with its faults and without, and write the waveform of both, in bounded memory.

    Args:
        path: the file to write; it appears whole or not at all.
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        faults: what is broken in the array.
        window: the fold and its cycles.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        pes: the PEs (row, col) to show; None for all.
        clock_mhz: clock frequency in MHz.
        limit: most bytes that the file may take; None for no limit. What counts is `vcd_size_bound`.
        comment: text for the head of the file.
        progress: called with the number of cycles just written.

    Raises:
        WaveformTooLargeError: the file might be larger than `limit`.
        WaveformError, InputError, ModuleNotFoundError, OSError: as `write_vcd` and `simulate_gemm`.
    """
    if window.config != faults.config:
        raise InputError(f"faults are of another array: they are of {faults.config}, expected {window.config}")
    bound = vcd_size_bound(faults, window.gemm_cycles, window.cycles_per_fold, pes, clock_mhz, comment)
    if limit is not None and bound > limit:
        raise WaveformTooLargeError(
            f"the waveform of {len(check_pes(window.config, pes)):,} PEs in {len(window):,} cycles may take up to "
            f"{size_text(bound)}, the limit is {size_text(limit)}: choose fewer PEs or cycles, or a higher limit"
        )
    faulty = record_fold(x, w, window, faults, bypass=bypass, pes=pes)
    fault_free = record_fold(x, w, window, pes=pes)
    return write_vcd(
        path,
        zip(faulty, fault_free, strict=True),
        faults,
        cycles_per_fold=window.cycles_per_fold,
        pes=pes,
        clock_mhz=clock_mhz,
        comment=comment,
        progress=progress,
    )


def _dump(
    file: Any,
    blocks: Iterable[tuple[int, Int32Array]],
    config: ArrayConfig,
    pes: Sequence[tuple[int, int]],
    cycles_per_fold: int,
    clock_mhz: float,
    comment: str,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Write what `_shown_values` gives; the numbers of signals and of cycles that were written."""
    from vcd import VCDWriter

    stop: int | None = None
    previous: Int32Array | None = None
    for first, values in blocks:
        half = _half_period(clock_mhz, first + len(values))
        if stop is None:
            start = stop = first
            # No date: equal runs give equal files.
            writer = VCDWriter(
                file,
                timescale="1 fs",
                date="",
                comment=_plain(comment),
                check_values=False,
                init_timestamp=first * 2 * half,
            )
            register, change = writer.register_var, writer.change
            of_array = [register("array", name, "wire", size=bits) for name, bits in ARRAY_SIGNALS]
            of_pes = [
                register(("array", f"pe_{row}_{col}"), name, kind, size=bits)
                for row, col in pes
                for name, kind, bits in _pe_signals(config)
            ]
            clock, load, fold, cycle_count, fold_cycle_count = of_array
        if first != stop:
            raise WaveformError(f"a trace begins in cycle {first}: expected {stop}, where the one before ends")
        changed = np.ones(values.shape, np.bool_)
        changed[1:] = values[1:] != values[:-1]
        if previous is not None:
            changed[0] = values[0] != previous
        previous = values[-1]
        entries, columns = np.nonzero(changed)
        bounds = np.searchsorted(entries, np.arange(len(values) + 1)).tolist()
        news, signals = values[entries, columns].tolist(), columns.tolist()
        for entry in range(len(values)):
            cycle = first + entry
            index, fold_cycle = divmod(cycle, cycles_per_fold)
            time = cycle * 2 * half
            change(clock, time, 1)
            change(load, time, int(fold_cycle < load_cycles(config)))
            change(fold, time, index)
            change(cycle_count, time, cycle)
            change(fold_cycle_count, time, fold_cycle)
            for place in range(bounds[entry], bounds[entry + 1]):
                change(of_pes[signals[place]], time, news[place])
            change(clock, time + half, 0)
        stop += len(values)
        progress(len(values))
    if stop is None:
        raise WaveformError("no cycles are recorded: expected at least one")
    writer.close(stop * 2 * half)
    return len(of_array) + len(of_pes), stop - start


def _plain(comment: str) -> str:
    """A text of one line that cannot end the comment it stands in, as `$end` would."""
    return "".join(mark if mark.isascii() and mark.isprintable() and mark != "$" else "?" for mark in comment)


def _pe_signals(config: ArrayConfig) -> list[tuple[str, str, int]]:
    """Name, type and width of a PE's signals, in the order of `_shown_values`."""
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


def _shown_values(
    traces: Iterable[tuple[Trace, Trace]], faults: FaultMap, pes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Int32Array]]:
    """What PEs show, some cycles at a time: the first, and int32 [cycles, PEs * signals], those of a PE together."""
    config = faults.config
    rows, cols = (np.array(axis, np.int64) for axis in zip(*pes, strict=True))
    keep, force = (masks[rows, cols].astype(np.int32) for masks in stuck_masks(faults, Site.WEIGHT, np.int16))
    signals = len(_pe_signals(config))
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


def _half_period(clock_mhz: float, stop: int) -> int:
    """Half a clock period in femtoseconds, checked for timestamps up to the beginning of cycle `stop`."""
    half = round(5e8 / clock_mhz) if clock_mhz > 0 else 0
    if half < 1 or stop * 2 * half >= 1 << 63:
        raise WaveformError(
            f"clock of {clock_mhz:g} MHz: expected a half period of at least a femtosecond, and cycle {stop} "
            "within 2^63 femtoseconds"
        )
    return half


def vcd_size_bound(
    faults: FaultMap,
    window: tuple[int, int],
    cycles_per_fold: int,
    pes: Sequence[tuple[int, int]] | None = None,
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
    comment: str = "",
) -> int:
    """Most bytes that `write_vcd` writes: every net of the datapath changes in every streaming cycle, in all its bits.

    `window` is clock cycles of the GEMM (first, one past the last); the rest is as for `write_vcd`.
    """
    config = faults.config
    chosen = check_pes(config, pes)
    first, stop = window
    cycles = stop - first
    end_of_time = stop * 2 * _half_period(clock_mhz, stop)
    first_fold, last_fold = first // cycles_per_fold, (stop - 1) // cycles_per_fold
    touched = last_fold - first_fold + 1
    # Load cycles before a cycle t: `rows` of each whole fold, and those of the fold begun.
    before = [t // cycles_per_fold * config.rows + min(t % cycles_per_fold, config.rows) for t in window]
    loading = before[1] - before[0]

    signals = _pe_signals(config)
    ident = _identifier_length(len(ARRAY_SIGNALS) + len(chosen) * len(signals))
    head = len("$comment \n$end\n$timescale 1 fs $end\n$enddefinitions $end\n$dumpvars\n$end\n") + len(comment)
    head += sum(len(f"$var wire {bits} {name}  $end\n") + ident for name, bits in ARRAY_SIGNALS)
    head += len("$scope module array $end\n$upscope $end\n")
    of_pe = sum(len(f"$var {kind} {bits} {name}  $end\n") + ident for name, kind, bits in signals)
    head += sum(len(f"$scope module pe_{row}_{col} $end\n$upscope $end\n") + of_pe for row, col in chosen)

    def vector(bits: int) -> int:
        return len("b \n") + bits + ident

    scalar = len("0\n") + ident
    counters = vector(stop.bit_length()) + vector(cycles_per_fold.bit_length())
    rare = (2 * touched + 1) * scalar + touched * vector(last_fold.bit_length() or 1)
    shared = cycles * (2 * (len("#\n") + len(str(end_of_time))) + 2 * scalar + counters) + rare
    shared += len("#\n") + len(str(end_of_time))

    # At the start of a fold all registers become 0; a weight stands from the end of loading on.
    streaming = cycles - loading + touched + 1
    weight_load, weight = loading + 1, 2 * touched + 1
    per_pe = 2 * weight_load * vector(config.weight_bits) + 4 * weight * vector(config.weight_bits)
    per_pe += 2 * streaming * sum(vector(bits) for bits in (config.act_bits, config.product_bits, config.acc_bits))
    per_pe += cycles * scalar
    upsets = int(((faults.table["site"] == Site.WEIGHT) & (faults.table["kind"] == Kind.FLIP)).sum())
    return head + shared + len(chosen) * per_pe + upsets * 2 * vector(config.weight_bits)


def size_text(size: int) -> str:
    """A size in bytes for a person, in decimal units, rounded up so that it never looks smaller than it is.

    >>> size_text(999), size_text(1000), size_text(256_000_000), size_text(256_000_001)
    ('999 bytes', '1.0 kB', '256.0 MB', '256.1 MB')
    """
    if size < 1000:
        return f"{size} bytes"
    unit, name = next((unit, name) for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if size >= unit)
    return f"{-(-size * 10 // unit) / 10:,.1f} {name}"


def _identifier_length(signals: int) -> int:
    """Characters of the longest identifier: they count up over 94 printable characters."""
    length = 1
    reach = total = 94
    while total < signals:
        reach *= 94
        total += reach
        length += 1
    return length
