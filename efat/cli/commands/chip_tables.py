"""What `efat chips show` prints: a lot as a table, one chip as a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from efat.cli.printing import printable
from efat.cli.render import ResultsTable, counted, results_table
from simulator import Site
from simulator.lots.chips import Chip, ChipLot
from simulator.multipliers.signs import Signs, error_note

MOST_CHIPS_SHOWN = 40
MOST_FAULTS_LISTED = 24
WIDEST_MAP = 64
TALLEST_MAP = 32

_SITE_STYLES = {
    Site.WEIGHT: "blue",
    Site.WEIGHT_LOAD: "cyan",
    Site.ACTIVATION: "yellow",
    Site.PRODUCT: "green",
    Site.PSUM: "red",
    Site.MULTIPLIER: "bright_green",
    Site.ACCUMULATOR: "magenta",
}
_SITE_LETTERS = {
    Site.WEIGHT: "W",
    Site.WEIGHT_LOAD: "L",
    Site.ACTIVATION: "A",
    Site.PRODUCT: "P",
    Site.PSUM: "S",
    Site.MULTIPLIER: "M",
    Site.ACCUMULATOR: "C",
}


def chip_dict(chip: Chip) -> dict[str, Any]:
    """A chip's summary, as JSON takes it."""
    return {
        "chip": chip.id,
        **chip.faults.summary(),
        "bypassed_by_fuses": chip.bypassed_by_fuses,
        "digest": chip.digest(),
    }


def show_lot(lot: ChipLot, console: Console, progress: Callable[[int], None]) -> None:
    """Print a row for each chip (the first ones of a long lot), and the lot's totals; `progress` counts chips."""
    config = lot.config
    sign = "signed" if config.act_signed else "unsigned"
    source = lot.provenance.get("source", "unknown source")
    table = results_table(
        f"{len(lot)} chips of {config.rows}x{config.cols} PEs: {config.weight_bits}-bit weights, "
        f"{config.act_bits}-bit {sign} activations, {config.acc_bits}-bit sums, "
        f"multiplier {config.multiplier if isinstance(config.multiplier, str) else config.multiplier.name}; {source}",
        left=["chip"],
        right=["faults", "faulty\nPEs", "rate", "must\nbypass", "fused\nPEs", "unusable\ncolumns", "digest"],
    )
    rates, bypasses, fused = [], [], []
    for position, chip in enumerate(counted(lot, progress)):
        summary = chip.faults.summary()
        rates.append(summary["fault_rate"])
        bypasses.append(summary["required_bypass_rate"])
        fused.append(chip.bypassed_by_fuses)
        if position < MOST_CHIPS_SHOWN:
            table.add_row(
                chip.id,
                str(summary["faults"]),
                str(summary["faulty_pes"]),
                f"{summary['fault_rate']:.2%}",
                str(summary["required_bypass"]),
                str(chip.bypassed_by_fuses),
                str(summary["unusable_columns"]),
                chip.digest()[:12],
            )
    if len(lot) > MOST_CHIPS_SHOWN:
        table.add_note(f"... and {len(lot) - MOST_CHIPS_SHOWN:,} more: --json has them all")
    console.print(table)
    multiplier = config.multiplier
    if not isinstance(multiplier, str):
        note = error_note(multiplier.products, Signs(True, config.act_signed))
        console.print(f"Multiplier {printable(multiplier.name)}: {note}.")
    if rates:
        console.print(
            f"Faulty PEs per chip: {min(rates):.2%} to {max(rates):.2%}, mean {np.mean(rates):.2%}. "
            f"PEs that must be bypassed: {min(bypasses):.2%} to {max(bypasses):.2%}, mean {np.mean(bypasses):.2%}."
        )
    if any(fused):
        console.print(
            f"Fused PEs, which a chip's fuses bypass: {min(fused)} to {max(fused)} per chip, "
            f"in {np.count_nonzero(fused)} of {len(fused)} chips."
        )


