"""What faults inside a PE do to its products: for which operands they change them, and which do so alike.

A fault is looked at as a table of products by the bit patterns of weight and activation. Most faults are of gates, and
gates are evaluated on 64 pairs of operands at a time, so tables are kept as one plane for each bit of the product: the
pairs for which the fault inverts that bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.request import Stratum
from simulator import ArrayConfig, Kind, Site
from simulator.bits import as_number
from simulator.dtypes import BoolArray, Int16Array, Int32Array, Int64Array, UInt64Array
from simulator.multipliers.multiplier import exact_products

_WORD_BITS = 64
_BLOCK = 1 << 23
"""Faults times pairs of operands that are looked at together: their planes take 16 megabytes."""


class Alike(NamedTuple):
    """Faults by what they do to products: two are one *behaviour* if their products are the same for all operands.

    Attributes:
        behaviour: int64 [faults], the behaviour of each fault.
        disturbed: uint64 [2**weight_bits, behaviours, words], as `disturbed_products` gives it.
        same: int32 [2**weight_bits + 1, behaviours]: for each pattern of the weight a number that is the same for
            behaviours with the same products of that weight and any activation; in the last row the same for the
            product of a PE that is not used, whose operands are 0. Numbers are below that of behaviours.
    """

    behaviour: Int64Array
    disturbed: UInt64Array
    same: Int32Array


def clean_products(config: ArrayConfig) -> Int16Array:
    """Products of PEs without faults, int16 [2**weight_bits, 2**act_bits] by the operands' bit patterns."""
    if config.multiplies_exactly:
        return exact_products(config.weight_bits, config.act_bits, act_signed=config.act_signed)
    return config.pe_multiplier.products


