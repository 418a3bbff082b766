"""`efat chips`: make, show, import and export lots of faulty chips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.machine_options import ArrayRequest, FaultRequest, array_options, fault_options
from efat.cli.options import check_json, check_output, fail, force_option, json_option, output_option, write_json
from efat.cli.parameters import INPUT_FILE, RateRange, complete_chips
from efat.cli.printing import json_is_alone, printable, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from efat.cli.render import ResultsTable
    from simulator import Chip
    from simulator.dtypes import Int64Array

MOST_CHIPS = 1_000_000


@click.group()
def chips() -> None:
    """Make, show, import and export lots of faulty chips."""


@chips.command(
    epilog="""\b
Examples:
  efat chips generate --array 64x64 --count 100 --fault-rate 0.01 -o lot.h5
  efat chips generate --array 64x64 --count 100 --fault-rate 0.001:0.05 --pattern clustered -o lot.h5
  efat chips generate --array 64x64 --count 10 --fault-rate 0.01 --site psum=3 --site weight --kind stuck-at-1 -o lot.h5
  efat chips generate --array 8x8 --count 10 --fault-rate 0.01 --multiplier wallace --site multiplier -o lot.h5
  efat chips generate --array 8x8 --count 10 --fault-rate 0.01 --faulty-multiplier mul8s.h --site multiplier -o lot.h5
"""
)
@array_options()
@click.option("--count", required=True, type=click.IntRange(1, MOST_CHIPS), metavar="N", help="Number of chips.")
@click.option(
    "--fault-rate",
    required=True,
    type=RateRange(),
    help="Fraction of PEs that have a fault; from a range each chip's is drawn, evenly on a logarithmic scale "
    "(on a linear one if the range starts at 0).",
)
@fault_options()
@click.option("--cycles", type=click.IntRange(min=1), help="Clock cycles that flips are drawn from (--kind flip only).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed; each chip has its own.")
@output_option("Lot to write (HDF5).")
@force_option
def generate(
    described: ArrayRequest,
    count: int,
    fault_rate: tuple[float, float],
    described_faults: FaultRequest,
    cycles: int | None,
    seed: int,
    output: Path,
    force: bool,
) -> None:
    """Make a lot of chips with random faults.

    The same options and seed give the same lot, and chip number i is the same in lots of any size.
    """
    check_output(output, force=force)
    from efat import Lot
    from efat.cli.render import progress_bar

    config = described.config()
    described_faults.check_multiplier(config, described.faulty_multipliers)
    if cycles is not None and not any(name == "FLIP" and weight > 0 for name, weight in described_faults.kinds):
        fail("--cycles has no effect: only flips happen in a clock cycle; add --kind flip, or leave it out")
    model = described_faults.model(fault_rate, cycles)
    with progress_bar("chips", count) as progress:
        Lot.generate(output, config, model, count=count, seed=seed, progress=progress)
    say(f"Wrote {count} chips of {config.rows}x{config.cols} PEs to {output}")


@chips.command(
    epilog="""\b
Examples:
  efat chips show lot.h5
  efat chips show lot.h5 --chip chip-0003 --png chip-0003.png
"""
)
@click.argument("lot", type=INPUT_FILE)
@click.option(
    "--chip",
    "chip_id",
    shell_complete=complete_chips,
    metavar="ID",
    help="Show this chip's fault map instead of the whole lot.",
)
@click.option("--png", type=INPUT_FILE, metavar="FILE", help="Draw the chip's fault map into this file.")
@json_option("what is shown")
def show(lot: Path, chip_id: str | None, png: Path | None, json_path: Path | None) -> None:
    """Show a LOT of chips as a table, or one chip's fault map as a picture."""
    if png is not None:
        if chip_id is None:
            fail("--png draws one chip: name it with --chip ID")
        check_output(png, inputs=[lot])
    check_json(json_path, inputs=[lot])
    import efat
    from efat.cli.render import console, progress_bar, show

    opened = efat.Lot(lot)
    if chip_id is None:
        if json_path is not None:
            with progress_bar("chips", len(opened)) as progress:
                content = opened.as_dict(progress=progress)
            write_json(json_path, content)
        if not json_is_alone():
            with progress_bar("chips", len(opened)) as progress:
                parts = list(opened.parts(progress=progress))
            show(parts)
        return
    chip = opened[chip_id]
    if json_path is not None:
        write_json(json_path, chip.as_dict())
    _show_chip(chip, console())
    if png is not None:
        efat.draw_fault_map(chip, png)
        say(f"Wrote {png}")


@chips.command(
    name="import",
    epilog="""\b
Example:
  efat chips import faults.csv --array 64x64 -o lot.h5

\b
The file starts with the line chip,row,col,site,bit,kind,cycle; one fault follows on each line:
  chip-07,12,3,PSUM,20,STUCK_AT_1,
cycle is empty except for FLIP. A PE that the chip's fuses bypass is a line with the site BYPASS:
  chip-07,12,3,BYPASS,,,
A chip with neither is a line with its id and six commas.
""",
)
@click.argument("faults", type=INPUT_FILE)
@array_options()
@output_option("Lot to write (HDF5).")
@force_option
def import_(
    faults: Path,
    described: ArrayRequest,
    output: Path,
    force: bool,
) -> None:
    """Make a lot from a tester's list of FAULTS and bypassed PEs (CSV)."""
    check_output(output, force=force, inputs=[faults])
    from efat import Lot
    from simulator import Site, read_fault_list

    config = described.config()
    found = read_fault_list(faults, config)
    if described.faulty_multipliers and not any((chip.faults.table["site"] == Site.MULTIPLIER).any() for chip in found):
        fail(f"--faulty-multiplier has no effect: {faults} has no MULTIPLIER faults; leave it out")
    Lot.write(output, config, found, provenance=f"imported from {faults.name}")
    total, fused = sum(len(chip.faults) for chip in found), sum(chip.bypassed_by_fuses for chip in found)
    say(f"Wrote {len(found)} chips with {_faults(total)}{_and_bypassed(fused)} to {output}")


