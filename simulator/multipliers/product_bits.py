"""How a fault inside a multiplier compares with the simpler model: one bit of the product stuck at a value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.faults import Kind

Words = npt.NDArray[np.uint64]


class ProductBitFault(NamedTuple):
    """The fault of a product's bit that is nearest to a fault of a gate.

    Attributes:
        bit: which bit of the product.
        kind: the value that it is stuck at.
        differs: fraction of all input pairs for which the two faults give different products; 0 if they are equal.
    """

    bit: int
    kind: Kind
    differs: float


def nearest_product_bit_fault(inverted: Words, good: Words, pairs: int) -> ProductBitFault:
    """Find the stuck bit of the product that gives the right faulty product most often.

    Args:
        inverted: uint64 [product bits, words], the pairs for which a fault inverts each bit of the product.
        good: uint64 [product bits, words], the product's bits without faults.
        pairs: number of pairs; words may have more bits.

    Returns:
        The nearest fault, of the lowest bit and first kind if several are as near.
    """
    from simulator.multipliers.product_bits_kernel import same_products

    same = np.empty((len(inverted), 2), np.int64)
    last = np.uint64((1 << (pairs % 64 or 64)) - 1)
    same_products(inverted, good, last, same)
    bit, stuck = (int(index) for index in np.unravel_index(np.argmax(same), same.shape))
    kind = Kind.STUCK_AT_1 if stuck else Kind.STUCK_AT_0
    return ProductBitFault(bit, kind, 1 - int(same[bit, stuck]) / pairs)
