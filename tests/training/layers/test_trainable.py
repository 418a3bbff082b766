"""Networks that learn on a chip: forward against the cycle engine, gradients against autograd and LSQ written out."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from tests.support.oracle import Net
from tests.support.strategies import CHIP_KINDS, LayerCase, layer_cases
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.placement import Placement
from training.layers.quantized import QuantizedLayer, QuantizedLinear
from training.layers.trainable import TrainableLayer, deployed, move, trainable, trainable_layers
from training.numbers import activation_limits

pytestmark = pytest.mark.usefixtures("one_thread")

SAME_WITH_EVEN_KERNEL = "ignore:Using padding='same' with even kernel lengths"


def on_chip(case: LayerCase, *, learn_scale: bool = False) -> TrainableLayer:
    """The case's layer, learning."""
    return TrainableLayer(case.layer, case.quantized(), learn_scale=learn_scale).train()


def visible(network: nn.Module) -> FaultMap:
    """A fault whose effect is hard to miss, for the array of a network."""
    config = next(iter(quantized_layers(network).values())).config
    return FaultMap.from_faults(config, [Fault(0, 0, Site.PSUM, 12, Kind.STUCK_AT_1)])


def slowly_effective(case: LayerCase, weight: Tensor) -> Tensor:
    """Integer weights as the multipliers get them, weight by weight; 0 at bypassed PEs."""
    config, faults = case.chip.config, list(case.faults)
    effective = torch.zeros(weight.shape, dtype=torch.float64)
    groups = case.layer.groups if isinstance(case.layer, nn.Conv2d) else 1
    flat, result = weight.flatten(1).tolist(), effective.flatten(1)
    outputs = len(flat) // groups
    placement = case.placement or Placement.in_order(groups, len(flat[0]), outputs)
    for output, weights in enumerate(flat):
        group, number = divmod(output, outputs)
        column = int(placement.columns[group, number]) % config.cols
        for index, value in enumerate(weights):
            row = int(placement.rows[group, index]) % config.rows
            for passed in range(row + 1):
                at = [fault for fault in faults if (fault.row, fault.col) == (passed, column)]
                load = [fault for fault in at if fault.site == Site.WEIGHT_LOAD]
                value = Net(config.weight_bits, True, load).stuck_at(value)
            stored = [fault for fault in at if fault.site == Site.WEIGHT]
            value = Net(config.weight_bits, True, stored).stuck_at(value)
            result[output, index] = 0 if case.bypass[row, column] else value
    return effective


def kept_weights(case: LayerCase, weight: Tensor) -> Tensor:
    """Which weights sit at PEs that are not bypassed."""
    return slowly_effective(replace(case, chip=replace(case.chip, faults=None)), torch.ones_like(weight)) != 0


@pytest.mark.filterwarnings(SAME_WITH_EVEN_KERNEL)
def test_what_is_learned_on_is_what_is_deployed_and_what_the_array_computes() -> None:
    seen: Counter[str] = Counter()

    def check(case: LayerCase) -> None:
        layer = on_chip(case)
        outputs = layer(case.x)
        assert outputs.requires_grad
        on_emulation, on_cycle = deployed(layer), case.quantized("cycle")
        assert isinstance(on_emulation, QuantizedLayer)
        assert torch.equal(outputs, on_emulation(case.x))
        assert torch.equal(outputs, on_cycle(case.x))
        assert torch.equal(layer.eval()(case.x), outputs)
        seen["float" if layer.quantized.weights_as_float32() is not None else "integers"] += 1

    for kind in CHIP_KINDS:
        for narrow in (False, True):
            settings(max_examples=8)(given(layer_cases(kind, narrow=narrow))(check))()
    assert min(seen["float"], seen["integers"]) > 0, seen


@pytest.mark.filterwarnings(SAME_WITH_EVEN_KERNEL)
@given(layer_cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_gradients_are_those_of_the_product_with_what_the_multipliers_get(case: LayerCase, seed: int) -> None:
    layer = on_chip(case)
    quantized = case.quantized()
    x = case.x.clone().requires_grad_()
    outputs = layer(x)
    gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed))
    outputs.backward(gradient)

    # The same in float64 by autograd: straight through the rounding, stopped by the clipping.
    low, high = activation_limits(case.chip.config)
    step, column = quantized.activation_scale.double(), (-1, *[1] * (case.layer.weight.ndim - 1))
    surrogate_x = case.x.double().requires_grad_()
    clipped = surrogate_x.clamp((low - 0.5) * step, (high + 0.5) * step)
    seen_x = clipped + ((case.x / quantized.activation_scale).round().clamp(low, high) * step - clipped).detach()
    scales = quantized.weight_scale.double().view(column)
    seen_weight = (slowly_effective(case, quantized.weight_int) * scales).requires_grad_()
    parameters = {"weight": seen_weight}
    if case.layer.bias is not None:
        parameters["bias"] = case.layer.bias.detach().double().requires_grad_()
    functional_call(copy.deepcopy(case.layer).double(), parameters, (seen_x,)).backward(gradient.double())

    def assert_close(found: Tensor | None, expected: Tensor | None) -> None:
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

    assert_close(x.grad, surrogate_x.grad)
    kept = kept_weights(case, quantized.weight_int)
    assert seen_weight.grad is not None
    assert_close(layer.weight.grad, seen_weight.grad * kept)
    assert layer.weight.grad is not None
    assert not layer.weight.grad[~kept].any()
    assert (layer.bias is None) == (case.layer.bias is None)
    if layer.bias is not None:
        assert_close(layer.bias.grad, parameters["bias"].grad)


