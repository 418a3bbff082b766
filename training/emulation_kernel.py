"""The emulation's kernel: a whole GEMM on a faulty array, for blocks of rows of X, in Numba.

For `LANES` rows of X at a time the activations of a k-fold are gathered into words of two reduction indices, and the
columns are visited from west to east. A column's stuck activation bits are forced in place, as the columns east of it
see them too; healthy PEs are dot products between the PEs that are evaluated one by one. The block stays in the
first-level cache; nothing of the size of an im2col matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit

from training.chip_faults import Int32Array, Int64Array
from training.lowering import Layout
from training.paired_dot import LANES, add_dot
from training.paired_loads import PAIRS, ROWS, load_run, transpose_rows

_Function = TypeVar("_Function", bound=Callable[..., object])

_HALF = 0xFFFF


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


def _kernel(function: _Function) -> _Function:
    return cast(_Function, njit(cache=True, nogil=True)(function))


@_kernel
def emulate(
    source: Source,
    layout: Layout,
    words: Int32Array,
    pe_weight: Int32Array,
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
        words: int32 [N, k-folds, pairs], weights of the dot products.
        pe_weight: int32, weights of the PEs apart.
        rows: rows of the array.
        cols: columns of the array.
        acc_bits: width of a partial sum.
        first: first row of X.
        stop: one past the last.
        target: where outputs go.
    """
    n, depth, pairs = words.shape
    k = len(source.offset)
    stepped = len(layout.step_pair) > 0
    folds_of_outputs = -(-n // cols)
    block = np.zeros((pairs, LANES), np.int32)
    fresh = np.zeros((pairs if stepped and folds_of_outputs > 1 else 0, LANES), np.int32)
    sums = np.zeros((n, LANES), np.int32)
    column_sum = np.zeros(LANES, np.int32)
    for start in range(first, stop, LANES):
        lanes = min(LANES, stop - start)
        sums[:] = 0
        for fold in range(depth):
            k_start = fold * rows
            k_stop = min(k, k_start + rows)
            _gather(source, start, lanes, k_start, k_stop, block)
            if len(fresh):
                fresh[:] = block
            used_pairs = (k_stop - k_start + 1) // 2
            for output in range(n):
                column = output % cols
                if column == 0 and output and len(fresh):
                    block[:] = fresh
                if stepped:
                    for step in range(layout.first_step[column], layout.first_step[column + 1]):
                        _force(block[layout.step_pair[step]], layout.step_keep[step], layout.step_force[step])
                entry = output * depth + fold
                begin, end = layout.first_pe[entry], layout.first_pe[entry + 1]
                keep, force = layout.accumulator_keep[column], layout.accumulator_force[column]
                if begin == end and keep == -1 and force == 0:
                    add_dot(block, words[output, fold], 0, used_pairs, sums[output])
                    continue
                column_sum[:] = 0
                done = 0
                for pe in range(begin, end):
                    row = layout.row[pe]
                    pair = (row + 1) // 2
                    add_dot(block, words[output, fold], done, min(pair, used_pairs), column_sum)
                    done = pair
                    _evaluate(
                        block[row // 2],
                        row % 2 == 1,
                        pe_weight[pe],
                        layout.product_keep[pe],
                        layout.product_force[pe],
                        layout.psum_keep[pe],
                        layout.psum_force[pe],
                        column_sum,
                    )
                add_dot(block, words[output, fold], done, used_pairs, column_sum)
                for lane in range(LANES):
                    sums[output, lane] = ((sums[output, lane] + column_sum[lane]) & keep) | force
        _store(sums, start, lanes, 32 - acc_bits, target)


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


# Small functions get what they need by itself: all of a layout is 13 arrays, whose handing over would cost more than
# their work.


@_kernel
def _force(words: Int32Array, keep: np.int32, force: np.int32) -> None:
    """Stuck bits of one activation net, for this column and those east of it."""
    for lane in range(LANES):
        words[lane] = (words[lane] & keep) | force


@_kernel
def _evaluate(
    words: Int32Array,
    high: bool,
    weight: np.int32,
    product_keep: np.int32,
    product_force: np.int32,
    psum_keep: np.int32,
    psum_force: np.int32,
    column_sum: Int32Array,
) -> None:
    """One PE: its product with stuck bits, added to the sum from the north, with stuck bits."""
    # Two loops, so that shifts are by constants: others would be done in 64 bits.
    if high:
        for lane in range(LANES):
            product = (np.int32((words[lane] >> 16) * weight) & product_keep) | product_force
            column_sum[lane] = ((column_sum[lane] + product) & psum_keep) | psum_force
    else:
        for lane in range(LANES):
            product = (np.int32((np.int32(words[lane] << 16) >> 16) * weight) & product_keep) | product_force
            column_sum[lane] = ((column_sum[lane] + product) & psum_keep) | psum_force


@_kernel
def _store(sums: Int32Array, start: int, lanes: int, unused_bits: int, target: Target) -> None:
    """Outputs of one block, wrapped to the accumulator's width."""
    lane = 0
    while lane < lanes:
        image, pixel = divmod(start + lane, target.size)
        run = min(lanes - lane, target.size - pixel)
        place = target.start + image * target.stride + pixel
        for output in range(len(sums)):
            into = target.memory[place + output * target.size : place + output * target.size + run]
            for i in range(run):
                into[i] = np.int32(sums[output, lane + i] << unused_bits) >> unused_bits
        lane += run
