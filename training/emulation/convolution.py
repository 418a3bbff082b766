"""Convolutions on the emulated array, without an im2col matrix: the kernel reads X where the images lie."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simulator import ArrayConfig, FaultMap
from training.emulation.gemm import run_on_memory
from training.emulation.program import lower


def emulated_convolution(
    images: Tensor,
    weight: Tensor,
    config: ArrayConfig,
    faults: FaultMap | None,
    bypass: npt.NDArray[np.bool_] | None,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Convolve on a faulty array: one GEMM for each group, as `layers.image_to_columns` lays it out.

    Args:
        images: [batch, channels, height, width] on the CPU, padded, int8 or, if activations are unsigned, uint8, within
            range; at least as large as the kernel.
        weight: int8 [outputs, channels / groups, kernel_rows, kernel_columns] on the CPU, within range.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], or None for none.
        stride: pixels from one output to the next, down and across.
        dilation: pixels from one kernel element to the next, down and across.
        groups: groups of channels.

    Returns:
        int32 [batch, outputs, out_height, out_width].
    """
    images = images.contiguous()
    pixel, offset, size = _places(tuple(images.shape), tuple(weight.shape[1:]), stride, dilation)
    total = len(weight)
    outputs = np.empty((len(images), total, *size), np.int32)
    pixels = size[0] * size[1]
    filters = weight.detach().flatten(1).numpy()
    memory = images.view(-1).numpy()
    channels = weight.shape[1] * images.shape[2] * images.shape[3]
    for group, part in enumerate(np.split(filters, groups)):
        program = lower(part.T, config, faults, bypass=bypass)
        place = (group * len(part) * pixels, total * pixels, pixels)
        run_on_memory(program, memory, pixel, offset + group * channels, outputs.reshape(-1), place)
    return torch.from_numpy(outputs)


@lru_cache(maxsize=8)
def _places(
    images: tuple[int, int, int, int], kernel: tuple[int, int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[int, int]]:
    """Where each output's window begins, where each kernel element lies from there, and outputs down and across."""
    batch, channels, height, width = images
    per_group, kernel_rows, kernel_columns = kernel
    out_height = (height - dilation[0] * (kernel_rows - 1) - 1) // stride[0] + 1
    out_width = (width - dilation[1] * (kernel_columns - 1) - 1) // stride[1] + 1
    image, down, across = np.ogrid[:batch, :out_height, :out_width]
    pixel = image * channels * height * width + down * stride[0] * width + across * stride[1]
    channel, row, column = np.ogrid[:per_group, :kernel_rows, :kernel_columns]
    offset = channel * height * width + row * dilation[0] * width + column * dilation[1]
    return pixel.reshape(-1), offset.reshape(-1), (out_height, out_width)