@pytest.mark.filterwarnings(SAME_WITH_EVEN_KERNEL)
@given(layer_cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_the_gradient_of_a_learned_step_is_that_of_lsq(case: LayerCase, seed: int) -> None:
    layer = on_chip(case, learn_scale=True)
    assert isinstance(layer.activation_scale, nn.Parameter)
    outputs = layer(case.x)
    gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed))
    outputs.backward(gradient)

    quantized = case.quantized()
    low, high = activation_limits(case.chip.config)
    step = float(quantized.activation_scale)
    padded = quantized.pad(case.x if case.x.ndim != 3 or isinstance(case.layer, nn.Linear) else case.x[None])
    rounded = (padded / quantized.activation_scale).round()
    seen_x = (rounded.clamp(low, high).double() * step).requires_grad_()
    scales = quantized.weight_scale.double().view(-1, *[1] * (case.layer.weight.ndim - 1))
    product = quantized.multiply(seen_x, slowly_effective(case, quantized.weight_int) * scales, None)
    product.backward(gradient.double().reshape(product.shape))
    assert seen_x.grad is not None

    expected = 0.0
    for value, whole, of_value in zip(
        padded.flatten().tolist(), rounded.flatten().tolist(), seen_x.grad.flatten().tolist(), strict=True
    ):
        if whole > high:
            slope = float(high)
        elif whole < low:
            slope = float(low)
        else:
            slope = whole - value / step
        expected += of_value * slope
    expected *= 1 / math.sqrt(padded.numel() * high) if padded.numel() else 0
    assert layer.activation_scale.grad is not None
    assert float(layer.activation_scale.grad) == pytest.approx(expected, rel=1e-3, abs=1e-4)


