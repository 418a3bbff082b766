"""Which faults are tried in which round: the end of each is a sample of its own; what cannot be drawn is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.propagation.campaign import FIRST_ROUND, draw_rounds
from efat.propagation.population import LayerShape, Population
from efat.propagation.request import MOST_FAULTS, PropagationRequest
from efat.propagation.statistics import sample_size
from simulator import ArrayConfig
from simulator.errors import InputError

ARRAY = ArrayConfig(7, 6, 4, 4, acc_bits=12)
LAYERS = [LayerShape("one", 2, 9, 11, 5), LayerShape("two", 1, 1, 30, 3)]
LARGE = ArrayConfig(300, 300)


def requested(array: ArrayConfig = ARRAY, **changes: Any) -> tuple[Population, PropagationRequest]:
    request = PropagationRequest(**changes)
    return Population(array, LAYERS, request.strata(array), 5), request


@settings(max_examples=30)
@given(
    st.floats(0.02, 0.3),
    st.floats(0.5, 0.99),
    st.booleans(),
    st.integers(0, 1000),
    st.sampled_from([["FLIP"], ["STUCK_AT_0"], ["STUCK_AT_0", "STUCK_AT_1"]]),
)
def test_with_a_margin_there_are_twice_as_many_in_each_round(
    margin: float, confidence: float, stratify: bool, seed: int, kinds: list[str]
) -> None:
    population, request = requested(margin=margin, confidence=confidence, stratify=stratify, seed=seed, kinds=kinds)
    rounds = draw_rounds(population, request)
    drawn = np.concatenate(rounds)
    assert len(np.unique(drawn)) == len(drawn)
    most = sample_size(population.size, margin, confidence)
    strata = len(population.strata) if stratify else 1
    assert len(drawn) == max(most, strata)
    ends = np.cumsum([len(found) for found in rounds])
    assert ends[0] == min(ends[-1], max(FIRST_ROUND, 2 * strata))
    assert all(after == min(2 * before, ends[-1]) for before, after in pairwise(ends))
    sizes = np.array(population.sizes)
    for found, end in zip(rounds, ends, strict=True):
        assert (np.diff(found) > 0).all()
        if stratify:
            counts = np.bincount(population.stratum_of(drawn[:end]), minlength=strata)
            assert counts.min() >= 1
            # In proportion, but for rounding and strata that have one more than they would.
            assert (np.abs(counts - end * sizes / sizes.sum()) <= 1 + strata / 4).all()


def test_a_number_of_samples_is_one_round(seed: int) -> None:
    count = int(np.random.default_rng(seed).integers(100, 2500))
    for stratify in (False, True):
        population, request = requested(samples=count, seed=seed, stratify=stratify)
        (drawn,) = draw_rounds(population, request)
        assert len(drawn) == len(np.unique(drawn)) == count
        again, other = (draw_rounds(*requested(samples=count, seed=s, stratify=stratify)) for s in (seed, seed + 1))
        assert np.array_equal(again[0], drawn)
        assert not np.array_equal(other[0], drawn)


def test_all_faults_are_all_that_there_are() -> None:
    population, request = requested(exhaustive=True)
    (drawn,) = draw_rounds(population, request)
    assert drawn.tolist() == list(range(population.size))
    assert population.size == 2 * (42 * (4 + 4 + 4 + 8 + 12) + 6 * 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 10_000}, "samples is 10000: the population has 2832 faults: give fewer, or try all"),
        ({"samples": 87}, "samples is 87: the population has 88 strata, .*: give 88 or more, .* --no-stratify"),
        (
            {"samples": 3, "sites": ["PSUM"], "bits": {"PSUM": [1, 2]}},
            "samples is 3: the population has 4 strata",
        ),
        ({"exhaustive": True, "array": LARGE}, f"the population has 12979200 faults: .*; at most {MOST_FAULTS} are"),
        (
            {"margin": 1e-4, "array": LARGE},
            rf"margin is 0.0001, which may take \d+ faults: give a wider one; at most {MOST_FAULTS} are tried",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        draw_rounds(*requested(**changes))
    assert "\n" not in str(caught.value)


def test_few_samples_need_no_strata() -> None:
    (drawn,) = draw_rounds(*requested(samples=1, stratify=False))
    assert len(drawn) == 1
