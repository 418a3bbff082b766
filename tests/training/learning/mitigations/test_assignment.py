"""Assignments: nothing better exists, nothing moves without need, and no output changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from simulator import ArrayConfig, simulate_gemm
from simulator.errors import InputError
from training.layers.placement import Placement
from training.learning.mitigations import assignment
from training.learning.mitigations.assignment import assign_positions, in_order_on_usable_columns
from training.learning.mitigations.assignment_kernel import cheapest_places

NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Case:
    """A layer and a chip."""

    saliency: npt.NDArray[np.float64]
    bypass: npt.NDArray[np.bool_]
    unusable: npt.NDArray[np.int64]
    config: ArrayConfig

    def assigned(self, *, columns: bool, rows: bool) -> Placement:
        """The placement to test."""
        return assign_positions(self.saliency, self.bypass, self.unusable, self.config, columns=columns, rows=rows)

    def lost(self, placement: Placement) -> float:
        """What it loses."""
        fallen = placement.at_weights(self.bypass, self.config).reshape(self.saliency.shape)
        return float(self.saliency[fallen].sum())

    def slowly_lost(self, row: Iterable[int], column: Iterable[int], group: int = 0) -> float:
        """What positions of one group lose, weight by weight."""
        weights = itertools.product(enumerate(column), enumerate(row))
        return sum(
            float(self.saliency[group, n, k])
            for (n, at_column), (k, at_row) in weights
            if self.bypass[at_row % self.config.rows, at_column % self.config.cols]
        )

    def row_positions(self) -> list[int]:
        """All that reduction indices may take."""
        return list(range(-(-self.saliency.shape[2] // self.config.rows) * self.config.rows))

    def column_positions(self) -> list[int]:
        """All that outputs may take."""
        usable = [column for column in range(self.config.cols) if column not in self.unusable]
        folds = -(-self.saliency.shape[1] // len(usable))
        return [fold * self.config.cols + column for fold in range(folds) for column in usable]


@st.composite
def cases(draw: st.DrawFn, most_positions: int, largest_side: int = 5, most_groups: int = 2) -> Case:
    """Small integers as saliency, so that sums are exact and often equal."""
    config = ArrayConfig(draw(st.integers(1, largest_side)), draw(st.integers(1, largest_side)))
    unusable = np.array(sorted(draw(st.sets(st.integers(0, config.cols - 1), max_size=config.cols - 1))), np.int64)
    usable = config.cols - len(unusable)
    k = draw(st.integers(1, most_positions // config.rows * config.rows))
    n = draw(st.integers(1, most_positions // usable * usable))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    saliency = random.integers(0, draw(st.sampled_from([1, 3, 100])) + 1, (draw(st.integers(1, most_groups)), n, k))
    bypass = random.random((config.rows, config.cols)) < draw(st.sampled_from([0.1, 0.3, 0.7]))
    return Case(saliency.astype(np.float64), bypass, unusable, config)


def random_case(seed: int, side: int, k: int, n: int, rate: float) -> Case:
    """Saliency as of real layers, in which some outputs and reduction indices matter more than others."""
    random = np.random.default_rng(seed)
    saliency = np.abs(random.normal(size=(1, n, k))) * random.lognormal(size=(n, 1)) * random.lognormal(size=k)
    return Case(saliency, random.random((side, side)) < rate, NONE, ArrayConfig(side, side))


@given(cases(most_positions=6, most_groups=1))
@settings(max_examples=25)
def test_no_order_of_columns_or_of_rows_loses_less(case: Case) -> None:
    start = case.assigned(columns=False, rows=False)
    n, k = case.saliency.shape[1:]
    by_columns = case.assigned(columns=True, rows=False)
    assert by_columns.rows.tolist() == start.rows.tolist()
    every_column = itertools.permutations(case.column_positions(), n)
    row = start.rows[0].tolist()
    assert case.lost(by_columns) == min(case.slowly_lost(row, column) for column in every_column)

    by_rows = case.assigned(columns=False, rows=True)
    assert by_rows.columns.tolist() == start.columns.tolist()
    every_row = itertools.permutations(case.row_positions(), k)
    column = start.columns[0].tolist()
    assert case.lost(by_rows) == min(case.slowly_lost(row, column) for row in every_row)


@given(cases(most_positions=5, most_groups=1))
@settings(max_examples=60)
def test_neither_side_can_be_improved_alone(case: Case) -> None:
    n, k = case.saliency.shape[1:]
    with mock.patch.object(assignment, "MOST_ROUNDS", 1000):
        placement = case.assigned(columns=True, rows=True)
    row, column = placement.rows[0].tolist(), placement.columns[0].tolist()
    lost = case.lost(placement)
    assert lost == case.slowly_lost(row, column)
    assert lost == min(case.slowly_lost(row, other) for other in itertools.permutations(case.column_positions(), n))
    assert lost == min(case.slowly_lost(other, column) for other in itertools.permutations(case.row_positions(), k))


@given(cases(most_positions=20))
def test_more_freedom_never_loses_more_and_positions_are_allowed(case: Case) -> None:
    placements = {
        (columns, rows): case.assigned(columns=columns, rows=rows)
        for columns in (False, True)
        for rows in (False, True)
    }
    groups, n, k = case.saliency.shape
    lost = {choice: case.lost(placement) for choice, placement in placements.items()}
    assert lost[True, True] <= lost[True, False] <= lost[False, False]
    assert lost[False, True] <= lost[False, False]
    for placement in placements.values():
        assert placement.rows.shape == (groups, k)
        assert placement.columns.shape == (groups, n)
        assert not set(placement.used_columns(case.config)) & set(case.unusable)
        assert set(placement.rows.flat) <= set(case.row_positions())
        assert set(placement.columns.flat) <= set(case.column_positions())
        expected = sum(
            case.slowly_lost(placement.rows[group], placement.columns[group], group) for group in range(groups)
        )
        assert case.lost(placement) == expected
    for (columns, rows), placement in placements.items():
        again = case.assigned(columns=columns, rows=rows)
        assert np.array_equal(placement.rows, again.rows)
        assert np.array_equal(placement.columns, again.columns)


@given(cases(most_positions=12, most_groups=3))
@settings(max_examples=30)
def test_each_group_is_assigned_for_itself(case: Case) -> None:
    placement = case.assigned(columns=True, rows=True)
    for group, saliency in enumerate(case.saliency):
        alone = Case(saliency[None], case.bypass, case.unusable, case.config).assigned(columns=True, rows=True)
        assert alone.rows[0].tolist() == placement.rows[group].tolist()
        assert alone.columns[0].tolist() == placement.columns[group].tolist()


@pytest.mark.parametrize("bypassed", [False, True])
def test_nothing_moves_for_nothing(bypassed: bool, seed: int) -> None:
    """Where no PE is bypassed, or every one, all placements lose the same."""
    random = np.random.default_rng(seed)
    for _ in range(10):
        config = ArrayConfig(int(random.integers(1, 9)), int(random.integers(1, 9)))
        saliency = random.random(tuple(random.integers(1, 20, 3)))
        placement = assign_positions(saliency, np.full((config.rows, config.cols), bypassed), NONE, config)
        assert placement.is_in_order


@pytest.mark.parametrize("columns", [False, True])
def test_for_one_pe_only_those_that_trade_places_move(columns: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(10):
        config = ArrayConfig(int(random.integers(2, 9)), int(random.integers(2, 9)))
        n, k = (int(size) for size in random.integers(1, 40, 2))
        bypass = np.zeros((config.rows, config.cols), np.bool_)
        bypass[random.integers(config.rows), random.integers(config.cols)] = True
        case = Case(random.integers(1, 50, (1, n, k)).astype(np.float64), bypass, NONE, config)
        placement = case.assigned(columns=columns, rows=not columns)
        positions = (placement.columns if columns else placement.rows)[0]
        folds = -(-n // config.cols) if columns else -(-k // config.rows)
        moved = np.flatnonzero(positions != np.arange(len(positions)))
        assert len(moved) <= 2 * folds


@given(cases(most_positions=12, most_groups=1), st.data())
@settings(max_examples=30)
def test_no_output_changes_on_a_chip_without_faults(case: Case, data: st.DataObject) -> None:
    placement = case.assigned(columns=True, rows=True)
    n, k = case.saliency.shape[1:]
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = torch.from_numpy(random.integers(-128, 128, (5, k)))
    w = torch.from_numpy(random.integers(-128, 128, (k, n)))
    placed_x, placed_w = placement.place_x(x), placement.place_w(w)
    assert torch.equal(placement.take_out(placed_x @ placed_w), x @ w)
    outputs = simulate_gemm(placed_x, placed_w, case.config).outputs
    assert placement.take_out(torch.from_numpy(outputs)).tolist() == (x @ w).tolist()


def test_columns_that_cannot_be_used_are_skipped_in_order() -> None:
    config = ArrayConfig(2, 5)
    placement = in_order_on_usable_columns(2, 3, 7, np.array([3, 0]), config)
    assert placement.rows.tolist() == [[0, 1, 2]] * 2
    assert placement.columns.tolist() == [[1, 2, 4, 6, 7, 9, 11]] * 2
    assert in_order_on_usable_columns(1, 3, 7, NONE, config).is_in_order
    without_bypass = assign_positions(np.ones((2, 7, 3)), np.zeros((2, 5), np.bool_), np.array([3, 0]), config)
    assert without_bypass.columns.tolist() == placement.columns.tolist()


def test_a_chip_without_columns() -> None:
    config = ArrayConfig(2, 3)
    message = "none of the 3 columns of the array can be used.*cannot run any output"
    with pytest.raises(InputError, match=message):
        assign_positions(np.ones((1, 1, 1)), np.zeros((2, 3), np.bool_), np.arange(3), config)
    with pytest.raises(InputError, match=message):
        in_order_on_usable_columns(1, 1, 1, np.arange(3), config)


@pytest.mark.parametrize(
    ("saliency", "bypass_shape", "unusable", "message"),
    [
        (np.ones((2, 2)), (2, 3), [], r"saliency has shape \(2, 2\): expected \[groups, N, K\]"),
        (np.ones((1, 0, 2)), (2, 3), [], r"saliency has shape \(1, 0, 2\)"),
        (np.array([[[0.0, -0.5]]]), (2, 3), [], "saliency holds -0.5"),
        (np.array([[[np.nan, 1.0]]]), (2, 3), [], "saliency holds nan: expected finite numbers"),
        (np.array([[[1.0, np.inf]]]), (2, 3), [], "saliency holds inf"),
        (np.ones((1, 1, 1)), (3, 2), [], r"bypass has shape \(3, 2\): expected \(2, 3\)"),
        (np.ones((1, 1, 1)), (2, 3), [1, 3], r"unusable columns hold 3: expected 0\.\.2"),
        (np.ones((1, 1, 1)), (2, 3), [-1], "unusable columns hold -1"),
    ],
)
def test_what_is_refused(
    saliency: npt.NDArray[np.float64], bypass_shape: tuple[int, int], unusable: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assign_positions(saliency, np.zeros(bypass_shape, np.bool_), np.array(unusable, np.int64), ArrayConfig(2, 3))


@given(st.data())
def test_places_are_as_cheap_as_seats_in_a_plain_assignment_problem(data: st.DataObject) -> None:
    places, seats = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 7))
    items = data.draw(st.integers(1, places * seats))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    largest = data.draw(st.sampled_from([1, 5, 1000]))
    cost = random.integers(-largest, largest + 1, (items, places)).astype(np.float64)
    current = random.permutation(np.repeat(np.arange(places), seats))[:items]
    chosen = cheapest_places(cost, seats, current)
    assert np.bincount(chosen, minlength=places).max() <= seats
    by_seats = np.repeat(cost, seats, axis=1)
    assert cost[np.arange(items), chosen].sum() == by_seats[linear_sum_assignment(by_seats)].sum()


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize(("columns", "rows"), [(True, False), (False, True), (True, True)])
def test_each_side_is_as_good_as_a_plain_assignment_of_it(side: int, columns: bool, rows: bool, seed: int) -> None:
    case = random_case(seed, side, k=150, n=70, rate=0.05)
    with mock.patch.object(assignment, "MOST_ROUNDS", 1000):
        placement = case.assigned(columns=columns, rows=rows)
    row, column = placement.rows[0] % side, placement.columns[0] % side
    saliency = case.saliency[0]
    costs = []
    if columns:
        costs.append(np.stack([saliency[:, case.bypass[row, place]].sum(axis=1) for place in range(side)], axis=1))
    if rows:
        costs.append(np.stack([saliency[case.bypass[place, column]].sum(axis=0) for place in range(side)], axis=1))
    for cost in costs:
        by_seats = np.tile(cost, -(-len(cost) // side))
        assert case.lost(placement) == pytest.approx(by_seats[linear_sum_assignment(by_seats)].sum(), rel=1e-9)


def test_no_trade_is_left_in_large_layers(seed: int) -> None:
    """All seats are taken, so an assignment is optimal exactly if no circle of moves between rows gains."""
    case = random_case(seed, 256, 4608, 512, 0.05)
    placement = case.assigned(columns=False, rows=True)
    cost = case.saliency[0].reshape(2, 256, 4608).sum(axis=0).T @ case.bypass.T
    row = placement.rows[0] % 256
    more = cost - cost[np.arange(4608), row][:, None]
    moves = np.stack([more[row == place].min(axis=0) for place in range(256)])
    for by_way_of in range(256):
        np.minimum(moves, np.add.outer(moves[:, by_way_of], moves[by_way_of]), out=moves)
    assert moves.diagonal().min() > -1e-9 * cost.max()
