"""From a GEMM's weights and a chip's faults to a program for the emulation. docs/emulation.md has the algebra."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator import ArrayConfig, FaultMap, Kind, Site
from simulator.dtypes import BoolArray, Int16Array, Int32Array, Int64Array
from simulator.engine.operands import check_chip, check_operand
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.pe_behaviour_kernel import PeProducts


class StuckBits(NamedTuple):
    """A value v of a net becomes `(v & keep) | force`; both are numbers of the net, sign-extended."""

    keep: Int32Array
    force: Int32Array

    @property
    def any(self) -> BoolArray:
        """Where a bit is stuck."""
        stuck: BoolArray = (self.keep != -1) | (self.force != 0)
        return stuck

    def of(self, values: npt.NDArray[np.integer]) -> Int32Array:
        """Values with their stuck bits."""
        stuck: Int32Array = (values & self.keep) | self.force
        return stuck


@dataclass(frozen=True, eq=False)
class ChipFaults:
    """Permanent faults and bypass of one chip, as masks [rows, cols] that already include what comes before on a chain.

    Attributes:
        faults: all faults, FLIPs included.
        bypass: bool [rows, cols].
        weight: from the weight that is fed to what the multiplier gets: load chain from row 0, then the register.
        activation: from what the feeder gives to what the multiplier gets: the operand nets of columns 0 to this one.
        activation_here: those of this PE's operand net alone.
        product: multiplier outputs.
        psum: adder outputs.
        accumulator: [cols], write data of the column accumulators.
    """

    faults: FaultMap
    bypass: BoolArray
    weight: StuckBits
    activation: StuckBits
    activation_here: StuckBits
    product: StuckBits
    psum: StuckBits
    accumulator: StuckBits

    @property
    def config(self) -> ArrayConfig:
        """The array."""
        return self.faults.config

    @cached_property
    def multipliers(self) -> PeProducts:
        """Which PEs do not multiply exactly."""
        # Numba takes 0.4 s to import.
        from simulator.pe_behaviour import pe_products

        return pe_products(self.faults)

    def products(self, behaviour: Int32Array, weights: Int32Array) -> tuple[Int16Array, Int32Array]:
        """Products of PEs that do not multiply exactly: distinct rows int16 [rows, 2**act_bits], and each PE's row."""
        from simulator.pe_behaviour import rows_of_products

        return rows_of_products(self.multipliers, behaviour, weights, self.config.weight_bits, self.config.act_bits)

    @cached_property
    def apart(self) -> BoolArray:
        """PEs [rows, cols] whose product or sum is more than `a * w`: they are evaluated one by one."""
        faulty: BoolArray = ((self.multipliers.behaviour >= 0) | self.product.any | self.psum.any) & ~self.bypass
        return faulty

    @cached_property
    def has_flips(self) -> bool:
        """Whether any fault is transient."""
        return self.faults.has_flips

    @cached_property
    def apart_when_unused(self) -> BoolArray:
        """The same for rows without weights, where everything is 0 but what stuck bits make of it."""
        activation, weight = self.activation.force, self.weight.force
        product = activation * weight
        place = np.nonzero(self.multipliers.behaviour >= 0)
        if len(place[0]):
            rows, row_of = self.products(self.multipliers.behaviour[place], weight[place])
            product[place] = rows[row_of, activation[place] & (rows.shape[1] - 1)]
        apart: BoolArray = (self.psum.any | (self.product.of(product) != 0)) & ~self.bypass
        return apart


def chip_faults(config: ArrayConfig, faults: FaultMap | None = None, bypass: npt.ArrayLike | None = None) -> ChipFaults:
    """A chip's masks; the last few chips are remembered.

    Raises:
        InputError: faults of another array, or a bypass of another shape.
    """
    faults, mask = check_chip(config, faults, bypass)
    return _chip_faults(faults, np.packbits(mask).tobytes())


@lru_cache(maxsize=8)
def _chip_faults(faults: FaultMap, packed_bypass: bytes) -> ChipFaults:
    config = faults.config
    count = config.pe_count
    bits = np.unpackbits(np.frombuffer(packed_bypass, np.uint8), count=count)
    bypass = bits.astype(np.bool_).reshape(config.rows, config.cols)
    stationary = _stuck(faults, Site.WEIGHT)
    chain = _along(_stuck(faults, Site.WEIGHT_LOAD), axis=0)
    here = _stuck(faults, Site.ACTIVATION)
    column_end = _stuck(faults, Site.ACCUMULATOR)
    return ChipFaults(
        faults=faults,
        bypass=bypass,
        weight=_then(chain, stationary),
        activation=_along(here, axis=1),
        activation_here=here,
        product=_stuck(faults, Site.PRODUCT),
        psum=_stuck(faults, Site.PSUM),
        accumulator=StuckBits(column_end.keep[0], column_end.force[0]),
    )


