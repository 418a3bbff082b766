"""What one fault adds to a layer's accumulators, from the few products it meets: the kernels of `fault_effect`.

Products of PEs are exact, or the differences that the fault makes stand in a table. Sums of products are made where
bits of a sum are broken, those of its column alone; the last fold's is what is left of the accumulator without the
others', if that is less work.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from simulator.dtypes import Int32Array, Int64Array, UInt8Array
from simulator.kernels import Function, kernels

OF_WEIGHTS, OF_PRODUCTS, OF_ACTIVATIONS, OF_ADDERS, OF_ACCUMULATORS, LOOKED_UP = range(6)
"""Which numbers a fault changes, and whether what it adds to products is looked up."""

NO_CHANGE, CHANGES, INCOMPLETE = 0, 1, 2
"""Nothing but zeros was written; something was; or lines of the table are wanted, and nothing is complete."""

UNKNOWN, WANTED, NOTHING, SOMETHING = 0, 1, 2, 3
"""What is known of a weight's products: nothing; nothing, and it is asked for; the fault changes none; or some."""

_FEWEST_ROWS = 8
"""Below it a row at a time is quicker."""

_MOST_PER_ROW = 6
"""Elements gone through for each row of X at most, for it to be worth it."""

_AT_ONCE = 32
"""Sums are made in multiples of it where memory goes on: what is left over takes as long as several vectors."""


class Change(NamedTuple):
    """What a fault makes of a net's value v: `((v ^ flip) & keep) | force`, as numbers of the net."""

    flip: int
    keep: int
    force: int

    def of(self, values: npt.NDArray[np.integer]) -> Int64Array:
        """Values with the fault."""
        return ((values.astype(np.int64) ^ self.flip) & self.keep) | self.force


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


class TouchedPes(NamedTuple):
    """PEs of a column that a fault touches: rows of the array in k-folds."""

    first_fold: int
    stop_fold: int
    first_row: int
    stop_row: int


class GemmArrays(NamedTuple):
    """A layer's GEMMs on some images, the outputs that a fault can reach, and what it adds to them."""

    memory: Any
    """int8 or uint8, one dimension: images one after another."""
    image_size: int
    weights: npt.NDArray[np.int8]
    """int8 [groups, N, K]"""
    offset: Int64Array
    """int64 [groups, K]"""
    array_rows: int
    acc_bits: int
    outputs: Int64Array
    """int64 [A]"""
    delta: Int32Array
    """int32 [S, A, M], written for the rows of X that count."""


_kernel = kernels()


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


@_kernel
def effect_of_fault(
    memory: Any,
    weights: npt.NDArray[np.int8],
    offset: Int64Array,
    outputs: Int64Array,
    accumulated: Int32Array,
    table: Int32Array,
    state: UInt8Array,
    numbers: Int64Array,
    delta: Int32Array,
) -> int:
    """What one fault adds to accumulators, wrapped to their width.

    Arguments are arrays, as it takes longer to hand over tuples than most faults do.

    Args:
        memory: int8 or uint8 [S * image_size].
        weights: int8 [groups, N, K].
        offset: int64 [groups, K].
        outputs: int64 [A], those that the fault can reach.
        accumulated: int32 [S, outputs, M], without the fault.
        table: int32 [2**weight_bits, 2**act_bits], by bit patterns: if products are looked up, what the fault adds to
            each; else all products; without lines if PEs multiply exactly.
        state: uint8 [2**weight_bits], what is known of the table's lines if products are looked up; `UNKNOWN` ones are
            made `WANTED` if they are needed.
        numbers: int64 [16]: the fields of `Rows`, `TouchedPes` and `Change`, the array's rows, width of an accumulator,
            and what the fault changes.
        delta: int32 [S, A, M], written for the rows of X that count.

    Returns:
        `NO_CHANGE`, `CHANGES` or `INCOMPLETE`.
    """
    rows = Rows(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5])
    touched = TouchedPes(numbers[6], numbers[7], numbers[8], numbers[9])
    change = Change(numbers[10], numbers[11], numbers[12])
    size = len(memory) // max(1, len(delta))
    layer = GemmArrays(memory, size, weights, offset, numbers[13], numbers[14], outputs, delta)
    kind = numbers[15]
    if kind in (OF_WEIGHTS, LOOKED_UP):
        if kind == LOOKED_UP and not _known(layer, touched, state):
            return INCOMPLETE
        seen = _of_weights(layer, rows, touched, change, state, table)
    elif kind == OF_PRODUCTS:
        seen = _of_products(layer, rows, touched, change)
    elif kind == OF_ACTIVATIONS:
        seen = _of_activations(layer, rows, touched, change)
    elif kind == OF_ADDERS:
        seen = _of_adders(layer, rows, touched, change, accumulated, table)
    else:
        seen = _of_accumulators(layer, rows, touched, change, accumulated, table)
    return CHANGES if seen else NO_CHANGE


