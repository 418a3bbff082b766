"""What is refused because a converted network does something else, and that nothing is refused for its rounding."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simulator import ArrayConfig
from simulator.errors import ConversionError
from tests.support.strategies import configs, convolutions, linear_layers
from training.data.networks import DigitsCnn, ResNet20
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ArrayConfig(8, 6)


class Uses(nn.Module):
    """Two layers, and what is done with them."""

    def __init__(self, use):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)
        self.use = use
        self.calls = 0

    def forward(self, x):  # noqa: D102
        self.calls += 1
        return self.use(self, x)


def by_type(network, x):
    """Misses layers that are not of torch."""
    for layer in network.children():
        if isinstance(layer, nn.Linear):
            x = torch.relu(layer(x))
    return x


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (by_type, "after the beginning the float network comes to layer 'first', and the converted one to its end"),
        (
            lambda net, x: net.second(net.first(x) * (2 if isinstance(net.first, nn.Linear) else 1)),
            "layer 'second' gets other inputs .* difference 0.5.: see what is done between layer 'first' and it",
        ),
        (
            lambda net, x: net.second(net.first(x)) + isinstance(net.first, QuantizedLayer),
            "the outputs are others .*: see what is done after layer 'second'",
        ),
        (
            lambda net, x: net.second(net.first(x).log_softmax(1) + net.first.__module__.startswith("training")),
            "layer 'second' gets other inputs",
        ),
        (
            lambda net, x: net.second(net.first(x)) if net.first.reset_parameters else x,
            r"converted one does not: AttributeError: .*'reset_parameters'.* at \S*test_conversion_check.py:\d+",
        ),
        (
            lambda net, x: net.second(net.first(x) + torch.empty(len(x), 4).fill_(next(net.counter))),
            "Uses gives other outputs each time it runs on the same inputs: it must neither draw",
        ),
        (lambda net, x: net.second(functional.dropout(net.first(x), 0.5)), "Uses gives other outputs each time"),
        (lambda net, x: net.second(net.first(x) + net.calls), "Uses gives other outputs each time"),
    ],
)
def test_networks_that_do_something_else_once_converted(use, message):
    torch.manual_seed(0)
    network = Uses(use)
    Uses.counter = itertools.count()
    with pytest.raises(ConversionError, match=message) as caught:
        convert(network, CONFIG, torch.randn(9, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("use", "layer"),
    [
        (lambda net, x: net.second(net.first(x) - net.first.bias), "layer 'second' gets other inputs"),
        (lambda net, x: net.second(net.first(x).to(next(net.parameters()).dtype).float()), "layer 'second'"),
        (lambda net, x: functional.linear(net.second(net.first(x)), net.second.weight.t().float()), "the outputs are"),
    ],
)
def test_integers_in_place_of_parameters_are_found(use, layer, monkeypatch):
    def load_parameters(self, *parameters):
        whole(self, *parameters)
        for name in ("weight", "bias"):
            self._parameters[name] = nn.Parameter(getattr(self, f"{name}_int"), requires_grad=False)

    torch.manual_seed(0)
    network, x = Uses(use), torch.randn(20, 4)
    convert(network, CONFIG, x)
    whole = QuantizedLayer.load_parameters
    monkeypatch.setattr(QuantizedLayer, "load_parameters", load_parameters)
    with pytest.raises(ConversionError, match=layer):
        convert(network, CONFIG, x)


@pytest.mark.parametrize("kind", [QuantizedLinear, QuantizedConv2d])
def test_a_layer_that_computes_something_else_is_named(kind, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    compute = kind.compute
    monkeypatch.setattr(kind, "compute", lambda self, x: 1.1 * compute(self, x))
    with pytest.raises(ConversionError, match=f"layer '{'0' if kind is QuantizedConv2d else '3'}': .* than rounding"):
        convert(network, CONFIG, torch.rand(3, 1, 4, 4))


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.second(net.first(x) + min(net.calls, 2)),
        lambda net, x: net.second(net.first(x).view(9, 2, 2).flatten(1)),
        lambda net, x: (net.second(net.first(x)), {"features": [net.first(x)], "none": None}),
    ],
    ids=["settles", "nine at a time", "nested"],
)
def test_networks_that_are_unusual_are_not_refused(use):
    torch.manual_seed(0)
    network, x = Uses(use), torch.randn(9, 4)
    assert list(quantized_layers(convert(network, CONFIG, x))) == ["first", "second"]
    scales = {"first": 0.1, "second": 0.1}
    assert list(quantized_layers(convert(network, CONFIG, x, activation_scales=scales))) == ["first", "second"]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(deadline=None, max_examples=30)
@given(linear_layers() | convolutions(), configs(tables=True), st.sampled_from(["max", "percentile", "mse"]), st.data())
def test_no_layer_is_refused_for_its_rounding(case, config, method, data):
    layer, x = case
    assume(x.numel())
    percentile = data.draw(st.sampled_from([50.0, 99.9]))
    x = x if config.act_signed else x.abs()
    convert(layer, config, x, method=method, percentile=percentile, accelerator=Accelerator(config))


@settings(deadline=None, max_examples=5)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 2**32 - 1), st.integers(0, 16))
def test_no_network_is_refused_for_its_rounding(weight_bits, act_bits, seed, more):
    torch.manual_seed(seed)
    config = ArrayConfig(8, 6, weight_bits=weight_bits, act_bits=act_bits, acc_bits=weight_bits + act_bits + more)
    convert(DigitsCnn(1, 8, 10), config, torch.rand(4, 1, 8, 8), method="mse")
    convert(ResNet20(3, 8, 10), config, torch.randn(2, 3, 8, 8))
