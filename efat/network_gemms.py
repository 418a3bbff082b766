"""The GEMMs of a network by name, found by sending the shape of an image through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simulator.scalesim import GemmLayer
from simulator.suggestions import did_you_mean
from training.errors import InputError
from training.workloads import WORKLOADS


def network_gemms(name: str, batch: int = 1) -> list[GemmLayer]:
    """The GEMMs of a network's convolutions and linear layers, in the order in which they run.

    Args:
        name: a name in `training.WORKLOADS`.
        batch: images in one GEMM.

    Returns:
        A GEMM for each layer, by the layer's qualified name; for each group of a grouped convolution `layer[group]`.

    Raises:
        InputError: there is no such network.
    """
    workload = WORKLOADS.get(name)
    if workload is None:
        raise InputError(
            f"network {name!r} is unknown: choose one of {', '.join(WORKLOADS)}{did_you_mean(name, WORKLOADS)}"
        )
    found: list[GemmLayer] = []
    # On the meta device tensors have shapes and no values.
    with torch.device("meta"), torch.inference_mode():
        channels, height, width = workload.input_shape
        network = workload.build(channels, height, workload.classes).eval()
        for layer_name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(
                    lambda layer, _, output, layer_name=layer_name: found.extend(_gemms(layer_name, layer, output))
                )
        network(torch.empty(batch, channels, height, width))
    return found


def _gemms(name: str, layer: nn.Module, output: Tensor) -> list[GemmLayer]:
    if isinstance(layer, nn.Linear):
        return [GemmLayer(name, output.numel() // layer.out_features, layer.in_features, layer.out_features)]
    assert isinstance(layer, nn.Conv2d)
    rows = output.numel() // layer.out_channels
    window = layer.weight[0].numel()
    names = [name] if layer.groups == 1 else [f"{name}[{group}]" for group in range(layer.groups)]
    return [GemmLayer(of_group, rows, window, layer.out_channels // layer.groups) for of_group in names]
