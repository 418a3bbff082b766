"""All faults of a multiplier's gates next to the simpler model, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.multipliers.fault_classes import FaultClass


@dataclass(frozen=True)
class ProductBitComparison:
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


def compare(classes: Sequence[FaultClass]) -> ProductBitComparison:
    """Sum up the classes of `simulator.multipliers.fault_classes.fault_classes`."""
    seen = [one for one in classes if one.detectable]
    equal = [one for one in seen if one.nearest.differs == 0]
    return ProductBitComparison(
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
