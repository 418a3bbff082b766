"""Gates and the names of the nets between them, as netlist files have them, and how they become a `Netlist`."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simulator.gates.netlist import LARGEST_OPERAND_BITS, MOST_LOCATIONS, MOST_PINS, Gate, Netlist, NetlistError

_NAMES_SHOWN = 3


class Net(NamedTuple):
    """A net of one bit: a name, and the index of the bit where the name is that of a vector."""

    name: str
    bit: int | None = None

    def __str__(self) -> str:
        return self.name if self.bit is None else f"{self.name}[{self.bit}]"


Source = Net | bool | None
"""What drives something: a net, a constant, or nothing that is defined (x)."""


class Cell(NamedTuple):
    """A gate of a file: what it drives, and what is on its pins in the order of `Gate`."""

    gate: Gate
    output: Net
    pins: tuple[Source, ...]
    line: int


class Port(NamedTuple):
    """A port and its nets, least significant first."""

    name: str
    nets: tuple[Net, ...]


@dataclass
class Wiring:
    """What a file says.

    Attributes:
        model: name of the circuit.
        inputs: ports in the order of the file.
        outputs: ports in the order of the file.
        cells: gates in the order of the file.
        connections: nets that are other nets or constants, without a gate, and the lines that say so.
    """

    model: str
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    connections: dict[Net, tuple[Source, int]] = field(default_factory=dict)
    _drivers: dict[Net, str] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        """Add a gate.

        Raises:
            NetlistError: something else drives its output, or there are too many.
        """
        self._drive(cell.output, f"the {cell.gate.name} gate of line {cell.line}")
        self.cells.append(cell)
        if len(self.cells) > MOST_LOCATIONS:
            raise NetlistError(f"line {cell.line}: more than {MOST_LOCATIONS} gates: expected a multiplier")

    def connect(self, net: Net, source: Source, line: int) -> None:
        """Make a net the same as another, or constant.

        Raises:
            NetlistError: something else drives it.
        """
        self._drive(net, f"line {line}")
        self.connections[net] = (source, line)

    def add_inputs(self, port: Port) -> None:
        """Add an input port.

        Raises:
            NetlistError: something else drives one of its nets.
        """
        for net in port.nets:
            self._drive(net, f"input {port.name}")
        self.inputs.append(port)

    def drives(self, net: Net) -> bool:
        """Whether anything drives a net."""
        return net in self._drivers

    def _drive(self, net: Net, driver: str) -> None:
        if net in self._drivers:
            raise NetlistError(f"net {net} has two drivers: {self._drivers[net]} and {driver}")
        self._drivers[net] = driver


class Ports(NamedTuple):
    """Which ports are the multiplier's."""

    weight: Port
    act: Port
    product: Port


_WEIGHT_NAMES = ("weight", "weights", "w", "b", "y")
_ACT_NAMES = ("activation", "act", "acts", "a", "x")
_INDEXED = re.compile(r"(.*\D)(?:\[(\d{1,4})\]|<(\d{1,4})>|(\d{1,4}))", re.DOTALL)


def choose_ports(wiring: Wiring, weight: str | None, act: str | None, product: str | None) -> Ports:
    """Find the operands' and the product's ports.

    Args:
        wiring: the circuit.
        weight: name of the weight's port; None for one named weight, w or b, or else the first input that is left.
        act: name of the activation's port; None for one named activation, act, a or x, or else the input that is left.
        product: name of the product's port, the only output if None; other outputs are left alone.

    Raises:
        NetlistError: no such port, other ports than these, or widths that do not fit.
    """
    inputs, outputs = _vectors(wiring.inputs), _vectors(wiring.outputs)
    listed = f"it has inputs {_ports(inputs)} and outputs {_ports(outputs)}"
    for what, name, ports in (("input", weight, inputs), ("input", act, inputs), ("output", product, outputs)):
        if name is not None and name not in ports:
            raise NetlistError(f"no {what} is named {name!r}: {listed}")
    if len(inputs) != 2 or (product is None and len(outputs) != 1):
        raise NetlistError(f"{wiring.model} is no multiplier: expected two inputs and one output, but {listed}")
    if weight is None:
        weight = _guess([name for name in inputs if name != act], _WEIGHT_NAMES, _ACT_NAMES if act is None else ())
    if act is None:
        act = next(name for name in inputs if name != weight)
    if act == weight:
        raise NetlistError(f"port {act} is given for the weight and for the activation: {listed}")
    found = Ports(
        inputs[weight], inputs[act], outputs[product] if product is not None else next(iter(outputs.values()))
    )
    for port in (found.weight, found.act):
        if not 1 <= len(port.nets) <= LARGEST_OPERAND_BITS:
            raise NetlistError(f"port {port.name} has {len(port.nets)} bits: expected 1..{LARGEST_OPERAND_BITS}")
    expected = len(found.weight.nets) + len(found.act.nets)
    if len(found.product.nets) != expected:
        raise NetlistError(
            f"port {found.product.name} has {len(found.product.nets)} bits: expected {expected}, as many as "
            f"{found.weight.name} and {found.act.name} have together"
        )
    return found


def _guess(names: list[str], wanted: Sequence[str], others: Sequence[str]) -> str:
    """The name that is wanted; if there is none, the one that is left besides the others, or the first."""
    for name in wanted:
        for given in names:
            if given.lower() == name:
                return given
    left = [name for name in names if name.lower() not in others]
    return (left or names)[0]


