"""Reading structural Verilog: gate cells of Yosys, gate primitives, and assignments of one operator or a few.

What `write_verilog` of Yosys writes is read, with and without `-noexpr`; IEEE 1364-2005 says what the rest means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simulator.gates.cells import NOT_GATES, cell_gate
from simulator.gates.expressions import MOST_BITS, Bit, Node, gate_of, literal
from simulator.gates.netlist import Gate, NetlistError
from simulator.gates.tokens import Token, TokenReader, tokens_of
from simulator.gates.wiring import Cell, Net, Port, Source, Wiring

_NET_TYPES = ("wire", "logic")
_PRIMITIVES = {name: Gate[name.upper()] for name in ("buf", "not", "and", "or", "nand", "nor", "xor", "xnor")}
_OTHER_ITEMS = """
    reg always always_comb always_ff initial function task generate genvar parameter localparam specify defparam integer
    inout supply0 supply1 tri for if begin
""".split()  # noqa: SIM905
_DEEPEST = 64


class _Range(NamedTuple):
    """Indices of a vector's bits, as declared."""

    most: int
    least: int

    @property
    def step(self) -> int:
        return 1 if self.most >= self.least else -1

    @property
    def width(self) -> int:
        return abs(self.most - self.least) + 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and min(self) <= index <= max(self)


