"""Every stuck-at fault of a multiplier's gates: what it does to the products, and which faults are equivalent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.faults import Kind
from simulator.gates.evaluation import circuit_of, netlist_products
from simulator.gates.netlist import Netlist
from simulator.multipliers.multiplier import TableErrors, table_errors
from simulator.multipliers.product_bits import ProductBitFault, nearest_product_bit_fault

_BLOCK_FAULTS = 128


class GateFault(NamedTuple):
    """One stuck-at fault of a netlist."""

    location: int
    kind: Kind


@dataclass(frozen=True, eq=False)
class FaultClass:
    """Faults with the same product table: no test can tell them apart.

    Attributes:
        faults: all of them, in the order of their locations.
        disturbed: fraction of all input pairs whose product is wrong; 0 for faults that change nothing.
        bits: float64 [product bits], fraction of all input pairs that see each product bit inverted.
        patterns: number of different sets of product bits that are inverted together.
        single_bit: whether no product has more than one bit inverted.
        errors: the table's errors.
        nearest: the fault of a bit of the product that is most like it.
    """

    faults: list[GateFault]
    disturbed: float
    bits: npt.NDArray[np.float64]
    patterns: int
    single_bit: bool
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
    """Evaluate both stuck-at faults of every gate output and input pin on every input pair, and collapse equals.

    Args:
        netlist: the gates.
        progress: is told how many more faults have been evaluated, of `2 * netlist.locations`.

    Returns:
        All classes, each fault in one of them, in the order of their first faults.
    """
    from simulator.gates.netlist_kernel import CLEAR, SET, evaluate, set_operands, single_faults

    circuit = circuit_of(netlist)
    pairs = 1 << netlist.product_bits
    count = netlist.product_bits + len(netlist.gates)
    nets = np.empty((2 * count, -(-pairs // 64)), np.uint64)
    set_operands(circuit, 0, nets[:count])
    evaluate(circuit, np.empty(0, np.uint8), nets[:count])
    good = netlist_products(netlist).reshape(-1)
    found: dict[bytes, tuple[list[GateFault], npt.NDArray[np.uint64]]] = {}
    for start in range(0, netlist.locations, _BLOCK_FAULTS):
        locations = np.arange(start, min(start + _BLOCK_FAULTS, netlist.locations), dtype=np.int32)
        outputs = np.empty((len(locations), netlist.product_bits, nets.shape[1]), np.uint64)
        for kind, code in ((Kind.STUCK_AT_0, CLEAR), (Kind.STUCK_AT_1, SET)):
            single_faults(circuit, locations, code, nets, outputs)
            for location, inverted in zip(locations.tolist(), outputs, strict=True):
                key = hashlib.blake2b(inverted.tobytes(), digest_size=32).digest()
                if key not in found:
                    found[key] = ([], inverted.copy())
                found[key][0].append(GateFault(location, kind))
            if progress is not None:
                progress(len(locations))
    product_nets = nets[circuit.outputs]
    classes = [
        _fault_class(netlist, sorted(faults), inverted, good, nearest_product_bit_fault(inverted, product_nets, pairs))
        for faults, inverted in found.values()
    ]
    return sorted(classes, key=lambda one: one.faults[0])


def _fault_class(
    netlist: Netlist,
    faults: list[GateFault],
    inverted: npt.NDArray[np.uint64],
    good: npt.NDArray[np.int32],
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
