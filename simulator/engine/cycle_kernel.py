"""The cycle engine: every register of every PE in every clock cycle of a fold, in Numba.

A register that shifts is kept as a *line* of memory that holds its values over a block of cycles, and neighbouring
registers share a line: the east registers of one row are windows on one activation line, the south registers of one
column windows on one partial-sum line, each window one place further back than its neighbour's because it sees every
value one cycle later. PE (r, c) in cycle i of a block reads and writes place `cols - c + i` of row r's line (its
activation arrives from the west there, and stands there in its east register afterwards) and place `rows - r + i` of
column c's line (likewise from the north). A register that passes its input on costs nothing to step: the next window
starts one place earlier. Everything else is evaluated value by value: each PE's product, sum and faults in each cycle,
the filling and draining of the array and the idle PEs included.

PEs are visited column by column from the west and row by row from the north, each for a whole block of cycles. That is
a valid order, since a PE depends only on its west and north neighbours, and it lets one partial-sum line stay in the
first-level cache while the inner loop, over cycles, has constant weight and masks and runs in vector registers.

Partial sums are held modulo 2^32. Addition and bit masks act alike on the low `acc_bits` bits whatever stands above
them, so narrower accumulators are wrapped only where values are read out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator import pe_behaviour_kernel as pe_products_kernel
from simulator.dtypes import Int16Array, Int32Array
from simulator.engine import masks
from simulator.engine.masks import BYPASSED, CLEAN, MASKED, FoldFlips, PeMasks
from simulator.faults import Site
from simulator.gates import cells, netlist_kernel
from simulator.kernels import kernels
from simulator.pe_behaviour_kernel import PeProducts, single_product

BLOCK_CYCLES = 1024
"""Cycles evaluated per visit of a PE: enough to amortise the visit, few enough for the lines to stay in cache."""

_WEIGHT = int(Site.WEIGHT)
_WEIGHT_LOAD = int(Site.WEIGHT_LOAD)
_ACTIVATION = int(Site.ACTIVATION)
_PRODUCT = int(Site.PRODUCT)
_PSUM = int(Site.PSUM)
_MULTIPLIER = int(Site.MULTIPLIER)


class Tape(NamedTuple):
    """Where registers are written down: int32 [rows, cols, entries]; those of a fold are entries `begin` to `end`."""

    first: int
    """Cycle of the fold that entry 0 would be for."""
    begin: int
    end: int
    shift: Int32Array
    weight: Int32Array
    east: Int32Array
    product: Int32Array
    south: Int32Array


class FoldProducts(NamedTuple):
    """The PEs that look their products up, with the weights of one fold."""

    rows: Int16Array
    """int16 [tables, 2**act_bits], products by the activation's bit pattern."""
    row_of: Int32Array
    """int32 [rows, cols]: the table of each PE that has one."""


_kernel = kernels(masks, cells, netlist_kernel, pe_products_kernel)


@_kernel
def load_weights(tile: Int16Array, columns: int, pe: PeMasks, flips: FoldFlips, tape: Tape) -> Int16Array:
    """Step the load chain of a fold: `rows` cycles in which weights shift in from the north.

    Args:
        tile: int16 [used rows, used columns], the fold's weights; all other PEs get 0.
        columns: columns to step, from the west.
        pe: masks of all PEs.
        flips: the fold's flips.
        tape: what to record.

    Returns:
        int16 [rows, cols], the stationary weight registers.
    """
    rows, cols = pe.bypass.shape
    weights = np.zeros((rows, cols), np.int16)
    # Register of row r after load cycle i stands at place rows - r + i; the feeder's value of cycle i at rows + i.
    line = np.empty(2 * rows, np.int16)
    for c in range(columns):
        line[:] = 0
        if c < tile.shape[1]:
            for k in range(tile.shape[0]):
                line[2 * rows - 1 - k] = tile[k, c]
        for r in range(rows):
            if len(flips.first):
                for flip in range(flips.first[r * cols + c], flips.first[r * cols + c + 1]):
                    if flips.site[flip] == _WEIGHT_LOAD and flips.cycle[flip] < rows:
                        line[rows - r + flips.cycle[flip]] ^= np.int16(flips.mask[flip])
            if pe.load_stuck[r, c]:
                for place in range(rows - r, 2 * rows - r):
                    line[place] = (line[place] & pe.load_keep[r, c]) | pe.load_force[r, c]
            weights[r, c] = line[2 * rows - 1 - r]
            for entry in range(tape.begin, tape.end):
                cycle = tape.first + entry
                tape.shift[r, c, entry] = line[rows - r + min(cycle, rows - 1)]
                tape.weight[r, c, entry] = weights[r, c] if cycle >= rows - 1 else 0
    return weights


