"""`efat cycles`: clock cycles and memory traffic of a network's layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from efat.cli.options import ARRAY_HELP, NETWORKS, check_json, check_output, fail, json_option, write_json
from efat.cli.parameters import ARRAY_PRESETS, INPUT_FILE, ArraySize, complete_networks
from efat.cli.printing import say

if TYPE_CHECKING:
    from simulator import ScaleSimConfig


class CountedArray(ArraySize):
    """An array as `ArraySize` takes it, as a `ScaleSimConfig` with everything that a `.cfg` says."""

    def _parse(self, value: str) -> Any:
        size = super()._parse(value)
        from simulator import ScaleSimConfig, read_scalesim_config

        written_out = value.strip().lower() in ARRAY_PRESETS or re.fullmatch(r"\d+[xX]\d+", value.strip())
        return ScaleSimConfig(*size) if written_out else read_scalesim_config(value)


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
        _show_presets()
        return
    _check_choice(array, config, topology, gemm, network, image, batch)
    inputs = [path for path in (config, topology) if path is not None]
    check_output(report, inputs=inputs)
    check_json(json_path, inputs=inputs)
    if json_path is not None and json_path.resolve() == report.resolve():
        fail(f"{json_path} is named by --json and by --report: choose two names")
    import efat
    from efat.cli.render import show, working
    from simulator import ArrayConfig, TopologyKindError

    size = _described(array, config)
    machine = ArrayConfig(size.rows, size.cols, weight_bits=weight_bits, act_bits=act_bits, acc_bits=acc_bits)
    try:
        with working("Counting"):
            found = efat.count_cycles(
                network or topology or "", machine, batch=batch or 1, image=image, gemm=gemm, scalesim=size
            )
            found.write_report(report)
    except TopologyKindError as error:
        fail(f"{error}; {'leave out' if gemm else 'add'} --gemm")
    if json_path is not None:
        write_json(json_path, found.as_dict())
    show(found)
    say(f"Wrote {report}")


def _show_presets() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name != "list_presets" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            fail(
                f"{parameter.opts[0]} has no effect beside --list-presets, which counts nothing: leave one of them out"
            )
    from efat.cli.render import console, results_table
    from simulator import PRESETS

    table = results_table("Arrays by name", left=["name", "size", "what it is", "source of the size"], right=[])
    for preset in PRESETS.values():
        table.add_row(preset.name, f"{preset.rows}x{preset.cols}", preset.what, preset.source)
    console().print(table)


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
    from simulator import read_scalesim_config

    if path is None:
        assert given is not None
        return given
    found = read_scalesim_config(path)
    if given is not None and (given.rows, given.cols) != (found.rows, found.cols):
        size = f"{given.rows}x{given.cols}"
        fail(f"--array gives {size} and {path} gives {found.rows}x{found.cols}: leave one of them out")
    return found
