"""What `efat cycles` shows: clock cycles, words and bytes per cycle of each layer, and the presets."""

from __future__ import annotations

from rich.console import Console

from efat.cli.render import ResultsTable, results_table
from simulator.arrays import PRESETS
from simulator.config import ArrayConfig
from simulator.cycles.counts import NetworkCount
from simulator.cycles.traffic import Traffic

MOST_LAYERS_SHOWN = 200


def show_counts(title: str, config: ArrayConfig, counts: NetworkCount, console: Console) -> None:
    """Print everything counted.

    Args:
        title: what the layers are.
        config: the array.
        counts: what was counted.
        console: where to.
    """
    console.print(_cycles_table(f"{title} on {config.rows}x{config.cols}: clock cycles", counts))
    console.print(_words_table(counts))
    console.print(_bandwidth_table(counts))
    if len(counts.layers) > MOST_LAYERS_SHOWN:
        console.print(
            f"The tables show the first {MOST_LAYERS_SHOWN} of {len(counts.layers):,} layers: --json has them all."
        )


def show_presets(console: Console) -> None:
    """Print the arrays known by name."""
    table = results_table("Arrays by name", left=["name", "size", "what it is", "source of the size"], right=[])
    for preset in PRESETS.values():
        table.add_row(preset.name, f"{preset.rows}x{preset.cols}", preset.what, preset.source)
    console.print(table)


def _cycles_table(title: str, counts: NetworkCount) -> ResultsTable:
    grouped = any(count.layer.groups > 1 for count in counts.layers)
    groups = ["groups"] if grouped else []
    headings = ["GEMM\nM x K x N", *groups, "folds", "cycles,\nSCALE-Sim", "serial", "double-\nbuffered"]
    table = results_table(title, left=["layer"], right=[*headings, "utilisation,\nserial", "double-\nbuffered"])
    for count in counts.layers[:MOST_LAYERS_SHOWN]:
        layer, timing = count.layer, count.timing
        table.add_row(
            layer.name,
            f"{layer.m} x {layer.k} x {layer.n}",
            *([f"{layer.groups:,}"] if grouped else []),
            f"{timing.folds:,}",
            f"{timing.scalesim:,}",
            f"{timing.serial:,}",
            f"{timing.double_buffered:,}",
            f"{timing.serial_utilisation:.1%}",
            f"{timing.double_buffered_utilisation:.1%}",
        )
    _end_of_layers(table, counts)
    table.add_row(
        "total",
        "",
        *([""] if grouped else []),
        f"{counts.folds:,}",
        f"{counts.scalesim:,}",
        f"{counts.serial:,}",
        f"{counts.double_buffered:,}",
        f"{counts.serial_utilisation:.1%}",
        f"{counts.double_buffered_utilisation:.1%}",
    )
    return table


def _words_table(counts: NetworkCount) -> ResultsTable:
    headings = ["ifmap\nreads", "filter\nreads", "ofmap\nreads", "ofmap\nwrites"]
    table = results_table("Words between the SRAMs and the array", left=["layer"], right=headings)
    for count in counts.layers[:MOST_LAYERS_SHOWN]:
        table.add_row(count.layer.name, *_words(count.traffic))
    _end_of_layers(table, counts)
    table.add_row("total", *_words(counts.traffic))
    return table


def _words(traffic: Traffic) -> list[str]:
    words = (traffic.ifmap.reads, traffic.filter.reads, traffic.ofmap.reads, traffic.ofmap.writes)
    return [f"{count:,}" for count in words]


def _bandwidth_table(counts: NetworkCount) -> ResultsTable:
    headings = [f"{sram}\n{kind}" for sram in ("ifmap", "filter", "ofmap", "all") for kind in ("average", "peak")]
    traffic = counts.traffic
    sizes = f"{traffic.ifmap.word_bytes}, {traffic.filter.word_bytes} and {traffic.ofmap.word_bytes} bytes a word"
    title = f"Bytes per serial clock cycle, with {sizes}"
    table = results_table(title, left=["layer"], right=headings)
    for count in counts.layers[:MOST_LAYERS_SHOWN]:
        table.add_row(count.layer.name, *_bandwidth(count.traffic))
    _end_of_layers(table, counts)
    table.add_row("total", *_bandwidth(traffic))
    return table


def _bandwidth(traffic: Traffic) -> list[str]:
    cells = []
    for part in (traffic.ifmap, traffic.filter, traffic.ofmap, traffic):
        cells += [f"{part.average_bytes_per_cycle:,.2f}", f"{part.peak_bytes_per_cycle:,}"]
    return cells


def _end_of_layers(table: ResultsTable, counts: NetworkCount) -> None:
    left = len(counts.layers) - MOST_LAYERS_SHOWN
    if left > 0:
        table.add_row(f"... {left:,} more")
    table.add_section()