@chips.command(
    epilog="""\b
Example:
  efat chips export lot.h5 -o faults.csv
"""
)
@click.argument("lot", type=INPUT_FILE)
@output_option("File to write (CSV).")
@force_option
def export(lot: Path, output: Path, force: bool) -> None:
    """Write the faults of a LOT as CSV, a line for each fault and for each PE that fuses bypass."""
    check_output(output, force=force, inputs=[lot])
    from efat import Lot
    from efat.cli.render import progress_bar

    opened = Lot(lot)
    with progress_bar("chips", len(opened)) as progress:
        written = opened.write_csv(output, progress=progress)
    say(f"Wrote {_faults(written.faults)}{_and_bypassed(written.bypassed)} to {output}")


def _faults(count: int) -> str:
    return f"{count} {'fault' if count == 1 else 'faults'}"


def _and_bypassed(pes: int) -> str:
    return f" and {pes} {'PE' if pes == 1 else 'PEs'} bypassed by fuses" if pes else ""


MOST_FAULTS_LISTED = 24
WIDEST_MAP = 64
TALLEST_MAP = 32

_SITES = {
    "WEIGHT": ("W", "blue"),
    "WEIGHT_LOAD": ("L", "cyan"),
    "ACTIVATION": ("A", "yellow"),
    "PRODUCT": ("P", "green"),
    "PSUM": ("S", "red"),
    "MULTIPLIER": ("M", "bright_green"),
    "ACCUMULATOR": ("C", "magenta"),
}
"""Letter and colour of each site in a map."""


def _show_chip(chip: Chip, console: Console) -> None:
    """Print a chip's fault map, a legend, and its faults if they are few."""
    from rich.text import Text

    config = chip.faults.config
    summary = chip.faults.summary()
    console.print(
        Text(printable(chip.id), style="bold"),
        f": {summary.faults} faults on {summary.faulty_pes} of {config.pe_count} PEs "
        f"({summary.fault_rate:.2%}); {summary.required_bypass} PEs must be bypassed "
        f"({summary.required_bypass_rate:.1%}); {summary.unusable_columns} unusable columns"
        + (f"; fuses bypass {chip.bypassed_by_fuses} PEs" if chip.bypassed_by_fuses else ""),
        sep="",
    )
    for line in _map_lines(chip):
        console.print(line, no_wrap=True, overflow="crop")
    legend = Text("  ")
    for site, (letter, colour) in _SITES.items():
        if summary.by_site[site]:
            legend.append(f"{letter} ", style=f"bold {colour}")
            legend.append(f"{site.lower()} {summary.by_site[site]}   ")
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
    import numpy as np
    from rich.text import Text

    from simulator import Site

    config = chip.faults.config
    down = -(-config.rows // TALLEST_MAP)
    across = -(-config.cols // WIDEST_MAP)
    shape = (-(-config.rows // down), -(-config.cols // across))
    table = chip.faults.table[chip.faults.table["site"] != Site.ACCUMULATOR]
    sites: Int64Array = np.zeros(shape, np.int64)
    np.bitwise_or.at(
        sites, (table["row"] // down, table["col"] // across), np.int64(1) << table["site"].astype(np.int64)
    )
    required, fused = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for marks, mask in ((required, chip.faults.required_bypass()), (fused, chip.bypass)):
        if mask is not None:
            rows, cols = np.nonzero(mask)
            marks[rows // down, cols // across] = True
    single = {1 << site: _SITES[site.name] for site in Site}
    unusable = set((chip.faults.unusable_columns() // across).tolist())
    # On small arrays two characters for a PE come out about square.
    width = 2 if config.cols * 2 <= WIDEST_MAP else 1
    scale = f", a character for {down}x{across} PEs" if down * across > 1 else ""
    lines = [Text(f"  columns 0 to {config.cols - 1}{scale}", style="dim")]
    edge, side = "─" * (shape[1] * width), "│"
    lines.append(Text(f"  ┌{edge}┐", style="dim"))
    for row in range(shape[0]):
        line = Text("  ")
        line.append(side, style="dim")
        for col in range(shape[1]):
            code = int(sites[row, col])
            if code in single:
                letter, colour = single[code]
                line.append(letter.ljust(width), style=f"bold {colour}")
            elif code:
                line.append("+".ljust(width), style="bold")
            elif fused[row, col]:
                line.append("x".ljust(width), style="bold")
            else:
                line.append(("\N{MIDDLE DOT}" if required[row, col] else " ").ljust(width), style="dim")
        line.append(f"{side} row {row * down}" if row % 4 == 0 else side, style="dim")
        lines.append(line)
    lines.append(Text(f"  └{edge}┘", style="dim"))
    if unusable:
        below = Text("   ")
        for col in range(shape[1]):
            below.append(("C" if col in unusable else " ").ljust(width), style=f"bold {_SITES['ACCUMULATOR'][1]}")
        below.append(" accumulators", style="dim")
        lines.append(below)
    return lines


def _fault_table(chip: Chip) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table("", left=["site", "kind"], right=["row", "column", "bit", "cycle"])
    for fault in chip.faults:
        cycle = "" if fault.cycle is None else str(fault.cycle)
        table.add_row(fault.site.name, fault.kind.name, str(fault.row), str(fault.col), str(fault.bit), cycle)
    return table
