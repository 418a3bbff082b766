"""Rows of products that are the same: found by a hash and compared in full."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.kernels import kernels

UInt64Array = npt.NDArray[np.uint64]
Int32Array = npt.NDArray[np.int32]

_kernel = kernels()


@_kernel
def _hash(row: UInt64Array) -> int:
    code = np.uint64(0)
    for bit in range(row.shape[0]):
        for word in range(row.shape[1]):
            code = (code ^ row[bit, word]) * np.uint64(0x9E3779B97F4A7C15)
            code ^= code >> np.uint64(29)
    return int(code >> np.uint64(1))


@_kernel
def _equal(one: UInt64Array, other: UInt64Array) -> bool:
    for bit in range(one.shape[0]):
        for word in range(one.shape[1]):
            if one[bit, word] != other[bit, word]:
                return False
    return True


@_kernel
def number_rows(planes: UInt64Array, numbers: Int32Array) -> None:
    """Number what faults do to products of each weight.

    Args:
        planes: uint64 [faults, product_bits, weights, words].
        numbers: int32 [weights, faults], written: from 0 in the order of the faults, the same for equal planes.
    """
    faults, weights = planes.shape[0], planes.shape[2]
    slots = 2
    while slots < 2 * faults:
        slots *= 2
    owner = np.full((weights, slots), -1, np.int32)
    count = np.zeros(weights, np.int32)
    # Fault by fault, as planes lie in memory.
    for fault in range(faults):
        for weight in range(weights):
            row = planes[fault, :, weight]
            slot = _hash(row) & (slots - 1)
            while owner[weight, slot] >= 0 and not _equal(planes[owner[weight, slot], :, weight], row):
                slot = (slot + 1) & (slots - 1)
            if owner[weight, slot] >= 0:
                numbers[weight, fault] = numbers[weight, owner[weight, slot]]
            else:
                owner[weight, slot] = fault
                numbers[weight, fault] = count[weight]
                count[weight] += 1
