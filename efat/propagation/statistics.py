"""How sure one can be of shares that are measured on a sample of faults.

What is independent are faults, not images: the outcomes of one permanent fault on all images are one observation, the
share of images with that outcome, and more images make that observation finer, not more of them. A flip hits one
image, and its outcome is a yes or no. Images are taken as given: nothing here is said about others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.records import Record
from simulator.dtypes import Float64Array
from simulator.errors import InputError


class Interval(Record, frozen=True):
    """A share that was measured, and the confidence interval of what it is in the population.

    Attributes:
        value: what was found.
        low: at most `value`.
        high: at least `value`.
    """

    value: float
    low: float
    high: float


def sample_size(population: int, margin: float, confidence: float, share: float = 0.5) -> int:
    """How many faults to sample without replacement to know the share of those that do something.

    Leveugle, Calvez, Maistri and Vanhauwaert, "Statistical fault injection: quantified error and confidence", DATE
    2009: N / (1 + e^2 (N - 1) / (t^2 p (1 - p))). It takes the share for normally distributed.

    Args:
        population: number of faults N, 1 or more.
        margin: the greatest error e to either side, 0..1, both excluded.
        confidence: how often, in many samples, the error is no greater, 0..1, both excluded.
        share: what share p is expected, 0..1, both excluded; 0.5 takes the most faults.
    """
    spread = _quantile(confidence) ** 2 * share * (1 - share)
    # Of very large populations N / (N - 1) is 1.
    needed = population / (1 + margin**2 * (population - 1) / spread)
    return min(population, max(1, math.ceil(needed - 1e-9)))


def wilson(share: float, trials: float, confidence: float) -> Interval:
    """The score interval of a binomial share (Wilson, JASA 1927).

    Its coverage is the confidence on average over shares; for shares of less than about 0.2 / `trials` it can be 84 %
    of 95 %, as its lower end is too high for a single success.

    Args:
        share: of successes, 0..1.
        trials: more than 0; not necessarily an integer, so that effective numbers can be given.
        confidence: 0..1, both excluded.
    """
    squared = _quantile(confidence) ** 2
    centre = (share + squared / (2 * trials)) / (1 + squared / trials)
    reach = math.sqrt(squared / trials * (share * (1 - share) + squared / (4 * trials))) / (1 + squared / trials)
    low = 0.0 if share == 0 else max(0.0, min(share, centre - reach))
    high = 1.0 if share == 1 else min(1.0, max(share, centre + reach))
    return Interval(share, low, high)


def mean_interval(
    values: npt.ArrayLike,
    confidence: float,
    *,
    weights: npt.ArrayLike | None = None,
    population: int | None = None,
) -> Interval:
    """The mean over a population of faults of what each does, from a sample of them.

    Values that are 0 or 1 with equal weights have their Wilson interval. Other values vary less than zeros and ones
    of the same mean and weights make it vary more, so it is the Wilson interval of as many trials as have the same
    variance (as Korn and Graubard, Survey Methodology 1998, do for surveys of clusters). The variance of few faults
    says little of those that were not seen: half of z^2 faults of 0 and half of z^2 faults of 1 are added to them when
    it is estimated, as Agresti and Coull (The American Statistician, 1998) do for shares. A sample of nothing but
    zeros has therefore the interval of that many failures, however many images each fault was tried on.

    Strata are taken into account by weights only: what is gained by each having its part of the sample is not
    counted, so that the interval is rather too wide.

    Which sample this is given must not depend on its values. Where a campaign ends after the first round whose
    interval is narrow enough, it does a little, as samples that look less varied than they are end it earlier: where
    two rounds are about as likely to be the last, 95 % intervals cover the truth in no less than 92 % of campaigns
    whose rounds double from 200 faults on; on average over shares nothing is lost.

    Args:
        values: [faults], shares within 0..1, one or more of them.
        confidence: 0..1, both excluded.
        weights: [faults], how many faults of the population each stands for, more than 0; None if all are equal.
        population: number of faults that were sampled from without replacement; None if many more.

    Returns:
        The mean, and its interval: one point if the whole population was sampled.
    """
    shares = np.asarray(values, np.float64)
    each = np.ones(len(shares)) if weights is None else np.asarray(weights, np.float64)
    # Nothing by @, whose rounding depends on the number of threads.
    each = each / each.sum()
    mean = min(1.0, max(0.0, float((each * shares).sum())))
    if population is not None and len(shares) >= population:
        return Interval(mean, mean, mean)
    faults = 1 / float((each**2).sum())
    trials = faults / _variance_ratio(shares, each, mean, faults, _quantile(confidence) ** 2)
    if population is not None:
        trials *= (population - 1) / (population - faults)
    return wilson(mean, trials, confidence)


def allocate(sizes: Sequence[int], sample: int, least: int = 1) -> list[int]:
    """Divide a sample among strata in proportion to their sizes.

    By the method of Webster and Sainte-Laguë: the next fault is of the stratum with the greatest size / (2 n + 1),
    where n are those that it has. A larger sample takes no fault away from a stratum, unlike with largest remainders,
    so a sample can grow.

    Args:
        sizes: faults in each stratum, 0 or more.
        sample: how many to take in all: as many as there are at most, and at least `least` of each stratum.
        least: how many each stratum gets at least, or all it has if they are fewer.

    Returns:
        Of each stratum how many, at most its size; `sample` in all.
    """
    forced = [min(least, size) for size in sizes]
    if sample == sum(forced):
        return forced
    # Whoever gets something while at most `sample` are given gets it in the end, too.
    low, high = 0, sample
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_rounded(sizes, forced, middle)) <= sample:
            low = middle
        else:
            high = middle - 1
    given = _rounded(sizes, forced, low)
    waiting = [_Claim(size, given[place], place) for place, size in enumerate(sizes) if given[place] < size]
    heapq.heapify(waiting)
    for _ in range(sample - sum(given)):
        place = waiting[0].place
        given[place] += 1
        if given[place] < sizes[place]:
            heapq.heapreplace(waiting, _Claim(sizes[place], given[place], place))
        else:
            heapq.heappop(waiting)
    return given


class _Claim(NamedTuple):
    """What a stratum says for itself: `size` / (2 `given` + 1), of equal ones the first stratum."""

    size: int
    given: int
    place: int

    def __lt__(self, other: tuple[int, ...]) -> bool:
        # Exact: sizes may have more digits than floats.
        mine, its = self.size * (2 * other[1] + 1), other[0] * (2 * self.given + 1)
        return mine > its or (mine == its and self.place < other[2])


def _rounded(sizes: Sequence[int], forced: Sequence[int], parts: int) -> list[int]:
    """Each size in units of the `parts`th part of all, rounded to the nearest, half of one down."""
    total = sum(sizes)
    return [max(low, -((total - 2 * size * parts) // (2 * total))) for size, low in zip(sizes, forced, strict=True)]


def _variance_ratio(values: Float64Array, weights: Float64Array, mean: float, faults: float, added: float) -> float:
    """The variance of weighted values to that of `faults` zeros and ones of the same mean, with some `added` to both.

    Weights are 1 in all; `faults` of equal weights would be as good as these. Half of those added are 0, half are 1.
    """
    centre = (mean * faults + added / 2) / (faults + added)
    squares = faults**2 * float((weights**2 * (values - centre) ** 2).sum())
    squares += added / 2 * (centre**2 + (1 - centre) ** 2)
    return squares / (faults + added) / (centre * (1 - centre))


def _quantile(confidence: float) -> float:
    """How many standard deviations to either side have that probability."""
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: expected a share between 0 and 1, such as 0.95")
    return float(ndtri((1 + confidence) / 2))
