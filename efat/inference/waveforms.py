"""The waveform of one fold of a network's layer on a chip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from efat.inference.simulation import Simulation
from simulator.dtypes import BoolArray
from simulator.errors import InputError, did_you_mean
from simulator.lots.chips import Chip
from training.layers.convert import put_on_chip, quantized_layers
from training.layers.quantized import GemmRun, QuantizedLayer


@dataclass(frozen=True, eq=False)
class LayerGemm:
    """A GEMM that a layer runs on a chip.

    Attributes:
        layer: qualified name of the layer.
        group: group of the convolution, from 0; 0 for every other layer.
        x: integer activations [M, K].
        w: integer weights [K, N].
        bypass: what is bypassed in the chip, bool [rows, cols].
    """

    layer: str
    group: int
    x: npt.NDArray[np.integer]
    w: npt.NDArray[np.integer]
    bypass: BoolArray | None


def only_chip(simulation: Simulation) -> Chip:
    """The chip of a simulation that has one.

    Raises:
        InputError: it has several.
    """
    if len(simulation.chips) != 1:
        raise InputError(f"{len(simulation.chips)} chips are chosen: a waveform shows one, choose it with --chip ID")
    return simulation.chips[0]


def layer_gemm(simulation: Simulation, layer: str, group: int = 0) -> LayerGemm:
    """Run the network on the chip, with the first batch of images, up to the layer, and take the operands of its GEMM.

    Args:
        simulation: with one chip. Its network is on that chip afterwards.
        layer: the layer's qualified name, or its position in the order in which layers run, from 0.
        group: group of a grouped convolution.

    Raises:
        InputError: more than one chip, or there is no such layer or group.
    """
    chip = only_chip(simulation)
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
