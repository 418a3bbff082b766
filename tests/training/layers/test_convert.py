"""Conversion of whole networks, placing them on chips, and every network that cannot be converted."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.errors import ConversionError, InputError
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.quantized import QuantizedConv2d, QuantizedLinear

CONFIG = ArrayConfig(8, 6)
EXACT = Accelerator(CONFIG, engine="exact")


class Branches(nn.Module):
    """A layer used twice, nested modules, batch normalisation and a depthwise convolution."""

    def __init__(self, channels=4, groups=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding="same"), nn.BatchNorm2d(channels), nn.ReLU())
        self.twice = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.again = self.twice
        self.parts = nn.ModuleDict({"wide": nn.ModuleList([nn.Conv2d(channels, 2 * channels, 1, groups=groups)])})
        self.head = nn.Linear(2 * channels, 5)

    def forward(self, images):  # noqa: D102
        x = self.stem(images)
        x = torch.relu(self.again(torch.relu(self.twice(x))))
        x = self.parts["wide"][0](x)
        return self.head(x.mean((2, 3)))


def test_every_layer_is_replaced_and_the_rest_stays():
    network = Branches()
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, 3, 6, 6)
    converted = convert(network, CONFIG, images, accelerator=EXACT)
    assert network.training
    assert isinstance(network.head, nn.Linear)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not converted.training
    assert list(quantized_layers(converted)) == ["stem.0", "twice", "parts.wide.0", "head"]
    assert converted.twice is converted.again
    assert isinstance(converted.stem[1], nn.BatchNorm2d)
    assert isinstance(converted.parts["wide"][0], QuantizedConv2d)
    assert isinstance(converted.head, QuantizedLinear)
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in converted.modules())
    network.eval()
    with torch.no_grad():
        float_logits, logits = network(images), converted(images)
    assert float((float_logits - logits).abs().max() / float_logits.abs().max()) < 0.1


def test_scales_cover_every_use_of_a_layer():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    converted = convert(nn.Sequential(layer, layer), CONFIG, torch.tensor([[1.0, -0.5]]), accelerator=EXACT)
    assert float(converted[0].activation_scale) == float(np.float32(3.0 / 127))
    assert converted[0] is converted[1]


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**32), st.integers(19, 32))
def test_the_cycle_engine_without_faults_is_exact_on_a_whole_network(rows, cols, signed, seed, acc_bits):
    torch.manual_seed(seed)
    config = ArrayConfig(rows, cols, act_signed=signed, acc_bits=acc_bits)
    network = nn.Sequential(nn.ReLU(), *Branches().stem, nn.Conv2d(4, 6, 2, stride=2, groups=2), nn.ReLU())
    network.extend([nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 3)])
    images = torch.randn(3, 3, 5, 4).repeat(1, 1, 1, 1)
    converted = convert(network, config, images)
    on_cycle = converted(images)
    put_on_chip(converted, Accelerator(config, engine="exact"))
    assert torch.equal(on_cycle, converted(images))


def test_a_network_of_a_single_layer():
    converted = convert(nn.Linear(3, 2), CONFIG, torch.randn(4, 3), accelerator=EXACT)
    assert isinstance(converted, QuantizedLinear)
    assert list(quantized_layers(converted)) == ["linear"]


def test_batches_may_be_what_a_loader_gives():
    torch.manual_seed(0)
    network, images = nn.Linear(3, 2), torch.randn(12, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(12)), batch_size=5)
    whole = convert(network, CONFIG, images, accelerator=EXACT)
    for batches in (loader, images.split(4), iter([images[:6], images[:0], images[6:]])):
        assert torch.equal(
            convert(network, CONFIG, batches, accelerator=EXACT).activation_scale, whole.activation_scale
        )


def test_the_method_decides_the_scale():
    images = torch.ones(20_001, 1)
    images[0] = 100.0
    scales = {
        method: float(convert(nn.Linear(1, 1), CONFIG, images, method=method, accelerator=EXACT).activation_scale)
        for method in ("max", "percentile", "mse")
    }
    assert scales["max"] == float(np.float32(100 / 127))
    assert scales["percentile"] == pytest.approx(1 / 127, rel=0.003)
    assert scales["mse"] <= scales["max"]
    half = convert(nn.Linear(1, 1), CONFIG, images, method="percentile", percentile=100, accelerator=EXACT)
    assert float(half.activation_scale) == scales["max"]


def test_place_puts_every_layer_on_the_chip():
    converted = convert(Branches(), CONFIG, torch.randn(4, 3, 6, 6), accelerator=EXACT)
    images = torch.randn(4, 3, 6, 6)
    faults = FaultMap.from_faults(CONFIG, [Fault(0, 0, Site.PSUM, 14, Kind.STUCK_AT_1)])
    clean = converted(images)
    assert put_on_chip(converted, Accelerator(CONFIG, faults)) is converted
    assert not torch.equal(converted(images), clean)
    other = Accelerator(ArrayConfig(3, 2, acc_bits=30), engine="exact")
    put_on_chip(converted, other)
    assert all(layer.accelerator is other for layer in quantized_layers(converted).values())
    assert torch.equal(converted(images), clean)


def test_place_keeps_all_layers_where_they_are_when_one_does_not_fit():
    converted = convert(Branches(), CONFIG, torch.randn(4, 3, 6, 6), accelerator=EXACT)
    for widths in ({"weight_bits": 4}, {"act_bits": 7}, {"act_signed": False}):
        with pytest.raises(ValueError, match=f"{next(iter(widths))}=.*: convert the network anew"):
            put_on_chip(converted, Accelerator(ArrayConfig(8, 6, **widths)))
    assert all(layer.accelerator is EXACT for layer in quantized_layers(converted).values())
    with pytest.raises(ConversionError, match="no quantised layers"):
        put_on_chip(nn.ReLU(), EXACT)


def test_scales_that_are_given_need_no_calibration():
    network = Branches()
    calibrated = convert(network, CONFIG, torch.randn(4, 3, 6, 6), accelerator=EXACT)
    scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(calibrated).items()}
    images = torch.randn(3, 3, 6, 6)
    for calibration in ((), [], images):
        converted = convert(network, CONFIG, calibration, accelerator=EXACT, activation_scales=scales)
        assert torch.equal(converted(images), calibrated(images))
    doubled = {name: 2 * scale for name, scale in scales.items()}
    converted = convert(network, CONFIG, (), activation_scales=doubled)
    assert {name: float(layer.activation_scale) for name, layer in quantized_layers(converted).items()} == doubled


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"0": 0.5}, "layer '2' has no activation scale: give one for each layer"),
        ({"0": 0.5, "2": 0.5, "3": 0.5}, "there is an activation scale for layer '3', which the network has not"),
        ({"0": 0.5, "1": 0.5, "2": 0.5}, "there is an activation scale for layer '1'"),
        ({"0": 0.0, "2": 0.5}, "layer '0': activation scale is 0.0: expected finite and positive"),
        ({"0": 0.5, "2": float("nan")}, "layer '2': activation scale is nan"),
        ({"0": 0.5, "2": -1.0}, "layer '2': activation scale is -1.0"),
    ],
)
def test_scales_that_do_not_fit_are_named(scales, message):
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ConversionError, match=message) as caught:
        convert(network, CONFIG, (), activation_scales=scales)
    assert "\n" not in str(caught.value)


def test_a_converted_network_can_be_copied_and_its_numbers_saved():
    converted = convert(Branches(), CONFIG, torch.randn(4, 3, 6, 6))
    images = torch.randn(2, 3, 6, 6)
    again = copy.deepcopy(converted)
    assert torch.equal(again(images), converted(images))
    other = convert(Branches(), CONFIG, torch.randn(4, 3, 6, 6))
    other.load_state_dict(converted.state_dict())
    assert torch.equal(other(images), converted(images))


class Calls(nn.Module):
    """Calls its layer in a way of its own."""

    def __init__(self, call):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.spare = [self.layer]
        self.call = call

    def forward(self, x):  # noqa: D102
        return self.call(self, x)


def test_a_layer_called_by_keyword_is_seen():
    for call in (lambda module, x: module.layer(input=x), lambda module, x: module.layer.forward(x)):
        x = torch.randn(2, 3)
        converted = convert(Calls(call), CONFIG, x)
        assert torch.equal(converted(x), converted.layer(x))


def test_a_second_reference_to_a_float_layer_cannot_hide():
    for call in (lambda module, x: module.spare[0](x), lambda module, x: module.spare[0].forward(input=x)):
        with pytest.raises(ConversionError, match="still used in its float form"):
            convert(Calls(call), CONFIG, torch.randn(2, 3))


@pytest.mark.parametrize(
    "use",
    [
        lambda module, x: module.layer(x) - module.layer.bias,
        lambda module, x: module.layer(x.to(next(module.parameters()).dtype)),
        lambda module, x: functional.linear(torch.relu(module.layer(x)), module.layer.weight.t()),
        lambda module, x: module.layer(x) / module.layer.weight.flatten(1).norm(dim=1),
    ],
    ids=["bias taken off", "type of the parameters", "tied weights", "norm of the weights"],
)
def test_parameters_that_a_network_uses_itself_stay_floats(use):
    torch.manual_seed(0)
    network, x = Calls(use), torch.randn(50, 3)
    converted = convert(network, CONFIG, x)
    assert torch.equal(converted.layer.weight, network.layer.weight)
    assert torch.equal(converted.layer.bias, network.layer.bias)
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    with torch.no_grad():
        expected, found = network(x), converted(x)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_parameters_of_a_converted_layer_are_its_own():
    layer = nn.Linear(3, 2)
    quantized = QuantizedLinear(layer, 0.1, EXACT)
    expected = layer.weight.detach().clone()
    layer.weight.data.zero_()
    layer.bias.data.zero_()
    assert torch.equal(quantized.weight, expected)
    assert quantized.bias.all()
    assert quantized.weight_int.dtype == torch.int8
    assert quantized.bias_int.dtype == torch.int32
    assert QuantizedLinear(nn.Linear(3, 2, bias=False), 0.1, EXACT).bias is None


class Scaled(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x):  # noqa: D102
        return 2 * super().forward(x)


class Shifted(nn.Conv2d):
    """A convolution that does more."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x + 1, weight, bias)


