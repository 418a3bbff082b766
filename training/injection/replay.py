"""What one fault changes in a network's run, by doing again only what differs from the run without it.

The run without faults is kept. A fault's effect on a layer comes from the algebra of the emulation (`fault_effect`);
from there on operations are done again for the images for which, and only as long as, something differs. What comes out
is that of a whole run with this one fault, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from simulator import Fault
from simulator.bits import wrap
from simulator.dtypes import BoolArray, Float32Array, Int16Array, Int32Array, Int64Array, UInt8Array
from training.injection.fault_effect import FaultEffect, fault_effect
from training.injection.layer_gemm import GemmInMemory
from training.injection.network_graph import GraphOperation, GraphStep, NetworkGraph
from training.injection.replay_kernel import add_changes, compare, count_changed, mark_seen, quantise
from training.layers.quantized import QuantizedConv2d
from training.numbers import activation_limits

OUTCOMES = ("inactive", "masked", "benign", "top1", "top5")
"""What becomes of an image: no accumulator changed; the scores are the same; the class is the same; it is another one
of the five best without the fault; it is none of these."""
INACTIVE, MASKED, BENIGN, TOP1, TOP5 = range(5)

PATTERNS = ("single", "column", "row", "block", "all")
"""Which outputs [M, N] of a layer changed: one; several of one output channel; several of one row of X; others; all."""

LAYER_COUNTS = ("images_in", "images_acted", "images_out", "outputs_changed", *PATTERNS, "largest_error", "error_sum")
"""What is counted at each layer: see `Propagated.layers`."""

OPERATION_COUNTS = (
    "images_in",
    "images_masked",
    "images_out",
    "elements_in",
    "elements_out",
    "rounded",
    "saturated",
)
"""What is counted at each operation: see `Propagated.operations`."""

_BEST = 5
_LARGEST = LAYER_COUNTS.index("largest_error")

_DENSE_RATE = 10.0
"""How many times as many multiply-accumulates a whole layer does in a time as single ones are added."""
_OVERHEAD = 16
"""What finding a window that an activation is in costs, in multiply-accumulates."""
_MOST_WINDOWS = 1 << 23
"""Times activations in them: what is listed for a layer."""


@dataclass(frozen=True, eq=False)
class Injected:
    """One fault, and the images it is there for.

    Args:
        fault: a permanent one acts in all layers; a FLIP in a clock cycle of one GEMM of an image by itself.
        images: int64 [images], places among the images of the replay, ascending; one or more.
        layer: of a FLIP: place of the layer; None for a permanent fault.
        group: of a FLIP: the group of the layer whose GEMM has the cycle.
    """

    fault: Fault
    images: Int64Array
    layer: int | None = None
    group: int | None = None


class Propagated(NamedTuple):
    """What became of trials. An entry is a trial on one of its images, in the order of trials and images.

    Attributes:
        trial: int64 [entries].
        image: int64 [entries].
        outcome: uint8 [entries], place in `OUTCOMES`.
        scores: float32 [entries, classes].
        predicted: int64 [entries], the class with the best score.
        layers: int64 [trials, layers, `LAYER_COUNTS`]: images whose quantised input differed; in which the fault itself
            changed accumulators; whose accumulators differ; accumulators that differ, over all images; images by
            pattern; the largest difference, and the sum of all, in steps of the accumulator.
        operations: int64 [trials, operations, `OPERATION_COUNTS`]: images with an input that differs; those of them
            whose output does not; images with an output that differs, which for `multiply` may be with the same input;
            elements of inputs and of outputs that differ; and elements of a quantised input that stopped differing by
            rounding and by saturation.
    """

    trial: Int64Array
    image: Int64Array
    outcome: UInt8Array
    scores: Tensor
    predicted: Int64Array
    layers: Int64Array
    operations: Int64Array


class ChangedInputs(NamedTuple):
    """What has become of inputs when they were quantised; int64 [entries] each.

    Attributes:
        differ: elements that differ.
        rounded: of these, both are rounded to the same integer.
        saturated: both are clamped to the same.
        changed: the others.
        memory: int8 or uint8 [entries, image_size], as the array is fed.
        places: int32 [entries, ...]: where in memory these lie, for entries with few.
    """

    differ: Int64Array
    rounded: Int64Array
    saturated: Int64Array
    changed: Int64Array
    memory: Any
    places: Int32Array

    def of(self, chosen: BoolArray) -> ChangedInputs:
        """Those of some entries, bool [entries]."""
        return ChangedInputs(*(np.asarray(part)[chosen] for part in self))


class ChangedSums(NamedTuple):
    """How accumulators differ; int64 [entries] each.

    Attributes:
        changed: accumulators that differ.
        pattern: which, a place in `PATTERNS`.
        largest: the largest difference.
        total: the sum of their magnitudes.
        results: elements of the layer's result that differ.
    """

    changed: Int64Array
    pattern: Int64Array
    largest: Int64Array
    total: Int64Array
    results: Int64Array


@dataclass(frozen=True, eq=False)
class FaultFreeLayer:
    """A layer in a run without faults.

    Attributes:
        gemm: the layer's GEMMs.
        inputs: float32 [n, elements].
        memory: int8 or uint8 [n, image_size]: the same as the array is fed with them.
        sums: int32 [n, outputs, M]: what the accumulators hold at the end.
        values: float32 [n, outputs, M]: the layer's result.
        by_input: int16 [groups * K, N], the weights.
        lines: where an element of the input lies in memory: lines of a channel and their length, elements from one
            channel to the next and from one line to the next, and the first element; None if padding is not of zeros.
    """

    gemm: GemmInMemory
    inputs: Float32Array
    memory: Any
    sums: Int32Array
    values: Float32Array
    by_input: Int16Array
    lines: tuple[int, int, int, int, int] | None

    @classmethod
    def of(cls, gemm: GemmInMemory, x: Tensor) -> FaultFreeLayer:
        """Run a layer.

        Args:
            gemm: of the layer.
            x: float32 [n, *input_shape].
        """
        memory = gemm.memory(x)
        sums = gemm.accumulate(memory)
        values = gemm.result(sums)
        if not isinstance(gemm.layer, QuantizedConv2d):
            values = values.view(len(x), gemm.m, gemm.outputs).transpose(1, 2)
        return cls(
            gemm,
            x.reshape(len(x), -1).contiguous().numpy(),
            memory,
            sums,
            values.reshape(len(x), gemm.outputs, gemm.m).contiguous().numpy(),
            np.ascontiguousarray(gemm.weights.transpose(0, 2, 1), np.int16).reshape(-1, gemm.n),
            _lines(gemm),
        )

    @cached_property
    def windows(self) -> tuple[Int64Array, Int32Array, Int32Array]:
        """Which windows each place in memory is in.

        Returns:
            int64 [image_size + 1], where those of a place begin and end; and for each the row of X and `group * K + k`.
        """
        gemm = self.gemm
        place = (gemm.start[None, :] + gemm.offset.reshape(-1)[:, None]).reshape(-1)
        order = np.argsort(place, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=gemm.image_size))])
        k, row = np.divmod(order, gemm.m)
        return first, row.astype(np.int32), k.astype(np.int32)

    @cached_property
    def few(self) -> int:
        """Up to so many activations that differ are quicker added one by one than the whole layer is done again."""
        gemm = self.gemm
        listed = gemm.m * gemm.k * gemm.groups
        if self.lines is None or not gemm.config.multiplies_exactly or listed > _MOST_WINDOWS:
            return 0
        each = listed / gemm.image_size * (gemm.n + _OVERHEAD) * _DENSE_RATE
        return int(listed * gemm.n / each)

    def quantised(self, x: Tensor, image: Int64Array) -> ChangedInputs:
        """Quantise inputs.

        Args:
            x: float32 [entries, *input_shape], finite.
            image: int64 [entries], the image that each is of.
        """
        values = x.reshape(len(x), -1).contiguous().numpy()
        counts = np.empty((4, len(x)), np.int64)
        places = np.empty((len(x), self.few), np.int32)
        memory = self.gemm.memory(x) if self.lines is None else self.memory[image]
        low, high = (np.float32(limit) for limit in activation_limits(self.gemm.config))
        scale = np.float32(self.gemm.layer.activation_scale.item())
        written = memory[:0] if self.lines is None else memory
        lines = self.lines or (1, 1, 0, 0, 0)
        quantise(values, self.inputs, image, scale, low, high, lines, self.few, written, places, counts)
        return ChangedInputs(counts[0], counts[1], counts[2], counts[3], memory, places)

    def accumulated(self, inputs: ChangedInputs, image: Int64Array) -> Int32Array:
        """The accumulators for inputs that differ.

        Args:
            inputs: as they were quantised.
            image: int64 [entries], the image that each is of.

        Returns:
            int32 [entries, outputs, M].
        """
        gemm = self.gemm
        few = inputs.changed <= self.few
        if not few.any():
            return gemm.accumulate(inputs.memory)
        sums = np.empty((len(image), gemm.outputs, gemm.m), np.int32)
        if not few.all():
            sums[~few] = gemm.accumulate(inputs.memory[~few])
        add_changes(
            np.nonzero(few)[0],
            inputs.changed,
            inputs.places,
            inputs.memory,
            self.memory,
            image,
            self.by_input,
            self.windows,
            32 - gemm.config.acc_bits,
            self.sums,
            sums,
        )
        return sums

    def results(self, sums: Int32Array, image: Int64Array) -> tuple[ChangedSums, Tensor]:
        """The layer's results for accumulators that differ, and how these do.

        Args:
            sums: int32 [entries, outputs, M].
            image: int64 [entries], the image that each is of.

        Returns:
            How they differ, and float32 [entries, *output_shape].
        """
        gemm = self.gemm
        layer = gemm.layer
        bias = np.zeros(gemm.outputs, np.int32) if layer.bias_int is None else layer.bias_int.numpy()
        values = np.empty(sums.shape, np.float32)
        found = np.empty((5, len(sums)), np.int64)
        compare(sums, self.sums, image, bias, layer.output_scale.numpy(), self.values, values, found)
        result = torch.from_numpy(values)
        if not isinstance(layer, QuantizedConv2d):
            result = result.transpose(1, 2).contiguous()
        return ChangedSums(*found), result.view(len(sums), *gemm.output_shape)


def _lines(gemm: GemmInMemory) -> tuple[int, int, int, int, int] | None:
    layer = gemm.layer
    if not isinstance(layer, QuantizedConv2d):
        return 1, gemm.image_size, gemm.image_size, gemm.image_size, 0
    channels, height, width = gemm.input_shape
    if layer.pad(torch.empty(1, *gemm.input_shape, device="meta")).shape[1:] != gemm.input_shape:
        return None
    down, across = layer.product_padding
    padded = width + 2 * across
    return height, width, gemm.image_size // channels, padded, down * padded + across


class Replay:
    """A network's run on some images without faults, from which runs with one fault are made.

    Args:
        network: quantised, in evaluation mode, on `Accelerator.fault_free`, everything in order.
        images: float32 [n, c, h, w], n >= 1.

    Attributes:
        graph: the network's operations, with what each gives.
        layers: what is kept of the layers, in the order in which they run.
        scores: float32 [n, classes].
        predicted: int64 [n], the class with the best score.

    Raises:
        InputError: the network cannot be followed: see `NetworkGraph`; or a layer has its operands elsewhere.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:

        self.graph = graph = NetworkGraph(network, images)
        self.layers: list[FaultFreeLayer] = []
        for step in graph.steps:
            if step.layer is not None:
                x = graph.layer_input(step, graph.values.__getitem__)
                self.layers.append(FaultFreeLayer.of(GemmInMemory.of(graph.layers[step.layer], tuple(x.shape[1:])), x))
        self.scores = graph.values[graph.scores]
        self.predicted: Int64Array = self.scores.argmax(1).numpy()
        best = np.argsort(-self.scores.numpy(), axis=1, kind="stable")[:, :_BEST]
        self._among_best = np.zeros(self.scores.shape, np.bool_)
        np.put_along_axis(self._among_best, best, True, axis=1)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def operations(self) -> Sequence[GraphOperation]:
        """What a difference passes, in the order in which it runs."""
        return self.graph.operations

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept of the run."""
        found: int = sum(value.nbytes for value in self.graph.values.values())
        for layer in self.layers:
            found += layer.memory.nbytes + layer.sums.nbytes
        return found

    def seen(self, layer: int) -> BoolArray:
        """Which activations occur at each reduction index of a layer, padding included.

        Returns:
            bool [groups, K, 2**act_bits], by bit pattern.
        """
        kept = self.layers[layer]
        gemm = kept.gemm
        patterns = 1 << gemm.config.act_bits
        found = np.zeros((gemm.groups, gemm.k, patterns), np.bool_)
        mark_seen(kept.memory, gemm.start, gemm.offset, patterns - 1, found)
        return found

    def propagate(self, trials: Sequence[Injected]) -> Propagated:
        """Follow faults through the network, each by itself.

        Memory is needed for one copy of the values of each entry that differs, so a call should have no more than some
        hundreds of entries of a large network.

        Args:
            trials: the faults.

        Raises:
            NotFiniteError: a layer's input is NaN or infinite.
        """
        with torch.no_grad():
            return ReplayRun(self, trials).done()

    def outcomes(self, image: Int64Array, scores: Tensor) -> UInt8Array:
        """What scores that differ come to.

        Args:
            image: int64 [entries], the image that each is of.
            scores: float32 [entries, classes].

        Returns:
            uint8 [entries], places in `OUTCOMES`.
        """
        predicted = scores.argmax(1).numpy()
        outcome = np.full(len(predicted), BENIGN, np.uint8)
        moved = predicted != self.predicted[image]
        among_best = self._among_best[image, predicted]
        outcome[moved & among_best] = TOP1
        outcome[moved & ~among_best] = TOP5
        return outcome


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

    def __init__(self, replay: Replay, trials: Sequence[Injected]) -> None:
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

    def done(self) -> Propagated:
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
        return Propagated(
            self._trial, self._image, outcome, scores, predicted, layers, self._by_trial(self._operations)
        )

    def _by_trial(self, counts: Int64Array) -> Int64Array:
        if not len(self._trials):
            return counts
        found: Int64Array = np.add.reduceat(counts, self._first[:-1])
        return found

    def _do(self, step: GraphStep) -> None:
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

    def _multiply(self, step: GraphStep, layer: int) -> None:
        """Do a layer again where its input differs, or a fault acts."""
        kept = self._replay.layers[layer]
        entries, inputs = self._quantised(step, layer, kept)
        sums = None
        parts: list[tuple[Int64Array, Int32Array]] = []
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
        kept: FaultFreeLayer,
        entries: Int64Array,
        parts: list[tuple[Int64Array, Int32Array]],
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

    def _quantised(self, step: GraphStep, layer: int, kept: FaultFreeLayer) -> tuple[Int64Array, ChangedInputs | None]:
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
        step: GraphStep,
        layer: int,
        kept: FaultFreeLayer,
        entries: Int64Array,
        sums: Int32Array,
        inputs: ChangedInputs | None,
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

    def _arriving(self, step: GraphStep) -> Int64Array:
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


def _effect(kept: FaultFreeLayer, trial: Injected, memory: Any, sums: Int32Array) -> FaultEffect | None:
    return fault_effect(kept.gemm, trial.fault, memory, sums, trial.group)


def _acts(effect: FaultEffect) -> BoolArray:
    """For which images an effect changes accumulators, bool [images]."""
    found: Any = effect.delta.reshape(len(effect.delta), -1).any(axis=1)
    return np.asarray(found, np.bool_)


def _added(sums: Int32Array, effect: FaultEffect, kept: FaultFreeLayer) -> Int32Array:
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
