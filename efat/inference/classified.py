"""A quantised network classifying images on a chip: accuracy, what the faults changed, and clock cycles."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from efat.confidence import Accuracy
from simulator.config import ArrayConfig
from simulator.engine.timing import gemm_timing
from training.data.classification import Progress, bits_of, classify
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import observing, put_on_chip
from training.layers.quantized import GemmRun


class EngineMismatchError(RuntimeError):
    """The emulation and the cycle engine disagree, which is a bug in one of them."""


@dataclass
class LayerReport:
    """What one layer's GEMMs did on the array, summed over all batches and groups.

    Attributes:
        name: qualified name of the layer in the network.
        m: rows of X of the largest GEMM.
        folds: folds of one GEMM.
        serial_cycles: clock cycles of all GEMMs, one fold after the other.
        double_buffered_cycles: the same where weights load while the previous fold streams.
        outputs: integer outputs that were compared with the exact GEMM of the same inputs.
        largest_change: largest absolute difference among them.
    """

    name: str
    gemms: int = 0
    m: int = 0
    k: int = 0
    n: int = 0
    folds: int = 0
    multiply_accumulates: int = 0
    serial_cycles: int = 0
    double_buffered_cycles: int = 0
    outputs: int = 0
    outputs_changed: int = 0
    largest_change: int = 0

    def add(self, run: GemmRun, exact: Tensor, config: ArrayConfig) -> None:
        """Count one GEMM; `exact` is the fault-free int32 [M, N] of the same inputs."""
        (m, k), n = run.x.shape, run.w.shape[1]
        timing = gemm_timing(config, m, *run.extent())
        self.gemms += 1
        self.m, self.k, self.n = max(self.m, m), k, n
        self.folds = timing.folds
        self.multiply_accumulates += m * k * n
        self.serial_cycles += timing.serial
        self.double_buffered_cycles += timing.double_buffered
        difference = (run.outputs.long() - exact.long()).abs()
        self.outputs += difference.numel()
        self.outputs_changed += int(difference.count_nonzero())
        self.largest_change = max(self.largest_change, int(difference.max()) if difference.numel() else 0)

    def utilisation(self, config: ArrayConfig) -> float:
        """Multiply-accumulates done over those that all PEs could do in the serial cycles."""
        return self.multiply_accumulates / (config.pe_count * self.serial_cycles)


@dataclass(frozen=True)
class ChipReport:
    """How a network did on one chip.

    Attributes:
        predictions: int64 [images], the class predicted for each image.
        accuracy: against the labels.
        changed_predictions: images classified otherwise than by the fault-free quantised network.
        bypassed_pes: PEs that were bypassed.
        layers: one report per layer, in the order they run.
        as_is: accuracy on the chip if nothing is done about its faults; None where nothing is, or nothing is bypassed.
    """

    predictions: Tensor
    accuracy: Accuracy
    changed_predictions: int
    bypassed_pes: int
    layers: list[LayerReport] = field(default_factory=list)
    as_is: Accuracy | None = None

    @property
    def serial_cycles(self) -> int:
        """Clock cycles of all layers and images, one fold after the other."""
        return sum(layer.serial_cycles for layer in self.layers)

    @property
    def double_buffered_cycles(self) -> int:
        """Clock cycles of all layers and images with double-buffered weights."""
        return sum(layer.double_buffered_cycles for layer in self.layers)


def measure_accuracy(predictions: Tensor, labels: Tensor) -> Accuracy:
    """Compare predicted classes int64 [n] with the labels int64 [n]."""
    return Accuracy(int((predictions == labels).sum()), len(labels))


def run_chip(
    network: nn.Module,
    accelerator: Accelerator,
    images: Tensor,
    labels: Tensor,
    expected: Tensor,
    batch: int,
    progress: Progress | None = None,
) -> ChipReport:
    """Classify images, float32 [n, c, h, w], on one chip, where the converted network stays.

    `expected`, int64 [n], is what the same network predicts on a fault-free array.
    """
    layers: dict[str, LayerReport] = {}
    config = accelerator.config
    fault_free = Accelerator.fault_free(config)

    def observe(run: GemmRun) -> None:
        exact = fault_free.gemm(*run.on_array())
        exact = exact if run.placement is None else run.placement.take_out(exact, run.group)
        layers.setdefault(run.layer, LayerReport(run.layer)).add(run, exact, config)

    with observing(put_on_chip(network, accelerator), observe):
        predictions = classify(network, images, batch, progress)
    return ChipReport(
        predictions=predictions,
        accuracy=measure_accuracy(predictions, labels),
        changed_predictions=int((predictions != expected).sum()),
        bypassed_pes=0 if accelerator.bypass is None else int(accelerator.bypass.sum()),
        layers=list(layers.values()),
    )


def check_on_cycle_engine(network: nn.Module, accelerator: Accelerator, images: Tensor) -> None:
    """Compare what a chip computes on the emulation with what it does on the cycle engine: equal in every bit.

    The images, float32 [n, c, h, w], are one batch of the converted network, which stays on the chip.

    Raises:
        EngineMismatchError: a number that is read out of an accumulator differs, or a logit.
    """
    emulated, stepped = (_computed(network, replace(accelerator, engine=engine), images) for engine in _COMPARED)
    for (name, expected), (_, found) in zip(emulated, stepped, strict=True):
        differ = int((expected != found).sum())
        if differ:
            raise EngineMismatchError(f"{differ} of {found.numel()} {name} differ between emulation and cycle engine")


_COMPARED: tuple[Engine, ...] = ("emulation", "cycle")


def _computed(network: nn.Module, accelerator: Accelerator, images: Tensor) -> list[tuple[str, Tensor]]:
    """All outputs of each GEMM and the bits of a batch's logits, by what they are."""
    found: list[tuple[str, Tensor]] = []

    def observe(run: GemmRun) -> None:
        found.append((f"outputs of layer {run.layer}", run.outputs))

    put_on_chip(network, accelerator)
    with observing(network, observe), torch.inference_mode():
        logits = network(images)
    return [*found, ("logits", bits_of(logits))]


