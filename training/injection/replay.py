"""What one fault changes in a network's run, by doing again only what differs from the run without it.

The run without faults is kept. A fault's effect on a layer comes from the algebra of the emulation (`fault_effect`);
from there on operations are done again for the images for which, and only as long as, something differs. What comes out
is that of a whole run with this one fault, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simulator import Fault
from training.injection.network_graph import NetworkGraph, Operation

if TYPE_CHECKING:
    from training.injection.replay_layer import KeptLayer

Int64Array = npt.NDArray[np.int64]

OUTCOMES = ("inactive", "masked", "benign", "top1", "top5")
"""What becomes of an image: no accumulator changed; the scores are the same; the class is the same; it is another one
of the five best without the fault; it is none of these."""
INACTIVE, MASKED, BENIGN, TOP1, TOP5 = range(5)

PATTERNS = ("single", "column", "row", "block", "all")
"""Which outputs [M, N] of a layer changed: one; several of one output channel; several of one row of X; others; all."""

LAYER_COUNTS = ("images_in", "images_acted", "images_out", "outputs_changed", *PATTERNS, "largest_error", "error_sum")
"""What is counted at each layer: see `Carried.layers`."""

OPERATION_COUNTS = (
    "images_in",
    "images_masked",
    "images_out",
    "elements_in",
    "elements_out",
    "rounded",
    "saturated",
)
"""What is counted at each operation: see `Carried.operations`."""

_BEST = 5


@dataclass(frozen=True, eq=False)
class Trial:
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


class Carried(NamedTuple):
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
    outcome: npt.NDArray[np.uint8]
    scores: Tensor
    predicted: Int64Array
    layers: Int64Array
    operations: Int64Array


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
        # Numba takes 0.4 s to import.
        from training.injection.layer_gemm import LayerGemm
        from training.injection.replay_layer import KeptLayer

        self.graph = graph = NetworkGraph(network, images)
        self.layers: list[KeptLayer] = []
        for step in graph.steps:
            if step.layer is not None:
                x = graph.layer_input(step, graph.values.__getitem__)
                self.layers.append(KeptLayer.of(LayerGemm.of(graph.layers[step.layer], tuple(x.shape[1:])), x))
        self.scores = graph.values[graph.scores]
        self.predicted: Int64Array = self.scores.argmax(1).numpy()
        best = np.argsort(-self.scores.numpy(), axis=1, kind="stable")[:, :_BEST]
        self._among_best = np.zeros(self.scores.shape, np.bool_)
        np.put_along_axis(self._among_best, best, True, axis=1)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def operations(self) -> Sequence[Operation]:
        """What a difference passes, in the order in which it runs."""
        return self.graph.operations

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept of the run."""
        found: int = sum(value.nbytes for value in self.graph.values.values())
        for layer in self.layers:
            found += layer.memory.nbytes + layer.sums.nbytes
        return found

    def seen(self, layer: int) -> npt.NDArray[np.bool_]:
        """Which activations occur at each reduction index of a layer, padding included.

        Returns:
            bool [groups, K, 2**act_bits], by bit pattern.
        """
        from training.injection.replay_kernel import mark_seen

        kept = self.layers[layer]
        gemm = kept.gemm
        patterns = 1 << gemm.config.act_bits
        found = np.zeros((gemm.groups, gemm.k, patterns), np.bool_)
        mark_seen(kept.memory, gemm.start, gemm.offset, patterns - 1, found)
        return found

    def carry(self, trials: Sequence[Trial]) -> Carried:
        """Follow faults through the network, each by itself.

        Memory is needed for one copy of the values of each entry that differs, so a call should have no more than some
        hundreds of entries of a large network.

        Args:
            trials: the faults.

        Raises:
            NotFiniteError: a layer's input is NaN or infinite.
        """
        from training.injection.replay_run import ReplayRun

        with torch.no_grad():
            return ReplayRun(self, trials).done()

    def outcomes(self, image: Int64Array, scores: Tensor) -> npt.NDArray[np.uint8]:
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
