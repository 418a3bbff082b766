"""What every PE of an array multiplies in all layers, and which faults that shows.

In each fold of a layer a PE has a weight and meets the activations of one column of X, and `seen` says which of them
occur. Below the weights of the last k-fold both are 0. PEs of columns without outputs compute nothing that is kept.

Indices are not checked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.dtypes import BoolArray, Int16Array, Int32Array, Int64Array, UInt8Array, UInt64Array
from simulator.kernels import kernels

_kernel = kernels()


class Operands(NamedTuple):
    """Weights and activations of all layers.

    Attributes:
        rows: of the array.
        cols: of the array.
        groups: int64 [layers], GEMMs of each layer.
        m: int64 [layers], rows of X.
        k: int64 [layers], lengths of dot products.
        n: int64 [layers], outputs of each GEMM.
        first_weight: int64 [layers], where the weights of each layer begin.
        first_seen: int64 [layers], where the columns of X of each layer begin.
        weights: uint8, bit patterns of the weights [groups, N, K] of one layer after the other.
        seen: uint64 [columns of X, words], a bit for each pattern that occurs, of [groups, K] of one layer after the
            other.
    """

    rows: int
    cols: int
    groups: Int64Array
    m: Int64Array
    k: Int64Array
    n: Int64Array
    first_weight: Int64Array
    first_seen: Int64Array
    weights: UInt8Array
    seen: UInt64Array


@_kernel
def _unused_fold(operands: Operands, layer: int, row: int) -> bool:
    """Whether a row has no weight in the last k-fold of a layer."""
    used = operands.k[layer] % operands.rows
    return bool(used != 0 and row >= used)


@_kernel
def _shows(disturbed: UInt64Array, seen: UInt64Array) -> bool:
    common = np.uint64(0)
    for word in range(len(seen)):
        common |= disturbed[word] & seen[word]
    return bool(common != 0)


@_kernel
def find_quiet(operands: Operands, row: Int64Array, col: Int64Array, disturbed: UInt64Array, quiet: BoolArray) -> None:
    """Find faults of PEs that change no product that counts.

    Args:
        operands: of all layers.
        row: int64 [PEs].
        col: int64 [PEs].
        disturbed: uint64 [2**weight_bits, faults, words], see `efat.propagation.collapsing.products`.
        quiet: bool [PEs, faults], written.
    """
    faults = disturbed.shape[1]
    left = np.empty(faults, np.int64)
    zeros = np.zeros(disturbed.shape[2], np.uint64)
    zeros[0] = 1
    for pe in range(len(row)):
        quiet[pe] = True
        count = faults
        for fault in range(faults):
            left[fault] = fault
        for layer in range(len(operands.k)):
            k_end, n_end = operands.k[layer], operands.n[layer]
            if col[pe] >= n_end:
                continue
            if _unused_fold(operands, layer, row[pe]):
                count = _leave_quiet(disturbed[0], zeros, left, count, quiet[pe])
            for group in range(operands.groups[layer]):
                for n in range(col[pe], n_end, operands.cols):
                    first = operands.first_weight[layer] + (group * n_end + n) * k_end
                    for k in range(row[pe], k_end, operands.rows):
                        weight = operands.weights[first + k]
                        seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
                        count = _leave_quiet(disturbed[weight], seen, left, count, quiet[pe])
            if count == 0:
                break


@_kernel
def _leave_quiet(disturbed: UInt64Array, seen: UInt64Array, left: Int64Array, count: int, quiet: BoolArray) -> int:
    kept = 0
    for i in range(count):
        if _shows(disturbed[left[i]], seen):
            quiet[left[i]] = False
        else:
            left[kept] = left[i]
            kept += 1
    return kept


@_kernel
def find_alike(operands: Operands, row: Int64Array, col: Int64Array, same: Int32Array, alike: Int32Array) -> None:
    """Find behaviours of PEs that are the same for the weights they have, whatever the activations.

    Args:
        operands: of all layers.
        row: int64 [PEs].
        col: int64 [PEs].
        same: int32 [2**weight_bits + 1, behaviours], see `efat.propagation.collapsing.products.Alike`.
        alike: int32 [PEs, behaviours], written: the first behaviour that is the same.
    """
    count = same.shape[1]
    occurs = np.empty(len(same), np.bool_)
    following = np.empty(count, np.int32)
    # Behaviours that nothing tells apart yet are lists, which begin here; lists of one are left out.
    heads = np.empty(count, np.int32)
    tail = np.empty(count, np.int32)
    begin = np.empty(count, np.int32)
    mark = np.full(count, -1, np.int64)
    marks = 0
    for pe in range(len(row)):
        _find_weights(operands, row[pe], col[pe], occurs)
        for behaviour in range(count):
            following[behaviour] = behaviour + 1
        following[count - 1] = -1
        alike[pe] = 0
        heads[0] = 0
        lists = 1
        for weight in range(len(same)):
            if not occurs[weight]:
                continue
            split = 0
            # Two at least make a list, so that there are never more lists than half of the behaviours.
            old = heads[:lists].copy()
            for place in range(lists):
                first = split
                at = old[place]
                marks += 1
                while at >= 0:
                    after = following[at]
                    number = same[weight, at]
                    if mark[number] != marks:
                        mark[number] = marks
                        begin[number] = at
                        heads[split] = at
                        split += 1
                    else:
                        following[tail[number]] = at
                    tail[number] = at
                    following[at] = -1
                    alike[pe, at] = begin[number]
                    at = after
                kept = first
                for new in range(first, split):
                    if following[heads[new]] >= 0:
                        heads[kept] = heads[new]
                        kept += 1
                split = kept
            lists = split
            if lists == 0:
                break


@_kernel
def _find_weights(operands: Operands, row: int, col: int, occurs: BoolArray) -> None:
    """Bit patterns of the weights of a PE; the last one stands for a fold in which it has none."""
    occurs[:] = False
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        if col >= n_end:
            continue
        if _unused_fold(operands, layer, row):
            occurs[-1] = True
        for group in range(operands.groups[layer]):
            for n in range(col, n_end, operands.cols):
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                for k in range(row, k_end, operands.rows):
                    occurs[operands.weights[first + k]] = True


@_kernel
def stand_ins(alike: Int32Array, behaviour: Int64Array, there: BoolArray, found: Int32Array) -> None:
    """Find the first fault with the same behaviour.

    Args:
        alike: int32 [PEs, behaviours], what is the same at each PE.
        behaviour: int64 [faults].
        there: bool [PEs, faults], which of them each PE has.
        found: int32 [PEs, faults], written; -1 for faults that a PE does not have.
    """
    first = np.empty(alike.shape[1], np.int32)
    for pe in range(len(alike)):
        first[:] = -1
        for fault in range(len(behaviour)):
            found[pe, fault] = -1
            if there[pe, fault]:
                number = alike[pe, behaviour[fault]]
                if first[number] < 0:
                    first[number] = fault
                found[pe, fault] = first[number]


@_kernel
def count_quiet_flips(operands: Operands, disturbed: UInt64Array, counts: Int64Array) -> None:
    """Count FLIPs within PEs that are used or not, and change no product that counts.

    Args:
        operands: of all layers.
        disturbed: uint64 [2**weight_bits, faults, words].
        counts: int64 [faults, 2, 3], added to: of PEs without a weight, and with one; those in cycles of a multiplier,
            of a weight register, and of the load chain. A multiplier has one for each row of X, a register as many and
            those before the first row arrives, and each row of the load chain has one for each weight that passes it.
    """
    zeros = np.zeros(disturbed.shape[2], np.uint64)
    zeros[0] = 1
    faults = disturbed.shape[1]
    for layer in range(len(operands.k)):
        k_end, n_end, m = operands.k[layer], operands.n[layer], operands.m[layer]
        depth = -(-k_end // operands.rows)
        for group in range(operands.groups[layer]):
            for n in range(n_end):
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                for k in range(depth * operands.rows):
                    row, used = k % operands.rows, int(k < k_end)
                    weight, seen = np.uint8(0), zeros
                    if used:
                        weight = operands.weights[first + k]
                        seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
                    before = row + n % operands.cols
                    for fault in range(faults):
                        if not _shows(disturbed[weight, fault], seen):
                            counts[fault, used, 0] += m
                            counts[fault, used, 1] += m + before
                            counts[fault, used, 2] += row + 1


@_kernel
def count_quiet_activation_flips(operands: Operands, disturbed: UInt64Array, counts: Int64Array) -> None:
    """Count FLIPs of activations that change no product from there on to the last column of the fold.

    Args:
        operands: of all layers.
        disturbed: uint64 [2**weight_bits, faults, words].
        counts: int64 [faults, 2], added to: in rows without weights, and with them.
    """
    zeros = np.zeros(disturbed.shape[2], np.uint64)
    zeros[0] = 1
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        depth = -(-k_end // operands.rows)
        for group in range(operands.groups[layer]):
            for k in range(depth * operands.rows):
                used = int(k < k_end)
                seen = zeros
                if used:
                    seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
                for n_start in range(0, n_end, operands.cols):
                    for fault in range(disturbed.shape[1]):
                        n = min(n_start + operands.cols, n_end) - 1
                        while n >= n_start:
                            weight = np.uint8(0)
                            if used:
                                weight = operands.weights[
                                    operands.first_weight[layer] + (group * n_end + n) * k_end + k
                                ]
                            if _shows(disturbed[weight, fault], seen):
                                break
                            counts[fault, used] += operands.m[layer]
                            n -= 1


class Touched(NamedTuple):
    """Products that FLIPs touch; arrays are int64 [FLIPs].

    Attributes:
        layer: of the GEMM.
        group: of the layer.
        k: column of X; K or more for a row of the array without a weight.
        first_n: first output.
        stop_n: one past the last output.
        fault: which of those in a table of disturbed products.
    """

    layer: Int64Array
    group: Int64Array
    k: Int64Array
    first_n: Int64Array
    stop_n: Int64Array
    fault: Int64Array


@_kernel
def find_quiet_flips(operands: Operands, disturbed: UInt64Array, touched: Touched, quiet: BoolArray) -> None:
    """Find FLIPs that change no product that counts.

    Args:
        operands: of all layers.
        disturbed: uint64 [2**weight_bits, faults, words].
        touched: what each touches.
        quiet: bool [FLIPs], written.
    """
    zeros = np.zeros(disturbed.shape[2], np.uint64)
    zeros[0] = 1
    for flip in range(len(quiet)):
        layer, group, k = touched.layer[flip], touched.group[flip], touched.k[flip]
        k_end, n_end = operands.k[layer], operands.n[layer]
        quiet[flip] = True
        for n in range(touched.first_n[flip], touched.stop_n[flip]):
            weight, seen = np.uint8(0), zeros
            if k < k_end:
                weight = operands.weights[operands.first_weight[layer] + (group * n_end + n) * k_end + k]
                seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
            if _shows(disturbed[weight, touched.fault[flip]], seen):
                quiet[flip] = False
                break


ALL_ZERO = 64
"""Zeros at the end of a number that is 0."""


class Range(NamedTuple):
    """What a sum can be: a number of `low`..`high` whose low bits are 0 wherever those of `ones` are."""

    low: np.int64
    high: np.int64
    ones: np.int64


@_kernel
def _products(products: Int16Array, seen: UInt64Array) -> Range:
    """Products of one weight and all activations that occur."""
    low, high, ones, found = np.int64(0), np.int64(0), np.int64(0), False
    for pattern in range(len(products)):
        if (seen[pattern >> 6] >> np.uint64(pattern & 63)) & np.uint64(1):
            product = np.int64(products[pattern])
            low = min(low, product) if found else product
            high = max(high, product) if found else product
            ones |= product
            found = True
    return Range(low, high, ones)


@_kernel
def _plus(one: Range, other: Range) -> Range:
    return Range(one.low + other.low, one.high + other.high, one.ones | other.ones)


@_kernel
def _changed(value: Range, bits: int) -> np.uint64:
    """Stuck bits that may change a sum; see `find_loud_sums`."""
    changed: np.uint64 = np.uint64(0)
    for bit in range(bits):
        constant = (value.low >> bit) == (value.high >> bit)
        one = bool((value.low >> bit) & 1)
        always_0 = (constant and not one) or (value.ones & ((2 << bit) - 1)) == 0
        always_1 = constant and one
        if not always_0:
            changed |= np.uint64(1) << np.uint64(2 * bit)
        if not always_1:
            changed |= np.uint64(1) << np.uint64(2 * bit + 1)
    return changed


@_kernel
def find_loud_sums(
    operands: Operands, products: Int16Array, acc_bits: int, psum: UInt64Array, accumulator: UInt64Array
) -> None:
    """Find the stuck bits of adders and accumulators that may change a sum; all others cannot.

    Sums are bounded, and how many of their lowest bits are 0 is known. They are taken as numbers without limits: the
    lowest `acc_bits` bits are the same.

    Args:
        operands: of all layers.
        products: int16 [2**weight_bits, 2**act_bits].
        acc_bits: of a sum.
        psum: uint64 [rows, cols], written: bit 2 * b is for bit b stuck at 0, the one after it for bit b stuck at 1.
        accumulator: uint64 [cols], written in the same way.
    """
    psum[:] = 0
    accumulator[:] = 0
    nothing = np.int64(products[0, 0])
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        for group in range(operands.groups[layer]):
            for n in range(n_end):
                col = n % operands.cols
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                total = Range(np.int64(0), np.int64(0), np.int64(0))
                for k_start in range(0, k_end, operands.rows):
                    value = Range(np.int64(0), np.int64(0), np.int64(0))
                    for row in range(operands.rows):
                        k = k_start + row
                        added = Range(nothing, nothing, nothing)
                        if k < k_end:
                            seen = operands.seen[operands.first_seen[layer] + group * k_end + k]
                            added = _products(products[operands.weights[first + k]], seen)
                        value = _plus(value, added)
                        psum[row, col] |= _changed(value, acc_bits)
                    total = _plus(total, value)
                    accumulator[col] |= _changed(total, acc_bits)


@_kernel
def find_trailing_zeros(operands: Operands, products: Int16Array, zeros: Int64Array) -> None:
    """Count the low bits that are 0 in all products of each PE, whatever the activations are.

    Args:
        operands: of all layers.
        products: int16 [2**weight_bits, 2**act_bits].
        zeros: int64 [rows, cols], written; `ALL_ZERO` if all are 0, or nothing that a PE computes is kept.
    """
    of_weight = np.empty(len(products), np.int64)
    for weight in range(len(products)):
        ones = np.int64(0)
        for pattern in range(products.shape[1]):
            ones |= np.int64(products[weight, pattern])
        of_weight[weight] = _trailing_zeros(ones)
    unused = _trailing_zeros(np.int64(products[0, 0]))
    zeros[:] = ALL_ZERO
    for layer in range(len(operands.k)):
        k_end, n_end = operands.k[layer], operands.n[layer]
        for row in range(operands.rows):
            if k_end % operands.rows != 0 and row >= k_end % operands.rows:
                for col in range(min(n_end, operands.cols)):
                    zeros[row, col] = min(zeros[row, col], unused)
        for group in range(operands.groups[layer]):
            for n in range(n_end):
                first = operands.first_weight[layer] + (group * n_end + n) * k_end
                for k in range(k_end):
                    row, col = k % operands.rows, n % operands.cols
                    zeros[row, col] = min(zeros[row, col], of_weight[operands.weights[first + k]])


@_kernel
def _trailing_zeros(number: np.int64) -> int:
    if number == 0:
        return ALL_ZERO
    zeros = 0
    while not (number >> zeros) & 1:
        zeros += 1
    return zeros


@_kernel
def _hash(row: UInt64Array) -> int:
    code = np.uint64(0)
    for bit in range(row.shape[0]):
        for word in range(row.shape[1]):
            code = (code ^ row[bit, word]) * np.uint64(0x9E3779B97F4A7C15)
            code ^= code >> np.uint64(29)
    return int(code >> np.uint64(1))


@_kernel
def _equal(one: UInt64Array, other: UInt64Array) -> bool:
    for bit in range(one.shape[0]):
        for word in range(one.shape[1]):
            if one[bit, word] != other[bit, word]:
                return False
    return True


@_kernel
def number_rows(planes: UInt64Array, numbers: Int32Array) -> None:
    """Number what faults do to products of each weight.

    Args:
        planes: uint64 [faults, product_bits, weights, words].
        numbers: int32 [weights, faults], written: from 0 in the order of the faults, the same for equal planes.
    """
    faults, weights = planes.shape[0], planes.shape[2]
    slots = 2
    while slots < 2 * faults:
        slots *= 2
    owner = np.full((weights, slots), -1, np.int32)
    count = np.zeros(weights, np.int32)
    # Fault by fault, as planes lie in memory.
    for fault in range(faults):
        for weight in range(weights):
            row = planes[fault, :, weight]
            slot = _hash(row) & (slots - 1)
            while owner[weight, slot] >= 0 and not _equal(planes[owner[weight, slot], :, weight], row):
                slot = (slot + 1) & (slots - 1)
            if owner[weight, slot] >= 0:
                numbers[weight, fault] = numbers[weight, owner[weight, slot]]
            else:
                owner[weight, slot] = fault
                numbers[weight, fault] = count[weight]
                count[weight] += 1
