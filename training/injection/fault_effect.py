"""What one fault does to one layer's accumulators, by the algebra of docs/emulation.md, without running the layer.

One fault meets few products: a PE's are one in each fold of its column's outputs. What it makes of them is added to the
accumulators without faults. Sums are needed where bits of a sum are broken, and then those of one column alone; the
last fold's follows from the accumulator, so with one fold nothing is summed below the last weights. All of it is
integers modulo 2^acc_bits, so the outcome is that of `faulty_gemm` and `simulate_gemm`, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from simulator import ArrayConfig, Fault, Kind, Site
from simulator.bits import wrap
from simulator.dtypes import Int16Array, Int32Array, Int64Array
from simulator.errors import InputError
from simulator.gates.netlist import Netlist, circuit_of
from simulator.gates.netlist_kernel import CLEAR, INVERT, SET, Circuit, product_rows
from simulator.multipliers.multiplier import exact_products
from training.injection.fault_effect_kernel import (
    CHANGES,
    INCOMPLETE,
    LOOKED_UP,
    NO_CHANGE,
    NOTHING,
    OF_ACCUMULATORS,
    OF_ACTIVATIONS,
    OF_ADDERS,
    OF_PRODUCTS,
    OF_WEIGHTS,
    SOMETHING,
    UNKNOWN,
    WANTED,
    Change,
    Rows,
    effect_of_fault,
)
from training.injection.layer_gemm import GemmInMemory, Memory

_Number = TypeVar("_Number", bound=np.generic)

_KINDS = {
    Site.WEIGHT: OF_WEIGHTS,
    Site.WEIGHT_LOAD: OF_WEIGHTS,
    Site.ACTIVATION: OF_ACTIVATIONS,
    Site.PRODUCT: OF_PRODUCTS,
    Site.MULTIPLIER: LOOKED_UP,
    Site.PSUM: OF_ADDERS,
    Site.ACCUMULATOR: OF_ACCUMULATORS,
}
_OF_SUMS = (Site.PSUM, Site.ACCUMULATOR)
_NO_STATE = np.empty(0, np.uint8)


class FaultEffect(NamedTuple):
    """What one fault adds to a layer's accumulators."""

    outputs: Int64Array
    """int64 [A], ascending: outputs that the fault can reach, `group * N + n`; read-only."""
    delta: Int32Array
    """int32 [S, A, M], to be added modulo 2**acc_bits; wrapped to `acc_bits` bits, so 0 is no change."""


class _Where(NamedTuple):
    """Where a fault acts."""

    n_fold: int
    """The only one, or -1 for all."""
    first_fold: int
    stop_fold: int
    first_row: int
    stop_row: int
    first_m: int
    stop_m: int


