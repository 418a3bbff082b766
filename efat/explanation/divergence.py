"""What a fault does to one image: where and when it first acts, and how far its error travels through the layers.

A fault may change what its net carries long before it matters: while the array fills, in PEs that hold no weights, or
in sums that end up the same. `first_divergence` finds the beginning of what matters. In the first layer and group whose
outputs differ with the fault from those without it, on the same operands, the sums that columns store are compared from
k-fold to k-fold. The fold is the first one with a difference at an output that ends up different, and m the first row
of X that has one there. What this row meets on a net of a PE it meets in one clock cycle, so there the net carries
another value. A weight on the load chain passes earlier, in the cycle that its row's place in the chain gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from efat.explanation.fault_subsets import Inference, LayerRun
from simulator.dtypes import BoolArray, Int32Array, Int64Array
from simulator.engine.fold_trace import FoldWindow, record_fold
from simulator.engine.masks import stuck_masks
from simulator.engine.timing import Fold, folds, gemm_timing, load_cycles
from simulator.engine.trace import Trace
from simulator.errors import InputError
from simulator.faults import Fault, FaultMap, Site
from training.emulation.gemm import faulty_gemm
from training.layers.quantized import GemmRun

Pattern = Literal["none", "single", "all", "column", "row", "block"]
"""Where the changed outputs of a layer's GEMM [M, N] are, groups side by side: nowhere; at one place; everywhere; in
one output channel n; in one row of X; anything else. The first that fits is the pattern."""


@dataclass(frozen=True)
class LayerEffect:
    """What an error changes in one layer on one image: how many of its GEMMs' outputs M times N, and by how much."""

    layer: str
    outputs: int
    changed: int
    pattern: Pattern
    largest_error: int
    """Largest absolute difference of an accumulator, in its steps."""


@dataclass(frozen=True)
class ErrorPropagation:
    """What an error changes in a network on one image: its layers as they run, its scores, and the class predicted."""

    layers: tuple[LayerEffect, ...]
    scores: int
    scores_changed: int
    before: int
    after: int


def error_propagation(without: Inference, with_error: Inference) -> ErrorPropagation:
    """Compare an inference with one of the same network on the same image that has an error more.

    Raises:
        InputError: other layers ran: which of them run depends on the numbers.
    """
    ran = [[(run.name, run.outputs.shape) for run in found.layers] for found in (without, with_error)]
    if ran[0] != ran[1]:
        raise InputError(
            "the network runs other layers when faults change its numbers: layers can be compared only in a network "
            "that always runs the same ones"
        )
    return ErrorPropagation(
        layers=tuple(_effect(*pair) for pair in zip(without.layers, with_error.layers, strict=True)),
        scores=len(without.scores),
        scores_changed=int((with_error.scores != without.scores).sum()),
        before=without.prediction,
        after=with_error.prediction,
    )


def _effect(without: LayerRun, with_error: LayerRun) -> LayerEffect:
    errors = np.abs(with_error.outputs.astype(np.int64) - without.outputs)
    changed = errors != 0
    return LayerEffect(without.name, changed.size, int(changed.sum()), pattern_of(changed), int(errors.max(initial=0)))


def pattern_of(changed: BoolArray) -> Pattern:
    """Name the pattern of changed outputs, bool [M, N].

    >>> pattern_of(np.array([[True, False], [True, False]]))
    'column'
    """
    count = int(changed.sum())
    if count < 2:
        return "single" if count else "none"
    if count == changed.size:
        return "all"
    if changed.any(axis=0).sum() == 1:
        return "column"
    return "row" if changed.any(axis=1).sum() == 1 else "block"


@dataclass(frozen=True)
class StoredSum:
    """What a column stores in a clock cycle for row m of X and output n of a group's GEMM, without a fault and with."""

    row_of_x: int
    output: int
    cycle: int
    was: int
    became: int


@dataclass(frozen=True)
class FirstDivergence:
    """Where and when a fault first acts. Clock cycles count over the GEMM in serial timing, as `Fault.cycle` does.

    Attributes:
        layer: qualified name of the layer.
        position: the layer's place in the order in which layers run, from 0.
        group: group of the convolution, from 0; 0 for every other layer. Each has a GEMM of its own.
        fold: fold of the GEMM, from 0.
        cycle: first clock cycle in which the net carries another value in a sum that ends up different.
        was: what the net would carry in that cycle without the fault. Of a fault inside the multiplier it is the
            product, of one of a column's accumulator the sum to be stored.
        became: what it carries.
        stored: the first of the sums that this changes.
    """

    layer: str
    position: int
    group: int
    fold: int
    cycle: int
    was: int
    became: int
    stored: StoredSum


def first_divergence(
    fault: Fault, without: Inference, with_fault: Inference, others: FaultMap, all_faults: FaultMap, bypass: BoolArray
) -> FirstDivergence | None:
    """Where a fault, no FLIP, first acts on an image, of which there are inferences without it and with it.

    It is None if no output of any layer differs. `bypass`, bool [rows, cols], are the PEs that are bypassed.
    """
    for position, (before, after) in enumerate(zip(without.layers, with_fault.layers, strict=True)):
        for one, other in zip(before.gemms, after.gemms, strict=True):
            if not torch.equal(one.outputs, other.outputs):
                # Up to here nothing differs: the operands are the same.
                return _LocatedGemm(other, others, all_faults, bypass).first_divergence(fault, position)
    return None


_TRACED = {Site.WEIGHT_LOAD: "shift", Site.WEIGHT: "weight", Site.ACTIVATION: "east", Site.PSUM: "south"}
"""Where traces have the nets; of a fault inside the multiplier it is the product."""


