"""Gates on 64 input pairs at once, one in each bit of a word, with faults: the inner loops of multipliers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from simulator.dtypes import Int16Array, Int32Array, UInt8Array, UInt64Array
from simulator.gates import cells
from simulator.gates.cells import Gate
from simulator.kernels import kernels

Words = UInt64Array

INVERT, CLEAR, SET = 1, 2, 4
"""What a location's faults do, in this order; a code is the sum of those that are there."""

ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
NONE = np.uint64(0)

_CONST_0, _CONST_1, _BUF, _NOT = int(Gate.CONST_0), int(Gate.CONST_1), int(Gate.BUF), int(Gate.NOT)
_AND, _OR, _NAND, _NOR = int(Gate.AND), int(Gate.OR), int(Gate.NAND), int(Gate.NOR)
_XOR, _XNOR, _ANDNOT, _ORNOT = int(Gate.XOR), int(Gate.XNOR), int(Gate.ANDNOT), int(Gate.ORNOT)
_MUX, _NMUX, _AOI3, _OAI3, _AOI4 = int(Gate.MUX), int(Gate.NMUX), int(Gate.AOI3), int(Gate.OAI3), int(Gate.AOI4)


class Circuit(NamedTuple):
    """The arrays of a `simulator.gates.netlist.Netlist`."""

    gates: UInt8Array
    inputs: Int32Array
    first_pin: Int32Array
    outputs: Int32Array
    weight_bits: int
    act_bits: int


_kernel = kernels(cells)


@_kernel
def with_faults(value: Any, code: int) -> Any:
    """What a location carries when a word is driven onto it."""
    if code & INVERT:
        value = ~value
    if code & CLEAR:
        value = NONE
    if code & SET:
        value = ALL
    return value


@_kernel
def _two(kind: int, a: Any, b: Any) -> Any:
    if kind == _AND:
        return a & b
    if kind == _OR:
        return a | b
    if kind == _NAND:
        return ~(a & b)
    if kind == _NOR:
        return ~(a | b)
    if kind == _XOR:
        return a ^ b
    if kind == _XNOR:
        return ~(a ^ b)
    if kind == _ANDNOT:
        return a & ~b
    if kind == _ORNOT:
        return a | ~b
    if kind == _BUF:
        return a
    return ~a


@_kernel
def gate_value(kind: int, a: Any, b: Any, c: Any, d: Any) -> Any:
    """What a gate drives, on words of its pins."""
    if kind == _CONST_0:
        return NONE
    if kind == _CONST_1:
        return ALL
    if kind < _MUX:
        return _two(kind, a, b)
    if kind == _MUX:
        return (b & c) | (a & ~c)
    if kind == _NMUX:
        return ~((b & c) | (a & ~c))
    if kind == _AOI3:
        return ~((a & b) | c)
    if kind == _OAI3:
        return ~((a | b) & c)
    if kind == _AOI4:
        return ~((a & b) | (c & d))
    return ~((a | b) & (c | d))


@_kernel
def _gate(kind: int, nets: Words, a: int, b: int, c: int, d: int, out: int) -> None:
    """One gate on many words; the common kinds have loops of their own, which compile to vector instructions."""
    words = range(nets.shape[1])
    if kind == _AND:
        for i in words:
            nets[out, i] = nets[a, i] & nets[b, i]
    elif kind == _NAND:
        for i in words:
            nets[out, i] = ~(nets[a, i] & nets[b, i])
    elif kind == _OR:
        for i in words:
            nets[out, i] = nets[a, i] | nets[b, i]
    elif kind == _XOR:
        for i in words:
            nets[out, i] = nets[a, i] ^ nets[b, i]
    elif kind == _XNOR:
        for i in words:
            nets[out, i] = ~(nets[a, i] ^ nets[b, i])
    else:
        for i in words:
            nets[out, i] = gate_value(kind, nets[a, i], nets[b, i], nets[c, i], nets[d, i])


@_kernel
def evaluate(circuit: Circuit, codes: UInt8Array, nets: Words) -> None:
    """Drive all nets from the operands' nets.

    Args:
        circuit: the gates.
        codes: uint8 [locations], the faults of each location; empty for none.
        nets: uint64 [nets, words]; those of the operands are given, the others are written.
    """
    operands = circuit.weight_bits + circuit.act_bits
    for g in range(len(circuit.gates)):
        kind = circuit.gates[g]
        first, end = circuit.first_pin[g], circuit.first_pin[g + 1]
        out = operands + g
        # A pin that is not there reads net 0, and nothing comes of it.
        a, b = max(circuit.inputs[g, 0], 0), max(circuit.inputs[g, 1], 0)
        c, d = max(circuit.inputs[g, 2], 0), max(circuit.inputs[g, 3], 0)
        here = 0
        if len(codes):
            here = codes[g]
            for pin in range(first, end):
                here |= codes[pin]
        if here == 0:
            _gate(kind, nets, a, b, c, d, out)
            continue
        code_a = codes[first] if first < end else 0
        code_b = codes[first + 1] if first + 1 < end else 0
        code_c = codes[first + 2] if first + 2 < end else 0
        code_d = codes[first + 3] if first + 3 < end else 0
        for i in range(nets.shape[1]):
            value = gate_value(
                kind,
                with_faults(nets[a, i], code_a),
                with_faults(nets[b, i], code_b),
                with_faults(nets[c, i], code_c),
                with_faults(nets[d, i], code_d),
            )
            nets[out, i] = with_faults(value, codes[g])


