"""Sums of a few products for all rows of X of one image, read where the image lies: inner loops of `fault_effect`.

Rows of X lie in memory as they do in `training.injection.layer_gemm`. Where their activations of
one reduction index lie side by side, but for the ends of an image's lines, the loops go over
everything in between, too, in vector registers, and what belongs to no row is dropped at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numba import njit

from simulator.kernels import Function, kernels
from training.emulation.chip_faults import Int32Array, Int64Array
from training.injection import product_differences
from training.injection.product_differences import Change

_FEWEST_ROWS = 8
"""Below it a row at a time is quicker."""

_MOST_PER_ROW = 6
"""Elements gone through for each row of X at most, for it to be worth it."""

_AT_ONCE = 32
"""Sums are made in multiples of it where memory goes on: what is left over takes as long as several vectors."""


class Rows(NamedTuple):
    """Rows of X of one image that count, `down * across` of them."""

    first: int
    """Where the first begins in the image."""
    down: int
    across: int
    step_down: int
    step_across: int
    place: int
    """Number of the first among all rows of X of the image."""


class Terms(NamedTuple):
    """Products to be added up."""

    place: Int64Array
    """int64 [terms]: where the activation lies from the beginning of its row of X."""
    factor: Int32Array
    """int32 [terms]: what it is multiplied with, or the line of the table that its product is looked up in."""
    table: Int32Array
    """int32 [lines, 2**act_bits], products by the activation's bit pattern; without lines products are exact."""


_kernel = kernels(product_differences)


def inlined(function: Function) -> Function:
    """Part of a kernel; kernels of their own would be compiled once more for each that calls them."""
    return cast(Function, njit(inline="always")(function))


