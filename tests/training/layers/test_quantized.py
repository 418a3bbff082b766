"""Quantised layers against torch in float64 over integers, and their errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.errors import ConversionError, InputError
from tests.support.strategies import CHIP_KINDS, LayerCase, layer_cases, random_tables
from training.layers.accelerator import Accelerator
from training.layers.placement import Placement
from training.layers.quantized import LARGEST_EXACT_FLOAT, QuantizedConv2d, QuantizedLinear, image_to_columns
from training.numbers import activation_limits

pytestmark = pytest.mark.usefixtures("one_thread")

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
    assert "in_channels=4, out_channels=6, kernel_size=(3, 3)" in text
    assert "weights=int8, activations=uint4, bias=True, engine='exact'" in text
    assert "in_features=4, out_features=6" in str(QuantizedLinear(nn.Linear(4, 6), 0.02, EXACT))


SAME_WITH_EVEN_KERNEL = "ignore:Using padding='same' with even kernel lengths"


@pytest.mark.filterwarnings(SAME_WITH_EVEN_KERNEL)
@pytest.mark.parametrize("narrow", [False, True])
def test_layers_compute_as_the_array_on_chips_that_hide_their_faults(narrow: bool) -> None:
    seen: Counter[bool] = Counter()

    def check(case: LayerCase) -> None:
        layer = case.quantized()
        assert layer.computes_exactly
        assert torch.equal(layer(case.x), case.quantized("cycle")(case.x))
        weights = layer.weights_as_float32()
        seen[weights is None] += 1
        if weights is None:
            return
        kept = layer.kept_weights()
        assert torch.equal(weights, layer.weight_int * (1 if kept is None else kept))
        whole = layer.input_as_float32(case.x)
        assert torch.equal(whole, layer.quantize_input(case.x).float())
        # Observed, the layer runs GEMMs, and gives the same.
        layer.observer = lambda run: None
        assert torch.equal(layer(case.x), case.quantized("cycle")(case.x))

    for kind in CHIP_KINDS:
        if kind != "visible":
            settings(max_examples=8)(given(layer_cases(kind, narrow=narrow))(check))()
    # Sums that may wrap are left to the emulation.
    assert seen[narrow], seen


NARROW = ArrayConfig(3, 4)


def linear(chip: Accelerator, outputs: int = 3) -> QuantizedLinear:
    """Two rows and some columns of the array."""
    return QuantizedLinear(nn.Linear(2, outputs), 0.02, chip)


def fault(site: Site, row: int = 0, col: int = 1, kind: Kind = Kind.STUCK_AT_1) -> FaultMap:
    """One fault, of the least bit."""
    return FaultMap.from_faults(NARROW, [Fault(row, col, site, 0, kind, 3 if kind == Kind.FLIP else None)])


@pytest.mark.parametrize("site", [site for site in Site if site != Site.ACCUMULATOR])
def test_a_fault_that_acts_is_emulated_and_one_that_is_hidden_is_not(site: Site) -> None:
    faults = fault(site)
    assert not linear(Accelerator(NARROW, faults)).computes_exactly
    assert linear(Accelerator(NARROW, faults)).weights_as_float32() is None
    required = faults.required_bypass()
    assert linear(Accelerator(NARROW, faults, required)).computes_exactly
    assert linear(Accelerator(NARROW, faults, required)).weights_as_float32() is not None
    # One PE too few.
    row, col = np.argwhere(required)[-1]
    required[row, col] = False
    assert not linear(Accelerator(NARROW, faults, required)).computes_exactly


@pytest.mark.parametrize("site", Site)
def test_upsets_are_not_hidden(site: Site) -> None:
    everything = np.ones((NARROW.rows, NARROW.cols), np.bool_)
    assert not linear(Accelerator(NARROW, fault(site, kind=Kind.FLIP), everything)).computes_exactly


@pytest.mark.parametrize(("column", "outputs", "exact"), [(1, 3, False), (3, 3, True), (3, 4, False), (0, 5, False)])
def test_broken_accumulators_matter_under_columns_in_use(column: int, outputs: int, exact: bool) -> None:
    faults = fault(Site.ACCUMULATOR, col=column)
    layer = linear(Accelerator(NARROW, faults), outputs)
    assert layer.computes_exactly == exact
    assert (layer.weights_as_float32() is not None) == exact
    # The same outputs on other columns, of other folds.
    moved = (np.arange(outputs) * NARROW.cols + (column + 1) % NARROW.cols)[None]
    layer.placement = Placement(np.array([[0, 1]]), moved)
    assert layer.computes_exactly
    moved[0, -1] += NARROW.cols - 1
    layer.placement = Placement(np.array([[0, 1]]), moved)
    assert not layer.computes_exactly


def test_products_that_are_not_exact_are_emulated_and_the_cycle_engine_always_runs(seed: int) -> None:
    random = np.random.default_rng(seed)
    multiplier = random_tables(random, 4, 4, act_signed=True)
    while multiplier.exact:
        multiplier = random_tables(random, 4, 4, act_signed=True)
    config = ArrayConfig(3, 4, weight_bits=4, act_bits=4, multiplier=multiplier)
    assert not linear(Accelerator(config)).computes_exactly
    assert not linear(Accelerator(config, bypass=np.ones((3, 4), np.bool_))).computes_exactly
    x = torch.randn(5, 2)
    layer = linear(Accelerator(config))
    expected = layer(x)
    layer.accelerator = Accelerator(config, engine="cycle")
    assert torch.equal(layer(x), expected)
    exact = linear(Accelerator(NARROW))
    assert exact.computes_exactly
    assert linear(Accelerator(NARROW, engine="exact")).computes_exactly
    assert not linear(Accelerator(NARROW, engine="cycle")).computes_exactly


@st.composite
def whole_layers(draw: st.DrawFn, bound: int, config: ArrayConfig) -> tuple[QuantizedLinear, torch.Tensor]:
    """A layer of one output, of whole numbers, whose largest sum is `bound`; and the inputs that come closest to it."""
    largest = max(map(abs, activation_limits(config)))
    sums = bound // largest
    weights = [127] * (sums // 127) + ([sums % 127] if sums % 127 else [])
    signs = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 2, len(weights)) * 2 - 1
    layer = nn.Linear(len(weights), 1)
    layer.weight.data = torch.tensor([[sign * weight for sign, weight in zip(signs, weights, strict=True)]]).float()
    layer.bias.data = torch.tensor([float(draw(st.sampled_from([-1, 1])) * (bound - largest * sums))])
    quantized = QuantizedLinear(layer, 1.0, Accelerator(config))
    assert quantized.weight_int.abs().sum() * largest + quantized.bias_int.abs().sum() == bound
    extreme = torch.from_numpy(np.stack([signs, -signs, np.maximum(signs, 0), np.minimum(signs, 0)])).float()
    return quantized, extreme * largest


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("acc_bits", [16, 19, 25, 32])
@given(data=st.data(), beyond=st.sampled_from([-2, -1, 0, 1, 2]))
@settings(max_examples=8)
def test_sums_that_could_round_or_wrap_are_left_to_the_emulation(
    acc_bits: int, signed: bool, data: st.DataObject, beyond: int
) -> None:
    # Rows enough for a few folds at most.
    config = ArrayConfig(400, 1, act_signed=signed, acc_bits=acc_bits)
    limit = min(LARGEST_EXACT_FLOAT, 1 << (acc_bits - 1))
    layer, x = data.draw(whole_layers(limit + beyond, config))
    assert (layer.weights_as_float32() is None) == (beyond >= 0)
    found = layer(x)
    layer.accelerator = replace(layer.accelerator, engine="cycle")
    assert torch.equal(found, layer(x))


def test_weights_at_bypassed_pes_do_not_count_towards_the_largest_sum() -> None:
    config = ArrayConfig(2, 1, acc_bits=16)
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data.fill_(127.0)
    quantized = QuantizedLinear(layer, 1.0, Accelerator(config))
    assert quantized.kept_weights() is None
    assert quantized.weights_as_float32() is None
    # 0 and 2 of the three are in row 0 of the array.
    quantized.accelerator = Accelerator(config, bypass=np.array([[False], [True]]))
    kept, whole = quantized.kept_weights(), quantized.weights_as_float32()
    assert kept is not None
    assert kept.tolist() == [[True, False, True]]
    assert whole is not None
    assert whole.tolist() == [[127.0, 0.0, 127.0]]
    x = torch.tensor([[127.0, 127.0, 127.0], [-127.0, 127.0, -127.0]])
    assert quantized(x).tolist() == [[2 * 127.0**2], [-2 * 127.0**2]]


def test_float_convolutions_are_trusted_where_they_are_plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedConv2d(nn.Conv2d(2, 3, 3), 0.02, Accelerator(NARROW))
    images = torch.randn(2, 2, 5, 5)
    calls: list[int] = []
    product_in_float32 = QuantizedConv2d.product_in_float32

    def counted(self: QuantizedConv2d, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return product_in_float32(self, x, w)

    monkeypatch.setattr(QuantizedConv2d, "product_in_float32", counted)
    expected = layer(images)
    assert calls == [1]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not layer.multiplies_plainly(images)
    assert torch.equal(layer(images), expected)
    assert calls == [1]
