"""Multipliers that are built in: partial products of AND gates, added up by full and half adders.

Signed operands follow Baugh and Wooley (IEEE Transactions on Computers C-22(12), 1973): a partial product with a sign
bit in it counts negatively, and `-x * 2**k` is `(not x) * 2**k - 2**k`; all those constants add up to a few ones. The
trees are those of Wallace (IEEE Transactions on Electronic Computers EC-13(1), 1964) and Dadda (Alta Frequenza 34,
1965).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from simulator.errors import InputError, checked_integer, did_you_mean
from simulator.gates.cells import MOST_PINS, Gate
from simulator.gates.netlist import LARGEST_OPERAND_BITS, Netlist

_ZERO, _ONE = -2, -1
"""Bits that are constant; all others are numbers of nets."""

Columns = list[list[int]]
"""Bits to add up, by their binary place."""


class _Builder:
    """A netlist as it grows."""

    def __init__(self, weight_bits: int, act_bits: int) -> None:
        self.operands = weight_bits + act_bits
        self.gates: list[Gate] = []
        self.inputs: list[list[int]] = []

    def gate(self, kind: Gate, *pins: int) -> int:
        """Add a gate; gives its net."""
        self.gates.append(kind)
        self.inputs.append([*pins, *[-1] * (MOST_PINS - len(pins))])
        return self.operands + len(self.gates) - 1

    def add(self, *bits: int) -> tuple[int, int]:
        """Sum and carry of up to three bits; constants need no adder."""
        ones = bits.count(_ONE)
        nets = [bit for bit in bits if bit >= 0]
        if len(nets) == 3:
            a, b, c = nets
            half = self.gate(Gate.XOR, a, b)
            total = self.gate(Gate.XOR, half, c)
            return total, self.gate(Gate.OR, self.gate(Gate.AND, a, b), self.gate(Gate.AND, half, c))
        if len(nets) == 2:
            if ones:
                return self.gate(Gate.XNOR, *nets), self.gate(Gate.OR, *nets)
            return self.gate(Gate.XOR, *nets), self.gate(Gate.AND, *nets)
        if len(nets) == 1:
            if ones == 1:
                return self.gate(Gate.NOT, nets[0]), nets[0]
            return nets[0], _ONE if ones else _ZERO
        return _ONE if ones % 2 else _ZERO, _ONE if ones >= 2 else _ZERO

    def ripple(self, columns: Columns) -> list[int]:
        """Add columns of at most two bits by a ripple-carry adder; what leaves the last column is dropped."""
        carry, total = _ZERO, []
        for column in columns:
            bit, carry = self.add(*column, carry)
            total.append(bit)
        return total

    def finish(self, product: list[int], weight_bits: int, weight_signed: bool, act_signed: bool) -> Netlist:
        """The netlist without the gates that no product bit depends on."""
        product = [bit if bit >= 0 else self.gate(Gate.CONST_1 if bit == _ONE else Gate.CONST_0) for bit in product]
        needed = {net - self.operands for net in product}
        for gate in reversed(range(len(self.gates))):
            if gate in needed:
                needed.update(net - self.operands for net in self.inputs[gate])
        kept = [gate for gate in range(len(self.gates)) if gate in needed]
        place = {self.operands + gate: self.operands + new for new, gate in enumerate(kept)}
        return Netlist(
            gates=np.array([self.gates[gate] for gate in kept], np.uint8),
            inputs=np.array([[place.get(net, net) for net in self.inputs[gate]] for gate in kept], np.int32),
            outputs=np.array([place.get(net, net) for net in product], np.int32),
            weight_bits=weight_bits,
            act_bits=self.operands - weight_bits,
            weight_signed=weight_signed,
            act_signed=act_signed,
        )


def _partial_products(
    builder: _Builder, weight_bits: int, act_bits: int, weight_signed: bool, act_signed: bool
) -> list[Columns]:
    """One set of columns for each bit of the weight, and at last one of the constants."""
    product_bits = weight_bits + act_bits
    rows, constant = [], 0
    for i in range(weight_bits):
        row: Columns = [[] for _ in range(product_bits)]
        for j in range(act_bits):
            negative = (weight_signed and i == weight_bits - 1) != (act_signed and j == act_bits - 1)
            row[i + j].append(builder.gate(Gate.NAND if negative else Gate.AND, i, weight_bits + j))
            constant -= negative << (i + j)
        rows.append(row)
    rows.append([[_ONE] if constant >> place & 1 else [] for place in range(product_bits)])
    return rows


def _merged(rows: list[Columns]) -> Columns:
    return [[bit for row in rows for bit in row[place]] for place in range(len(rows[0]))]


def _array(builder: _Builder, rows: list[Columns]) -> list[int]:
    """Row after row into sums and carries, as the cells of an array multiplier do, and a ripple-carry adder at last."""
    running = _merged(rows[:1] + rows[-1:])
    for row in rows[1:-1]:
        following: Columns = [[] for _ in running]
        for place, column in enumerate(running):
            bits = [*column, *row[place]]
            while len(bits) > 2:
                total, carry = builder.add(*bits[:3])
                bits = [*bits[3:], total]
                _carry(following, place, carry)
            following[place].extend(bits)
        running = following
    return _dadda(builder, [running])


def _wallace(builder: _Builder, rows: list[Columns]) -> list[int]:
    """In each stage as many full adders as there are threes, and a half adder for the two that remain."""
    columns = _merged(rows)
    while max(map(len, columns)) > 2:
        following: Columns = [[] for _ in columns]
        for place, bits in enumerate(columns):
            for first in range(0, len(bits), 3):
                group = bits[first : first + 3]
                if len(group) == 1 or (len(group) == 2 and len(bits) == 2):
                    following[place].extend(group)
                    continue
                total, carry = builder.add(*group)
                following[place].append(total)
                _carry(following, place, carry)
        columns = following
    return builder.ripple(columns)


def _dadda(builder: _Builder, rows: list[Columns]) -> list[int]:
    """In each stage as few adders as bring every column down to the next height of 2, 3, 4, 6, 9, 13, 19."""
    columns = _merged(rows)
    heights = [2]
    while heights[-1] < max(map(len, columns)):
        heights.append(heights[-1] * 3 // 2)
    for height in reversed(heights):
        following: Columns = [[] for _ in columns]
        for place, bits in enumerate(columns):
            # What was carried here in this stage counts towards the height.
            while len(bits) + len(following[place]) > height:
                excess = len(bits) + len(following[place]) - height
                group = bits[: 3 if excess > 1 else 2]
                total, carry = builder.add(*group)
                bits = bits[len(group) :]
                following[place].append(total)
                _carry(following, place, carry)
            following[place].extend(bits)
        columns = following
    return builder.ripple(columns)


def _carry(columns: Columns, place: int, carry: int) -> None:
    if carry != _ZERO and place + 1 < len(columns):
        columns[place + 1].append(carry)


_REDUCTIONS: dict[str, Callable[[_Builder, list[Columns]], list[int]]] = {
    "array": _array,
    "wallace": _wallace,
    "dadda": _dadda,
}

DESIGNS = tuple(_REDUCTIONS)
"""Names of the built-in designs: rows of adders, and the trees of Wallace and of Dadda."""


@lru_cache(maxsize=512)
def build_netlist(
    design: str, weight_bits: int, act_bits: int, *, weight_signed: bool = True, act_signed: bool = True
) -> Netlist:
    """Build a multiplier.

    Args:
        design: `array` (rows of adders, as Baugh and Wooley's), `wallace` or `dadda` (trees of adders).
        weight_bits: width of the weight, 1..8.
        act_bits: width of the activation, 1..8.
        weight_signed: whether weights are two's complement.
        act_signed: whether activations are two's complement.

    Returns:
        A netlist that multiplies exactly.

    Raises:
        InputError: an unknown design, or a width out of range.

    >>> netlist = build_netlist("dadda", 8, 8)
    >>> len(netlist.gates), netlist.locations
    (321, 962)
    """
    if design not in _REDUCTIONS:
        hint = did_you_mean(design, DESIGNS)
        raise InputError(f"multiplier {design!r} is unknown: expected one of {', '.join(DESIGNS)}{hint}")
    weight_bits = checked_integer("weight_bits", weight_bits, 1, LARGEST_OPERAND_BITS)
    act_bits = checked_integer("act_bits", act_bits, 1, LARGEST_OPERAND_BITS)
    builder = _Builder(weight_bits, act_bits)
    rows = _partial_products(builder, weight_bits, act_bits, weight_signed, act_signed)
    product = _REDUCTIONS[design](builder, rows)
    return builder.finish(product, weight_bits, weight_signed, act_signed)
