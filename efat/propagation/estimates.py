"""What a sample of faults says of the population that it is from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.statistics import Interval, mean_interval
from efat.propagation.table_checks import stratum_places
from efat.propagation.tables import Propagation
from simulator.faults import BoolArray, Float64Array, Int64Array


class Domain(NamedTuple):
    """Some of the strata, all together.

    Attributes:
        strata: int64 [strata], rows of the table of strata.
        rows: int64 [faults], the rows of the table of faults that are of them.
        population: faults that they have.
    """

    strata: Int64Array
    rows: Int64Array
    population: int


class Estimates:
    """Means over a population of faults, with their confidence intervals; see `mean_interval`.

    A fault of a stratified sample stands for as many as its stratum has for each one that was sampled, and one of a
    simple sample for as many as any other.

    Args:
        propagation: what was found.
        confidence: of the intervals, 0..1, both excluded.
    """

    def __init__(self, propagation: Propagation, confidence: float) -> None:
        self.propagation = propagation
        self.confidence = confidence
        strata = propagation.strata
        sampled = strata["sampled"].astype(np.float64)
        self.stratum_weights: Float64Array = np.ones(len(strata))
        if propagation.stratified:
            self.stratum_weights = strata["population"] / np.maximum(sampled, 1)
        place = stratum_places(strata, propagation.faults)
        self.weights: Float64Array = self.stratum_weights[place]
        self._order = np.argsort(place, kind="stable")
        self._starts = np.append(0, np.cumsum(strata["sampled"], dtype=np.int64))

    def domain(self, chosen: BoolArray) -> Domain:
        """The faults of some strata, bool [strata]."""
        strata = np.nonzero(chosen)[0]
        parts = [self._order[self._starts[place] : self._starts[place + 1]] for place in strata.tolist()]
        rows = np.concatenate([np.empty(0, np.int64), *parts])
        return Domain(strata, rows, sum(self.propagation.strata["population"][strata].tolist()))

    def mean(self, values: npt.ArrayLike, domain: Domain) -> Interval | None:
        """The mean of shares, [faults of the domain], over its population; None if none of it was sampled."""
        if not len(domain.rows):
            return None
        weights = self.weights[domain.rows]
        return mean_interval(values, self.confidence, weights=weights, population=domain.population)
