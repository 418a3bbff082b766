"""A slow oracle of the machine in docs/machine.md: one object per PE, one method per clock edge, plain Python integers.

Written from that page, independently of the engines, and kept so simple that it can be read against it line by line.
Registers hold numbers, nets are computed from registers, and every register changes only at the end of a cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.gates.cells import Gate
from simulator.gates.netlist import Netlist
from simulator.multipliers.multiplier import Multiplier
from tests.support.netlist_cases import FUNCTIONS


def read_bits(value: int, bits: int, *, signed: bool) -> int:
    """The low bits of a number, read as two's complement or unsigned."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >> (bits - 1) else value


class Net:
    """A net of some width on which faults sit: flips first, then stuck-at-0, then stuck-at-1."""

    def __init__(self, bits: int, signed: bool, faults: Sequence[Fault]) -> None:
        self.bits = bits
        self.signed = signed
        self.stuck = {kind: {fault.bit for fault in faults if fault.kind == kind} for kind in Kind}
        self.flips = {(fault.bit, fault.cycle) for fault in faults if fault.kind == Kind.FLIP}

    def flipped(self, value: int, cycle: int) -> int:
        """The value with the bits inverted that are upset in this cycle."""
        for bit, when in self.flips:
            if when == cycle:
                value ^= 1 << bit
        return read_bits(value, self.bits, signed=self.signed)

    def stuck_at(self, value: int) -> int:
        """The value with its stuck bits."""
        for bit in self.stuck[Kind.STUCK_AT_0]:
            value &= ~(1 << bit)
        for bit in self.stuck[Kind.STUCK_AT_1]:
            value |= 1 << bit
        return read_bits(value, self.bits, signed=self.signed)

    def drive(self, value: int, cycle: int) -> int:
        """What the net carries when `value` is driven onto it."""
        return self.stuck_at(self.flipped(value, cycle))


@lru_cache(maxsize=64)
def listed_gates(netlist: Netlist) -> list[tuple[Callable[..., int], int, list[int]]]:
    """Function, first pin's location and inputs of each gate."""
    first = len(netlist.gates)
    listed = []
    for code, inputs in zip(netlist.gates.tolist(), netlist.inputs.tolist(), strict=True):
        listed.append((FUNCTIONS[Gate(code)], first, inputs[: Gate(code).pins]))
        first += Gate(code).pins
    return listed


def gate_product(netlist: Netlist, weight: int, activation: int, drive: Mapping[int, tuple[int, int]]) -> int:
    """What gates make of two numbers; `drive`: what faulty locations carry when 0 and when 1 is driven onto them."""
    nets = [weight >> bit & 1 for bit in range(netlist.weight_bits)]
    nets += [activation >> bit & 1 for bit in range(netlist.act_bits)]
    for number, (function, first, inputs) in enumerate(listed_gates(netlist)):
        pins = [nets[net] for net in inputs]
        for pin in range(len(pins)):
            if first + pin in drive:
                pins[pin] = drive[first + pin][pins[pin]]
        value = function(1, *pins, *[0] * (4 - len(pins)))
        nets.append(drive[number][value] if number in drive else value)
    product = sum(nets[net] << place for place, net in enumerate(netlist.outputs.tolist()))
    return read_bits(product, netlist.product_bits, signed=True)


