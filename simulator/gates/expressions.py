"""Expressions of Verilog, as far as gates compute them."""

from __future__ import annotations

from simulator.gates.netlist import Gate, NetlistError
from simulator.gates.wiring import Source

MOST_BITS = 4096
"""Longest vector that is looked at bit by bit."""

_BASES = {"b": 1, "o": 3, "h": 4}


class Node:
    """An operator on single bits.

    Attributes:
        operator: `~`, `&`, `|`, `^`, or `?` with the condition first.
        operands: what it works on.
        depth: operators on the longest way down.
    """

    def __init__(self, operator: str, operands: tuple[Source | Node, ...]) -> None:
        self.operator = operator
        self.operands = operands
        self.depth: int = 1 + max(operand.depth if isinstance(operand, Node) else 0 for operand in operands)


Bit = Source | Node
"""One bit of an expression."""


def gate_of(node: Node) -> tuple[Gate, tuple[Bit, ...]]:
    """The gate for an operator, together with those below that the same gate computes, and what is on its pins.

    These are the expressions that Yosys writes for its gates.
    """
    if node.operator == "~":
        return _inverted(node.operands[0])
    if node.operator == "?":
        condition, yes, no = node.operands
        return Gate.MUX, (no, yes, condition)
    left, right = node.operands
    if node.operator == "^":
        return Gate.XOR, (left, right)
    plain, with_not = (Gate.AND, Gate.ANDNOT) if node.operator == "&" else (Gate.OR, Gate.ORNOT)
    for kept, other in ((left, right), (right, left)):
        # A net or constant that is inverted; an inverted gate is a gate itself.
        if isinstance(other, Node) and other.operator == "~" and not isinstance(other.operands[0], Node):
            return with_not, (kept, other.operands[0])
    return plain, (left, right)


def _inverted(inner: Bit) -> tuple[Gate, tuple[Bit, ...]]:
    if not isinstance(inner, Node) or inner.operator == "~":
        return Gate.NOT, (inner,)
    if inner.operator == "?":
        condition, yes, no = inner.operands
        return Gate.NMUX, (no, yes, condition)
    left, right = inner.operands
    if inner.operator == "^":
        return Gate.XNOR, (left, right)
    below = "|" if inner.operator == "&" else "&"
    two, three, four = (Gate.NAND, Gate.OAI3, Gate.OAI4) if below == "|" else (Gate.NOR, Gate.AOI3, Gate.AOI4)
    left_pair = left.operands if isinstance(left, Node) and left.operator == below else None
    right_pair = right.operands if isinstance(right, Node) and right.operator == below else None
    if left_pair and right_pair:
        return four, (*left_pair, *right_pair)
    if left_pair:
        return three, (*left_pair, right)
    if right_pair:
        return three, (*right_pair, left)
    return two, (left, right)


def literal(text: str, line: int) -> list[Source]:
    """The bits of a constant such as 4'b0101, least significant first; x and z are None.

    Raises:
        NetlistError: a constant without a width, or with digits that its base does not have.
    """
    width_text, _, rest = text.partition("'")
    rest = rest.strip().lstrip("sS").lower().replace("_", "").replace(" ", "")
    digits_text = width_text.strip().replace("_", "")
    width = int(digits_text) if digits_text and len(digits_text) <= 4 else 0
    if not rest or not 1 <= width <= MOST_BITS:
        raise NetlistError(f"line {line}: constant {text[:40]!r}: expected a width of 1..{MOST_BITS} bits, as in 1'b0")
    base, digits = rest[0], rest[1:].strip()
    bits: list[Source] = []
    try:
        if base == "d":
            value = int(digits)
            bits = [bool(value >> place & 1) for place in range(max(width, value.bit_length()))]
        else:
            for digit in reversed(digits):
                size = _BASES[base]
                undefined = digit in "xz?"
                value = 0 if undefined else int(digit, 1 << size)
                bits += [None if undefined else bool(value >> place & 1) for place in range(size)]
    except ValueError:
        raise NetlistError(f"line {line}: constant {text[:40]!r} has digits that its base does not have") from None
    padding = None if bits and bits[-1] is None else False
    bits += [padding] * (width - len(bits))
    if any(bit is True for bit in bits[width:]):
        raise NetlistError(f"line {line}: constant {text[:40]!r} does not fit into {width} bits")
    return bits[:width]