@_kernel
def stream(
    acts: Int16Array,
    weights: Int16Array,
    columns: int,
    pe: PeMasks,
    products: PeProducts,
    tables: FoldProducts,
    flips: FoldFlips,
    tape: Tape,
    first: int,
    collect: int,
    stop: int,
    outputs: Int32Array,
) -> int:
    """Step the datapath of a fold in streaming cycles `first` to `stop`, all registers 0 before the first.

    Args:
        acts: int16 [used rows, M], the activations of the fold's reduction indices; the other rows get 0.
        weights: int16 [rows, cols], the stationary weight registers.
        columns: columns to step, from the west.
        pe: masks of all PEs.
        products: which PEs do not multiply exactly.
        tables: what those make of this fold's weights.
        flips: the fold's flips.
        tape: what to record.
        first: first streaming cycle to step. Values in flight last at most rows + cols - 2 cycles, so registers are
            right from `first + rows + cols - 2` on, and from the beginning when `first` is 0.
        collect: streaming cycle from which outputs are collected.
        stop: one past the last streaming cycle.
        outputs: int32 [used columns, M]; the outputs that leave in `collect:stop` are written here.

    Returns:
        Number of cycles whose outputs were collected.
    """
    rows, cols = pe.bypass.shape
    used_rows, m = acts.shape
    act_lines = np.zeros((rows, cols + BLOCK_CYCLES), np.int16)
    psum_line = np.zeros(rows + BLOCK_CYCLES, np.int32)
    south = np.zeros((columns, rows), np.int32)
    upsets = np.zeros((_PSUM + 1, BLOCK_CYCLES), np.int32)
    stepped = 0
    length = 0
    for start in range(first, stop, BLOCK_CYCLES):
        for r in range(rows):
            for place in range(cols):
                act_lines[r, place] = act_lines[r, length + place]
            _feed(acts, r, used_rows, start - r, m, act_lines[r, cols:])
        length = min(BLOCK_CYCLES, stop - start)
        recorded = tape.begin < tape.end and tape.first + tape.end > rows + start
        recorded = recorded and tape.first + tape.begin < rows + start + length
        for c in range(columns):
            psum_line[:rows] = south[c]
            psum_line[rows:] = 0
            for r in range(rows):
                act = act_lines[r, cols - c : cols - c + length]
                psum = psum_line[rows - r : rows - r + length]
                weight = (weights[r, c] & pe.weight_keep[r, c]) | pe.weight_force[r, c]
                upset = len(flips.first) > 0 and flips.first[r * cols + c] < flips.first[r * cols + c + 1]
                if recorded or upset:
                    _place_upsets(flips, r * cols + c, rows + start, length, upsets)
                    _step_watched(act, psum, weights[r, c], pe, r, c, products, flips, upsets, tape, rows + start)
                elif pe.role[r, c] == CLEAN:
                    _step_clean(act, psum, weight)
                elif pe.role[r, c] == BYPASSED:
                    _step_bypassed(act, pe.act_keep[r, c], pe.act_force[r, c])
                elif pe.role[r, c] == MASKED:
                    _step_masked(act, psum, weight, pe, r, c)
                else:
                    _step_tabled(act, psum, tables.rows[tables.row_of[r, c]], pe, r, c)
            if c < len(outputs):
                # Row of X whose sum is on the last row's adder in the block's first cycle.
                row_of_x = start - (rows - 1) - c
                begin = max(0, -row_of_x, collect - start)
                end = min(length, m - row_of_x)
                for i in range(begin, end):
                    outputs[c, row_of_x + i] = psum_line[1 + i]
            south[c] = psum_line[length : length + rows]
        stepped += max(0, start + length - max(start, collect))
    return stepped


@_kernel
def _feed(acts: Int16Array, row: int, used_rows: int, row_of_x: int, m: int, line: Int16Array) -> None:
    """What the west feeder of a row gives in a block of cycles: rows of X from `row_of_x` on, 0 before and after."""
    line[:] = 0
    if row < used_rows:
        begin, end = max(0, -row_of_x), min(len(line), m - row_of_x)
        for i in range(begin, end):
            line[i] = acts[row, row_of_x + i]


@_kernel
def _step_clean(act: Int16Array, psum: Int32Array, weight: int) -> None:
    for i in range(len(psum)):
        psum[i] += np.int32(np.int16(act[i] * weight))


