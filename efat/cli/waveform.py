"""The options of `efat simulate` for a waveform instead of a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import fail, gathered
from efat.cli.parameters import INPUT_FILE, ByteSize, CycleWindow, PePosition
from efat.cli.printing import say

if TYPE_CHECKING:
    from efat import Simulation

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_LIMIT = "256MB"


@dataclass(frozen=True)
class WaveformRequest:
    """The waveform that a user asks for.

    Attributes:
        path: the file to write.
        layer: name or position of the layer.
        fold: fold of its GEMM.
        group: group of a grouped convolution.
        pes: PEs (row, col); empty for all.
        cycles: first cycle of the fold and one past the last; None for the fold's own.
        limit: most bytes.
    """

    path: Path
    layer: str
    fold: int
    group: int
    pes: tuple[tuple[int, int], ...]
    cycles: tuple[int | None, int | None]
    limit: int


def _waveform_request(
    *,
    vcd_path: Path | None,
    layer: str | None,
    fold: int | None,
    group: int | None,
    pes: tuple[tuple[int, int], ...],
    cycles: tuple[int | None, int | None] | None,
    vcd_limit: int | None,
) -> WaveformRequest | None:
    if vcd_path is None:
        given = {
            "--layer": layer is not None,
            "--fold": fold is not None,
            "--group": group is not None,
            "--pe": bool(pes),
            "--cycles": cycles is not None,
            "--vcd-limit": vcd_limit is not None,
        }
        for name in (name for name, is_given in given.items() if is_given):
            fail(f"{name} says what a waveform shows: name the file to write it to with --vcd FILE")
        return None
    if layer is None:
        fail("--vcd needs a layer: choose one with --layer, by its name or its position from 0")
    limit = ByteSize().convert(DEFAULT_LIMIT, None, None) if vcd_limit is None else vcd_limit
    return WaveformRequest(vcd_path, layer, fold or 0, group or 0, pes, cycles or (None, None), limit)


waveform_options = gathered(
    "waveform",
    _waveform_request,
    click.option(
        "--vcd",
        "vcd_path",
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
        "--vcd-limit", type=ByteSize(), help=f"Largest waveform to write, such as 2GB.  [default: {DEFAULT_LIMIT}]"
    ),
)
"""Options for a waveform; the command gets them as one argument `waveform`, a `WaveformRequest` or None."""


def write_waveform(request: WaveformRequest, simulation: Simulation, clock_mhz: float) -> None:
    """Make the waveform, and say what is in the file."""
    from efat.cli.render import progress_bar, working
    from efat.inference.waveforms import layer_gemm, only_chip
    from simulator.engine.fold_trace import FoldWindow, WaveformError, WindowError, check_pes
    from simulator.engine.vcd import WaveformTooLargeError, size_text, write_gemm_vcd

    chip = only_chip(simulation)
    config = simulation.config
    try:
        pes = check_pes(config, request.pes or None)
        with working("Running the network up to the layer"):
            gemm = layer_gemm(simulation, request.layer, request.group)
        window = FoldWindow.of(gemm.x, gemm.w, config, request.fold, *request.cycles)
        place = f"fold {window.fold} of layer {gemm.layer}" + (f", group {gemm.group}" if gemm.group else "")
        with progress_bar("cycles", len(window)) as progress:
            written = write_gemm_vcd(
                request.path,
                gemm.x,
                gemm.w,
                chip.faults,
                window,
                bypass=gemm.bypass,
                pes=pes,
                clock_mhz=clock_mhz,
                limit=request.limit,
                comment=f"chip {chip.id}, {simulation.network_name}, {place}",
                progress=progress,
            )
    except WaveformTooLargeError as error:
        fail(f"{error} (--pe R,C, --cycles A:B, --vcd-limit SIZE)")
    except (WaveformError, WindowError) as error:
        fail(str(error))
    say(
        f"{request.path}: {size_text(written.size)}, {written.signals} signals of {len(pes)} "
        f"{'PE' if len(pes) == 1 else 'PEs'} in cycles {window.first}:{window.stop} of {place}, on chip {chip.id}.\n"
        f"Look at it with: gtkwave {shlex.quote(str(request.path))}"
    )
