"""Amounts are those that the statistics say, worked by hand and against plain definitions; never less than measured."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from efat.planning.selection import Constraint, ResilienceMap, Statistic
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import ResilienceTable, worsening
from simulator.errors import InputError
from tests.support.resilience import table_of, tables

BY_HAND = table_of(
    [
        [[89, 90, 92, 93], [91, 92, 93, 93]],  # 10 and 0 iterations for 90 images
        [[80, 91, 88, 92], [85, 89, 90, 91]],  # 40, since 88 follows on 91, and 20
        [[60, 80, 85, 89], [70, 86, 90, 91]],  # never, and 20
    ],
    {"weights": [[0.010, 0.012], [0.04, 0.06], [0.09, 0.11]]},
    rates=[0.01, 0.05, 0.1],
    levels=[0, 10, 20, 40],
)
FRACTIONS = st.integers(1, 20).map(lambda part: Fraction(part, 20))
STATISTICS = st.one_of(st.sampled_from(["max", "mean"]), FRACTIONS.map(lambda part: f"quantile:{float(part)}"))
CONSTRAINTS = st.one_of(
    st.floats(0, 1).map(lambda least: Constraint(accuracy=least)),
    st.sampled_from([0, 0.1, 0.5, 0.9, 1]).map(lambda drop: Constraint(max_drop=drop)),
)


def images_of(table: ResilienceTable, required: int) -> Constraint:
    """To classify so many of a table's images."""
    constraint = Constraint(accuracy=required / table.images)
    assert constraint.required(table) == required
    return constraint


def plainly_needed(table: ResilienceTable, required: int, rate: int, repeat: int) -> float:
    """What one chip needs."""
    return plain_level(table.levels.tolist(), table.correct[rate, repeat].tolist(), required)


def plain_level(levels: list[int], reached: list[Any], required: float) -> float:
    """The least level that is enough: none, or one from which on all up to the best are."""
    if reached[0] >= required:
        return 0
    best = reached.index(max(reached))
    for place, level in enumerate(levels[: best + 1]):
        if all(one >= required for one in reached[place : best + 1]):
            return float(level)
    return math.inf


def needs_nothing_at_zero(table: ResilienceTable, required: int) -> bool:
    """Whether chips that remove nothing need nothing."""
    measured = table.correct[..., 0][table.predictors["weights"] == 0]
    return table.start_correct >= required and all(correct >= required for correct in measured.tolist())


def plain_amount(table: ResilienceTable, required: int, fraction: Fraction, severity: float) -> float:
    """What a chip gets by a quantile, from what `ResilienceMap` says of it."""
    none_at_zero = needs_nothing_at_zero(table, required)
    chips = table.predictors["weights"].tolist()
    if severity == 0 and none_at_zero:
        return 0
    severity = min((chip for chips_of_rate in chips for chip in chips_of_rate if chip >= severity), default=2)
    if severity > 1:
        return math.inf
    may_miss = math.floor((1 - fraction) * table.repeats)
    found = []
    for rate, chips_of_rate in enumerate(chips):
        needed = [
            0 if chip == 0 and none_at_zero else plainly_needed(table, required, rate, repeat)
            for repeat, chip in enumerate(chips_of_rate)
        ]
        no_worse = [need for need, chip in zip(needed, chips_of_rate, strict=True) if chip <= severity]
        found += sorted(no_worse, reverse=True)[may_miss : may_miss + 1]
        others = [max(other) for other in chips if max(other) >= severity]
        if others and max(chips_of_rate) == min(others):
            found.append(sorted(needed, reverse=True)[may_miss])
    return max(found, default=0)


def plainly_smooth(means: list[Fraction]) -> list[Fraction]:
    """The non-increasing numbers with the least squared difference, by the formula of minima of maxima."""
    return [
        min(
            max(sum(means[start:stop], Fraction()) / (stop - start) for stop in range(rate + 1, len(means) + 1))
            for start in range(rate + 1)
        )
        for rate in range(len(means))
    ]


