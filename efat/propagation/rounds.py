"""Which faults are tried, in rounds: after each round it is decided whether there is enough of them."""

from __future__ import annotations

import numpy as np

from efat.propagation.population import Population
from efat.propagation.request import Request
from efat.propagation.statistics import allocate, sample_size
from efat.propagation.tables import MOST_FAULTS
from simulator.errors import InputError
from simulator.faults import Int64Array

FIRST_ROUND = 200
"""Faults of the first round, if a margin decides how many there are; each further round doubles their number."""


def draw_rounds(population: Population, request: Request) -> list[Int64Array]:
    """Draw all faults that may have to be tried.

    The faults up to the end of any round are a sample by themselves: one from each stratum in proportion to its size,
    if it is stratified, and a simple one otherwise.

    Args:
        population: the faults there are.
        request: how many of them are tried.

    Returns:
        For each round the places in the population of the faults that are new in it, int64 [faults], ascending. There
        is one round unless a margin is asked for.

    Raises:
        InputError: more faults than there are or than can be tried, or fewer than strata.
    """
    if request.exhaustive:
        _check_most(population.size, "the population has {} faults: give a number of samples, or a margin")
        return [np.arange(population.size, dtype=np.int64)]
    before, rounds = np.empty(0, np.int64), []
    for total in _totals(population, request):
        # More of them take none away.
        drawn = population.sample(allocate(population.sizes, total) if request.stratify else total, request.seed)
        rounds.append(np.setdiff1d(drawn, before, assume_unique=True))
        before = drawn
    return rounds


def _totals(population: Population, request: Request) -> list[int]:
    """Faults tried at the end of each round, ascending."""
    strata = len(population.sizes) if request.stratify else 1
    if request.samples is not None:
        if request.samples > population.size:
            raise InputError(
                f"samples is {request.samples}: the population has {population.size} faults: give fewer, or try all"
            )
        if request.samples < strata:
            raise InputError(
                f"samples is {request.samples}: the population has {strata} strata, bits of nets and kinds, and each "
                f"has its part of the sample: give {strata} or more, fewer bits or nets, or --no-stratify"
            )
        return [request.samples]
    assert request.margin is not None
    most = max(sample_size(population.size, request.margin, request.confidence), strata)
    _check_most(most, f"margin is {request.margin:g}, which may take {{}} faults: give a wider one")
    totals = [min(most, max(FIRST_ROUND, 2 * strata))]
    while totals[-1] < most:
        totals.append(min(most, 2 * totals[-1]))
    return totals


def _check_most(faults: int, message: str) -> None:
    if faults > MOST_FAULTS:
        raise InputError(f"{message.format(faults)}; at most {MOST_FAULTS} are tried")