def hooked():
    layer = nn.Linear(3, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def broken():
    network = Branches()
    network.parts["wide"][0].weight.data[0, 0] = float("nan")
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.ReLU()), "Sequential has no Conv2d or Linear layer"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.Conv1d(1, 1, 1)),
            "layer '1' is a Conv1d, which cannot .*: write it as a Conv2d",
        ),
        (nn.Conv3d(1, 1, 1), "Conv3d, which cannot be converted: write it as a Conv2d whose"),
        (nn.ConvTranspose2d(1, 1, 1), "ConvTranspose2d, which cannot be converted: write it as a Conv2d on"),
        (nn.Bilinear(1, 1, 1), "Bilinear, which cannot be converted: write it as a Linear"),
        (
            nn.TransformerEncoderLayer(4, 2),
            "'self_attn' is a MultiheadAttention, which cannot .* projections as Linear",
        ),
        (nn.LSTM(2, 2), "LSTM, which cannot be converted"),
        (nn.GRUCell(2, 2), "GRUCell, which cannot be converted"),
        (nn.Sequential(nn.LazyLinear(3)), "layer '0' has no weights yet"),
        (Scaled(3, 2), "layer 'scaled' is a Scaled with a forward of its own"),
        (nn.Sequential(Shifted(1, 1, 1)), "layer '0' is a Shifted with a forward of its own"),
        (hooked(), "layer 'linear' has forward hooks"),
        (nn.Sequential(nn.Linear(3, 2).double()), "weights are torch.float64: expected torch.float32"),
    ],
)
def test_networks_that_cannot_be_converted(network, message):
    with pytest.raises(ConversionError, match=message) as caught:
        convert(network, CONFIG, torch.randn(2, 3).to(next(iter(network.parameters()), torch.zeros(1)).dtype))
    assert "\n" not in str(caught.value)


