"""Placements: what they refuse, and that the array computes the same sums wherever the operands sit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, InputError, simulate_gemm
from tests.support.strategies import configs, operands
from training.layers.placement import LARGEST_POSITION, Placement


def random_placement(random: np.random.Generator, groups: int, k: int, n: int, largest: int) -> Placement:
    """Positions anywhere, up to `largest` of them left free."""
    rows = [random.permutation(k + random.integers(largest + 1))[:k] for _ in range(groups)]
    columns = [random.permutation(n + random.integers(largest + 1))[:n] for _ in range(groups)]
    return Placement(np.stack(rows), np.stack(columns))


@pytest.mark.parametrize(
    ("rows", "columns", "error", "message"),
    [
        ([[0.0, 1.0]], [[0]], InputError, "rows of a placement hold float64: expected integers"),
        ([[0]], [[False]], InputError, "columns of a placement hold bool: expected integers"),
        ([0, 1], [[0]], ValueError, r"rows of a placement have shape \(2,\): expected \[groups, positions\]"),
        ([[0]], np.empty((1, 0), int), ValueError, r"columns of a placement have shape \(1, 0\)"),
        ([[0, -1]], [[0]], ValueError, "rows of a placement hold -1: expected 0..16777215"),
        ([[0]], [[3, LARGEST_POSITION]], ValueError, "columns of a placement hold 16777216: expected 0..16777215"),
        ([[0]], np.array([[1 << 63]], np.uint64), ValueError, "columns of a placement hold 9223372036854775808"),
        ([[0, 1], [4, 4]], [[0], [0]], ValueError, "rows of a placement hold a position twice"),
        ([[0, 1]], [[5, 2, 5]], ValueError, "columns of a placement hold a position twice"),
        ([[0], [0]], [[0]], ValueError, "placement has 2 groups of rows and 1 of columns"),
    ],
)
def test_what_is_no_placement(rows: object, columns: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Placement(np.array(rows), np.array(columns))


def test_a_placement_does_not_change() -> None:
    rows, columns = np.array([[2, 0]], np.int32), np.array([[LARGEST_POSITION - 1]], np.uint64)
    placement = Placement(rows, columns)
    rows[0, 0] = 7
    assert placement.rows.tolist() == [[2, 0]]
    assert placement.columns.tolist() == [[LARGEST_POSITION - 1]]
    assert placement.rows.dtype == placement.columns.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        placement.rows[0, 0] = 1


def test_in_order() -> None:
    placement = Placement.in_order(groups=2, k=3, n=4)
    assert placement.rows.tolist() == [[0, 1, 2]] * 2
    assert placement.columns.tolist() == [[0, 1, 2, 3]] * 2
    assert placement.groups == 2
    assert placement.is_in_order
    assert [placement.extent(group) for group in range(2)] == [(3, 4)] * 2
    assert not Placement(placement.rows, np.array([[0, 1, 2, 3], [0, 1, 3, 2]])).is_in_order
    assert not Placement(np.array([[0, 1, 3]] * 2), placement.columns).is_in_order


def test_each_group_has_its_own_positions() -> None:
    placement = Placement(np.array([[0, 4], [1, 0]]), np.array([[2, 1, 0], [0, 1, 5]]))
    assert [placement.extent(group) for group in range(2)] == [(5, 3), (2, 6)]
    assert placement.place_x(torch.tensor([[7, 8]]), 0).tolist() == [[7, 0, 0, 0, 8]]
    assert placement.place_x(torch.tensor([[7, 8]]), 1).tolist() == [[8, 7]]
    w = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8)
    assert placement.place_w(w, 0).tolist() == [[3, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [6, 5, 4]]
    assert placement.place_w(w, 1).tolist() == [[4, 5, 0, 0, 0, 6], [1, 2, 0, 0, 0, 3]]
    assert placement.place_w(w, 1).dtype == placement.place_x(w[:, :2], 1).dtype == torch.int8
    assert placement.take_out(torch.tensor([[10, 11, 12]]), 0).tolist() == [[12, 11, 10]]
    assert placement.take_out(torch.arange(6)[None], 1).tolist() == [[0, 1, 5]]


@given(configs(tables=False), st.data())
@settings(max_examples=60)
def test_the_array_computes_the_same_wherever_operands_sit(config: ArrayConfig, data: st.DataObject) -> None:
    """Accumulators may be so narrow that sums wrap. Tables are left out: to them zero times zero may be anything."""
    m, k, n = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    x, w = data.draw(operands((m, k), config.act_range)), data.draw(operands((k, n), config.weight_range))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    placement = random_placement(random, 1, k, n, 7)
    placed_x, placed_w = placement.place_x(torch.from_numpy(x)), placement.place_w(torch.from_numpy(w))
    assert (placed_x.shape[1], placed_w.shape[1]) == placement.extent()
    assert torch.equal(placement.take_out(placed_x @ placed_w), torch.from_numpy(x @ w))

    expected = simulate_gemm(x, w, config).outputs
    outputs = simulate_gemm(placed_x, placed_w, config).outputs
    assert placement.take_out(torch.from_numpy(outputs)).tolist() == expected.tolist()

    # Weights at bypassed PEs count as zeros, and those are the ones that at_weights names.
    bypass = random.random((config.rows, config.cols)) < 0.3
    kept = ~placement.at_weights(bypass, config).T
    expected = simulate_gemm(x, w * kept, config).outputs
    outputs = simulate_gemm(placed_x, placed_w, config, bypass=bypass).outputs
    assert placement.take_out(torch.from_numpy(outputs)).tolist() == expected.tolist()


@pytest.mark.parametrize("groups", [1, 3])
def test_what_a_mask_of_pes_is_for_weights_and_columns(groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(20):
        config = ArrayConfig(int(random.integers(1, 6)), int(random.integers(1, 6)))
        k, n = (int(size) for size in random.integers(1, 12, 2))
        placement = random_placement(random, groups, k, n, 9)
        per_pe = random.random((config.rows, config.cols)) < 0.5
        expected = [
            [
                per_pe[placement.rows[group, index] % config.rows, placement.columns[group, output] % config.cols]
                for index in range(k)
            ]
            for group in range(groups)
            for output in range(n)
        ]
        assert placement.at_weights(per_pe, config).tolist() == expected
        used = {position % config.cols for columns in placement.columns.tolist() for position in columns}
        assert placement.used_columns(config).tolist() == sorted(used)
