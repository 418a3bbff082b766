"""Quantised GEMMs on the simulated array: the public entry to the cycle engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.bits import wrap
from simulator.config import ArrayConfig
from simulator.dtypes import Int16Array, Int32Array
from simulator.engine.masks import Flips, PeMasks, pe_masks, stuck_masks
from simulator.engine.operands import check_gemm
from simulator.engine.timing import Fold, Timing, folds, gemm_timing, load_cycles, stream_cycles
from simulator.engine.trace import Trace, check_window
from simulator.errors import InputError
from simulator.faults import FaultMap, Site

if TYPE_CHECKING:
    from simulator.engine.cycle_kernel import FoldProducts, Tape
    from simulator.pe_behaviour_kernel import PeProducts


_WORK_PER_THREAD = 8_000_000
"""PE-cycles, about a millisecond's, below which another thread costs more than it does."""


@dataclass(frozen=True)
class GemmResult:
    """What one GEMM on the array gave.

    Attributes:
        outputs: int32 [M, N], read out of the column accumulators.
        cycles: clock cycles stepped, one fold after the other (serial timing).
        timing: clock cycles per fold and in total in both timing modes, and utilisation.
        trace: the registers in the recorded window, or None.
    """

    outputs: Int32Array
    cycles: int
    timing: Timing
    trace: Trace | None = None


