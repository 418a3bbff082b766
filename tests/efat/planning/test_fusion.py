"""Fusion is the greedy algorithm it says it is, ties included; what it gives is a partition that saves retraining."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.planning import fusion
from efat.planning.fusion import MOST_EXACT, AmountMap, Group, best_partition, fuse, fuse_in_order, singles
from efat.resilience.severity import severity, weights_per_pe
from simulator import ArrayConfig
from simulator.errors import InputError

ONES = np.ones((2, 5), np.int64)
TENTHS = AmountMap(np.arange(11) / 10, np.array([0, 1, 2, 4, 4, 8, 8, 8, 16, 20, np.inf]))


@dataclass(frozen=True)
class Case:
    """Chips, a network and what retraining takes."""

    masks: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.int64]
    amounts: AmountMap

    def __repr__(self) -> str:
        masks = "\n".join(str(mask.astype(int).tolist()) for mask in self.masks)
        return (
            f"weights={self.weights.tolist()} severities={self.amounts.severities.tolist()} "
            f"amounts={self.amounts.amounts.tolist()}\n{masks}"
        )

    def amount(self, chips: Sequence[int]) -> float:
        """What chips take together."""
        return float(self.amounts.amount(self.severity(chips)))

    def severity(self, chips: Sequence[int]) -> float:
        """Share of weights that chips remove together."""
        return float(severity(self.masks[list(chips)].any(axis=0), self.weights))

    def plainly_fused(self) -> list[tuple[int, ...]]:
        """Members of the groups, by comparing all pairs in each round."""
        takes = {(chip,): self.amount([chip]) for chip in range(len(self.masks))}
        alone = [group for group in takes if math.isinf(takes[group])]
        groups = [group for group in takes if math.isfinite(takes[group])]
        keys: dict[tuple[int, ...], tuple[float, float]] = {}
        while True:
            best: tuple[Any, ...] = (0.0,)
            for one, other in itertools.combinations(groups, 2):
                together = one + other
                if together not in keys:
                    share = self.severity(together)
                    saved = takes[one] + takes[other] - float(self.amounts.amount(share))
                    keys[together] = (-saved, share)
                best = min(best, (*keys[together], one[0], other[0], one, other))
            if best[0] == 0:
                return sorted(groups + alone)
            one, other = best[4:]
            merged = tuple(sorted(one + other))
            takes[merged] = self.amount(merged)
            groups = sorted({*groups, merged} - {one, other})

    def partitions(self, chips: Sequence[int]) -> Iterator[list[list[int]]]:
        """All partitions of some chips."""
        if not chips:
            yield []
            return
        for partition in self.partitions(chips[1:]):
            yield [[chips[0]], *partition]
            for place in range(len(partition)):
                yield [*partition[:place], [chips[0], *partition[place]], *partition[place + 1 :]]


def total(groups: list[Group]) -> float:
    """What all groups take that can be retrained."""
    return sum(group.amount for group in groups if math.isfinite(group.amount))


def random_masks(random: np.random.Generator, style: str, chips: int, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Chips with faults of one style."""
    rates = np.exp(random.uniform(np.log(0.01), np.log(random.uniform(0.05, 1)), chips))
    if style == "any rate":
        return random.random((chips, *shape)) < rates[:, None, None]
    if style == "rows":
        return np.repeat(random.random((chips, shape[0], 1)) < rates[:, None, None], shape[1], axis=2)
    if style == "few of a kind":
        kinds = random.random((3, *shape)) < random.uniform(0.01, 0.5)
        return np.asarray(kinds[random.integers(3, size=chips)])
    # As many PEs on each chip, so that many pairs are alike.
    count = max(1, int(rates.min(initial=1) * shape[0] * shape[1]))
    order = np.argsort(random.random((chips, shape[0] * shape[1])), axis=1)
    return (order < count).reshape(chips, *shape)


