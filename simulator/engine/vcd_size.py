"""How large a waveform gets, before it is made."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.engine.vcd_signals import ARRAY_SIGNALS, DEFAULT_CLOCK_MHZ, check_pes, half_period, pe_signals
from simulator.faults import FaultMap, Kind, Site


def vcd_size_bound(
    faults: FaultMap,
    window: tuple[int, int],
    cycles_per_fold: int,
    pes: Sequence[tuple[int, int]] | None = None,
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
    comment: str = "",
) -> int:
    """Most bytes that `write_vcd` writes: every net of the datapath changes in every streaming cycle, in all its bits.

    Args:
        faults: what is broken in the array.
        window: clock cycles of the GEMM (first, one past the last).
        cycles_per_fold: clock cycles of one fold in serial timing.
        pes: the PEs (row, col); None for all.
        clock_mhz: clock frequency.
        comment: text in the head of the file.

    Raises:
        WaveformError: as `write_vcd`.
    """
    config = faults.config
    chosen = check_pes(config, pes)
    first, stop = window
    cycles = stop - first
    end_of_time = stop * 2 * half_period(clock_mhz, stop)
    first_fold, last_fold = first // cycles_per_fold, (stop - 1) // cycles_per_fold
    touched = last_fold - first_fold + 1
    # Load cycles before a cycle t: `rows` of each whole fold, and those of the fold begun.
    before = [t // cycles_per_fold * config.rows + min(t % cycles_per_fold, config.rows) for t in window]
    loading = before[1] - before[0]

    signals = pe_signals(config)
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