def simulate_gemm(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    config: ArrayConfig,
    faults: FaultMap | None = None,
    *,
    bypass: npt.ArrayLike | None = None,
    record: tuple[int, int] | None = None,
    threads: int | None = None,
) -> GemmResult:
    """Multiply `x @ w` on the array, cycle by cycle and bit by bit.

    Args:
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        record: window of clock cycles (first, one past the last) whose registers to return.
        threads: most threads to work in parallel; None for one per available core. Results do not depend on it.

    Returns:
        Outputs, cycle counts and, if asked for, the trace.

    Raises:
        InputError: no integers, values out of range, shapes that do not fit, K = 0 or N = 0, faults of another array, a
            FLIP in a cycle that the GEMM does not have, or an impossible `record` window.
    """
    acts, weights, faults, bypassed = check_gemm(x, w, config, faults, bypass)
    (m, k), n = acts.shape, weights.shape[1]
    timing = gemm_timing(config, m, k, n)
    workers = min(_worker_count(threads), 1 + config.rows * min(config.cols, n) * timing.serial // _WORK_PER_THREAD)
    trace = None
    if record is not None:
        first, stop = check_window(config, record, timing.serial)
        # The cycles of one PE lie side by side, as they are written PE by PE.
        arrays = [np.zeros((config.rows, config.cols, stop - first), np.int32).transpose(2, 0, 1) for _ in range(5)]
        trace = Trace(first, *arrays)
    masks, products = _chip(faults, np.packbits(bypassed).tobytes())
    run = _GemmRun(
        config=config,
        # Narrowed first: less to transpose.
        acts=np.ascontiguousarray(acts.astype(np.int16).T),
        weights=weights.astype(np.int16),
        masks=masks,
        products=products,
        flips=Flips(faults, timing.cycles_per_fold, timing.serial),
        trace=trace,
    )
    sums = np.zeros((n, m), np.int32)
    accumulators_stuck = len(faults.unusable_columns()) > 0
    if accumulators_stuck:
        keep, force = (mask[0, :, None] for mask in stuck_masks(faults, Site.ACCUMULATOR, np.int32))
    cycles = 0
    with ThreadPoolExecutor(workers) if workers > 1 else _SameThread() as pool:
        for fold, outputs, stepped in run.folds(pool, workers):
            cycles += stepped
            columns = slice(0, fold.used_cols)
            stored = sums[fold.n_start : fold.n_stop]
            stored += outputs
            if run.flips.on_accumulators:
                column, row_of_x, mask = run.flips.of_accumulators(fold.index, m)
                used = column < fold.used_cols
                np.bitwise_xor.at(stored, (column[used], row_of_x[used]), mask[used])
            if accumulators_stuck:
                stored &= keep[columns]
                stored |= force[columns]
    if trace is not None:
        # The engine holds partial sums modulo 2^32.
        trace = replace(trace, south=wrap(trace.south, config.acc_bits))
    if config.acc_bits < 32:
        sums = wrap(sums, config.acc_bits)
    return GemmResult(np.ascontiguousarray(sums.T), cycles, timing, trace)


@lru_cache(maxsize=2)
def _chip(faults: FaultMap, packed_bypass: bytes) -> tuple[PeMasks, PeProducts]:
    """What a chip's faults are to the engine; remembered, as a chip mostly gets many GEMMs."""
    # Numba takes 0.4 s to import: planning, timing and the command line's help do without it.
    from simulator.pe_behaviour import pe_products

    config = faults.config
    bits = np.unpackbits(np.frombuffer(packed_bypass, np.uint8), count=config.pe_count)
    return pe_masks(faults, bits.astype(np.bool_).reshape(config.rows, config.cols)), pe_products(faults)


class _SameThread(Executor):
    """Runs what is submitted at once: with one worker, a thread of its own would cost more than a small fold."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


@dataclass(frozen=True)
class _GemmRun:
    """The operands and faults of one GEMM, ready for the engine."""

    config: ArrayConfig
    acts: Int16Array
    weights: Int16Array
    masks: PeMasks
    products: PeProducts
    flips: Flips
    trace: Trace | None

    def folds(self, pool: Executor, workers: int) -> Iterator[tuple[Fold, Int32Array, int]]:
        """Step all folds, several at a time; yields, in the order of time, outputs [used columns, M] and cycles."""
        listed = list(folds(self.config, *self.weights.shape))
        for start in range(0, len(listed), workers):
            group = listed[start : start + workers]
            segments = self._segments(workers // len(group))
            started = [(fold, *self._start(pool, fold, segments)) for fold in group]
            for fold, outputs, futures in started:
                yield fold, outputs, load_cycles(self.config) + sum(future.result() for future in futures)

    def _segments(self, wanted: int) -> list[tuple[int, int, int]]:
        """Streaming cycles (first, collect, stop) of parts of a fold that can be stepped at the same time.

        A part starts early enough for all values in flight at its first collected cycle to have entered the array.
        """
        total = stream_cycles(self.config, self.acts.shape[1])
        warm_up = self.config.rows + self.config.cols - 2
        parts = 1 if self.trace is not None else max(1, min(wanted, total // (4 * warm_up + 1)))
        bounds = np.linspace(0, total, parts + 1).astype(int).tolist()
        return [(max(0, begin - warm_up), begin, end) for begin, end in pairwise(bounds)]

    def _start(
        self, pool: Executor, fold: Fold, segments: list[tuple[int, int, int]]
    ) -> tuple[Int32Array, list[Future[int]]]:
        from simulator.engine.cycle_kernel import load_weights, stream

        columns = fold.used_cols if self.trace is None else self.config.cols
        flips = self.flips.of_fold(fold.index)
        tape = self._tape(fold)
        tile = np.ascontiguousarray(self.weights[fold.k_start : fold.k_stop, fold.n_start : fold.n_stop])
        weights = load_weights(tile, columns, self.masks, flips, tape)
        acts = self.acts[fold.k_start : fold.k_stop]
        outputs = np.zeros((fold.used_cols, acts.shape[1]), np.int32)
        tables = self._tables(weights, columns)
        futures = [
            pool.submit(
                stream, acts, weights, columns, self.masks, self.products, tables, flips, tape, *segment, outputs
            )
            for segment in segments
        ]
        return outputs, futures

    def _tables(self, weights: Int16Array, columns: int) -> FoldProducts:
        """What the PEs that do not multiply exactly make of a fold's weights."""
        from simulator.engine.cycle_kernel import FoldProducts
        from simulator.pe_behaviour import rows_of_products
        from simulator.pe_behaviour_kernel import EXACT

        behaviour = self.products.behaviour[:, :columns]
        row_of = np.zeros(self.products.behaviour.shape, np.int32)
        if not self.products.any:
            return FoldProducts(np.empty((0, 1), np.int16), row_of)
        used = (weights & self.masks.weight_keep) | self.masks.weight_force
        place = np.nonzero(behaviour != EXACT)
        rows, row_of[place] = rows_of_products(
            self.products, behaviour[place], used[place], self.config.weight_bits, self.config.act_bits
        )
        return FoldProducts(rows, row_of)

    def _tape(self, fold: Fold) -> Tape:
        from simulator.engine.cycle_kernel import Tape

        if self.trace is None:
            nothing = np.empty((0, 0, 0), np.int32)
            return Tape(0, 0, 0, nothing, nothing, nothing, nothing, nothing)
        per_fold = load_cycles(self.config) + stream_cycles(self.config, self.acts.shape[1])
        first = self.trace.first_cycle - fold.index * per_fold
        begin, end = max(0, -first), min(len(self.trace), per_fold - first)
        registers = (self.trace.shift, self.trace.weight, self.trace.east, self.trace.product, self.trace.south)
        return Tape(first, begin, end, *(array.transpose(1, 2, 0) for array in registers))


def _worker_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise InputError(f"threads is {threads}: expected at least 1")
    return threads