class FaultyMultiplier:
    """The multiplier of one PE, with faults at some locations of it."""

    def __init__(self, config: ArrayConfig, faults: Sequence[Fault]) -> None:
        self.act_bits = config.act_bits
        self.weight_bits = config.weight_bits
        # Without faults, gates multiply exactly: that is tested by itself for all built-in ones.
        self.multiplier: Multiplier | None = None
        if faults or not isinstance(config.multiplier, str):
            self.multiplier = config.pe_multiplier
        located: dict[int, list[Fault]] = {}
        for fault in faults:
            located.setdefault(fault.bit, []).append(replace(fault, bit=0))
        self.nets = {location: Net(1, False, listed) for location, listed in located.items()}
        self.known: dict[tuple[int, int, tuple[tuple[int, tuple[int, int]], ...]], int] = {}

    def product(self, weight: int, activation: int, cycle: int) -> int:
        """What comes out of it."""
        if self.multiplier is None:
            return weight * activation
        # Locations are nets of one bit; what each does to it in this cycle.
        drive = {location: (net.drive(0, cycle), net.drive(1, cycle)) for location, net in self.nets.items()}
        faulty = tuple((location, carried) for location, carried in sorted(drive.items()) if carried != (0, 1))
        key = (weight, activation, faulty)
        if key not in self.known:
            self.known[key] = self._evaluate(*key)
        return self.known[key]

    def _evaluate(self, weight: int, activation: int, faulty: tuple[tuple[int, tuple[int, int]], ...]) -> int:
        assert self.multiplier is not None
        if self.multiplier.netlist is not None:
            return gate_product(self.multiplier.netlist, weight, activation, dict(faulty))
        assert self.multiplier.tables is not None
        table = max((location + 1 for location, _ in faulty), default=0)
        return int(self.multiplier.tables[table, weight % (1 << self.weight_bits), activation % (1 << self.act_bits)])


@dataclass
class PE:
    """One processing element: four registers, and the nets between them."""

    nets: dict[Site, Net]
    multiplier: FaultyMultiplier
    bypassed: bool
    shift: int = 0
    weight: int = 0
    east: int = 0
    south: int = 0
    product: int = 0
    pending: dict[str, int] = field(default_factory=dict)

    def reset(self) -> None:
        """The start of a fold."""
        self.shift = self.weight = self.east = self.south = self.product = 0

    def load(self, from_north: int, cycle: int, *, last: bool) -> None:
        """Nets in a load cycle."""
        operand = self.nets[Site.WEIGHT_LOAD].drive(from_north, cycle)
        self.pending = {"shift": operand}
        if last:
            self.pending["weight"] = operand

    def stream(self, from_west: int, from_north: int, cycle: int) -> None:
        """Nets in a streaming cycle."""
        # An upset of a stored weight stays: the register itself is inverted.
        self.weight = self.nets[Site.WEIGHT].flipped(self.weight, cycle)
        weight = self.nets[Site.WEIGHT].stuck_at(self.weight)
        activation = self.nets[Site.ACTIVATION].drive(from_west, cycle)
        self.product = self.nets[Site.PRODUCT].drive(self.multiplier.product(weight, activation, cycle), cycle)
        total = self.nets[Site.PSUM].drive(from_north + self.product, cycle)
        self.pending = {"east": activation, "south": from_north if self.bypassed else total}

    def clock_edge(self) -> None:
        """Every register takes its new value."""
        for name, value in self.pending.items():
            setattr(self, name, value)
        self.pending = {}


@dataclass
class OracleResult:
    """Outputs int64 [M, N], clock cycles, and the recorded registers by name, int64 [cycles, rows, cols]."""

    outputs: npt.NDArray[np.int64]
    cycles: int
    trace: dict[str, npt.NDArray[np.int64]]


