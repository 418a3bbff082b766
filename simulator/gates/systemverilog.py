"""A netlist as synthesizable SystemVerilog, with the faults of every location as inputs.

The module stands for `simulator/rtl/multiplier.sv` in the array, where gates can be faulty.
"""

from __future__ import annotations

import numpy as np

from simulator.gates.cells import Gate
from simulator.gates.netlist import Netlist

_EXPRESSIONS = {
    Gate.CONST_0: "1'b0",
    Gate.CONST_1: "1'b1",
    Gate.BUF: "{a}",
    Gate.NOT: "~{a}",
    Gate.AND: "{a} & {b}",
    Gate.OR: "{a} | {b}",
    Gate.NAND: "~({a} & {b})",
    Gate.NOR: "~({a} | {b})",
    Gate.XOR: "{a} ^ {b}",
    Gate.XNOR: "~({a} ^ {b})",
    Gate.ANDNOT: "{a} & ~{b}",
    Gate.ORNOT: "{a} | ~{b}",
    Gate.MUX: "{c} ? {b} : {a}",
    Gate.NMUX: "~({c} ? {b} : {a})",
    Gate.AOI3: "~(({a} & {b}) | {c})",
    Gate.OAI3: "~(({a} | {b}) & {c})",
    Gate.AOI4: "~(({a} & {b}) | ({c} & {d}))",
    Gate.OAI4: "~(({a} | {b}) & ({c} | {d}))",
}


def gate_level_multiplier(netlist: Netlist) -> str:
    """The gates as a module `multiplier`.

    Its inputs `invert`, `clear` and `set` have a bit for each location: what a gate output or pin carries is inverted,
    then forced to 0, then forced to 1. Its parameters are those of the behavioural multiplier; their values are fixed
    by the netlist, and others end a simulation at its start.
    """
    lines = [
        f"// {netlist.weight_bits}x{netlist.act_bits} bits, weights {_sign(netlist.weight_signed)}, "
        f"activations {_sign(netlist.act_signed)}: {len(netlist.gates)} gates. SHA-256 of the netlist:",
        f"// {netlist.digest}",
        "// Location g is the output of gate g, wire n<g>; after these follow the input pins, wires n<g>_a to n<g>_d.",
        "module multiplier #(",
        f"    parameter int WEIGHT_BITS = {netlist.weight_bits},",
        f"    parameter int ACT_BITS = {netlist.act_bits},",
        f"    parameter int ACT_SIGNED = {int(netlist.act_signed)},",
        f"    parameter int LOCATIONS = {max(1, netlist.locations)}",
        ") (",
        "    input logic [WEIGHT_BITS-1:0] weight,",
        "    input logic [ACT_BITS-1:0] activation,",
        "    input logic [LOCATIONS-1:0] invert,",
        "    input logic [LOCATIONS-1:0] clear,",
        "    input logic [LOCATIONS-1:0] set,",
        "    output logic [WEIGHT_BITS+ACT_BITS-1:0] product",
        ");",
        f"  initial if (WEIGHT_BITS != {netlist.weight_bits} || ACT_BITS != {netlist.act_bits} || "
        f"ACT_SIGNED != {int(netlist.act_signed)} || LOCATIONS != {max(1, netlist.locations)})",
        '    $fatal(1, "these gates are for other parameters");',
    ]
    for gate in range(len(netlist.gates)):
        lines += _gate(netlist, gate)
    bits = ", ".join(_net(netlist, net) for net in reversed(netlist.outputs.tolist()))
    lines.append(f"  assign product = {{{bits}}};")
    # Linters take names of this kind as they are meant.
    read = np.zeros(netlist.product_bits + len(netlist.gates), bool)
    read[netlist.inputs[netlist.inputs >= 0]] = True
    read[netlist.outputs] = True
    idle = [_net(netlist, int(net)) for net in np.flatnonzero(~read)]
    if not netlist.locations:
        idle += ["invert", "clear", "set"]
    if idle:
        lines.append(f"  wire unused = &{{1'b0, {', '.join(idle)}}};")
    return "\n".join([*lines, "endmodule", ""])


def _sign(signed: bool) -> str:
    return "signed" if signed else "unsigned"


def _gate(netlist: Netlist, gate: int) -> list[str]:
    """The wires of a gate's pins and of its output."""
    kind = Gate(netlist.gates[gate])
    pins, lines = {}, []
    for pin, name in zip(range(kind.pins), "abcd", strict=False):
        pins[name] = f"n{gate}_{name}"
        value = _net(netlist, int(netlist.inputs[gate, pin]))
        lines.append(_wire(pins[name], value, int(netlist.first_pin[gate]) + pin))
    return [*lines, _wire(f"n{gate}", f"({_EXPRESSIONS[kind].format(**pins)})", gate)]


def _wire(name: str, value: str, location: int) -> str:
    return f"  wire {name} = (({value} ^ invert[{location}]) & ~clear[{location}]) | set[{location}];"


def _net(netlist: Netlist, net: int) -> str:
    if net < netlist.weight_bits:
        return f"weight[{net}]"
    gate = net - netlist.product_bits
    return f"activation[{net - netlist.weight_bits}]" if gate < 0 else f"n{gate}"
