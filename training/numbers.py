"""Symmetric quantisation: what is integer, what is float32, and in which order. The same for every engine.

A quantised layer with input scale `s_x` (one float32) and weight scales `s_w` (float32, one per output n) computes

1. `x_q = clamp(round(x / s_x))`: float32 division, round half to even, clamp to `activation_limits`, then an integer;
2. `acc = x_q @ w_q`: integers on the array, read out of accumulators that wrap to `acc_bits` bits, as int32;
3. `acc + bias_q`, wrapping in 32 bits;
4. `float32(acc + bias_q) * float32(s_x * s_w[n])`: one conversion and one multiplication, both in float32.

Zero maps to zero, so zero padding may be added before or after step 1. Fixed when the network is converted:

- `s_w[n] = max|w[n]| / (2^(weight_bits - 1) - 1)`, divided in float64, kept in float32. A channel whose weights are
  all zero takes the largest scale of the layer's other channels. A bias that would need more than 31 bits raises
  its channel's scale instead.
- `w_q = clamp(round(w / s_w[n]))`, as in step 1, to `weight_limits`.
- `s_x`: see `training.calibration`.
- `bias_q[n] = clamp(round(bias[n] / float32(s_x * s_w[n])))`: float64 division, round half to even, clamp to int32.

The scheme is that of Jacob et al. 2018, arXiv 1712.05877, without zero points, with float32 outputs of each layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simulator import ArrayConfig

SMALLEST_SCALE = 2.0**-60
"""Scales below this are raised to it, so that the product of two is still a normal float32."""

LARGEST_BIAS = 2.0**30
"""A bias is kept below this in units of the accumulator, which leaves half of its 32 bits for the sum."""

_INT32 = torch.iinfo(torch.int32)


def weight_limits(config: ArrayConfig) -> tuple[int, int]:
    """The least and the greatest quantised weight: symmetric, so the most negative number is not used.

    >>> weight_limits(ArrayConfig(1, 1, weight_bits=4))
    (-7, 7)
    """
    levels: int = (1 << (config.weight_bits - 1)) - 1
    return -levels, levels


def activation_limits(config: ArrayConfig) -> tuple[int, int]:
    """The least and the greatest quantised activation: symmetric if signed, from 0 if unsigned.

    >>> activation_limits(ArrayConfig(1, 1)), activation_limits(ArrayConfig(1, 1, act_signed=False))
    ((-127, 127), (0, 255))
    """
    if not config.act_signed:
        return 0, (1 << config.act_bits) - 1
    levels: int = (1 << (config.act_bits - 1)) - 1
    return -levels, levels


def activation_dtype(config: ArrayConfig) -> torch.dtype:
    """The narrowest integer type that holds every activation: int8 if signed, uint8 if not."""
    return torch.int8 if config.act_signed else torch.uint8


def symmetric_scale(largest: Tensor, levels: int) -> Tensor:
    """The scale, float32, with which `largest`, float64 of any shape, becomes `levels`; at least `SMALLEST_SCALE`.

    Where `largest` is 0, any scale would do, and it is the one for the largest magnitude of the others (for 1 if all
    are 0). NaN stays NaN, so that a training that diverges shows it.
    """
    substitute = largest.max() if bool((largest > 0).any()) else largest.new_tensor(1.0)
    scale: Tensor = torch.where(largest == 0, substitute, largest) / levels
    return scale.clamp(min=SMALLEST_SCALE).to(torch.float32)


def weight_scales(
    weight: Tensor, config: ArrayConfig, *, bias: Tensor | None = None, activation_scale: float = 1.0
) -> Tensor:
    """The scale of each output channel's weights: float32 [outputs] from float32 [outputs, ...], finite.

    Scales are raised where a bias, float32 [outputs], would not fit in the accumulator.
    """
    scales = symmetric_scale(weight.flatten(1).abs().amax(1).double(), weight_limits(config)[1])
    if bias is None:
        return scales
    return torch.maximum(scales, (bias.double().abs() / (activation_scale * LARGEST_BIAS)).to(torch.float32))


def quantize(values: Tensor, scale: Tensor, limits: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Divide float32 values, finite, by a positive float32 scale in float32, round half to even, clamp.

    >>> quantize(torch.tensor([0.5, 1.5, -2.5, 9.0]), torch.tensor(1.0), (-7, 7), torch.int8).tolist()
    [0, 2, -2, 7]
    """
    return torch.round(values / scale).clamp(*limits).to(dtype)


def quantize_bias(bias: Tensor, output_scale: Tensor) -> Tensor:
    """A bias, float32 [outputs], in units of the accumulator, whose steps are `output_scale`: int32, clamped."""
    steps = torch.round(bias.double() / output_scale.double())
    return steps.clamp(_INT32.min, _INT32.max).to(torch.int32)


def wrap(values: Tensor, bits: int) -> Tensor:
    """Reduce int64 to signed two's complement of 1..32 bits, as a register of that width does: int32.

    >>> wrap(torch.tensor([127, 128, -129]), 8).tolist()
    [127, -128, 127]
    """
    sign = 1 << (bits - 1)
    return (((values + sign) & ((1 << bits) - 1)) - sign).to(torch.int32)


def dequantize(accumulated: Tensor, bias: Tensor | None, output_scale: Tensor, *, channel_dim: int = -1) -> Tensor:
    """Add a bias, int32 [outputs], in 32 wrapping bits, and turn accumulators into numbers, float32 of their shape.

    `accumulated` is int32 with the outputs in dimension `channel_dim`, `output_scale` the value of one of its steps.
    """
    shape = [1] * accumulated.ndim
    shape[channel_dim] = len(output_scale)
    if bias is not None:
        if accumulated.device.type == "cpu":
            # NumPy defines that int32 sums wrap, which saves a passage through 64 bits.
            accumulated = torch.from_numpy(np.add(accumulated.numpy(), bias.view(shape).numpy()))
        else:
            accumulated = wrap(accumulated.to(torch.int64) + bias.view(shape), 32)
    return accumulated.to(torch.float32).mul_(output_scale.view(shape))
