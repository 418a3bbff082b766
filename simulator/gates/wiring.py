"""Gates and the names of the nets between them, as netlist files have them, and how they become a `Netlist`."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simulator.gates.cells import MOST_PINS, Gate, NetlistError, error_in_line
from simulator.gates.netlist import LARGEST_OPERAND_BITS, MOST_LOCATIONS, Netlist

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
    """What a file says; ports and gates are in the order of the file."""

    model: str
    """Name of the circuit."""
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    connections: dict[Net, Source] = field(default_factory=dict)
    """Nets that are other nets or constants, without a gate."""
    _drivers: dict[Net, str] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        """Add a gate.

        Raises:
            NetlistError: something else drives its output, or there are too many.
        """
        self._drive(cell.output, f"the {cell.gate.name} gate of line {cell.line}")
        self.cells.append(cell)
        if len(self.cells) > MOST_LOCATIONS:
            raise error_in_line(cell.line, f"more than {MOST_LOCATIONS} gates: expected a multiplier")

    def connect(self, net: Net, source: Source, line: int) -> None:
        """Make a net the same as another, or constant.

        Raises:
            NetlistError: something else drives it.
        """
        self._drive(net, f"line {line}")
        self.connections[net] = source

    def add_inputs(self, port: Port) -> None:
        """Add an input port.

        Raises:
            NetlistError: something else drives one of its nets.
        """
        for net in port.nets:
            self._drive(net, f"input {port.name}")
        self.inputs.append(port)

    def end_of(self, pin: Source) -> Source:
        """What a net is connected to in the end; other sources are their own ends.

        Raises:
            NetlistError: itself.
        """
        source = pin
        passed: dict[Net, None] = {}
        while isinstance(source, Net) and source in self.connections:
            if source in passed:
                loop = [str(net) for net in passed]
                raise NetlistError(f"nets are connected in a loop: {_shown(loop[loop.index(str(source)) :])}")
            passed[source] = None
            source = self.connections[source]
        # Long chains are followed once.
        self.connections.update(dict.fromkeys(passed, source))
        return source

    def driver(self, pin: Source) -> Net | bool:
        """The input, the gate's output or the constant that is on a pin.

        Raises:
            NetlistError: nothing is.
        """
        source = self.end_of(pin)
        if source is None:
            name = "a gate's pin" if pin is None else str(pin)
            raise NetlistError(f"{name} is undefined (x): expected it to be driven")
        if isinstance(source, Net) and source not in self._drivers:
            through = "" if source == pin else f" (connected to {pin})"
            raise NetlistError(f"nothing drives net {source}{through}, which is read")
        return source

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
    """Find the operands' and the product's ports: those of these names; None for those that `read_netlist` describes.

    Raises:
        NetlistError: no such port, other ports than these, or widths that do not fit.
    """
    inputs, outputs = _vectors(wiring.inputs), _vectors(wiring.outputs)
    listed = f"it has inputs {_listed(inputs)} and outputs {_listed(outputs)}"
    for what, name, ports in (("input", weight, inputs), ("input", act, inputs), ("output", product, outputs)):
        if name is not None and name not in ports:
            raise NetlistError(f"no {what} is named {name!r}: {listed}")
    if len(inputs) != 2 or (product is None and len(outputs) != 1):
        raise NetlistError(f"{wiring.model} is no multiplier: expected two inputs and one output, but {listed}")
    if weight is None:
        weight = _guess([name for name in inputs if name != act], _ACT_NAMES if act is None else ())
    if act is None:
        act = next(name for name in inputs if name != weight)
    if act == weight:
        raise NetlistError(f"port {act} is given for the weight and for the activation: {listed}")
    found = Ports(inputs[weight], inputs[act], outputs[next(iter(outputs)) if product is None else product])
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


def _guess(names: list[str], others: Sequence[str]) -> str:
    """The name of a weight; if there is none, the one that is left besides the others, or the first."""
    for wanted in _WEIGHT_NAMES:
        for name in names:
            if name.lower() == wanted:
                return name
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


def _listed(ports: dict[str, Port]) -> str:
    return _shown([f"{port.name} ({len(port.nets)} bits)" for port in ports.values()]) or "none"


def _shown(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def assemble(wiring: Wiring, ports: Ports, *, weight_signed: bool, act_signed: bool) -> Netlist:
    """Number the nets and put the gates in an order in which each comes after those that drive it.

    All gates are kept, and no others are made, but for one that gives a constant where one is read.

    Raises:
        NetlistError: nets that nothing drives, gates in a loop, or too many gates.
    """
    for net in wiring.connections:
        wiring.end_of(net)
    operands = (*ports.weight.nets, *ports.act.nets)
    product = [wiring.driver(net) for net in ports.product.nets]
    pins = [[wiring.driver(pin) for pin in cell.pins] for cell in wiring.cells]
    constants = sorted({pin for cell_pins in [*pins, product] for pin in cell_pins if isinstance(pin, bool)})
    order = _order(wiring.cells, pins)

    nets: list[Net | bool] = [*operands, *constants, *(wiring.cells[cell].output for cell in order)]
    number = {net: index for index, net in enumerate(nets)}
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


def _order(cells: Sequence[Cell], pins: Sequence[Sequence[Net | bool]]) -> list[int]:
    """Gates after those that drive them, otherwise in the order of the file."""
    number = {cell.output: index for index, cell in enumerate(cells)}
    drivers = [[number[pin] for pin in cell_pins if isinstance(pin, Net) and pin in number] for cell_pins in pins]
    readers: list[list[int]] = [[] for _ in cells]
    for index, driving in enumerate(drivers):
        for driver in driving:
            readers[driver].append(index)
    waiting = [len(driving) for driving in drivers]
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
        # From any gate that waits, drivers that wait lead into a loop.
        index = next(index for index, count in enumerate(waiting) if count)
        path: dict[int, None] = {}
        while index not in path:
            path[index] = None
            index = next(driver for driver in drivers[index] if waiting[driver])
        loop = [str(cells[one].output) for one in reversed(list(path)[list(path).index(index) :])]
        raise NetlistError(f"gates drive each other in a loop: {_shown(loop)}")
    return order
