"""Permanent faults that run through many PEs of a row or column: where they first make a difference.

A stuck operand acts in its PE and all further ones. Where a PE multiplies the same with and without it, whatever the
other operand is, the fault is the same as one at the next PE: a *chain* of equivalent faults ends at each PE where it
makes a difference. So it is with stuck bits of adders where the next PE adds nothing to that bit or those below it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.collapsing.chains_kernel import find_loud_sums, find_trailing_zeros
from efat.propagation.collapsing.kernel import Operands
from efat.propagation.collapsing.products import Int16Array
from simulator.faults import BoolArray

Int32Array = npt.NDArray[np.int32]


class OperandChains(NamedTuple):
    """Stuck bits of operands; entry 2 * b is bit b stuck at 0, the next one bit b stuck at 1.

    Attributes:
        quiet: bool [2 * bits, rows, cols], whether no product changes with the activations that occur.
        used: bool [rows, cols], whether the operand is used in any PE that it gets to.
        first: int32 [2 * bits, rows, cols], where the chain begins: a row for weights, a column for activations.
        last: int32 [2 * bits, rows, cols], where it ends, in the PE where the fault makes a difference; past the array
            if there is none.
        alone: bool [2 * bits, rows, cols], whether that is the only PE where it does.
    """

    quiet: BoolArray
    used: BoolArray
    first: Int32Array
    last: Int32Array
    alone: BoolArray


def operand_chains(quiet: BoolArray, always_quiet: BoolArray, used: BoolArray, *, along_rows: bool) -> OperandChains:
    """Find the chains of stuck operands.

    Args:
        quiet: bool [2 * bits, rows, cols], whether the stuck operand changes no product of a PE with the activations
            that occur.
        always_quiet: the same for any activations.
        used: bool [rows, cols], PEs that have a weight in any layer.
        along_rows: whether the operand passes on from row to row rather than from column to column.
    """
    if not along_rows:
        turned = (np.swapaxes(marks, -1, -2) for marks in (quiet, always_quiet, used))
        found = operand_chains(*turned, along_rows=True)
        return OperandChains._make(np.swapaxes(values, -1, -2) for values in found)
    loud = ~always_quiet
    count = loud.shape[1]
    place = np.arange(count, dtype=np.int32)[:, None]
    last_before = np.full(loud.shape, -1, np.int32)
    last_before[:, 1:] = np.maximum.accumulate(np.where(loud, place, np.int32(-1)), axis=1)[:, :-1]
    following = np.where(loud, place, np.int32(count))[:, ::-1]
    return OperandChains(
        quiet=np.logical_and.accumulate(quiet[:, ::-1], axis=1)[:, ::-1],
        used=np.logical_or.accumulate(used[::-1], axis=0)[::-1],
        first=last_before + 1,
        last=np.minimum.accumulate(following, axis=1)[:, ::-1],
        alone=np.cumsum(loud[:, ::-1], axis=1, dtype=np.int32)[:, ::-1] == 1,
    )


class SumChains(NamedTuple):
    """Stuck bits of adders and accumulators; entry 2 * b is bit b stuck at 0, the next one bit b stuck at 1.

    Attributes:
        quiet: bool [2 * acc_bits, rows, cols], whether no sum changes with the activations that occur.
        first: int32 [acc_bits, rows, cols], the row where the chain of the bit begins.
        accumulator_quiet: bool [2 * acc_bits, cols], whether nothing that the accumulator stores changes.
        one_fold: bool [cols], whether the accumulator stores just what leaves the last row, so that its faults are
            those of that row's adder.
    """

    quiet: BoolArray
    first: Int32Array
    accumulator_quiet: BoolArray
    one_fold: BoolArray


def sum_chains(operands: Operands, products: Int16Array, acc_bits: int, first_quiet: BoolArray) -> SumChains:
    """Find the chains of stuck bits of sums.

    Args:
        operands: of all layers.
        products: int16 [2**weight_bits, 2**act_bits].
        acc_bits: of a sum.
        first_quiet: bool [2 * bits, cols], for the bits of a product of the first row that are bits of its sum:
            whether they are quiet.
    """
    rows, cols = operands.rows, operands.cols
    one_fold = np.ones(cols, np.bool_)
    for k, n in zip(operands.k.tolist(), operands.n.tolist(), strict=True):
        one_fold[:n] &= k <= rows
    loud, accumulator_loud = np.empty((rows, cols), np.uint64), np.empty(cols, np.uint64)
    find_loud_sums(operands, products, acc_bits, loud, accumulator_loud)
    flags = np.arange(2 * acc_bits, dtype=np.uint64)
    quiet = (loud >> flags[:, None, None]) & np.uint64(1) == 0
    accumulator_quiet = (accumulator_loud >> flags[:, None]) & np.uint64(1) == 0
    zeros = np.empty((rows, cols), np.int64)
    find_trailing_zeros(operands, products, zeros)
    # A number whose bits up to this one are 0 may be added before or after the bit is stuck.
    linked = zeros > np.arange(acc_bits)[:, None, None]
    linked[:, 0] = False
    place = np.arange(rows, dtype=np.int32)[:, None]
    first = np.maximum.accumulate(np.where(linked, np.int32(0), place), axis=1)
    # What holds for one fault of a chain holds for all.
    quiet[: len(first_quiet), 0] |= first_quiet
    quiet[:, -1] |= accumulator_quiet & one_fold
    both = np.repeat(linked, 2, axis=0)
    for row in range(1, rows):
        quiet[:, row] |= quiet[:, row - 1] & both[:, row]
    for row in range(rows - 1, 0, -1):
        quiet[:, row - 1] |= quiet[:, row] & both[:, row]
    accumulator_quiet |= quiet[:, -1] & one_fold
    return SumChains(quiet, first, accumulator_quiet, one_fold)
