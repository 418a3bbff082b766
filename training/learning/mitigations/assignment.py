"""Which weights to lose to bypassed PEs: places on the array at which the least saliency in total is pruned.

Fault-aware mapping (FAM), SalvageDNN: Hanif & Shafique 2020, Phil. Trans. R. Soc. A 378:20190164.
Outputs can trade columns and reduction indices rows without changing any sum on a chip without
faults; that is undone where operands are fed and outputs taken, see `training.layers.placement`.
With the rows given, the columns are an assignment problem, and the other way round; together they
are solved by turns.
"""

from __future__ import annotations

import numpy as np

from simulator import ArrayConfig
from simulator.dtypes import BoolArray, Float64Array, Int64Array
from simulator.errors import InputError
from training.layers.placement import Placement
from training.learning.mitigations.assignment_kernel import cheapest_places, product

MOST_ROUNDS = 8
"""How often columns and rows are both assigned anew, at most."""

LEAST_GAIN = 1e-12
"""Part of the loss by which it must fall for anything to move: less may be rounding."""


def assign_positions(
    saliency: Float64Array,
    bypass: BoolArray,
    unusable_columns: Int64Array,
    config: ArrayConfig,
    *,
    columns: bool = True,
    rows: bool = True,
) -> Placement:
    """Place the operands of a layer's GEMMs so that little saliency falls on bypassed PEs.

    Outputs take columns of as many n-folds as they need where columns that cannot be used are skipped, and reduction
    indices rows of the k-folds they need in any case; positions that would be left over in the last fold may be used
    and others left over. So there are no more clock cycles than in order.

    If only columns or only rows are assigned, nothing better exists (but for rounding). If both are, they take turns,
    columns first, each the best there is for the other as it is, until the loss no longer falls or `MOST_ROUNDS` are
    over: a better pair may exist. Of equally good placements the one in order is preferred, so that without bypass
    nothing moves.

    Args:
        saliency: float64 [groups, N, K], what is lost if a weight is pruned: finite and not negative. Each group is a
            GEMM of its own and gets places of its own.
        bypass: bool [R, C], the PEs that are bypassed.
        unusable_columns: int64 [columns], the columns that no output may be placed at.
        config: the array.
        columns: whether outputs may be moved; otherwise they are in order, on the columns that can be used.
        rows: whether reduction indices may be moved; otherwise they are in order.

    Returns:
        The placement of all groups.

    Raises:
        InputError: no column can be used.
        ValueError: shapes that do not fit, columns outside the array, or saliency that is negative or not finite.
    """
    _check_saliency(saliency, bypass, config)
    groups, n, k = saliency.shape
    start = in_order_on_usable_columns(groups, k, n, unusable_columns, config)
    usable = _usable_columns(unusable_columns, config)
    new_rows, new_columns = start.rows.copy(), start.columns.copy()
    turns = ["columns"] * columns + ["rows"] * rows
    if columns and rows:
        turns *= MOST_ROUNDS
    for of_group, row, column in zip(saliency, new_rows, new_columns, strict=True):
        for turn, side in enumerate(turns):
            if side == "columns":
                fell = _improve(column, _costs(of_group, row, bypass), usable)
            else:
                fell = _improve(row, _costs(of_group.T, column, bypass.T), np.arange(config.rows))
            # Neither side can gain while the other stays as it is; only the very first turn has no other before it.
            if turn and not fell:
                break
    return Placement(new_rows, new_columns)


def in_order_on_usable_columns(
    groups: int, k: int, n: int, unusable_columns: Int64Array, config: ArrayConfig
) -> Placement:
    """The placement in order, but for columns that cannot be used: outputs skip them.

    Args:
        groups: number of GEMMs.
        k: reduction indices of each.
        n: outputs of each.
        unusable_columns: int64 [columns], the columns that no output may be placed at.
        config: the array.

    Raises:
        InputError: no column can be used.
        ValueError: columns outside the array.
    """
    usable = _usable_columns(unusable_columns, config)
    folds = -(-n // len(usable))
    positions = np.add.outer(np.arange(folds) * config.cols, usable).reshape(-1)[:n]
    return Placement(np.tile(np.arange(k), (groups, 1)), np.tile(positions, (groups, 1)))


def _costs(saliency: Float64Array, others: Int64Array, bypass: BoolArray) -> Float64Array:
    """What each item loses at each place, [items, places].

    Args:
        saliency: [items, others], items being outputs and others reduction indices, or the other way round.
        others: positions of the others.
        bypass: [sides of the others, places].
    """
    folds = int(others.max()) // len(bypass) + 1
    placed = np.zeros((len(saliency), folds * len(bypass)))
    placed[:, others] = saliency
    at_sides = placed.reshape(len(saliency), folds, len(bypass)).sum(axis=1)
    return product(at_sides, np.ascontiguousarray(bypass, np.float64))


def _improve(positions: Int64Array, costs: Float64Array, usable: Int64Array) -> bool:
    """Move items to where they cost least in total, in place, if that is less than now; say whether it is.

    Items that stay on their row or column stay in their fold, too.

    Args:
        positions: int64 [items]; they change.
        costs: [items, R or C], what each loses on each row or column.
        usable: int64 [places], the rows or columns that items may take, in ascending order.
    """
    side = costs.shape[1]
    items = np.arange(len(positions))
    folds = -(-len(positions) // len(usable))
    current = np.searchsorted(usable, positions % side)
    costs = np.ascontiguousarray(costs[:, usable])
    chosen = cheapest_places(costs, folds, current)
    before, after = costs[items, current].sum(), costs[items, chosen].sum()
    if not after < before * (1 - LEAST_GAIN):
        return False
    moving = chosen != current
    free = np.ones((len(usable), folds), np.bool_)
    free[current[~moving], positions[~moving] // side] = False
    free_place, free_fold = np.nonzero(free)
    movers = items[moving][np.argsort(chosen[moving], kind="stable")]
    # Free seats and movers are both sorted by place: the first mover to a place takes its first free seat, and so on.
    to = chosen[movers]
    nth_mover_there = np.arange(len(to)) - np.searchsorted(to, to)
    fold = free_fold[np.searchsorted(free_place, to) + nth_mover_there]
    positions[movers] = fold * side + usable[to]
    return True


def _usable_columns(unusable_columns: Int64Array, config: ArrayConfig) -> Int64Array:
    """The other columns, in ascending order."""
    outside = unusable_columns[(unusable_columns < 0) | (unusable_columns >= config.cols)]
    if len(outside):
        raise ValueError(f"unusable columns hold {outside[0]}: expected 0..{config.cols - 1}")
    usable = np.setdiff1d(np.arange(config.cols), unusable_columns)
    if not len(usable):
        raise InputError(
            f"none of the {config.cols} columns of the array can be used, all their accumulators are broken: "
            "the chip cannot run any output; leave it out"
        )
    return usable


def _check_saliency(saliency: Float64Array, bypass: BoolArray, config: ArrayConfig) -> None:
    if saliency.ndim != 3 or 0 in saliency.shape:
        raise ValueError(f"saliency has shape {saliency.shape}: expected [groups, N, K], none of them 0")
    if bypass.shape != (config.rows, config.cols):
        raise ValueError(f"bypass has shape {bypass.shape}: expected {(config.rows, config.cols)}, that of the array")
    wrong = saliency[~(np.isfinite(saliency) & (saliency >= 0))]
    if len(wrong):
        raise ValueError(f"saliency holds {wrong[0]}: expected finite numbers that are not negative")