def words_of(config: ArrayConfig) -> int:
    """Words of 64 bits that have a bit for each pattern of an activation."""
    return max(1, (1 << config.act_bits) // _WORD_BITS)


def packed(marks: BoolArray) -> UInt64Array:
    """Marks bool [..., patterns] as words uint64 [..., words], the first pattern in the lowest bit."""
    octets = np.packbits(marks, axis=-1, bitorder="little")
    missing = -octets.shape[-1] % (_WORD_BITS // 8)
    if missing:
        octets = np.pad(octets, [(0, 0)] * (octets.ndim - 1) + [(0, missing)])
    return octets.view("<u8").astype(np.uint64)


def disturbed_products(config: ArrayConfig, faults: Sequence[Stratum]) -> UInt64Array:
    """The operands whose product a fault of a WEIGHT, ACTIVATION, PRODUCT or MULTIPLIER net changes.

    uint64 [2**weight_bits, faults, words]: by the bit pattern of the weight, with the bit of each pattern of an
    activation set whose product is not what it is without the fault.
    """
    blocks = [np.bitwise_or.reduce(planes, axis=1) for planes in _inverted(config, faults)]
    return np.ascontiguousarray(np.concatenate(blocks, axis=1).transpose(1, 0, 2))


def alike(config: ArrayConfig, faults: Sequence[Stratum]) -> Alike:
    """Which faults, of nets as for `disturbed_products`, have the same products."""
    # Numba takes 0.4 s to import.
    from efat.propagation.collapsing.kernel import number_rows

    blocks, numbers = [], []
    for planes in _inverted(config, faults):
        blocks.append(np.bitwise_or.reduce(planes, axis=1))
        numbers.append(np.empty((planes.shape[2], len(faults)), np.int32))
        number_rows(planes, numbers[-1])
        if len(blocks) == 1:
            first_pair = (planes[:, :, 0, 0] & np.uint64(1)).astype(np.int64)
    unused = (first_pair << np.arange(config.product_bits)).sum(1)
    numbers.append(np.unique(unused, return_inverse=True)[1].reshape(1, -1).astype(np.int32))
    same, first, behaviour = np.unique(np.concatenate(numbers), axis=1, return_index=True, return_inverse=True)
    disturbed = np.concatenate(blocks, axis=1)[first]
    return Alike(
        behaviour.reshape(-1).astype(np.int64),
        np.ascontiguousarray(disturbed.transpose(1, 0, 2)),
        np.array([np.unique(row, return_inverse=True)[1].reshape(-1) for row in same], np.int32),
    )


def _inverted(config: ArrayConfig, faults: Sequence[Stratum]) -> Iterator[UInt64Array]:
    """Bits that faults invert, for some weights after others: uint64 [faults, product_bits, weights, words]."""
    act_patterns = 1 << config.act_bits
    weights = 1 << config.weight_bits
    while weights > 1 and len(faults) * weights * act_patterns > _BLOCK:
        weights //= 2
    of_gates = np.zeros(len(faults), np.bool_)
    if config.pe_multiplier.netlist is not None:
        of_gates = np.array([site is Site.MULTIPLIER for site, _, _ in faults], np.bool_)
    tables = [_difference(config, *fault) for fault, gates in zip(faults, of_gates, strict=True) if not gates]
    differences = np.array(tables, np.uint16).reshape(-1, 1 << config.weight_bits, act_patterns)
    gates = [fault for fault, of_gate in zip(faults, of_gates, strict=True) if of_gate]
    for first in range(0, 1 << config.weight_bits, weights):
        planes = np.empty((len(faults), config.product_bits, weights, words_of(config)), np.uint64)
        chosen = differences[:, first : first + weights]
        places = np.flatnonzero(~of_gates)
        for bit in range(config.product_bits):
            planes[places, bit] = packed((chosen >> bit) & 1 != 0)
        if gates:
            planes[of_gates] = _by_weight(_inverted_by_gates(config, gates, first, weights), weights, act_patterns)
        yield planes


def _difference(config: ArrayConfig, site: Site, bit: int, kind: Kind) -> npt.NDArray[np.uint16]:
    """Bits of the product that a fault inverts, uint16 [2**weight_bits, 2**act_bits] by the operands' patterns."""
    clean = clean_products(config)
    if site is Site.MULTIPLIER:
        tables = config.pe_multiplier.tables
        assert tables is not None
        faulty: npt.NDArray[np.integer] = tables[bit + 1]
    elif site is Site.WEIGHT:
        faulty = clean[_with_fault(np.arange(len(clean)), bit, kind)]
    elif site is Site.ACTIVATION:
        faulty = clean[:, _with_fault(np.arange(clean.shape[1]), bit, kind)]
    else:
        assert site is Site.PRODUCT
        faulty = as_number(_with_fault(clean.astype(np.int64), bit, kind), config.product_bits, signed=True)
    mask = (1 << config.product_bits) - 1
    return ((faulty.astype(np.int64) ^ clean) & mask).astype(np.uint16)


def _with_fault(patterns: Int64Array, bit: int, kind: Kind) -> Int64Array:
    if kind is Kind.FLIP:
        return patterns ^ (1 << bit)
    return patterns & ~(1 << bit) if kind is Kind.STUCK_AT_0 else patterns | (1 << bit)


def _inverted_by_gates(config: ArrayConfig, faults: Sequence[Stratum], first: int, weights: int) -> UInt64Array:
    """What faults of gates do, uint64 [faults, product_bits, words]: bits of all pairs of operands in their order."""
    # Numba takes 0.4 s to import.
    from simulator.gates.netlist import circuit_of
    from simulator.gates.netlist_kernel import CLEAR, SET, evaluate, set_operands, single_faults

    netlist = config.pe_multiplier.netlist
    assert netlist is not None
    circuit = circuit_of(netlist)
    nets_count = netlist.product_bits + len(netlist.gates)
    words = -(-(weights << config.act_bits) // _WORD_BITS)
    nets = np.empty((2 * nets_count, words), np.uint64)
    set_operands(circuit, first << config.act_bits, nets[:nets_count])
    evaluate(circuit, np.empty(0, np.uint8), nets[:nets_count])
    inverted = np.zeros((len(faults), config.product_bits, words), np.uint64)
    kinds = np.array([kind for _, _, kind in faults])
    locations = np.array([location for _, location, _ in faults], np.int32)
    for stuck, code in ((Kind.STUCK_AT_0, CLEAR), (Kind.STUCK_AT_1, SET)):
        # For a pair of operands one of the two stuck values is what is there, and the other one is its inverse.
        chosen = np.flatnonzero((kinds == stuck) | (kinds == Kind.FLIP))
        outputs = np.empty((len(chosen), config.product_bits, words), np.uint64)
        single_faults(circuit, locations[chosen], code, nets, outputs)
        inverted[chosen] |= outputs
    return inverted


def _by_weight(planes: UInt64Array, weights: int, act_patterns: int) -> UInt64Array:
    """Bits of pairs as words of each weight, uint64 [faults, product_bits, weights, words]."""
    if act_patterns >= _WORD_BITS:
        return planes.reshape(*planes.shape[:2], weights, -1)
    octets = planes.astype("<u8").view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, count=weights * act_patterns, bitorder="little")
    return packed(bits.reshape(*planes.shape[:2], weights, act_patterns) != 0)
