"""A network on a chip of which some faults are left out: what it predicts, and a few faults that still do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int32Array
from simulator.faults import Fault, FaultMap, Site
from training.data.classification import Progress, classify
from training.layers.accelerator import Accelerator
from training.layers.convert import observing, put_on_chip, quantized_layers
from training.layers.quantized import GemmRun, QuantizedLayer

Hidden = Literal["bypassed", "unused column"]
"""Why a fault cannot act: all PEs that it touches are bypassed, or no layer has outputs in the columns it touches."""


@dataclass(frozen=True, eq=False)
class LayerRun:
    """What a layer computed in one inference: its GEMM, or that of each group."""

    name: str
    gemms: tuple[GemmRun, ...]

    @property
    def outputs(self) -> Int32Array:
        """What was read out of the accumulators, int32 [M, N], groups side by side."""
        return torch.cat([gemm.outputs for gemm in self.gemms], dim=1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Inference:
    """What a network made of one image.

    Attributes:
        scores: float32 [classes].
        layers: each layer, in the order in which they ran; one that is used twice is there twice.
    """

    scores: Tensor
    layers: tuple[LayerRun, ...]

    @property
    def prediction(self) -> int:
        """The class with the highest score."""
        return int(self.scores.argmax())


class FaultSubsets:
    """A network on a chip with any of its faults, everything else as it is.

    A subset is the indices of its faults in `faults`, in any order. What is bypassed is so with any of them.

    Args:
        network: a converted network, its operands where they sit on the chip. It is put on other chips here.
        accelerator: the chip with all its faults, none of them a FLIP.

    Attributes:
        config: the array.
        faults: in canonical order.
        bypass: what is bypassed, bool [rows, cols].
        used_columns: columns in which any layer has outputs, bool [cols].
        hidden: for each fault why it cannot act, whatever the image; None for those that may.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        self.network = network
        self.config = config = accelerator.config
        self._map = FaultMap(config) if accelerator.faults is None else accelerator.faults
        self.faults: list[Fault] = list(self._map)
        nothing = np.zeros((config.rows, config.cols), np.bool_)
        self.bypass: BoolArray = nothing if accelerator.bypass is None else accelerator.bypass
        self.used_columns = _used_columns(config, quantized_layers(network).values())
        self.hidden = [_hidden(fault, self.bypass, self.used_columns) for fault in self.faults]

    @property
    def bypassed_pes(self) -> int:
        """How many PEs are bypassed."""
        return int(self.bypass.sum())

    @property
    def acting(self) -> tuple[int, ...]:
        """The faults that may act: all others can be left out without changing anything."""
        return tuple(index for index, why in enumerate(self.hidden) if why is None)

    def chosen(self, subset: Iterable[int]) -> FaultMap:
        """The faults of a subset."""
        return FaultMap(self.config, self._map.table[sorted(subset)])

    def classify(self, subset: Iterable[int], images: Tensor, batch: int, progress: Progress | None = None) -> Tensor:
        """Predict the class of each image with the faults of a subset; see `training.data.classification.classify`."""
        chip = Accelerator(self.config, self.chosen(subset), self.bypass)
        return classify(put_on_chip(self.network, chip), images, batch, progress)

    def classify_fault_free(self, images: Tensor, batch: int, progress: Progress | None = None) -> Tensor:
        """The same without any fault, and with nothing bypassed."""
        return classify(put_on_chip(self.network, Accelerator.fault_free(self.config)), images, batch, progress)

    def scores_with(
        self, in_use: Sequence[tuple[int, int]], images: Tensor, batch: int, progress: Progress | None = None
    ) -> Tensor:
        """Scores float32 [n, classes] with all faults, and with PEs (row, col) in use that are bypassed otherwise."""
        bypass = self.bypass.copy()
        for pe in in_use:
            bypass[pe] = False
        put_on_chip(self.network, Accelerator(self.config, self._map, bypass))
        scores = []
        with torch.inference_mode():
            for part in torch.split(images, batch):
                scores.append(self.network(part))
                if progress is not None:
                    progress(len(part))
        return torch.cat(scores)

    def infer(self, subset: Iterable[int], image: Tensor) -> Inference:
        """Run one image, float32 [1, c, h, w], with the faults of a subset, and keep what each layer computes."""
        put_on_chip(self.network, Accelerator(self.config, self.chosen(subset), self.bypass))
        calls: list[tuple[str, list[GemmRun]]] = []

        def observe(run: GemmRun) -> None:
            if run.group == 0:
                calls.append((run.layer, []))
            calls[-1][1].append(run)

        with observing(self.network, observe), torch.inference_mode():
            scores = self.network(image)[0]
        return Inference(scores, tuple(LayerRun(name, tuple(gemms)) for name, gemms in calls))


def _used_columns(config: ArrayConfig, layers: Iterable[QuantizedLayer]) -> BoolArray:
    used = np.zeros(config.cols, np.bool_)
    for layer in layers:
        outputs = layer.gemm_shape[2]
        used[
            np.arange(min(outputs, config.cols)) if layer.placement is None else layer.placement.used_columns(config)
        ] = True
    return used


def _hidden(fault: Fault, bypass: BoolArray, used_columns: BoolArray) -> Hidden | None:
    touched = np.zeros(bypass.shape, np.bool_)
    if fault.site is Site.ACTIVATION:
        touched[fault.row, fault.col :] = True
    elif fault.site is Site.WEIGHT_LOAD:
        touched[fault.row :, fault.col] = True
    else:
        touched[fault.row, fault.col] = True
    if fault.site is not Site.ACCUMULATOR:  # which nothing hides
        touched &= ~bypass
    if not touched.any():
        return "bypassed"
    return None if (touched & used_columns).any() else "unused column"


def minimal_subset(items: Sequence[int], holds: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """Find a subset that still holds, and that no item can be left out of: delta debugging.

    It is the algorithm ddmin of Zeller and Hildebrandt ("Simplifying and isolating failure-inducing input", IEEE
    Transactions on Software Engineering 28, 2002): parts that hold by themselves are tried first, then what is left
    without a part, then smaller parts. One item that matters among n is found in about 2 log2(n) runs; at worst there
    are in the order of n squared.

    Args:
        items: different items; all of them together hold. Their order decides which subset is found.
        holds: whether a subset, in the order of the items, holds. No subset is asked for twice.

    Returns:
        The subset in the order of the items; empty if nothing is needed.
    """
    known: dict[tuple[int, ...], bool] = {}

    def asked(subset: tuple[int, ...]) -> bool:
        if subset not in known:
            known[subset] = holds(subset)
        return known[subset]

    kept, count = tuple(items), 2
    if not kept or asked(()):
        return ()
    while len(kept) > 1:
        bounds = [len(kept) * number // count for number in range(count + 1)]
        part = next((kept[start:stop] for start, stop in pairwise(bounds) if asked(kept[start:stop])), None)
        if part is not None:
            kept, count = part, 2
            continue
        rests = (kept[:start] + kept[stop:] for start, stop in pairwise(bounds))
        rest = next((rest for rest in rests if asked(rest)), None)
        if rest is not None:
            kept, count = rest, max(count - 1, 2)
        elif count < len(kept):
            count = min(2 * count, len(kept))
        else:
            break
    return kept
