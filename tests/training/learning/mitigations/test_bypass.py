"""FAP: every PE that a fault requires is bypassed, and no output is collected where that does not help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simulator import FaultMap, FaultModel, Site, sample_faults
from simulator.errors import InputError
from simulator.lots.chips import Chip
from tests.support.networks import (
    ARRAY,
    deploy,
    faulty_chip,
    on_fault_free,
    tiny_images,
    tiny_network,
    with_broken_accumulators,
)
from training.layers.convert import convert, quantized_layers
from training.learning.mitigations.bypass import Bypass

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = tiny_images(6, 1).images


@pytest.mark.parametrize("sites", [(Site.PRODUCT,), (Site.ACTIVATION, Site.WEIGHT_LOAD), tuple(Site)])
def test_all_that_the_faults_require_is_bypassed_beside_what_the_chip_bypasses(
    sites: tuple[Site, ...], seed: int
) -> None:
    faults = sample_faults(ARRAY, FaultModel(0.15, sites=dict.fromkeys(sites, 1.0)), seed)
    own = np.random.default_rng(seed).random((ARRAY.rows, ARRAY.cols)) < 0.1
    before = own.copy()
    deployment = deploy(on_fault_free(tiny_network()), Chip("chip-7", faults, own), Bypass())
    assert np.array_equal(deployment.bypass, own | faults.required_bypass())
    assert np.array_equal(own, before)
    assert bool(deployment.placements) == bool(len(faults.unusable_columns()))


def test_on_a_chip_without_faults_nothing_is_done() -> None:
    deployment = deploy(on_fault_free(tiny_network()), Chip("chip-7", FaultMap(ARRAY)), Bypass())
    assert not deployment.bypass.any()
    assert not deployment.placements


@pytest.mark.parametrize("broken", [(0,), (1, 3), (0, 1, 2)])
def test_what_is_left_computes_exactly_without_broken_accumulators(broken: tuple[int, ...], seed: int) -> None:
    """The cycle engine on the faulty chip gives what one without faults does that bypasses the same PEs."""
    chip = with_broken_accumulators(faulty_chip(seed), *broken)
    network = tiny_network()
    deployment = deploy(on_fault_free(network), chip, Bypass())
    converted = convert(network, ARRAY, IMAGES)
    deployment.put(converted, deployment.accelerator(ARRAY, chip.faults, "cycle"))
    for layer in quantized_layers(converted).values():
        assert layer.placement is not None
        assert not set(layer.placement.used_columns(ARRAY)) & set(broken)
    on_faulty = converted(IMAGES)
    deployment.put(converted, deployment.accelerator(ARRAY, None, "cycle"))
    assert torch.equal(converted(IMAGES), on_faulty)


def test_a_chip_on_which_no_column_is_left(seed: int) -> None:
    chip = with_broken_accumulators(faulty_chip(seed), *range(ARRAY.cols))
    with pytest.raises(InputError, match="none of the 4 columns of the array can be used"):
        deploy(on_fault_free(tiny_network()), chip, Bypass())


def test_placements_of_mitigations_before_are_kept_where_no_column_is_broken(seed: int) -> None:
    model, chip = on_fault_free(tiny_network()), faulty_chip(seed)
    earlier = deploy(model, with_broken_accumulators(chip, 2), Bypass())
    later = Bypass().deploy(replace(earlier, bypass=np.zeros_like(earlier.bypass)), chip, model)
    assert later.placements == earlier.placements
    assert np.array_equal(later.bypass, chip.faults.required_bypass())