def test_a_converted_network_is_not_converted_again():
    converted = convert(nn.Sequential(nn.Linear(3, 2)), CONFIG, torch.randn(2, 3))
    with pytest.raises(ConversionError, match="layer '0' is quantised already"):
        convert(converted, CONFIG, torch.randn(2, 3))


def test_weights_that_are_no_numbers_are_named():
    with pytest.raises(ConversionError, match=r"layer 'parts.wide.0': 1 of 16 weights are NaN"):
        convert(broken(), CONFIG, torch.randn(2, 3, 6, 6))

    class Overflow(nn.Module):
        """Makes infinities."""

        def forward(self, x):
            return x * 1e38 * 1e38

    with pytest.raises(ConversionError, match="layer '2': NaN or infinity among the calibration values"):
        convert(nn.Sequential(nn.Linear(2, 2), Overflow(), nn.Linear(2, 2)), CONFIG, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "no calibration data"),
        (torch.zeros(0, 3), "no calibration data"),
        (7, "calibration data is a int"),
        ([torch.zeros(1, 3), "two"], "calibration batch 1 is a str"),
        ([[]], "calibration batch 0 is a list"),
        (torch.zeros(2, 4), r"failed on calibration batch 0 of shape \[2, 4\]: RuntimeError: "),
        (torch.full((2, 3), float("nan")), "layer 'linear': NaN or infinity"),
    ],
)
def test_calibration_data_that_is_none(calibration, message):
    with pytest.raises(ConversionError, match=message) as caught:
        convert(nn.Linear(3, 2), CONFIG, calibration)
    assert "\n" not in str(caught.value)


def test_layers_that_calibration_does_not_reach_are_named():
    network = Calls(lambda module, x: functional.linear(x, module.layer.weight))
    with pytest.raises(ConversionError, match="layer 'layer' was never reached"):
        convert(network, CONFIG, torch.randn(2, 3))


def test_unsigned_activations_need_inputs_that_are_not_negative():
    config = ArrayConfig(4, 4, act_signed=False)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    network[0].weight.data.fill_(-1.0)
    with pytest.raises(ConversionError, match=r"layer '1': calibration inputs go down to -.* use act_signed=True"):
        convert(network, config, torch.rand(2, 3) + 1)
    convert(network.insert(1, nn.ReLU()), config, torch.rand(2, 3))


def test_methods_and_accelerators_that_do_not_fit():
    with pytest.raises(InputError, match="'median' is unknown"):
        convert(nn.Linear(3, 2), CONFIG, torch.randn(2, 3), method="median")
    with pytest.raises(ValueError, match="act_bits=4"):
        convert(nn.Linear(3, 2), CONFIG, torch.randn(2, 3), accelerator=Accelerator(ArrayConfig(8, 6, act_bits=4)))
