"""The emulation's kernel: a whole GEMM on a faulty array, for blocks of rows of X, in Numba.

For `LANES` rows of X at a time the activations of some k-folds are gathered into words of two reduction indices, and
the columns are visited from west to east. A column's stuck activation bits are forced in place, as the columns east of
it see them too. Healthy PEs are one dot product; in columns whose adders have stuck bits, one between each two PEs that
are evaluated one by one. The block stays in the first-level cache; nothing of the size of an im2col matrix is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numba import njit

from simulator.dtypes import Int16Array, Int32Array, Int64Array
from simulator.kernels import Function, kernels
from training.emulation import intrinsics
from training.emulation.intrinsics import (
    LANES,
    PAIRS,
    ROWS,
    WIDTH,
    add_dot,
    add_product,
    force_bits,
    load_run,
    store_wrapped,
    transpose_rows,
)
from training.emulation.program import Layout

_HALF = 0xFFFF

_PAIRS_IN_CACHE = 128
"""Of `LANES` words each: 24 KiB, which leaves room for weights and sums in a first-level cache of 32 KiB."""


class Source(NamedTuple):
    """Where X lies: `X[m, k]` is `memory[pixel[m] + offset[k]]`; both increase strictly."""

    memory: Any
    """int8 or uint8, one dimension."""
    pixel: Int64Array
    """int64 [M]"""
    offset: Int64Array
    """int64 [K]"""


class Target(NamedTuple):
    """Where outputs go: output n of row m is `memory[start + (m // size) * stride + n * size + m % size]`."""

    memory: Int32Array
    """int32, one dimension."""
    start: int
    stride: int
    size: int


class Apart(NamedTuple):
    """What PEs that are evaluated one by one multiply activations with."""

    weight: Int32Array
    """int32 [PEs]"""
    table: Int32Array
    """int32 [PEs]: the table that its product is looked up in, or -1."""
    tables: Int16Array
    """int16 [tables, 2**act_bits], by the activation's bit pattern."""


_kernel = kernels(intrinsics)


def _inlined(function: Function) -> Function:
    """Part of a kernel: handing over all arrays of a layout would cost more than the part's work."""
    return cast(Function, njit(inline="always")(function))