@pytest.mark.parametrize(
    ("statistic", "per_rate", "severities", "amounts", "reached"),
    [
        ("max", [10, 40, math.inf], [0, 0.012, 0.06, 0.11], [0, 10, 40, math.inf], [93, 91, 89]),
        ("quantile:0.51", [10, 40, math.inf], [0, 0.012, 0.06, 0.11], [0, 10, 40, math.inf], [93, 91, 89]),
        ("quantile:0.5", [0, 20, 20], [0.012, 0.11], [0, 20], [93, 92, 91]),
        ("mean", [0, 40, 40], [0.011, 0.11], [0, 40], [93, 91, 90]),
    ],
)
def test_a_table_worked_by_hand(
    statistic: str, per_rate: list[float], severities: list[float], amounts: list[float], reached: list[int]
) -> None:
    found = ResilienceMap(BY_HAND, Constraint(max_drop=0.05), statistic)
    assert found.required == 90
    assert found.predictor == "weights"
    assert str(found.statistic) == statistic
    assert found.needed.tolist() == [[10, 0], [40, 20], [math.inf, 20]]
    assert found.per_rate.tolist() == per_rate
    assert found.amounts.severities.tolist() == severities
    assert found.amounts.amounts.tolist() == amounts
    assert found.reached.tolist() == reached


@settings(max_examples=60)
@given(tables(), CONSTRAINTS, st.one_of(st.just("max"), FRACTIONS), st.lists(st.floats(0, 1), max_size=3))
def test_amounts_are_those_that_are_promised(
    table: ResilienceTable, constraint: Constraint, fraction: str | Fraction, others: list[float]
) -> None:
    statistic = "max" if isinstance(fraction, str) else f"quantile:{float(fraction)}"
    share = Fraction(1) if isinstance(fraction, str) else fraction
    found = ResilienceMap(table, constraint, statistic, "weights")
    for severity in [0.0, *others, *table.predictors["weights"].flat]:
        assert found.amounts.amount(severity) == plain_amount(table, found.required, share, severity)


@settings(max_examples=30)
@given(tables(), CONSTRAINTS)
def test_the_mean_is_of_the_smoothed_accuracies(table: ResilienceTable, constraint: Constraint) -> None:
    found = ResilienceMap(table, constraint, "mean", "weights")
    sums = table.correct.sum(axis=1).tolist()
    smooth = [
        plainly_smooth([Fraction(of_rate[place], table.repeats) for of_rate in sums])
        for place in range(len(table.levels))
    ]
    for rate in range(len(table.rates)):
        reached = [of_level[rate] for of_level in smooth]
        assert found.per_rate[rate] == plain_level(table.levels.tolist(), reached, found.required)
        assert found.reached[rate] == math.floor(max(reached))
    chips = table.predictors["weights"]
    free = needs_nothing_at_zero(table, found.required)
    for of_rate, amount in zip(chips, found.per_rate, strict=True):
        if of_rate.max() > 0 or not free:
            assert found.amounts.amount(of_rate.min()) <= found.amounts.amount(of_rate.max())
            assert found.amounts.amount(of_rate.max()) >= amount
    assert np.isinf(found.amounts.amount(np.nextafter(chips.max(), 1))) or chips.max() == 1


def test_a_mean_that_is_exactly_enough_is_enough() -> None:
    """All nine are smoothed into one mean of 65, which is a little less in floating point."""
    table = table_of([[[61], [60], [64]], [[70], [63], [65]], [[69], [73], [60]]], {"weights": np.eye(3)})
    found = ResilienceMap(table, images_of(table, 65), "mean")
    assert found.per_rate.tolist() == [0, 0, 0]
    assert found.reached.tolist() == [65, 65, 65]
    assert ResilienceMap(table, images_of(table, 66), "mean").per_rate.tolist() == [math.inf] * 3


def test_of_rates_with_the_same_worst_chip_the_larger_amount_counts() -> None:
    correct = [[[90, 90, 90], [90, 90, 90]], [[80, 80, 90], [80, 90, 90]]]
    found = ResilienceMap(table_of(correct, {"weights": [[0.1, 0.3], [0.3, 0.2]]}), images_of(BY_HAND, 90))
    assert found.per_rate.tolist() == [0, 20]
    assert found.amounts.amount([0, 0.05, 0.1, 0.3]).tolist() == [0, 20, 20, 20]


@settings(max_examples=30)
@given(tables(), st.data())
def test_no_measured_chip_gets_less_than_it_took(table: ResilienceTable, data: st.DataObject) -> None:
    required = data.draw(st.integers(0, table.images))
    found = ResilienceMap(table, images_of(table, required), predictor="weights")
    for (rate, repeat), severity in np.ndenumerate(table.predictors["weights"]):
        as_deployed = severity == 0 and table.correct[rate, repeat, 0] >= required
        took = 0 if as_deployed and found.amounts.amount(0) == 0 else plainly_needed(table, required, rate, repeat)
        assert found.amounts.amount(severity) >= took
        assert found.amounts.amount(severity) in [*table.levels.tolist(), math.inf]


