"""FLIP faults in the emulation: an upset in one clock cycle touches known outputs, which are computed once more.

They are computed one by one with every fault there is, which is slow, and few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simulator import Kind, Site, gemm_timing, pe_behaviour_kernel
from simulator.dtypes import BoolArray, Int8Array, Int64Array
from simulator.errors import InputError
from simulator.gates import cells, netlist_kernel
from simulator.kernels import kernels
from simulator.pe_behaviour_kernel import PeProducts, single_product
from training.emulation import gemm_kernel, program
from training.emulation.gemm_kernel import Source, Target
from training.emulation.program import ChipFaults, Program, StuckBits

_WEIGHT = int(Site.WEIGHT)
_WEIGHT_LOAD = int(Site.WEIGHT_LOAD)
_ACTIVATION = int(Site.ACTIVATION)
_PRODUCT = int(Site.PRODUCT)
_PSUM = int(Site.PSUM)
_MULTIPLIER = int(Site.MULTIPLIER)
_ACCUMULATOR = int(Site.ACCUMULATOR)


class Upset(NamedTuple):
    """What one FLIP comes to: bits of one net inverted in one fold, for some columns and rows of X."""

    site: int
    fold: int
    row: int
    first_column: int
    stop_column: int
    first_m: int
    stop_m: int
    mask: int
    """The bits; of a MULTIPLIER upset the location."""


def recompute_touched(program: Program, source: Source, target: Target) -> None:
    """Compute the outputs that FLIPs touch, and put them where the fault-free-in-time ones are.

    Raises:
        InputError: a FLIP in a cycle that the GEMM does not have.
    """
    m, config, chip = len(source.pixel), program.config, program.chip
    listed = list(upsets(chip, m, program.k, program.n))
    if not listed:
        return
    depth = -(-program.k // config.rows)
    touched = np.zeros((program.n, m), np.bool_)
    for upset in listed:
        start = upset.fold // depth * config.cols
        columns = slice(start + upset.first_column, min(program.n, start + upset.stop_column))
        touched[columns, upset.first_m : upset.stop_m] = True
    table = np.array(sorted(listed, key=lambda upset: upset.fold), np.int64)
    masks = _Masks(chip.weight, chip.activation, chip.product, chip.psum, chip.accumulator, chip.bypass)
    # Copies, in the order of C: Numba compiles anew for arrays that are read-only or laid out otherwise.
    w, outputs = np.array(program.w.T, order="C"), np.ascontiguousarray(np.argwhere(touched))
    _recompute(source, w, masks, chip.multipliers, table, outputs, 32 - config.acc_bits, target)


def upsets(chip: ChipFaults, m: int, k: int, n: int) -> Iterator[Upset]:
    """What the FLIPs of a chip come to in a GEMM [M, K] by [K, N]; those that change nothing that is kept are left out.

    A stuck bit further on hides a FLIP, so an entry ends there.

    Raises:
        InputError: a FLIP in a cycle that the GEMM does not have.
    """
    config = chip.config
    timing = gemm_timing(config, m, k, n)
    table = chip.faults.table
    stuck = table[table["kind"] != Kind.FLIP]
    for fault in table[table["kind"] == Kind.FLIP]:
        row, col, site, bit, _, cycle = fault.item()
        if cycle >= timing.serial:
            raise InputError(
                f"a FLIP is in cycle {cycle}, outside this GEMM of {timing.serial} cycles: "
                f"expected a cycle in 0..{timing.serial - 1}"
            )
        fold, in_fold = divmod(cycle, timing.cycles_per_fold)
        streaming = in_fold - config.rows
        signed = config.act_signed if site == Site.ACTIVATION else True
        if site == Site.MULTIPLIER:
            mask = bit
        else:
            mask = -1 << bit if signed and bit == Site(site).bits(config) - 1 else 1 << bit
        same_bit = stuck[(stuck["site"] == site) & (stuck["bit"] == bit)]
        weight_stuck = stuck[(stuck["site"] == Site.WEIGHT) & (stuck["bit"] == bit) & (stuck["col"] == col)]["row"]
        if site == Site.WEIGHT_LOAD:
            # In load cycle i the net of row r carries the weight that ends on row R - 1 - i + r.
            end_row = config.rows - 1 - in_fold + row
            passed = same_bit[(same_bit["col"] == col) & (same_bit["row"] >= row) & (same_bit["row"] <= end_row)]
            if streaming < 0 and end_row < config.rows and not len(passed) and end_row not in weight_stuck:
                yield Upset(site, fold, end_row, col, col + 1, 0, m, mask)
            continue
        if streaming < 0:
            continue
        if site == Site.ACCUMULATOR:
            row_of_x = streaming - (config.rows - 1) - col
            if 0 <= row_of_x < m:
                yield Upset(site, fold, 0, col, col + 1, row_of_x, row_of_x + 1, mask)
            continue
        row_of_x = streaming - row - col
        if site == Site.WEIGHT:
            if row_of_x < m and row not in weight_stuck:
                yield Upset(site, fold, row, col, col + 1, max(0, row_of_x), m, mask)
        elif 0 <= row_of_x < m:
            stop = col + 1
            if site == Site.ACTIVATION:
                east = same_bit["col"][(same_bit["row"] == row) & (same_bit["col"] >= col)]
                stop = int(east.min(initial=config.cols))
            if col < stop:
                yield Upset(site, fold, row, col, stop, row_of_x, row_of_x + 1, mask)


class _Masks(NamedTuple):
    """Those of `ChipFaults`, for a kernel."""

    weight: StuckBits
    activation: StuckBits
    product: StuckBits
    psum: StuckBits
    accumulator: StuckBits
    bypass: BoolArray


_kernel = kernels(cells, netlist_kernel, pe_behaviour_kernel, gemm_kernel, program)


@_kernel
def _recompute(
    source: Source,
    w: Int8Array,
    masks: _Masks,
    products: PeProducts,
    upsets: Int64Array,
    touched: Int64Array,
    unused_bits: int,
    target: Target,
) -> None:
    """Compute outputs one by one.

    Args:
        source: X.
        w: int8 [N, K].
        masks: all masks.
        products: which PEs do not multiply exactly.
        upsets: int64 [upsets, 8], fields of `Upset`, sorted by fold.
        touched: int64 [outputs, 2], their n and m.
        unused_bits: bits of an int32 above the accumulator's.
        target: where outputs go.
    """
    rows, cols = masks.bypass.shape
    k = w.shape[1]
    depth = -(-k // rows)
    codes = np.zeros(products.circuit.first_pin[-1], np.uint8)
    inverted = np.empty(len(upsets), np.int32)
    for n, m in touched:
        column = n % cols
        total = np.int32(0)
        for fold_of_k in range(depth):
            fold = n // cols * depth + fold_of_k
            begin = np.searchsorted(upsets[:, 1], fold)
            end = np.searchsorted(upsets[:, 1], fold + 1)
            running = np.int32(0)
            for row in range(rows):
                index = fold_of_k * rows + row
                activation = weight = np.int32(0)
                if index < k:
                    activation = np.int32(source.memory[source.pixel[m] + source.offset[index]])
                    weight = np.int32(w[n, index])
                if not source.signed:
                    activation &= np.int32(0xFF)
                activation = _stuck(masks.activation, row, column, activation)
                weight = _stuck(masks.weight, row, column, weight)
                activation ^= np.int32(_inverted(upsets, begin, end, _ACTIVATION, row, column, m))
                weight ^= np.int32(_inverted(upsets, begin, end, _WEIGHT_LOAD, row, column, m))
                weight ^= np.int32(_inverted(upsets, begin, end, _WEIGHT, row, column, m))
                if masks.bypass[row, column]:
                    continue
                count = 0
                for entry in range(begin, end):
                    if upsets[entry, 0] == _MULTIPLIER and _touches(upsets[entry], row, column, m):
                        inverted[count] = upsets[entry, 7]
                        count += 1
                behaviour = products.behaviour[row, column]
                if behaviour >= 0 or count > 0:
                    product = np.int32(single_product(products, behaviour, inverted[:count], weight, activation, codes))
                else:
                    product = np.int32(activation * weight)
                product ^= np.int32(_inverted(upsets, begin, end, _PRODUCT, row, column, m))
                product = _stuck(masks.product, row, column, product)
                running = np.int32(running + product) ^ np.int32(_inverted(upsets, begin, end, _PSUM, row, column, m))
                running = _stuck(masks.psum, row, column, running)
            total = np.int32(total + running) ^ np.int32(_inverted(upsets, begin, end, _ACCUMULATOR, 0, column, m))
            total = (total & masks.accumulator.keep[column]) | masks.accumulator.force[column]
        image, in_image = divmod(m, target.size)
        where = target.start + image * target.stride + n * target.size + in_image
        target.memory[where] = np.int32(total << unused_bits) >> unused_bits


@_kernel
def _stuck(masks: StuckBits, row: int, column: int, value: int) -> int:
    stuck: int = np.int32((value & masks.keep[row, column]) | masks.force[row, column])
    return stuck


@_kernel
def _inverted(upsets: Int64Array, begin: int, end: int, site: int, row: int, column: int, m: int) -> int:
    """Bits that upsets `begin` to `end` invert on one net while it carries what row `m` of X meets."""
    mask = 0
    for upset in upsets[begin:end]:
        if upset[0] == site and _touches(upset, row, column, m):
            mask ^= upset[7]
    return mask


@_kernel
def _touches(upset: Int64Array, row: int, column: int, m: int) -> bool:
    """Whether an upset concerns one PE while it meets row `m` of X."""
    return bool(upset[2] == row and upset[3] <= column < upset[4] and upset[5] <= m < upset[6])
