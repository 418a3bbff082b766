"""The waveform of one fold of a network's layer on a chip."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from efat.display import Shown, counted
from efat.inference.simulation import Simulation
from simulator.dtypes import BoolArray
from simulator.engine.fold_trace import FoldWindow, check_pes
from simulator.engine.vcd import DEFAULT_LIMIT_BYTES, Waveform, size_text, write_gemm_vcd
from simulator.errors import InputError, did_you_mean
from simulator.lots.chips import Chip
from training.layers.convert import put_on_chip, quantized_layers
from training.layers.quantized import GemmRun, QuantizedLayer


@dataclass(frozen=True, repr=False)
class ChipWaveform(Shown):
    """A waveform of one fold of a layer's GEMM on a chip.

    Attributes:
        path: the file.
        written: what is in it.
        chip: id of the chip.
        window: the fold, and its cycles.
        where: the fold, the layer and the group.
        pes: number of PEs.
    """

    path: Path
    written: Waveform
    chip: str
    window: FoldWindow
    where: str
    pes: int

    def parts(self) -> Iterator[str]:
        """What the file shows, and how to look at it."""
        yield (
            f"{self.path}: {size_text(self.written.size)}, {self.written.signals} signals of {counted(self.pes, 'PE')} "
            f"in cycles {self.window.first}:{self.window.stop} of {self.where}, on chip {self.chip}."
        )
        yield f"Look at it with: gtkwave {shlex.quote(str(self.path))}"


def write_waveform(
    simulation: Simulation,
    path: str | Path,
    layer: str,
    *,
    fold: int = 0,
    group: int = 0,
    pes: Sequence[tuple[int, int]] | None = None,
    cycles: tuple[int | None, int | None] = (None, None),
    limit: int | None = DEFAULT_LIMIT_BYTES,
    progress: Callable[[str, int, int], None] | None = None,
) -> ChipWaveform:
    """Write a waveform of one fold of a layer's GEMM on a chip, with fault-free values beside the faulty ones.

    Args:
        simulation: with one chip; `efat.simulate(..., run=False)` gives it. The network runs up to the layer, with the
            first batch of images, and is on the chip afterwards.
        path: the file (VCD); one that is there is replaced.
        layer: the layer's qualified name, or its position in the order in which layers run, from 0.
        fold: fold of the GEMM.
        group: group of a grouped convolution.
        pes: PEs (row, col) to show; None for all.
        cycles: first cycle of the fold and one past the last; None for the fold's own.
        limit: most bytes of the file; None for no limit.
        progress: called with what is done, how much of it, and of how much.

    Raises:
        InputError: more than one chip, there is no such layer, group, fold, PE or cycle, or the file might be larger.
        OSError: the file cannot be written.
    """
    chip = _only_chip(simulation)
    config = simulation.config
    chosen = check_pes(config, pes)
    show = progress or (lambda what, done, of: None)
    show("running the network up to the layer", 0, 1)
    gemm = layer_gemm(simulation, layer, group)
    show("running the network up to the layer", 1, 1)
    window = FoldWindow.of(gemm.x, gemm.w, config, fold, *cycles)
    where = f"fold {fold} of layer {gemm.layer}" + (f", group {group}" if group else "")
    done = 0

    def progressed(more: int) -> None:
        nonlocal done
        done += more
        show("cycles", done, len(window))

    written = write_gemm_vcd(
        path,
        gemm.x,
        gemm.w,
        chip.faults,
        window,
        bypass=gemm.bypass,
        pes=chosen,
        clock_mhz=simulation.clock_mhz,
        limit=limit,
        comment=f"chip {chip.id}, {simulation.network_name}, {where}",
        progress=progressed,
    )
    return ChipWaveform(Path(path), written, chip.id, window, where, len(chosen))


class LayerGemm(NamedTuple):
    """A GEMM that a layer runs on a chip: integer activations [M, K] and weights [K, N], and what it bypasses."""

    layer: str
    group: int
    x: npt.NDArray[np.integer]
    w: npt.NDArray[np.integer]
    bypass: BoolArray | None


def _only_chip(simulation: Simulation) -> Chip:
    if len(simulation.chips) != 1:
        raise InputError(f"{len(simulation.chips)} chips are chosen: a waveform shows one, choose it with --chip ID")
    return simulation.chips[0]


def layer_gemm(simulation: Simulation, layer: str, group: int = 0) -> LayerGemm:
    """The operands of a layer's GEMM on the only chip of a simulation; see `write_waveform`."""
    chip = _only_chip(simulation)
    network, accelerator = simulation.on_chip(chip)
    layers = quantized_layers(network)
    if layer not in layers and not (layer.isdecimal() and int(layer) < len(layers)):
        raise InputError(
            f"no layer {layer!r} in {simulation.network_name}: expected 0..{len(layers) - 1} or one of "
            f"{', '.join(layers)}{did_you_mean(layer, layers)}"
        )
    put_on_chip(network, accelerator)
    with _stopped_at(layers, layer, group) as found, torch.inference_mode():
        network(simulation.data.images[: simulation.batch])
    if found:
        run = found[0]
        x, w = run.on_array()
        return LayerGemm(run.layer, run.group, x.cpu().numpy(), w.cpu().numpy(), accelerator.bypass)
    raise InputError(f"layer {layer!r} of {simulation.network_name} does not run: choose another")


class _LayerReached(Exception):  # noqa: N818
    """The GEMM wanted has run; the rest of the network does not have to."""


@contextmanager
def _stopped_at(layers: dict[str, QuantizedLayer], wanted: str, group: int) -> Iterator[Sequence[GemmRun]]:
    """Leave the block with the first GEMM of a layer's group, which is then in the list that is given."""
    found: list[GemmRun] = []
    reached: list[str] = []

    def observe(run: GemmRun) -> None:
        if run.layer not in reached:
            reached.append(run.layer)
        chosen = run.layer == wanted if wanted in layers else len(reached) == int(wanted) + 1
        if not chosen:
            return
        groups = int(getattr(layers[run.layer], "groups", 1))
        if not 0 <= group < groups:
            count = "1 group" if groups == 1 else f"{groups} groups"
            raise InputError(f"group {group}: layer {run.layer} has {count}, expected 0..{groups - 1}")
        if run.group == group:
            found.append(run)
            raise _LayerReached

    for layer in layers.values():
        layer.observer = observe
    try:
        yield found
    except _LayerReached:
        pass
    finally:
        for layer in layers.values():
            layer.observer = None
