"""Which permanent faults change nothing, and which do the same as others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.collapsing.kernel import (
    Operands,
    find_alike,
    find_loud_sums,
    find_quiet,
    find_trailing_zeros,
    stand_ins,
)
from efat.propagation.collapsing.products import Alike, alike, clean_products, disturbed_products
from efat.propagation.population import stratum_codes
from efat.propagation.request import Stratum
from efat.propagation.tables import Rule
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import BoolArray, Int16Array, Int32Array, Int64Array, UInt8Array


class OperandChains(NamedTuple):
    """Stuck bits of operands; entry 2 * b is bit b stuck at 0, the next one bit b stuck at 1.

    Attributes:
        quiet: bool [2 * bits, rows, cols], whether no product changes with the activations that occur.
        used: bool [rows, cols], whether the operand is used in any PE that it gets to.
        first: int32 [2 * bits, rows, cols], where the chain begins: a row for weights, a column for activations.
        last: int32 [2 * bits, rows, cols], where it ends, in the PE where the fault makes a difference; past the array
            if there is none.
        alone: bool [2 * bits, rows, cols], whether that is the only PE where it does.
    """

    quiet: BoolArray
    used: BoolArray
    first: Int32Array
    last: Int32Array
    alone: BoolArray


def operand_chains(quiet: BoolArray, always_quiet: BoolArray, used: BoolArray, *, along_rows: bool) -> OperandChains:
    """The chains of stuck operands that pass on from row to row, or from column to column.

    `quiet` and `always_quiet`, bool [2 * bits, rows, cols], say whether one changes no product of a PE with the
    activations that occur and with any; `used`, bool [rows, cols], which PEs have a weight in any layer.
    """
    if not along_rows:
        turned = (np.swapaxes(marks, -1, -2) for marks in (quiet, always_quiet, used))
        found = operand_chains(*turned, along_rows=True)
        return OperandChains._make(np.swapaxes(values, -1, -2) for values in found)
    loud = ~always_quiet
    count = loud.shape[1]
    place = np.arange(count, dtype=np.int32)[:, None]
    last_before = np.full(loud.shape, -1, np.int32)
    last_before[:, 1:] = np.maximum.accumulate(np.where(loud, place, np.int32(-1)), axis=1)[:, :-1]
    following = np.where(loud, place, np.int32(count))[:, ::-1]
    return OperandChains(
        quiet=np.logical_and.accumulate(quiet[:, ::-1], axis=1)[:, ::-1],
        used=np.logical_or.accumulate(used[::-1], axis=0)[::-1],
        first=last_before + 1,
        last=np.minimum.accumulate(following, axis=1)[:, ::-1],
        alone=np.cumsum(loud[:, ::-1], axis=1, dtype=np.int32)[:, ::-1] == 1,
    )


class SumChains(NamedTuple):
    """Stuck bits of adders and accumulators; entry 2 * b is bit b stuck at 0, the next one bit b stuck at 1.

    Attributes:
        quiet: bool [2 * acc_bits, rows, cols], whether no sum changes with the activations that occur.
        first: int32 [acc_bits, rows, cols], the row where the chain of the bit begins.
        accumulator_quiet: bool [2 * acc_bits, cols], whether nothing that the accumulator stores changes.
        one_fold: bool [cols], whether the accumulator stores just what leaves the last row, so that its faults are
            those of that row's adder.
    """

    quiet: BoolArray
    first: Int32Array
    accumulator_quiet: BoolArray
    one_fold: BoolArray


def sum_chains(operands: Operands, products: Int16Array, acc_bits: int, first_quiet: BoolArray) -> SumChains:
    """The chains of stuck bits of sums of `products`, int16 [2**weight_bits, 2**act_bits].

    `first_quiet`, bool [2 * bits, cols], says which bits of a product of the first row, that are bits of its sum, are
    quiet.
    """
    rows, cols = operands.rows, operands.cols
    one_fold = np.ones(cols, np.bool_)
    for k, n in zip(operands.k.tolist(), operands.n.tolist(), strict=True):
        one_fold[:n] &= k <= rows
    loud, accumulator_loud = np.empty((rows, cols), np.uint64), np.empty(cols, np.uint64)
    find_loud_sums(operands, products, acc_bits, loud, accumulator_loud)
    flags = np.arange(2 * acc_bits, dtype=np.uint64)
    quiet = (loud >> flags[:, None, None]) & np.uint64(1) == 0
    accumulator_quiet = (accumulator_loud >> flags[:, None]) & np.uint64(1) == 0
    zeros = np.empty((rows, cols), np.int64)
    find_trailing_zeros(operands, products, zeros)
    # A number whose bits up to this one are 0 may be added before or after the bit is stuck.
    linked = zeros > np.arange(acc_bits)[:, None, None]
    linked[:, 0] = False
    place = np.arange(rows, dtype=np.int32)[:, None]
    first = np.maximum.accumulate(np.where(linked, np.int32(0), place), axis=1)
    # What holds for one fault of a chain holds for all.
    quiet[: len(first_quiet), 0] |= first_quiet
    quiet[:, -1] |= accumulator_quiet & one_fold
    both = np.repeat(linked, 2, axis=0)
    for row in range(1, rows):
        quiet[:, row] |= quiet[:, row - 1] & both[:, row]
    for row in range(rows - 1, 0, -1):
        quiet[:, row - 1] |= quiet[:, row] & both[:, row]
    accumulator_quiet |= quiet[:, -1] & one_fold
    return SumChains(quiet, first, accumulator_quiet, one_fold)


_STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
_WITHIN_PE = (Site.WEIGHT, Site.PRODUCT, Site.MULTIPLIER)
_BLOCK = 1 << 20
"""Faults that are looked at together."""

_PRODUCTS_OF = {
    Site.WEIGHT: Site.WEIGHT,
    Site.WEIGHT_LOAD: Site.WEIGHT,
    Site.PRODUCT: Site.PRODUCT,
    Site.PSUM: Site.PRODUCT,
    Site.MULTIPLIER: Site.MULTIPLIER,
    Site.ACCUMULATOR: Site.PRODUCT,
}
"""The nets within a PE whose faults are those of a net further on, or further back, if these act in one PE alone."""


class _Found(NamedTuple):
    """What is known of faults of one site; arrays are of all these faults."""

    quiet: BoolArray
    used: BoolArray
    home: Int64Array
    """The row of the PE in which alone the fault acts, on products only; -1 if there is none."""
    site: Int64Array
    """Site, row and column of the fault that does the same, if there is no such PE."""
    row: Int64Array
    col: Int64Array


class StuckRules:
    """The rules for permanent faults; only those of `strata` stand for others."""

    def __init__(self, config: ArrayConfig, operands: Operands, strata: Sequence[Stratum]) -> None:
        self._config = config
        self._operands = operands
        self._strata = frozenset(strata)
        # The bits of a product that are those of the sum in the first row; above them a product has its sign.
        widest = config.acc_bits == config.product_bits
        self._plain_bits = config.product_bits if widest else config.product_bits - 1
        self._used = np.zeros((config.rows, config.cols), np.bool_)
        for k, n in zip(operands.k.tolist(), operands.n.tolist(), strict=True):
            self._used[:k, :n] = True
        self._locals = sorted(stratum for stratum in self._strata if self._may_be_local(stratum))
        self._place = {stratum: place for place, stratum in enumerate(self._locals)}

    def rules(self, table: npt.NDArray[np.void]) -> tuple[UInt8Array, npt.NDArray[np.void]]:
        """The rule of each fault, uint8 [faults], and the one that stands for it, both `POPULATION_DTYPE` [faults]."""
        rule, standing = np.zeros(len(table), np.uint8), table.copy()
        home = np.full(len(table), -1, np.int64)
        quiet, used = np.zeros(len(table), np.bool_), np.zeros(len(table), np.bool_)
        for code in np.unique(table["site"]).tolist():
            chosen = np.flatnonzero(table["site"] == code)
            found = self._find(Site(code), table[chosen])
            quiet[chosen], used[chosen], home[chosen] = found.quiet, found.used, found.home
            for name in ("site", "row", "col"):
                standing[name][chosen] = getattr(found, name)
        self._stand_in_pes(table, home, quiet, standing)
        other = [standing[name] != table[name] for name in ("row", "col", "site", "bit", "kind")]
        rule[np.logical_or.reduce(other)] = Rule.EQUIVALENT
        rule[quiet] = np.where(used[quiet], Rule.SAME_VALUE, Rule.UNUSED)
        standing[quiet] = table[quiet]
        return rule, standing

    def counts(self, strata: Sequence[Stratum]) -> Int64Array:
        """How many faults of some strata each rule is for over the whole array, int64 [strata, rules]."""
        heads, quiet_unused, quiet_used = self._count_in_pes(strata)
        counts = np.zeros((len(strata), len(Rule)), np.int64)
        for place, stratum in enumerate(strata):
            site, bit, kind = stratum
            # -1 for faults that never act in one PE alone.
            entry = self._place.get(stratum, -1)
            total = self._config.cols if site is Site.ACCUMULATOR else self._config.pe_count
            if site in _WITHIN_PE:
                unused, same, simulated = quiet_unused[entry], quiet_used[entry], heads[entry]
            else:
                table = _everywhere(self._config, bit, kind, total)
                found = self._find(site, table)
                unused, same = (found.quiet & ~found.used).sum(), (found.quiet & found.used).sum()
                itself = (found.site == site) & (found.row == table["row"]) & (found.col == table["col"])
                simulated = (~found.quiet & (found.home < 0) & itself).sum()
                simulated += heads[entry] if entry >= 0 else 0
            counts[place] = simulated, unused, same, total - simulated - unused - same
        return counts

    def _may_be_local(self, stratum: Stratum) -> bool:
        site, bit, _ = stratum
        return site in _PRODUCTS_OF and (site not in (Site.PSUM, Site.ACCUMULATOR) or bit < self._plain_bits)

    def _find(self, site: Site, table: npt.NDArray[np.void]) -> _Found:
        """What is known of faults of one site; for those of products whether they are quiet is not."""
        row, col, bit = (table[name].astype(np.int64) for name in ("row", "col", "bit"))
        kind = table["kind"].astype(np.int64)
        flag = 2 * bit + kind
        nowhere, own = np.full(len(table), -1, np.int64), np.full(len(table), int(site), np.int64)
        if site in _WITHIN_PE:
            return _Found(np.zeros(len(table), np.bool_), self._used[row, col], row, own, row, col)
        if site is Site.ACTIVATION:
            chains = self._activations
            first = chains.first[flag, row, col].astype(np.int64)
            return _Found(chains.quiet[flag, row, col], chains.used[row, col], nowhere, own, row, first)
        if site is Site.WEIGHT_LOAD:
            chains = self._loads
            home = np.where(chains.alone[flag, row, col], chains.last[flag, row, col], -1).astype(np.int64)
            first = chains.first[flag, row, col].astype(np.int64)
            return _Found(chains.quiet[flag, row, col], chains.used[row, col], home, own, first, col)
        sums = self._sums
        used: BoolArray = np.logical_or.reduce(self._used)[col]
        if site is Site.PSUM:
            first = sums.first[bit, row, col].astype(np.int64)
            home = np.where((first == 0) & (bit < self._plain_bits), 0, -1)
            return _Found(sums.quiet[flag, row, col], used, home, own, first, col)
        first = sums.first[bit, -1, col].astype(np.int64)
        home = np.where(sums.one_fold[col] & (first == 0) & (bit < self._plain_bits), 0, -1)
        adders = np.array(
            [(Site.PSUM, number >> 1, Kind(number & 1)) in self._strata for number in range(2 * self._config.acc_bits)]
        )
        as_adder = sums.one_fold[col] & adders[flag]
        at_site, at_row = np.where(as_adder, int(Site.PSUM), own), np.where(as_adder, first, 0)
        return _Found(sums.accumulator_quiet[flag, col], used, home, at_site, at_row, col)

    def _stand_in_pes(
        self, table: npt.NDArray[np.void], home: Int64Array, quiet: BoolArray, standing: npt.NDArray[np.void]
    ) -> None:
        """Fill in what of faults that act in one PE is quiet, and the faults that stand for them."""
        local = np.flatnonzero(home >= 0)
        if not len(local):
            return
        col = table["col"][local].astype(np.int64)
        pes, pe_of = np.unique(home[local] * self._config.cols + col, return_inverse=True)
        site, bit, kind = (np.array(values, np.int64) for values in zip(*self._locals, strict=True))
        own = stratum_codes(*(table[name][local] for name in ("site", "bit", "kind")))
        entry = np.searchsorted(stratum_codes(site, bit, kind), own)
        order = np.argsort(pe_of, kind="stable")
        for start, found, still in self._of_pes(pes):
            begin, end = np.searchsorted(pe_of[order], (start, start + len(found)))
            here = order[begin:end]
            of_pe, place = pe_of[here] - start, local[here]
            quiet[place] = still[of_pe, entry[here]]
            instead = found[of_pe, entry[here]]
            row = home[place].copy()
            passing = site[instead] == Site.WEIGHT_LOAD
            if passing.any():
                flag = 2 * bit[instead] + kind[instead]
                row[passing] = self._loads.first[flag[passing], row[passing], col[here][passing]]
            standing["row"][place] = row
            for name, values in (("site", site), ("bit", bit), ("kind", kind)):
                standing[name][place] = values[instead]

    def _count_in_pes(self, strata: Sequence[Stratum]) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Faults that act in one PE alone: those that stand for themselves, and quiet ones without and with a weight.

        All are int64 [faults within a PE].
        """
        heads, unused, used = (np.zeros(len(self._locals), np.int64) for _ in range(3))
        if any(stratum in self._place for stratum in strata):
            entry = np.arange(len(self._locals))
            pes = np.arange(self._config.pe_count)
            for start, found, quiet in self._of_pes(pes):
                of_used = self._used.reshape(-1)[pes[start : start + len(found)], None]
                heads += ((found == entry) & ~quiet).sum(0)
                unused += (quiet & ~of_used).sum(0)
                used += (quiet & of_used).sum(0)
        return heads, unused, used

    def _of_pes(self, pes: Int64Array) -> Iterator[tuple[int, Int32Array, BoolArray]]:
        """Faults that act in single PEs, `row * cols + col`, for some PEs after others.

        The place of the first; int32 [PEs, faults within a PE], the fault that stands for each, -1 for faults that act
        elsewhere, too; and bool of the same shape, which are quiet.
        """
        behaviours, sites = self._alike, np.array([site for site, _, _ in self._locals])
        block = max(1, _BLOCK // max(1, len(self._locals)))
        for start in range(0, len(pes), block):
            row, col = np.divmod(pes[start : start + block], self._config.cols)
            there = np.ones((len(row), len(self._locals)), np.bool_)
            for place in np.flatnonzero(~np.isin(sites, _WITHIN_PE)).tolist():
                there[:, place] = self._is_there(self._locals[place], row, col)
            same = np.empty((len(row), behaviours.same.shape[1]), np.int32)
            find_alike(self._operands, row, col, behaviours.same, same)
            found = np.empty(there.shape, np.int32)
            stand_ins(same, behaviours.behaviour, there, found)
            quiet = np.empty(same.shape, np.bool_)
            find_quiet(self._operands, row, col, behaviours.disturbed, quiet)
            yield start, found, quiet[:, behaviours.behaviour]

    def _is_there(self, stratum: Stratum, row: Int64Array, col: Int64Array) -> BoolArray:
        """At which PEs a fault of a net that is not within a PE acts in that PE alone."""
        site, bit, kind = stratum
        if site is Site.WEIGHT_LOAD:
            flag = 2 * bit + kind
            ends: BoolArray = self._loads.alone[flag, row, col] & (self._loads.last[flag, row, col] == row)
            return ends
        top: BoolArray = row == 0
        if site is Site.ACCUMULATOR:
            top &= self._sums.one_fold[col] & (self._sums.first[bit, -1, col] == 0)
        return top

    @cached_property
    def _alike(self) -> Alike:
        return alike(self._config, [(_PRODUCTS_OF[site], bit, kind) for site, bit, kind in self._locals])

    @cached_property
    def _loads(self) -> OperandChains:
        return operand_chains(*self._quiet_operands(Site.WEIGHT), self._used, along_rows=True)

    @cached_property
    def _activations(self) -> OperandChains:
        return operand_chains(*self._quiet_operands(Site.ACTIVATION), self._used, along_rows=False)

    @cached_property
    def _sums(self) -> SumChains:
        faults = [(Site.PRODUCT, bit, kind) for bit in range(self._plain_bits) for kind in _STUCK]
        col = np.arange(self._config.cols)
        quiet = np.empty((len(col), len(faults)), np.bool_)
        find_quiet(self._operands, np.zeros_like(col), col, disturbed_products(self._config, faults), quiet)
        products = np.array(clean_products(self._config))
        return sum_chains(self._operands, products, self._config.acc_bits, quiet.T)

    def _quiet_operands(self, site: Site) -> tuple[BoolArray, BoolArray]:
        """Whether stuck operands change no product, with what occurs and anything: bool [2 * bits, rows, cols]."""
        config = self._config
        disturbed = disturbed_products(
            config, [(site, bit, kind) for bit in range(site.bits(config)) for kind in _STUCK]
        )
        row, col = (places.reshape(-1) for places in np.indices((config.rows, config.cols), np.int64))
        any_activation = self._operands._replace(seen=np.full_like(self._operands.seen, ~np.uint64(0)))
        found = []
        for operands in (self._operands, any_activation):
            quiet = np.empty((len(row), disturbed.shape[1]), np.bool_)
            find_quiet(operands, row, col, disturbed, quiet)
            found.append(np.ascontiguousarray(quiet.T).reshape(-1, config.rows, config.cols))
        return found[0], found[1]


def _everywhere(config: ArrayConfig, bit: int, kind: Kind, count: int) -> npt.NDArray[np.void]:
    """The same fault of the first nets of a site; other fields than these are left out."""
    table = np.zeros(count, [("row", "<i8"), ("col", "<i8"), ("bit", "<i8"), ("kind", "<i8")])
    table["row"], table["col"] = np.divmod(np.arange(count), config.cols)
    table["bit"], table["kind"] = bit, kind
    return table
