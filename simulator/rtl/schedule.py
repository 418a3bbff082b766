"""What the feeders and the control give the array in each clock cycle of a GEMM."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int64Array, UInt8Array
from simulator.engine.timing import Fold, folds

Bits = UInt8Array
Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Schedule:
    """The inputs of `systolic_array` but for its masks, in the order in which `testbench.sv` packs them.

    Attributes:
        reset: bool [cycles]: every register is 0 in the next cycle.
        stream: bool [cycles]: the datapath is clocked.
        load: bool [cycles]: all load chains shift.
        load_last: bool [cycles]: and the stationary registers take what arrives.
        write: bool [cycles]: an output is on the adder at the bottom of column 0.
        add: bool [cycles]: it is added to what is stored.
        write_row: int64 [cycles]: its row of X.
        load_west: bool [cycles, rows]: the load chain of this row's PE in column 0 shifts.
        switch_west: bool [cycles, rows]: its stationary register takes what the shift register holds.
        activation_west: int64 [cycles, rows]
        weight_north: int64 [cycles, cols]
    """

    reset: BoolArray
    stream: BoolArray
    load: BoolArray
    load_last: BoolArray
    write: BoolArray
    add: BoolArray
    write_row: Int64Array
    load_west: BoolArray
    switch_west: BoolArray
    activation_west: Int64Array
    weight_north: Int64Array

    @classmethod
    def idle(cls, config: ArrayConfig, cycles: int) -> Schedule:
        """Nothing happens."""
        rows, cols = config.rows, config.cols
        return cls(
            reset=np.zeros(cycles, np.bool_),
            stream=np.zeros(cycles, np.bool_),
            load=np.zeros(cycles, np.bool_),
            load_last=np.zeros(cycles, np.bool_),
            write=np.zeros(cycles, np.bool_),
            add=np.zeros(cycles, np.bool_),
            write_row=np.zeros(cycles, np.int64),
            load_west=np.zeros((cycles, rows), np.bool_),
            switch_west=np.zeros((cycles, rows), np.bool_),
            activation_west=np.zeros((cycles, rows), np.int64),
            weight_north=np.zeros((cycles, cols), np.int64),
        )

    def packed(self, config: ArrayConfig, row_bits: int) -> Bits:
        """The bits of each cycle, uint8 [cycles, bits], the least significant one first."""
        widths = {"write_row": row_bits, "activation_west": config.act_bits, "weight_north": config.weight_bits}
        parts = []
        for field in fields(self):
            values = getattr(self, field.name)
            parts.append(to_bits(values, widths.get(field.name, 1)).reshape(len(values), -1))
        return np.concatenate(parts, axis=1)


def serial_schedule(config: ArrayConfig, x: Integers, w: Integers) -> Schedule:
    """One fold after the other: load R cycles, stream and drain, start again from registers that are 0."""
    rows, m = config.rows, len(x)
    per_fold = rows + m + rows + config.cols - 2
    listed = list(folds(config, *w.shape))
    schedule = Schedule.idle(config, len(listed) * per_fold)
    for fold in listed:
        start = fold.index * per_fold
        streaming = start + rows
        schedule.load[start:streaming] = True
        schedule.load_last[streaming - 1] = True
        schedule.weight_north[start:streaming] = _tile(config, w, fold)[::-1]
        schedule.stream[streaming : start + per_fold] = True
        schedule.reset[start + per_fold - 1] = True
        _stream(schedule, config, x, fold, streaming)
    return schedule


def double_buffered_schedule(config: ArrayConfig, x: Integers, w: Integers) -> Schedule:
    """The next fold's weights load while one streams; the switch to them is a wavefront before the first row of X."""
    rows, cols, m = config.rows, config.cols, len(x)
    period = max(m, rows)
    listed = list(folds(config, *w.shape))
    schedule = Schedule.idle(config, rows + (len(listed) - 1) * period + m + rows + cols - 2)
    schedule.stream[rows:] = True
    row, column = np.arange(rows), np.arange(cols)
    for fold in listed:
        streaming = rows + fold.index * period
        # Row 0 has switched when its weights of the fold before are first needed no more: then its chain is free.
        start = max(0, streaming - period)
        for step in range(rows):
            # A row shifts from when the first weight comes to it: rows below still hold what they will switch to.
            schedule.load_west[start + step, : step + 1] = True
        for step, weights in enumerate(_tile(config, w, fold)[::-1]):
            cycle = start + step + column
            kept = cycle < len(schedule.weight_north)
            schedule.weight_north[cycle[kept], column[kept]] = weights[kept]
        cycle = streaming - 1 + row
        schedule.switch_west[cycle, row] = True
        _stream(schedule, config, x, fold, streaming)
    return schedule


def _tile(config: ArrayConfig, w: Integers, fold: Fold) -> Int64Array:
    """The weights of a fold, int64 [rows, cols], 0 where it has none."""
    tile = np.zeros((config.rows, config.cols), np.int64)
    tile[: fold.used_rows, : fold.used_cols] = w[fold.k_start : fold.k_stop, fold.n_start : fold.n_stop]
    return tile


def _stream(schedule: Schedule, config: ArrayConfig, x: Integers, fold: Fold, start: int) -> None:
    """Feed X skewed from cycle `start` on, and have the outputs stored."""
    m = len(x)
    for row in range(fold.used_rows):
        schedule.activation_west[start + row : start + row + m, row] = x[:, fold.k_start + row]
    leaving = slice(start + config.rows - 1, start + config.rows - 1 + m)
    schedule.write[leaving] = True
    schedule.add[leaving] = fold.k_start > 0
    schedule.write_row[leaving] = np.arange(m)


def to_bits(numbers: npt.NDArray[np.integer], width: int) -> Bits:
    """The low `width` bits of numbers of any shape, uint8 0 or 1 [..., width], the least significant bit first."""
    shifted = np.asarray(numbers).astype(np.int64)[..., None] >> np.arange(width)
    bits: Bits = (shifted & 1).astype(np.uint8)
    return bits