def fault_effect(
    gemm: GemmInMemory, fault: Fault, memory: Memory, accumulated: Int32Array, group: int | None = None
) -> FaultEffect | None:
    """Work out what one fault does to one layer, on an array where nothing else is broken.

    Args:
        gemm: the layer.
        fault: a permanent one acts in all folds; a FLIP in its cycle of each image's GEMM, as if each were run alone.
        memory: [S, image_size], from `GemmInMemory.memory`.
        accumulated: int32 [S, outputs, M], from `GemmInMemory.accumulate` of this memory.
        group: the only GEMM that the fault acts in; None for all.

    Returns:
        What it adds to `accumulated`; None if that is nothing.

    Raises:
        InputError: the fault lies outside the array or its net, or in a cycle that the GEMM does not have, there is no
            such group, or arrays have other shapes or types than the layer's.
    """
    _check(gemm, fault, memory, accumulated, group)
    config, site = gemm.config, fault.site
    change = change_of_net(config, site, fault.bit, fault.kind)
    where = _where(gemm, fault)
    if where is None or where.first_m >= where.stop_m or not len(memory):
        return None
    east = site == Site.ACTIVATION
    outputs = _reach(gemm.groups, gemm.n, config.cols, fault.col, east, where.n_fold, group)
    if not len(outputs):
        return None
    kind = _KINDS[site]
    table, state = _products(config), _NO_STATE
    looked_up = None
    if site == Site.MULTIPLIER or (site not in _OF_SUMS and not config.multiplies_exactly):
        looked_up = differences(config, site, fault.bit, fault.kind)
        kind, table, state = LOOKED_UP, looked_up.lines, looked_up.state
    rows = _rows(gemm, where)
    touched = (where.first_fold, where.stop_fold, where.first_row, where.stop_row)
    numbers = np.array((*rows, *touched, *change, config.rows, config.acc_bits, kind), np.int64)
    shape = (len(memory), len(outputs), gemm.m)
    written = where.first_m == 0 and where.stop_m == gemm.m
    delta = np.empty(shape, np.int32) if written else np.zeros(shape, np.int32)
    arrays = (_read_only(memory).reshape(-1), gemm.weights, gemm.offset, outputs, _read_only(accumulated))
    seen = effect_of_fault(*arrays, table, state, numbers, delta)
    if seen == INCOMPLETE and looked_up is not None:
        looked_up.fill()
        seen = effect_of_fault(*arrays, table, state, numbers, delta)
    if rows.place < where.first_m:
        # A weight is upset in the middle of a line.
        delta[:, :, rows.place : where.first_m] = 0
        seen = CHANGES if delta.any() else NO_CHANGE
    return FaultEffect(outputs, delta) if seen == CHANGES else None


def add(accumulated: Int32Array, effect: FaultEffect, acc_bits: int) -> Int32Array:
    """The accumulators with a fault.

    Args:
        accumulated: int32 [S, outputs, M] without it; it is not changed.
        effect: of the fault on the same images.
        acc_bits: width of an accumulator.

    Returns:
        int32 [S, outputs, M], wrapped.
    """
    faulty: Int32Array = accumulated.copy()
    faulty[:, effect.outputs] = wrap(accumulated[:, effect.outputs] + effect.delta, acc_bits)
    return faulty