class _LocatedGemm:
    """The first GEMM whose outputs differ; see `first_divergence`."""

    def __init__(self, run: GemmRun, others: FaultMap, all_faults: FaultMap, bypass: BoolArray) -> None:
        self._run = run
        self._config = all_faults.config
        self._maps = others, all_faults
        self._bypass = bypass
        x, w = run.on_array()
        self._x, self._w = x.cpu(), w.cpu()
        placement = run.placement
        # The output at each position in the order of columns, over all n-folds; -1 for positions that hold none.
        self._output_at = np.full(self._w.shape[1], -1, np.int64)
        taken = np.arange(self._w.shape[1]) if placement is None else placement.columns[run.group]
        self._output_at[taken] = np.arange(len(taken))

    def first_divergence(self, fault: Fault, position: int) -> FirstDivergence:
        """Where the fault first acts in it; the GEMM is of layer number `position`."""
        config = self._config
        fold, was, became = self._first_fold()
        row_of_x, column = (int(place) for place in np.argwhere(was != became)[0])
        start = fold.index * gemm_timing(config, len(self._x), *self._w.shape).cycles_per_fold
        values = int(was[row_of_x, column]), int(became[row_of_x, column])
        at_store = start + load_cycles(config) + row_of_x + (config.rows - 1) + column
        stored = StoredSum(row_of_x, int(self._output_at[fold.n_start + column]), at_store, *values)
        cycle = at_store
        if fault.site is not Site.ACCUMULATOR:
            in_fold = load_cycles(config) + row_of_x + fault.row + fault.col
            if fault.site is Site.WEIGHT_LOAD:
                in_fold = load_cycles(config) - 1 - self._load_for(fault, fold.index, row_of_x) + fault.row
            cycle, values = start + in_fold, self._on_net(fault, fold.index, in_fold)
        return FirstDivergence(self._run.layer, position, self._run.group, fold.index, cycle, *values, stored)

    def _first_fold(self) -> tuple[Fold, Int32Array, Int32Array]:
        """The fold, and int32 [M, used columns]: what the columns store, 0 at outputs that end up the same."""
        k, n = self._w.shape
        listed = list(folds(self._config, k, n))
        depth = -(-k // self._config.rows)
        for first in range(0, len(listed), depth):
            of_columns = listed[first : first + depth]
            at_last = self._stored(of_columns[-1])
            kept = (at_last[0] != at_last[1]) & (self._output_at[of_columns[0].n_start : of_columns[0].n_stop] >= 0)
            for fold in of_columns if kept.any() else ():
                was, became = (np.where(kept, values, np.int32(0)) for values in self._stored(fold))
                if (was != became).any():
                    return fold, was, became
        raise AssertionError("the outputs differ, and no fold's do")

    def _stored(self, fold: Fold) -> tuple[Int32Array, Int32Array]:
        """The accumulators after a fold, int32 [M, used columns], without the fault and with it."""
        # What the columns hold by then is the GEMM of the reduction indices so far.
        x = self._x[:, : fold.k_stop].contiguous()
        w = self._w[: fold.k_stop, fold.n_start : fold.n_stop]
        without, with_fault = (faulty_gemm(x, w, self._config, faults, bypass=self._bypass) for faults in self._maps)
        return without.numpy(), with_fault.numpy()

    def _recorded(self, window: FoldWindow, faults: FaultMap, pes: list[tuple[int, int]]) -> Iterator[Trace]:
        return record_fold(self._x.numpy(), self._w.numpy(), window, faults, bypass=self._bypass, pes=pes)

    def _on_net(self, fault: Fault, fold: int, in_fold: int) -> tuple[int, int]:
        """What the net of the fault's PE carries in one cycle of a fold, without the fault and with it."""
        pe = fault.row, fault.col
        window = FoldWindow.of(self._x, self._w, self._config, fold, in_fold, in_fold + 1)
        values = []
        for faults in self._maps:
            trace = next(self._recorded(window, faults, [pe]))
            value = int(getattr(trace, _TRACED.get(fault.site, "product"))[0, fault.row, fault.col])
            if fault.site is Site.WEIGHT:
                keep, force = (int(mask[pe]) for mask in stuck_masks(faults, Site.WEIGHT, np.int16))
                value = (value & keep) | force
            values.append(value)
        return values[0], values[1]

    def _load_for(self, fault: Fault, fold: int, row_of_x: int) -> int:
        """The row whose weight passes the net otherwise first, of those whose product with a row of X differs.

        It is the one furthest south: its weight passes earliest.
        """
        rows = np.arange(fault.row, self._config.rows)
        without, with_fault = (self._products(faults, fold, row_of_x, rows, fault.col) for faults in self._maps)
        return int(rows[(without != with_fault) & ~self._bypass[rows, fault.col]].max())

    def _products(self, faults: FaultMap, fold: int, row_of_x: int, rows: Int64Array, column: int) -> Int32Array:
        """What PEs of a column, int64 [rows] from the north, make of a row of X: int32 [rows]."""
        first = load_cycles(self._config) + row_of_x + int(rows[0]) + column
        window = FoldWindow.of(self._x, self._w, self._config, fold, first, first + len(rows))
        pes = [(int(row), column) for row in rows]
        found: list[Int32Array] = []
        for trace in self._recorded(window, faults, pes):
            # The row reaches one PE after the other.
            entries = np.arange(len(trace))
            met = rows[trace.first_cycle + entries - window.gemm_cycles[0]]
            found.append(trace.product[entries, met, column])
        return np.concatenate(found)
