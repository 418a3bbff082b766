"""The numbers of a population are its faults, each once; samples are drawn without replacement and evenly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.propagation.population import LayerShape, Population
from simulator import ArrayConfig, Kind, Site, gemm_timing
from simulator.errors import InputError
from tests.support.strategies import configs

STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
LAYERS = (LayerShape("first", 1, 9, 4, 3), LayerShape("second", 2, 4, 5, 2))
SMALL = ArrayConfig(3, 2, 3, 4, acc_bits=9)


@st.composite
def populations(draw: st.DrawFn) -> Population:
    """A few strata of small arrays and layers."""
    config = draw(configs())
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
    layers = [LayerShape(str(place), *size) for place, size in enumerate(draw(st.lists(sizes, min_size=1, max_size=3)))]
    sites = [site for site in Site if site.bits(config)]
    stratum = st.sampled_from(sites).flatmap(
        lambda site: st.tuples(st.just(site), st.integers(0, site.bits(config) - 1), st.sampled_from(Kind))
    )
    strata = draw(st.lists(stratum, min_size=1, max_size=4, unique=True))
    return Population(config, layers, strata, draw(st.integers(1, 3)))


def every_fault(population: Population) -> set[tuple[int, ...]]:
    """All faults as a plain list would have them."""
    config, found = population.config, set()
    times = [
        (layer, group, cycle, image)
        for image in range(population.images)
        for layer, shape in enumerate(population.layers)
        for group in range(shape.groups)
        for cycle in range(gemm_timing(config, shape.m, shape.k, shape.n).serial)
    ]
    for site, bit, kind in population.strata:
        rows = range(1 if site is Site.ACCUMULATOR else config.rows)
        for row, col in itertools.product(rows, range(config.cols)):
            for time in times if kind is Kind.FLIP else [(-1, -1, -1, -1)]:
                found.add((row, col, int(site), bit, int(kind), *time))
    return found


@settings(max_examples=25)
@given(populations())
def test_numbers_are_all_faults_each_once(population: Population) -> None:
    indices = np.arange(population.size)
    table = population.faults(indices)
    assert len(set(table.tolist())) == population.size
    assert set(table.tolist()) == every_fault(population)
    np.testing.assert_array_equal(population.indices(table), indices)
    strata = population.stratum_of(indices)
    assert np.bincount(strata, minlength=len(population.strata)).tolist() == population.sizes
    assert (np.diff(strata) >= 0).all()
    for name, place in (("site", 0), ("bit", 1), ("kind", 2)):
        expected = np.array([stratum[place] for stratum in population.strata])[strata]
        np.testing.assert_array_equal(table[name], expected)


@settings(max_examples=25)
@given(populations(), st.integers(0, 2**32), st.data())
def test_samples_are_parts_of_the_population(population: Population, seed: int, data: st.DataObject) -> None:
    size = population.size
    count = data.draw(st.integers(0, size))
    drawn = population.sample(count, seed)
    assert drawn.dtype == np.int64
    assert len(drawn) == count
    assert (np.diff(drawn) > 0).all()
    assert ((drawn >= 0) & (drawn < size)).all()
    np.testing.assert_array_equal(drawn, population.sample(count, seed))
    fewer = data.draw(st.integers(0, count))
    assert set(population.sample(fewer, seed)) <= set(drawn)
    np.testing.assert_array_equal(population.sample(size, seed), np.arange(size))

    counts = [data.draw(st.integers(0, of_stratum)) for of_stratum in population.sizes]
    drawn = population.sample(counts, seed)
    assert (np.diff(drawn) > 0).all()
    assert np.bincount(population.stratum_of(drawn), minlength=len(counts)).tolist() == counts
    np.testing.assert_array_equal(population.sample(np.array(population.sizes), seed), np.arange(size))


def test_what_is_drawn_of_a_stratum_does_not_depend_on_others() -> None:
    strata = [(Site.PSUM, 3, Kind.FLIP), (Site.WEIGHT, 0, Kind.STUCK_AT_1)]
    both = Population(SMALL, LAYERS, strata, 5)
    alone = Population(SMALL, LAYERS, strata[1:], 5)
    np.testing.assert_array_equal(both.faults(both.sample([17, 4], 11))[17:], alone.faults(alone.sample([4], 11)))
    assert not np.array_equal(both.sample([17, 4], 11), both.sample([17, 4], 12))


def assert_even(places: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]], cells: int) -> None:
    """Each of some cells has its part of what was drawn, within ten standard deviations (about once in 10**22)."""
    found = np.bincount(places, minlength=cells)
    assert len(found) == cells
    expected = len(places) / cells
    assert np.abs(found - expected).max() < 10 * np.sqrt(expected)


@pytest.mark.parametrize("images", [100, 10**9])
def test_samples_are_even(images: int, seed: int) -> None:
    # The few are shuffled, of the many some are drawn; both fields are spread over the whole range.
    strata = [(Site.WEIGHT, bit, Kind.FLIP) for bit in range(3)]
    population = Population(SMALL, LAYERS, strata, images)
    assert (population.size < 1 << 20) == (images == 100)
    drawn = population.sample(20_000, seed)
    table = population.faults(drawn)
    assert_even(table["bit"], 3)
    assert_even(table["row"] * 2 + table["col"], 6)
    assert_even(table["image"] // (images // 10), 10)
    cycles = [gemm_timing(SMALL, 9, 4, 3).serial, *[gemm_timing(SMALL, 4, 5, 2).serial] * 2]
    first = np.concatenate([[0], np.cumsum(cycles)])
    assert_even(first[table["layer"] + table["group"]] + table["cycle"], sum(cycles))


def test_large_populations_are_numbered_to_their_end() -> None:
    population = Population(SMALL, LAYERS, [(Site.PSUM, 8, Kind.FLIP), (Site.ACCUMULATOR, 8, Kind.FLIP)], 2**31 - 1)
    assert population.size == (6 + 2) * population.cycles * (2**31 - 1) > 2**32
    ends = np.array([0, population.sizes[0] - 1, population.sizes[0], population.size - 1])
    table = population.faults(ends)
    assert table["image"].tolist() == [0, 2**31 - 2] * 2
    assert table["cycle"].tolist() == [0, gemm_timing(SMALL, 4, 5, 2).serial - 1] * 2
    assert table[["row", "col"]].tolist() == [(0, 0), (2, 1), (0, 0), (0, 1)]
    np.testing.assert_array_equal(population.indices(table), ends)


def test_faults_of_other_strata_have_no_number() -> None:
    population = Population(SMALL, LAYERS, [(Site.WEIGHT, 1, Kind.STUCK_AT_1)], 1)
    other = Population(SMALL, LAYERS, [(Site.WEIGHT, 1, kind) for kind in Kind], 1)
    table = other.faults(np.arange(other.size))
    assert population.indices(table).tolist() == [-1] * 6 + [0, 1, 2, 3, 4, 5] + [-1] * (other.size - 12)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="expected at most 9223372036854775807"):
        Population(SMALL, LAYERS, [(Site.WEIGHT, 1, Kind.FLIP)], 2**62)
    population = Population(SMALL, LAYERS, [(Site.WEIGHT, bit, kind) for bit in range(2) for kind in STUCK], 1)
    with pytest.raises(ValueError, match="fault 24 of the population"):
        population.faults(np.array([0, 24]))
