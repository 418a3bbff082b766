"""Netlists as text in the forms that Yosys writes, for tests of the readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from simulator.gates.blif import parse_blif
from simulator.gates.cells import Gate
from simulator.gates.netlist import Netlist
from simulator.gates.verilog import parse_verilog
from simulator.gates.wiring import assemble, choose_ports

# As `write_verilog` of Yosys has them.
EXPRESSIONS = {
    Gate.BUF: "{0}",
    Gate.NOT: "~{0}",
    Gate.AND: "{0} & {1}",
    Gate.OR: "{0} | {1}",
    Gate.NAND: "~({0} & {1})",
    Gate.NOR: "~({0} | {1})",
    Gate.XOR: "{0} ^ {1}",
    Gate.XNOR: "~({0} ^ {1})",
    Gate.ANDNOT: "{0} & ~({1})",
    Gate.ORNOT: "{0} | ~({1})",
    Gate.MUX: "{2} ? {1} : {0}",
    Gate.NMUX: "~({2} ? {1} : {0})",
    Gate.AOI3: "~(({0} & {1}) | {2})",
    Gate.OAI3: "~(({0} | {1}) & {2})",
    Gate.AOI4: "~(({0} & {1}) | ({2} & {3}))",
    Gate.OAI4: "~(({0} | {1}) & ({2} | {3}))",
}

# As `write_blif` of Yosys has them, on-set first.
COVERS = {
    Gate.BUF: "1 1",
    Gate.NOT: "0 1",
    Gate.AND: "11 1",
    Gate.OR: "1- 1\n-1 1",
    Gate.NAND: "0- 1\n-0 1",
    Gate.NOR: "00 1",
    Gate.XOR: "10 1\n01 1",
    Gate.XNOR: "11 1\n00 1",
    Gate.ANDNOT: "10 1",
    Gate.ORNOT: "1- 1\n-0 1",
    Gate.MUX: "1-0 1\n-11 1",
    Gate.NMUX: "0-0 1\n-01 1",
    Gate.AOI3: "-00 1\n0-0 1",
    Gate.OAI3: "00- 1\n--0 1",
    Gate.AOI4: "-0-0 1\n-00- 1\n0--0 1\n0-0- 1",
    Gate.OAI4: "00-- 1\n--00 1",
}


def pin_names(gate: Gate) -> Sequence[str]:
    return "ABS" if gate in (Gate.MUX, Gate.NMUX) else "ABCD"[: gate.pins]


def net_name(netlist: Netlist, net: int) -> str:
    if net < netlist.weight_bits:
        return f"w[{net}]"
    gate = net - netlist.product_bits
    return f"a[{net - netlist.weight_bits}]" if gate < 0 else f"_{gate}_"


def gates_of(netlist: Netlist) -> Iterable[tuple[Gate, str, list[str]]]:
    """Each gate with the names of its output and of the nets on its pins."""
    for number, (code, inputs) in enumerate(zip(netlist.gates.tolist(), netlist.inputs.tolist(), strict=True)):
        gate = Gate(code)
        yield gate, f"_{number}_", [net_name(netlist, net) for net in inputs[: gate.pins]]


def verilog(netlist: Netlist, order: Callable[[list[str]], list[str]] = list, *, cells: bool = False) -> str:
    """A module with a statement for each gate; `order` may shuffle them."""
    statements = []
    for gate, output, pins in gates_of(netlist):
        if cells:
            connections = "".join(f".{name}({net}), " for name, net in zip(pin_names(gate), pins, strict=True))
            statements.append(f"  \\$_{gate.name}_  cell{output}(\n    {connections}.Y({output})\n  );")
        else:
            statements.append(f"  assign {output} = {EXPRESSIONS[gate].format(*pins)};")
    wires = "".join(f"  wire _{number}_;\n" for number in range(len(netlist.gates)))
    product = ", ".join(net_name(netlist, net) for net in reversed(netlist.outputs.tolist()))
    body = "\n".join(order([*statements, f"  assign p = {{ {product} }};"]))
    return f"""/* a comment */
module random(w, a, p);
{wires}  input [{netlist.act_bits - 1}:0] a;
  wire [{netlist.act_bits - 1}:0] a;
  output [{netlist.product_bits - 1}:0] p;
  wire [{netlist.product_bits - 1}:0] p;
  input [{netlist.weight_bits - 1}:0] w;
{body}
endmodule
"""


def truncated(netlist: Netlist, bits: int) -> str:
    """A module whose product lacks its lowest bits."""
    head, product = verilog(netlist).split("  assign p = {")
    nets, tail = product.split("}", maxsplit=1)
    kept = nets.split(",")[:-bits]
    return f"{head}  assign p = {{{', '.join(kept)}, {bits}'b0 }}{tail}"


def blif(netlist: Netlist, order: Callable[[list[str]], list[str]] = list, *, cells: bool = False) -> str:
    """A model with a statement for each gate; `order` may shuffle them."""
    statements = []
    for gate, output, pins in gates_of(netlist):
        if cells:
            connections = "".join(f"{name}={net} " for name, net in zip(pin_names(gate), pins, strict=True))
            statements.append(f".gate $_{gate.name}_ {connections}Y={output}")
        else:
            statements.append(f".names {' '.join([*pins, output])}\n{COVERS[gate]}")
    statements += [f".names {net_name(netlist, net)} p[{bit}]\n1 1" for bit, net in enumerate(netlist.outputs.tolist())]
    inputs = [net_name(netlist, net) for net in range(netlist.product_bits)]
    outputs = [f"p[{bit}]" for bit in range(netlist.product_bits)]
    body = "\n".join(order(statements))
    return f"# a comment\n.model random\n.inputs {' '.join(inputs)}\n.outputs \\\n {' '.join(outputs)}\n{body}\n.end\n"


def from_text(text: str, *, act_signed: bool = True, weight_signed: bool = True) -> Netlist:
    """Read a netlist, its ports guessed."""
    wiring = parse_blif(text) if ".model" in text else parse_verilog(text)
    ports = choose_ports(wiring, None, None, None)
    return assemble(wiring, ports, weight_signed=weight_signed, act_signed=act_signed)


def module(body: str, product: int = 2) -> str:
    """A Verilog module with these statements, of one bit by one bit."""
    return f"module m(w, a, p);\ninput w;\ninput a;\noutput [{product - 1}:0] p;\n{body}\nendmodule\n"


def model(body: str) -> str:
    """A BLIF model with these statements, of one bit by one bit."""
    return f".model m\n.inputs w a\n.outputs p[0] p[1]\n{body}\n.end\n"
