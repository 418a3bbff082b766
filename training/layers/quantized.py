"""Quantised layers whose integer GEMMs run on an accelerator. The arithmetic is that of `training.numbers`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.errors import InputError
from training.emulation.convolution import emulated_convolution
from training.layers.accelerator import ENGINES, Accelerator, Engine
from training.layers.im2col import image_to_columns, output_size
from training.layers.quantized_layer import GemmRun, QuantizedLayer, float_parameters
from training.numbers import dequantize

__all__ = [
    "ENGINES",
    "Accelerator",
    "Engine",
    "GemmRun",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "float_parameters",
]


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` on an accelerator: one GEMM with a row for each input vector."""

    def __init__(
        self, layer: nn.Linear, activation_scale: Tensor | float, accelerator: Accelerator, name: str = ""
    ) -> None:
        super().__init__(layer, activation_scale, accelerator, name)
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch's layers have
        """Multiply on the chip.

        Args:
            input: float32 [..., in_features].

        Returns:
            float32 [..., out_features], without gradient.
        """
        self.check_shape(input)
        self.check_input(input)
        return self.compute(input.detach())

    def compute(self, x: Tensor) -> Tensor:
        """What the chip makes of an input that was checked."""
        weights = self.whole_weights()
        if weights is not None and self.observer is None:
            return self.whole_product(self.whole_input(x), weights)
        rows = self.quantize_input(x).reshape(x.shape[:-1].numel(), self.in_features)
        outputs = dequantize(self._gemm(rows, self.weight_int.t()), self.bias_int, self.output_scale)
        return outputs.reshape(*x.shape[:-1], self.out_features)

    def check_shape(self, x: Tensor) -> None:
        """Refuse an input that has not `in_features` numbers in its last dimension.

        Raises:
            InputError: it has not.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise InputError(
                f"layer {self.name!r}: input has shape {list(x.shape)}: expected [..., {self.in_features}]"
            )

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """`x` float32 [..., in_features] by `w` float32 [out_features, in_features]."""
        return functional.linear(x, w, bias)

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

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch's layers have
        """Convolve on the chip.

        Args:
            input: float32 [batch, in_channels, height, width], or without the batch.

        Returns:
            float32 [batch, out_channels, out_height, out_width], without gradient; without the batch if `input` is.
        """
        self.check_shape(input)
        self.check_input(input)
        result = self.compute(self.pad(input.detach() if input.ndim == 4 else input.detach()[None]))
        return result if input.ndim == 4 else result[0]

    def compute(self, x: Tensor) -> Tensor:
        """What the chip makes of images that were checked and went through `pad`."""
        weights = self.whole_weights() if self.multiplies_plainly(x) else None
        if weights is not None and self.observer is None:
            return self.whole_product(self.whole_input(x), weights)
        down, across = self.product_padding
        images = functional.pad(self.quantize_input(x), [across, across, down, down])
        if self._is_emulated(images):
            accumulated = emulated_convolution(
                images,
                self.weight_int,
                self.config,
                self.accelerator.faults,
                self.accelerator.bypass,
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
            )
        else:
            accumulated = self._convolve(images)
        return dequantize(accumulated, self.bias_int, self.output_scale, channel_dim=1)

    def check_shape(self, x: Tensor) -> None:
        """Refuse images with another number of channels, or smaller than the kernel.

        Raises:
            InputError: they are.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise InputError(
                f"layer {self.name!r}: input has shape {list(x.shape)}: "
                f"expected [batch, {self.in_channels}, height, width]"
            )
        left, right, top, bottom = self._pad_widths()
        padded = (x.shape[-2] + top + bottom, x.shape[-1] + left + right)
        if min(output_size(padded, self.kernel_size, self.stride, self.dilation)) < 1:
            raise InputError(
                f"layer {self.name!r}: input of {x.shape[-2]}x{x.shape[-1]} pixels is smaller than the kernel: "
                "use larger images"
            )

    def pad(self, images: Tensor) -> Tensor:
        """Pad float32 images [batch, in_channels, height, width] where `multiply` does not by itself."""
        if self._pads_in_product:
            return images
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(images, self._pad_widths(), mode=mode)

    def multiplies_plainly(self, x: Tensor) -> bool:
        """Whether it does; other libraries may convolve by way of Winograd's transform, which rounds."""
        backend: Any = torch.backends.mkldnn
        return x.device.type == "cpu" and bool(backend.is_available() and backend.enabled)

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve images float32 as `pad` gives them with `w` float32, the shape of the weights."""
        return functional.conv2d(x, w, bias, self.stride, self.product_padding, self.dilation, self.groups)

    @property
    def product_padding(self) -> tuple[int, int]:
        """Zeros that `multiply` pads, on each side down and across; `pad` does the rest."""
        if not self._pads_in_product:
            return 0, 0
        left, _, top, _ = self._pad_widths()
        return top, left

    @property
    def _pads_in_product(self) -> bool:
        left, right, top, bottom = self._pad_widths()
        return self.padding_mode == "zeros" and left == right and top == bottom

    def _is_emulated(self, images: Tensor) -> bool:
        """Whether the emulation can read X where the images lie."""
        return (
            self.accelerator.engine == "emulation"
            and self.observer is None
            and self.placement is None
            and images.device.type == "cpu"
        )

    def _convolve(self, images: Tensor) -> Tensor:
        """By im2col: one GEMM for each group, whose operands can be observed."""
        size = output_size((images.shape[2], images.shape[3]), self.kernel_size, self.stride, self.dilation)
        outputs = []
        weights = self.weight_int.flatten(1).chunk(self.groups)
        for group, channels in enumerate(images.chunk(self.groups, dim=1)):
            columns = image_to_columns(channels, self.kernel_size, self.stride, self.dilation)
            outputs.append(self._gemm(columns, weights[group].t(), group))
        pixels = torch.cat(outputs, dim=1).view(len(images), *size, self.out_channels)
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


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
