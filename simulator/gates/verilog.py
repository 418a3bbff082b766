"""Reading structural Verilog: gate cells of Yosys, gate primitives, and assignments of one operator or a few.

What `write_verilog` of Yosys writes is read, with and without `-noexpr`; IEEE 1364-2005 says what the rest means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from simulator.gates.cells import NOT_GATES, Gate, NetlistError, cell_gate, error_in_line
from simulator.gates.wiring import Cell, Net, Port, Source, Wiring

MOST_BITS = 4096
"""Longest vector that is looked at bit by bit."""

_LONGEST_WORD = 4096
_MOST_DIGITS = 9
_DEEPEST = 64

_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|`(?:timescale|default_nettype|celldefine|endcelldefine|resetall)\b[^\n]*)"
    r"|(?P<comment>/\*|\(\*(?!\s*\)))"
    r"|(?P<escaped>\\\S+)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_$]*)"
    r"|(?P<number>(?:[0-9][0-9_]*\s*)?'\s*[sS]?[bodhBODH]\s*[0-9a-fA-FxXzZ?_]+|[0-9][0-9_]*)"
    r"|(?P<sign>~\^|\^~|[()\[\]{},;:.=~&|^?!#@<>*+/%$`\"'-])",
    re.DOTALL,
)
_BASES = {"b": 1, "o": 3, "h": 4}
_NET_TYPES = ("wire", "logic")
_PRIMITIVES = {name: Gate[name.upper()] for name in ("buf", "not", "and", "or", "nand", "nor", "xor", "xnor")}
_OTHER_ITEMS = """
    reg always always_comb always_ff initial function task generate genvar parameter localparam specify defparam integer
    inout supply0 supply1 tri for if begin
""".split()  # noqa: SIM905


def parse_verilog(text: str) -> Wiring:
    """Read a module.

    Raises:
        NetlistError: it is not Verilog, or has something else than gates of `Gate`; the line is named.
    """
    return _Parser(text).module()


class _Token(NamedTuple):
    kind: str
    """`name`, `number`, `sign` or `end`."""
    text: str
    line: int
    plain: bool
    """Without a backslash, so that a name can be a keyword."""


def _tokens(text: str) -> Iterator[_Token]:
    """The words of a file without comments, attributes and white space, and an `end` that is repeated."""
    place, line, last_line = 0, 1, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise error_in_line(line, f"{text[place]!r} is not Verilog")
        kind, word = str(match.lastgroup), match.group()
        if kind == "comment":
            end = text.find("*/" if word == "/*" else "*)", place + 2)
            if end < 0:
                raise error_in_line(line, f"{word} without an end")
            word = text[place : end + 2]
        elif kind != "space":
            if len(word) > _LONGEST_WORD:
                raise error_in_line(line, f"a word of {len(word)} characters: expected at most {_LONGEST_WORD}")
            plain = kind != "escaped"
            yield _Token(kind if plain else "name", word if plain else word[1:], line, plain)
            last_line = line
        place += len(word)
        line += word.count("\n")
    while True:
        yield _Token("end", "the end of the file", last_line, False)


class _Words:
    """Words one by one; none is looked at before it is needed."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._ahead: _Token | None = None

    def peek(self) -> _Token:
        if self._ahead is None:
            self._ahead = next(self._tokens)
        return self._ahead

    def take(self) -> _Token:
        token = self.peek()
        if token.kind == "end":
            raise error_in_line(token.line, "the file ends in the middle of a module")
        self._ahead = None
        return token

    def next_is(self, *texts: str) -> bool:
        return self.peek().plain and self.peek().text in texts

    def accept(self, *texts: str) -> bool:
        """Take the next word if it is one of these."""
        if not self.next_is(*texts):
            return False
        self.take()
        return True

    def unexpected(self, expected: str) -> NetlistError:
        token = self.peek()
        return error_in_line(token.line, f"{token.text[:40]!r}: expected {expected}")

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.unexpected(repr(text))

    def identifier(self, what: str) -> str:
        if self.peek().kind != "name":
            raise self.unexpected(what)
        return self.take().text

    def integer(self) -> int:
        """A number without a base."""
        digits = self.peek().text.replace("_", "")
        if not digits.isascii() or not digits.isdigit() or len(digits) > _MOST_DIGITS:
            raise self.unexpected("a number")
        self.take()
        return int(digits)


class _Node:
    """An operator on single bits: `~`, `&`, `|`, `^`, or `?` with the condition first."""

    def __init__(self, operator: str, operands: tuple[_Bit, ...]) -> None:
        self.operator = operator
        self.operands = operands
        self.depth: int = 1 + max(operand.depth if isinstance(operand, _Node) else 0 for operand in operands)


