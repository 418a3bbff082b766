"""One product of one PE, with whatever is wrong in its multiplier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.dtypes import Int16Array, Int32Array, UInt8Array
from simulator.gates import cells, netlist_kernel
from simulator.gates.netlist_kernel import INVERT, Circuit, gate_value, with_faults
from simulator.kernels import kernels

EXACT = -1
"""Behaviour of a PE that multiplies exactly."""


class PeProducts(NamedTuple):
    """Which PEs multiply how: a *behaviour* is a set of permanent faults of the multiplier, which PEs may share."""

    behaviour: Int32Array
    """int32 [rows, cols]: `EXACT`, or a number."""
    first: Int32Array
    """int32 [behaviours + 1]: the faults of behaviour b are `first[b]:first[b + 1]`."""
    location: Int32Array
    """int32 [faults]"""
    code: UInt8Array
    """uint8 [faults]: `CLEAR` or `SET`."""
    circuit: Circuit
    """Without gates if the multiplier is made of tables."""
    tables: Int16Array
    """int16 [1 + locations, 2**weight_bits, 2**act_bits]; no tables if the multiplier is made of gates."""

    @property
    def any(self) -> bool:
        """Whether any PE multiplies otherwise than exactly."""
        return bool((self.behaviour != EXACT).any())


_kernel = kernels(cells, netlist_kernel)


@_kernel
def single_product(
    products: PeProducts, behaviour: int, inverted: Int32Array, weight: int, activation: int, codes: UInt8Array
) -> int:
    """One product of one PE.

    Args:
        products: of the chip.
        behaviour: the PE's, or -1 if it has no permanent fault in its multiplier.
        inverted: int32 [locations that are upset now]; a location that is stuck as well ignores it.
        weight: what the multiplier gets.
        activation: what the multiplier gets.
        codes: uint8 [locations], scratch, 0 before and after.
    """
    begin, end = 0, 0
    if behaviour >= 0:
        begin, end = products.first[behaviour], products.first[behaviour + 1]
    if len(products.tables):
        table = 0
        for fault in range(begin, end):
            table = max(table, products.location[fault] + 1)
        for location in inverted:
            table = max(table, location + 1)
        _, weights, activations = products.tables.shape
        return int(products.tables[table, weight & (weights - 1), activation & (activations - 1)])
    for location in inverted:
        codes[location] |= INVERT
    for fault in range(begin, end):
        codes[products.location[fault]] |= products.code[fault]
    product = _product_of_gates(products.circuit, codes, weight, activation)
    for location in inverted:
        codes[location] = 0
    for fault in range(begin, end):
        codes[products.location[fault]] = 0
    return product


@_kernel
def _product_of_gates(circuit: Circuit, codes: UInt8Array, weight: int, activation: int) -> int:
    """One pair of operands by itself: the kernels for many pairs would make those that need one slow to compile."""
    operands = circuit.weight_bits + circuit.act_bits
    nets = np.empty(operands + len(circuit.gates), np.uint64)
    for bit in range(circuit.weight_bits):
        nets[bit] = np.uint64((weight >> bit) & 1)
    for bit in range(circuit.act_bits):
        nets[circuit.weight_bits + bit] = np.uint64((activation >> bit) & 1)
    pins = np.zeros(4, np.uint64)
    for g in range(len(circuit.gates)):
        first = circuit.first_pin[g]
        for pin in range(circuit.first_pin[g + 1] - first):
            pins[pin] = with_faults(nets[circuit.inputs[g, pin]], codes[first + pin])
        value = gate_value(circuit.gates[g], pins[0], pins[1], pins[2], pins[3])
        # Of each word bit 0 counts; what inversions make of the others goes nowhere.
        nets[operands + g] = with_faults(value, codes[g])
    product = 0
    bits = len(circuit.outputs)
    for place in range(bits):
        product |= int(nets[circuit.outputs[place]] & np.uint64(1)) << place
    return product - ((product >> (bits - 1)) << bits)
