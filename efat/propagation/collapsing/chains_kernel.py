"""What the bits of partial sums can be, from the products that can be added up to them. Indices are not checked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.collapsing import kernel as collapse_kernel
from efat.propagation.collapsing.kernel import Operands
from simulator.kernels import kernels

Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

ALL_ZERO = 64
"""Zeros at the end of a number that is 0."""

_kernel = kernels(collapse_kernel)


class Range(NamedTuple):
    """What a sum can be: a number of `low`..`high` whose low bits are 0 wherever those of `ones` are."""

    low: np.int64
    high: np.int64
    ones: np.int64


@_kernel
def _products(products: Int16Array, seen: UInt64Array) -> Range:
    """Products of one weight and all activations that occur."""
    low, high, ones, found = np.int64(0), np.int64(0), np.int64(0), False
    for pattern in range(len(products)):
        if (seen[pattern >> 6] >> np.uint64(pattern & 63)) & np.uint64(1):
            product = np.int64(products[pattern])
            low = min(low, product) if found else product
            high = max(high, product) if found else product
            ones |= product
            found = True
    return Range(low, high, ones)


@_kernel
def _plus(one: Range, other: Range) -> Range:
    return Range(one.low + other.low, one.high + other.high, one.ones | other.ones)


@_kernel
def _changed(value: Range, bits: int) -> np.uint64:
    """Stuck bits that may change a sum; see `find_loud_sums`."""
    changed: np.uint64 = np.uint64(0)
    for bit in range(bits):
        constant = (value.low >> bit) == (value.high >> bit)
        one = bool((value.low >> bit) & 1)
        always_0 = (constant and not one) or (value.ones & ((2 << bit) - 1)) == 0
        always_1 = constant and one
        if not always_0:
            changed |= np.uint64(1) << np.uint64(2 * bit)
        if not always_1:
            changed |= np.uint64(1) << np.uint64(2 * bit + 1)
    return changed


@_kernel
def find_loud_sums(
    operands: Operands, products: Int16Array, acc_bits: int, psum: UInt64Array, accumulator: UInt64Array
) -> None:
    """Find the stuck bits of adders and accumulators that may change a sum; all others cannot.

    Sums are bounded, and how many of their lowest bits are 0 is known. They are taken as numbers without limits: the
    lowest `acc_bits` bits are the same.

    Args:
        operands: of all layers.
        products: int16 [2**weight_bits, 2**act_bits].
        acc_bits: of a sum.
        psum: uint64 [rows, cols], written: bit 2 * b is for bit b stuck at 0, the one after it for bit b stuck at 1.
        accumulator: uint64 [cols], written in the same way.
    """
    psum[:] = 0
    accumulator[:] = 0
    nothing = np.int64(products[0, 0])
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        for group in range(operands.groups[layer]):
            for n in range(n_end):
                col = n % operands.cols
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                total = Range(np.int64(0), np.int64(0), np.int64(0))
                for k_start in range(0, k_end, operands.rows):
                    value = Range(np.int64(0), np.int64(0), np.int64(0))
                    for row in range(operands.rows):
                        k = k_start + row
                        added = Range(nothing, nothing, nothing)
                        if k < k_end:
                            seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
                            added = _products(products[operands.weights[first + k]], seen)
                        value = _plus(value, added)
                        psum[row, col] |= _changed(value, acc_bits)
                    total = _plus(total, value)
                    accumulator[col] |= _changed(total, acc_bits)


@_kernel
def find_trailing_zeros(operands: Operands, products: Int16Array, zeros: Int64Array) -> None:
    """Count the low bits that are 0 in all products of each PE, whatever the activations are.

    Args:
        operands: of all layers.
        products: int16 [2**weight_bits, 2**act_bits].
        zeros: int64 [rows, cols], written; `ALL_ZERO` if all are 0, or nothing that a PE computes is kept.
    """
    of_weight = np.empty(len(products), np.int64)
    for weight in range(len(products)):
        ones = np.int64(0)
        for pattern in range(products.shape[1]):
            ones |= np.int64(products[weight, pattern])
        of_weight[weight] = _trailing_zeros(ones)
    unused = _trailing_zeros(np.int64(products[0, 0]))
    zeros[:] = ALL_ZERO
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        for row in range(operands.rows):
            if k_end % operands.rows != 0 and row >= k_end % operands.rows:
                for col in range(min(n_end, operands.cols)):
                    zeros[row, col] = min(zeros[row, col], unused)
        for group in range(operands.groups[layer]):
            for n in range(n_end):
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                for k in range(k_end):
                    row, col = k % operands.rows, n % operands.cols
                    zeros[row, col] = min(zeros[row, col], of_weight[operands.weights[first + k]])


@_kernel
def _trailing_zeros(number: np.int64) -> int:
    if number == 0:
        return ALL_ZERO
    zeros = 0
    while not (number >> zeros) & 1:
        zeros += 1
    return zeros
