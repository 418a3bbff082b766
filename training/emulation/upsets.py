"""FLIP faults in the emulation: an upset in one clock cycle touches known outputs, which are computed once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulator import Kind, Site, gemm_timing
from simulator.errors import InputError
from training.emulation.program import ChipFaults, Program

if TYPE_CHECKING:
    from training.emulation.gemm_kernel import Source, Target


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

    Args:
        program: with FLIPs among its faults.
        source: X.
        target: where outputs are.

    Raises:
        InputError: a FLIP in a cycle that the GEMM does not have.
    """
    from training.emulation.upsets_kernel import Dense, recompute

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
    masks = (chip.weight, chip.activation, chip.product, chip.psum, chip.accumulator)
    weight, activation, product, psum, accumulator = (np.stack(mask) for mask in masks)
    dense = Dense(weight, activation, product, psum, accumulator, np.array(chip.bypass))
    recompute(
        source,
        # Copies, in the order of C: Numba compiles anew for arrays that are read-only or laid out otherwise.
        np.array(program.w.T, order="C"),
        dense,
        chip.multipliers,
        table,
        np.ascontiguousarray(np.argwhere(touched)),
        32 - config.acc_bits,
        target,
    )


def upsets(chip: ChipFaults, m: int, k: int, n: int) -> Iterator[Upset]:
    """What the FLIPs of a chip come to in a GEMM; those that change nothing that is kept are left out.

    Args:
        chip: the chip.
        m: rows of X.
        k: reduction length.
        n: outputs.

    Yields:
        One entry for each FLIP that can be seen. A stuck bit further on hides it, so an entry ends there.

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
