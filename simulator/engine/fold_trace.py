"""The registers of one fold of a GEMM, recorded piece by piece: long windows on large arrays in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int32Array
from simulator.engine.gemm import simulate_gemm
from simulator.engine.operands import check_chip
from simulator.engine.timing import folds, gemm_timing, load_cycles, stream_cycles
from simulator.engine.trace import Trace
from simulator.errors import InputError
from simulator.faults import FaultMap

PIECE_BYTES = 256 << 20

_BYTES_PER_PE = 5 * 4
"""The arrays of a trace, of int32."""


class WindowError(InputError):
    """A fold or a window of cycles that the GEMM does not have."""


class WaveformError(InputError):
    """A waveform that cannot be made of this GEMM."""


@dataclass(frozen=True)
class FoldWindow:
    """A window of clock cycles within one fold of `X[m, k] @ W[k, n]`.

    Args:
        config: the array.
        m: rows of X, >= 0.
        k: reduction length, >= 1.
        n: outputs, >= 1.
        fold: index of the fold, from 0; n-folds are the outer loop, k-folds the inner one.
        first: first clock cycle of the window, counted within the fold, whose first `config.rows` cycles load weights.
        stop: one past the last clock cycle.

    Raises:
        WindowError: the GEMM has no such fold, or the fold no such cycles.
        InputError: `m`, `k` or `n` is out of its range.
    """

    config: ArrayConfig
    m: int
    k: int
    n: int
    fold: int
    first: int
    stop: int

    def __post_init__(self) -> None:
        timing = gemm_timing(self.config, self.m, self.k, self.n)
        if not 0 <= self.fold < timing.folds:
            count = "1 fold" if timing.folds == 1 else f"{timing.folds} folds"
            raise WindowError(
                f"fold {self.fold}: the GEMM of M={self.m}, K={self.k}, N={self.n} has {count} on the "
                f"{self.config.rows}x{self.config.cols} array, expected 0..{timing.folds - 1}"
            )
        if not 0 <= self.first < self.stop <= timing.cycles_per_fold:
            raise WindowError(
                f"cycles {self.first}:{self.stop}: a fold has {timing.cycles_per_fold} cycles, "
                f"expected first:stop with 0 <= first < stop <= {timing.cycles_per_fold}"
            )

    @classmethod
    def of(
        cls,
        x: npt.ArrayLike,
        w: npt.ArrayLike,
        config: ArrayConfig,
        fold: int = 0,
        first: int | None = None,
        stop: int | None = None,
    ) -> FoldWindow:
        """The window of the GEMM of x [M, K] and w [K, N]; by default the whole of its first fold.

        Raises:
            WindowError: the GEMM has no such fold, or the fold no such cycles.
            InputError: `x` and `w` are not matrices that can be multiplied, K = 0 or N = 0.
        """
        shapes = np.shape(x), np.shape(w)
        if not len(shapes[0]) == len(shapes[1]) == 2 or shapes[0][1] != shapes[1][0]:
            raise InputError(f"x is {shapes[0]} and w is {shapes[1]}: expected x [M, K] and w [K, N] with the same K")
        (m, k), n = shapes[0], shapes[1][1]
        if stop is None:
            stop = gemm_timing(config, m, k, n).cycles_per_fold
        return cls(config, m, k, n, fold, 0 if first is None else first, stop)

    @property
    def cycles_per_fold(self) -> int:
        """Clock cycles of one fold in serial timing."""
        return gemm_timing(self.config, self.m, self.k, self.n).cycles_per_fold

    @property
    def gemm_cycles(self) -> tuple[int, int]:
        """The window (first, stop) in clock cycles of the whole GEMM in serial timing, as `Fault.cycle` counts."""
        start = self.fold * self.cycles_per_fold
        return start + self.first, start + self.stop

    def __len__(self) -> int:
        return self.stop - self.first


def record_fold(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    window: FoldWindow,
    faults: FaultMap | None = None,
    *,
    bypass: npt.ArrayLike | None = None,
    pes: Sequence[tuple[int, int]] | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[Trace]:
    """Record a window of one fold, piece by piece.

    Without FLIPs only what the window needs is stepped: the weights of the fold, the rows of X that are in flight in
    each piece, and, once weights are loaded, the PEs that the chosen ones depend on, which are those to the north and
    west. FLIPs count cycles of the whole GEMM, which is then stepped from its beginning for each piece.

    Args:
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        window: the fold and its cycles.
        faults: what is broken in the array; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        pes: the PEs (row, col) to record; others may show 0. None for all.
        piece_bytes: most memory of one piece, unless a single cycle takes more.

    Yields:
        Consecutive traces, the same numbers as `simulate_gemm(..., record=window.gemm_cycles)` records.

    Raises:
        InputError: `x` and `w` are not of the window's GEMM, a PE is not in the array, or as `simulate_gemm`.
    """
    acts, weights = np.asarray(x), np.asarray(w)
    expected = (window.m, window.k), (window.k, window.n)
    if (acts.shape, weights.shape) != expected:
        raise InputError(
            f"x is {acts.shape} and w is {weights.shape}: expected {expected[0]} and {expected[1]}, the window's GEMM"
        )
    config = window.config
    chosen = check_pes(config, pes)
    faults, bypassed = check_chip(config, faults, bypass)
    return _pieces(acts, weights, window, faults, bypassed, chosen, piece_bytes)


def _pieces(
    acts: npt.NDArray[np.integer],
    weights: npt.NDArray[np.integer],
    window: FoldWindow,
    faults: FaultMap,
    bypass: BoolArray,
    pes: Sequence[tuple[int, int]],
    piece_bytes: int,
) -> Iterator[Trace]:
    config = window.config
    corner = replace(config, rows=1 + max(row for row, _ in pes), cols=1 + max(col for _, col in pes))
    length = max(1, piece_bytes // (config.pe_count * _BYTES_PER_PE))
    fold_start = window.fold * window.cycles_per_fold
    fold = next(islice(folds(config, window.k, window.n), window.fold, None))
    of_fold = acts[:, fold.k_start : fold.k_stop], weights[fold.k_start : fold.k_stop, fold.n_start : fold.n_stop]
    for first in range(window.first, window.stop, length):
        stop = min(first + length, window.stop)
        if faults.has_flips:
            record = (fold_start + first, fold_start + stop)
            trace = simulate_gemm(acts, weights, config, faults, bypass=bypass, record=record).trace
            assert trace is not None
        elif first < load_cycles(config):
            trace = _piece(*of_fold, config, faults, bypass, first, stop)
        else:
            # The corner has fewer rows to load.
            skipped = load_cycles(config) - load_cycles(corner)
            part = _piece(*of_fold, corner, faults, bypass, first - skipped, stop - skipped)
            trace = part if corner == config else _embedded(part, config)
        yield replace(trace, first_cycle=fold_start + first)


def _piece(
    acts: npt.NDArray[np.integer],
    weights: npt.NDArray[np.integer],
    array: ArrayConfig,
    faults: FaultMap,
    bypass: BoolArray,
    first: int,
    stop: int,
) -> Trace:
    """Registers of a north-west corner, `array`, in cycles `first:stop` of a fold of the corner.

    All else is of the whole array. The corner's own fold, which drains sooner, may not have all the cycles. A value
    entering the array has left it, and all that came of it, after rows + cols - 2 more cycles: a run that begins this
    much earlier with empty registers holds the right values in the window.
    """
    rows, cols = array.rows, array.cols
    begin = max(0, first - load_cycles(array) - (rows + cols - 2))
    in_flight = slice(begin, min(len(acts), max(begin, stop - load_cycles(array))))
    # Row `in_flight.start` of X is fed in streaming cycle 0 of this shorter run.
    first, stop = first - in_flight.start, stop - in_flight.start
    part = acts[in_flight, :rows]
    # Feeders give 0 after their data: rows of zeros keep the array streaming.
    missing = stop - (load_cycles(array) + stream_cycles(array, len(part)))
    if missing > 0:
        part = np.concatenate([part, np.zeros((missing, part.shape[1]), part.dtype)])
    table = faults.table[(faults.table["row"] < rows) & (faults.table["col"] < cols)]
    trace = simulate_gemm(
        part, weights[:rows, :cols], array, FaultMap(array, table), bypass=bypass[:rows, :cols], record=(first, stop)
    ).trace
    assert trace is not None
    return trace


def _embedded(corner: Trace, config: ArrayConfig) -> Trace:
    """The trace of the whole array, with 0 outside the corner."""
    _, rows, cols = corner.south.shape

    def whole(values: Int32Array) -> Int32Array:
        zeros = np.zeros((len(values), config.rows, config.cols), np.int32)
        zeros[:, :rows, :cols] = values
        return zeros

    registers = (corner.shift, corner.weight, corner.east, corner.product, corner.south)
    return Trace(corner.first_cycle, *map(whole, registers))


def check_pes(config: ArrayConfig, pes: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """The chosen PEs (row, col) in order and each once, all for None; a `WaveformError` if one is not in the array."""
    if pes is None:
        return [(row, col) for row in range(config.rows) for col in range(config.cols)]
    for row, col in pes:
        if not (0 <= row < config.rows and 0 <= col < config.cols):
            raise WaveformError(
                f"PE {row},{col} is not in the {config.rows}x{config.cols} array: "
                f"expected row 0..{config.rows - 1} and column 0..{config.cols - 1}"
            )
    if not pes:
        raise WaveformError("no PEs are chosen: expected at least one")
    return sorted(set(pes))
