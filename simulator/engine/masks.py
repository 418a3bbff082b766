"""Permanent faults and bypass as bit masks, one pair per net of every PE, ready for the cycle engine."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from simulator.bits import as_number
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int16Array, Int32Array, Int64Array, UInt8Array
from simulator.engine.timing import load_cycles
from simulator.errors import InputError
from simulator.faults import FaultMap, Kind, Site

_Integer = TypeVar("_Integer", np.int16, np.int32)

CLEAN, MASKED, BYPASSED, TABLED = 0, 1, 2, 3
"""What the datapath of a PE does: multiply and add; the same with stuck bits; pass the partial sum on; look the product
up in a table and add, with stuck bits."""


class PeMasks(NamedTuple):
    """Bits of each net that survive (`keep`) and that are forced to 1 (`force`), as numbers of that net [rows, cols].

    A value v of the net becomes `(v & keep) | force`. Masks are sign-extended like the values, so the result is a
    proper number of the net again.
    """

    load_keep: Int16Array
    load_force: Int16Array
    weight_keep: Int16Array
    weight_force: Int16Array
    act_keep: Int16Array
    act_force: Int16Array
    product_keep: Int16Array
    product_force: Int16Array
    psum_keep: Int32Array
    psum_force: Int32Array
    load_stuck: BoolArray
    """bool [rows, cols]: PEs whose weight operand net has stuck bits."""
    bypass: BoolArray
    """bool [rows, cols]"""
    role: UInt8Array
    """uint8 [rows, cols]: CLEAN, MASKED, BYPASSED or TABLED."""


def is_signed(site: Site, config: ArrayConfig) -> bool:
    """Whether the bits of this net are read as two's complement."""
    return site is not Site.ACTIVATION or config.act_signed


def stuck_masks(
    faults: FaultMap, site: Site, dtype: type[_Integer]
) -> tuple[npt.NDArray[_Integer], npt.NDArray[_Integer]]:
    """The `keep` and `force` masks of one site's permanent faults, [rows, cols] (row 0 for ACCUMULATOR)."""
    config = faults.config
    bits, signed = site.bits(config), is_signed(site, config)
    shape = (config.rows, config.cols)
    keep = np.full(shape, as_number(-1, bits, signed=signed), dtype)
    force = np.zeros(shape, dtype)
    table = faults.table[faults.table["site"] == site]
    if len(table):
        bit = as_number(np.int64(1) << table["bit"].astype(np.int64), bits, signed=signed).astype(dtype)
        at_0, at_1 = table["kind"] == Kind.STUCK_AT_0, table["kind"] == Kind.STUCK_AT_1
        np.bitwise_and.at(keep, (table["row"][at_0], table["col"][at_0]), ~bit[at_0])
        np.bitwise_or.at(force, (table["row"][at_1], table["col"][at_1]), bit[at_1])
    return keep, force


def pe_masks(faults: FaultMap, bypass: BoolArray) -> PeMasks:
    """Masks of all PEs, FLIPs left out; `bypass` is bool [rows, cols]."""
    narrow = (Site.WEIGHT_LOAD, Site.WEIGHT, Site.ACTIVATION, Site.PRODUCT)
    load, weight, act, product = (stuck_masks(faults, site, np.int16) for site in narrow)
    role = np.full(bypass.shape, CLEAN, np.uint8)
    permanent = faults.table[faults.table["kind"] != Kind.FLIP]
    datapath = permanent[np.isin(permanent["site"], (Site.ACTIVATION, Site.PRODUCT, Site.PSUM))]
    role[datapath["row"], datapath["col"]] = MASKED
    multipliers = permanent[permanent["site"] == Site.MULTIPLIER]
    role[multipliers["row"], multipliers["col"]] = TABLED
    if not faults.config.multiplies_exactly:
        role[:] = TABLED
    role[bypass] = BYPASSED
    load_stuck = np.zeros(bypass.shape, np.bool_)
    loading = permanent[permanent["site"] == Site.WEIGHT_LOAD]
    load_stuck[loading["row"], loading["col"]] = True
    return PeMasks(
        *load,
        *weight,
        *act,
        *product,
        *stuck_masks(faults, Site.PSUM, np.int32),
        load_stuck,
        # A copy: Numba compiles anew for arrays that are read-only.
        np.array(bypass, order="C"),
        role,
    )