def _stuck(faults: FaultMap, site: Site) -> StuckBits:
    """The masks of each net of one site by itself, int32 [rows, cols]."""
    config = faults.config
    signed = config.act_signed if site is Site.ACTIVATION else True
    stuck = {kind: np.zeros((config.rows, config.cols), np.int64) for kind in (Kind.STUCK_AT_0, Kind.STUCK_AT_1)}
    table = faults.table[faults.table["site"] == site]
    for kind, pattern in stuck.items():
        chosen = table[table["kind"] == kind]
        bit = chosen["bit"].astype(np.int64)
        # The sign bit of a net stands for all bits above it.
        sign = signed & (bit == site.bits(config) - 1)
        np.bitwise_or.at(pattern, (chosen["row"], chosen["col"]), np.where(sign, -1 << bit, 1 << bit))
    return StuckBits((~stuck[Kind.STUCK_AT_0]).astype(np.int32), stuck[Kind.STUCK_AT_1].astype(np.int32))


def _then(first: StuckBits, second: StuckBits) -> StuckBits:
    return StuckBits(first.keep & second.keep, (first.force & second.keep) | second.force)


def _along(masks: StuckBits, axis: int) -> StuckBits:
    """Compose each net's masks with all before it on an axis, in steps that double."""
    keep, force = (np.moveaxis(mask, axis, 0).copy() for mask in masks)
    step = 1
    while step < len(keep):
        after = _then(StuckBits(keep[:-step], force[:-step]), StuckBits(keep[step:], force[step:]))
        keep[step:], force[step:] = after.keep, after.force
        step *= 2
    return StuckBits(*(np.ascontiguousarray(np.moveaxis(mask, 0, axis)) for mask in (keep, force)))


LANE_BITS = 16
"""Half of an int32 word: two reduction indices share one."""


class Layout(NamedTuple):
    """Where the PEs that are evaluated one by one come in; given by faults and shape alone.

    Outputs are numbered n = 0..N-1 and k-folds f = 0..F-1; entry n * F + f belongs to both.
    """

    fold_rows: int
    """Rows of the array that take part, even: those with weights, and those below whose faults still make a product."""
    in_order: BoolArray
    """bool [N]: adders or the accumulator of the output's column have stuck bits, so its sum is made from the north."""
    first_pe: Int64Array
    """int64 [N * F + 1]: PEs of an entry are `first_pe[entry]:first_pe[entry + 1]`, from the north."""
    row: Int64Array
    product_keep: Int32Array
    product_force: Int32Array
    psum_keep: Int32Array
    psum_force: Int32Array
    first_step: Int64Array
    """int64 [columns + 1]: activation masks of a column are `first_step[c]:first_step[c + 1]`."""
    step_pair: Int64Array
    step_keep: Int32Array
    """Masks of the pair of rows; the other row's half keeps all bits."""
    step_force: Int32Array
    accumulator_keep: Int32Array
    accumulator_force: Int32Array


class LayoutWeights(NamedTuple):
    """What becomes of each weight; given by faults and shape alone."""

    keep: Int16Array
    """int16 [N, K]"""
    force: Int16Array
    """int16 [N, K]"""
    together: Int16Array
    """int16 [N, K]: -1 where a PE's product goes into a dot product, 0 where it is bypassed or evaluated by itself."""
    source: Int64Array
    """int64 [PEs evaluated one by one]: place of its weight in [N, K], or -1 where no weight sits."""
    unused: Int32Array
    """int32 [PEs evaluated one by one]: its weight where none sits."""
    tabled: Int64Array
    """int64 [PEs whose products are looked up]: which of those that are evaluated one by one they are."""
    behaviour: Int32Array
    """int32 [PEs whose products are looked up]: see `simulator.pe_behaviour`."""