def parse_verilog(text: str) -> Wiring:
    """Read a module.

    Args:
        text: the content of a file.

    Raises:
        NetlistError: it is not Verilog, or has something else than gates of `Gate`; the line is named.
    """
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = TokenReader(tokens_of(text))
        self.wiring = Wiring("")
        self.ranges: dict[str, _Range | None] = {}
        self.implicit: set[str] = set()
        self.directions: dict[str, str] = {}
        self.header: list[str] = []
        self.fresh = 0

    def module(self) -> Wiring:
        """The whole file."""
        self.tokens.expect("module")
        self.wiring.model = self.tokens.identifier("a module's name")
        if self.tokens.accept("("):
            self._header()
        self.tokens.expect(";")
        while not self.tokens.accept("endmodule"):
            self._item()
        if not self.tokens.at_end:
            token = self.tokens.take()
            raise NetlistError(
                f"line {token.line}: {token.text[:40]!r} after endmodule: expected one module; {NOT_GATES}"
            )
        for name in self.header:
            if name not in self.directions:
                raise NetlistError(f"port {name} is neither an input nor an output")
        # In the order of the header, and inputs drive their nets before anything else can.
        self.wiring.outputs = [
            Port(name, self._nets(name)) for name in self.header if self.directions[name] == "output"
        ]
        order = [name for name in self.header if self.directions[name] == "input"]
        self.wiring.inputs.sort(key=lambda port: order.index(port.name))
        return self.wiring

    def _header(self) -> None:
        """Names of ports, or their declarations."""
        if self.tokens.accept(")"):
            return
        direction: str | None = None
        bits: _Range | None = None
        while True:
            if self.tokens.next_is("input", "output"):
                direction = self.tokens.take().text
                bits = self._type()
            line = self.tokens.line
            name = self.tokens.identifier("a port's name")
            if name in self.header:
                raise NetlistError(f"line {line}: port {name} is listed twice")
            self.header.append(name)
            if direction is not None:
                self._declare_port(name, direction, bits, line)
            if self.tokens.accept(")"):
                return
            self.tokens.expect(",")

    def _item(self) -> None:
        """A declaration, an assignment or an instance."""
        token = self.tokens.take()
        if token.text in ("input", "output") and token.plain:
            self._declarations(token.text)
        elif token.text in _NET_TYPES and token.plain:
            self.tokens.unread()
            self._declarations(None)
        elif token.text == "assign" and token.plain:
            while True:
                left = self._expression()
                self.tokens.expect("=")
                self._assign(left, self._expression(), token.line)
                if not self.tokens.accept(","):
                    break
            self.tokens.expect(";")
        elif token.text in _OTHER_ITEMS and token.plain:
            raise NetlistError(f"line {token.line}: {token.text!r} is not structural Verilog: {NOT_GATES}")
        elif token.kind == "name":
            self._instances(token)
        else:
            raise NetlistError(f"line {token.line}: {token.text[:40]!r}: expected a declaration, an assign or a gate")

    def _type(self) -> _Range | None:
        """What stands between a direction and a name."""
        self.tokens.accept(*_NET_TYPES)
        self.tokens.accept("signed")
        if not self.tokens.accept("["):
            return None
        most = self.tokens.integer()
        self.tokens.expect(":")
        bits = _Range(most, self.tokens.integer())
        self.tokens.expect("]")
        return bits

    def _declarations(self, direction: str | None) -> None:
        bits = self._type()
        while True:
            line = self.tokens.line
            name = self.tokens.identifier("a net's name")
            if direction is None:
                self._declare(name, bits, line)
            else:
                if name not in self.header:
                    raise NetlistError(f"line {line}: {direction} {name} is not among the module's ports")
                self._declare_port(name, direction, bits, line)
            if direction is None and self.tokens.accept("="):
                self._assign(list(self._nets(name)), self._expression(), line)
            if self.tokens.accept(";"):
                return
            self.tokens.expect(",")

    def _declare(self, name: str, bits: _Range | None, line: int) -> None:
        if self.ranges.get(name, bits) != bits or (bits is not None and name in self.implicit):
            raise NetlistError(f"line {line}: {name} is declared again with another range, or after it was used")
        self.ranges[name] = bits

    def _declare_port(self, name: str, direction: str, bits: _Range | None, line: int) -> None:
        if name in self.directions:
            raise NetlistError(f"line {line}: port {name} is declared twice")
        if bits is not None and bits.width > MOST_BITS:
            raise NetlistError(f"line {line}: port {name} has {bits.width} bits: expected at most {MOST_BITS}")
        self._declare(name, bits, line)
        self.directions[name] = direction
        if direction == "input":
            self.wiring.add_inputs(Port(name, self._nets(name)))

    def _nets(self, name: str) -> tuple[Net, ...]:
        """All bits of a name, least significant first."""
        bits = self.ranges.get(name)
        if bits is None:
            return (Net(name),)
        return tuple(Net(name, index) for index in range(bits.least, bits.most + bits.step, bits.step))

    def _assign(self, left: Sequence[Bit], right: Sequence[Bit], line: int) -> None:
        if len(left) != len(right):
            raise NetlistError(f"line {line}: {len(right)} bits are assigned to {len(left)}: expected as many")
        for target, bit in zip(left, right, strict=True):
            if not isinstance(target, Net):
                raise NetlistError(f"line {line}: something is assigned to what is no net")
            if isinstance(bit, Node):
                self._gate(bit, target, line)
            else:
                self.wiring.connect(target, bit, line)

    def _gate(self, node: Node, output: Net, line: int) -> None:
        """The gate that an operator is; operators below it are gates of their own."""
        gate, operands = gate_of(node)
        pins: list[Source] = []
        for operand in operands:
            if isinstance(operand, Node):
                self.fresh += 1
                pins.append(Net(f"{output}#{self.fresh}"))
                self._gate(operand, Net(f"{output}#{self.fresh}"), line)
            else:
                pins.append(operand)
        self.wiring.add(Cell(gate, output, tuple(pins), line))

    def _instances(self, type_: Token) -> None:
        if self.tokens.next_is("#"):
            raise NetlistError(f"line {type_.line}: {type_.text[:40]} has parameters: {NOT_GATES}")
        while True:
            line = self.tokens.line
            name = "" if self.tokens.next_is("(") else self.tokens.identifier("a name or (")
            self.tokens.expect("(")
            if type_.text in _PRIMITIVES and type_.plain:
                self._primitive(_PRIMITIVES[type_.text], line)
            else:
                self._cell(type_.text, name, line)
            if self.tokens.accept(";"):
                return
            self.tokens.expect(",")

    def _primitive(self, gate: Gate, line: int) -> None:
        """The pins of a gate primitive: its output and then its inputs."""
        nets = [self._pin(line)]
        while not self.tokens.accept(")"):
            self.tokens.expect(",")
            nets.append(self._pin(line))
        output, *pins = nets
        if len(pins) != gate.pins or not isinstance(output, Net):
            raise NetlistError(
                f"line {line}: {gate.name.lower()} of {len(pins)} inputs: expected an output net and {gate.pins} inputs"
            )
        self.wiring.add(Cell(gate, output, tuple(pins), line))

    def _cell(self, type_: str, name: str, line: int) -> None:
        """The pins of a cell, by name."""
        connected: dict[str, Source] = {}
        while not self.tokens.accept(")"):
            if connected:
                self.tokens.expect(",")
            self.tokens.expect(".")
            pin = self.tokens.identifier("a pin's name")
            if pin in connected:
                raise NetlistError(f"line {self.tokens.line}: pin {pin} is connected twice")
            self.tokens.expect("(")
            # An output that nobody reads has nothing in its brackets.
            connected[pin] = Net(f"{name}.{pin}") if self.tokens.next_is(")") else self._pin(line)
            self.tokens.expect(")")
        try:
            gate, pins = cell_gate(type_, list(connected))
        except NetlistError as error:
            raise NetlistError(f"line {line}: {error}") from None
        output = connected["Y"]
        if not isinstance(output, Net):
            raise NetlistError(f"line {line}: output Y of {type_} drives a constant: expected a net")
        self.wiring.add(Cell(gate, output, tuple(connected[pin] for pin in pins), line))

    def _pin(self, line: int) -> Source:
        bits = self._expression()
        if len(bits) != 1 or isinstance(bits[0], Node):
            raise NetlistError(f"line {line}: expected one net or one constant bit on each pin; {NOT_GATES}")
        return bits[0]

    def _expression(self, depth: int = 0) -> list[Bit]:
        """`c ? b : a`, and what binds tighter."""
        line = self.tokens.line
        if depth > _DEEPEST:
            raise NetlistError(f"line {line}: more than {_DEEPEST} brackets or operators inside one another")
        condition = self._binary(("|", "^", "&"), depth)
        if not self.tokens.accept("?"):
            return condition
        yes = self._expression(depth + 1)
        self.tokens.expect(":")
        return [self._node("?", line, condition, yes, self._expression(depth + 1))]

    def _binary(self, operators: tuple[str, ...], depth: int) -> list[Bit]:
        if not operators:
            return self._unary(depth)
        spelt = ("^", "~^", "^~") if operators[0] == "^" else operators[:1]
        left = self._binary(operators[1:], depth)
        while self.tokens.next_is(*spelt):
            operator = self.tokens.take()
            node = self._node(operators[0], operator.line, left, self._binary(operators[1:], depth))
            left = [self._node("~", operator.line, [node]) if operator.text in ("~^", "^~") else node]
        if self.tokens.next_is(">", "<", "+", "-", "*", "/", "%"):
            raise NetlistError(f"line {self.tokens.line}: operator {self.tokens.take().text} is no gate: {NOT_GATES}")
        return left

    def _unary(self, depth: int) -> list[Bit]:
        if not self.tokens.next_is("~", "!"):
            return self._primary(depth)
        line = self.tokens.take().line
        if depth > _DEEPEST:
            raise NetlistError(f"line {line}: more than {_DEEPEST} brackets or operators inside one another")
        return [self._node("~", line, self._unary(depth + 1))]

    def _node(self, operator: str, line: int, *operands: Sequence[Bit]) -> Node:
        for bits in operands:
            if len(bits) != 1:
                raise NetlistError(f"line {line}: operator {operator} on {len(bits)} bits: expected one; {NOT_GATES}")
        node = Node(operator, tuple(bits[0] for bits in operands))
        if node.depth > _DEEPEST:
            raise NetlistError(f"line {line}: more than {_DEEPEST} operators inside one another")
        return node

    def _primary(self, depth: int) -> list[Bit]:
        """A net, some of its bits, a constant, `{...}` or `(...)`."""
        if self.tokens.accept("("):
            bits = self._expression(depth + 1)
            self.tokens.expect(")")
            return bits
        if self.tokens.accept("{"):
            bits = self._expression(depth + 1)
            while self.tokens.accept(","):
                # What is written first is most significant.
                bits = self._expression(depth + 1) + bits
                if len(bits) > MOST_BITS:
                    raise NetlistError(f"line {self.tokens.line}: more than {MOST_BITS} bits in one vector")
            self.tokens.expect("}")
            return bits
        if self.tokens.kind == "number":
            token = self.tokens.take()
            return list(literal(token.text, token.line))
        line = self.tokens.line
        if self.tokens.next_is("$"):
            raise NetlistError(f"line {line}: functions such as $signed are no gates: {NOT_GATES}")
        return self._selected(self.tokens.identifier("a net or a constant"), line)

    def _selected(self, name: str, line: int) -> list[Bit]:
        """A net or some bits of it."""
        if name not in self.ranges:
            self.ranges[name] = None
            self.implicit.add(name)
        bits = self.ranges[name]
        if not self.tokens.accept("["):
            if bits is not None and bits.width > MOST_BITS:
                raise NetlistError(f"line {line}: {name} has {bits.width} bits: expected at most {MOST_BITS}")
            return list(self._nets(name))
        most = least = self.tokens.integer()
        if self.tokens.accept(":"):
            least = self.tokens.integer()
        self.tokens.expect("]")
        if bits is None or most not in bits or least not in bits or (most - least) * bits.step < 0:
            declared = "a single bit" if bits is None else f"[{bits.most}:{bits.least}]"
            raise NetlistError(f"line {line}: {name}[{most}:{least}] is outside: {name} is {declared}")
        if abs(most - least) >= MOST_BITS:
            raise NetlistError(f"line {line}: {name}[{most}:{least}] has more than {MOST_BITS} bits")
        return [Net(name, index) for index in range(least, most + bits.step, bits.step)]
