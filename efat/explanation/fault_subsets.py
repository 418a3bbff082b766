"""A network on a chip of which some faults are left out: what it predicts, and what its layers compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int32Array
from simulator.faults import Fault, FaultMap, Site
from training.data.classification import Progress, classify
from training.layers.accelerator import Accelerator
from training.layers.convert import put_on_chip, quantized_layers
from training.layers.quantized import GemmRun, QuantizedLayer

Hidden = Literal["bypassed", "unused column"]
"""Why a fault cannot act: all PEs that it touches are bypassed, or no layer has outputs in the columns it touches."""


@dataclass(frozen=True, eq=False)
class LayerRun:
    """What a layer computed in one inference.

    Attributes:
        name: qualified name of the layer.
        gemms: its GEMM, or that of each group.
    """

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

    What is bypassed is so with any faults. A subset is the indices of its faults in `faults`, in any order.

    Args:
        network: a converted network, its operands where they sit on the chip. It is put on other chips here.
        accelerator: the chip with all its faults, none of them a FLIP.

    Attributes:
        faults: in canonical order.
        used_columns: columns in which any layer has outputs, bool [cols].
        hidden: for each fault why it cannot act, whatever the image; None for those that may.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        self.network = network
        self._all = accelerator
        self._map = FaultMap(accelerator.config) if accelerator.faults is None else accelerator.faults
        self.faults: list[Fault] = list(self._map)
        self.used_columns = _used_columns(accelerator.config, quantized_layers(network).values())
        self.hidden = _hidden(self._map, accelerator.bypass, self.used_columns)

    @property
    def config(self) -> ArrayConfig:
        """The array."""
        return self._all.config

    @property
    def bypass(self) -> BoolArray | None:
        """What is bypassed, bool [rows, cols]; None for nothing."""
        return self._all.bypass

    @property
    def bypassed_pes(self) -> int:
        """How many PEs that are."""
        return 0 if self.bypass is None else int(self.bypass.sum())

    @property
    def acting(self) -> tuple[int, ...]:
        """The faults that may act: all others can be left out without changing anything."""
        return tuple(index for index, why in enumerate(self.hidden) if why is None)

    def chosen(self, subset: Iterable[int]) -> FaultMap:
        """The faults of a subset."""
        return FaultMap(self.config, self._map.table[sorted(subset)])

    def accelerator(self, subset: Iterable[int]) -> Accelerator:
        """The chip with the faults of a subset only."""
        return Accelerator(self.config, self.chosen(subset), self.bypass)

    def classify(self, subset: Iterable[int], images: Tensor, batch: int, progress: Progress | None = None) -> Tensor:
        """Predict the class of each image with the faults of a subset; see `training.data.classification.classify`."""
        return classify(put_on_chip(self.network, self.accelerator(subset)), images, batch, progress)

    def classify_fault_free(self, images: Tensor, batch: int, progress: Progress | None = None) -> Tensor:
        """The same without any fault, and with nothing bypassed."""
        return classify(put_on_chip(self.network, Accelerator.fault_free(self.config)), images, batch, progress)

    def scores_with(
        self, in_use: Iterable[tuple[int, int]], images: Tensor, batch: int, progress: Progress | None = None
    ) -> Tensor:
        """The scores of all classes with all faults, and some PEs in use that are bypassed otherwise.

        Args:
            in_use: row and column of these PEs.
            images: float32 [n, c, h, w].
            batch: images per call of the network.
            progress: called after each batch with the number of images just finished.

        Returns:
            float32 [n, classes].
        """
        bypass = np.zeros((self.config.rows, self.config.cols), np.bool_) if self.bypass is None else self.bypass.copy()
        for place_of_pe in in_use:
            bypass[place_of_pe] = False
        put_on_chip(self.network, Accelerator(self.config, self._map, bypass))
        scores = []
        with torch.inference_mode():
            for part in torch.split(images, batch):
                scores.append(self.network(part))
                if progress is not None:
                    progress(len(part))
        return torch.cat(scores)

    def infer(self, subset: Iterable[int], image: Tensor) -> Inference:
        """Run one image, with the faults of a subset, and keep what each layer computes.

        Args:
            subset: the faults.
            image: float32 [1, c, h, w].
        """
        put_on_chip(self.network, self.accelerator(subset))
        calls: list[tuple[str, list[GemmRun]]] = []

        def observe(run: GemmRun) -> None:
            if run.group == 0:
                calls.append((run.layer, []))
            calls[-1][1].append(run)

        layers = quantized_layers(self.network).values()
        for layer in layers:
            layer.observer = observe
        try:
            with torch.inference_mode():
                scores = self.network(image)[0]
        finally:
            for layer in layers:
                layer.observer = None
        return Inference(scores, tuple(LayerRun(name, tuple(gemms)) for name, gemms in calls))


def _used_columns(config: ArrayConfig, layers: Iterable[QuantizedLayer]) -> BoolArray:
    used = np.zeros(config.cols, np.bool_)
    for layer in layers:
        _, _, n = layer.gemm_shape
        used[np.arange(min(n, config.cols)) if layer.placement is None else layer.placement.used_columns(config)] = True
    return used


def _hidden(faults: FaultMap, bypass: BoolArray | None, used: BoolArray) -> list[Hidden | None]:
    config = faults.config
    acts = np.ones((config.rows, config.cols), np.bool_) if bypass is None else ~bypass
    found: list[Hidden | None] = []
    for fault in faults:
        touched = np.zeros(acts.shape, np.bool_)
        if fault.site is Site.ACTIVATION:
            touched[fault.row, fault.col :] = True
        elif fault.site is Site.WEIGHT_LOAD:
            touched[fault.row :, fault.col] = True
        else:
            touched[fault.row, fault.col] = True
        # Nothing hides an accumulator.
        left = touched if fault.site is Site.ACCUMULATOR else touched & acts
        if not left.any():
            found.append("bypassed")
        else:
            found.append(None if (left & used).any() else "unused column")
    return found
