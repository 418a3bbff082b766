"""FAM: never loses more than FAP, and changes nothing but which weights are lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from simulator import ArrayConfig, FaultMap
from simulator.lots.chips import Chip
from tests.support.networks import (
    ARRAY,
    deploy,
    faulty_chip,
    on_fault_free,
    tiny_images,
    tiny_network,
    undeployed,
    with_broken_accumulators,
)
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.layers.placement import Placement
from training.layers.trainable import trainable_layers
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.permutation import Permutation

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = tiny_images(6, 1).images
ARRAYS = [ARRAY, ArrayConfig(1, 3), ArrayConfig(16, 16), ArrayConfig(40, 2)]
PERMUTATIONS = [Permutation(), Permutation(rows=False), Permutation(columns=False)]


def lost(model: nn.Module, deployment: Deployment, config: ArrayConfig) -> dict[str, float]:
    """The magnitude of all weights at bypassed PEs, layer by layer."""
    losses = {}
    for name, layer in trainable_layers(model).items():
        placement = deployment.placements.get(name) or Placement.in_order(*layer.gemm_shape)
        pruned = torch.from_numpy(placement.at_weights(deployment.bypass, config)).view(layer.weight.shape)
        losses[name] = float(layer.weight.detach()[pruned].abs().double().sum())
    return losses


@pytest.mark.parametrize("permutation", PERMUTATIONS, ids=["both", "columns", "rows"])
@pytest.mark.parametrize("broken", [(), (0,)])
@pytest.mark.parametrize("config", ARRAYS, ids=lambda config: f"{config.rows}x{config.cols}")
def test_no_layer_loses_more_than_in_order(
    config: ArrayConfig, broken: tuple[int, ...], permutation: Permutation, seed: int
) -> None:
    model = on_fault_free(tiny_network(), config)
    chip = with_broken_accumulators(faulty_chip(seed, config=config), *broken)
    before = {name: layer.weight.detach().clone() for name, layer in trainable_layers(model).items()}
    in_order, permuted = deploy(model, chip, Bypass()), deploy(model, chip, Bypass(), permutation)
    assert np.array_equal(permuted.bypass, in_order.bypass)
    fap, fam = lost(model, in_order, config), lost(model, permuted, config)
    assert all(fam[name] <= fap[name] * (1 + 1e-9) for name in fap)
    both = lost(model, deploy(model, chip, Bypass(), Permutation()), config)
    assert sum(both.values()) <= sum(fap.values()) * (1 + 1e-9)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in trainable_layers(model).items())
    for placement in permuted.placements.values():
        assert not set(placement.used_columns(config)) & set(broken)


def test_much_less_is_lost_where_there_is_a_choice(seed: int) -> None:
    """Sums of random magnitudes differ, so on a large enough layer some order is better than the given one."""
    model = on_fault_free(nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 3)), ArrayConfig(32, 16))
    # What the chip itself bypasses counts, too.
    mask = np.random.default_rng(seed).random((32, 16)) < 0.3
    chip = Chip("chip-7", FaultMap(ArrayConfig(32, 16)), mask)
    deployments = {permutation: deploy(model, chip, Bypass(), permutation) for permutation in PERMUTATIONS}
    in_order = lost(model, deploy(model, chip, Bypass()), ArrayConfig(32, 16))["1"]
    both, columns, rows = (lost(model, deployments[each], ArrayConfig(32, 16))["1"] for each in PERMUTATIONS)
    assert max(columns, rows) < in_order
    assert both <= columns


@pytest.mark.parametrize("config", ARRAYS, ids=lambda config: f"{config.rows}x{config.cols}")
def test_without_bypass_everything_is_as_in_order(config: ArrayConfig, seed: int) -> None:
    network = tiny_network()
    chip = faulty_chip(seed, config=config)
    deployment = deploy(on_fault_free(network, config), chip, Bypass(), Permutation())
    converted = convert(network, config, IMAGES)
    expected = converted(IMAGES)
    deployment = deployment.with_bypass(np.zeros_like(deployment.bypass))
    for engine in ("emulation", "cycle"):
        deployment.put(converted, deployment.accelerator(config, None, engine))
        assert torch.equal(converted(IMAGES), expected)


def test_the_cycle_engine_loses_the_same_weights(seed: int) -> None:
    """On the faulty chip, all but the weights that are lost count: the same network with those set to zero."""
    network, chip = tiny_network(), with_broken_accumulators(faulty_chip(seed), 3)
    deployment = deploy(on_fault_free(network), chip, Bypass(), Permutation())
    converted, pruned = convert(network, ARRAY, IMAGES), convert(network, ARRAY, IMAGES)
    deployment.put(converted, deployment.accelerator(ARRAY, chip.faults, "cycle"))
    for name, layer in quantized_layers(pruned).items():
        at = deployment.placements[name].at_weights(deployment.bypass, ARRAY)
        layer.weight_int[torch.from_numpy(at).view(layer.weight_int.shape)] = 0
    assert torch.equal(converted(IMAGES), pruned(IMAGES))


def test_nothing_moves_without_need() -> None:
    model, chip = on_fault_free(tiny_network()), Chip("chip-7", FaultMap(ARRAY))
    assert not deploy(model, chip, Bypass(), Permutation()).placements
    # Nor does what was moved before stay where it was.
    moved = undeployed(model, chip).with_placements({"0": Placement(np.arange(18)[::-1][None], np.arange(4)[None])})
    assert not Permutation().deploy(moved, chip, model).placements


def test_the_same_chip_gives_the_same_places(seed: int) -> None:
    model, chip = on_fault_free(tiny_network()), with_broken_accumulators(faulty_chip(seed), 2)
    first, second = (deploy(model, chip, Bypass(), Permutation()).placements for _ in range(2))
    assert list(first) == list(second) == sorted(trainable_layers(model))
    for name, placement in first.items():
        assert np.array_equal(placement.rows, second[name].rows)
        assert np.array_equal(placement.columns, second[name].columns)