@dataclass(frozen=True)
class ChangedPrediction:
    """An image that two runs classify differently: its class, and those predicted in the other run and in this one."""

    image: int
    label: int
    reference: int
    found: int


@dataclass(frozen=True)
class Comparison:
    """How the images are classified in one run, compared with another.

    Attributes:
        accuracy: in this run.
        changed: the images that the other run classifies differently.
    """

    accuracy: Accuracy
    changed: tuple[ChangedPrediction, ...]

    @classmethod
    def of(cls, found: Tensor, reference: Tensor, labels: Tensor) -> Comparison:
        """Compare predictions int64 [n] with those of the other run and with the labels, likewise."""
        rows = zip(labels.tolist(), reference.tolist(), found.tolist(), strict=True)
        changed = (ChangedPrediction(image, *row) for image, row in enumerate(rows))
        return cls(measure_accuracy(found, labels), tuple(each for each in changed if each.found != each.reference))

    @property
    def gained(self) -> int:
        """Images that are right in this run and wrong in the other."""
        return sum(each.found == each.label for each in self.changed)

    @property
    def lost(self) -> int:
        """Images that are wrong in this run and right in the other."""
        return sum(each.reference == each.label for each in self.changed)

    def better_by_chance(self) -> float:
        """How likely a run that is no better than the other would gain as many of those gained or lost (sign test)."""
        gained, different = self.gained, self.gained + self.lost
        return sum(math.comb(different, count) for count in range(gained, different + 1)) / (1 << different)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        changed = [asdict(each) for each in self.changed]
        return {**self.accuracy.as_dict(), "gained": self.gained, "lost": self.lost, "changed": changed}
