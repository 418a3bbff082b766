"""Following faults through a network: one call of `Replay.carry`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from simulator.bits import wrap
from training.injection.fault_effect import FaultEffect, fault_effect
from training.injection.network_graph import Step
from training.injection.replay import (
    INACTIVE,
    LAYER_COUNTS,
    MASKED,
    OPERATION_COUNTS,
    PATTERNS,
    Carried,
    Int64Array,
    Replay,
    Trial,
)
from training.injection.replay_kernel import count_changed
from training.injection.replay_layer import KeptLayer, Rounded

_LARGEST = LAYER_COUNTS.index("largest_error")


class _Differing(NamedTuple):
    """What a step gives for the entries for which it is not what it is without a fault."""

    entries: Int64Array
    values: Tensor
    elements: Int64Array
    """int64 [entries], how many elements of each differ."""


class ReplayRun:
    """Trials on their way through the network.

    An entry is a trial on one of its images. For each step of the network it is known for which entries something
    differs; for all others it is what it is without a fault.
    """

    def __init__(self, replay: Replay, trials: Sequence[Trial]) -> None:
        self._replay, self._graph, self._trials = replay, replay.graph, trials
        sizes = [len(trial.images) for trial in trials]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._trial = np.repeat(np.arange(len(trials)), sizes)
        images = [trial.images for trial in trials]
        self._image = np.concatenate(images) if images else np.empty(0, np.int64)
        count = len(self._image)
        self._layers = np.zeros((count, len(replay.layers), len(LAYER_COUNTS)), np.int64)
        self._operations = np.zeros((count, len(replay.operations), len(OPERATION_COUNTS)), np.int64)
        self._differing: dict[fx.Node, _Differing] = {}
        self._acting: dict[int | None, list[int]] = {None: []}
        for number, trial in enumerate(trials):
            self._acting.setdefault(trial.layer, []).append(number)

    def done(self) -> Carried:
        """Go through the network.

        Raises:
            NotFiniteError: a layer's input is NaN or infinite.
        """
        for step in self._graph.steps:
            if step.layer is not None:
                self._multiply(step, step.layer)
            else:
                self._do(step)
            for node in step.last_of:
                self._differing.pop(node, None)
        acted = self._layers[:, :, LAYER_COUNTS.index("images_out")].any(axis=1)
        outcome = np.where(acted, np.uint8(MASKED), np.uint8(INACTIVE))
        scores = self._replay.scores[torch.from_numpy(self._image)]
        left = self._differing.get(self._graph.scores)
        if left is not None:
            scores[torch.from_numpy(left.entries)] = left.values
            outcome[left.entries] = self._replay.outcomes(self._image[left.entries], left.values)
        predicted = self._replay.predicted[self._image]
        if left is not None:
            predicted[left.entries] = left.values.argmax(1).numpy()
        layers = self._by_trial(self._layers)
        if len(self._trials):
            layers[:, :, _LARGEST] = np.maximum.reduceat(self._layers[:, :, _LARGEST], self._first[:-1])
        return Carried(self._trial, self._image, outcome, scores, predicted, layers, self._by_trial(self._operations))

    def _by_trial(self, counts: Int64Array) -> Int64Array:
        if not len(self._trials):
            return counts
        found: Int64Array = np.add.reduceat(counts, self._first[:-1])
        return found

    def _do(self, step: Step) -> None:
        """Do an operation again for the entries whose input differs."""
        entries = self._arriving(step)
        if not len(entries):
            return
        values = self._graph.evaluate(step.node, lambda node: self._values(node, entries)).contiguous()
        arrived = sum(self._elements(node, entries) for node in step.sources)
        changed = _changed_elements(values, self._graph.values[step.node], self._image[entries])
        self._count(step.operation, entries, arrived, changed)
        differ = changed > 0
        if differ.all():
            self._differing[step.node] = _Differing(entries, values, changed)
        elif differ.any():
            self._differing[step.node] = _Differing(entries[differ], values[torch.from_numpy(differ)], changed[differ])

    def _multiply(self, step: Step, layer: int) -> None:
        """Do a layer again where its input differs, or a fault acts."""
        kept = self._replay.layers[layer]
        entries, inputs = self._quantised(step, layer, kept)
        sums = None
        parts: list[tuple[Int64Array, npt.NDArray[np.int32]]] = []
        place = None
        if inputs is not None:
            sums = kept.accumulated(inputs, self._image[entries])
            parts.append((entries, sums))
            place = np.full(len(self._image), -1, np.int64)
            place[entries] = np.arange(len(entries))
        for number in [*self._acting[None], *self._acting.get(layer, ())]:
            of_trial = slice(int(self._first[number]), int(self._first[number + 1]))
            rest = np.arange(of_trial.start, of_trial.stop)
            if place is not None and inputs is not None and sums is not None:
                at = place[of_trial]
                here = at[at >= 0]
                rest = rest[at < 0]
                if len(here):
                    # The entries of a trial lie one after another.
                    block = slice(int(here[0]), int(here[-1]) + 1)
                    effect = _effect(kept, self._trials[number], inputs.memory[block], sums[block])
                    if effect is not None:
                        _added(sums[block], effect, kept)
                        self._layers[entries[block], layer, 1] = _acts(effect)
            if len(rest):
                self._act(number, layer, kept, rest, parts)
        if parts:
            entries = np.concatenate([part for part, _ in parts])
            sums = np.concatenate([found for _, found in parts]) if len(parts) > 1 else parts[0][1]
            self._compare(step, layer, kept, entries, sums, inputs)

    def _act(
        self,
        number: int,
        layer: int,
        kept: KeptLayer,
        entries: Int64Array,
        parts: list[tuple[Int64Array, npt.NDArray[np.int32]]],
    ) -> None:
        """Let a fault act on entries of its trial whose input is that without it."""
        image = self._image[entries]
        # Of one image or all of them no copy is needed.
        chosen = slice(int(image[0]), int(image[-1]) + 1) if len(image) in (1, len(kept.memory)) else image
        memory, sums = kept.memory[chosen], kept.sums[chosen]
        effect = _effect(kept, self._trials[number], memory, sums)
        if effect is None:
            return
        acts = _acts(effect)
        if acts.any():
            self._layers[entries[acts], layer, 1] = 1
            parts.append((entries[acts], _added(sums[acts], FaultEffect(effect.outputs, effect.delta[acts]), kept)))

    def _quantised(self, step: Step, layer: int, kept: KeptLayer) -> tuple[Int64Array, Rounded | None]:
        """The entries whose quantised input differs, and that input."""
        entries = self._arriving(step)
        if not len(entries):
            return entries, None
        x = self._graph.layer_input(step, lambda node: self._values(node, entries))
        kept.gemm.layer.check_input(x)
        found = kept.quantised(x, self._image[entries])
        self._count(step.operation, entries, found.differ, found.changed)
        self._operations[entries, step.operation, 5] = found.rounded
        self._operations[entries, step.operation, 6] = found.saturated
        differ = found.changed > 0
        if not differ.any():
            return entries[:0], None
        if not differ.all():
            entries, found = entries[differ], found.of(differ)
        self._layers[entries, layer, 0] = 1
        return entries, found

    def _compare(
        self,
        step: Step,
        layer: int,
        kept: KeptLayer,
        entries: Int64Array,
        sums: npt.NDArray[np.int32],
        inputs: Rounded | None,
    ) -> None:
        """Count which accumulators differ, and keep the results of those entries.

        Args:
            step: of the layer.
            layer: its place.
            kept: what is kept of it.
            entries: for which it was done again, first those whose input differs.
            sums: int32 [entries, outputs, M], their accumulators.
            inputs: those that differ.
        """
        found, values = kept.results(sums, self._image[entries])
        arrived = np.zeros(len(entries), np.int64)
        if inputs is not None:
            arrived[: len(inputs.changed)] = inputs.changed
        self._count(step.operation + 1, entries, arrived, found.changed)
        differ = found.changed > 0
        counts = self._layers[:, layer]
        counts[entries, 2] = differ
        counts[entries, 3] = found.changed
        counts[entries[differ], 4 + found.pattern[differ]] = 1
        counts[entries, 4 + len(PATTERNS)] = found.largest
        counts[entries, 5 + len(PATTERNS)] = found.total
        if not differ.any():
            return
        order = np.argsort(entries)
        order = order[differ[order]]
        if len(order) < len(entries) or (order[1:] < order[:-1]).any():
            entries, values, results = entries[order], values[torch.from_numpy(order)], found.results[order]
        else:
            results = found.results
        self._differing[step.node] = _Differing(entries, values, results)

    def _arriving(self, step: Step) -> Int64Array:
        """Entries for which something differs that a step is made from, ascending."""
        found = [self._differing[node].entries for node in step.sources if node in self._differing]
        if not found:
            return np.empty(0, np.int64)
        return found[0] if len(found) == 1 else np.unique(np.concatenate(found))

    def _values(self, node: fx.Node, entries: Int64Array) -> Tensor:
        """What a step gives for entries, which include all for which it differs."""
        differing = self._differing.get(node)
        if differing is not None and len(differing.entries) == len(entries):
            return differing.values
        values = self._graph.values[node][torch.from_numpy(self._image[entries])]
        if differing is not None:
            values[torch.from_numpy(np.searchsorted(entries, differing.entries))] = differing.values
        return values

    def _elements(self, node: fx.Node, entries: Int64Array) -> Int64Array:
        """How many elements of a step's result differ for entries."""
        counts = np.zeros(len(entries), np.int64)
        differing = self._differing.get(node)
        if differing is not None:
            counts[np.searchsorted(entries, differing.entries)] = differing.elements
        return counts

    def _count(self, operation: int, entries: Int64Array, arrived: Any, left: Int64Array) -> None:
        """Count what arrived at an operation and left it, in elements that differ."""
        counts = self._operations[:, operation]
        came: Any = np.asarray(arrived) > 0
        counts[entries, 0] = came
        counts[entries, 1] = came & (left == 0)
        counts[entries, 2] = left > 0
        counts[entries, 3] = arrived
        counts[entries, 4] = left


