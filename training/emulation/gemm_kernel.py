"""The emulation's kernel: a whole GEMM on a faulty array, for blocks of rows of X, in Numba.

For `LANES` rows of X at a time the activations of some k-folds are gathered into words of two reduction indices, and
the columns are visited from west to east. A column's stuck activation bits are forced in place, as the columns east of
it see them too. Healthy PEs are one dot product; in columns whose adders have stuck bits, one between each two PEs that
are evaluated one by one. The block stays in the first-level cache; nothing of the size of an im2col matrix is made.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numba import njit

from simulator.dtypes import Int8Array, Int32Array, Int64Array, UInt8Array
from simulator.kernels import Function, kernels
from training.emulation import intrinsics, program
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
from training.emulation.program import Layout, Weights

_HALF = 0xFFFF
_Memory = Int8Array | UInt8Array

_PAIRS_IN_CACHE = 128
"""Of `LANES` words each: 24 KiB, which leaves room for weights and sums in a first-level cache of 32 KiB."""


class Source(NamedTuple):
    """Where X lies: `X[m, k]` is `memory[pixel[m] + offset[k]]`; both increase strictly."""

    memory: Int8Array
    """int8, one dimension: the bytes of activations, signed or not."""
    signed: bool
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


_kernel = kernels(intrinsics, program)


def _inlined(function: Function) -> Function:
    """Part of a kernel: handing over all arrays of a layout would cost more than the part's work."""
    return cast(Function, njit(inline="always")(function))


@_kernel
def emulate(
    source: Source,
    layout: Layout,
    weights: Weights,
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
        weights: those of the dot products, weights and tables of the PEs apart.
        rows: rows of the array.
        cols: columns of the array.
        acc_bits: width of a partial sum.
        first: first row of X.
        stop: one past the last.
        target: where outputs go.
    """
    n, depth, pairs = weights.words.shape
    words = weights.words.reshape(-1)
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
                        _sum_in_order(block, at, here, words, layout, weights, entry + fold, column_sum)
                        keep, force = layout.accumulator_keep[column], layout.accumulator_force[column]
                        for lane in range(LANES):
                            sums[output, lane] = ((sums[output, lane] + column_sum[0, lane]) & keep) | force
                else:
                    add_dot(block, 0, (folds - 1) * pairs + used_pairs, words, entry * pairs, sums, output)
                    for fold in range(folds):
                        for pe in range(layout.first_pe[entry + fold], layout.first_pe[entry + fold + 1]):
                            _add_pe(block, fold * pairs, layout, weights, pe, sums, output)
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
    words: Int32Array,
    layout: Layout,
    weights: Weights,
    entry: int,
    column_sum: Int32Array,
) -> None:
    """What one k-fold sends down a column, from the north: dot products between PEs apart."""
    first = entry * layout.fold_rows // 2
    column_sum[:] = 0
    done = 0
    for pe in range(layout.first_pe[entry], layout.first_pe[entry + 1]):
        pair = min((layout.row[pe] + 1) // 2, pairs)
        add_dot(block, at + done, pair - done, words, first + done, column_sum, 0)
        done = pair
        _add_pe(block, at, layout, weights, pe, column_sum, 0)
        force_bits(column_sum, 0, layout.psum_keep[pe], layout.psum_force[pe])
    add_dot(block, at + done, pairs - done, words, first + done, column_sum, 0)


@_inlined
def _add_pe(
    block: Int32Array, at: int, layout: Layout, weights: Weights, pe: int, sums: Int32Array, output: int
) -> None:
    """The product of a PE apart, its weight in one half of a pair beside 0, or looked up."""
    row = layout.row[pe]
    shift = 16 * (row % 2)
    keep, force = layout.product_keep[pe], layout.product_force[pe]
    word = np.int32((weights.apart[pe] & _HALF) << shift)
    add_product(block, at + row // 2, word, keep, force, sums, output, weights.tables, weights.table[pe], shift)


@_kernel
def _gather(source: Source, start: int, lanes: int, k_start: int, k_stop: int, block: Int32Array) -> None:
    """Activations of a k-fold in pairs of reduction indices; pairs beyond the fold are 0."""
    pixel, offset = source.pixel[start : start + lanes], source.offset[k_start:k_stop]
    block[len(offset) // 2 :] = 0
    # What is in this branch is all that is compiled for both kinds of activations.
    if source.signed:
        _gather_lanes(source.memory, pixel, offset, block)
    else:
        _gather_lanes(source.memory.view(np.uint8), pixel, offset, block)


@_kernel
def _gather_lanes(memory: _Memory, pixel: Int64Array, offset: Int64Array, block: Int32Array) -> None:
    lane = 0
    while lane + ROWS <= len(pixel):
        if pixel[lane + ROWS - 1] == pixel[lane] + ROWS - 1:
            _gather_run(memory, pixel, offset, lane, block)
        else:
            _gather_rows(memory, pixel, offset, lane, block)
        lane += ROWS
    for one in range(lane, len(pixel)):
        _gather_row(memory, pixel[one], offset, 0, one, block)


@_inlined
def _gather_run(memory: _Memory, pixel: Int64Array, offset: Int64Array, lane: int, block: Int32Array) -> None:
    """Eight rows of X whose activations lie side by side."""
    for pair in range(len(offset) // 2):
        low, high = pixel[lane] + offset[2 * pair], pixel[lane] + offset[2 * pair + 1]
        load_run(memory, low, high, block, pair, lane)
    if len(offset) % 2:
        for one in range(lane, lane + ROWS):
            _gather_row(memory, pixel[one], offset, len(offset) - 1, one, block)


@_inlined
def _gather_rows(memory: _Memory, pixel: Int64Array, offset: Int64Array, lane: int, block: Int32Array) -> None:
    """Eight rows of X apart: sixteen reduction indices at a time where they lie side by side."""
    depth, at_once, done = len(offset), 2 * PAIRS, 0
    while done + at_once <= depth and offset[done + at_once - 1] == offset[done] + at_once - 1:
        transpose_rows(memory, pixel, offset[done], block, done // 2, lane)
        done += at_once
    # The last ones, again sixteen at a time: some for the second time, and with an odd depth one too many.
    again = depth + depth % 2 - at_once
    if (
        done < depth
        and again >= 0
        and offset[depth - 1] - offset[again] == depth - 1 - again
        and pixel[lane + ROWS - 1] + offset[again] + at_once <= len(memory)
    ):
        transpose_rows(memory, pixel, offset[again], block, again // 2, lane)
        if depth % 2:
            for one in range(lane, lane + ROWS):
                block[depth // 2, one] &= _HALF
        done = depth
    if done < depth:
        for one in range(lane, lane + ROWS):
            _gather_row(memory, pixel[one], offset, done, one, block)


@_kernel
def _gather_row(memory: _Memory, base: int, offset: Int64Array, done: int, lane: int, block: Int32Array) -> None:
    """One row of X, from reduction index `done` (even, or the last) of the k-fold on."""
    depth = len(offset)
    for pair in range(done // 2, depth // 2):
        low = np.int32(memory[base + offset[2 * pair]])
        high = np.int32(memory[base + offset[2 * pair + 1]])
        block[pair, lane] = (low & _HALF) | (high << 16)
    if depth % 2:
        block[depth // 2, lane] = np.int32(memory[base + offset[depth - 1]]) & _HALF


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
