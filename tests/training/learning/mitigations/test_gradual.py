"""Gradual injection: PEs are lost stage by stage, in equal parts, until the chip is what it is."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from tests.support.networks import accelerator, faulty_chip, with_broken_accumulators
from training.layers.accelerator import Accelerator
from training.learning.mitigations.gradual import Gradual
from training.learning.mitigations.mitigation import TrainingStep

CONFIG = ArrayConfig(9, 7)


def affected(chip: Accelerator) -> BoolArray:
    """PEs that are bypassed, or faulty where that is not hidden."""
    assert chip.bypass is not None
    faulty = np.zeros_like(chip.bypass) if chip.faults is None or chip.hides_faults else chip.faults.faulty_pes()
    return chip.bypass | faulty


def chips(gradual: Gradual, iterations: int, seed: int, chip: Accelerator) -> list[Accelerator]:
    """The chip of each mini-batch."""
    return [gradual.chip_for(TrainingStep(iteration, iterations, seed), chip) for iteration in range(iterations)]


@given(st.integers(1, 7), st.fractions(0, 1, max_denominator=8), st.integers(0, 60), st.integers(0, 80))
def test_stages_are_of_equal_length_and_share(stages: int, until: Fraction, iterations: int, iteration: int) -> None:
    gradual, step = Gradual(stages, float(until)), TrainingStep(iteration, iterations, 0)
    end = until * iterations
    exact = stages if iteration >= end else 1 + math.floor(iteration * stages / end)
    # Where a stage begins with an iteration, rounding may put it off by one.
    near = end and abs(iteration * stages / end - round(iteration * stages / end)) < Fraction(1, 10**9)
    assert gradual.stage(step) in ({exact, max(1, exact - 1)} if near else {exact})
    assert gradual.share(step) == gradual.stage(step) / stages


def test_four_stages_over_the_first_half() -> None:
    assert [Gradual().share(TrainingStep(iteration, 16, 0)) for iteration in range(16)] == [
        *[0.25] * 2,
        *[0.5] * 2,
        *[0.75] * 2,
        *[1.0] * 10,
    ]


@pytest.mark.parametrize("kind", ["hidden", "visible", "partly hidden"])
def test_pes_only_come_and_all_come(kind: str, seed: int) -> None:
    whole = accelerator(with_broken_accumulators(faulty_chip(seed, 0.4, CONFIG), 2), bypass=kind == "hidden")
    assert whole.faults is not None
    bypass = whole.faults.required_bypass()
    if kind != "hidden":
        bypass[: 0 if kind == "visible" else 4] = False
        whole = Accelerator(CONFIG, whole.faults, bypass if kind == "partly hidden" else np.zeros_like(bypass))
    assert whole.hides_faults == (kind == "hidden")
    gradual = Gradual(stages=5, until=0.8)
    found = chips(gradual, 25, seed, whole)
    total = int(affected(whole).sum())
    for before, after in itertools.pairwise(found):
        assert not (affected(before) & ~affected(after)).any()
        assert before.bypass is not None
        assert after.bypass is not None
        assert not (before.bypass & ~after.bypass).any()
        assert set(before.faults or ()) <= set(after.faults or ())
    for iteration, chip in enumerate(found):
        stage = min(5, 1 + iteration // 4)
        assert int(affected(chip).sum()) == math.ceil(Fraction(stage, 5) * total)
        # Partly hidden faults may all be hidden ones in the first stages.
        assert kind == "partly hidden" or chip.hides_faults == whole.hides_faults
        assert chip.bypass is not None
        assert whole.bypass is not None
        assert not (chip.bypass & ~whole.bypass).any()
        assert chip.faults is not None
        assert set(chip.faults) <= set(whole.faults)
        # What is there of a PE's faults and bypass is all of it.
        here = affected(chip)
        assert np.array_equal(chip.bypass, whole.bypass & here)
        if kind != "hidden":
            assert np.array_equal(chip.faults.faulty_pes(), whole.faults.faulty_pes() & here)
        assert chip.unusable_columns.tolist() == [2]
    assert all(chip is whole for chip in found[16:])


@pytest.mark.parametrize("sites", [(Site.ACTIVATION, Site.WEIGHT_LOAD), tuple(Site)])
def test_hidden_faults_stay_hidden(sites: tuple[Site, ...], seed: int) -> None:
    """Those, too, that spoil a whole row or column, of which some PEs are not bypassed yet."""
    faults = sample_faults(CONFIG, FaultModel(0.1, sites=dict.fromkeys(sites, 1.0)), seed)
    whole = Accelerator(CONFIG, faults, faults.required_bypass())
    assert all(chip.hides_faults for chip in chips(Gradual(6, 1.0), 12, seed, whole))


def test_the_order_belongs_to_the_seed(seed: int) -> None:
    whole = accelerator(faulty_chip(seed, 0.5, CONFIG), bypass=True)
    first, again, other = (
        Gradual().chip_for(TrainingStep(iteration, iterations, chosen), whole).bypass
        for iteration, iterations, chosen in ((0, 8, seed), (1, 20, seed), (0, 8, seed + 1))
    )
    assert np.array_equal(first, again)  # type: ignore[arg-type]
    assert not np.array_equal(first, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("bypass", [None, np.zeros((9, 7), np.bool_)])
@pytest.mark.parametrize("faults", [None, FaultMap(CONFIG)])
def test_a_chip_without_faults_stays_one(faults: FaultMap | None, bypass: BoolArray | None) -> None:
    found = Gradual().chip_for(TrainingStep(0, 8, 0), Accelerator(CONFIG, faults, bypass))
    assert not found.faults
    assert found.bypass is not None
    assert not found.bypass.any()


@pytest.mark.parametrize("gradual", [Gradual(stages=1), Gradual(until=0.0)])
def test_all_at_once(gradual: Gradual, seed: int) -> None:
    whole = accelerator(faulty_chip(seed), bypass=True)
    assert all(chip is whole for chip in chips(gradual, 5, seed, whole))


@pytest.mark.parametrize(
    ("stages", "until", "message"),
    [
        (0, 0.5, "gradual injection has 0 stages: expected 1 or more"),
        (-2, 0.5, "gradual injection has -2 stages"),
        (4, 1.5, "gradual injection ends at 1.5 of the iterations: expected 0..1"),
        (4, -0.5, "gradual injection ends at -0.5 of the iterations"),
        (4, float("nan"), "gradual injection ends at nan of the iterations"),
    ],
)
def test_stages_that_cannot_be(stages: int, until: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gradual(stages, until)
