"""The options of `efat simulate` for a waveform instead of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from efat.cli.options import fail, gathered
from efat.cli.parameters import INPUT_FILE, ByteSize, CycleWindow, PePosition

if TYPE_CHECKING:
    from efat import Simulation

DEFAULT_LIMIT = "256MB"


def _asked_for(**given: Any) -> dict[str, Any] | None:
    """The arguments of `efat.write_waveform`; None for no waveform."""
    asked = {name: value for name, value in given.items() if value is not None and value != ()}
    if "path" not in asked:
        for name in asked:
            option = {"pes": "pe", "limit": "vcd-limit"}.get(name, name)
            fail(f"--{option} says what a waveform shows: name the file to write it to with --vcd FILE")
        return None
    if "layer" not in asked:
        fail("--vcd needs a layer: choose one with --layer, by its name or its position from 0")
    return asked


waveform_options = gathered(
    "waveform",
    _asked_for,
    click.option(
        "--vcd",
        "path",
        type=INPUT_FILE,
        metavar="FILE",
        help="Write a waveform of one fold of one layer on one chip for GTKWave, and do nothing else.",
    ),
    click.option("--layer", metavar="L", help="Layer of the waveform: its name, or its position from 0."),
    click.option(
        "--fold", type=click.IntRange(min=0), metavar="F", help="Fold of the layer's GEMM, from 0.  [default: 0]"
    ),
    click.option(
        "--group", type=click.IntRange(min=0), metavar="G", help="Group of a grouped convolution.  [default: 0]"
    ),
    click.option(
        "--pe",
        "pes",
        multiple=True,
        type=PePosition(),
        help="Row and column of a PE to show; repeatable.  [default: all]",
    ),
    click.option(
        "--cycles",
        type=CycleWindow(),
        help="Clock cycles of the fold, B excluded; weights load in the first ones.  [default: the whole fold]",
    ),
    click.option(
        "--vcd-limit",
        "limit",
        type=ByteSize(),
        help=f"Largest waveform to write, such as 2GB.  [default: {DEFAULT_LIMIT}]",
    ),
)
"""Options for a waveform; the command gets them as `waveform`: what `efat.write_waveform` takes, or None."""


def write_waveform(simulation: Simulation, asked: dict[str, Any]) -> None:
    """Make the waveform, and say what is in the file."""
    import efat
    from efat.cli.render import show, stages_bar
    from simulator import WaveformTooLargeError

    try:
        with stages_bar() as progress:
            written = efat.write_waveform(simulation, **asked, progress=progress)
    except WaveformTooLargeError as error:
        fail(f"{error} (--pe R,C, --cycles A:B, --vcd-limit SIZE)")
    show(written)