@_kernel
def emulate(
    source: Source,
    layout: Layout,
    words: Int32Array,
    pes: Apart,
    rows: int,
    cols: int,
    acc_bits: int,
    first: int,
    stop: int,
    target: Target,
) -> None:
    """Compute all outputs of rows `first` to `stop` of X.

    Args:
        source: X.
        layout: PEs apart, and masks.
        words: int32 [N, k-folds, pairs], weights of the dot products, 0 for the PEs apart.
        pes: weights and tables of the PEs apart.
        rows: rows of the array.
        cols: columns of the array.
        acc_bits: width of a partial sum.
        first: first row of X.
        stop: one past the last.
        target: where outputs go.
    """
    n, depth, pairs = words.shape
    weights = words.reshape(-1)
    k = len(source.offset)
    at_once = max(1, min(depth, _PAIRS_IN_CACHE // pairs))
    block = np.zeros((at_once * pairs, LANES), np.int32)
    fresh = np.zeros((at_once * pairs if len(layout.step_pair) and n > cols else 0, LANES), np.int32)
    sums = np.zeros((n, LANES), np.int32)
    column_sum = np.zeros((1, LANES), np.int32)
    for start in range(first, stop, LANES):
        lanes = min(LANES, stop - start)
        sums[:] = 0
        for first_fold in range(0, depth, at_once):
            folds = min(at_once, depth - first_fold)
            used_pairs = 0
            for fold in range(folds):
                k_start = (first_fold + fold) * rows
                k_stop = min(k, k_start + rows)
                used_pairs = (k_stop - k_start + 1) // 2
                _gather(source, start, lanes, k_start, k_stop, block[fold * pairs : (fold + 1) * pairs])
            if len(fresh):
                _copy(block.reshape(-1), fresh.reshape(-1))
            for output in range(n):
                column = output % cols
                if column == 0 and output and len(fresh):
                    _copy(fresh.reshape(-1), block.reshape(-1))
                for step in range(layout.first_step[column], layout.first_step[column + 1]):
                    keep, force = layout.step_keep[step], layout.step_force[step]
                    for fold in range(folds):
                        force_bits(block, fold * pairs + layout.step_pair[step], keep, force)
                entry = output * depth + first_fold
                if layout.in_order[output]:
                    for fold in range(folds):
                        here = used_pairs if fold == folds - 1 else pairs
                        at = fold * pairs
                        _sum_in_order(block, at, here, weights, layout, pes, entry + fold, column_sum)
                        keep, force = layout.accumulator_keep[column], layout.accumulator_force[column]
                        for lane in range(LANES):
                            sums[output, lane] = ((sums[output, lane] + column_sum[0, lane]) & keep) | force
                else:
                    add_dot(block, 0, (folds - 1) * pairs + used_pairs, weights, entry * pairs, sums, output)
                    for fold in range(folds):
                        for pe in range(layout.first_pe[entry + fold], layout.first_pe[entry + fold + 1]):
                            _add_pe(block, fold * pairs, layout, pes, pe, sums, output)
        _store(sums, start, lanes, acc_bits, target)


@_kernel
def _copy(source: Int32Array, target: Int32Array) -> None:
    for i in range(len(target)):
        target[i] = source[i]


@_inlined
def _sum_in_order(
    block: Int32Array,
    at: int,
    pairs: int,
    weights: Int32Array,
    layout: Layout,
    pes: Apart,
    entry: int,
    column_sum: Int32Array,
) -> None:
    """What one k-fold sends down a column, from the north: dot products between PEs apart."""
    first = entry * layout.fold_rows // 2
    column_sum[:] = 0
    done = 0
    for pe in range(layout.first_pe[entry], layout.first_pe[entry + 1]):
        pair = min((layout.row[pe] + 1) // 2, pairs)
        add_dot(block, at + done, pair - done, weights, first + done, column_sum, 0)
        done = pair
        _add_pe(block, at, layout, pes, pe, column_sum, 0)
        force_bits(column_sum, 0, layout.psum_keep[pe], layout.psum_force[pe])
    add_dot(block, at + done, pairs - done, weights, first + done, column_sum, 0)


@_inlined
def _add_pe(block: Int32Array, at: int, layout: Layout, pes: Apart, pe: int, sums: Int32Array, output: int) -> None:
    """The product of a PE apart, its weight in one half of a pair beside 0, or looked up."""
    row = layout.row[pe]
    keep, force = layout.product_keep[pe], layout.product_force[pe]
    word = np.int32((pes.weight[pe] & _HALF) << (16 * (row % 2)))
    add_product(block, at + row // 2, word, keep, force, sums, output, pes.tables, pes.table[pe], 16 * (row % 2))


@_kernel
def _gather(source: Source, start: int, lanes: int, k_start: int, k_stop: int, block: Int32Array) -> None:
    """Activations of a k-fold in pairs of reduction indices; pairs beyond the fold are 0."""
    depth = k_stop - k_start
    block[depth // 2 :] = 0
    lane = 0
    while lane + ROWS <= lanes:
        if source.pixel[start + lane + ROWS - 1] == source.pixel[start + lane] + ROWS - 1:
            _gather_run(source, start, lane, k_start, depth, block)
        else:
            _gather_rows(source, start, lane, k_start, depth, block)
        lane += ROWS
    while lane < lanes:
        _gather_row(source, start, lane, k_start, 0, depth, block)
        lane += 1


@_kernel
def _gather_run(source: Source, start: int, lane: int, k_start: int, depth: int, block: Int32Array) -> None:
    """Eight rows of X whose activations lie side by side."""
    base = source.pixel[start + lane]
    for pair in range(depth // 2):
        low, high = source.offset[k_start + 2 * pair], source.offset[k_start + 2 * pair + 1]
        load_run(source.memory, base + low, base + high, block, pair, lane)
    if depth % 2:
        for one in range(lane, lane + ROWS):
            _gather_row(source, start, one, k_start, depth - 1, depth, block)


@_kernel
def _gather_rows(source: Source, start: int, lane: int, k_start: int, depth: int, block: Int32Array) -> None:
    """Eight rows of X apart: sixteen reduction indices at a time where they lie side by side."""
    offset, at_once = source.offset, 2 * PAIRS
    done = 0
    while done + at_once <= depth and offset[k_start + done + at_once - 1] == offset[k_start + done] + at_once - 1:
        transpose_rows(source.memory, source.pixel, start + lane, offset[k_start + done], block, done // 2, lane)
        done += at_once
    # The last ones, again sixteen at a time: some for the second time, and with an odd depth one too many.
    again = depth + depth % 2 - at_once
    if (
        done < depth
        and again >= 0
        and offset[k_start + depth - 1] - offset[k_start + again] == depth - 1 - again
        and source.pixel[start + lane + ROWS - 1] + offset[k_start + again] + at_once <= len(source.memory)
    ):
        transpose_rows(source.memory, source.pixel, start + lane, offset[k_start + again], block, again // 2, lane)
        if depth % 2:
            for one in range(lane, lane + ROWS):
                block[depth // 2, one] &= _HALF
        done = depth
    if done < depth:
        for one in range(lane, lane + ROWS):
            _gather_row(source, start, one, k_start, done, depth, block)


@_kernel
def _gather_row(source: Source, start: int, lane: int, k_start: int, done: int, depth: int, block: Int32Array) -> None:
    """One row of X, from reduction index `done` (even, or the last) of the k-fold on."""
    memory, offset = source.memory, source.offset
    base = source.pixel[start + lane]
    for pair in range(done // 2, depth // 2):
        low = np.int32(memory[base + offset[k_start + 2 * pair]])
        high = np.int32(memory[base + offset[k_start + 2 * pair + 1]])
        block[pair, lane] = (low & _HALF) | (high << 16)
    if depth % 2:
        block[depth // 2, lane] = np.int32(memory[base + offset[k_start + depth - 1]]) & _HALF


@_kernel
def _store(sums: Int32Array, start: int, lanes: int, acc_bits: int, target: Target) -> None:
    """Outputs of one block, wrapped to the accumulator's width."""
    sign = np.int32(-1 << (acc_bits - 1))
    mask = np.int32(~(sign << 1))
    lane = 0
    while lane < lanes:
        image, pixel = divmod(start + lane, target.size)
        run = min(lanes - lane, target.size - pixel)
        place = target.start + image * target.stride + pixel
        for output in range(len(sums)):
            for i in range(0, run - WIDTH + 1, WIDTH):
                store_wrapped(sums, output, lane + i, mask, sign, target.memory, place + i)
            for i in range(run - run % WIDTH, run):
                target.memory[place + i] = ((sums[output, lane + i] & mask) ^ sign) - sign
            place += target.size
        lane += run
