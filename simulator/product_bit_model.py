"""How a fault inside a multiplier compares with the simpler model: one bit of the product stuck at a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.faults import Kind

if TYPE_CHECKING:
    from simulator.multiplier_faults import FaultClass

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
    from simulator.product_bit_kernel import same_products

    same = np.empty((len(inverted), 2), np.int64)
    last = np.uint64((1 << (pairs % 64 or 64)) - 1)
    same_products(inverted, good, last, same)
    bit, stuck = (int(index) for index in np.unravel_index(np.argmax(same), same.shape))
    kind = Kind.STUCK_AT_1 if stuck else Kind.STUCK_AT_0
    return ProductBitFault(bit, kind, 1 - int(same[bit, stuck]) / pairs)


@dataclass(frozen=True)
class Comparison:
    """What all faults of a multiplier's gates do, next to the model of a stuck product bit. Classes count alike.

    Attributes:
        faults: stuck-at faults of the gates' outputs and pins.
        classes: classes of equivalent ones.
        undetectable: faults that change no product.
        equal_classes: classes that are the same as a stuck bit of the product.
        equal_faults: faults in these classes.
        disturbed: fractions of input pairs that a detectable class disturbs: 10 %, 50 % and 90 % quantile.
        mean_error: mean absolute errors of detectable classes: 10 %, 50 % and 90 % quantile.
        differs: fractions of input pairs for which a detectable class and the nearest stuck product bit give different
            products: 10 %, 50 % and 90 % quantile.
        single_bit: detectable classes that invert never more than one bit of a product.
        bits: product bits that a detectable class inverts for some pair: 10 %, 50 % and 90 % quantile.
    """

    faults: int
    classes: int
    undetectable: int
    equal_classes: int
    equal_faults: int
    disturbed: tuple[float, float, float]
    mean_error: tuple[float, float, float]
    differs: tuple[float, float, float]
    single_bit: int
    bits: tuple[float, float, float]


def compare(classes: Sequence[FaultClass]) -> Comparison:
    """Sum up the classes of `simulator.multiplier_faults.fault_classes`."""
    seen = [one for one in classes if one.detectable]
    equal = [one for one in seen if one.nearest.differs == 0]
    return Comparison(
        faults=sum(len(one.faults) for one in classes),
        classes=len(classes),
        undetectable=sum(len(one.faults) for one in classes if not one.detectable),
        equal_classes=len(equal),
        equal_faults=sum(len(one.faults) for one in equal),
        disturbed=_quantiles([one.disturbed for one in seen]),
        mean_error=_quantiles([one.errors.mean_absolute for one in seen]),
        differs=_quantiles([one.nearest.differs for one in seen]),
        single_bit=sum(one.single_bit for one in seen),
        bits=_quantiles([one.bits_touched for one in seen]),
    )


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], method="lower").tolist()
    return low, middle, high