_Bit = Source | _Node


def _gate_of(node: _Node) -> tuple[Gate, tuple[_Bit, ...]]:
    """The gate for an operator and for those below that the same gate computes, as Yosys writes it; and its pins."""
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
        if isinstance(other, _Node) and other.operator == "~" and not isinstance(other.operands[0], _Node):
            return with_not, (kept, other.operands[0])
    return plain, (left, right)


def _inverted(inner: _Bit) -> tuple[Gate, tuple[_Bit, ...]]:
    if not isinstance(inner, _Node) or inner.operator == "~":
        return Gate.NOT, (inner,)
    if inner.operator == "?":
        condition, yes, no = inner.operands
        return Gate.NMUX, (no, yes, condition)
    left, right = inner.operands
    if inner.operator == "^":
        return Gate.XNOR, (left, right)
    below = "|" if inner.operator == "&" else "&"
    two, three, four = (Gate.NAND, Gate.OAI3, Gate.OAI4) if below == "|" else (Gate.NOR, Gate.AOI3, Gate.AOI4)
    left_pair = left.operands if isinstance(left, _Node) and left.operator == below else None
    right_pair = right.operands if isinstance(right, _Node) and right.operator == below else None
    if left_pair and right_pair:
        return four, (*left_pair, *right_pair)
    if left_pair:
        return three, (*left_pair, right)
    if right_pair:
        return three, (*right_pair, left)
    return two, (left, right)


def _literal(text: str, line: int) -> list[Source]:
    """The bits of a constant such as 4'b0101, least significant first; x and z are None."""
    width_text, _, rest = text.partition("'")
    rest = rest.strip().lstrip("sS").lower().replace("_", "").replace(" ", "")
    width_digits = width_text.strip().replace("_", "")
    width = int(width_digits) if width_digits and len(width_digits) <= 4 else 0
    if not rest or not 1 <= width <= MOST_BITS:
        raise error_in_line(line, f"constant {text[:40]!r}: expected a width of 1..{MOST_BITS} bits, as in 1'b0")
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
        raise error_in_line(line, f"constant {text[:40]!r} has digits that its base does not have") from None
    padding = None if bits and bits[-1] is None else False
    bits += [padding] * (width - len(bits))
    if any(bit is True for bit in bits[width:]):
        raise error_in_line(line, f"constant {text[:40]!r} does not fit into {width} bits")
    return bits[:width]


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


