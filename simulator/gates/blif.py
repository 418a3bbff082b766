"""Reading BLIF: logic of one gate each (`.names`), and cells of Yosys (`.gate`, `.subckt`).

The format is that of "Berkeley Logic Interchange Format (BLIF)" (University of California, Berkeley, 1992), with the
`.conn` of Yosys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import permutations, product

from simulator.gates.cells import NOT_GATES, cell_gate, gate_value
from simulator.gates.netlist import MOST_PINS, Gate, NetlistError
from simulator.gates.wiring import Cell, Net, Port, Source, Wiring

_WITHOUT_MEANING = (".attr", ".param", ".cname", ".default_input_arrival", ".default_output_required", ".area")
_UNDEFINED = "$undef"


def parse_blif(text: str) -> Wiring:
    """Read a circuit.

    Args:
        text: the content of a file.

    Raises:
        NetlistError: it is not BLIF, or has something else than gates of `Gate`; the line is named.
    """
    wiring: Wiring | None = None
    ended = False
    outputs: list[Port] = []
    statements = _Statements(text)
    for line, words in statements:
        command, arguments = words[0], words[1:]
        if ended:
            raise NetlistError(f"line {line}: {command} after .end: expected one model; {NOT_GATES}")
        if command == ".model":
            if wiring is not None:
                raise NetlistError(f"line {line}: a second .model: expected one without others inside; {NOT_GATES}")
            wiring = Wiring(arguments[0] if arguments else "circuit")
            continue
        if wiring is None:
            raise NetlistError(f"line {line}: {command!r} before .model: expected a BLIF file")
        if command == ".end":
            ended = True
        elif command == ".inputs":
            for name in arguments:
                wiring.add_inputs(Port(name, (Net(name),)))
        elif command == ".outputs":
            outputs += [Port(name, (Net(name),)) for name in arguments]
        elif command == ".names":
            _add_names(wiring, line, arguments, statements.cover())
        elif command in (".gate", ".subckt"):
            _add_cell(wiring, line, arguments)
        elif command == ".conn":
            if len(arguments) != 2:
                raise NetlistError(f"line {line}: .conn of {len(arguments)} nets: expected two")
            wiring.connect(Net(arguments[1]), _source(arguments[0]), line)
        elif command == ".latch":
            raise NetlistError(f"line {line}: a .latch stores a value: expected gates only")
        elif command not in _WITHOUT_MEANING:
            raise NetlistError(f"line {line}: {command!r} is not known: expected .names, .gate, .subckt or .conn")
    if wiring is None:
        raise NetlistError("there is no .model: expected a BLIF file")
    wiring.outputs = outputs
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
        raise NetlistError(f"line {line}: .names without a net: expected its inputs and its output")
    *pins, output = nets
    if len(pins) > MOST_PINS:
        raise NetlistError(f"line {line}: .names of {len(pins)} inputs is no gate: {NOT_GATES}")
    table = _table(line, len(pins), rows)
    if output == _UNDEFINED:
        return
    if len(set(table)) == 1:
        wiring.connect(Net(output), table[0], line)
        return
    gates = _gates(table)
    if not gates:
        raise NetlistError(f"line {line}: the logic of {output} is none of the gates: {NOT_GATES}")
    gate, order = gates[0]
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
            raise NetlistError(f"line {row_line}: {row!r} in .names: expected {pins} of the signs 0, 1, -, then 0 or 1")
        values.add(value)
        choices = [("0", "1") if bit == "-" else (bit,) for bit in pattern]
        listed.update(int("0" + "".join(bits), 2) for bits in product(*choices))
    if len(values) > 1:
        raise NetlistError(f"line {line}: .names has rows for 0 and rows for 1: expected one of them")
    # Rows that end in 0 list where the value is 0.
    return tuple((place in listed) != (values == {"0"}) for place in range(1 << pins))


@cache
def _gates(table: tuple[bool, ...]) -> list[tuple[Gate, tuple[int, ...]]]:
    """Gates with this function, and which input is on which of their pins; the order as it stands comes first."""
    pins = len(table).bit_length() - 1
    return [
        (gate, order)
        for order in permutations(range(pins))
        for gate in Gate
        if gate.pins == pins
        and all(
            gate_value(gate, *(place >> (pins - 1 - pin) & 1 for pin in order)) == value
            for place, value in enumerate(table)
        )
    ]


def _add_cell(wiring: Wiring, line: int, arguments: list[str]) -> None:
    if not arguments:
        raise NetlistError(f"line {line}: a cell without a type: expected one such as $_AND_")
    connected: dict[str, str] = {}
    for argument in arguments[1:]:
        pin, equals, net = argument.partition("=")
        if not equals or not pin or not net or pin in connected:
            raise NetlistError(f"line {line}: {argument[:40]!r}: expected each pin once, as PIN=NET")
        connected[pin] = net
    try:
        gate, pins = cell_gate(arguments[0], list(connected))
    except NetlistError as error:
        raise NetlistError(f"line {line}: {error}") from None
    wiring.add(Cell(gate, Net(connected["Y"]), tuple(_source(connected[pin]) for pin in pins), line))
