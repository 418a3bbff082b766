"""Quantised layers against torch in float64 over integers, and their errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simulator import ArrayConfig, FaultModel, Site, sample_faults
from simulator.errors import ConversionError, InputError
from training.layers.accelerator import Accelerator
from training.layers.quantized import QuantizedConv2d, QuantizedLinear, image_to_columns

CONFIG = ArrayConfig(8, 8)
EXACT = Accelerator(CONFIG, engine="exact")


def exact(**widths):
    return Accelerator(ArrayConfig(8, 8, **widths), engine="exact")


def wrapped(values, bits):
    return (values + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def expected_output(accumulated, layer):
    """The contract of training.numbers on float64 accumulators [n, outputs, ...], worked out in NumPy."""
    column = (-1, *[1] * (accumulated.ndim - 2))
    total = wrapped(accumulated.numpy().astype(np.int64), layer.config.acc_bits)
    if layer.bias_int is not None:
        total = wrapped(total + layer.bias_int.numpy().astype(np.int64).reshape(column), 32)
    scale = layer.activation_scale.numpy() * layer.weight_scale.numpy()
    return total.astype(np.float32) * scale.reshape(column)


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    per_group, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 3), st.integers(0, 3)))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    layer = nn.Conv2d(
        groups * per_group,
        groups * outputs,
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=draw(st.tuples(st.integers(1, 3), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    images = torch.randn(
        draw(st.integers(0, 3)), groups * per_group, draw(st.integers(7, 11)), draw(st.integers(7, 11))
    )
    return layer, images


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # of the reference, in torch
@settings(deadline=None, max_examples=200)
@given(convolutions(), st.booleans(), st.integers(2, 8), st.integers(2, 8), st.integers(16, 32))
def test_convolution_is_that_of_torch_over_integers(convolution, signed, weight_bits, act_bits, acc_bits):
    layer, images = convolution
    accelerator = exact(weight_bits=weight_bits, act_bits=act_bits, act_signed=signed, acc_bits=acc_bits)
    quantized = QuantizedConv2d(layer, 3.0 / 2**act_bits, accelerator)
    found = quantized(images)
    accumulated = functional.conv2d(
        quantized.quantize_input(images).double(),
        quantized.weight_int.double(),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected_output(accumulated, quantized))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(deadline=None, max_examples=100)
@given(convolutions(), st.booleans(), st.sampled_from([16, 21, 32]), st.integers(0, 2**32 - 1))
def test_convolution_on_a_faulty_chip_is_the_same_on_every_engine(convolution, signed, acc_bits, seed):
    layer, images = convolution
    config = ArrayConfig(7, 3, act_signed=signed, acc_bits=acc_bits)
    faults = sample_faults(config, FaultModel(0.3, sites=dict.fromkeys(Site, 1.0)), seed)
    bypass = np.random.default_rng(seed).random((7, 3)) < 0.2
    outputs = {}
    for engine in ("emulation", "cycle"):
        quantized = QuantizedConv2d(layer, 0.02, Accelerator(config, faults, bypass, engine))
        outputs[engine] = quantized(images)
    assert torch.equal(outputs["emulation"], outputs["cycle"])
    # Observed, the layer lays its operands out by im2col.
    runs = []
    quantized = QuantizedConv2d(layer, 0.02, Accelerator(config, faults, bypass))
    quantized.observer = runs.append
    assert torch.equal(quantized(images), outputs["cycle"])
    assert len(runs) == layer.groups


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_other_padding_modes_pad_as_torch_does(mode, padding):
    layer = nn.Conv2d(2, 3, (4, 3), padding=padding, padding_mode=mode)
    quantized = QuantizedConv2d(layer, 0.02, EXACT)
    images = torch.randn(2, 2, 6, 7)
    float_layer = nn.Conv2d(2, 3, (4, 3), padding=padding, padding_mode=mode, bias=False).double()
    float_layer.weight.data = quantized.weight_int.double()
    accumulated = float_layer(quantized.quantize_input(images).double()).detach()
    assert np.array_equal(quantized(images).numpy(), expected_output(accumulated, quantized))


def test_images_need_no_batch():
    quantized = QuantizedConv2d(nn.Conv2d(2, 3, 3), 0.02, EXACT)
    image = torch.randn(2, 6, 7)
    assert torch.equal(quantized(image), quantized(image[None])[0])


@settings(deadline=None)
@given(convolutions())
def test_columns_are_ordered_as_unfold_orders_them(convolution):
    layer, images = convolution
    if not len(images):
        return
    unfolded = functional.unfold(images, layer.kernel_size, layer.dilation, 0, layer.stride)
    expected = unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
    assert torch.equal(image_to_columns(images, layer.kernel_size, layer.stride, layer.dilation), expected)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=3), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 2**32)
)
def test_linear_is_that_of_torch_over_integers(leading, inputs, outputs, bias, seed):
    torch.manual_seed(seed)
    quantized = QuantizedLinear(nn.Linear(inputs, outputs, bias=bias), 0.02, EXACT)
    x = torch.randn(*leading, inputs)
    rows = quantized.quantize_input(x).double().reshape(-1, inputs) if x.numel() else torch.zeros(0, inputs).double()
    expected = expected_output(functional.linear(rows, quantized.weight_int.double()), quantized)
    found = quantized(x)
    assert found.shape == (*leading, outputs)
    assert np.array_equal(found.numpy().reshape(-1, outputs), expected)


def test_a_hand_worked_linear_layer():
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[0.5, -1.27]]), torch.tensor([0.25])
    quantized = QuantizedLinear(layer, 0.5, EXACT)
    assert quantized.weight_int.tolist() == [[50, -127]]
    assert quantized.bias_int.tolist() == [50]  # 0.25 / (0.5 * 0.01)
    # 1.3 / 0.5 rounds to 3 and -0.75 / 0.5 to -2: 3 * 50 + 2 * 127 + 50 = 454 steps of 0.005
    assert quantized(torch.tensor([1.3, -0.75])).tolist() == [
        float(np.float32(454) * (np.float32(0.5) * np.float32(1.27 / 127)))
    ]


def test_the_observer_sees_each_gemm():
    quantized = QuantizedConv2d(nn.Conv2d(4, 6, 3, groups=2), 0.02, EXACT, "features.0")
    runs = []
    quantized.observer = runs.append
    images = torch.randn(2, 4, 5, 6)
    result = quantized(images)
    assert [(run.layer, run.group, run.x.shape, run.w.shape) for run in runs] == [
        ("features.0", 0, (24, 18), (18, 3)),
        ("features.0", 1, (24, 18), (18, 3)),
    ]
    for run in runs:
        assert run.outputs.dtype == torch.int32
        assert torch.equal(run.outputs.long(), run.x.long() @ run.w.long())
    accumulated = torch.cat([run.outputs for run in runs], 1).view(2, 3, 4, 6).permute(0, 3, 1, 2)
    assert np.array_equal(result.numpy(), expected_output(accumulated, quantized))


@pytest.mark.parametrize("shape", [(6,), (2, 5, 8, 8), (2, 4, 2, 8), (2, 4)])
def test_images_that_do_not_fit_are_named_with_their_shape(shape):
    quantized = QuantizedConv2d(nn.Conv2d(4, 6, 3), 0.02, EXACT, "features.0")
    with pytest.raises(InputError, match=r"layer 'features.0': input"):
        quantized(torch.zeros(shape))


def test_vectors_that_do_not_fit_are_named_with_their_shape():
    quantized = QuantizedLinear(nn.Linear(4, 6), 0.02, EXACT, "head")
    with pytest.raises(InputError, match=r"layer 'head': input has shape \[2, 5\]: expected \[..., 4\]"):
        quantized(torch.zeros(2, 5))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(broken):
    quantized = QuantizedLinear(nn.Linear(4, 6), 0.02, EXACT, "head")
    with pytest.raises(InputError, match="layer 'head': NaN or infinity"):
        quantized(torch.full((2, 4), broken))
    with pytest.raises(InputError, match=r"input is torch.float64: expected torch.float32"):
        quantized(torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("weight", "bias", "scale", "message"),
    [
        (float("nan"), 0.0, 0.1, "6 of 6 weights are NaN"),
        (0.0, float("inf"), 0.1, "2 of 2 bias values are NaN or infinite"),
        (1.0, 0.0, 0.0, "activation scale is 0.0"),
        (1.0, 0.0, float("nan"), "activation scale is nan"),
        (3e38, 0.0, 1e5, "overflow float32"),
    ],
)
def test_layers_that_cannot_be_quantised(weight, bias, scale, message):
    layer = nn.Linear(3, 2)
    layer.weight.data.fill_(weight)
    layer.bias.data.fill_(bias)
    with pytest.raises(ConversionError, match=message):
        QuantizedLinear(layer, scale, EXACT, "head")


def test_printing_a_layer_shows_its_widths():
    text = str(QuantizedConv2d(nn.Conv2d(4, 6, 3), 0.02, exact(act_signed=False, act_bits=4)))
    assert "4, 6, kernel_size=(3, 3)" in text
    assert "weights=int8, activations=uint4, bias=True, engine='exact'" in text
    assert "in_features=4, out_features=6" in str(QuantizedLinear(nn.Linear(4, 6), 0.02, EXACT))