class Array:
    """The PEs, the feeders and the column accumulators."""

    def __init__(self, config: ArrayConfig, faults: FaultMap, bypass: npt.NDArray[np.bool_]) -> None:
        self.config = config
        self.cycle = 0
        at: dict[tuple[int, int, Site], list[Fault]] = {}
        for fault in faults:
            at.setdefault((fault.row, fault.col, fault.site), []).append(fault)

        def net(row: int, col: int, site: Site) -> Net:
            signed = config.act_signed if site == Site.ACTIVATION else True
            return Net(site.bits(config), signed, at.get((row, col, site), []))

        pe_sites = (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION, Site.PRODUCT, Site.PSUM)

        def pe(row: int, col: int) -> PE:
            multiplier = FaultyMultiplier(config, at.get((row, col, Site.MULTIPLIER), []))
            return PE({site: net(row, col, site) for site in pe_sites}, multiplier, bool(bypass[row, col]))

        self.pes = [[pe(r, c) for c in range(config.cols)] for r in range(config.rows)]
        self.accumulator_nets = [net(0, c, Site.ACCUMULATOR) for c in range(config.cols)]
        self.recorded: dict[int, dict[str, list[list[int]]]] = {}

    def clock_edge(self) -> None:
        """End the cycle: registers change, and what they then hold is written down."""
        for row in self.pes:
            for pe in row:
                pe.clock_edge()
        self.recorded[self.cycle] = {
            name: [[getattr(pe, name) for pe in row] for row in self.pes]
            for name in ("shift", "weight", "east", "product", "south")
        }
        self.cycle += 1

    def load(self, tile: list[list[int]]) -> None:
        """Shift a fold's weights in from the north, the last row's first."""
        rows = self.config.rows
        for row in self.pes:
            for pe in row:
                pe.reset()
        for step in range(rows):
            for r in range(rows):
                for c, pe in enumerate(self.pes[r]):
                    from_north = tile[rows - 1 - step][c] if r == 0 else self.pes[r - 1][c].shift
                    pe.load(from_north, self.cycle, last=step == rows - 1)
            self.clock_edge()

    def stream(self, x: list[list[int]], stored: list[list[int]]) -> None:
        """Stream the rows of X (a list per row of the array) and add the outputs to what the accumulators store."""
        rows, cols = self.config.rows, self.config.cols
        m = len(stored)
        for step in range(m + rows + cols - 2):
            for r in range(rows):
                for c, pe in enumerate(self.pes[r]):
                    fed = x[step - r][r] if c == 0 and 0 <= step - r < m else 0
                    from_west = fed if c == 0 else self.pes[r][c - 1].east
                    from_north = 0 if r == 0 else self.pes[r - 1][c].south
                    pe.stream(from_west, from_north, self.cycle)
            for c in range(cols):
                leaving = step - (rows - 1) - c
                if 0 <= leaving < m:
                    on_adder = self.pes[rows - 1][c].pending["south"]
                    net = self.accumulator_nets[c]
                    stored[leaving][c] = net.drive(stored[leaving][c] + on_adder, self.cycle)
            self.clock_edge()


def oracle_gemm(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    config: ArrayConfig,
    faults: FaultMap | None = None,
    *,
    bypass: npt.NDArray[np.bool_] | None = None,
    record: tuple[int, int] | None = None,
) -> OracleResult:
    """Multiply X [M, K] by W [K, N] on the array; `record` is a window of clock cycles (first, one past the last)."""
    rows_of_x, weights = np.asarray(x).tolist(), np.asarray(w).tolist()
    k, n = np.shape(w)
    m = len(rows_of_x)
    mask = np.zeros((config.rows, config.cols), np.bool_) if bypass is None else bypass
    array = Array(config, FaultMap(config) if faults is None else faults, mask)
    outputs = np.zeros((m, n), np.int64)
    for n_start in range(0, n, config.cols):
        stored = [[0] * config.cols for _ in range(m)]
        for k_start in range(0, k, config.rows):
            tile = [
                [
                    weights[k_start + r][n_start + c] if k_start + r < k and n_start + c < n else 0
                    for c in range(config.cols)
                ]
                for r in range(config.rows)
            ]
            part = [[row[k_start + r] if k_start + r < k else 0 for r in range(config.rows)] for row in rows_of_x]
            array.load(tile)
            array.stream(part, stored)
        for row in range(m):
            for c in range(min(config.cols, n - n_start)):
                outputs[row, n_start + c] = stored[row][c]
    trace = {}
    if record is not None:
        cycles = range(*record)
        for name in ("shift", "weight", "east", "product", "south"):
            trace[name] = np.array([array.recorded[cycle][name] for cycle in cycles], np.int64)
    return OracleResult(outputs, array.cycle, trace)