class FoldFlips(NamedTuple):
    """FLIP faults of one fold, grouped by PE."""

    first: Int64Array
    """int64 [rows * cols + 1]: flips of PE i are `first[i]:first[i + 1]`; empty when the fold has none."""
    site: UInt8Array
    cycle: Int64Array
    """Clock cycle within the fold; the first `rows` cycles load."""
    mask: Int32Array
    """The bit to invert, as a number of its net; of a MULTIPLIER flip the location."""


NO_FLIPS = FoldFlips(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int32))


class Flips:
    """FLIP faults of a whole GEMM, handed out fold by fold.

    Args:
        faults: faults of the array; only FLIPs are looked at.
        cycles_per_fold: clock cycles of one fold in serial timing.
        total_cycles: clock cycles of the GEMM.

    Raises:
        InputError: a FLIP lies in a cycle that the GEMM does not have.
    """

    def __init__(self, faults: FaultMap, cycles_per_fold: int, total_cycles: int) -> None:
        self._config = faults.config
        self._cycles_per_fold = cycles_per_fold
        table = faults.table[faults.table["kind"] == Kind.FLIP]
        last = int(table["cycle"].max(initial=-1))
        if last >= total_cycles:
            raise InputError(
                f"a FLIP is in cycle {last}, outside this GEMM of {total_cycles} cycles: "
                f"expected a cycle in 0..{total_cycles - 1}"
            )
        in_array = table["site"] != Site.ACCUMULATOR
        self._pe_flips = table[in_array]
        self._accumulator_flips = table[~in_array]

    def of_fold(self, fold: int) -> FoldFlips:
        """The flips inside PEs during fold number `fold`."""
        if not len(self._pe_flips):
            return NO_FLIPS
        table = self._in_fold(self._pe_flips, fold)
        # A weight register upset while weights load is overwritten before it is used.
        overwritten = (table["site"] == Site.WEIGHT) & (self._cycle_in_fold(table) < load_cycles(self._config))
        table = table[~overwritten]
        pe = table["row"].astype(np.int64) * self._config.cols + table["col"]
        mask = np.zeros(len(table), np.int32)
        for code in np.unique(table["site"]).tolist():
            site, chosen = Site(code), table["site"] == code
            bit = table["bit"][chosen].astype(np.int64)
            if site is Site.MULTIPLIER:
                mask[chosen] = bit
            else:
                pattern = np.int64(1) << bit
                mask[chosen] = as_number(pattern, site.bits(self._config), signed=is_signed(site, self._config))
        if not len(pe):
            return NO_FLIPS
        first = np.searchsorted(pe, np.arange(self._config.pe_count + 1)).astype(np.int64)
        return FoldFlips(first, table["site"].copy(), self._cycle_in_fold(table), mask)

    @property
    def on_accumulators(self) -> bool:
        """Whether any flip is of a column accumulator."""
        return len(self._accumulator_flips) > 0

    def of_accumulators(self, fold: int, m: int) -> tuple[Int64Array, Int64Array, Int32Array]:
        """Column, row of X and bit mask of each accumulator write that a flip spoils in fold number `fold`."""
        table = self._in_fold(self._accumulator_flips, fold)
        column = table["col"].astype(np.int64)
        # Output (m, c) leaves the last row in streaming cycle m + (rows - 1) + c, after `rows` load cycles.
        row_of_x = self._cycle_in_fold(table) - load_cycles(self._config) - (self._config.rows - 1) - column
        written = (row_of_x >= 0) & (row_of_x < m)
        pattern = np.int64(1) << table["bit"].astype(np.int64)
        mask = as_number(pattern, self._config.acc_bits, signed=True).astype(np.int32)
        return column[written], row_of_x[written], mask[written]

    def _in_fold(self, table: npt.NDArray[np.void], fold: int) -> npt.NDArray[np.void]:
        chosen: npt.NDArray[np.void] = table[table["cycle"] // self._cycles_per_fold == fold]
        return chosen

    def _cycle_in_fold(self, table: npt.NDArray[np.void]) -> Int64Array:
        cycle: Int64Array = table["cycle"] % self._cycles_per_fold
        return cycle
