"""Waveforms: what a GEMM's PEs hold, cycle by cycle, as a value change dump (VCD, IEEE 1364) for GTKWave and the like.

`simulator.engine.vcd_signals` says which signals there are and when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.bits import Int32Array
from simulator.config import ArrayConfig
from simulator.engine.fold_trace import FoldWindow, record_fold
from simulator.engine.timing import load_cycles
from simulator.engine.trace import Trace
from simulator.engine.vcd_signals import (
    ARRAY_SIGNALS,
    DEFAULT_CLOCK_MHZ,
    WaveformError,
    check_pes,
    half_period,
    pe_signals,
    shown_values,
)
from simulator.engine.vcd_size import size_text, vcd_size_bound
from simulator.errors import InputError
from simulator.faults import FaultMap
from simulator.files import replaced

if TYPE_CHECKING:
    from vcd.writer import Variable, VCDWriter

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
    """Write recorded registers as a value change dump; `simulator.engine.vcd_signals` says which value stands when.

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
        WaveformError: no traces, traces of different arrays or cycles or with a gap between them, PEs outside the
            array, or a clock frequency whose half period is less than a femtosecond or whose timestamps do not fit
            63 bits.
        OSError: the file cannot be written.
    """
    config = faults.config
    chosen = check_pes(config, pes)
    if cycles_per_fold < load_cycles(config):
        raise WaveformError(f"cycles_per_fold is {cycles_per_fold}: expected at least the {config.rows} load cycles")
    with replaced(Path(path)) as beside:
        with beside.open("w", encoding="ascii", newline="\n") as file:
            dump = None
            for first, values in shown_values(traces, faults, chosen):
                if dump is None:
                    dump = _Dump(file, config, chosen, first, cycles_per_fold, clock_mhz, comment)
                dump.write(first, values)
                if progress is not None:
                    progress(len(values))
            if dump is None:
                raise WaveformError("no cycles are recorded: expected at least one")
            dump.close()
        size = beside.stat().st_size
    return Waveform(size, dump.signals, dump.cycles)


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
        WaveformError, InputError, TypeError, ModuleNotFoundError, OSError: as `write_vcd` and `simulate_gemm`.
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


class _Dump:
    """A value change dump being written."""

    def __init__(
        self,
        file: Any,
        config: ArrayConfig,
        pes: Sequence[tuple[int, int]],
        first: int,
        cycles_per_fold: int,
        clock_mhz: float,
        comment: str,
    ) -> None:
        from vcd import VCDWriter

        self._half = half_period(clock_mhz, first)
        self._clock_mhz = clock_mhz
        self._cycles_per_fold = cycles_per_fold
        self._load_cycles = load_cycles(config)
        self._writer: VCDWriter = VCDWriter(
            file,
            timescale="1 fs",
            # No date: equal runs give equal files.
            date="",
            comment=_plain(comment),
            check_values=False,
            init_timestamp=first * 2 * self._half,
        )
        register = self._writer.register_var
        self._array = [register("array", name, "wire", size=bits) for name, bits in ARRAY_SIGNALS]
        signals = pe_signals(config)
        self._of_pes: list[Variable[Any]] = [
            register(("array", f"pe_{row}_{col}"), name, kind, size=bits)
            for row, col in pes
            for name, kind, bits in signals
        ]
        self.signals = len(self._array) + len(self._of_pes)
        self.cycles = 0
        self._first = first
        self._previous: Int32Array | None = None

    def write(self, first: int, values: Int32Array) -> None:
        """Write cycles from `first` on; `values` is int32 [cycles, PEs * signals]."""
        half_period(self._clock_mhz, first + len(values))
        expected = self._first + self.cycles
        if first != expected:
            raise WaveformError(f"a trace begins in cycle {first}: expected {expected}, where the one before ends")
        self.cycles += len(values)
        changed = np.ones(values.shape, np.bool_)
        changed[1:] = values[1:] != values[:-1]
        if self._previous is not None:
            changed[0] = values[0] != self._previous
        self._previous = values[-1]
        entries, columns = np.nonzero(changed)
        bounds = np.searchsorted(entries, np.arange(len(values) + 1)).tolist()
        news, signals = values[entries, columns].tolist(), columns.tolist()
        change, of_pes = self._writer.change, self._of_pes
        clock, load, fold, cycle_count, fold_cycle_count = self._array
        for entry in range(len(values)):
            cycle = first + entry
            index, fold_cycle = divmod(cycle, self._cycles_per_fold)
            time = cycle * 2 * self._half
            change(clock, time, 1)
            change(load, time, int(fold_cycle < self._load_cycles))
            change(fold, time, index)
            change(cycle_count, time, cycle)
            change(fold_cycle_count, time, fold_cycle)
            for place in range(bounds[entry], bounds[entry + 1]):
                change(of_pes[signals[place]], time, news[place])
            change(clock, time + self._half, 0)

    def close(self) -> None:
        """End the file with the end of the last cycle."""
        self._writer.close((self._first + self.cycles) * 2 * self._half)


def _plain(comment: str) -> str:
    """A text of one line that cannot end the comment it stands in, as `$end` would."""
    return "".join(mark if mark.isascii() and mark.isprintable() and mark != "$" else "?" for mark in comment)
