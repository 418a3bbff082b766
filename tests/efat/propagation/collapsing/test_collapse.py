"""What is known of faults without simulating them is so: by both engines, and by going through whole populations."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.propagation.collapsing.collapse import Rule
from efat.propagation.population import Population
from simulator import FaultMap, Kind, Site
from tests.support.propagation import (
    STUCK,
    Case,
    Layer,
    cases,
    changes,
    fault_of,
    outputs,
    pick,
    same_outputs,
    with_other_inputs,
)
from training.emulation.program import chip_faults
from training.emulation.upsets import upsets

WITHOUT_CHOICE = (Site.PRODUCT, Site.PSUM, Site.ACCUMULATOR)


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_rules_are_so_on_both_engines(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    collapse = case.collapse()
    clean = outputs(case, None, case.layers)
    for kinds in (STUCK, (Kind.FLIP,)):
        population = case.population(kinds)
        table = population.faults(population.sample(min(population.size, 20_000), seed))
        rule, standing = collapse.rules(table)
        np.testing.assert_array_equal(standing[rule != Rule.EQUIVALENT], table[rule != Rule.EQUIVALENT])
        if kinds != STUCK:
            assert (rule != Rule.EQUIVALENT).all()
        of_standing, _ = collapse.rules(standing[rule == Rule.EQUIVALENT])
        assert (of_standing == Rule.SIMULATED).all()
        assert (population.indices(standing) >= 0).all()
        for place in pick(random, table, rule)[:12]:
            fault = table[place]
            if rule[place] in (Rule.UNUSED, Rule.SAME_VALUE):
                assert not changes(case, fault, clean), fault
            elif rule[place] == Rule.EQUIVALENT:
                other = with_other_inputs(case, random)
                assert fault != standing[place]
                assert same_outputs(outputs(case, fault, other), outputs(case, standing[place], other)), fault
            elif fault["kind"] == Kind.FLIP and fault["site"] in WITHOUT_CHOICE:
                assert changes(case, fault, clean), fault


@settings(max_examples=6)
@given(cases(one_fold=True), st.integers(0, 2**32 - 1))
def test_faults_within_a_pe_that_are_left_change_something(case: Case, seed: int) -> None:
    # With one k-fold nothing can make up for a product that changes.
    collapse, population = case.collapse(), case.population(STUCK)
    table = population.faults(np.arange(population.size))
    within = np.isin(table["site"], (Site.WEIGHT, Site.PRODUCT, Site.MULTIPLIER))
    table = table[within]
    rule, _ = collapse.rules(table)
    clean = outputs(case, None, case.layers)
    for place in pick(np.random.default_rng(seed), table, rule):
        expected = rule[place] in (Rule.SIMULATED, Rule.EQUIVALENT)
        assert changes(case, table[place], clean) == expected, table[place]


@settings(max_examples=6)
@given(cases(one_fold=True), st.integers(0, 2**32 - 1))
def test_faults_within_a_pe_that_are_left_differ_from_each_other(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    collapse, population = case.collapse(), case.population(STUCK)
    table = population.faults(np.arange(population.size))
    row, col = random.integers(case.config.rows), random.integers(case.config.cols)
    within = np.isin(table["site"], (Site.WEIGHT, Site.PRODUCT, Site.MULTIPLIER))
    table = table[within & (table["row"] == row) & (table["col"] == col)]
    rule, _ = collapse.rules(table)
    left = random.permutation(table[rule == Rule.SIMULATED])[:12]
    low, high = case.config.act_range
    every = np.arange(low, high + 1)[:, None, None, None]
    layers = tuple(
        Layer(np.tile(every, (1, len(layer.weights), 1, layer.weights.shape[2])), layer.weights)
        for layer in case.layers
    )
    found = {tuple(part.tobytes() for part in outputs(case, fault, layers)) for fault in left}
    assert len(found) == len(left)


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_the_whole_population(case: Case, seed: int) -> None:
    collapse = case.collapse()
    chosen = np.random.default_rng(seed).permutation(len(case.strata))
    of_kind = {kind: [case.strata[place] for place in chosen if case.strata[place][2] is kind] for kind in Kind}
    strata = of_kind[Kind.FLIP][:2] + of_kind[Kind.STUCK_AT_0][:40] + of_kind[Kind.STUCK_AT_1]
    population = Population(case.config, [use.shape for use in case.uses()], strata, 2)
    expected = np.zeros((len(strata), len(Rule)), np.int64)
    for start in range(0, population.size, 1 << 18):
        indices = np.arange(start, min(population.size, start + (1 << 18)))
        rule, _ = collapse.rules(population.faults(indices))
        np.add.at(expected, (population.stratum_of(indices), rule), 1)
    assert collapse.stratum_counts(population) == [dict(zip(Rule, counts, strict=True)) for counts in expected.tolist()]
    assert collapse.counts(population) == dict(zip(Rule, expected.sum(0).tolist(), strict=True))


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_flips_touch_what_they_touch_in_the_emulation(case: Case, seed: int) -> None:
    config, collapse, population = case.config, case.collapse(), case.population((Kind.FLIP,))
    # One of each of twelve strata, so that no net outnumbers others.
    counts = np.zeros(len(population.strata), np.int64)
    counts[np.random.default_rng(seed).permutation(len(counts))[:12]] = 4
    table = population.faults(population.sample(counts, seed))
    rule, _ = collapse.rules(table)
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    for fault, found in zip(table, rule, strict=True):
        layer = case.layers[fault["layer"]]
        _, _, m, k = layer.x.shape
        n = layer.weights.shape[1]
        chip = chip_faults(config, FaultMap.from_faults(config, [fault_of(fault)]), bypass)
        touched = False
        for upset in upsets(chip, m, k, n):
            n_fold, k_fold = divmod(upset.fold, -(-k // config.rows))
            touched = n_fold * config.cols + upset.first_column < n
            used = k_fold * config.rows + upset.row < k
        if not touched:
            assert found == Rule.UNUSED, fault
        elif fault["site"] in WITHOUT_CHOICE:
            assert found == Rule.SIMULATED, fault
        else:
            assert found in (Rule.SIMULATED, Rule.SAME_VALUE if used else Rule.UNUSED), fault
