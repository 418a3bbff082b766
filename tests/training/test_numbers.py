"""Quantisation against NumPy and values worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simulator import ArrayConfig
from training.numbers import (
    LARGEST_BIAS,
    SMALLEST_SCALE,
    activation_dtype,
    activation_limits,
    dequantize,
    quantize,
    quantize_bias,
    symmetric_scale,
    weight_limits,
    weight_scales,
    wrap,
)

finite = st.floats(-(2.0**40), 2.0**40, width=32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_limits_are_symmetric_and_fit_the_machine(bits):
    signed = ArrayConfig(1, 1, weight_bits=bits, act_bits=bits)
    unsigned = ArrayConfig(1, 1, act_bits=bits, act_signed=False)
    assert weight_limits(signed) == activation_limits(signed) == (-signed.weight_range[1], signed.weight_range[1])
    assert activation_limits(unsigned) == unsigned.act_range
    for config in (signed, unsigned):
        kept = torch.iinfo(activation_dtype(config))
        assert kept.min <= activation_limits(config)[0]
        assert kept.max >= activation_limits(config)[1]


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3), elements=finite),
    st.floats(2.0**-60, 2.0**20, width=32),
    st.integers(2, 8),
    st.booleans(),
)
def test_quantize_is_what_numpy_computes_in_float32(values, scale, bits, signed):
    config = ArrayConfig(1, 1, act_bits=bits, act_signed=signed)
    low, high = activation_limits(config)
    found = quantize(torch.from_numpy(values), torch.tensor(scale), (low, high), activation_dtype(config))
    with np.errstate(over="ignore"):
        expected = np.clip(np.rint(values / np.float32(scale)), low, high)
    assert np.array_equal(found.numpy(), expected.astype(np.int64))


def test_halves_round_to_even():
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    assert quantize(halves, torch.tensor(1.0), (-127, 127), torch.int8).tolist() == [-2, -2, 0, 0, 2, 2, 4]
    assert quantize_bias(halves, torch.ones(7)).tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_weight_scales_of_a_hand_worked_layer():
    weight = torch.tensor([[1.0, -2.54], [0.0, 0.0], [0.127, 0.0]])
    scales = weight_scales(weight, ArrayConfig(1, 1))
    assert scales.tolist() == [float(np.float32(2.54 / 127))] * 2 + [float(np.float32(0.127 / 127))]
    quantised = quantize(weight, scales[:, None], (-127, 127), torch.int8)
    assert quantised.tolist() == [[50, -127], [0, 0], [127, 0]]


def test_a_layer_of_zeros_has_the_scale_of_one():
    assert weight_scales(torch.zeros(2, 3), ArrayConfig(1, 1)).tolist() == [float(np.float32(1 / 127))] * 2
    assert float(symmetric_scale(torch.zeros((), dtype=torch.float64), 255)) == float(np.float32(1 / 255))


def test_scales_too_small_for_a_normal_product_are_raised():
    assert weight_scales(torch.full((1, 1), 1e-40), ArrayConfig(1, 1)).tolist() == [SMALLEST_SCALE]


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (4, 3), elements=finite),
    arrays.arrays(np.float32, 4, elements=finite),
    st.floats(2.0**-40, 2.0**20, width=32),
)
def test_a_bias_always_fits_the_accumulator(weight, bias, activation_scale):
    scales = weight_scales(
        torch.from_numpy(weight),
        ArrayConfig(1, 1),
        bias=torch.from_numpy(bias),
        activation_scale=activation_scale,
    )
    output_scale = torch.tensor(activation_scale) * scales
    steps = quantize_bias(torch.from_numpy(bias), output_scale).double()
    assert float(steps.abs().max()) <= LARGEST_BIAS * 1.001
    assert ((steps * output_scale.double() - torch.from_numpy(bias).double()).abs() <= output_scale * 0.501).all()
    assert (scales >= torch.from_numpy(np.abs(weight).max(1) / 127).clamp(min=SMALLEST_SCALE) * 0.9999).all()


def test_a_bias_beyond_int32_is_clamped():
    assert quantize_bias(torch.tensor([1e20, -1e20]), torch.ones(2)).tolist() == [2**31 - 1, -(2**31)]


@given(st.lists(st.integers(-(2**62), 2**62), max_size=5), st.integers(1, 32))
def test_wrap_is_modular(values, bits):
    found = wrap(torch.tensor(values, dtype=torch.int64), bits).tolist()
    for value, wrapped in zip(values, found, strict=True):
        assert (value - wrapped) % 2**bits == 0
        assert -(2 ** (bits - 1)) <= wrapped < 2 ** (bits - 1)


def test_the_bias_wraps_in_32_bits():
    top = 2**31 - 1
    accumulated = torch.tensor([[top, -top - 1, 5]], dtype=torch.int32)
    bias = torch.tensor([1, -1, -7], dtype=torch.int32)
    assert dequantize(accumulated, bias, torch.ones(3)).tolist() == [[-(2.0**31), 2.0**31, -2.0]]


@settings(deadline=None)
@given(
    arrays.arrays(np.int32, (3, 2)),
    arrays.arrays(np.int32, 2) | st.none(),
    arrays.arrays(np.float32, 2, elements=st.floats(2.0**-60, 2.0**20, width=32)),
)
def test_dequantize_is_one_conversion_and_one_product_in_float32(accumulated, bias, scale):
    total = accumulated.astype(np.int64) + (0 if bias is None else bias)
    total = (total + 2**31) % 2**32 - 2**31
    expected = total.astype(np.int32).astype(np.float32) * scale
    found = dequantize(
        torch.from_numpy(accumulated), None if bias is None else torch.from_numpy(bias), torch.from_numpy(scale)
    )
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected)