@_kernel
def _changed(value: int, change: Change) -> int:
    changed: int = np.int32(((value ^ change.flip) & change.keep) | change.force)
    return changed


@_kernel
def _finish(layer: GemmArrays, sums: Int32Array, image: int, a: int, rows: Rows) -> bool:
    """Wrap and write what is added to one output; whether any is not 0."""
    into = layer.delta[image, a, rows.place : rows.place + len(sums)]
    unused = 32 - layer.acc_bits
    seen = np.int32(0)
    for i in range(len(sums)):
        value = np.int32(np.int32(sums[i] << unused) >> unused)
        into[i] = value
        seen |= value
    return bool(seen != 0)


@inlined
def _known(layer: GemmArrays, touched: TouchedPes, state: UInt8Array) -> bool:
    """Whether the lines of all weights that the fault meets are there; they are wanted now."""
    _, n_of_group, k_of_group = layer.weights.shape
    known = True
    for output in layer.outputs:
        group, n = divmod(output, n_of_group)
        for fold in range(touched.first_fold, touched.stop_fold):
            for row in range(touched.first_row, touched.stop_row):
                k = fold * layer.array_rows + row
                weight = np.int64(layer.weights[group, n, k]) if k < k_of_group else np.int64(0)
                pattern = weight & (len(state) - 1)
                if state[pattern] == UNKNOWN:
                    state[pattern] = WANTED
                known &= state[pattern] != WANTED
    return known


@inlined
def _of_weights(
    layer: GemmArrays, rows: Rows, touched: TouchedPes, change: Change, state: UInt8Array, table: Int32Array
) -> bool:
    """Weights where PEs multiply exactly; or anything that is looked up."""
    _, n_of_group, k_of_group = layer.weights.shape
    most = (touched.stop_fold - touched.first_fold) * (touched.stop_row - touched.first_row)
    terms = Terms(np.empty(most, np.int64), np.empty(most, np.int32), table)
    scratch = scratch_for(rows)
    sums = np.empty(rows.down * rows.across, np.int32)
    seen = False
    for a in range(len(layer.outputs)):
        group, n = divmod(layer.outputs[a], n_of_group)
        found, constant = np.int64(0), np.int64(0)
        for fold in range(touched.first_fold, touched.stop_fold):
            for row in range(touched.first_row, touched.stop_row):
                k = fold * layer.array_rows + row
                if k >= k_of_group:
                    # Where no weight sits, operands are 0.
                    constant += table[0, 0] if len(table) else 0
                    continue
                weight = np.int32(layer.weights[group, n, k])
                if len(table):
                    factor = np.int32(weight & (len(table) - 1))
                    acts = state[factor] == SOMETHING
                else:
                    factor = np.int32(_changed(weight, change) - weight)
                    acts = factor != 0
                if acts:
                    terms.place[found], terms.factor[found] = layer.offset[group, k], factor
                    found += 1
        for image in range(len(layer.delta)):
            set_all(sums, constant)
            add_terms(layer.memory, image * layer.image_size, terms, np.int64(0), found, rows, scratch, sums)
            seen |= _finish(layer, sums, image, a, rows)
    return seen