class _Parser(_Words):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.wiring = Wiring("")
        self.ranges: dict[str, _Range | None] = {}
        self.implicit: set[str] = set()
        self.directions: dict[str, str] = {}
        self.header: list[str] = []
        self.fresh = 0

    def module(self) -> Wiring:
        """The whole file."""
        self.expect("module")
        self.wiring.model = self.identifier("a module's name")
        if self.accept("("):
            self._header()
        self.expect(";")
        while not self.accept("endmodule"):
            self._item()
        after = self.peek()
        if after.kind != "end":
            raise error_in_line(after.line, f"{after.text[:40]!r} after endmodule: expected one module; {NOT_GATES}")
        for name in self.header:
            if name not in self.directions:
                raise NetlistError(f"port {name} is neither an input nor an output")
        # In the order of the header, and inputs drive their nets before anything else can.
        self.wiring.outputs = [
            Port(name, self._nets(name)) for name in self.header if self.directions[name] == "output"
        ]
        self.wiring.inputs.sort(key=lambda port: self.header.index(port.name))
        return self.wiring

    def _header(self) -> None:
        """Names of ports, or their declarations."""
        if self.accept(")"):
            return
        direction: str | None = None
        bits: _Range | None = None
        while True:
            if self.next_is("input", "output"):
                direction = self.take().text
                bits = self._type()
            line = self.peek().line
            name = self.identifier("a port's name")
            if name in self.header:
                raise error_in_line(line, f"port {name} is listed twice")
            self.header.append(name)
            if direction is not None:
                self._declare_port(name, direction, bits, line)
            if self.accept(")"):
                return
            self.expect(",")

    def _item(self) -> None:
        """A declaration, an assignment or an instance."""
        if self.next_is(*_NET_TYPES):
            self._declarations(None)
            return
        token = self.take()
        if token.plain and token.text in ("input", "output"):
            self._declarations(token.text)
        elif token.plain and token.text == "assign":
            while True:
                left = self._expression()
                self.expect("=")
                self._assign(left, self._expression(), token.line)
                if not self.accept(","):
                    break
            self.expect(";")
        elif token.plain and token.text in _OTHER_ITEMS:
            raise error_in_line(token.line, f"{token.text!r} is not structural Verilog: {NOT_GATES}")
        elif token.kind == "name":
            self._instances(token)
        else:
            raise error_in_line(token.line, f"{token.text[:40]!r}: expected a declaration, an assign or a gate")

    def _type(self) -> _Range | None:
        """What stands between a direction and a name."""
        self.accept(*_NET_TYPES)
        self.accept("signed")
        if not self.accept("["):
            return None
        most = self.integer()
        self.expect(":")
        bits = _Range(most, self.integer())
        self.expect("]")
        return bits

    def _declarations(self, direction: str | None) -> None:
        bits = self._type()
        while True:
            line = self.peek().line
            name = self.identifier("a net's name")
            if direction is None:
                self._declare(name, bits, line)
                if self.accept("="):
                    self._assign(list(self._nets(name)), self._expression(), line)
            else:
                if name not in self.header:
                    raise error_in_line(line, f"{direction} {name} is not among the module's ports")
                self._declare_port(name, direction, bits, line)
            if self.accept(";"):
                return
            self.expect(",")

    def _declare(self, name: str, bits: _Range | None, line: int) -> None:
        if self.ranges.get(name, bits) != bits or (bits is not None and name in self.implicit):
            raise error_in_line(line, f"{name} is declared again with another range, or after it was used")
        self.ranges[name] = bits

    def _declare_port(self, name: str, direction: str, bits: _Range | None, line: int) -> None:
        if name in self.directions:
            raise error_in_line(line, f"port {name} is declared twice")
        if bits is not None and bits.width > MOST_BITS:
            raise error_in_line(line, f"port {name} has {bits.width} bits: expected at most {MOST_BITS}")
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

    def _assign(self, left: Sequence[_Bit], right: Sequence[_Bit], line: int) -> None:
        if len(left) != len(right):
            raise error_in_line(line, f"{len(right)} bits are assigned to {len(left)}: expected as many")
        for target, bit in zip(left, right, strict=True):
            if not isinstance(target, Net):
                raise error_in_line(line, "something is assigned to what is no net")
            if isinstance(bit, _Node):
                self._gate(bit, target, line)
            else:
                self.wiring.connect(target, bit, line)

    def _gate(self, node: _Node, output: Net, line: int) -> None:
        """The gate that an operator is; operators below it are gates of their own."""
        gate, operands = _gate_of(node)
        pins: list[Source] = []
        for operand in operands:
            if isinstance(operand, _Node):
                self.fresh += 1
                net = Net(f"{output}#{self.fresh}")
                pins.append(net)
                self._gate(operand, net, line)
            else:
                pins.append(operand)
        self.wiring.add(Cell(gate, output, tuple(pins), line))

    def _instances(self, type_: _Token) -> None:
        if self.next_is("#"):
            raise error_in_line(type_.line, f"{type_.text[:40]} has parameters: {NOT_GATES}")
        while True:
            line = self.peek().line
            name = "" if self.next_is("(") else self.identifier("a name or (")
            self.expect("(")
            if type_.plain and type_.text in _PRIMITIVES:
                self._primitive(_PRIMITIVES[type_.text], line)
            else:
                self._cell(type_.text, name, line)
            if self.accept(";"):
                return
            self.expect(",")

    def _primitive(self, gate: Gate, line: int) -> None:
        """The pins of a gate primitive: its output and then its inputs."""
        output, pins = self._pin(line), []
        while not self.accept(")"):
            self.expect(",")
            pins.append(self._pin(line))
        if len(pins) != gate.pins or not isinstance(output, Net):
            expected = f"an output net and {gate.pins} inputs"
            raise error_in_line(line, f"{gate.name.lower()} of {len(pins)} inputs: expected {expected}")
        self.wiring.add(Cell(gate, output, tuple(pins), line))

    def _cell(self, type_: str, name: str, line: int) -> None:
        """The pins of a cell, by name."""
        connected: dict[str, Source] = {}
        while not self.accept(")"):
            if connected:
                self.expect(",")
            self.expect(".")
            pin = self.identifier("a pin's name")
            if pin in connected:
                raise error_in_line(self.peek().line, f"pin {pin} is connected twice")
            self.expect("(")
            # An output that nobody reads has nothing in its brackets.
            connected[pin] = Net(f"{name}.{pin}") if self.next_is(")") else self._pin(line)
            self.expect(")")
        gate, pins = cell_gate(type_, list(connected), line)
        output = connected["Y"]
        if not isinstance(output, Net):
            raise error_in_line(line, f"output Y of {type_} drives a constant: expected a net")
        self.wiring.add(Cell(gate, output, tuple(connected[pin] for pin in pins), line))

    def _pin(self, line: int) -> Source:
        bits = self._expression()
        if len(bits) != 1 or isinstance(bits[0], _Node):
            raise error_in_line(line, f"expected one net or one constant bit on each pin; {NOT_GATES}")
        return bits[0]

    def _expression(self, depth: int = 0) -> list[_Bit]:
        """`c ? b : a`, and what binds tighter."""
        line = self.peek().line
        if depth > _DEEPEST:
            raise error_in_line(line, f"more than {_DEEPEST} brackets or operators inside one another")
        condition = self._binary(("|", "^", "&"), depth)
        if not self.accept("?"):
            return condition
        yes = self._expression(depth + 1)
        self.expect(":")
        return [self._node("?", line, condition, yes, self._expression(depth + 1))]

    def _binary(self, operators: tuple[str, ...], depth: int) -> list[_Bit]:
        if not operators:
            return self._unary(depth)
        spelt = ("^", "~^", "^~") if operators[0] == "^" else operators[:1]
        left = self._binary(operators[1:], depth)
        while self.next_is(*spelt):
            operator = self.take()
            node = self._node(operators[0], operator.line, left, self._binary(operators[1:], depth))
            left = [self._node("~", operator.line, [node]) if operator.text in ("~^", "^~") else node]
        if self.next_is(">", "<", "+", "-", "*", "/", "%"):
            operator = self.take()
            raise error_in_line(operator.line, f"operator {operator.text} is no gate: {NOT_GATES}")
        return left

    def _unary(self, depth: int) -> list[_Bit]:
        if not self.next_is("~", "!"):
            return self._primary(depth)
        line = self.take().line
        if depth > _DEEPEST:
            raise error_in_line(line, f"more than {_DEEPEST} brackets or operators inside one another")
        return [self._node("~", line, self._unary(depth + 1))]

    def _node(self, operator: str, line: int, *operands: Sequence[_Bit]) -> _Node:
        for bits in operands:
            if len(bits) != 1:
                raise error_in_line(line, f"operator {operator} on {len(bits)} bits: expected one; {NOT_GATES}")
        node = _Node(operator, tuple(bits[0] for bits in operands))
        if node.depth > _DEEPEST:
            raise error_in_line(line, f"more than {_DEEPEST} operators inside one another")
        return node

    def _primary(self, depth: int) -> list[_Bit]:
        """A net, some of its bits, a constant, `{...}` or `(...)`."""
        if self.accept("("):
            bits = self._expression(depth + 1)
            self.expect(")")
            return bits
        if self.accept("{"):
            bits = self._expression(depth + 1)
            while self.accept(","):
                # What is written first is most significant.
                bits = self._expression(depth + 1) + bits
                if len(bits) > MOST_BITS:
                    raise error_in_line(self.peek().line, f"more than {MOST_BITS} bits in one vector")
            self.expect("}")
            return bits
        token = self.peek()
        if token.kind == "number":
            return list(_literal(self.take().text, token.line))
        if self.next_is("$"):
            raise error_in_line(token.line, f"functions such as $signed are no gates: {NOT_GATES}")
        return self._selected(self.identifier("a net or a constant"), token.line)

    def _selected(self, name: str, line: int) -> list[_Bit]:
        """A net or some bits of it."""
        if name not in self.ranges:
            self.ranges[name] = None
            self.implicit.add(name)
        bits = self.ranges[name]
        if not self.accept("["):
            if bits is not None and bits.width > MOST_BITS:
                raise error_in_line(line, f"{name} has {bits.width} bits: expected at most {MOST_BITS}")
            return list(self._nets(name))
        most = least = self.integer()
        if self.accept(":"):
            least = self.integer()
        self.expect("]")
        if bits is None or most not in bits or least not in bits or (most - least) * bits.step < 0:
            declared = "a single bit" if bits is None else f"[{bits.most}:{bits.least}]"
            raise error_in_line(line, f"{name}[{most}:{least}] is outside: {name} is {declared}")
        if abs(most - least) >= MOST_BITS:
            raise error_in_line(line, f"{name}[{most}:{least}] has more than {MOST_BITS} bits")
        return [Net(name, index) for index in range(least, most + bits.step, bits.step)]