@_kernel
def set_operands(circuit: Circuit, first_pair: int, nets: Words) -> None:
    """Put input pairs `first_pair` and following on the operands' nets: pair `weight << act_bits | activation`."""
    operands = circuit.weight_bits + circuit.act_bits
    for net in range(operands):
        bit = net + circuit.act_bits if net < circuit.weight_bits else net - circuit.weight_bits
        for i in range(nets.shape[1]):
            word = NONE
            for lane in range(64):
                pair = first_pair + 64 * i + lane
                word |= np.uint64((pair >> bit) & 1) << np.uint64(lane)
            nets[net, i] = word


@_kernel
def read_products(circuit: Circuit, nets: Words, products: Int16Array) -> None:
    """Turn the product's nets, a pair in each bit, into signed numbers: int16 [pairs]."""
    bits = len(circuit.outputs)
    unused = 16 - bits
    for i in range(nets.shape[1]):
        lanes = products[64 * i : 64 * i + 64]
        lanes[:] = 0
        for place in range(bits):
            word = nets[circuit.outputs[place], i]
            for lane in range(len(lanes)):
                lanes[lane] |= np.int16(((word >> np.uint64(lane)) & np.uint64(1)) << np.uint64(place))
        for lane in range(len(lanes)):
            lanes[lane] = np.int16(lanes[lane] << unused) >> unused


@_kernel
def product_rows(
    circuit: Circuit,
    first: Int32Array,
    location: Int32Array,
    code: UInt8Array,
    behaviour: Int32Array,
    weight: Int32Array,
    rows: Int16Array,
) -> None:
    """What PEs with fixed weights make of every activation.

    Args:
        circuit: the gates.
        first: int32 [behaviours + 1]: the faults of behaviour b are `first[b]:first[b + 1]`.
        location: int32 [faults].
        code: uint8 [faults].
        behaviour: int32 [rows].
        weight: int32 [rows], bit patterns.
        rows: int16 [rows, 2**act_bits], written; the activation's bit pattern is the index.
    """
    operands = circuit.weight_bits + circuit.act_bits
    nets = np.empty((operands + len(circuit.gates), max(1, rows.shape[1] // 64)), np.uint64)
    set_operands(circuit, 0, nets)
    codes = np.zeros(circuit.first_pin[-1], np.uint8)
    for row in range(len(rows)):
        for bit in range(circuit.weight_bits):
            nets[bit] = ALL if (weight[row] >> bit) & 1 else NONE
        faults = range(first[behaviour[row]], first[behaviour[row] + 1])
        for fault in faults:
            codes[location[fault]] = code[fault]
        evaluate(circuit, codes, nets)
        for fault in faults:
            codes[location[fault]] = 0
        read_products(circuit, nets, rows[row])


@_kernel
def single_faults(circuit: Circuit, locations: Int32Array, code: int, nets: Words, outputs: Words) -> None:
    """Evaluate single faults one by one, each only as far as it spreads.

    Args:
        circuit: the gates.
        locations: int32 [faults].
        code: `CLEAR` or `SET`.
        nets: uint64 [2 * nets, words]: first all nets without faults, then as many for the nets that a fault disturbs.
        outputs: uint64 [faults, product bits, words], written: which pairs see each product bit inverted.
    """
    operands = circuit.weight_bits + circuit.act_bits
    count = operands + len(circuit.gates)
    # Where each net is read: its fault-free row, or the disturbed one.
    read = np.arange(count)
    stuck = ALL if code == SET else NONE
    words = nets.shape[1]
    for fault in range(len(locations)):
        location = locations[fault]
        start = location
        pin = -1
        if location >= len(circuit.gates):
            start = np.searchsorted(circuit.first_pin, location, side="right") - 1
            pin = location - circuit.first_pin[start]
        for g in range(start, len(circuit.gates)):
            net = operands + g
            in_a, in_b = max(circuit.inputs[g, 0], 0), max(circuit.inputs[g, 1], 0)
            in_c, in_d = max(circuit.inputs[g, 2], 0), max(circuit.inputs[g, 3], 0)
            a, b, c, d = read[in_a], read[in_b], read[in_c], read[in_d]
            out = count + net
            if g == start:
                for i in range(words):
                    value = gate_value(
                        circuit.gates[g],
                        stuck if pin == 0 else nets[a, i],
                        stuck if pin == 1 else nets[b, i],
                        stuck if pin == 2 else nets[c, i],
                        stuck if pin == 3 else nets[d, i],
                    )
                    nets[out, i] = stuck if pin == -1 else value
            elif a != in_a or b != in_b or c != in_c or d != in_d:
                _gate(circuit.gates[g], nets, a, b, c, d, out)
            else:
                continue
            different = NONE
            for i in range(words):
                different |= nets[out, i] ^ nets[net, i]
            if different != NONE:
                read[net] = out
        for place in range(len(circuit.outputs)):
            net = circuit.outputs[place]
            for i in range(words):
                outputs[fault, place, i] = nets[read[net], i] ^ nets[net, i]
        for net in range(operands + start, count):
            read[net] = net