class Weights(NamedTuple):
    """What PEs multiply activations with."""

    words: Int32Array
    """int32 [N, F, fold_rows / 2], in pairs of rows; 0 where a PE is bypassed or evaluated by itself."""
    apart: Int32Array
    """int32 [PEs evaluated one by one]"""
    table: Int32Array
    """int32 [PEs evaluated one by one]: the table that its product is looked up in, or -1."""
    tables: Int16Array
    """int16 [tables, 2**act_bits], products by the activation's bit pattern."""


@dataclass(frozen=True, eq=False)
class Program:
    """A GEMM with fixed weights on one chip, ready to run on any activations. Arrays are read-only.

    Attributes:
        chip: the chip's faults and bypass.
        w: int8 [K, N], the weights it was made from.
        effective_weights: int16 [K, N], weights as the multipliers get them; 0 at bypassed PEs.
        weights: those of the dot products, and those of PEs that are evaluated one by one.
        layout: which those are, and all masks.
    """

    chip: ChipFaults
    w: npt.NDArray[np.int8]
    effective_weights: Int16Array
    weights: Weights
    layout: Layout

    @property
    def config(self) -> ArrayConfig:
        """The array."""
        return self.chip.config

    @property
    def k(self) -> int:
        """Reduction length."""
        return len(self.w)

    @property
    def n(self) -> int:
        """Number of outputs."""
        return len(self.weights.words)

    def summary(self) -> dict[str, int]:
        """How much there is to do.

        Returns:
            `columns`: outputs; `folds`; `variants`: distinct versions of a row of activations that columns see, over
            the rows in use; `cuts`: places where a column's sum is interrupted by stuck bits of an adder;
            `corrections`: products evaluated by themselves; `bypassed`: weights without effect; `flips`.
        """
        layout, config = self.layout, self.config
        cuts = int(((layout.psum_keep != -1) | (layout.psum_force != 0)).sum())
        return {
            "columns": self.n,
            "folds": self.weights.words.shape[1] * -(-self.n // config.cols),
            "variants": min(layout.fold_rows, self.k) + len(layout.step_pair),
            "cuts": cuts,
            "corrections": len(layout.row) - cuts,
            "bypassed": int(_tiled(self.chip.bypass, self.k, self.n).sum()),
            "flips": int((self.chip.faults.table["cycle"] >= 0).sum()),
        }


def lower(
    w: npt.ArrayLike, config: ArrayConfig, faults: FaultMap | None = None, *, bypass: npt.ArrayLike | None = None
) -> Program:
    """Work out what a chip does with a weight matrix.

    What depends on faults and shape alone is remembered for the last few chips, so doing it again with other weights,
    as a training loop does after every step, takes little more than a pass over them.

    Args:
        w: integer weights [K, N] within `config.weight_range`: a NumPy array or a CPU tensor.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.

    Returns:
        The program, for `training.run`.

    Raises:
        InputError: shapes that do not fit, values out of range, K = 0 or N = 0, or faults of another array.
    """
    weights = check_operand("w", w, config.weight_range, "K, N")
    if 0 in weights.shape:
        raise InputError(f"w has shape {weights.shape}: expected K >= 1 and N >= 1")
    chip = chip_faults(config, faults, bypass)
    k, n = weights.shape
    layout, places = _layout(chip, k, n)
    fed = np.ascontiguousarray(weights.T, np.int16)
    seen = (fed & places.keep) | places.force
    effective = np.where(_tiled(chip.bypass, k, n), np.int16(0), seen) if chip.bypass.any() else seen
    rows, depth = config.rows, -(-k // config.rows)
    together = seen & places.together
    halves = np.zeros((n, depth, layout.fold_rows), np.int16)
    full = k // rows
    if full:
        halves[:, :full, :rows] = together[:, : full * rows].reshape(n, full, rows)
    if full < depth:
        halves[:, full, : k - full * rows] = together[:, full * rows :]
    pe_weight = np.where(places.source >= 0, seen.ravel()[places.source], places.unused).astype(np.int32)
    table, tables = np.full(len(pe_weight), -1, np.int32), np.empty((0, 1), np.int16)
    if len(places.tabled):
        tables, table[places.tabled] = chip.products(places.behaviour, pe_weight[places.tabled])
    parts = Weights(halves.view(np.int32), pe_weight, table, tables)
    program = Program(chip, np.array(weights, np.int8, order="C"), effective.T, parts, layout)
    for array in (program.w, program.effective_weights, *parts):
        array.flags.writeable = False
    return program


@lru_cache(maxsize=64)
def _layout(chip: ChipFaults, k: int, n: int) -> tuple[Layout, LayoutWeights]:
    config = chip.config
    rows, cols = config.rows, config.cols
    depth, width = -(-k // rows), min(n, cols)
    last_rows = k - (depth - 1) * rows
    apart = _pes_apart(chip, depth, last_rows, width)
    fold_rows = max(min(rows, k), int(apart[1].max(initial=-1)) + 1)
    fold_rows += fold_rows % 2

    # One copy for each n-fold, sorted by output, k-fold and row.
    copies = np.arange(-(-n // cols))
    output = (copies[:, None] * cols + apart[2]).ravel()
    pes = np.stack([output, *np.tile(apart, len(copies))])[:, output < n]
    output, fold, row, col = pes.take(np.lexsort((pes[2], pes[1], pes[0])), axis=1)
    entries = np.bincount(output * depth + fold, minlength=n * depth)
    index = fold * rows + row
    source = np.where(index < k, output * k + index, -1)

    psum_keep, psum_force = chip.psum.keep[row, col], chip.psum.force[row, col]
    accumulator_keep, accumulator_force = chip.accumulator
    in_order = ((accumulator_keep != -1) | (accumulator_force != 0))[np.arange(n) % cols]
    in_order[output[(psum_keep != -1) | (psum_force != 0)]] = True

    first_step, step_pair, step_keep, step_force = _activation_steps(chip, fold_rows, width)
    layout = Layout(
        fold_rows=fold_rows,
        in_order=in_order,
        first_pe=np.concatenate([[0], np.cumsum(entries)]),
        row=row,
        product_keep=chip.product.keep[row, col],
        product_force=chip.product.force[row, col],
        psum_keep=psum_keep,
        psum_force=psum_force,
        first_step=first_step,
        step_pair=step_pair,
        step_keep=step_keep,
        step_force=step_force,
        accumulator_keep=accumulator_keep,
        accumulator_force=accumulator_force,
    )
    together = ~(chip.bypass | chip.apart)
    behaviour = chip.multipliers.behaviour[row, col]
    weights = LayoutWeights(
        keep=_tiled(chip.weight.keep.astype(np.int16), k, n),
        force=_tiled(chip.weight.force.astype(np.int16), k, n),
        together=_tiled(-together.astype(np.int16), k, n),
        source=source,
        unused=chip.weight.force[row, col],
        tabled=np.nonzero(behaviour >= 0)[0],
        behaviour=behaviour[behaviour >= 0],
    )
    for array in (*layout, *weights):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return layout, weights


def _pes_apart(chip: ChipFaults, depth: int, last_rows: int, width: int) -> Int64Array:
    """K-fold, row and column of all PEs of one n-fold that are evaluated one by one: [3, PEs]."""
    in_use = np.arange(chip.config.rows)[:, None] < last_rows
    whole = np.argwhere(chip.apart[:, :width])
    last = np.argwhere(np.where(in_use, chip.apart, chip.apart_when_unused)[:, :width])
    fold = np.concatenate([np.repeat(np.arange(depth - 1), len(whole)), np.full(len(last), depth - 1)])
    return np.stack([fold, *np.concatenate([np.tile(whole, (depth - 1, 1)), last]).T])


def _activation_steps(
    chip: ChipFaults, fold_rows: int, width: int
) -> tuple[Int64Array, Int64Array, Int32Array, Int32Array]:
    """Activation masks in the order of travel, as masks of words that hold two rows."""
    here = chip.activation_here
    col, row = np.nonzero(here.any[:fold_rows, :width].T)
    shift = LANE_BITS * (row % 2)
    half = np.int64((1 << LANE_BITS) - 1)
    keep, force = (mask[row, col].astype(np.int64) & half for mask in here)
    keep = (keep << shift) | (half << (LANE_BITS - shift))
    first = np.concatenate([[0], np.cumsum(np.bincount(col, minlength=width))])
    return first, row // 2, keep.astype(np.int32), (force << shift).astype(np.int32)


def _tiled(per_pe: npt.NDArray[Any], k: int, n: int) -> npt.NDArray[Any]:
    """[rows, cols] of the array spread over a weight matrix: [N, K]."""
    rows, cols = per_pe.shape
    if k <= rows and n <= cols:
        return np.ascontiguousarray(per_pe[:k, :n].T)
    return np.ascontiguousarray(per_pe[np.ix_(np.arange(k) % rows, np.arange(n) % cols)].T)