def _effect(kept: KeptLayer, trial: Trial, memory: Any, sums: npt.NDArray[np.int32]) -> FaultEffect | None:
    return fault_effect(kept.gemm, trial.fault, memory, sums, trial.group)


def _acts(effect: FaultEffect) -> npt.NDArray[np.bool_]:
    """For which images an effect changes accumulators, bool [images]."""
    found: Any = effect.delta.reshape(len(effect.delta), -1).any(axis=1)
    return np.asarray(found, np.bool_)


def _added(sums: npt.NDArray[np.int32], effect: FaultEffect, kept: KeptLayer) -> npt.NDArray[np.int32]:
    """Accumulators with a fault, in place where `sums` is a copy or belongs to the run."""
    bits = kept.gemm.config.acc_bits
    changed = sums[:, effect.outputs] + effect.delta
    sums[:, effect.outputs] = changed if bits == 32 else wrap(changed, bits)
    return sums


def _changed_elements(values: Tensor, reference: Tensor, image: Int64Array) -> Int64Array:
    """How many elements of each entry differ in any bit."""
    counts = np.zeros(len(values), np.int64)
    if values.dtype == torch.float32:
        bits, others = (tensor.reshape(len(tensor), -1).view(torch.int32).numpy() for tensor in (values, reference))
        count_changed(bits, others, image, counts)
    elif values.numel():
        differ = torch.ne(values, reference[torch.from_numpy(image)])
        counts[:] = differ.reshape(len(values), -1).sum(1).numpy()
    return counts