@_kernel
def _step_bypassed(act: Int16Array, act_keep: int, act_force: int) -> None:
    for i in range(len(act)):
        act[i] = (act[i] & act_keep) | act_force


@_kernel
def _step_masked(act: Int16Array, psum: Int32Array, weight: int, pe: PeMasks, r: int, c: int) -> None:
    act_keep, act_force = pe.act_keep[r, c], pe.act_force[r, c]
    product_keep, product_force = pe.product_keep[r, c], pe.product_force[r, c]
    psum_keep, psum_force = pe.psum_keep[r, c], pe.psum_force[r, c]
    for i in range(len(psum)):
        a = np.int16((act[i] & act_keep) | act_force)
        act[i] = a
        product = np.int16((np.int16(a * weight) & product_keep) | product_force)
        psum[i] = ((psum[i] + np.int32(product)) & psum_keep) | psum_force


@_kernel
def _step_tabled(act: Int16Array, psum: Int32Array, table: Int16Array, pe: PeMasks, r: int, c: int) -> None:
    act_keep, act_force = pe.act_keep[r, c], pe.act_force[r, c]
    product_keep, product_force = pe.product_keep[r, c], pe.product_force[r, c]
    psum_keep, psum_force = pe.psum_keep[r, c], pe.psum_force[r, c]
    pattern = len(table) - 1
    for i in range(len(psum)):
        a = np.int16((act[i] & act_keep) | act_force)
        act[i] = a
        product = np.int16((table[a & pattern] & product_keep) | product_force)
        psum[i] = ((psum[i] + np.int32(product)) & psum_keep) | psum_force


@_kernel
def _place_upsets(flips: FoldFlips, pe_index: int, start: int, length: int, upsets: Int32Array) -> None:
    """Bits that flips invert on each net of a PE: int32 [site, cycle of the block]; `start` counts within the fold."""
    upsets[:, :length] = 0
    if len(flips.first) == 0:
        return
    for flip in range(flips.first[pe_index], flips.first[pe_index + 1]):
        site, cycle = flips.site[flip], flips.cycle[flip] - start
        if site == _WEIGHT:
            # What is stored stays inverted to the end of the fold.
            for i in range(max(cycle, 0), length):
                upsets[_WEIGHT, i] ^= flips.mask[flip]
        elif site != _WEIGHT_LOAD and site != _MULTIPLIER and 0 <= cycle < length:
            upsets[site, cycle] ^= flips.mask[flip]


@_kernel
def _step_watched(
    act: Int16Array,
    psum: Int32Array,
    stored: int,
    pe: PeMasks,
    r: int,
    c: int,
    products: PeProducts,
    flips: FoldFlips,
    upsets: Int32Array,
    tape: Tape,
    start: int,
) -> None:
    """Step one PE with upsets on its nets, and write its registers down; `start` counts within the fold."""
    behaviour = products.behaviour[r, c]
    first, end = 0, 0
    if len(flips.first):
        pe_index = r * pe.bypass.shape[1] + c
        first, end = flips.first[pe_index], flips.first[pe_index + 1]
    inverted = np.empty(end - first, np.int32)
    codes = np.zeros(products.circuit.first_pin[-1], np.uint8)
    for i in range(len(psum)):
        register = np.int16(stored ^ upsets[_WEIGHT, i])
        weight = (register & pe.weight_keep[r, c]) | pe.weight_force[r, c]
        a = np.int16(((act[i] ^ upsets[_ACTIVATION, i]) & pe.act_keep[r, c]) | pe.act_force[r, c])
        act[i] = a
        upset = 0
        for flip in range(first, end):
            if flips.site[flip] == _MULTIPLIER and flips.cycle[flip] == start + i:
                inverted[upset] = flips.mask[flip]
                upset += 1
        if behaviour >= 0 or upset > 0:
            product = np.int32(single_product(products, behaviour, inverted[:upset], weight, a, codes))
        else:
            product = np.int32(np.int16(a * weight))
        product ^= upsets[_PRODUCT, i]
        product = (product & np.int32(pe.product_keep[r, c])) | np.int32(pe.product_force[r, c])
        if not pe.bypass[r, c]:
            total = np.int32(psum[i] + product) ^ upsets[_PSUM, i]
            psum[i] = (total & pe.psum_keep[r, c]) | pe.psum_force[r, c]
        entry = start + i - tape.first
        if tape.begin <= entry < tape.end:
            tape.weight[r, c, entry] = register
            tape.east[r, c, entry] = a
            tape.product[r, c, entry] = product
            tape.south[r, c, entry] = psum[i]
