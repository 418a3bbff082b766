"""The GEMMs of a quantised layer on images that lie in memory one after another, on an array without faults.

Windows of a convolution are affine: where row m of X begins and where reduction index k lies from there are two sums of
multiples, so nothing of the size of an im2col matrix is made, and what a fault does to one layer can be worked out from
the few activations that it meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from simulator import ArrayConfig
from simulator.dtypes import Int32Array, Int64Array, UInt8Array
from simulator.errors import InputError
from training.emulation.gemm import Windows, convolution_windows, run_on_images
from training.emulation.program import lower
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.numbers import dequantize

if TYPE_CHECKING:
    from training.emulation.program import Program

Memory = npt.NDArray[np.int8] | UInt8Array
"""[S, image_size]: int8, or uint8 if activations are unsigned."""


@dataclass(frozen=True, eq=False)
class GemmInMemory:
    """A quantised layer's GEMMs on images that lie in memory one after another.

    `X[m, k]` of an image is `memory[start(m) + offset[group, k]]`, and `start(m)` is
    `(m // across) * step_down + (m % across) * step_across`. Operands sit in order on an array without faults and
    without bypass, whatever chip the layer is on.

    Attributes:
        layer: the layer.
        input_shape: of one image, without the batch.
        output_shape: of what the layer makes of it.
        weights: int8 [groups, N, K], read-only, contiguous.
        offset: int64 [groups, K], strictly increasing in each group.
        down: an image has `down * across` rows of X.
        across: as many lie `step_across` elements apart.
        step_down: elements from one such run of rows to the next.
        step_across: elements from one row of X to the next within a run.
        image_size: elements of one image in memory, padding included.
    """

    layer: QuantizedLayer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weights: npt.NDArray[np.int8]
    offset: Int64Array
    down: int
    across: int
    step_down: int
    step_across: int
    image_size: int

    @classmethod
    def of(cls, layer: QuantizedLayer, input_shape: tuple[int, ...]) -> GemmInMemory:
        """The GEMMs of a layer on inputs of one shape, to be made anew when the layer's parameters change.

        Args:
            layer: a convolution or a linear layer.
            input_shape: of one image's input: [in_channels, height, width], or [..., in_features].

        Raises:
            InputError: the layer has a placement, is of another kind, or the shape does not fit.
        """
        if layer.placement is not None:
            raise InputError(
                f"layer {layer.name!r}: its operands are placed elsewhere on the array: expected them in order; "
                "take the network without a deployment's placement"
            )
        if isinstance(layer, QuantizedConv2d) and len(input_shape) != 3:
            raise InputError(
                f"layer {layer.name!r}: input of one image has shape {list(input_shape)}: "
                f"expected [{layer.in_channels}, height, width]"
            )
        layer.check_shape(torch.empty(1, *input_shape, device="meta"))
        groups, k, n = layer.gemm_shape
        weights = layer.weight_int.cpu().numpy().reshape(groups, n, k).copy()
        if isinstance(layer, QuantizedConv2d):
            image = layer.pad(torch.empty(1, *input_shape, device="meta"))
            down, across = layer.product_padding
            padded = (image.shape[1], image.shape[2] + 2 * down, image.shape[3] + 2 * across)
            windows = convolution_windows(padded, layer.kernel_size, layer.stride, layer.dilation, layer.groups)
            output_shape: tuple[int, ...] = (layer.out_channels, windows.down, windows.across)
        elif isinstance(layer, QuantizedLinear):
            vectors = int(np.prod(input_shape[:-1], dtype=np.int64))
            windows = Windows(np.arange(k)[None], 1, vectors, vectors * k, k, vectors * k)
            output_shape = (*input_shape[:-1], layer.out_features)
        else:
            raise InputError(
                f"layer {layer.name!r} is a {type(layer).__name__}: expected a QuantizedConv2d or QuantizedLinear"
            )
        weights.flags.writeable = False
        return cls(layer, tuple(input_shape), output_shape, weights, *windows)

    @cached_property
    def config(self) -> ArrayConfig:
        """The array."""
        return self.layer.config

    @cached_property
    def groups(self) -> int:
        """Number of GEMMs."""
        return len(self.weights)

    @cached_property
    def n(self) -> int:
        """Outputs of one group's GEMM."""
        return int(self.weights.shape[1])

    @cached_property
    def k(self) -> int:
        """Reduction length of one group's GEMM."""
        return int(self.weights.shape[2])

    @cached_property
    def m(self) -> int:
        """Rows of X that one image makes."""
        return self.down * self.across

    @cached_property
    def outputs(self) -> int:
        """Outputs of all groups."""
        return self.groups * self.n

    @cached_property
    def start(self) -> Int64Array:
        """int64 [M]: where each row of X begins in its image."""
        down, across = np.ogrid[: self.down, : self.across]
        start: Int64Array = (down * self.step_down + across * self.step_across).reshape(-1)
        start.flags.writeable = False
        return start

    def memory(self, x: Tensor) -> Memory:
        """Lay images out in memory: quantised, padded.

        Args:
            x: float32 [S, *input_shape], finite; not checked.

        Returns:
            int8 (uint8 if activations are unsigned) [S, image_size].
        """
        layer = self.layer
        if isinstance(layer, QuantizedConv2d):
            down, across = layer.product_padding
            quantized = functional.pad(layer.quantize_input(layer.pad(x)), [across, across, down, down])
        else:
            quantized = layer.quantize_input(x)
        memory: Memory = quantized.cpu().contiguous().numpy().reshape(len(x), self.image_size)
        return memory

    def accumulate(self, memory: Memory) -> Int32Array:
        """What the column accumulators hold at the end on an array without faults.

        Args:
            memory: [S, image_size], as `memory` gives it: within the range of activations.

        Returns:
            int32 [S, outputs, M], wrapped to `acc_bits` bits.
        """
        # Writable, as everywhere: Numba compiles anew for arrays that are read-only.
        activations = np.require(memory, requirements=["C", "W"])
        return run_on_images(self._programs, self._windows, activations)

    def result(self, accumulated: Int32Array) -> Tensor:
        """What the layer returns for these accumulators.

        Args:
            accumulated: int32 [S, outputs, M].

        Returns:
            float32 [S, *output_shape] on the CPU.
        """
        layer = self.layer
        bias = None if layer.bias_int is None else layer.bias_int.cpu()
        # A tensor of an array that is read-only warns.
        sums = torch.from_numpy(np.require(accumulated, requirements="W"))
        values = dequantize(sums, bias, layer.output_scale.cpu(), channel_dim=1)
        if not isinstance(layer, QuantizedConv2d):
            values = values.transpose(1, 2).contiguous()
        return values.view(len(accumulated), *self.output_shape)

    @property
    def _windows(self) -> Windows:
        places = (self.down, self.across, self.step_down, self.step_across)
        return Windows(self.offset, *places, self.image_size)

    @cached_property
    def _programs(self) -> list[Program]:
        return [lower(weights.T, self.config) for weights in self.weights]
