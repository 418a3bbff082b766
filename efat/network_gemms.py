"""The GEMMs of a network, found by sending the shape of an image through it, and what they take on an array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from efat.display import Shown, Table
from efat.setup import name_of
from simulator.config import ArrayConfig
from simulator.cycles.counts import NetworkCount, count_network
from simulator.cycles.scalesim import GemmLayer
from simulator.errors import InputError
from simulator.suggestions import did_you_mean
from training.data.workloads import WORKLOADS, own_network
from training.layers.convert import FloatLayer, check_convertible, float_layers, other_forwards
from training.layers.user_code import copied, failure

ImageShape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True, repr=False)
class NetworkCycles(Shown):
    """Clock cycles and memory traffic of a network's layers on an array.

    Attributes:
        name: what the layers are.
        config: the array.
        count: what was counted.
    """

    name: str
    config: ArrayConfig
    count: NetworkCount

    def table(self) -> Table:
        """A row for each layer, and the total."""
        rows: list[tuple[object, ...]] = [
            (
                each.layer.name,
                f"{each.layer.m} x {each.layer.k} x {each.layer.n}",
                each.layer.groups,
                each.timing.folds,
                each.timing.serial,
                each.timing.double_buffered,
                f"{each.timing.serial_utilisation:.1%}",
            )
            for each in self.count.layers
        ]
        found = self.count
        return Table(
            f"{self.name} on {self.config.rows}x{self.config.cols}: clock cycles",
            ("layer", "M x K x N", "groups", "folds", "serial", "double-buffered", "utilisation"),
            rows,
            [
                f"total: {found.folds:,} folds, {found.serial:,} cycles serial, {found.double_buffered:,} "
                f"double-buffered, utilisation {found.serial_utilisation:.1%}"
            ],
        )


def count_cycles(
    network: str | nn.Module | Sequence[GemmLayer],
    array: ArrayConfig,
    *,
    batch: int = 1,
    image: ImageShape | None = None,
) -> NetworkCycles:
    """Count clock cycles and memory traffic of a network's layers, without running anything on an array.

    Args:
        network: as for `network_gemms`, or the layers themselves.
        array: the array.
        batch: images in one GEMM.
        image: channels, height and width of an image; None for those of the workload.

    Raises:
        InputError: as `network_gemms`, or there are no layers.
    """
    if isinstance(network, str | nn.Module):
        return NetworkCycles(name_of(network), array, count_network(array, network_gemms(network, batch, image)))
    if batch != 1 or image is not None:
        raise InputError("batch and image have no effect beside layers, which have their sizes: leave them out")
    return NetworkCycles("layers", array, count_network(array, network))


def network_gemms(network: str | nn.Module, batch: int = 1, image: ImageShape | None = None) -> list[GemmLayer]:
    """The GEMMs of a network's convolutions and linear layers, in the order in which they run.

    Args:
        network: a name in `training.WORKLOADS`, or for the user's own network `package.module:function`, whose code
            runs, or the network.
        batch: images in one GEMM.
        image: size of an image; None for that of the workload.

    Returns:
        The GEMMs of each layer by its qualified name, once for each time that it runs.

    Raises:
        InputError: there is no such network, it cannot be converted or does not take such images, no size of images is
            given for the user's own, or a layer is never reached.
    """
    name = name_of(network)
    if isinstance(network, nn.Module) or ":" in name:
        if image is None:
            raise InputError(
                f"network {name!r} is your own and its images may have any size: give it with --input, such as 3x32x32"
            )
        network = own_network(name) if isinstance(network, str) else copied(network)
        check_convertible(network)
    else:
        workload = WORKLOADS.get(name)
        if workload is None:
            raise InputError(
                f"network {name!r} is unknown: choose one of {', '.join(WORKLOADS)}, "
                f"or name your own as package.module:function{did_you_mean(name, WORKLOADS)}"
            )
        image = image or workload.input_shape
        if image[1] != image[2]:
            raise InputError(f"images are {_by(image)}: network {name!r} wants square ones")
        with torch.device("meta"):
            network = workload.build(image[0], image[1], workload.classes)
    network.eval()
    found = _gemms(network, name, batch, image)
    reached = {gemm.name for gemm in found}
    missing = [layer for layer, _ in float_layers(network) if layer not in reached]
    if missing:
        raise InputError(
            f"network {name!r}: layer {missing[0]!r} is never reached by an image, so that it cannot be quantised: "
            "remove it from the network"
        )
    return found


def _gemms(network: nn.Module, name: str, batch: int, image: ImageShape) -> list[GemmLayer]:
    # On the meta device tensors have shapes and no values. Not every network runs without values.
    try:
        return _run(copied(network).to("meta"), "meta", batch, image)
    except (Exception, SystemExit):
        try:
            return _run(network, "cpu", batch, image)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"network {name!r} does not take {_by(image)} images: {failure(error, network)}; "
                "give the size of its images with --input"
            ) from error


def _run(network: nn.Module, device: str, batch: int, image: ImageShape) -> list[GemmLayer]:
    found: list[GemmLayer] = []
    forwards: dict[FloatLayer, Callable[..., Tensor]] = {
        layer: partial(_noted, found, name, layer) for name, layer in float_layers(network)
    }
    with torch.device(device), torch.inference_mode(), other_forwards(forwards):
        network(torch.zeros(batch, *image))
    return found


def _noted(found: list[GemmLayer], name: str, layer: FloatLayer, *args: Any, **kwargs: Any) -> Tensor:
    # Of the type: the instance has this one.
    plain: Callable[..., Tensor] = type(layer).forward
    output = plain(layer, *args, **kwargs)
    if isinstance(layer, nn.Linear):
        found.append(GemmLayer(name, output.numel() // layer.out_features, layer.in_features, layer.out_features))
        return output
    rows, window = output.numel() // layer.out_channels, layer.weight[0].numel()
    found.append(GemmLayer(name, rows, window, layer.out_channels // layer.groups, layer.groups))
    return output


def _by(image: ImageShape) -> str:
    return "x".join(map(str, image))