class Twice(nn.Module):
    """A layer used twice, a group of channels each, and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.twice = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.again = self.twice
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 3] of images [n, 2, h, w]."""
        x = torch.relu(self.stem(images))
        x = torch.relu(self.again(torch.relu(self.twice(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


IMAGES = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))
CONFIG = ArrayConfig(5, 3)


def converted(network: nn.Module, faulty: bool = False) -> nn.Module:
    """The network on a chip."""
    quantized = convert(network, CONFIG, IMAGES)
    return put_on_chip(quantized, Accelerator(CONFIG, visible(quantized))) if faulty else quantized


@pytest.mark.parametrize("learn_scales", [False, True])
def test_parameters_keep_their_names_and_the_networks_given_stay_as_they_are(learn_scales: bool) -> None:
    network = Twice()
    before = copy.deepcopy(network.state_dict())
    model = trainable(network, converted(network), learn_scales=learn_scales)
    scales = [f"{name}.activation_scale" for name in ("stem.0", "twice", "again", "head") if learn_scales]
    assert set(model.state_dict()) == {*before, *scales}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    found, expected = ([name for name, _ in module.named_parameters()] for module in (model, network))
    assert [name for name in found if "activation_scale" not in name] == expected
    assert len(found) == len(expected) + 3 * learn_scales
    assert list(trainable_layers(model)) == ["stem.0", "twice", "head"]
    assert [layer.gemm_shape for layer in trainable_layers(model).values()] == [(1, 18, 4), (2, 18, 2), (1, 4, 3)]

    torch.optim.SGD(model.parameters(), lr=1.0)
    model.train()(IMAGES).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert isinstance(network.head, nn.Linear)


def test_deployed_has_the_present_weights_and_leaves_the_network_as_it_is() -> None:
    model = trainable(Twice(), converted(Twice(), faulty=True)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    before = copy.deepcopy(model.state_dict())
    quantized = deployed(model)
    assert model.training
    assert not quantized.training
    assert set(trainable_layers(model)) == set(quantized_layers(quantized))
    assert not trainable_layers(quantized)
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in quantized.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    outputs = quantized(IMAGES)
    assert torch.equal(model(IMAGES), outputs)
    on_cycle = put_on_chip(deployed(model), Accelerator(CONFIG, visible(quantized), engine="cycle"))
    assert torch.equal(on_cycle(IMAGES), outputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(quantized(IMAGES), outputs)
    assert not torch.equal(model(IMAGES), outputs)


@pytest.mark.parametrize("faulty", [False, True])
def test_a_layer_that_is_used_twice_learns_from_both(faulty: bool, seed: int) -> None:
    torch.manual_seed(seed)
    shared = nn.Linear(5, 5)
    network = nn.Sequential(shared, nn.Tanh(), shared)
    x = torch.randn(4, 5)
    quantized = convert(network, CONFIG, x)
    if faulty:
        put_on_chip(quantized, Accelerator(CONFIG, visible(quantized)))
    model = trainable(network, quantized).train()
    assert model[0] is model[2]
    # Two layers of equal weights and steps in its place.
    apart = copy.deepcopy(model)
    apart[2] = copy.deepcopy(model[2])
    model(x).square().sum().backward()
    apart(x).square().sum().backward()
    for name in ("weight", "bias"):
        first, second = getattr(apart[0], name).grad, getattr(apart[2], name).grad
        torch.testing.assert_close(getattr(model[0], name).grad, first + second)
        assert first.any()
        assert second.any()


def test_moving_puts_all_layers_on_another_chip_and_elsewhere_on_it() -> None:
    network = Twice()
    model = trainable(network, converted(network)).eval()
    without = model(IMAGES)
    faults = visible(converted(network))
    move(model, Accelerator(CONFIG, faults), {})
    on_faulty = model(IMAGES)
    assert not torch.equal(on_faulty, without)
    # Column 0 is left free: everything is as without the fault.
    columns = {"stem.0": [[1, 2, 4, 5]], "twice": [[1, 2], [2, 4]], "head": [[2, 1, 5]]}
    placements = {}
    for name, layer in trainable_layers(model).items():
        groups, k, n = layer.gemm_shape
        placements[name] = Placement(Placement.in_order(groups, k, n).rows, columns[name])  # type: ignore[arg-type]
    move(model, Accelerator(CONFIG, faults), placements)
    assert torch.equal(model(IMAGES), without)
    # Layers that are not named sit in order again.
    move(model, Accelerator(CONFIG, faults), {})
    assert torch.equal(model(IMAGES), on_faulty)


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(2, 3, 2)])
def test_inputs_that_are_no_numbers_show_in_the_outputs(layer: nn.Conv2d | nn.Linear, faulty: bool) -> None:
    quantized = convert(layer, CONFIG, torch.rand(2, 2, 4, 4))
    if faulty:
        put_on_chip(quantized, Accelerator(CONFIG, visible(quantized)))
    model = trainable(layer, quantized).train()
    assert isinstance(model, TrainableLayer)
    assert (model.quantized.weights_as_float32() is None) == faulty
    x = torch.rand(2, 2, 4, 4)
    x[1, :, 1, 2] = math.nan
    assert model(x)[1].isnan().any()
    assert math.isnan(float(model(x).detach().logsumexp((1, 2, 3)).mean()))
    # Numbers whose sum is none are numbers.
    large = torch.full((2, 2, 4, 4), 3e38)
    assert torch.equal(model(large), deployed(model)(large))
    assert torch.isfinite(model(large)).all()


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("broken", ["a weight", "all weights", "a bias", "the step"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_no_numbers_show_in_the_outputs(value: float, broken: str, faulty: bool) -> None:
    """Quantised, they would be some integers."""
    layer = nn.Linear(4, 3)
    quantized = convert(layer, CONFIG, torch.rand(5, 4))
    if faulty:
        put_on_chip(quantized, Accelerator(CONFIG, visible(quantized)))
    model = trainable(layer, quantized, learn_scales=True).train()
    assert isinstance(model, TrainableLayer)
    assert model.bias is not None
    with torch.no_grad():
        if broken == "a weight":
            model.weight[1, 2] = value
        elif broken == "all weights":
            model.weight.fill_(value)
        elif broken == "a bias":
            model.bias[1] = value
        else:
            model.activation_scale.fill_(value)
    outputs = model(torch.rand(5, 4)).detach()
    assert not torch.isfinite(outputs[:, 1]).any()


def test_convolutions_that_may_round_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(2, 3, 3)
    model = trainable(layer, convert(layer, CONFIG, IMAGES)).train()
    assert isinstance(model, TrainableLayer)
    expected = model(IMAGES)
    monkeypatch.setattr(type(model.quantized), "product_in_float32", lambda *_: torch.zeros_like(expected))
    assert not model(IMAGES).any()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert torch.equal(model(IMAGES), expected)


def test_a_learned_step_that_is_not_positive_is_the_smallest_there_is() -> None:
    layer = nn.Linear(4, 3)
    model = trainable(layer, convert(layer, CONFIG, torch.randn(5, 4)), learn_scales=True).train()
    assert isinstance(model, TrainableLayer)
    with torch.no_grad():
        model.activation_scale.fill_(-1.0)
    assert float(model.quantized.activation_scale) == 2.0**-60
    assert isinstance(model.quantized, QuantizedLinear)
    assert torch.isfinite(model(torch.randn(5, 4))).all()


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv2d(2, 4, 3, stride=2, padding="valid", dilation=(1, 2))])
def test_a_layer_has_the_sizes_of_the_float_layer(layer: nn.Module) -> None:
    images = torch.randn(2, 2, 6, 6)
    converted = convert(layer, ArrayConfig(4, 4), images)
    learning = trainable(layer, converted)
    for size in ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "dilation"):
        found = [getattr(module, size, None) for module in (layer, converted, learning)]
        assert found == found[:1] * 3
    assert getattr(layer, "padding", None) == getattr(learning, "padding", None)
