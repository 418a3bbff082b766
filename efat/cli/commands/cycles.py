"""`efat cycles`: clock cycles and memory traffic of a network's layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from efat.cli.options import ARRAY_HELP, NETWORKS, check_json, check_output, fail, input_errors, json_option, write_json
from efat.cli.parameters import ARRAY_PRESETS, INPUT_FILE, ArraySize, complete_networks
from efat.cli.printing import say

if TYPE_CHECKING:
    from rich.console import Console

    from efat.cli.render import ResultsTable
    from simulator.config import ArrayConfig
    from simulator.cycles.counts import NetworkCount
    from simulator.cycles.scalesim import GemmLayer, ScaleSimConfig
    from simulator.cycles.traffic import Traffic


class CountedArray(ArraySize):
    """An array as `ArraySize` takes it, as a `ScaleSimConfig` with everything that a `.cfg` says."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        size = super().convert(value, param, ctx)
        from simulator.cycles.scalesim import ScaleSimConfig, read_config

        try:
            if value.strip().lower() in ARRAY_PRESETS or re.fullmatch(r"\d+[xX]\d+", value.strip()):
                return ScaleSimConfig(*size)
            return read_config(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ImageSize(click.ParamType):  # type: ignore[type-arg]
    """Channels, height and width of an image, such as 3x32x32."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        found = re.fullmatch(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})[xX]([1-9]\d{0,5})", value.strip())
        if found is None:
            self.fail(f"{value!r}: expected channels x height x width of an image, such as 3x32x32", param, ctx)
        return tuple(map(int, found.groups()))


@click.command(
    epilog="""\b
Examples:
  efat cycles --array 32x32 --topology resnet18.csv
  efat cycles --config scale.cfg --topology vit.csv --gemm --json vit.json
  efat cycles --array tpu-v1 --network resnet18 --batch 64
  efat cycles --array 32x32 --network my_module:network --input 3x224x224
  efat cycles --list-presets

\b
A topology starts with a header; one layer follows on each line:
  Conv1, 224, 224, 7, 7, 3, 64, 2,
which is its name, height and width of the ifmap (padding included) and of a filter, channels, filters, stride. With
--gemm it is name, M, N, K, for M x K activations times K x N weights:
  Linear1, 196, 192, 384,
"""
)
@click.option("--array", type=CountedArray(), help=ARRAY_HELP)
@click.option("--config", type=INPUT_FILE, metavar="FILE", help="The array, from a SCALE-Sim .cfg.")
@click.option("--topology", type=INPUT_FILE, metavar="FILE", help="The layers, from a SCALE-Sim topology (CSV).")
@click.option("--gemm", is_flag=True, help="The topology lists GEMMs, not convolutions.")
@click.option(
    "--network",
    shell_complete=complete_networks,
    metavar="NAME",
    help=f"The layers of a network instead, {NETWORKS}: its code will run.",
)
@click.option(
    "--input", "image", type=ImageSize(), help="Channels, height and width of images.  [default: those of --network]"
)
@click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", help="Images per GEMM, with --network only.  [default: 1]"
)
@click.option("--weight-bits", type=int, default=8, show_default=True, help="Width of weights, 2..8.")
@click.option("--act-bits", type=int, default=8, show_default=True, help="Width of activations, 2..8.")
@click.option("--acc-bits", type=int, default=32, show_default=True, help="Width of partial sums, up to 32.")
@click.option(
    "--report",
    type=INPUT_FILE,
    metavar="FILE",
    default=Path("COMPUTE_REPORT.csv"),
    show_default=True,
    help="Report with the columns of SCALE-Sim's to write or replace.",
)
@json_option("everything")
@click.option("--list-presets", is_flag=True, help="Show the arrays that --array knows by name, and end.")
def cycles(
    array: ScaleSimConfig | None,
    config: Path | None,
    topology: Path | None,
    gemm: bool,
    network: str | None,
    image: tuple[int, int, int] | None,
    batch: int | None,
    weight_bits: int,
    act_bits: int,
    acc_bits: int,
    report: Path,
    json_path: Path | None,
    list_presets: bool,
) -> None:
    """Count clock cycles and memory traffic of a network's layers.

    Nothing is run on an array: all counts follow from the sizes. Cycles are given as SCALE-Sim 3.0.0 prints them, with
    one fold after the other (serial; what the cycle engine steps), and with weights loaded while the fold before
    streams (double-buffered). Reads, writes and bytes per cycle of the three SRAMs are those of serial timing. Memory
    behind them is not modelled: the array never waits.
    """
    if list_presets:
        _refuse_beside_presets()
        from efat.cli.render import console

        show_presets(console())
        return
    _check_choice(array, config, topology, gemm, network, image, batch)
    inputs = [path for path in (config, topology) if path is not None]
    check_output(report, inputs=inputs)
    check_json(json_path, inputs=inputs)
    if json_path is not None and json_path.resolve() == report.resolve():
        fail(f"{json_path} is named by --json and by --report: choose two names")
    from efat.cli.render import console, working
    from simulator import ArrayConfig
    from simulator.cycles.counts import count_network
    from simulator.cycles.scalesim import write_compute_report

    with input_errors():
        described = _described(array, config)
        machine = ArrayConfig(
            described.rows, described.cols, weight_bits=weight_bits, act_bits=act_bits, acc_bits=acc_bits
        )
        layers = (
            _topology_layers(topology, gemm) if topology is not None else _network_layers(network, batch or 1, image)
        )
    with working("Counting"):
        counts = count_network(machine, layers)
        write_compute_report(report, machine, layers, stalls=bool(described.stalls))
    if json_path is not None:
        found = {
            "array": machine.as_dict(),
            "run_name": described.run_name,
            "stalls_not_modelled": described.stalls or None,
            "layers": [count.as_dict() for count in counts.layers],
        }
        write_json(json_path, {**found, "total": counts.totals()})
    size = "" if image is None else f" of {'x'.join(map(str, image))}"
    source = str(topology) if topology is not None else f"{network}, {batch or 1} images{size}"
    name = f" ({described.run_name})" if described.run_name else ""
    show_counts(f"{source}{name}", machine, counts, console())
    if described.stalls:
        say(
            f"With {described.stalls} SCALE-Sim has the array wait for its memories. That is not\n"
            "modelled: all cycles are without stalls, and the report leaves total cycles, stall\n"
            "cycles and overall utilisation empty."
        )
    if network is not None:
        say("Counted are Conv2d and Linear layers: nothing else of a network runs on the array.")
    say(f"Wrote {report}")


def _refuse_beside_presets() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name != "list_presets" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            fail(
                f"{parameter.opts[0]} has no effect beside --list-presets, which counts nothing: leave one of them out"
            )


def _check_choice(
    array: ScaleSimConfig | None,
    config: Path | None,
    topology: Path | None,
    gemm: bool,
    network: str | None,
    image: tuple[int, int, int] | None,
    batch: int | None,
) -> None:
    if array is None and config is None:
        fail("no array: give its size with --array 32x32 (or a preset), or a SCALE-Sim .cfg with --config")
    if topology is None and network is None:
        fail("no layers: give a SCALE-Sim topology with --topology, or a network with --network")
    if topology is not None and network is not None:
        fail("--topology and --network are both given: choose one")
    if gemm and topology is None:
        fail("--gemm is given without --topology: it says how to read that")
    if image is not None and network is None:
        fail("--input is given without --network: a topology has the sizes of its images")
    if batch is not None and network is None:
        fail("--batch is given without --network: the sizes in a topology are those of all images together")


def _described(given: ScaleSimConfig | None, path: Path | None) -> ScaleSimConfig:
    """The array of `--array` or `--config`, which may both be given if they agree."""
    from simulator.cycles.scalesim import read_config

    if path is None:
        assert given is not None
        return given
    found = read_config(path)
    if given is not None and (given.rows, given.cols) != (found.rows, found.cols):
        size = f"{given.rows}x{given.cols}"
        fail(f"--array gives {size} and {path} gives {found.rows}x{found.cols}: leave one of them out")
    return found


def _topology_layers(path: Path, gemm: bool) -> list[GemmLayer]:
    from simulator.cycles.scalesim import TopologyKindError, read_conv_topology, read_gemm_topology

    try:
        return read_gemm_topology(path) if gemm else [layer.gemm() for layer in read_conv_topology(path)]
    except TopologyKindError as error:
        fail(f"{error}; {'leave out' if gemm else 'add'} --gemm")


def _network_layers(name: str | None, batch: int, image: tuple[int, int, int] | None) -> list[GemmLayer]:

    from efat.cli.render import working

    assert name is not None
    with working("Loading"):
        from efat.network_gemms import network_gemms

        return network_gemms(name, batch, image)


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
    from efat.cli.render import results_table
    from simulator.arrays import PRESETS

    table = results_table("Arrays by name", left=["name", "size", "what it is", "source of the size"], right=[])
    for preset in PRESETS.values():
        table.add_row(preset.name, f"{preset.rows}x{preset.cols}", preset.what, preset.source)
    console.print(table)


def _cycles_table(title: str, counts: NetworkCount) -> ResultsTable:
    from efat.cli.render import results_table

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
    from efat.cli.render import results_table

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
    from efat.cli.render import results_table

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
