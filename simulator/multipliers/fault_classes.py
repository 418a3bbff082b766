"""Every stuck-at fault of a multiplier's gates: what it does to the products, and which faults are equivalent.

All of them are compared with the simpler model: one bit of the product stuck at a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.dtypes import Float64Array, Int32Array, UInt64Array
from simulator.gates.netlist import Netlist, circuit_of, netlist_products
from simulator.multipliers.multiplier import TableErrors, table_errors

_BLOCK_FAULTS = 128


class ProductBitFault(NamedTuple):
    """A bit of the product that is stuck at 0 or 1."""

    bit: int
    stuck: int
    differs: float
    """Fraction of all input pairs for which the fault that it is nearest to gives another product."""


class GateFault(NamedTuple):
    """A location of a netlist that is stuck at 0 or 1."""

    location: int
    stuck: int


@dataclass(frozen=True, eq=False)
class FaultClass:
    """Faults with the same product table: no test can tell them apart."""

    faults: list[GateFault]
    """All of them, in the order of their locations."""
    disturbed: float
    """Fraction of all input pairs whose product is wrong; 0 for faults that change nothing."""
    bits: Float64Array
    """[product bits]: fraction of all input pairs that see each product bit inverted."""
    patterns: int
    """Number of different sets of product bits that are inverted together."""
    single_bit: bool
    """Whether no product has more than one bit inverted."""
    errors: TableErrors
    nearest: ProductBitFault

    @property
    def detectable(self) -> bool:
        """Whether any input pair shows it."""
        return self.disturbed > 0

    @property
    def bits_touched(self) -> int:
        """Number of product bits that some input pair sees inverted."""
        return int((self.bits > 0).sum())


def fault_classes(netlist: Netlist, progress: Callable[[int], None] | None = None) -> list[FaultClass]:
    """All stuck-at faults of gate outputs and input pins, evaluated on every input pair; in the order of first faults.

    `progress` is told how many more faults have been evaluated, of `2 * netlist.locations`.
    """
    from simulator.gates.netlist_kernel import CLEAR, SET, evaluate, set_operands, single_faults

    circuit = circuit_of(netlist)
    pairs = 1 << netlist.product_bits
    count = netlist.product_bits + len(netlist.gates)
    nets = np.empty((2 * count, -(-pairs // 64)), np.uint64)
    set_operands(circuit, 0, nets[:count])
    evaluate(circuit, np.empty(0, np.uint8), nets[:count])
    good = netlist_products(netlist).reshape(-1)
    found: dict[bytes, tuple[list[GateFault], UInt64Array]] = {}
    for start in range(0, netlist.locations, _BLOCK_FAULTS):
        locations = np.arange(start, min(start + _BLOCK_FAULTS, netlist.locations), dtype=np.int32)
        outputs = np.empty((len(locations), netlist.product_bits, nets.shape[1]), np.uint64)
        for stuck, code in enumerate((CLEAR, SET)):
            single_faults(circuit, locations, code, nets, outputs)
            for location, inverted in zip(locations.tolist(), outputs, strict=True):
                key = hashlib.blake2b(inverted.tobytes(), digest_size=32).digest()
                if key not in found:
                    found[key] = ([], inverted.copy())
                found[key][0].append(GateFault(location, stuck))
            if progress is not None:
                progress(len(locations))
    product_nets = nets[circuit.outputs]
    classes = [
        _fault_class(netlist, sorted(faults), inverted, good, _nearest_product_bit_fault(inverted, product_nets, pairs))
        for faults, inverted in found.values()
    ]
    return sorted(classes, key=lambda one: one.faults[0])


def _fault_class(
    netlist: Netlist,
    faults: list[GateFault],
    inverted: UInt64Array,
    good: Int32Array,
    nearest: ProductBitFault,
) -> FaultClass:
    product_bits = netlist.product_bits
    # uint8 [product bits, pairs]: words hold the first pair in their lowest bit.
    bits = np.unpackbits(inverted.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, : len(good)]
    pattern = np.zeros(len(good), np.int32)
    for place, column in enumerate(bits):
        pattern |= column.astype(np.int32) << place
    faulty = (good & ((1 << product_bits) - 1)) ^ pattern
    if netlist.product_signed:
        faulty -= (faulty >> (product_bits - 1)) << product_bits
    seen = np.flatnonzero(np.bincount(pattern, minlength=1))
    seen = seen[seen > 0]
    return FaultClass(
        faults=faults,
        disturbed=float((pattern != 0).mean()),
        bits=bits.mean(axis=1),
        patterns=len(seen),
        single_bit=bool((seen & (seen - 1) == 0).all()),
        errors=table_errors(faulty, good),
        nearest=nearest,
    )


def _nearest_product_bit_fault(inverted: UInt64Array, good: UInt64Array, pairs: int) -> ProductBitFault:
    """The stuck bit of the product that gives the right faulty product most often; of the lowest bit if several do."""
    from simulator.multipliers.fault_classes_kernel import same_products

    same = np.empty((len(inverted), 2), np.int64)
    last = np.uint64((1 << (pairs % 64 or 64)) - 1)
    same_products(inverted, good, last, same)
    bit, stuck = (int(index) for index in np.unravel_index(np.argmax(same), same.shape))
    return ProductBitFault(bit, stuck, 1 - int(same[bit, stuck]) / pairs)


Quantiles = tuple[float, float, float]
"""10 %, 50 % and 90 % quantile, over the classes that change a product."""


class FaultSummary(NamedTuple):
    """What all faults of a multiplier's gates do, next to the model of a stuck product bit. Classes count alike."""

    faults: int
    """Stuck-at faults of the gates' outputs and pins."""
    classes: int
    undetectable: int
    """Faults that change no product."""
    equal_classes: int
    """Classes that are the same as a stuck bit of the product."""
    equal_faults: int
    """Faults in these classes."""
    disturbed: Quantiles
    """Fractions of input pairs that a class disturbs."""
    mean_error: Quantiles
    """Mean absolute errors."""
    differs: Quantiles
    """Fractions of input pairs for which a class and the nearest stuck product bit give different products."""
    single_bit: int
    """Classes that change a product, and never more than one bit of it."""
    bits: Quantiles
    """Product bits that a class inverts for some pair."""


def compare(classes: Sequence[FaultClass]) -> FaultSummary:
    """Sum up the classes of `fault_classes`."""
    seen = [one for one in classes if one.detectable]
    equal = [one for one in seen if one.nearest.differs == 0]
    return FaultSummary(
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


def _quantiles(values: Sequence[float]) -> Quantiles:
    if not values:
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], method="lower").tolist()
    return low, middle, high
