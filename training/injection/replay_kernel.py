"""Doing again what differs from a run without a fault, and counting it, in Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.dtypes import BoolArray, Float32Array, Int16Array, Int32Array, Int64Array
from simulator.kernels import kernels

SINGLE, COLUMN, ROW, BLOCK, ALL = range(5)
"""Patterns of changed outputs."""

_ROWS = 16
"""Of int32, a line of the cache."""

_kernel = kernels()


@_kernel
def count_changed(values: Int32Array, reference: Int32Array, image: Int64Array, counts: Int64Array) -> None:
    """How many elements differ.

    Args:
        values: int32 [entries, elements], bits of numbers.
        reference: int32 [images, elements], what they are without a fault.
        image: int64 [entries], the image of each entry.
        counts: int64 [entries], written.
    """
    for entry in range(len(values)):
        row, other = values[entry], reference[image[entry]]
        changed = 0
        for place in range(len(row)):
            changed += row[place] != other[place]
        counts[entry] = changed


@_kernel
def quantise(
    values: Float32Array,
    reference: Float32Array,
    image: Int64Array,
    scale: np.float32,
    low: np.float32,
    high: np.float32,
    lines: tuple[int, int, int, int, int],
    most: int,
    memory: Any,
    places: Int32Array,
    counts: Int64Array,
) -> None:
    """Quantise, and count what becomes of values that differ.

    Args:
        values: float32 [entries, elements].
        reference: float32 [images, elements], what they are without a fault.
        image: int64 [entries], the image of each entry.
        scale: the value of one step.
        low: the least quantised value.
        high: the greatest.
        lines: where elements lie in memory: see `FaultFreeLayer.lines`.
        most: places are listed of an entry with at most so many integers that differ.
        memory: int8 or uint8 [entries, image_size], written but for the padding; of no entries if it is not wanted.
        places: int32 [entries, most], written: where integers that differ lie in memory.
        counts: int64 [4, entries], written: see `ChangedInputs`.
    """
    height, width, channel_step, line_step, origin = lines
    elements = values.shape[1]
    integers = np.empty(elements, np.int16)
    same = np.empty(elements, np.bool_)
    for entry in range(len(values)):
        row, other = values[entry], reference[image[entry]]
        differ = rounded = unchanged = 0
        for place in range(elements):
            # A division by `/` is checked for zero, which no vector unit does.
            ours, theirs = np.rint(np.divide(row[place], scale)), np.rint(np.divide(other[place], scale))
            clamped = low if ours < low else high if ours > high else ours
            reached = low if theirs < low else high if theirs > high else theirs
            integers[place] = np.int16(clamped)
            equal = clamped == reached
            same[place] = equal
            unlike = row[place] != other[place]
            differ += unlike
            rounded += unlike & (ours == theirs)
            unchanged += unlike & equal
        changed = differ - unchanged
        counts[0, entry], counts[1, entry], counts[2, entry] = differ, rounded, unchanged - rounded
        counts[3, entry] = changed
        if len(memory) == 0 or changed == 0:
            continue
        kept = memory[entry]
        for line in range(elements // width):
            target = line // height * channel_step + line % height * line_step + origin
            for column in range(width):
                kept[target + column] = integers[line * width + column]
        if changed > most:
            continue
        listed = 0
        for line in range(elements // width):
            target = line // height * channel_step + line % height * line_step + origin
            for column in range(width):
                if not same[line * width + column]:
                    places[entry, listed] = target + column
                    listed += 1


@_kernel
def add_changes(
    entries: Int64Array,
    changed: Int64Array,
    places: Int32Array,
    memory: Any,
    reference: Any,
    image: Int64Array,
    weights: Int16Array,
    windows: tuple[Int64Array, Int32Array, Int32Array],
    unused_bits: int,
    clean: Int32Array,
    sums: Int32Array,
) -> None:
    """Add to accumulators what activations that differ add to them, one activation at a time.

    Args:
        entries: int64, those to do.
        changed: int64 [all entries], how many activations differ.
        places: int32 [all entries, ...], where these lie in memory.
        memory: int8 or uint8 [all entries, image_size].
        reference: the same of the images, without a fault.
        image: int64 [all entries], the image of each entry.
        weights: int16 [groups * K, N].
        windows: which windows an activation is in: see `FaultFreeLayer.windows`.
        unused_bits: those that an accumulator has less than 32.
        clean: int32 [images, outputs, M], accumulators without a fault.
        sums: int32 [all entries, outputs, M], written for `entries`.
    """
    first, row_of, k_of = windows
    all_outputs, rows = clean.shape[1:]
    outputs = weights.shape[1]
    reduction = len(weights) * outputs // all_outputs
    groups = all_outputs // outputs
    added = np.zeros((groups, rows, outputs), np.int32)
    touched = np.zeros(rows, np.bool_)
    for entry in entries:
        ours, theirs = memory[entry], reference[image[entry]]
        for number in range(changed[entry]):
            changed_place = places[entry, number]
            difference = np.int32(np.int64(ours[changed_place]) - np.int64(theirs[changed_place]))
            for window in range(first[changed_place], first[changed_place + 1]):
                row, k = row_of[window], k_of[window]
                touched[row] = True
                group = k // reduction if groups > 1 else 0
                of_row, weight = added[group, row], weights[k]
                for output in range(outputs):
                    of_row[output] += difference * weight[output]
        block = sums[entry]
        block[:] = clean[image[entry]]
        for first_row in range(0, rows, _ROWS):
            stop = min(rows, first_row + _ROWS)
            any_touched = False
            for row in range(first_row, stop):
                any_touched |= touched[row]
                touched[row] = False
            if not any_touched:
                continue
            # A few rows at a time stay in the cache, whose lines go along an output here and along a row there.
            for group in range(groups):
                for output in range(outputs):
                    place = group * outputs + output
                    for row in range(first_row, stop):
                        total = np.int64(block[place, row]) + np.int64(added[group, row, output])
                        block[place, row] = np.int32(total << unused_bits) >> unused_bits
                        added[group, row, output] = 0


@_kernel
def compare(
    sums: Int32Array,
    clean_sums: Int32Array,
    image: Int64Array,
    bias: Int32Array,
    scale: Float32Array,
    clean_values: Float32Array,
    values: Float32Array,
    found: Int64Array,
) -> None:
    """Turn accumulators into the layer's results, and count those that differ.

    Args:
        sums: int32 [entries, outputs, M].
        clean_sums: int32 [images, outputs, M], what they are without a fault.
        image: int64 [entries], the image of each entry.
        bias: int32 [outputs], in steps of the accumulator.
        scale: float32 [outputs], the value of one step.
        clean_values: float32 [images, outputs, M], the results without a fault.
        values: float32 [entries, outputs, M], written.
        found: int64 [5, entries], written: see `ChangedSums`.
    """
    outputs, rows = sums.shape[1:]
    for entry in range(len(sums)):
        count = results = changed_outputs = 0
        largest, total = np.int64(0), np.int64(0)
        only_row, one_row = -1, True
        for output in range(outputs):
            ours, theirs = sums[entry, output], clean_sums[image[entry], output]
            to, reference = values[entry, output], clean_values[image[entry], output]
            changed = 0
            for row in range(rows):
                changed += ours[row] != theirs[row]
            if changed == 0:
                to[:] = reference
                continue
            count += changed
            changed_outputs += 1
            added, factor = bias[output], scale[output]
            for row in range(rows):
                difference = abs(np.int64(ours[row]) - np.int64(theirs[row]))
                largest = max(largest, difference)
                total += difference
            for row in range(rows):
                # In 32 bits, which wrap.
                result = np.float32(np.int32(ours[row] + added)) * factor
                to[row] = result
                results += result != reference[row]
            one_row &= changed == 1
            if one_row:
                row = int(np.argmax(ours != theirs))
                one_row = only_row in (-1, row)
                only_row = row
        pattern = BLOCK
        if count == 1:
            pattern = SINGLE
        elif count == outputs * rows:
            pattern = ALL
        elif changed_outputs == 1:
            pattern = COLUMN
        elif one_row:
            pattern = ROW
        found[0, entry], found[1, entry], found[2, entry], found[3, entry] = count, pattern, largest, total
        found[4, entry] = results


@_kernel
def mark_seen(memory: Any, start: Int64Array, offset: Int64Array, mask: int, seen: BoolArray) -> None:
    """Mark the activations that occur.

    Args:
        memory: int8 or uint8 [images, image_size].
        start: int64 [M], where the window of each row of X begins.
        offset: int64 [groups, K], where each element lies from there.
        mask: keeps the bits of an activation.
        seen: bool [groups, K, 2**act_bits], marked by bit pattern.
    """
    for image in range(len(memory)):
        row = memory[image]
        for group in range(len(offset)):
            for k in range(offset.shape[1]):
                marked = seen[group, k]
                for place in start:
                    marked[np.int64(row[place + offset[group, k]]) & mask] = True