@settings(max_examples=30)
@given(tables(), CONSTRAINTS, FRACTIONS, FRACTIONS)
def test_amounts_never_fall_with_what_is_asked(
    table: ResilienceTable, constraint: Constraint, one: Fraction, other: Fraction
) -> None:
    """With the severity, with the fraction of chips that must do it, and with the images they must classify."""
    axis = np.unique(np.append(table.predictors["weights"], np.linspace(0, 1, 7)))
    less, more = (
        ResilienceMap(table, constraint, f"quantile:{float(part)}", "weights") for part in sorted((one, other))
    )
    most = ResilienceMap(table, constraint, "max", "weights")
    assert (less.amounts.amount(axis) <= more.amounts.amount(axis)).all()
    assert (more.amounts.amount(axis) <= most.amounts.amount(axis)).all()
    assert (most.reached <= more.reached).all()
    same = ResilienceMap(table, constraint, "quantile:1", "weights")
    assert (same.amounts.amount(axis) == most.amounts.amount(axis)).all()
    for statistic in ("max", "mean", f"quantile:{float(one)}"):
        found = ResilienceMap(table, constraint, statistic, "weights")
        amounts = found.amounts.amount(axis)
        assert (amounts[1:] >= amounts[:-1]).all()
        harder = ResilienceMap(table, images_of(table, (found.required + table.images + 1) // 2), statistic, "weights")
        assert (harder.amounts.amount(axis) >= amounts).all()


@settings(max_examples=12)
@given(tables(PREDICTORS), CONSTRAINTS, STATISTICS, st.randoms(use_true_random=False))
def test_the_order_of_repeats_is_of_no_matter(
    table: ResilienceTable, constraint: Constraint, statistic: str, random: object
) -> None:
    order = list(range(table.repeats))
    random.shuffle(order)  # type: ignore[attr-defined]
    turned = table_of(
        table.correct[:, order],
        {name: values[:, order] for name, values in table.predictors.items()},
        rates=table.rates,
        levels=table.levels,
        images=table.images,
        float_correct=table.float_correct,
        fault_free_correct=table.fault_free_correct,
        start_correct=table.start_correct,
    )
    for name in PREDICTORS:
        one, other = (ResilienceMap(each, constraint, statistic, name) for each in (table, turned))
        assert one.per_rate.tolist() == other.per_rate.tolist()
        assert one.amounts.amounts.tolist() == other.amounts.amounts.tolist()
        np.testing.assert_allclose(one.amounts.severities, other.amounts.severities, rtol=1e-12)


def test_chips_of_severity_0_need_nothing_if_the_network_itself_does_it() -> None:
    correct = [[[95, 80], [93, 92]], [[90, 91], [60, 95]]]
    severities = [[0.0, 0.1], [0.0, 0.3]]
    found = ResilienceMap(table_of(correct, {"pruned": severities}), images_of(BY_HAND, 90))
    assert found.needed.tolist() == [[0, 0], [0, 10]]
    assert (found.amounts.severities.tolist(), found.amounts.amounts.tolist()) == ([0.1, 0.3], [0, 10])
    below = ResilienceMap(table_of(correct, {"pruned": severities}, start_correct=89), images_of(BY_HAND, 90))
    assert below.amounts.amount(0) == 0  # as those that were measured do
    measured = ResilienceMap(table_of(correct, {"pruned": severities}), images_of(BY_HAND, 92))
    assert np.isinf(measured.amounts.amount(0))
    nothing = ResilienceMap(table_of([[[95, 80]]], {"pruned": [[0.0]]}), images_of(BY_HAND, 90))
    assert nothing.amounts.amounts.tolist() == [0]
    assert nothing.unmeetable is None
    assert nothing.limited is None


def test_what_meets_the_constraint_untouched_needs_nothing_however_much_retraining_hurts() -> None:
    falls = [[[90, 80, 70, 60]] * 2, [[89, 91, 85, 60]] * 2, [[89, 92, 85, 91]] * 2]
    table = table_of(falls, {"weights": [[0.1] * 2, [0.2] * 2, [0.3] * 2]}, levels=[0, 10, 20, 40])
    for statistic in ("max", "quantile:0.5"):
        found = ResilienceMap(table, images_of(table, 90), statistic)
        assert found.per_rate.tolist() == [0, 10, 10]
        assert (found.reached.tolist(), found.unmeetable, found.limited) == ([90, 91, 92], None, None)
        assert found.amounts.amount([0, 0.1, 0.2, 0.3]).tolist() == [0, 0, 10, 10]
    everything = ResilienceMap(table, images_of(table, 89))
    assert everything.needed.tolist() == [[0, 0]] * 3


def test_retraining_that_makes_it_worse_is_said() -> None:
    falls = [[[9010, 8840, 8000]], [[7000, 7100, 7300]]]
    table = table_of(falls, {"weights": [[0.1], [0.2]]}, levels=[0, 10, 20], images=10_000)
    assert worsening(table) == (
        "retraining makes chips worse from 10 iterations on: at rate 0.01 from 90.1% (0 iterations) to 80.0% (20); "
        "lower --learning-rate"
    )
    by_chance = table_of([[[9010, 8990, 9020]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=10_000)
    assert worsening(by_chance) is None
    passing = table_of([[[9800, 9500, 9800]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=10_000)
    assert worsening(passing) is None
    of_few = table_of([[[98, 97, 98]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=100)
    assert worsening(of_few) is None
    unsure = table_of([[[98, 97, 97]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=100)
    assert worsening(unsure) is None
    of_many = table_of([[[9000, 8990, 8980]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=10_000)
    assert worsening(of_many) is None
    recovers = table_of([[[9000, 8000, 8990, 8000]]], {"weights": [[0.1]]}, levels=[0, 10, 20, 30], images=10_000)
    assert "from 30 iterations on" in str(worsening(recovers))
    two = [[[9000, 8900, 8500]], [[8000, 7000, 6000]]]
    loses_most = table_of(two, {"weights": [[0.1], [0.2]]}, levels=[0, 10, 20], images=10_000)
    assert "at rate 0.02 from 80.0% (0 iterations) to 60.0% (20)" in str(worsening(loses_most))
    diverged = table_of([[[98, 97, -1]]], {"weights": [[0.1]]}, levels=[0, 10, 20], images=100)
    assert "to 0.0% (20)" in str(worsening(diverged))


def test_those_that_diverge_never_meet_anything_from_there_on() -> None:
    table = table_of([[[49, 50, 50]], [[49, 49, -1]]], {"weights": [[0.1], [0.2]]})
    for statistic in ("max", "quantile:0.5"):
        found = ResilienceMap(table, images_of(table, 50), statistic)
        assert found.per_rate.tolist() == [10, math.inf]
        assert found.reached.tolist() == [50, 49]


def test_more_is_asked_for_on_images_that_decide() -> None:
    constraint = Constraint(max_drop=0.05, margin=0.02)
    assert constraint.required(BY_HAND) == 92
    assert constraint.required_of(100, 95) == constraint.required_of(200, 110) - 10 == 90
    assert Constraint(accuracy=0.99, margin=0.02).required(BY_HAND) == 100
    # Rounded up once, not each.
    assert Constraint(accuracy=0.905, margin=0.015).required(BY_HAND) == 92
    assert Constraint(accuracy=0.9, margin=0.015).required(BY_HAND) == 92


@pytest.mark.parametrize(
    ("required", "statistic", "unmeetable", "limited"),
    [
        (89, "max", None, None),
        (
            90,
            "max",
            None,
            "90 of 100 images (90.00 %) are reached only up to a severity (weights) of 0.06, after 40 iterations; "
            "chips up to 0.11 were measured, with up to 40 iterations",
        ),
        (
            94,
            "max",
            "the constraint cannot be met: 94 of 100 images (94.00 %) are required of chips (max), and the most that "
            "is reached is 93 of 100 images (93.00 %), at rate 0.01 after 40 of up to 40 iterations; ask for less, or "
            "measure lower rates or more iterations",
            None,
        ),
        (
            94,
            "quantile:0.5",
            "the constraint cannot be met: 94 of 100 images (94.00 %) are required of chips (quantile:0.5), and the "
            "most that is reached is 93 of 100 images (93.00 %), at rate 0.01 after 20 of up to 40 iterations; ask "
            "for less, or measure lower rates or more iterations",
            None,
        ),
    ],
)
def test_what_cannot_be_met_is_said(required: int, statistic: str, unmeetable: str | None, limited: str | None) -> None:
    found = ResilienceMap(BY_HAND, images_of(BY_HAND, required), statistic)
    assert found.unmeetable == unmeetable
    assert found.limited == limited


def test_rates_that_do_better_than_lower_ones_are_told_of() -> None:
    table = table_of([[[50, 80]], [[50, 91]]], {"weights": [[0.1], [0.2]]})
    assert "which those of rate 0.02 reach" in str(ResilienceMap(table, images_of(table, 90)).unmeetable)
    table = table_of([[[50, -1]], [[50, -1]]], {"weights": [[0.1], [0.2]]})
    assert "diverged at every rate" in str(ResilienceMap(table, images_of(table, 90)).unmeetable)


def test_what_is_reached_is_told_of_chips_that_are_affected() -> None:
    table = table_of([[[95, 93]], [[50, 60]]], {"weights": [[0.0], [0.2]]})
    message = str(ResilienceMap(table, images_of(table, 94)).unmeetable)
    assert "the most that is reached is 60 of 100 images (60.00 %), at rate 0.02 after 10 of up to 10" in message


@settings(max_examples=30)
@given(tables(), CONSTRAINTS, STATISTICS)
def test_at_most_one_thing_is_said_and_if_so_rightly(
    table: ResilienceTable, constraint: Constraint, statistic: str
) -> None:
    found = ResilienceMap(table, constraint, statistic, "weights")
    least, most = found.amounts.amount([np.nextafter(0, 1), found.amounts.severities[-1]])
    if found.unmeetable is not None:
        assert np.isinf(least)
        assert np.isinf(most)
        assert found.limited is None
    elif found.limited is not None:
        assert np.isfinite(least)
        assert np.isinf(most)
    else:
        assert np.isfinite(most)


@given(st.integers(0, 6), st.data())
@example(2, None)
def test_what_is_required_is_computed_exactly(digits: int, data: st.DataObject | None) -> None:
    whole = 10**digits
    part = 57 if data is None else data.draw(st.integers(0, whole))
    images = 100 if data is None else data.draw(st.integers(1, 1_000_000))
    correct = 100 if data is None else data.draw(st.integers(0, images))
    counts = {"images": images, "float_correct": 0, "start_correct": 0, "fault_free_correct": correct}
    table = table_of([[[0]]], {"weights": [[0]]}, **counts)
    assert Constraint(accuracy=part / whole).required(table) == -(-part * images // whole)
    least = Constraint(max_drop=part / whole).required(table)
    assert least == max(0, -((part * images - correct * whole) // whole))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "accuracy is None and max_drop is None: expected one"),
        ({"accuracy": 0.5, "max_drop": 0.5}, "accuracy is 0.5 and max_drop is 0.5: expected one"),
        ({"accuracy": 97}, r"accuracy is 97: expected a fraction, 0\.\.1"),
        ({"max_drop": -0.01}, r"max_drop is -0.01: expected a fraction"),
        ({"max_drop": math.nan}, "max_drop is nan"),
    ],
)
def test_constraints_that_cannot_be_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Constraint(**values)


def test_constraints_come_back_from_their_fields() -> None:
    for constraint in (Constraint(accuracy=1), Constraint(max_drop=0.01)):
        assert Constraint(**constraint.as_dict()) == constraint


@pytest.mark.parametrize("text", ["", "median", "max:1", "mean:0.5", "quantile", "quantile:", "quantile:0"])
def test_unknown_statistics_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"statistic '{text}' is unknown: expected max, mean, or quantile:"):
        Statistic.parse(text)


@pytest.mark.parametrize("number", ["1.1", "-1", "nan", "inf", "x", "1e400"])
def test_fractions_of_chips_out_of_range_are_refused(number: str) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        Statistic.parse(f"quantile:{number}")


def test_how_many_chips_must_meet_a_constraint_is_rounded_up() -> None:
    assert [Statistic.parse("quantile:0.9").must_meet(chips) for chips in (1, 5, 10, 11, 20)] == [1, 5, 9, 10, 18]
    assert [Statistic.parse(" MAX ").must_meet(chips) for chips in (1, 20)] == [1, 20]
    assert Statistic.parse("mean").must_meet(5) is None


def test_a_statistic_is_the_same_from_its_text() -> None:
    for text in ("max", "mean", "quantile:0.9", "quantile:1.0"):
        assert str(Statistic.parse(text)) == text
