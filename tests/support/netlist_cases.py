"""Netlists: an oracle in plain Python, random ones, their text in files, and the programs that run them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from simulator import Kind
from simulator.gates.blif import parse_blif
from simulator.gates.cells import MOST_PINS, Gate
from simulator.gates.netlist import Netlist
from simulator.gates.verilog import parse_verilog
from simulator.gates.wiring import assemble, choose_ports

Faults = Mapping[int, frozenset[Kind]]
"""What is wrong at each location; nothing at those that are not listed."""

NO_FAULTS: Faults = {}

FUNCTIONS: dict[Gate, Callable[[int, int, int, int, int], int]] = {
    Gate.CONST_0: lambda ones, a, b, c, d: 0,
    Gate.CONST_1: lambda ones, a, b, c, d: ones,
    Gate.BUF: lambda ones, a, b, c, d: a,
    Gate.NOT: lambda ones, a, b, c, d: ones ^ a,
    Gate.AND: lambda ones, a, b, c, d: a & b,
    Gate.OR: lambda ones, a, b, c, d: a | b,
    Gate.NAND: lambda ones, a, b, c, d: ones ^ (a & b),
    Gate.NOR: lambda ones, a, b, c, d: ones ^ (a | b),
    Gate.XOR: lambda ones, a, b, c, d: a ^ b,
    Gate.XNOR: lambda ones, a, b, c, d: ones ^ a ^ b,
    Gate.ANDNOT: lambda ones, a, b, c, d: a & (ones ^ b),
    Gate.ORNOT: lambda ones, a, b, c, d: a | (ones ^ b),
    Gate.MUX: lambda ones, a, b, c, d: (c & b) | ((ones ^ c) & a),
    Gate.NMUX: lambda ones, a, b, c, d: ones ^ ((c & b) | ((ones ^ c) & a)),
    Gate.AOI3: lambda ones, a, b, c, d: ones ^ ((a & b) | c),
    Gate.OAI3: lambda ones, a, b, c, d: ones ^ ((a | b) & c),
    Gate.AOI4: lambda ones, a, b, c, d: ones ^ ((a & b) | (c & d)),
    Gate.OAI4: lambda ones, a, b, c, d: ones ^ ((a | b) & (c | d)),
}
"""What each gate makes of its pins, for all pairs at once; `ones` is true for every pair."""


def _disturbed(value: int, ones: int, kinds: frozenset[Kind]) -> int:
    if Kind.FLIP in kinds:
        value ^= ones
    if Kind.STUCK_AT_0 in kinds:
        value = 0
    if Kind.STUCK_AT_1 in kinds:
        value = ones
    return value


def product_bits(netlist: Netlist, faults: Faults = NO_FAULTS) -> list[int]:
    """The product's bits, least significant first, each for all pairs."""
    pairs = 2 ** (netlist.weight_bits + netlist.act_bits)
    ones = 2**pairs - 1
    places = [*range(netlist.act_bits, netlist.act_bits + netlist.weight_bits), *range(netlist.act_bits)]
    # In the order of the pairs an operand's bit is 0 for 2**place of them, then 1 for as many, and so on.
    nets = [ones // (2 ** (2**place) + 1) * 2 ** (2**place) for place in places]
    location = len(netlist.gates)
    for number, (code, inputs) in enumerate(zip(netlist.gates.tolist(), netlist.inputs.tolist(), strict=True)):
        pins = [0, 0, 0, 0]
        for pin, net in enumerate(inputs):
            if net != -1:
                pins[pin] = _disturbed(nets[net], ones, faults.get(location, frozenset()))
                location += 1
        nets.append(_disturbed(FUNCTIONS[Gate(code)](ones, *pins), ones, faults.get(number, frozenset())))
    return [nets[net] for net in netlist.outputs.tolist()]


def products(netlist: Netlist, faults: Faults = NO_FAULTS) -> list[int]:
    """The products of all pairs, as numbers."""
    size = netlist.weight_bits + netlist.act_bits
    columns = [format(bits, f"0{2**size}b")[::-1] for bits in reversed(product_bits(netlist, faults))]
    found = [int("".join(digits), 2) for digits in zip(*columns, strict=True)]
    if netlist.weight_signed or netlist.act_signed:
        return [number - 2**size if number >= 2 ** (size - 1) else number for number in found]
    return found


@st.composite
def netlists(draw: st.DrawFn, *, least_bits: int = 1, most_bits: int = 4, most_gates: int = 24) -> Netlist:
    """Gates of random kinds on random nets; they multiply nothing."""
    weight_bits, act_bits = draw(st.integers(least_bits, most_bits)), draw(st.integers(least_bits, most_bits))
    gates = draw(st.lists(st.sampled_from(Gate), max_size=most_gates))
    operands = weight_bits + act_bits
    inputs = np.full((len(gates), MOST_PINS), -1, np.int32)
    for number, gate in enumerate(gates):
        for pin in range(gate.pins):
            inputs[number, pin] = draw(st.integers(0, operands + number - 1))
    # Late gates see most of the faults, so most outputs are among them.
    nets = operands + len(gates)
    outputs = draw(st.lists(st.integers(1, min(nets, operands + 4)), min_size=operands, max_size=operands))
    return Netlist(
        gates=np.array(gates, np.uint8),
        inputs=inputs,
        outputs=nets - np.array(outputs, np.int32),
        weight_bits=weight_bits,
        act_bits=act_bits,
        weight_signed=draw(st.booleans()),
        act_signed=draw(st.booleans()),
    )


@st.composite
def faults_of(draw: st.DrawFn, netlist: Netlist, *, most: int = 5) -> Faults:
    """Up to `most` faulty locations, with one or more kinds of fault each."""
    if not netlist.locations:
        return {}
    places = draw(st.lists(st.integers(0, netlist.locations - 1), max_size=most, unique=True))
    return {place: draw(st.frozensets(st.sampled_from(Kind), min_size=1)) for place in places}


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


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test without a program; the reason says how to get it."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed: apt-get install {program}"
    )


def tool(folder: Path, *command: str) -> str:
    """Run a program in a folder and give what it printed; it must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def yosys(folder: Path, script: str) -> str:
    """Run a script of Yosys in a folder."""
    return tool(folder, "yosys", "-q", "-p", script)
