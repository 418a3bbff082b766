"""Reading BLIF: logic of one gate each (`.names`), and cells of Yosys (`.gate`, `.subckt`).

The format is that of "Berkeley Logic Interchange Format (BLIF)" (University of California, Berkeley, 1992), with the
`.conn` of Yosys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import permutations, product

from simulator.gates.cells import MOST_PINS, NOT_GATES, Gate, NetlistError, cell_gate, error_in_line
from simulator.gates.wiring import Cell, Net, Port, Source, Wiring

_WITHOUT_MEANING = (".attr", ".param", ".cname", ".default_input_arrival", ".default_output_required", ".area")
_UNDEFINED = "$undef"


def parse_blif(text: str) -> Wiring:
    """Read a circuit.

    Raises:
        NetlistError: it is not BLIF, or has something else than gates of `Gate`; the line is named.
    """
    wiring: Wiring | None = None
    ended = False
    statements = _Statements(text)
    for line, (command, *arguments) in statements:
        if ended:
            raise error_in_line(line, f"{command} after .end: expected one model; {NOT_GATES}")
        if command == ".model":
            if wiring is not None:
                raise error_in_line(line, f"a second .model: expected one without others inside; {NOT_GATES}")
            wiring = Wiring(arguments[0] if arguments else "circuit")
            continue
        if wiring is None:
            raise error_in_line(line, f"{command!r} before .model: expected a BLIF file")
        if command == ".end":
            ended = True
        elif command == ".inputs":
            for name in arguments:
                wiring.add_inputs(Port(name, (Net(name),)))
        elif command == ".outputs":
            wiring.outputs += [Port(name, (Net(name),)) for name in arguments]
        elif command == ".names":
            _add_names(wiring, line, arguments, statements.cover())
        elif command in (".gate", ".subckt"):
            _add_cell(wiring, line, arguments)
        elif command == ".conn":
            if len(arguments) != 2:
                raise error_in_line(line, f".conn of {len(arguments)} nets: expected two")
            wiring.connect(Net(arguments[1]), _source(arguments[0]), line)
        elif command == ".latch":
            raise error_in_line(line, "a .latch stores a value: expected gates only")
        elif command not in _WITHOUT_MEANING:
            raise error_in_line(line, f"{command!r} is not known: expected .names, .gate, .subckt or .conn")
    if wiring is None:
        raise NetlistError("there is no .model: expected a BLIF file")
    return wiring


class _Statements:
    """The statements of a file: line numbers and words, without comments and with continued lines joined."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._next = 0

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while self._next < len(self._lines):
            line, words = self._take()
            if words:
                yield line, words

    def _take(self) -> tuple[int, list[str]]:
        line, parts = self._next + 1, []
        continued = True
        while continued and self._next < len(self._lines):
            text = self._lines[self._next].partition("#")[0].rstrip()
            self._next += 1
            continued = text.endswith("\\")
            parts.append(text.removesuffix("\\"))
        return line, " ".join(parts).split()

    def cover(self) -> list[tuple[int, list[str]]]:
        """The rows that follow, up to the next statement that starts with a dot."""
        rows = []
        while self._next < len(self._lines):
            before = self._next
            line, words = self._take()
            if words and words[0].startswith("."):
                self._next = before
                break
            if words:
                rows.append((line, words))
        return rows


def _source(name: str) -> Source:
    return None if name == _UNDEFINED else Net(name)


def _add_names(wiring: Wiring, line: int, nets: list[str], rows: list[tuple[int, list[str]]]) -> None:
    if not nets:
        raise error_in_line(line, ".names without a net: expected its inputs and its output")
    *pins, output = nets
    if len(pins) > MOST_PINS:
        raise error_in_line(line, f".names of {len(pins)} inputs is no gate: {NOT_GATES}")
    table = _table(line, len(pins), rows)
    if output == _UNDEFINED:
        return
    if len(set(table)) == 1:
        wiring.connect(Net(output), table[0], line)
        return
    found = _gate(table)
    if found is None:
        raise error_in_line(line, f"the logic of {output} is none of the gates: {NOT_GATES}")
    gate, order = found
    if gate is Gate.BUF:
        # Yosys writes connections this way.
        wiring.connect(Net(output), _source(pins[0]), line)
    else:
        wiring.add(Cell(gate, Net(output), tuple(_source(pins[pin]) for pin in order), line))


def _table(line: int, pins: int, rows: list[tuple[int, list[str]]]) -> tuple[bool, ...]:
    """Values for every combination of the pins, the first pin in the highest place."""
    listed: set[int] = set()
    values = set()
    for row_line, words in rows:
        pattern, value = ("", words[0]) if len(words) == 1 else (words[0], words[1])
        if len(words) > 2 or len(pattern) != pins or set(pattern) - set("01-") or value not in ("0", "1"):
            row = " ".join(words)[:40]
            raise error_in_line(row_line, f"{row!r} in .names: expected {pins} of the signs 0, 1, -, then 0 or 1")
        values.add(value)
        choices = [("0", "1") if bit == "-" else (bit,) for bit in pattern]
        listed.update(int("0" + "".join(bits), 2) for bits in product(*choices))
    if len(values) > 1:
        raise error_in_line(line, ".names has rows for 0 and rows for 1: expected one of them")
    # Rows that end in 0 list where the value is 0.
    return tuple((place in listed) != (values == {"0"}) for place in range(1 << pins))


@cache
def _gate(table: tuple[bool, ...]) -> tuple[Gate, tuple[int, ...]] | None:
    """A gate with this function, and which input is on which of its pins; preferably in the order as it stands."""
    pins = len(table).bit_length() - 1
    for order in permutations(range(pins)):
        for gate in Gate:
            if gate.pins == pins and table == tuple(
                _gate_value(gate, *(place >> (pins - 1 - pin) & 1 for pin in order)) for place in range(1 << pins)
            ):
                return gate, order
    return None


def _gate_value(gate: Gate, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> bool:
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


def _add_cell(wiring: Wiring, line: int, arguments: list[str]) -> None:
    if not arguments:
        raise error_in_line(line, "a cell without a type: expected one such as $_AND_")
    connected: dict[str, str] = {}
    for argument in arguments[1:]:
        pin, equals, net = argument.partition("=")
        if not equals or not pin or not net or pin in connected:
            raise error_in_line(line, f"{argument[:40]!r}: expected each pin once, as PIN=NET")
        connected[pin] = net
    gate, pins = cell_gate(arguments[0], list(connected), line)
    wiring.add(Cell(gate, Net(connected["Y"]), tuple(_source(connected[pin]) for pin in pins), line))
