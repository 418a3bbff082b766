"""The inner loop of `simulator.multipliers.fault_classes`: 64 input pairs at once, one in each bit of a word."""

from __future__ import annotations

import numpy as np

from simulator.dtypes import Int64Array, UInt64Array
from simulator.kernels import kernels

Words = UInt64Array

_kernel = kernels()

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_NONE = np.uint64(0)


@_kernel
def _ones(word: np.uint64) -> int:
    """Number of ones: in pairs of bits, in fours, in bytes, and then of all bytes."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    count: int = np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))
    return count


@_kernel
def same_products(inverted: Words, good: Words, last: np.uint64, same: Int64Array) -> None:
    """Count the pairs for which a fault and each stuck bit of the product give the same product.

    Args:
        inverted: uint64 [product bits, words], the pairs for which the fault inverts each bit of the product.
        good: uint64 [product bits, words], the product's bits without faults.
        last: which bits of the last word are pairs.
        same: int64 [product bits, 2], written: for each bit stuck at 0 and at 1.
    """
    bits, words = inverted.shape
    same[:] = 0
    for i in range(words):
        some = _NONE
        several = _NONE
        for place in range(bits):
            several |= some & inverted[place, i]
            some |= inverted[place, i]
        pairs = last if i == words - 1 else _ALL
        for place in range(bits):
            # A bit stuck at 0 is inverted where it is 1, and nothing else is.
            alone = inverted[place, i] & ~several
            one = good[place, i]
            same[place, 0] += _ones(((alone & one) | (~some & ~one)) & pairs)
            same[place, 1] += _ones(((alone & ~one) | (~some & one)) & pairs)
