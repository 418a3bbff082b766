"""Sample sizes, intervals and allocations, against tables of others, scipy and every sample that there can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from efat.propagation.statistics import (
    Interval,
    allocate,
    mean_interval,
    sample_size,
    wilson,
)
from simulator.errors import InputError

CONFIDENCES = st.floats(0.5, 0.999)
SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("population", "expected"),
    # Krejcie and Morgan, "Determining sample size for research activities", Educational and Psychological Measurement
    # 30 (1970), table 1: the same formula, for a margin of 5 % at 95 %. They round to the nearest.
    [(10, 10), (75, 63), (100, 80), (150, 108), (1000, 278), (1800, 317), (10_000, 370), (1_000_000, 384)],
)
def test_sample_sizes_are_those_of_a_published_table(population: int, expected: int) -> None:
    assert expected <= sample_size(population, 0.05, 0.95) <= expected + 1


def test_sample_sizes_of_large_populations_worked_by_hand() -> None:
    # t^2 / (4 e^2) with t = 1.959964 and 2.575829, rounded up; 2,000 faults for 2.88 % at 99 % is what studies that
    # follow Leveugle et al. (DATE 2009) often give.
    assert sample_size(10**18, 0.05, 0.95) == 385
    assert sample_size(10**18, 0.03, 0.95) == 1068
    assert sample_size(10**18, 0.01, 0.95) == 9604
    assert sample_size(10**18, 0.01, 0.99) == 16588
    assert sample_size(10**18, 0.0288, 0.99) == 2000
    # 9604 * 4 * 0.1 * 0.9 = 3457.3 of the exact 9603.65.
    assert sample_size(10**18, 0.01, 0.95, share=0.1) == 3458
    # 10000 / (1 + 0.0001 * 9999 / 0.960365) = 4899.1.
    assert sample_size(10_000, 0.01, 0.95) == 4900


@settings(max_examples=25)
@given(st.integers(1, 10**18), st.floats(0.001, 0.5), CONFIDENCES, st.floats(0.01, 0.99))
def test_a_sample_is_as_large_as_its_margin_takes(population: int, margin: float, confidence: float, p: float) -> None:
    found = sample_size(population, margin, confidence, p)
    assert 1 <= found <= population
    assert found <= sample_size(population, margin, confidence)
    assert found <= sample_size(2 * population, margin, confidence, p)
    t = binomial_quantile(confidence)
    if 1 < found < population:
        # The error of a sample without replacement, for it and for one fault less.
        error, before = (
            t * math.sqrt(p * (1 - p) / n * (population - n) / (population - 1)) for n in (found, found - 1)
        )
        assert error <= margin * (1 + 1e-6)
        assert before > margin * (1 - 1e-6)


def test_the_interval_of_a_sample_that_large_is_no_wider_than_its_margin() -> None:
    for margin in (0.1, 0.05, 0.02):
        size = sample_size(10**9, margin, 0.95)
        assert all(half_width(score(count, size, 0.95)) <= margin for count in range(size + 1))


@settings(max_examples=25)
@given(st.integers(1, 10**6), SHARES, CONFIDENCES)
def test_intervals_of_counts_are_those_of_scipy(total: int, share: float, confidence: float) -> None:
    count = round(share * total)
    found, expected = score(count, total, confidence), binomtest(count, total).proportion_ci(confidence, "wilson")
    assert found.low == pytest.approx(float(expected.low), abs=1e-12)
    assert found.high == pytest.approx(float(expected.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_intervals_of_counts_worked_by_hand() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
    for count, total, expected in [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ]:
        found = score(count, total, 0.95)
        assert found.value == count / total
        assert (found.low, found.high) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("total", [1, 2, 5, 10, 17])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_coverage_by_every_number_of_successes(total: int, confidence: float) -> None:
    found = coverage(lambda count: score(count, total, confidence), total, np.linspace(0.0005, 0.9995, 1000))
    assert found.mean() > confidence - 0.01
    if confidence == 0.95 and total >= 5:
        assert found.min() > 0.83


def test_coverage_where_rounds_end_when_the_interval_is_narrow_enough() -> None:
    """What `mean_interval` says of it, for rounds of 200, 400, 800 and 1068 faults and a margin of 3 %."""
    margin, confidence = 0.03, 0.95
    rounds = [200, 400, 800, sample_size(10**12, margin, confidence)]
    intervals = {total: [score(count, total, confidence) for count in range(total + 1)] for total in rounds}
    covered = [_covered_in_rounds(share, margin, intervals) for share in np.linspace(0.01, 0.5, 50).tolist()]
    assert min(covered) > 0.92
    assert np.mean(covered) > 0.945


def _covered_in_rounds(share: float, margin: float, intervals: dict[int, list[Interval]]) -> float:
    before, going_on, covered = 0, np.ones(1), 0.0
    for total, of_round in intervals.items():
        successes = np.convolve(going_on, binom.pmf(np.arange(total - before + 1), total - before, share))
        narrow = np.array([half_width(interval) <= margin for interval in of_round])
        if total == max(intervals):
            assert narrow.all()
        inside = np.array([interval.low <= share <= interval.high for interval in of_round])
        covered += float(successes[narrow & inside].sum())
        going_on, before = np.where(narrow, 0, successes), total
    return covered


def coverage(interval: Callable[[int], Interval], total: int, shares: np.ndarray) -> np.ndarray:
    """How often the intervals of all numbers of successes cover a share, [shares]."""
    found = np.zeros(len(shares))
    for count in range(total + 1):
        found_at = interval(count)
        low, high = found_at.low, found_at.high
        found += binom.pmf(count, total, shares) * ((shares >= low) & (shares <= high))
    return found


@settings(max_examples=25)
@given(st.integers(1, 500), SHARES, CONFIDENCES)
def test_the_mean_of_yes_and_no_has_the_interval_of_their_count(total: int, share: float, confidence: float) -> None:
    count = round(share * total)
    found = mean_interval(np.arange(total) < count, confidence)
    assert ends(found) == pytest.approx(ends(score(count, total, confidence)), abs=1e-9)


@settings(max_examples=25)
@given(st.lists(SHARES, min_size=1, max_size=30), CONFIDENCES, st.floats(0.01, 1e6))
@example([0.5], 0.95, 1.0)
@example([1.0, 1.0], 0.95, 1.0)
@example([0.3] * 7, 0.95, 1e6)
def test_shares_that_vary_less_are_known_better(values: list[float], confidence: float, weight: float) -> None:
    found = mean_interval(values, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(np.mean(values))
    # Zeros and ones vary most: these are as wide as it gets.
    widest = wilson(found.value, len(values), confidence)
    assert half_width(found) <= half_width(widest) + 1e-9
    weighted = mean_interval(values, confidence, weights=[weight] * len(values))
    assert ends(found) == pytest.approx(ends(weighted), abs=1e-9)
    opposite = mean_interval([1 - value for value in values], confidence)
    assert (1 - opposite.high, 1 - opposite.low) == pytest.approx((found.low, found.high), abs=1e-9)


def test_more_images_of_few_faults_prove_little() -> None:
    """Twenty faults that never do anything: no better known for being tried on many images."""
    assert ends(mean_interval([0.0] * 20, 0.95)) == pytest.approx((0, 0, 0.1611), abs=1e-4)
    # One of them did something on one image of a thousand: what the others might do is not known much better.
    found = mean_interval([0.001] + [0.0] * 19, 0.95)
    assert found.high > 0.1


@pytest.mark.parametrize("faults", [5, 8])
@pytest.mark.parametrize("harm", [0.02, 0.3, 0.5])
def test_coverage_of_shares_by_every_sample(faults: int, harm: float) -> None:
    """Faults that are harmless, harm some images or harm all, of every mixture: on average as often as it says."""
    samples = list(product(range(faults + 1), repeat=2))
    intervals = {
        (some, every): mean_interval([harm] * some + [1.0] * every + [0.0] * (faults - some - every), 0.95)
        for some, every in samples
        if some + every <= faults
    }
    found = []
    for p, q in product(np.linspace(0, 1, 21), np.linspace(0, 1, 21)):
        if p + q > 1:
            continue
        mean, covered = p * harm + q, 0.0
        for (some, every), interval in intervals.items():
            ways = math.comb(faults, some) * math.comb(faults - some, every)
            chance = ways * p**some * q**every * max(0.0, 1 - p - q) ** (faults - some - every)
            covered += chance * (interval.low - 1e-9 <= mean <= interval.high + 1e-9)
        found.append(covered)
    assert np.mean(found) > 0.95
    assert min(found) > 0.82


def test_strata_count_as_often_as_they_are_large() -> None:
    # Two strata, of 90 and of 10 faults, from which ten faults each were drawn; all of the second do harm.
    values, weights = [0.0] * 10 + [1.0] * 10, [9.0] * 10 + [1.0] * 10
    found = mean_interval(values, 0.95, weights=weights)
    assert found.value == pytest.approx(0.1)
    # Kish's (1965) effective sample: (10 * 9 + 10)^2 / (10 * 81 + 10) = 12.2, less than 20.
    assert half_width(found) > half_width(score(2, 20, 0.95))


def test_intervals_of_strata_cover_by_every_sample(seed: int) -> None:
    """A population of two strata with a different part sampled of each: all samples that can be drawn."""
    random = np.random.default_rng(seed)
    large, small = random.random(8) * (random.random(8) < 0.5), random.random(4) * (random.random(4) < 0.7)
    truth = np.concatenate([large, small]).mean()
    covered, sums = [], []
    for first in combinations(large.tolist(), 3):
        for second in combinations(small.tolist(), 2):
            found = mean_interval([*first, *second], 0.95, weights=[8 / 3] * 3 + [2.0] * 2, population=12)
            covered.append(found.low <= truth <= found.high)
            sums.append(found.value)
    assert np.mean(sums) == pytest.approx(truth)
    assert np.mean(covered) >= 0.8


@settings(max_examples=25)
@given(st.lists(SHARES, min_size=2, max_size=20), CONFIDENCES)
def test_of_a_whole_population_everything_is_known(values: list[float], confidence: float) -> None:
    found = mean_interval(values, confidence, population=len(values))
    assert found.low == found.value == found.high == pytest.approx(np.mean(values))
    nearly = mean_interval(values, confidence, population=len(values) + 1)
    many = mean_interval(values, confidence, population=10**18)
    assert half_width(nearly) <= half_width(many) + 1e-12
    assert ends(many) == pytest.approx(ends(mean_interval(values, confidence)), abs=1e-9)


@pytest.mark.parametrize("confidence", [0, 1, -1, 95, math.nan])
def test_confidences_that_cannot_be(confidence: float) -> None:
    with pytest.raises(InputError, match="confidence is"):
        mean_interval([0.5], confidence)


SIZES = st.lists(st.integers(0, 50) | st.integers(0, 10**17), min_size=1, max_size=12)


@settings(max_examples=25)
@given(SIZES, st.data())
def test_a_sample_is_divided_in_proportion(sizes: list[int], data: st.DataObject) -> None:
    least = data.draw(st.integers(0, 3))
    forced = [min(least, size) for size in sizes]
    sample = data.draw(st.integers(sum(forced), min(sum(sizes), sum(forced) + 500)))
    found = allocate(sizes, sample, least)
    assert sum(found) == sample
    assert all(low <= count <= size for low, count, size in zip(forced, found, sizes, strict=True))
    # No stratum has a greater claim to a fault of another one: Balinski and Young's test of Webster's method.
    for giver, taker in product(range(len(sizes)), repeat=2):
        if found[giver] > forced[giver] and found[taker] < sizes[taker]:
            claim = Fraction(sizes[giver], 2 * found[giver] - 1)
            assert claim >= Fraction(sizes[taker], 2 * found[taker] + 1)
    if sample < sum(sizes):
        more = allocate(sizes, sample + 1, least)
        assert all(count <= after for count, after in zip(found, more, strict=True))


def test_allocations_worked_by_hand() -> None:
    assert allocate([50, 30, 20], 10) == [5, 3, 2]
    # Claims after one each of 70, 20 and 10: 23.3, 14, 10 (third of the first), 7.8 and then 6.7 of the second.
    assert allocate([70, 20, 10], 5) == [3, 1, 1]
    assert allocate([1000, 1, 1], 10) == [8, 1, 1]
    assert allocate([10, 10, 10], 4) == [2, 1, 1]
    assert allocate([0, 5], 5) == [0, 5]
    assert allocate([2**60, 2**60 + 2], 2**20 + 1) == [2**19, 2**19 + 1]
    assert allocate([7, 0, 2], 0, least=0) == [0, 0, 0]
    assert allocate([], 0) == []


def test_large_samples_of_many_strata_are_divided_at_once(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 10**12, 2000).tolist()
    found = allocate(sizes, 4_000_000)
    assert sum(found) == 4_000_000
    exact = [Fraction(4_000_000 * size, sum(sizes)) for size in sizes]
    assert all(abs(count - quota) < 3 for count, quota in zip(found, exact, strict=True))


def score(count: float, total: float, confidence: float) -> Interval:
    return wilson(count / total, total, confidence)


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


def binomial_quantile(confidence: float) -> float:
    """Standard deviations to either side, by bisection of the error function."""
    low, high = 0.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < confidence else (low, middle)
    return low