@_kernel
def scratch_for(rows: Rows) -> Int32Array:
    """Room for what `add_terms` goes through; empty where a row at a time is quicker."""
    count = rows.down * rows.across
    span = (rows.down - 1) * rows.step_down + (rows.across - 1) * rows.step_across + 1
    dense = count >= _FEWEST_ROWS and span <= _MOST_PER_ROW * count
    return np.empty(-(-span // _AT_ONCE) * _AT_ONCE if dense else 0, np.int32)


@_kernel
def add_terms(
    memory: Any,
    base: int,
    terms: Terms,
    first: int,
    stop: int,
    rows: Rows,
    scratch: Int32Array,
    sums: Int32Array,
) -> None:
    """Add terms `first` to `stop` to the sum of each row of X.

    Args:
        memory: int8 or uint8, one dimension.
        base: where the image begins.
        terms: the products.
        first: first term.
        stop: one past the last.
        rows: rows of X.
        scratch: from `scratch_for`.
        sums: int32 [rows], added to; they wrap.
    """
    base += rows.first
    if first >= stop:
        return
    if len(terms.table):
        for term in range(first, stop):
            _add_looked_up(memory, base + terms.place[term], terms.table[terms.factor[term]], rows, sums)
    elif len(scratch):
        set_all(scratch, 0)
        term = first
        while term + 4 <= stop:
            _add_four(memory, base, terms, term, scratch)
            term += 4
        while term < stop:
            _add_one(memory, base + terms.place[term], terms.factor[term], scratch)
            term += 1
        _add_compact(scratch, rows, sums)
    else:
        _add_row_by_row(memory, base, terms, first, stop, rows, sums)


@inlined
def _add_looked_up(memory: Any, base: int, line: Int32Array, rows: Rows, sums: Int32Array) -> None:
    mask = len(line) - 1
    for down in range(rows.down):
        at = base + down * rows.step_down
        run = sums[down * rows.across : (down + 1) * rows.across]
        for across in range(len(run)):
            run[across] += line[memory[at + across * rows.step_across] & mask]


@inlined
def _add_four(memory: Any, base: int, terms: Terms, term: int, scratch: Int32Array) -> None:
    """Four terms, so that sums are loaded and stored once for all of them."""
    a, b = base + terms.place[term], base + terms.place[term + 1]
    c, d = base + terms.place[term + 2], base + terms.place[term + 3]
    count = min(len(scratch), len(memory) - max(max(a, b), max(c, d)))
    of_a, of_b, of_c, of_d = memory[a : a + count], memory[b : b + count], memory[c : c + count], memory[d : d + count]
    by_a, by_b = terms.factor[term], terms.factor[term + 1]
    by_c, by_d = terms.factor[term + 2], terms.factor[term + 3]
    for i in range(count):
        scratch[i] += by_a * of_a[i] + by_b * of_b[i] + by_c * of_c[i] + by_d * of_d[i]


@inlined
def _add_one(memory: Any, at: int, factor: int, scratch: Int32Array) -> None:
    count = min(len(scratch), len(memory) - at)
    values = memory[at : at + count]
    for i in range(count):
        scratch[i] += np.int32(factor) * values[i]


@inlined
def _add_compact(scratch: Int32Array, rows: Rows, sums: Int32Array) -> None:
    """What belongs to rows of X."""
    for down in range(rows.down):
        at = down * rows.step_down
        run = sums[down * rows.across : (down + 1) * rows.across]
        if rows.step_across == 1:
            line = scratch[at : at + rows.across]
            for across in range(len(run)):
                run[across] += line[across]
        else:
            for across in range(len(run)):
                run[across] += scratch[at + across * rows.step_across]


@inlined
def _add_row_by_row(memory: Any, base: int, terms: Terms, first: int, stop: int, rows: Rows, sums: Int32Array) -> None:
    for down in range(rows.down):
        for across in range(rows.across):
            at = base + down * rows.step_down + across * rows.step_across
            total = np.int32(0)
            for term in range(first, stop):
                total = np.int32(total + terms.factor[term] * memory[at + terms.place[term]])
            sums[down * rows.across + across] += total


@inlined
def add_changes_of_products(memory: Any, base: int, weight: int, change: Change, rows: Rows, sums: Int32Array) -> None:
    """Add what a fault adds to the products of one weight.

    Args:
        memory: int8 or uint8, one dimension.
        base: where the activation of the first row of X lies.
        weight: what it is multiplied with.
        change: of the product.
        rows: rows of X.
        sums: int32 [rows], added to.
    """
    flip, keep, force = np.int32(change.flip), np.int32(change.keep), np.int32(change.force)
    for down in range(rows.down):
        at = base + down * rows.step_down
        run = sums[down * rows.across : (down + 1) * rows.across]
        if rows.step_across == 1:
            values = memory[at : at + rows.across]
            for across in range(len(run)):
                product = np.int32(weight * values[across])
                run[across] += (((product ^ flip) & keep) | force) - product
        else:
            for across in range(len(run)):
                product = np.int32(weight * memory[at + across * rows.step_across])
                run[across] += (((product ^ flip) & keep) | force) - product


@inlined
def changes_of_activations(memory: Any, base: int, change: Change, rows: Rows, errors: Int32Array) -> bool:
    """What a fault adds to the activations of one reduction index.

    Args:
        memory: int8 or uint8, one dimension.
        base: where the activation of the first row of X lies.
        change: of the activation.
        rows: rows of X.
        errors: int32 [rows], written.

    Returns:
        Whether any is not 0.
    """
    flip, keep, force = np.int32(change.flip), np.int32(change.keep), np.int32(change.force)
    seen = np.int32(0)
    for down in range(rows.down):
        at = base + down * rows.step_down
        run = errors[down * rows.across : (down + 1) * rows.across]
        for across in range(len(run)):
            value = np.int32(memory[at + across * rows.step_across])
            error = np.int32((((value ^ flip) & keep) | force) - value)
            run[across] = error
            seen |= error
    return bool(seen != 0)


@inlined
def set_all(sums: Int32Array, value: int) -> None:
    """Set all sums to one value."""
    for i in range(len(sums)):
        sums[i] = value


@inlined
def add_multiple(values: Int32Array, factor: int, sums: Int32Array) -> None:
    """Add `factor` times int32 `values` to as many sums."""
    for i in range(len(sums)):
        sums[i] += factor * values[i]


@inlined
def add_changes_of_sums(sums: Int32Array, change: Change, errors: Int32Array) -> None:
    """Add what a fault adds to int32 `sums` to as many `errors`."""
    flip, keep, force = np.int32(change.flip), np.int32(change.keep), np.int32(change.force)
    for i in range(len(sums)):
        errors[i] += (((sums[i] ^ flip) & keep) | force) - sums[i]
