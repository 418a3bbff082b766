"""Hardening: random chips that belong to their mini-batch, with as many bypassed PEs as the rates say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator import ArrayConfig, FaultMap, FaultModel, Site
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from tests.support.networks import faulty_chip
from training.layers.accelerator import Accelerator
from training.learning.mitigations.hardening import Hardening
from training.learning.mitigations.mitigation import TrainingStep

CONFIG = ArrayConfig(20, 30)
FAULT_FREE = Accelerator(CONFIG)


def bypassed(hardening: Hardening, step: TrainingStep, chip: Accelerator = FAULT_FREE) -> BoolArray:
    """What is bypassed for a mini-batch."""
    found = hardening.chip_for(step, chip)
    assert found.bypass is not None
    assert (found.config, found.faults, found.engine) == (chip.config, chip.faults, chip.engine)
    return found.bypass


def test_chips_belong_to_the_seed_and_the_iteration_alone(seed: int) -> None:
    hardening = Hardening(0.1, 0.3)
    chips = {iteration: bypassed(hardening, TrainingStep(iteration, 10, seed)) for iteration in range(6)}
    for iteration in (5, 0, 3):
        assert np.array_equal(bypassed(hardening, TrainingStep(iteration, 1000, seed)), chips[iteration])
    assert len({chip.tobytes() for chip in chips.values()}) == 6
    assert not np.array_equal(bypassed(hardening, TrainingStep(0, 10, seed + 1)), chips[0])


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 0.2), (0.05, 0.1), (0.25, 0.25), (0.0, 0.0), (0.0, 1.0)])
def test_rates_are_within_the_limits_and_all_over_them(lowest: float, highest: float, seed: int) -> None:
    rates = [
        float(bypassed(Hardening(lowest, highest), TrainingStep(iteration, 100, seed)).mean())
        for iteration in range(100)
    ]
    # Each fault costs one PE, and their number is rounded.
    rounding = 0.5 / CONFIG.pe_count + 1e-12
    assert lowest - rounding <= min(rates)
    assert max(rates) <= highest + rounding
    # A hundred uniform draws miss a fifth at either end once in a billion times.
    assert min(rates) <= lowest + 0.2 * (highest - lowest) + rounding
    assert max(rates) >= highest - 0.2 * (highest - lowest) - rounding


def test_what_the_chip_bypasses_stays_bypassed_and_its_faults_stay(seed: int) -> None:
    faults = faulty_chip(seed, config=CONFIG).faults
    chip = Accelerator(CONFIG, faults, faults.required_bypass())
    step = TrainingStep(3, 10, seed)
    found = bypassed(Hardening(0.2, 0.4), step, chip)
    assert np.array_equal(found, bypassed(Hardening(0.2, 0.4), step) | faults.required_bypass())
    assert chip.bypass is not None
    assert np.array_equal(chip.bypass, faults.required_bypass())
    assert replace(chip, bypass=found).hides_faults


def test_the_model_says_what_the_faults_cost(seed: int) -> None:
    model = FaultModel(0.0, sites={Site.ACTIVATION: 1.0})
    for iteration in range(5):
        found = bypassed(Hardening(0.02, 0.1, model), TrainingStep(iteration, 5, seed))
        # A broken row wire costs the rest of its row.
        assert np.array_equal(np.logical_or.accumulate(found, axis=1), found)
        assert found.any()


def test_hidden_faults_are_none() -> None:
    chip = Accelerator(CONFIG, FaultMap(CONFIG), np.zeros((20, 30), np.bool_))
    assert Hardening().chip_for(TrainingStep(0, 1, 0), chip).hides_faults


@pytest.mark.parametrize(("lowest", "highest"), [(-0.1, 0.2), (0.3, 0.2), (0.0, 1.1), (float("nan"), 0.2)])
def test_rates_that_are_none(lowest: float, highest: float) -> None:
    with pytest.raises(InputError, match=r"fault rates of hardening are .*: expected fractions of PEs within 0..1"):
        Hardening(lowest, highest)