@inlined
def _of_products(layer: GemmArrays, rows: Rows, touched: TouchedPes, change: Change) -> bool:
    """Products of one PE that multiplies exactly."""
    _, n_of_group, k_of_group = layer.weights.shape
    sums = np.empty(rows.down * rows.across, np.int32)
    of_nothing = _changed(0, change)
    seen = False
    for a in range(len(layer.outputs)):
        group, n = divmod(layer.outputs[a], n_of_group)
        for image in range(len(layer.delta)):
            base = image * layer.image_size + rows.first
            set_all(sums, 0)
            for fold in range(touched.first_fold, touched.stop_fold):
                k = fold * layer.array_rows + touched.first_row
                weight = np.int32(layer.weights[group, n, k]) if k < k_of_group else np.int32(0)
                if weight == 0:
                    for i in range(len(sums)):
                        sums[i] += of_nothing
                else:
                    add_changes_of_products(layer.memory, base + layer.offset[group, k], weight, change, rows, sums)
            seen |= _finish(layer, sums, image, a, rows)
    return seen


@inlined
def _of_activations(layer: GemmArrays, rows: Rows, touched: TouchedPes, change: Change) -> bool:
    """Activations of one row of the array, for PEs that multiply exactly."""
    _, n_of_group, k_of_group = layer.weights.shape
    count = rows.down * rows.across
    folds = touched.stop_fold - touched.first_fold
    errors = np.empty((folds, count), np.int32)
    index = np.empty(folds, np.int64)
    sums = np.empty(count, np.int32)
    seen = False
    for image in range(len(layer.delta)):
        base = image * layer.image_size + rows.first
        last_group, met = -1, 0
        for a in range(len(layer.outputs)):
            group, n = divmod(layer.outputs[a], n_of_group)
            if group != last_group:
                last_group, met = group, 0
                for fold in range(touched.first_fold, touched.stop_fold):
                    k = fold * layer.array_rows + touched.first_row
                    if k < k_of_group and changes_of_activations(
                        layer.memory, base + layer.offset[group, k], change, rows, errors[met]
                    ):
                        index[met] = k
                        met += 1
            set_all(sums, 0)
            for place in range(met):
                add_multiple(errors[place], np.int32(layer.weights[group, n, index[place]]), sums)
            seen |= _finish(layer, sums, image, a, rows)
    return seen


@_kernel
def _append(layer: GemmArrays, group: int, n: int, first: int, stop: int, terms: Terms, found: int) -> int:
    """Append products of reduction indices `first` to `stop`, without those that are 0; how many terms there are."""
    for k in range(first, stop):
        weight = np.int32(layer.weights[group, n, k])
        if len(terms.table) or weight != 0:
            terms.place[found] = layer.offset[group, k]
            terms.factor[found] = weight & (len(terms.table) - 1) if len(terms.table) else weight
            found += 1
    return found