def show_chip(chip: Chip, console: Console) -> None:
    """Print a chip's fault map, a legend, and its faults if they are few."""
    config = chip.faults.config
    summary = chip.faults.summary()
    console.print(
        Text(printable(chip.id), style="bold"),
        f": {summary['faults']} faults on {summary['faulty_pes']} of {config.pe_count} PEs "
        f"({summary['fault_rate']:.2%}); {summary['required_bypass']} PEs must be bypassed "
        f"({summary['required_bypass_rate']:.1%}); {summary['unusable_columns']} unusable columns"
        + (f"; fuses bypass {chip.bypassed_by_fuses} PEs" if chip.bypassed_by_fuses else ""),
        sep="",
    )
    for line in _map_lines(chip):
        console.print(line, no_wrap=True, overflow="crop")
    legend = Text("  ")
    for site, letter in _SITE_LETTERS.items():
        if summary["by_site"][site.name]:
            legend.append(f"{letter} ", style=f"bold {_SITE_STYLES[site]}")
            legend.append(f"{site.name.lower()} {summary['by_site'][site.name]}   ")
    legend.append("+ ", style="bold")
    legend.append("several   ")
    legend.append("\N{MIDDLE DOT} must be bypassed", style="dim")
    if chip.bypass is not None and chip.bypassed_by_fuses:
        alone = int((chip.bypass & ~chip.faults.faulty_pes()).sum())
        legend.append("   x ", style="bold")
        legend.append(f"bypassed by fuses without a fault of its own {alone}")
    console.print(legend)
    if 0 < len(chip.faults) <= MOST_FAULTS_LISTED:
        console.print(_fault_table(chip))


def _map_lines(chip: Chip) -> list[Text]:
    """The map, a character for one PE or, on large arrays, for a block of PEs."""
    config = chip.faults.config
    down = -(-config.rows // TALLEST_MAP)
    across = -(-config.cols // WIDEST_MAP)
    shape = (-(-config.rows // down), -(-config.cols // across))
    table = chip.faults.table[chip.faults.table["site"] != Site.ACCUMULATOR]
    sites: npt.NDArray[np.int64] = np.zeros(shape, np.int64)
    np.bitwise_or.at(
        sites, (table["row"] // down, table["col"] // across), np.int64(1) << table["site"].astype(np.int64)
    )
    required, fused = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for marks, mask in ((required, chip.faults.required_bypass()), (fused, chip.bypass)):
        if mask is not None:
            rows, cols = np.nonzero(mask)
            marks[rows // down, cols // across] = True
    single = {1 << site: site for site in Site}
    unusable = set((chip.faults.unusable_columns() // across).tolist())
    # On small arrays two characters for a PE come out about square.
    width = 2 if config.cols * 2 <= WIDEST_MAP else 1
    scale = f", a character for {down}x{across} PEs" if down * across > 1 else ""
    lines = [Text(f"  columns 0 to {config.cols - 1}{scale}", style="dim")]
    edge = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (shape[1] * width)
    side = "\N{BOX DRAWINGS LIGHT VERTICAL}"
    top = f"\N{BOX DRAWINGS LIGHT DOWN AND RIGHT}{edge}\N{BOX DRAWINGS LIGHT DOWN AND LEFT}"
    bottom = f"\N{BOX DRAWINGS LIGHT UP AND RIGHT}{edge}\N{BOX DRAWINGS LIGHT UP AND LEFT}"
    lines.append(Text(f"  {top}", style="dim"))
    for row in range(shape[0]):
        line = Text("  ")
        line.append(side, style="dim")
        for col in range(shape[1]):
            code = int(sites[row, col])
            if code in single:
                line.append(_SITE_LETTERS[single[code]].ljust(width), style=f"bold {_SITE_STYLES[single[code]]}")
            elif code:
                line.append("+".ljust(width), style="bold")
            elif fused[row, col]:
                line.append("x".ljust(width), style="bold")
            else:
                line.append(("\N{MIDDLE DOT}" if required[row, col] else " ").ljust(width), style="dim")
        line.append(f"{side} row {row * down}" if row % 4 == 0 else side, style="dim")
        lines.append(line)
    lines.append(Text(f"  {bottom}", style="dim"))
    if unusable:
        below = Text("   ")
        for col in range(shape[1]):
            below.append(("C" if col in unusable else " ").ljust(width), style=f"bold {_SITE_STYLES[Site.ACCUMULATOR]}")
        below.append(" accumulators", style="dim")
        lines.append(below)
    return lines


def _fault_table(chip: Chip) -> ResultsTable:
    table = results_table("", left=["site", "kind"], right=["row", "column", "bit", "cycle"])
    for fault in chip.faults:
        cycle = "" if fault.cycle is None else str(fault.cycle)
        table.add_row(fault.site.name, fault.kind.name, str(fault.row), str(fault.col), str(fault.bit), cycle)
    return table
