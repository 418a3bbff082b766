"""Permanent faults and bypass as bit masks, one pair per net of every PE, ready for the cycle engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.bits import Int32Array, Int64Array, as_number
from simulator.config import ArrayConfig
from simulator.faults import BoolArray, FaultMap, Kind, Site
from simulator.timing import load_cycles

Int16Array = npt.NDArray[np.int16]

CLEAN, MASKED, BYPASSED = 0, 1, 2
"""What the datapath of a PE does: multiply and add; the same with stuck bits; pass the partial sum on."""


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
    role: npt.NDArray[np.uint8]
    """uint8 [rows, cols]: CLEAN, MASKED or BYPASSED."""


def is_signed(site: Site, config: ArrayConfig) -> bool:
    """Whether the bits of this net are read as two's complement."""
    return site is not Site.ACTIVATION or config.act_signed


def stuck_masks(faults: FaultMap, site: Site) -> tuple[Int64Array, Int64Array]:
    """The `keep` and `force` masks of one site's permanent faults, int64 [rows, cols] (row 0 for ACCUMULATOR)."""
    config = faults.config
    table = faults.table[faults.table["site"] == site]
    patterns = []
    for kind in (Kind.STUCK_AT_0, Kind.STUCK_AT_1):
        stuck = table[table["kind"] == kind]
        pattern = np.zeros((config.rows, config.cols), np.int64)
        np.bitwise_or.at(pattern, (stuck["row"], stuck["col"]), np.int64(1) << stuck["bit"].astype(np.int64))
        patterns.append(pattern)
    stuck_at_0, stuck_at_1 = patterns
    bits, signed = site.bits(config), is_signed(site, config)
    return as_number(~stuck_at_0, bits, signed=signed), as_number(stuck_at_1, bits, signed=signed)


def pe_masks(faults: FaultMap, bypass: BoolArray) -> PeMasks:
    """Masks of all PEs.

    Args:
        faults: faults of the array; FLIPs are left out.
        bypass: bool [rows, cols].
    """
    load_keep, load_force = stuck_masks(faults, Site.WEIGHT_LOAD)
    weight_keep, weight_force = stuck_masks(faults, Site.WEIGHT)
    act_keep, act_force = stuck_masks(faults, Site.ACTIVATION)
    product_keep, product_force = stuck_masks(faults, Site.PRODUCT)
    psum_keep, psum_force = stuck_masks(faults, Site.PSUM)
    role = np.full(bypass.shape, CLEAN, np.uint8)
    permanent = faults.table[faults.table["kind"] != Kind.FLIP]
    datapath = permanent[np.isin(permanent["site"], (Site.ACTIVATION, Site.PRODUCT, Site.PSUM))]
    role[datapath["row"], datapath["col"]] = MASKED
    role[bypass] = BYPASSED
    load_stuck = np.zeros(bypass.shape, np.bool_)
    load = permanent[permanent["site"] == Site.WEIGHT_LOAD]
    load_stuck[load["row"], load["col"]] = True
    return PeMasks(
        load_keep=load_keep.astype(np.int16),
        load_force=load_force.astype(np.int16),
        weight_keep=weight_keep.astype(np.int16),
        weight_force=weight_force.astype(np.int16),
        act_keep=act_keep.astype(np.int16),
        act_force=act_force.astype(np.int16),
        product_keep=product_keep.astype(np.int16),
        product_force=product_force.astype(np.int16),
        psum_keep=psum_keep.astype(np.int32),
        psum_force=psum_force.astype(np.int32),
        load_stuck=load_stuck,
        # A copy: Numba compiles anew for arrays that are read-only.
        bypass=np.array(bypass, order="C"),
        role=role,
    )


class FoldFlips(NamedTuple):
    """FLIP faults of one fold, grouped by PE."""

    first: Int64Array
    """int64 [rows * cols + 1]: flips of PE i are `first[i]:first[i + 1]`; empty when the fold has none."""
    site: npt.NDArray[np.uint8]
    cycle: Int64Array
    """Clock cycle within the fold; the first `rows` cycles load."""
    mask: Int32Array
    """The bit to invert, as a number of its net."""


class Flips:
    """FLIP faults of a whole GEMM, handed out fold by fold.

    Args:
        faults: faults of the array; only FLIPs are looked at.
        cycles_per_fold: clock cycles of one fold in serial timing.
        total_cycles: clock cycles of the GEMM.

    Raises:
        ValueError: a FLIP lies in a cycle that the GEMM does not have.
    """

    def __init__(self, faults: FaultMap, cycles_per_fold: int, total_cycles: int) -> None:
        self._config = faults.config
        self._cycles_per_fold = cycles_per_fold
        table = faults.table[faults.table["kind"] == Kind.FLIP]
        outside = table["cycle"] >= total_cycles
        if outside.any():
            cycle = int(table["cycle"][outside][0])
            raise ValueError(
                f"a FLIP is in cycle {cycle}, outside this GEMM of {total_cycles} cycles: "
                f"expected a cycle in 0..{total_cycles - 1}"
            )
        in_array = table["site"] != Site.ACCUMULATOR
        self._pe_flips = table[in_array]
        self._accumulator_flips = table[~in_array]

    def of_fold(self, fold: int) -> FoldFlips:
        """The flips inside PEs during fold number `fold`."""
        table = self._in_fold(self._pe_flips, fold)
        # A weight register upset while weights load is overwritten before it is used.
        overwritten = (table["site"] == Site.WEIGHT) & (self._cycle_in_fold(table) < load_cycles(self._config))
        table = table[~overwritten]
        pe = table["row"].astype(np.int64) * self._config.cols + table["col"]
        mask = np.zeros(len(table), np.int32)
        for site in Site:
            chosen = table["site"] == site
            pattern = np.int64(1) << table["bit"][chosen].astype(np.int64)
            mask[chosen] = as_number(pattern, site.bits(self._config), signed=is_signed(site, self._config))
        first = np.searchsorted(pe, np.arange(self._config.pe_count + 1)) if len(pe) else np.empty(0, np.int64)
        return FoldFlips(first.astype(np.int64), table["site"].copy(), self._cycle_in_fold(table), mask)

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
