"""Quantised layers whose integer GEMMs run on an accelerator. The arithmetic is that of `training.quantization`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator import ArrayConfig
from training.accelerator import ENGINES, Accelerator, Engine
from training.emulated_convolution import emulated_convolution
from training.errors import ConversionError, InputError
from training.quantization import (
    activation_dtype,
    activation_limits,
    dequantize,
    quantize,
    quantize_bias,
    weight_limits,
    weight_scales,
)

__all__ = [
    "ENGINES",
    "Accelerator",
    "Engine",
    "GemmRun",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "float_parameters",
    "image_to_columns",
]


@dataclass(frozen=True, eq=False)
class GemmRun:
    """One GEMM that a layer ran.

    Attributes:
        layer: qualified name of the layer in its network.
        group: group of the convolution, from 0; 0 for every other layer.
        x: integer activations [M, K].
        w: integer weights [K, N].
        outputs: int32 [M, N], read out of the accelerator before the bias is added.
    """

    layer: str
    group: int
    x: Tensor
    w: Tensor
    outputs: Tensor


Observer = Callable[[GemmRun], None]


class QuantizedLayer(nn.Module):
    """What the quantised layers share: their numbers, and how floats become integers and integers floats.

    Attributes:
        name: qualified name of the layer in its network.
        accelerator: the chip the layer runs on.
        observer: called with each GEMM after it ran, or None.
        weight: int8 weights, the shape of the float layer's.
        bias: int32 [outputs] in units of the accumulator, or None.
        activation_scale: float32, no dimensions: the value of one step of the input.
        weight_scale: float32 [outputs]: the value of one step of each output's weights.
        output_scale: float32 [outputs]: the value of one step of each output's accumulator, the product of the two.
    """

    weight: Tensor
    bias: Tensor | None
    activation_scale: Tensor
    weight_scale: Tensor
    output_scale: Tensor

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, activation_scale: Tensor | float, accelerator: Accelerator, name: str = ""
    ) -> None:
        """Quantise the weights and bias of a float layer.

        Args:
            layer: the float layer; it is not changed.
            activation_scale: the value of one step of the layer's input, finite and positive.
            accelerator: the chip to run on; its config gives the widths.
            name: qualified name of the layer in its network.

        Raises:
            ConversionError: weights or bias are not float32, are not finite, or are too large for float32 outputs.
        """
        super().__init__()
        self.name = name
        self.accelerator = accelerator
        self.observer: Observer | None = None
        config = accelerator.config
        weight, bias = float_parameters(layer, name)
        input_scale = torch.as_tensor(activation_scale, dtype=torch.float32, device=weight.device)
        if not 0 < float(input_scale) < float("inf"):
            raise ConversionError(
                f"layer {name!r}: activation scale is {float(input_scale)}: expected finite and positive"
            )
        scales = weight_scales(weight, config, bias=bias, activation_scale=float(input_scale))
        output_scale = input_scale * scales
        if not bool(torch.isfinite(output_scale).all()):
            raise ConversionError(
                f"layer {name!r}: weights up to {float(weight.abs().max()):.3g} on inputs with a step of "
                f"{float(input_scale):.3g} overflow float32: rescale the network"
            )
        column = scales.view(-1, *[1] * (weight.ndim - 1))
        self.register_buffer("weight", quantize(weight, column, weight_limits(config), torch.int8))
        self.register_buffer("bias", None if bias is None else quantize_bias(bias, output_scale))
        self.register_buffer("activation_scale", input_scale)
        self.register_buffer("weight_scale", scales)
        self.register_buffer("output_scale", output_scale)

    @property
    def config(self) -> ArrayConfig:
        """The array of the accelerator the layer is on."""
        return self.accelerator.config

    def quantize_input(self, x: Tensor) -> Tensor:
        """The layer's input as integers.

        Args:
            x: float32 of any shape.

        Returns:
            int8 (uint8 if activations are unsigned), same shape.

        Raises:
            InputError: `x` is not float32, or has a NaN or an infinity.
        """
        if x.dtype != torch.float32:
            raise InputError(f"layer {self.name!r}: input is {x.dtype}: expected torch.float32")
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"layer {self.name!r}: NaN or infinity in the input: check images and weights")
        config = self.config
        return quantize(x.detach(), self.activation_scale, activation_limits(config), activation_dtype(config))

    def _gemm(self, x: Tensor, w: Tensor, group: int = 0) -> Tensor:
        outputs = self.accelerator.gemm(x, w)
        if self.observer is not None:
            self.observer(GemmRun(self.name, group, x, w, outputs))
        return outputs

    def _widths(self) -> str:
        config = self.config
        sign = "" if config.act_signed else "u"
        return (
            f"weights=int{config.weight_bits}, activations={sign}int{config.act_bits}, "
            f"bias={self.bias is not None}, engine={self.accelerator.engine!r}"
        )


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` on an accelerator: one GEMM with a row for each input vector."""

    def __init__(
        self, layer: nn.Linear, activation_scale: Tensor | float, accelerator: Accelerator, name: str = ""
    ) -> None:
        super().__init__(layer, activation_scale, accelerator, name)
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Multiply on the chip.

        Args:
            x: float32 [..., in_features].

        Returns:
            float32 [..., out_features], without gradient.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise InputError(
                f"layer {self.name!r}: input has shape {list(x.shape)}: expected [..., {self.in_features}]"
            )
        rows = self.quantize_input(x).reshape(x.shape[:-1].numel(), self.in_features)
        outputs = dequantize(self._gemm(rows, self.weight.t()), self.bias, self.output_scale)
        return outputs.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes and widths, for `print(network)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._widths()}"


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` on an accelerator: im2col, then one GEMM for each group with a row for each output pixel."""

    def __init__(
        self, layer: nn.Conv2d, activation_scale: Tensor | float, accelerator: Accelerator, name: str = ""
    ) -> None:
        super().__init__(layer, activation_scale, accelerator, name)
        self.in_channels = layer.in_channels
        self.out_channels = layer.out_channels
        self.kernel_size = _pair(layer.kernel_size)
        self.stride = _pair(layer.stride)
        self.padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
        self.dilation = _pair(layer.dilation)
        self.groups = layer.groups
        self.padding_mode = layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Convolve on the chip.

        Args:
            x: float32 [batch, in_channels, height, width], or without the batch.

        Returns:
            float32 [batch, out_channels, out_height, out_width], without gradient; without the batch if `x` is.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise InputError(
                f"layer {self.name!r}: input has shape {list(x.shape)}: "
                f"expected [batch, {self.in_channels}, height, width]"
            )
        images = x if x.ndim == 4 else x[None]
        if self.padding_mode == "zeros":
            images = functional.pad(self.quantize_input(images), self._pad_widths())
        else:
            images = self.quantize_input(functional.pad(images, self._pad_widths(), mode=self.padding_mode))
        height, width = (
            (images.shape[2 + axis] - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        if height < 1 or width < 1:
            raise InputError(
                f"layer {self.name!r}: input of {x.shape[-2]}x{x.shape[-1]} pixels is smaller than the kernel: "
                "use larger images"
            )
        accelerator = self.accelerator
        if accelerator.engine == "emulation" and self.observer is None and images.device.type == "cpu":
            accumulated = emulated_convolution(
                images,
                self.weight,
                self.config,
                accelerator.faults,
                accelerator.bypass,
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
            )
        else:
            accumulated = self._convolve(images, height, width)
        result = dequantize(accumulated, self.bias, self.output_scale, channel_dim=1)
        return result if x.ndim == 4 else result[0]

    def _convolve(self, images: Tensor, height: int, width: int) -> Tensor:
        """By im2col: one GEMM for each group, whose operands can be observed."""
        outputs = []
        weights = self.weight.flatten(1).chunk(self.groups)
        for group, channels in enumerate(images.chunk(self.groups, dim=1)):
            columns = image_to_columns(channels, self.kernel_size, self.stride, self.dilation)
            outputs.append(self._gemm(columns, weights[group].t(), group))
        pixels = torch.cat(outputs, dim=1).view(len(images), height, width, self.out_channels)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def _pad_widths(self) -> list[int]:
        """Left, right, top, bottom, as `functional.pad` wants them."""
        if self.padding == "valid":
            return [0, 0, 0, 0]
        sides = []
        for axis in (1, 0):
            if isinstance(self.padding, str):  # "same": the odd pixel goes right and below, as in torch
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides.append((total // 2, total - total // 2))
            else:
                sides.append((self.padding[axis], self.padding[axis]))
        return list(chain(*sides))

    def extra_repr(self) -> str:
        """Sizes and widths, for `print(network)`."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._widths()}"
        )


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

    >>> image_to_columns(torch.arange(6).view(1, 1, 2, 3), (2, 2), (1, 1), (1, 1)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    batch, channels, height, width = images.shape
    out_height = (height - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    out_width = (width - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
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


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def float_parameters(layer: nn.Conv2d | nn.Linear, name: str) -> tuple[Tensor, Tensor | None]:
    """The weights and the bias of a float layer, detached.

    Args:
        layer: the float layer.
        name: its name, for messages.

    Returns:
        float32 weights [outputs, ...], and float32 bias [outputs] or None.

    Raises:
        ConversionError: they are of another type, or not all finite.
    """
    for what, values in (("weights", layer.weight), ("bias values", layer.bias)):
        if values is None:
            continue
        if values.dtype != torch.float32:
            raise ConversionError(
                f"layer {name!r}: {what} are {values.dtype}: expected torch.float32; call .float() first"
            )
        broken = int((~torch.isfinite(values)).sum())
        if broken:
            raise ConversionError(
                f"layer {name!r}: {broken} of {values.numel()} {what} are NaN or infinite: fix or retrain the network"
            )
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
