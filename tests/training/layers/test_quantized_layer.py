"""Sums of whole numbers in float32: taken only where they are what the array gives, and then the same as its."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from tests.support.layer_strategies import CHIP_KINDS, LayerCase, layer_cases
from tests.support.strategies import random_tables
from training.layers.accelerator import Accelerator
from training.layers.placement import Placement
from training.layers.quantized import LARGEST_EXACT_FLOAT, QuantizedConv2d, QuantizedLinear
from training.numbers import activation_limits

pytestmark = pytest.mark.usefixtures("one_thread")

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


CONFIG = ArrayConfig(3, 4)


def linear(chip: Accelerator, outputs: int = 3) -> QuantizedLinear:
    """Two rows and some columns of the array."""
    return QuantizedLinear(nn.Linear(2, outputs), 0.02, chip)


def fault(site: Site, row: int = 0, col: int = 1, kind: Kind = Kind.STUCK_AT_1) -> FaultMap:
    """One fault, of the least bit."""
    return FaultMap.from_faults(CONFIG, [Fault(row, col, site, 0, kind, 3 if kind == Kind.FLIP else None)])


@pytest.mark.parametrize("site", [site for site in Site if site != Site.ACCUMULATOR])
def test_a_fault_that_acts_is_emulated_and_one_that_is_hidden_is_not(site: Site) -> None:
    faults = fault(site)
    assert not linear(Accelerator(CONFIG, faults)).computes_exactly
    assert linear(Accelerator(CONFIG, faults)).weights_as_float32() is None
    required = faults.required_bypass()
    assert linear(Accelerator(CONFIG, faults, required)).computes_exactly
    assert linear(Accelerator(CONFIG, faults, required)).weights_as_float32() is not None
    # One PE too few.
    row, col = np.argwhere(required)[-1]
    required[row, col] = False
    assert not linear(Accelerator(CONFIG, faults, required)).computes_exactly


@pytest.mark.parametrize("site", Site)
def test_upsets_are_not_hidden(site: Site) -> None:
    everything = np.ones((CONFIG.rows, CONFIG.cols), np.bool_)
    assert not linear(Accelerator(CONFIG, fault(site, kind=Kind.FLIP), everything)).computes_exactly


@pytest.mark.parametrize(("column", "outputs", "exact"), [(1, 3, False), (3, 3, True), (3, 4, False), (0, 5, False)])
def test_broken_accumulators_matter_under_columns_in_use(column: int, outputs: int, exact: bool) -> None:
    faults = fault(Site.ACCUMULATOR, col=column)
    layer = linear(Accelerator(CONFIG, faults), outputs)
    assert layer.computes_exactly == exact
    assert (layer.weights_as_float32() is not None) == exact
    # The same outputs on other columns, of other folds.
    moved = (np.arange(outputs) * CONFIG.cols + (column + 1) % CONFIG.cols)[None]
    layer.placement = Placement(np.array([[0, 1]]), moved)
    assert layer.computes_exactly
    moved[0, -1] += CONFIG.cols - 1
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
    exact = linear(Accelerator(CONFIG))
    assert exact.computes_exactly
    assert linear(Accelerator(CONFIG, engine="exact")).computes_exactly
    assert not linear(Accelerator(CONFIG, engine="cycle")).computes_exactly


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
    layer = QuantizedConv2d(nn.Conv2d(2, 3, 3), 0.02, Accelerator(CONFIG))
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
