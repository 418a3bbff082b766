"""A quantised layer in a run without faults: what is kept of it, and doing it again where its input differs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.injection.layer_gemm import LayerGemm
from training.layers.quantized import QuantizedConv2d
from training.numbers import activation_limits

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

_DENSE_RATE = 10.0
"""How many times as many multiply-accumulates a whole layer does in a time as single ones are added."""
_OVERHEAD = 16
"""What finding a window that an activation is in costs, in multiply-accumulates."""
_MOST_WINDOWS = 1 << 23
"""Times activations in them: what is listed for a layer."""


class Rounded(NamedTuple):
    """What has become of inputs when they were quantised; int64 [entries] each.

    Attributes:
        differ: elements that differ.
        rounded: of these, both are rounded to the same integer.
        saturated: both are clamped to the same.
        changed: the others.
        memory: int8 or uint8 [entries, image_size], as the array is fed.
        places: int32 [entries, ...]: where in memory these lie, for entries with few.
    """

    differ: Int64Array
    rounded: Int64Array
    saturated: Int64Array
    changed: Int64Array
    memory: Any
    places: Int32Array

    def of(self, chosen: npt.NDArray[np.bool_]) -> Rounded:
        """Those of some entries, bool [entries]."""
        return Rounded(*(np.asarray(part)[chosen] for part in self))


class Compared(NamedTuple):
    """How accumulators differ; int64 [entries] each.

    Attributes:
        changed: accumulators that differ.
        pattern: which, a place in `training.injection.replay.PATTERNS`.
        largest: the largest difference.
        total: the sum of their magnitudes.
        results: elements of the layer's result that differ.
    """

    changed: Int64Array
    pattern: Int64Array
    largest: Int64Array
    total: Int64Array
    results: Int64Array


@dataclass(frozen=True, eq=False)
class KeptLayer:
    """A layer in a run without faults.

    Attributes:
        gemm: the layer's GEMMs.
        inputs: float32 [n, elements].
        memory: int8 or uint8 [n, image_size]: the same as the array is fed with them.
        sums: int32 [n, outputs, M]: what the accumulators hold at the end.
        values: float32 [n, outputs, M]: the layer's result.
        by_input: int16 [groups * K, N], the weights.
        lines: where an element of the input lies in memory: lines of a channel and their length, elements from one
            channel to the next and from one line to the next, and the first element; None if padding is not of zeros.
    """

    gemm: LayerGemm
    inputs: npt.NDArray[np.float32]
    memory: Any
    sums: Int32Array
    values: npt.NDArray[np.float32]
    by_input: npt.NDArray[np.int16]
    lines: tuple[int, int, int, int, int] | None

    @classmethod
    def of(cls, gemm: LayerGemm, x: Tensor) -> KeptLayer:
        """Run a layer.

        Args:
            gemm: of the layer.
            x: float32 [n, *input_shape].
        """
        memory = gemm.memory(x)
        sums = gemm.accumulate(memory)
        values = gemm.result(sums)
        if not isinstance(gemm.layer, QuantizedConv2d):
            values = values.view(len(x), gemm.m, gemm.outputs).transpose(1, 2)
        return cls(
            gemm,
            x.reshape(len(x), -1).contiguous().numpy(),
            memory,
            sums,
            values.reshape(len(x), gemm.outputs, gemm.m).contiguous().numpy(),
            np.ascontiguousarray(gemm.weights.transpose(0, 2, 1), np.int16).reshape(-1, gemm.n),
            _lines(gemm),
        )

    @cached_property
    def windows(self) -> tuple[Int64Array, Int32Array, Int32Array]:
        """Which windows each place in memory is in.

        Returns:
            int64 [image_size + 1], where those of a place begin and end; and for each the row of X and `group * K + k`.
        """
        gemm = self.gemm
        place = (gemm.start[None, :] + gemm.offset.reshape(-1)[:, None]).reshape(-1)
        order = np.argsort(place, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=gemm.image_size))])
        k, row = np.divmod(order, gemm.m)
        return first, row.astype(np.int32), k.astype(np.int32)

    @cached_property
    def few(self) -> int:
        """Up to so many activations that differ are quicker added one by one than the whole layer is done again."""
        gemm = self.gemm
        listed = gemm.m * gemm.k * gemm.groups
        if self.lines is None or not gemm.config.multiplies_exactly or listed > _MOST_WINDOWS:
            return 0
        each = listed / gemm.image_size * (gemm.n + _OVERHEAD) * _DENSE_RATE
        return int(listed * gemm.n / each)

    def quantised(self, x: Tensor, image: Int64Array) -> Rounded:
        """Quantise inputs.

        Args:
            x: float32 [entries, *input_shape], finite.
            image: int64 [entries], the image that each is of.
        """
        from training.injection.replay_kernel import quantise

        values = x.reshape(len(x), -1).contiguous().numpy()
        counts = np.empty((4, len(x)), np.int64)
        places = np.empty((len(x), self.few), np.int32)
        memory = self.gemm.memory(x) if self.lines is None else self.memory[image]
        low, high = (np.float32(limit) for limit in activation_limits(self.gemm.config))
        scale = np.float32(self.gemm.layer.activation_scale.item())
        written = memory[:0] if self.lines is None else memory
        lines = self.lines or (1, 1, 0, 0, 0)
        quantise(values, self.inputs, image, scale, low, high, lines, self.few, written, places, counts)
        return Rounded(counts[0], counts[1], counts[2], counts[3], memory, places)

    def accumulated(self, inputs: Rounded, image: Int64Array) -> Int32Array:
        """The accumulators for inputs that differ.

        Args:
            inputs: as they were quantised.
            image: int64 [entries], the image that each is of.

        Returns:
            int32 [entries, outputs, M].
        """
        from training.injection.replay_kernel import add_changes

        gemm = self.gemm
        few = inputs.changed <= self.few
        if not few.any():
            return gemm.accumulate(inputs.memory)
        sums = np.empty((len(image), gemm.outputs, gemm.m), np.int32)
        if not few.all():
            sums[~few] = gemm.accumulate(inputs.memory[~few])
        add_changes(
            np.nonzero(few)[0],
            inputs.changed,
            inputs.places,
            inputs.memory,
            self.memory,
            image,
            self.by_input,
            self.windows,
            32 - gemm.config.acc_bits,
            self.sums,
            sums,
        )
        return sums

    def results(self, sums: Int32Array, image: Int64Array) -> tuple[Compared, Tensor]:
        """The layer's results for accumulators that differ, and how these do.

        Args:
            sums: int32 [entries, outputs, M].
            image: int64 [entries], the image that each is of.

        Returns:
            How they differ, and float32 [entries, *output_shape].
        """
        from training.injection.replay_kernel import compare

        gemm = self.gemm
        layer = gemm.layer
        bias = np.zeros(gemm.outputs, np.int32) if layer.bias_int is None else layer.bias_int.numpy()
        values = np.empty(sums.shape, np.float32)
        found = np.empty((5, len(sums)), np.int64)
        compare(sums, self.sums, image, bias, layer.output_scale.numpy(), self.values, values, found)
        result = torch.from_numpy(values)
        if not isinstance(layer, QuantizedConv2d):
            result = result.transpose(1, 2).contiguous()
        return Compared(*found), result.view(len(sums), *gemm.output_shape)


def _lines(gemm: LayerGemm) -> tuple[int, int, int, int, int] | None:
    layer = gemm.layer
    if not isinstance(layer, QuantizedConv2d):
        return 1, gemm.image_size, gemm.image_size, gemm.image_size, 0
    channels, height, width = gemm.input_shape
    if layer.pad(torch.empty(1, *gemm.input_shape, device="meta")).shape[1:] != gemm.input_shape:
        return None
    down, across = layer.product_padding
    padded = width + 2 * across
    return height, width, gemm.image_size // channels, padded, down * padded + across
