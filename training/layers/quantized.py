"""Quantised layers whose integer GEMMs run on an accelerator. The arithmetic is that of `training.numbers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import ConversionError, InputError, NotFiniteError
from training.emulation.gemm import convolution_windows, output_size, run_on_images
from training.emulation.program import lower
from training.layers.accelerator import Accelerator
from training.layers.placement import Placement
from training.numbers import (
    activation_dtype,
    activation_limits,
    dequantize,
    quantize,
    quantize_bias,
    weight_limits,
    weight_scales,
)

LARGEST_EXACT_FLOAT = 1 << 24
"""float32 holds every whole number up to this magnitude."""


@dataclass(frozen=True, eq=False)
class GemmRun:
    """One GEMM that a layer ran.

    Attributes:
        layer: qualified name of the layer in its network.
        group: group of the convolution, from 0; 0 for every other layer.
        x: integer activations [M, K].
        w: integer weights [K, N].
        outputs: int32 [M, N], read out of the accelerator before the bias is added.
        placement: where on the array the operands sat; None for in order.
    """

    layer: str
    group: int
    x: Tensor
    w: Tensor
    outputs: Tensor
    placement: Placement | None = None

    def on_array(self) -> tuple[Tensor, Tensor]:
        """The activations as the array was fed with them, and the weights as it held them: [M, K'] and [K', N']."""
        if self.placement is None:
            return self.x, self.w
        return self.placement.place_x(self.x, self.group), self.placement.place_w(self.w, self.group)

    def extent(self) -> tuple[int, int]:
        """K' and N' of the GEMM as the array ran it."""
        return self.placement.extent(self.group) if self.placement is not None else (self.w.shape[0], self.w.shape[1])


Observer = Callable[[GemmRun], None]


class QuantizedLayer(nn.Module, ABC):
    """A layer whose GEMMs run on a chip: its integers, and how floats become integers and integers floats.

    The float layer's parameters stay under their names, for a network that uses them beside calling the layer: what it
    computes with them is float, as before conversion. The chip gets the integers alone.

    Attributes:
        name: qualified name of the layer in its network.
        accelerator: the chip the layer runs on.
        placement: where on the array its operands sit; None for in order. Its positions fit the layer's GEMMs.
        observer: called with each GEMM after it ran, or None.
        weight: float32 parameter, the float layer's weights as they were before they were quantised.
        bias: float32 parameter [outputs], the float layer's, or None.
        weight_int: int8 weights, the shape of the float layer's.
        bias_int: int32 [outputs] in units of the accumulator, or None.
        activation_scale: float32, no dimensions: the value of one step of the input.
        weight_scale: float32 [outputs]: the value of one step of each output's weights.
        output_scale: float32 [outputs]: the value of one step of each output's accumulator, the product of the two.
    """

    SIZES: ClassVar[tuple[str, ...]]
    """What networks ask a float layer for; a quantised layer has it, too."""
    channel_dim: ClassVar[int]
    """The dimension of an output's channels."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_int: Tensor
    bias_int: Tensor | None
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
        self.placement: Placement | None = None
        self.observer: Observer | None = None
        self._kept: tuple[Accelerator | None, Placement | None, Tensor | None] = (None, None, None)
        weight, bias = float_parameters(layer, name)
        input_scale = torch.as_tensor(activation_scale, dtype=torch.float32, device=weight.device).detach().clone()
        if not 0 < float(input_scale) < float("inf"):
            raise ConversionError(
                f"layer {name!r}: activation scale is {float(input_scale)}: expected finite and positive"
            )
        for size in self.SIZES:
            setattr(self, size, getattr(layer, size))
        for parameter in ("weight", "bias"):
            self.register_parameter(parameter, None)
        for buffer in ("weight_int", "bias_int", "activation_scale", "weight_scale", "output_scale"):
            self.register_buffer(buffer, None)
        self.load_parameters(weight.clone(), None if bias is None else bias.clone(), input_scale)
        if not bool(torch.isfinite(self.output_scale).all()):
            raise ConversionError(
                f"layer {name!r}: weights up to {float(weight.abs().max()):.3g} on inputs with a step of "
                f"{float(input_scale):.3g} overflow float32: rescale the network"
            )

    def load_parameters(self, weight: Tensor, bias: Tensor | None, activation_scale: Tensor) -> None:
        """Quantise other parameters in place of the present ones; they are neither checked nor copied."""
        config = self.config
        scales = weight_scales(weight, config, bias=bias, activation_scale=float(activation_scale))
        output_scale = activation_scale * scales
        column = scales.view(-1, *[1] * (weight.ndim - 1))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.weight_int = quantize(weight, column, weight_limits(config), torch.int8)
        self.bias_int = None if bias is None else quantize_bias(bias, output_scale)
        self.activation_scale = activation_scale
        self.weight_scale = scales
        self.output_scale = output_scale

    @property
    def config(self) -> ArrayConfig:
        """The array of the accelerator the layer is on."""
        return self.accelerator.config

    @property
    def gemm_shape(self) -> tuple[int, int, int]:
        """Groups, and K and N of each group's GEMM."""
        groups = int(getattr(self, "groups", 1))
        return groups, self.weight_int[0].numel(), len(self.weight_int) // groups

    @property
    def computes_exactly(self) -> bool:
        """Whether what comes out are exact sums of products: nothing is broken, or nothing that is broken acts."""
        accelerator = self.accelerator
        if accelerator.engine == "cycle" or not accelerator.hides_faults:
            return False
        unusable = accelerator.unusable_columns
        if not len(unusable):
            return True
        _, _, n = self.gemm_shape
        used = np.arange(n) if self.placement is None else self.placement.columns
        return not np.isin(used % self.config.cols, unusable).any()

    def kept_weights(self) -> Tensor | None:
        """Which weights act: bool, the shape of the weights, False at bypassed PEs; None for all."""
        accelerator, placement, kept = self._kept
        moved = kept is not None and kept.device != self.weight_int.device
        if accelerator is not self.accelerator or placement is not self.placement or moved:
            bypass = self.accelerator.bypass
            kept = None if bypass is None else self.acting(bypass)
            # A training asks for it in every step.
            self._kept = self.accelerator, self.placement, kept
        return kept

    def acting(self, bypass: BoolArray) -> Tensor | None:
        """Which weights would act if those PEs, bool [R, C], were bypassed; as `kept_weights`."""
        if not bypass.any():
            return None
        placement = self.placement or Placement.in_order(*self.gemm_shape)
        kept = placement.at_weights(~bypass, self.config)
        return torch.from_numpy(kept).view(self.weight_int.shape).to(self.weight_int.device)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch's layers have
        """Compute on the chip.

        Args:
            input: float32, of a shape that the float layer takes.

        Returns:
            float32, of the shape that the float layer gives, without gradient.

        Raises:
            InputError: `input` is not float32, or of a shape that does not fit.
            NotFiniteError: it has a NaN or an infinity.
        """
        self.check_shape(input)
        self.check_input(input)
        return self.on_batch(input.detach(), self.compute)

    def check_input(self, x: Tensor) -> None:
        """Refuse an input of any shape that cannot be quantised.

        Raises:
            InputError: `x` is not float32.
            NotFiniteError: `x` has a NaN or an infinity.
        """
        if x.dtype != torch.float32:
            raise InputError(f"layer {self.name!r}: input is {x.dtype}: expected torch.float32")
        # One NaN or infinity makes the sum one, and a sum is quicker; finite numbers may overflow in it.
        if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
            raise NotFiniteError(f"layer {self.name!r}: NaN or infinity in the input: check images and weights")

    @abstractmethod
    def check_shape(self, x: Tensor) -> None:
        """Refuse an input of a shape that does not fit.

        Raises:
            InputError: it does not.
        """

    def on_batch(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` makes of an input, as a batch that went through `pad`, in the shape of the input."""
        return compute(x)

    def pad(self, x: Tensor) -> Tensor:
        """The input, padded where `multiply` does not do that by itself."""
        return x

    def compute(self, x: Tensor) -> Tensor:
        """What the chip makes of an input, float32 as `on_batch` gives it, finite and of a shape that fits."""
        weights = self.weights_as_float32() if self.multiplies_plainly(x) else None
        if weights is not None and self.observer is None:
            return self.product_in_float32(self.input_as_float32(x), weights)
        accumulated = self._accumulate(self.quantize_input(x))
        return dequantize(accumulated, self.bias_int, self.output_scale, channel_dim=self.channel_dim)

    def quantize_input(self, x: Tensor) -> Tensor:
        """The input as integers, int8 (uint8 if activations are unsigned); not checked."""
        config = self.config
        return quantize(x.detach(), self.activation_scale, activation_limits(config), activation_dtype(config))

    @abstractmethod
    def _accumulate(self, x: Tensor) -> Tensor:
        """From the quantised input what the chip's accumulators hold, int32 of the output's shape."""

    def _gemm(self, x: Tensor, w: Tensor, group: int = 0) -> Tensor:
        placement = self.placement
        if placement is None:
            outputs = self.accelerator.gemm(x, w)
        else:
            outputs = self.accelerator.gemm(placement.place_x(x, group), placement.place_w(w, group))
            outputs = placement.take_out(outputs, group)
        if self.observer is not None:
            self.observer(GemmRun(self.name, group, x, w, outputs, placement))
        return outputs

    def multiplies_plainly(self, x: Tensor) -> bool:
        """Whether `multiply` adds up products as they are, in whatever order, where `x` is."""
        return True

    @abstractmethod
    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """The product of an input as `on_batch` gives it with weights, all float32; `bias` [outputs] is added."""

    def weights_as_float32(self) -> Tensor | None:
        """The weights that act, as whole numbers in float32, where float32 products of such are what the chip gives.

        So they are if the chip computes exact sums and no sum can reach 2^24, in whatever order it is made, nor wrap.
        Weights at bypassed PEs are 0. None where products may be others.
        """
        if not self.computes_exactly:
            return None
        weights = self.weight_int.to(torch.float32)
        kept = self.kept_weights()
        if kept is not None:
            weights *= kept
        bound = weights.flatten(1).abs().sum(1) * max(map(abs, activation_limits(self.config)))
        if self.bias_int is not None:
            bound += self.bias_int.abs()
        return weights if float(bound.max()) < min(LARGEST_EXACT_FLOAT, 1 << (self.config.acc_bits - 1)) else None

    def input_as_float32(self, x: Tensor) -> Tensor:
        """The input quantised, as `quantize_input` does, but whole numbers in float32; not checked."""
        whole = x / self.activation_scale
        return whole.round_().clamp_(*activation_limits(self.config))

    def product_in_float32(self, x: Tensor, w: Tensor) -> Tensor:
        """From `input_as_float32` and `weights_as_float32` the result, float32: bit for bit what the chip gives."""
        product = self.multiply(x, w, None if self.bias_int is None else self.bias_int.to(torch.float32))
        return product.mul_(self.output_scale.view(-1, *[1] * (-1 - self.channel_dim)))

    def extra_repr(self) -> str:
        """Sizes and widths, for `print(network)`."""
        config = self.config
        sizes = ", ".join(f"{size}={getattr(self, size)}" for size in self.SIZES)
        return (
            f"{sizes}, weights=int{config.weight_bits}, activations={'' if config.act_signed else 'u'}int"
            f"{config.act_bits}, bias={self.bias_int is not None}, engine={self.accelerator.engine!r}"
        )


def float_parameters(layer: nn.Conv2d | nn.Linear, name: str) -> tuple[Tensor, Tensor | None]:
    """The weights, float32 [outputs, ...], and the bias, float32 [outputs] or None, of a float layer, detached.

    Raises:
        ConversionError: they are of another type, or not all finite.
    """
    for what, values in (("weights", layer.weight), ("bias values", layer.bias)):
        if values is None:
            continue
        if not values.is_floating_point():
            raise ConversionError(
                f"layer {name!r}: {what} are {values.dtype}, quantised already: give the float32 network"
            )
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


def image_to_columns(
    images: Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """im2col: a row for each output pixel with what its kernel sees of padded images [batch, channels, height, width].

    [batch * out_height * out_width, channels * kernel_rows * kernel_columns]; both orders are those of
    `torch.nn.functional.unfold`: the last factor runs fastest.

    >>> import torch
    >>> image_to_columns(torch.arange(6).view(1, 1, 2, 3), (2, 2), (1, 1), (1, 1)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    across_kernel = dilation[1] * (kernel_size[1] - 1) + 1
    windows = images.unfold(2, dilation[0] * (kernel_size[0] - 1) + 1, stride[0]).unfold(3, across_kernel, stride[1])
    in_order = windows[..., :: dilation[0], :: dilation[1]].permute(0, 2, 3, 1, 4, 5)
    return in_order.reshape(in_order.shape[:3].numel(), in_order.shape[3:].numel())


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` on an accelerator, float32 [..., in_features]: one GEMM with a row for each input vector."""

    SIZES = ("in_features", "out_features")
    channel_dim = -1
    in_features: int
    out_features: int

    def check_shape(self, x: Tensor) -> None:
        """Refuse an input that has not `in_features` numbers in its last dimension.

        Raises:
            InputError: it has not.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise InputError(
                f"layer {self.name!r}: input has shape {list(x.shape)}: expected [..., {self.in_features}]"
            )

    def _accumulate(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), self.in_features)
        return self._gemm(rows, self.weight_int.t()).reshape(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """`x` float32 [..., in_features] by `w` float32 [out_features, in_features]."""
        return functional.linear(x, w, bias)


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` on an accelerator, float32 [batch, in_channels, height, width], or without the batch.

    By im2col: one GEMM for each group, with a row for each output pixel.
    """

    SIZES = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    )  # fmt: skip
    channel_dim = -3
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

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
        left, right, top, bottom = self._pad_widths
        padded = (x.shape[-2] + top + bottom, x.shape[-1] + left + right)
        if min(output_size(padded, self.kernel_size, self.stride, self.dilation)) < 1:
            raise InputError(
                f"layer {self.name!r}: input of {x.shape[-2]}x{x.shape[-1]} pixels is smaller than the kernel: "
                "use larger images"
            )

    def on_batch(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` makes of images, padded, with a dimension for the batch; without it if they have none."""
        return compute(self.pad(x)) if x.ndim == 4 else compute(self.pad(x[None]))[0]

    def pad(self, x: Tensor) -> Tensor:
        """Pad float32 images [batch, in_channels, height, width] where `multiply` does not by itself."""
        if self._pads_in_product:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, self._pad_widths, mode=mode)

    def _accumulate(self, x: Tensor) -> Tensor:
        down, across = self.product_padding
        images = functional.pad(x, [across, across, down, down])
        size = output_size((images.shape[2], images.shape[3]), self.kernel_size, self.stride, self.dilation)
        reads_images = self.accelerator.engine == "emulation" and images.device.type == "cpu"
        if reads_images and self.observer is None and self.placement is None:
            return self._emulate(images).view(len(images), self.out_channels, *size)
        outputs = []
        weights = self.weight_int.flatten(1).chunk(self.groups)
        for group, channels in enumerate(images.chunk(self.groups, dim=1)):
            columns = image_to_columns(channels, self.kernel_size, self.stride, self.dilation)
            outputs.append(self._gemm(columns, weights[group].t(), group))
        pixels = torch.cat(outputs, dim=1).view(len(images), *size, self.out_channels)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def _emulate(self, images: Tensor) -> Tensor:
        """The same on images where they lie: nothing of the size of an im2col matrix is made."""
        chip = self.accelerator
        filters = np.split(self.weight_int.flatten(1).numpy(), self.groups)
        programs = [lower(part.T, chip.config, chip.faults, bypass=chip.bypass) for part in filters]
        shape = (images.shape[1], images.shape[2], images.shape[3])
        windows = convolution_windows(shape, self.kernel_size, self.stride, self.dilation, self.groups)
        memory = images.contiguous().numpy().reshape(len(images), windows.image_size)
        return torch.from_numpy(run_on_images(programs, windows, memory))

    def multiplies_plainly(self, x: Tensor) -> bool:
        """Whether it does; other libraries may convolve by way of Winograd's transform, which rounds."""
        backend: Any = torch.backends.mkldnn
        return x.device.type == "cpu" and bool(backend.is_available() and backend.enabled)

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve images as `pad` gives them with `w`, the shape of the weights."""
        return functional.conv2d(x, w, bias, self.stride, self.product_padding, self.dilation, self.groups)

    @property
    def product_padding(self) -> tuple[int, int]:
        """Zeros that `multiply` pads, on each side down and across; `pad` does the rest."""
        left, _, top, _ = self._pad_widths
        return (top, left) if self._pads_in_product else (0, 0)

    @property
    def _pads_in_product(self) -> bool:
        left, right, top, bottom = self._pad_widths
        return self.padding_mode == "zeros" and left == right and top == bottom

    @property
    def _pad_widths(self) -> list[int]:
        """Left, right, top, bottom, as `functional.pad` wants them."""
        if isinstance(self.padding, tuple):
            totals = [2 * width for width in self.padding]
        else:
            totals = [0, 0]
            if self.padding == "same":
                totals = [step * (size - 1) for step, size in zip(self.dilation, self.kernel_size, strict=True)]
        # The odd pixel goes right and below, as in torch.
        return [width for total in reversed(totals) for width in (total // 2, total - total // 2)]