@inlined
def _of_adders(
    layer: GemmArrays, rows: Rows, touched: TouchedPes, change: Change, accumulated: Int32Array, products: Int32Array
) -> bool:
    """Sums behind one row of the array."""
    _, n_of_group, k_of_group = layer.weights.shape
    array_rows, row = layer.array_rows, touched.first_row
    last = -(-k_of_group // array_rows) - 1
    last_rows = k_of_group - last * array_rows
    # What a PE without a weight adds.
    idle = np.int32(products[0, 0]) if len(products) else np.int32(0)
    terms = Terms(np.empty(k_of_group, np.int64), np.empty(k_of_group, np.int32), products)
    begin, middle = np.zeros(last + 2, np.int64), np.zeros(last + 1, np.int64)
    scratch = scratch_for(rows)
    count = rows.down * rows.across
    sums, others, errors = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    seen = False
    for a in range(len(layer.outputs)):
        output = layer.outputs[a]
        group, n = divmod(output, n_of_group)
        found, above = np.int64(0), np.int64(0)
        for fold in range(touched.first_fold, touched.stop_fold):
            start, stop = fold * array_rows, min(k_of_group, (fold + 1) * array_rows)
            cut = min(stop, start + row + 1)
            begin[fold] = found
            middle[fold] = _append(layer, group, n, start, cut, terms, found)
            above += middle[fold] - found
            found = _append(layer, group, n, cut, stop, terms, middle[fold])
            begin[fold + 1] = found
        whole = touched.first_fold == 0 and touched.stop_fold == last + 1
        from_the_end = whole and begin[last] + begin[last + 1] - middle[last] < above
        for image in range(len(layer.delta)):
            base = image * layer.image_size
            set_all(others, 0)
            set_all(errors, 0)
            for fold in range(touched.first_fold, touched.stop_fold):
                set_all(sums, 0)
                if from_the_end and fold == last:
                    add_terms(layer.memory, base, terms, middle[fold], begin[fold + 1], rows, scratch, sums)
                    below = np.int32(idle * (array_rows - max(row + 1, last_rows)))
                    known = accumulated[image, output, rows.place : rows.place + count]
                    for i in range(count):
                        sums[i] = known[i] - others[i] - sums[i] - below
                else:
                    if fold == last:
                        set_all(sums, np.int32(idle * max(0, row + 1 - last_rows)))
                    add_terms(layer.memory, base, terms, begin[fold], middle[fold], rows, scratch, sums)
                    if from_the_end:
                        add_multiple(sums, 1, others)
                        add_terms(layer.memory, base, terms, middle[fold], begin[fold + 1], rows, scratch, others)
                add_changes_of_sums(sums, change, errors)
            seen |= _finish(layer, errors, image, a, rows)
    return seen


@inlined
def _of_accumulators(
    layer: GemmArrays, rows: Rows, touched: TouchedPes, change: Change, accumulated: Int32Array, products: Int32Array
) -> bool:
    """Sums that are stored after some k-folds."""
    _, n_of_group, k_of_group = layer.weights.shape
    last = -(-k_of_group // layer.array_rows) - 1
    # What the last write makes of the sum follows from the sum alone.
    first_fold = last if touched.first_fold == last else 0
    terms = Terms(np.empty(k_of_group, np.int64), np.empty(k_of_group, np.int32), products)
    begin = np.zeros(last + 1, np.int64)
    scratch = scratch_for(rows)
    count = rows.down * rows.across
    sums, total, stored = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    unchanged = Change(0, -1, 0)
    seen = False
    for a in range(len(layer.outputs)):
        output = layer.outputs[a]
        group, n = divmod(output, n_of_group)
        for fold in range(first_fold, min(touched.stop_fold, last)):
            start = fold * layer.array_rows
            begin[fold + 1] = _append(layer, group, n, start, start + layer.array_rows, terms, begin[fold])
        for image in range(len(layer.delta)):
            set_all(total, 0)
            set_all(stored, 0)
            for fold in range(first_fold, touched.stop_fold):
                if fold == last:
                    known = accumulated[image, output, rows.place : rows.place + count]
                    for i in range(count):
                        sums[i] = known[i] - total[i]
                else:
                    set_all(sums, 0)
                    base = image * layer.image_size
                    add_terms(layer.memory, base, terms, begin[fold], begin[fold + 1], rows, scratch, sums)
                _store(sums, change if fold >= touched.first_fold else unchanged, total, stored)
            add_multiple(total, -1, stored)
            seen |= _finish(layer, stored, image, a, rows)
    return seen


@inlined
def _store(sums: Int32Array, change: Change, total: Int32Array, stored: Int32Array) -> None:
    """Add a fold's sums to the accumulators without the fault, and to those with it."""
    flip, keep, force = np.int32(change.flip), np.int32(change.keep), np.int32(change.force)
    for i in range(len(sums)):
        total[i] += sums[i]
        write = np.int32(stored[i] + sums[i])
        stored[i] = ((write ^ flip) & keep) | force
