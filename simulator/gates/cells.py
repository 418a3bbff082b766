"""The generic gate cells of Yosys, and the advice for files that have others."""

from __future__ import annotations

from simulator.gates.netlist import Gate, NetlistError

NOT_GATES = (
    "make simple gates of it with Yosys: 'synth -flatten; abc -g gates; opt_clean' before write_verilog or write_blif"
)

_PIN_NAMES = {gate: ("A", "B", "C", "D")[: gate.pins] for gate in Gate}
_PIN_NAMES.update(dict.fromkeys((Gate.MUX, Gate.NMUX), ("A", "B", "S")))

CELLS = {f"$_{gate.name}_": gate for gate in Gate if gate.pins}
"""Names of the cells; each has an output Y."""

_STORING = (
    "$_DFF",
    "$_SDFF",
    "$_ALDFF",
    "$_DLATCH",
    "$_SR_",
    "$_FF_",
    "$dff",
    "$adff",
    "$sdff",
    "$dlatch",
    "$ff",
    "$mem",
)


def cell_gate(name: str, pins: list[str]) -> tuple[Gate, tuple[str, ...]]:
    """The gate that a cell is, and the names of its input pins in the order of `Gate`.

    Args:
        name: type of the cell.
        pins: names of the pins that are connected.

    Raises:
        NetlistError: another cell, or pins that are missing or too many.
    """
    gate = CELLS.get(name)
    if gate is None:
        if name.startswith(_STORING):
            raise NetlistError(f"cell {name} stores a value: expected gates only")
        raise NetlistError(f"cell {name} is none of the gates ({', '.join(CELLS)}): {NOT_GATES}")
    expected = (*_PIN_NAMES[gate], "Y")
    if set(pins) != set(expected):
        raise NetlistError(f"cell {name} has pins {', '.join(pins) or 'none'}: expected {', '.join(expected)}")
    return gate, expected[:-1]


def gate_value(gate: Gate, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> bool:
    """What a gate gives for one combination of its pins."""
    values = {
        Gate.CONST_0: 0,
        Gate.CONST_1: 1,
        Gate.BUF: a,
        Gate.NOT: not a,
        Gate.AND: a and b,
        Gate.OR: a or b,
        Gate.NAND: not (a and b),
        Gate.NOR: not (a or b),
        Gate.XOR: a != b,
        Gate.XNOR: a == b,
        Gate.ANDNOT: a and not b,
        Gate.ORNOT: a or not b,
        Gate.MUX: b if c else a,
        Gate.NMUX: not (b if c else a),
        Gate.AOI3: not ((a and b) or c),
        Gate.OAI3: not ((a or b) and c),
        Gate.AOI4: not ((a and b) or (c and d)),
        Gate.OAI4: not ((a or b) and (c or d)),
    }
    return bool(values[gate])