def _where(gemm: GemmInMemory, fault: Fault) -> _Where | None:
    """Where the fault acts, or None if it is a FLIP in a cycle in which its net carries nothing that is kept."""
    config = gemm.config
    rows, depth, m = config.rows, -(-gemm.k // config.rows), gemm.m
    row, col, site = fault.row, fault.col, fault.site
    if fault.cycle is None:
        return _Where(-1, 0, depth, row, rows if site == Site.WEIGHT_LOAD else row + 1, 0, m)
    n_fold, fold, in_fold = _fold_of(gemm, fault.cycle)
    streaming = in_fold - rows
    if site == Site.WEIGHT_LOAD:
        # In load cycle i the net of row r carries the weight that ends on row R - 1 - i + r.
        end_row = rows - 1 - in_fold + row
        if streaming >= 0 or end_row >= rows:
            return None
        return _Where(n_fold, fold, fold + 1, end_row, end_row + 1, 0, m)
    if streaming < 0:
        return None
    met = streaming - col - (rows - 1 if site == Site.ACCUMULATOR else row)
    if met >= m or (met < 0 and site != Site.WEIGHT):
        return None
    stop_m = m if site == Site.WEIGHT else met + 1
    return _Where(n_fold, fold, fold + 1, row, row + 1, max(0, met), stop_m)


def _fold_of(gemm: GemmInMemory, cycle: int) -> tuple[int, int, int]:
    """N-fold, k-fold and cycle within the fold."""
    config = gemm.config
    depth = -(-gemm.k // config.rows)
    per_fold = 2 * config.rows + config.cols + gemm.m - 2
    serial = depth * -(-gemm.n // config.cols) * per_fold
    if not 0 <= cycle < serial:
        raise InputError(
            f"a FLIP is in cycle {cycle}, outside this GEMM of {serial} cycles: expected a cycle in 0..{serial - 1}"
        )
    fold, in_fold = divmod(cycle, per_fold)
    return *divmod(fold, depth), in_fold


def _rows(gemm: GemmInMemory, where: _Where) -> Rows:
    """The rows of X that count: a single one, or whole lines from that of the first one on."""
    line, in_line = divmod(where.first_m, gemm.across)
    start = line * gemm.step_down
    if where.stop_m - where.first_m == 1:
        return Rows(start + in_line * gemm.step_across, 1, 1, 1, 1, where.first_m)
    return Rows(start, gemm.down - line, gemm.across, gemm.step_down, gemm.step_across, line * gemm.across)


@lru_cache(maxsize=4096)
def _reach(groups: int, n: int, cols: int, col: int, east: bool, n_fold: int, group: int | None) -> Int64Array:
    """Outputs on one column of the array, or on it and those east of it, in one n-fold or in all."""
    column = np.arange(n) % cols
    chosen = column >= col if east else column == col
    if n_fold >= 0:
        chosen &= np.arange(n) // cols == n_fold
    of_groups = np.arange(groups) if group is None else np.array([group])
    outputs: Int64Array = (of_groups[:, None] * n + np.flatnonzero(chosen)).reshape(-1)
    outputs.flags.writeable = False
    return outputs


@lru_cache(maxsize=8)
def _products(config: ArrayConfig) -> Int32Array:
    """int32 [2**weight_bits, 2**act_bits], products where PEs do not multiply exactly; without lines if they do."""
    if config.multiplies_exactly:
        return np.empty((0, 1), np.int32)
    products: Int32Array = config.pe_multiplier.products.astype(np.int32)
    return products


def _read_only(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """A view that is read-only and contiguous: Numba compiles anew for each kind of array."""
    view: npt.NDArray[_Number] = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _check(gemm: GemmInMemory, fault: Fault, memory: Memory, accumulated: Int32Array, group: int | None) -> None:
    config = gemm.config
    inside = 0 <= fault.row < config.rows and 0 <= fault.col < config.cols
    if not inside or (fault.site == Site.ACCUMULATOR and fault.row):
        raise InputError(f"{fault}: expected a PE of {config.rows}x{config.cols}, and row 0 of an accumulator")
    if (fault.kind == Kind.FLIP) != (fault.cycle is not None):
        raise InputError(f"{fault}: expected a cycle of a FLIP, and of nothing else")
    if group is not None and not 0 <= group < gemm.groups:
        raise InputError(f"group is {group}: expected 0..{gemm.groups - 1}, or None for all")
    dtype = np.int8 if config.act_signed else np.uint8
    if memory.ndim != 2 or memory.shape[1] != gemm.image_size or memory.dtype != dtype:
        raise InputError(
            f"memory is {memory.dtype} {memory.shape}: expected {np.dtype(dtype)} [images, {gemm.image_size}]"
        )
    expected = (len(memory), gemm.outputs, gemm.m)
    if accumulated.shape != expected or accumulated.dtype != np.int32:
        raise InputError(f"accumulated is {accumulated.dtype} {accumulated.shape}: expected int32 {expected}")


_CODES = {Kind.STUCK_AT_0: CLEAR, Kind.STUCK_AT_1: SET, Kind.FLIP: INVERT}


UNCHANGED = Change(0, -1, 0)


class Differences:
    """What a fault adds to each product, worked out for a weight when it is first asked for.

    Attributes:
        state: uint8 [2**weight_bits]: what is known of each weight, by its bit pattern. Whoever needs a weight that is
            `UNKNOWN` makes it `WANTED` and calls `fill`.
        lines: int32 [2**weight_bits, 2**act_bits], by the operands' bit patterns.
    """

    def __init__(self, config: ArrayConfig, site: Site, bit: int, kind: Kind) -> None:
        """Begin with nothing known.

        Args:
            config: the array.
            site: WEIGHT, WEIGHT_LOAD, ACTIVATION, PRODUCT or MULTIPLIER.
            bit: of the net, or location.
            kind: of the fault.
        """
        self._before = _fault_free_products(config)
        self.state = np.full(len(self._before), UNKNOWN, np.uint8)
        self.lines: Int32Array = np.empty(self._before.shape, np.int32)
        self._fault = (np.array([bit], np.int32), np.array([_CODES[kind]], np.uint8))
        self._after: Int16Array | Circuit = self._before
        if site == Site.MULTIPLIER:
            multiplier = config.pe_multiplier
            if multiplier.tables is not None:
                self._after = multiplier.tables[bit + 1]
            elif multiplier.netlist is not None:
                self._after = _circuit(multiplier.netlist)
        of_weight, of_activation, of_product = (
            change_of_net(config, site, bit, kind) if site in sites else UNCHANGED
            for sites in ((Site.WEIGHT, Site.WEIGHT_LOAD), (Site.ACTIVATION,), (Site.PRODUCT,))
        )
        weights, activations = 1 << config.weight_bits, 1 << config.act_bits
        self._weight = of_weight.of(_numbers(weights, signed=True)) & (weights - 1)
        self._activation = of_activation.of(_numbers(activations, signed=config.act_signed)) & (activations - 1)
        self._product = of_product

    def fill(self) -> None:
        """Work out all weights that are wanted."""
        wanted = np.flatnonzero(self.state == WANTED)
        weights = self._weight[wanted]
        if isinstance(self._after, Circuit):
            rows = np.empty((len(wanted), len(self._activation)), np.int16)
            alone = np.zeros(len(wanted), np.int32)
            product_rows(self._after, _ONE, *self._fault, alone, weights.astype(np.int32), rows)
        else:
            rows = self._after[weights]
        lines = self._product.of(rows[:, self._activation]) - self._before[wanted]
        self.lines[wanted] = lines
        self.state[wanted] = np.where(lines.any(1), SOMETHING, NOTHING)


_ONE = np.array([0, 1], np.int32)


@lru_cache(maxsize=32)
def differences(config: ArrayConfig, site: Site, bit: int, kind: Kind) -> Differences:
    """The differences of a fault; the last ones are remembered, with what was worked out."""
    return Differences(config, site, bit, kind)


@lru_cache(maxsize=4096)
def change_of_net(config: ArrayConfig, site: Site, bit: int, kind: Kind) -> Change:
    """What a fault makes of numbers on its net; of a MULTIPLIER's, which is inside, nothing.

    Raises:
        InputError: the net has no such bit.
    """
    bits = site.bits(config)
    if not 0 <= bit < bits:
        raise InputError(f"bit {bit} of {site.name}: expected 0..{bits - 1}")
    if site == Site.MULTIPLIER:
        return UNCHANGED
    # The sign bit of a net stands for all bits above it.
    signed = config.act_signed if site == Site.ACTIVATION else True
    value = -1 << bit if signed and bit == bits - 1 else 1 << bit
    if kind == Kind.FLIP:
        return Change(value, -1, 0)
    return Change(0, ~value, value if kind == Kind.STUCK_AT_1 else 0)


@lru_cache(maxsize=8)
def _fault_free_products(config: ArrayConfig) -> Int16Array:
    """int16 [2**weight_bits, 2**act_bits]: products without faults."""
    if config.multiplies_exactly:
        return exact_products(config.weight_bits, config.act_bits, act_signed=config.act_signed)
    return config.pe_multiplier.products


@lru_cache(maxsize=8)
def _circuit(netlist: Netlist) -> Circuit:
    return circuit_of(netlist)


def _numbers(patterns: int, *, signed: bool) -> Int64Array:
    """The numbers of all bit patterns."""
    pattern = np.arange(patterns)
    return np.where(signed & (pattern >= patterns // 2), pattern - patterns, pattern)
