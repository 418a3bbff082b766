"""The GEMMs of a network, found by sending the shape of an image through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simulator.cycles.scalesim import GemmLayer
from simulator.errors import InputError
from simulator.suggestions import did_you_mean
from training.data.workloads import WORKLOADS, own_network
from training.layers.convert import check_convertible
from training.layers.layer_calls import FloatLayer, float_layers, other_forwards
from training.layers.user_code import copied, failure

ImageShape = tuple[int, int, int]
"""Channels, height and width."""


def network_gemms(name: str, batch: int = 1, image: ImageShape | None = None) -> list[GemmLayer]:
    """The GEMMs of a network's convolutions and linear layers, in the order in which they run.

    Args:
        name: a name in `training.WORKLOADS`, or `package.module:function` for the user's own network, whose code runs.
        batch: images in one GEMM.
        image: size of an image; None for that of the workload.

    Returns:
        The GEMMs of each layer by its qualified name, once for each time that it runs.

    Raises:
        InputError: there is no such network, it cannot be converted or does not take such images, no size of images is
            given for the user's own, or a layer is never reached.
    """
    if ":" in name:
        if image is None:
            raise InputError(
                f"network {name!r} is your own and its images may have any size: give it with --input, such as 3x32x32"
            )
        network = own_network(name)
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