def _vectors(ports: Iterable[Port]) -> dict[str, Port]:
    """Ports by name, with ports of one bit that are named `p[0]`, `p<0>` or `p0` put together."""
    found: dict[str, Port] = {}
    bits: dict[str, dict[int, Port]] = {}
    for port in ports:
        match = _INDEXED.fullmatch(port.name)
        if len(port.nets) == 1 and match is not None:
            index = int(next(group for group in match.groups()[1:] if group is not None))
            name = match[1].rstrip("_") or match[1]
            if index in bits.setdefault(name, {}):
                raise NetlistError(f"two ports are bit {index} of {name}: {bits[name][index].name} and {port.name}")
            bits[name][index] = port
            found.setdefault(name, Port(name, ()))
        elif port.name in bits:
            raise NetlistError(f"port {port.name} is there as a whole and in bits")
        elif port.name in found:
            raise NetlistError(f"two ports are named {port.name}")
        else:
            found[port.name] = port
    for name, places in bits.items():
        if found[name].nets:
            raise NetlistError(f"port {name} is there as a whole and in bits")
        first = min(places)
        missing = set(range(first, first + len(places))) - set(places)
        if missing:
            raise NetlistError(f"port {name} has no bit {min(missing)}, but bits {first} and {max(places)}")
        found[name] = Port(name, tuple(places[index].nets[0] for index in sorted(places)))
    return found


def _ports(ports: dict[str, Port]) -> str:
    return shown([f"{port.name} ({len(port.nets)} bits)" for port in ports.values()]) or "none"


def shown(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def assemble(wiring: Wiring, ports: Ports, *, weight_signed: bool, act_signed: bool) -> Netlist:
    """Number the nets and put the gates in an order in which each comes after those that drive it.

    All gates are kept, and no others are made, but for one that gives a constant where one is read.

    Args:
        wiring: the circuit.
        ports: which ports are the multiplier's.
        weight_signed: whether weights are two's complement.
        act_signed: whether activations are two's complement.

    Raises:
        NetlistError: nets that nothing drives, gates in a loop, or too many gates.
    """
    sources = _resolved(wiring)
    operands = (*ports.weight.nets, *ports.act.nets)
    product = [_source(net, sources, wiring) for net in ports.product.nets]
    pins = [[_source(pin, sources, wiring) for pin in cell.pins] for cell in wiring.cells]
    constants = sorted({pin for cell_pins in [*pins, product] for pin in cell_pins if isinstance(pin, bool)})
    order = _order(wiring.cells, pins)

    number: dict[Net | bool, int] = {net: index for index, net in enumerate(operands)}
    number |= {constant: len(number) + index for index, constant in enumerate(constants)}
    first = len(number)
    number |= {wiring.cells[cell].output: first + index for index, cell in enumerate(order)}
    gates = [Gate.CONST_1 if constant else Gate.CONST_0 for constant in constants]
    inputs = [[-1] * MOST_PINS for _ in constants]
    for cell in order:
        gates.append(wiring.cells[cell].gate)
        inputs.append([*(number[pin] for pin in pins[cell]), *[-1] * (MOST_PINS - len(pins[cell]))])
    return Netlist(
        gates=np.array(gates, np.uint8),
        inputs=np.array(inputs, np.int32).reshape(-1, MOST_PINS),
        outputs=np.array([number[net] for net in product], np.int32),
        weight_bits=len(ports.weight.nets),
        act_bits=len(ports.act.nets),
        weight_signed=weight_signed,
        act_signed=act_signed,
    )


def _resolved(wiring: Wiring) -> dict[Net, Net | bool | None]:
    """What each connected net is: what a gate or an input drives, a constant, or a net that nothing drives."""
    found: dict[Net, Net | bool | None] = {}
    for start in wiring.connections:
        path: dict[Net, None] = {}
        source: Source = start
        while isinstance(source, Net) and source in wiring.connections and source not in found:
            if source in path:
                loop = [str(net) for net in path]
                raise NetlistError(f"nets are connected in a loop: {shown(loop[loop.index(str(source)) :])}")
            path[source] = None
            source = wiring.connections[source][0]
        final = found.get(source, source) if isinstance(source, Net) else source
        for net in path:
            found[net] = final
    return found


def _source(pin: Source, sources: dict[Net, Net | bool | None], wiring: Wiring) -> Net | bool:
    """The input, the gate's output or the constant that drives a pin."""
    source = sources.get(pin, pin) if isinstance(pin, Net) else pin
    if source is None:
        name = str(pin) if pin is not None else "a gate's pin"
        raise NetlistError(f"{name} is undefined (x): expected it to be driven")
    if isinstance(source, Net) and not wiring.drives(source):
        through = "" if source == pin else f" (connected to {pin})"
        raise NetlistError(f"nothing drives net {source}{through}, which is read")
    return source


def _order(cells: Sequence[Cell], pins: Sequence[Sequence[Net | bool]]) -> list[int]:
    """Gates after those that drive them, otherwise in the order of the file."""
    driver = {cell.output: index for index, cell in enumerate(cells)}
    readers: list[list[int]] = [[] for _ in cells]
    waiting = [0] * len(cells)
    for index, cell_pins in enumerate(pins):
        for pin in cell_pins:
            if not isinstance(pin, bool) and pin in driver:
                readers[driver[pin]].append(index)
                waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(cells):
        raise NetlistError(f"gates drive each other in a loop: {_loop(cells, pins, driver, set(order))}")
    return order


def _loop(cells: Sequence[Cell], pins: Sequence[Sequence[Net | bool]], driver: dict[Net, int], done: set[int]) -> str:
    """Name the nets of a loop: from any gate that is not done, drivers that are not done lead into one."""
    index = next(index for index in range(len(cells)) if index not in done)
    path: dict[int, None] = {}
    while index not in path:
        path[index] = None
        drivers = [driver[pin] for pin in pins[index] if not isinstance(pin, bool) and pin in driver]
        index = next(one for one in drivers if one not in done)
    loop = list(path)[list(path).index(index) :]
    return shown([str(cells[one].output) for one in reversed(loop)])