@st.composite
def cases(draw: st.DrawFn, most_chips: int = 12) -> Case:
    """Small arrays and larger ones, networks that fill them or not, many ties or none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    weights = {
        "one each": lambda: np.ones(shape, np.int64),
        "network": lambda: weights_per_pe(
            [(int(a), int(b), int(c)) for a, b, c in random.integers(1, 30, (3, 3))], ArrayConfig(*shape)
        ),
        "few": lambda: random.integers(0, 3, shape),
        "any": lambda: random.integers(0, 1000, shape),
        "huge": lambda: random.integers(0, 1 << 45, shape),
    }[draw(st.sampled_from(["one each", "network", "few", "any", "huge"]))]()
    weights.flat[random.integers(weights.size)] = 1
    styles = ["any rate", "rows", "few of a kind", "as many"]
    masks = random_masks(random, draw(st.sampled_from(styles)), draw(st.integers(0, most_chips)), shape)
    points = draw(st.integers(1, 12))
    # Some severities occur exactly.
    steps = random.choice(100, points, replace=False) / 99
    if draw(st.booleans()):
        occurring = severity(masks, weights)
        steps = np.concatenate([steps, occurring[: points // 2]])
    severities = np.unique(steps)
    amounts = np.sort(random.integers(0, draw(st.sampled_from([3, 10, 1000])), len(severities)).astype(np.float64))
    amounts *= draw(st.sampled_from([1.0, 0.1, 1 / 3]))
    if draw(st.booleans()):
        amounts[-1] = np.inf
    return Case(masks, weights, AmountMap(severities, amounts))


@given(cases(), st.sampled_from([1, 2, 32]))
@settings(max_examples=150)
def test_the_best_pair_is_merged_each_time(case: Case, kept: int) -> None:
    with mock.patch.object(fusion, "_KEPT", kept):
        groups = fuse(case.masks, case.weights, case.amounts)
    assert [group.members for group in groups] == case.plainly_fused()


@pytest.mark.parametrize("style", ["any rate", "rows", "few of a kind", "as many"])
@pytest.mark.parametrize(("points", "kept"), [(4, 32), (40, 3)])
def test_the_best_pair_of_many_chips(style: str, points: int, kept: int, seed: int) -> None:
    """More of them than partners are kept, and than one thread compares at once."""
    random = np.random.default_rng(seed)
    weights = weights_per_pe([(1, 9, 16), (1, 144, 20), (2, 31, 7)], ArrayConfig(16, 24))
    masks = random_masks(random, style, 70, weights.shape)
    severities = np.sort(random.choice(500, points, replace=False) + 1) / 500
    amounts = AmountMap(severities, np.cumsum(random.integers(0, 10, points)) + 5.0)
    case = Case(masks, weights, amounts)
    threads = mock.patch.object(torch, "get_num_threads", return_value=3)
    with threads, mock.patch.object(fusion, "_KEPT", kept):
        groups = fuse(masks, weights, amounts)
    assert [group.members for group in groups] == case.plainly_fused()


@given(cases())
@settings(max_examples=50)
def test_groups_are_a_partition_for_which_every_mask_is_retrained(case: Case) -> None:
    alone = singles(case.masks, case.weights, case.amounts)
    assert [group.members for group in alone] == [(chip,) for chip in range(len(case.masks))]
    fused = fuse(case.masks, case.weights, case.amounts)
    for groups in (alone, fused, fuse_in_order(case.masks, case.weights, case.amounts, 3)):
        assert sorted(chip for group in groups for chip in group.members) == list(range(len(case.masks)))
        for group in groups:
            assert np.array_equal(group.bypass, case.masks[list(group.members)].any(axis=0))
            assert group.severity == case.severity(group.members)
            assert group.amount == case.amount(group.members)
            assert list(group.members) == sorted(group.members)
    assert total(fused) <= total(alone) * (1 + 1e-12)
    for group in alone:
        if group.amount in (0, math.inf):
            assert group.members in [other.members for other in fused]
    assert all(math.isfinite(group.amount) for group in fused if len(group.members) > 1)


@given(cases())
@settings(max_examples=30)
def test_masks_may_be_packed_and_come_one_by_one(case: Case) -> None:
    expected = fuse(case.masks, case.weights, case.amounts)
    packed = [np.packbits(mask) for mask in case.masks]
    for masks in (list(case.masks), iter(packed), packed):
        again = fuse(masks, case.weights, case.amounts)
        assert [(group.members, group.severity, group.amount) for group in again] == [
            (group.members, group.severity, group.amount) for group in expected
        ]
        assert all(np.array_equal(one.bypass, other.bypass) for one, other in zip(again, expected, strict=True))


@given(cases(most_chips=6))
@settings(max_examples=60)
def test_no_partition_is_better_than_the_best(case: Case) -> None:
    finite = [chip for chip in range(len(case.masks)) if math.isfinite(case.amount([chip]))]
    best = best_partition(case.masks, case.weights, case.amounts)
    assert sorted(chip for group in best for chip in group.members) == list(range(len(case.masks)))
    assert all(len(group.members) == 1 for group in best if not math.isfinite(group.amount))
    every = [
        (sum(case.amount(members) for members in partition), len(partition)) for partition in case.partitions(finite)
    ]
    least = min(amount for amount, _ in every)
    assert total(best) == pytest.approx(least, rel=1e-12)
    assert total(best) <= total(fuse(case.masks, case.weights, case.amounts)) * (1 + 1e-12)
    if all(amount.is_integer() or math.isinf(amount) for amount in case.amounts.amounts.tolist()):
        assert len(best) == max(count for amount, count in every if amount == least) + len(case.masks) - len(finite)


def test_greedy_can_be_beaten() -> None:
    """The first merge saves most, but with the other two pairs more is saved."""
    bits = [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 6, 7], [4, 5, 8, 9]]
    masks = np.zeros((4, 10), np.bool_)
    for mask, chosen in zip(masks, bits, strict=True):
        mask[chosen] = True
    amounts = AmountMap(np.array([0.4, 0.6, 1.0]), np.array([10, 11, 30]))
    case = masks.reshape(4, 2, 5), ONES, amounts
    assert [group.members for group in fuse(*case)] == [(0, 1), (2,), (3,)]
    assert [group.members for group in best_partition(*case)] == [(0, 2), (1, 3)]
    assert [total(groups) for groups in (singles(*case), fuse(*case), best_partition(*case))] == [40, 31, 22]


def row(*bits: int) -> npt.NDArray[np.bool_]:
    """A mask of 2x5 PEs."""
    mask = np.zeros(10, np.bool_)
    mask[list(bits)] = True
    return mask.reshape(2, 5)


def test_what_is_merged_and_what_is_not() -> None:
    masks = [row(), row(0, 1, 2), row(*range(10)), row(3, 4, 5), row(0, 1, 2, 6), row(), row(*range(9))]
    groups = fuse(masks, ONES, TENTHS)
    # 3 alone takes 4, as 1 and 4 do together; with it they would take 8. Nothing is enough for 2.
    assert [(group.members, group.amount) for group in groups] == [
        ((0,), 0),
        ((1, 3, 4, 6), 20),
        ((2,), math.inf),
        ((5,), 0),
    ]


def test_of_equal_savings_the_smallest_severity_then_the_smallest_chips() -> None:
    amounts = AmountMap(np.array([0.3]), np.array([7]))
    assert [group.members for group in fuse([row(0), row(1, 2), row(3), row(4)], ONES, amounts)] == [(0, 2, 3), (1,)]
    assert [group.members for group in fuse([row(0, 1), row(2), row(3, 4), row(5)], ONES, amounts)] == [
        (0,),
        (1, 3),
        (2,),
    ]
    assert [group.members for group in fuse([row(chip, chip + 1) for chip in range(0, 8, 2)], ONES, amounts)] == [
        (0,),
        (1,),
        (2,),
        (3,),
    ]


def test_of_equal_pairs_with_the_same_chip_the_one_with_the_smaller_other_chip() -> None:
    amounts = AmountMap(np.array([0.1, 0.2, 0.7]), np.array([1, 3, 10]))
    masks = [row(0, 1, 2, 3, 4, 5), row(8), row(7), row(6)]
    assert [group.members for group in fuse(masks, ONES, amounts)] == [(0, 1), (2,), (3,)]


def test_chips_are_merged_as_they_come() -> None:
    masks = [row(0), row(*range(10)), row(1), row(1, 2), row()]
    groups = fuse_in_order(iter(masks), ONES, TENTHS, 2)
    assert [(group.members, group.amount) for group in groups] == [((0, 1), math.inf), ((2, 3), 2), ((4,), 0)]
    assert [group.members for group in fuse_in_order(masks, ONES, TENTHS, 99)] == [(0, 1, 2, 3, 4)]


def test_no_chips_no_groups() -> None:
    assert fuse([], ONES, TENTHS) == []
    assert best_partition([], ONES, TENTHS) == []
    assert singles([], ONES, TENTHS) == []


def test_progress_goes_up_to_the_end(seed: int) -> None:
    random = np.random.default_rng(seed)
    seen: list[tuple[int, int]] = []
    masks = random.random((150, 2, 5)) < 0.3
    fuse(masks, ONES, AmountMap([0.5, 0.8, 1], [5, 8, 20]), lambda done, steps: seen.append((done, steps)))
    assert len(seen) > 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {steps for _, steps in seen} == {seen[-1][0]}


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100)), max_size=20),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_amounts_are_never_below_what_a_severity_takes(
    measured: list[float], jumps: list[tuple[float, float]], asked: list[float]
) -> None:
    def takes(x: float) -> float:
        return math.fsum(height for place, height in jumps if place <= x)

    severities = sorted(measured)
    amounts = AmountMap(np.array(severities), np.array([takes(x) for x in severities]))
    assert amounts.amount(severities).tolist() == amounts.amounts.tolist()
    for x in asked:
        assert amounts.amount(x) >= takes(x)
        assert math.isfinite(amounts.amount(x)) == (x <= severities[-1])
        above = [severity for severity in severities if severity >= x]
        assert amounts.amount([[x]]).tolist() == [[takes(above[0]) if above else math.inf]]


@given(st.integers(1, 400), st.data())
def test_levels_are_amounts_by_whole_weights(weights: int, data: st.DataObject) -> None:
    places = st.integers(0, weights).map(lambda removed: removed / weights) | st.floats(0, 1)
    severities = sorted(data.draw(st.lists(places, min_size=1, max_size=8, unique=True)))
    drawn = st.lists(
        st.sampled_from([0.0, 1.0, 2.5, 7.0, math.inf]), min_size=len(severities), max_size=len(severities)
    )
    amounts = AmountMap(np.array(severities), np.array(sorted(data.draw(drawn))))
    limits, of_levels = amounts.levels(weights)
    removed = np.arange(weights + 1)
    found = np.append(of_levels, np.inf)[np.searchsorted(limits, removed)]
    assert found.tolist() == amounts.amount(removed / weights).tolist()
    assert (np.diff(of_levels) > 0).all()


@pytest.mark.parametrize(
    ("severities", "amounts", "message"),
    [
        ([], [], r"severities have shape \(0,\): expected one dimension"),
        ([[0.1]], [1], r"severities have shape \(1, 1\)"),
        ([0.1, 0.2], [1], "2 severities and 1 amounts: expected one of each"),
        ([0.1, 1.5], [1, 2], r"a severity is 1\.5: expected 0\.\.1"),
        ([-0.1], [1], r"a severity is -0\.1"),
        ([math.nan], [1], "a severity is nan"),
        ([0.1, 0.1], [1, 2], r"a severity is 0\.1: expected more than the one before"),
        ([0.2, 0.1], [1, 2], r"a severity is 0\.1"),
        ([0.1], [-1], r"an amount is -1\.0: expected 0 or more"),
        ([0.1], [math.nan], "an amount is nan"),
        ([0.1, 0.2], [2, 1], r"an amount is 1\.0: expected no less than the one before"),
        ([0.1, 0.2], [math.inf, 1], r"an amount is 1\.0"),
    ],
)
def test_amount_maps_that_are_refused(severities: list[float], amounts: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AmountMap(np.array(severities), np.array(amounts))


@pytest.mark.parametrize("asked", [-0.1, 1.1, math.nan])
def test_severities_that_are_none(asked: float) -> None:
    with pytest.raises(InputError, match=r"a severity is .*: expected 0\.\.1"):
        TENTHS.amount([0.5, asked])


def test_amount_maps_do_not_change() -> None:
    severities = np.array([0.1, 0.2])
    amounts = AmountMap(severities, severities)
    severities[:] = 9
    assert amounts.severities.tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="read-only"):
        amounts.amounts[0] = 9


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((5, 2), np.bool_), r"bypass of chip 1 is bool \(5, 2\): expected bool \(2, 5\)"),
        (np.zeros((2, 5), np.uint8), r"bypass of chip 1 is uint8 \(2, 5\): .*packed uint8 \(2,\)"),
        (np.zeros(3, np.uint8), r"bypass of chip 1 is uint8 \(3,\)"),
        (np.zeros((2, 5)), r"bypass of chip 1 is float64 \(2, 5\)"),
    ],
)
def test_masks_that_are_refused(mask: Any, message: str) -> None:
    for function in (fuse, singles, best_partition):
        with pytest.raises(InputError, match=message):
            function([row(), mask], ONES, TENTHS)


def test_what_else_is_refused() -> None:
    with pytest.raises(InputError, match="size of groups is 0: expected 1 or more chips"):
        fuse_in_order([row()], ONES, TENTHS, 0)
    with pytest.raises(InputError, match=f"there are {MOST_EXACT + 1} chips: expected at most {MOST_EXACT}"):
        best_partition([row()] * (MOST_EXACT + 1), ONES, TENTHS)
    with pytest.raises(InputError, match="the PEs hold 0 weights"):
        fuse([row()], 0 * ONES, TENTHS)
    with mock.patch.object(fusion, "MOST_FUSED", 2):
        assert len(fuse([row(), row(0), row(1)], ONES, TENTHS)) == 3
        with pytest.raises(InputError, match="3 chips need retraining: expected at most 2; fuse parts of the lot"):
            fuse([row(2), row(0), row(1)], ONES, TENTHS)
