"""Convolutions as matrix products: the windows of images as rows of a matrix."""

from __future__ import annotations

from torch import Tensor


def image_to_columns(
    images: Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """im2col: one row for each output pixel with all inputs its kernel sees.

    Args:
        images: [batch, channels, height, width] of any dtype, padded already, at least as large as the kernel.
        kernel_size: rows and columns of the kernel.
        stride: pixels from one output to the next, down and across.
        dilation: pixels from one kernel element to the next, down and across.

    Returns:
        [batch * out_height * out_width, channels * kernel_rows * kernel_columns]; both orders are those of
        `torch.nn.functional.unfold`: the last factor runs fastest.

    >>> import torch
    >>> image_to_columns(torch.arange(6).view(1, 1, 2, 3), (2, 2), (1, 1), (1, 1)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    batch, channels, height, width = images.shape
    out_height, out_width = output_size((height, width), kernel_size, stride, dilation)
    of_batch, of_channel, of_row, of_column = images.stride()
    windows = images.as_strided(
        (batch, out_height, out_width, channels, *kernel_size),
        (
            of_batch,
            of_row * stride[0],
            of_column * stride[1],
            of_channel,
            of_row * dilation[0],
            of_column * dilation[1],
        ),
        images.storage_offset(),
    )
    return windows.reshape(batch * out_height * out_width, channels * kernel_size[0] * kernel_size[1])


def output_size(
    image: tuple[int, int], kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of outputs that a kernel gives on a padded image; below 1 where it does not fit in.

    >>> output_size((7, 8), (3, 3), (2, 1), (1, 2))
    (3, 4)
    """
    down, across = ((image[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1))
    return down, across
