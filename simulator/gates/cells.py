"""Gates: their codes, and the cells of Yosys that files name them by."""

from __future__ import annotations

import enum

from simulator.errors import InputError

MOST_PINS = 4


class Gate(enum.IntEnum):
    """What a gate computes from its input pins a, b, c, d. Values are codes in files and never change.

    The names and the order of the pins are those of the generic cells of Yosys (`$_AND_` and so on).
    """

    CONST_0 = 0
    CONST_1 = 1
    BUF = 2
    NOT = 3
    AND = 4
    OR = 5
    NAND = 6
    NOR = 7
    XOR = 8
    XNOR = 9
    ANDNOT = 10
    """a and not b"""
    ORNOT = 11
    """a or not b"""
    MUX = 12
    """b if c else a"""
    NMUX = 13
    """not (b if c else a)"""
    AOI3 = 14
    """not ((a and b) or c)"""
    OAI3 = 15
    """not ((a or b) and c)"""
    AOI4 = 16
    """not ((a and b) or (c and d))"""
    OAI4 = 17
    """not ((a or b) and (c or d))"""

    @property
    def pins(self) -> int:
        """Number of input pins."""
        return _PINS[self]


_PINS = {
    **dict.fromkeys(Gate, 2),
    **dict.fromkeys((Gate.CONST_0, Gate.CONST_1), 0),
    **dict.fromkeys((Gate.BUF, Gate.NOT), 1),
    **dict.fromkeys((Gate.MUX, Gate.NMUX, Gate.AOI3, Gate.OAI3), 3),
    **dict.fromkeys((Gate.AOI4, Gate.OAI4), 4),
}


class NetlistError(InputError):
    """A netlist that is none, or does not fit; one line says why."""


def error_in_line(line: int, message: str) -> NetlistError:
    """The error for one line of a file."""
    return NetlistError(f"line {line}: {message}")


NOT_GATES = (
    "make simple gates of it with Yosys: 'synth -flatten; abc -g gates; opt_clean' before write_verilog or write_blif"
)
"""The advice for files that have something else than gates."""

_CELLS = {f"$_{gate.name}_": gate for gate in Gate if gate.pins}
_STORING = (
    "$_DFF", "$_SDFF", "$_ALDFF", "$_DLATCH", "$_SR_", "$_FF_", "$dff", "$adff", "$sdff", "$dlatch", "$ff", "$mem",
)  # fmt: skip


def cell_gate(name: str, pins: list[str], line: int) -> tuple[Gate, tuple[str, ...]]:
    """The gate that a cell of Yosys is, and the names of its input pins in the order of `Gate`; its output is Y.

    Args:
        name: type of the cell.
        pins: names of the pins that are connected.
        line: where it stands, for messages.

    Raises:
        NetlistError: another cell, or pins that are missing or too many.
    """
    gate = _CELLS.get(name)
    if gate is None:
        if name.startswith(_STORING):
            raise error_in_line(line, f"cell {name} stores a value: expected gates only")
        raise error_in_line(line, f"cell {name} is none of the gates ({', '.join(_CELLS)}): {NOT_GATES}")
    inputs = tuple("ABS" if gate in (Gate.MUX, Gate.NMUX) else "ABCD"[: gate.pins])
    if set(pins) != {*inputs, "Y"}:
        expected = ", ".join((*inputs, "Y"))
        raise error_in_line(line, f"cell {name} has pins {', '.join(pins) or 'none'}: expected {expected}")
    return gate, inputs
