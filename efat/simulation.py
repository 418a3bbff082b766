"""A network on the chips of a lot: everything `efat simulate` measures, ready to show or to write down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from efat.inference import Accuracy, ChipReport, LayerReport, measure_accuracy, run_chip
from simulator.chips import Chip, ChipLot
from simulator.config import ArrayConfig
from simulator.faults import BoolArray
from training.calibration import Method
from training.classification import Progress, classify
from training.convert import convert, place
from training.deployment import Deployment
from training.errors import InputError
from training.layers import Accelerator, Engine
from training.workloads import load_workload


@dataclass
class Simulation:
    """A network, the images it classifies and the chips it runs on, with the reports of the chips that are done.

    Attributes:
        network_name: name of the network.
        data_name: name of the data set.
        config: the array of the lot.
        engine: the engine that runs the chips.
        bypass: whether the PEs that the faults require to be bypassed are, beside those that the chips' fuses bypass.
        batch: images per GEMM.
        images: float32 [n, c, h, w].
        labels: int64 [n].
        chips: the chips to run.
        network: the quantised network; which chip it runs on changes while this runs. Where its operands sit on it
            does not.
        deployment: how the weights sit on the chip they were retrained for; None for weights of no chip.
        reports: one per chip that is done, in the order of `chips`.
        float_accuracy: of the float network; None before `run`.
        fault_free_accuracy: of the quantised network on a fault-free array; None before `run`.
    """

    network_name: str
    data_name: str
    config: ArrayConfig
    engine: Engine
    bypass: bool
    batch: int
    images: Tensor
    labels: Tensor
    chips: list[Chip]
    _float_network: nn.Module = field(repr=False)
    network: nn.Module = field(repr=False)
    deployment: Deployment | None = None
    _threads: int | None = None
    reports: list[ChipReport] = field(default_factory=list)
    float_accuracy: Accuracy | None = None
    fault_free_accuracy: Accuracy | None = None

    @property
    def steps(self) -> int:
        """Images to classify in all: the unit of `run`'s progress."""
        return len(self.images) * len(self.chips)

    def run(self, progress: Progress | None = None) -> None:
        """Run all chips. Interrupted, it keeps the reports of the chips that are done."""
        self.float_accuracy = measure_accuracy(classify(self._float_network, self.images, self.batch), self.labels)
        # The emulation is as good without faults; it takes multipliers that are not exact, too. Nothing is bypassed:
        # weights that were retrained for bypassed PEs are zero there.
        place(self.network, Accelerator.fault_free(self.config))
        fault_free = classify(self.network, self.images, self.batch)
        self.fault_free_accuracy = measure_accuracy(fault_free, self.labels)
        for chip in self.chips[len(self.reports) :]:
            accelerator = self.accelerator(chip)
            self.reports.append(
                run_chip(self.network, accelerator, self.images, self.labels, fault_free, self.batch, progress)
            )

    def accelerator(self, chip: Chip, engine: Engine | None = None) -> Accelerator:
        """The chip with what is bypassed in it, and the engine that runs it: that of the simulation if None."""
        return Accelerator(
            self.config, chip.faults, self._bypass_mask(chip), engine=engine or self.engine, threads=self._threads
        )

    def bypassed(self, chip: Chip) -> int:
        """Number of PEs of the chip that are bypassed."""
        mask = self._bypass_mask(chip)
        return 0 if mask is None else int(mask.sum())

    def other_chips(self) -> list[str]:
        """Ids of the chips that the weights were not retrained for: with other faults, or more bypassed by fuses."""
        deployment = self.deployment
        if deployment is None:
            return []
        digest = deployment.about.get("chip_digest")
        return [
            chip.id
            for chip in self.chips
            if chip.faults.digest() != digest or (chip.bypass is not None and (chip.bypass & ~deployment.bypass).any())
        ]

    def _bypass_mask(self, chip: Chip) -> BoolArray | None:
        """What the chip's fuses bypass, what the weights are for and, if asked for, what the faults require."""
        masks = [] if chip.bypass is None else [chip.bypass]
        if self.deployment is not None:
            masks.append(self.deployment.bypass)
        if self.bypass:
            masks.append(chip.faults.required_bypass())
        return np.logical_or.reduce(masks) if masks else None

    def as_dict(self, clock_mhz: float) -> dict[str, Any]:
        """Everything measured, as JSON takes it; latencies for a clock of `clock_mhz` MHz."""
        return {
            "network": self.network_name,
            "data": self.data_name,
            "images": len(self.images),
            "batch": self.batch,
            "engine": self.engine,
            "bypass": self.bypass,
            "clock_mhz": clock_mhz,
            "array": self.config.as_dict(),
            "deployment": self.deployment_dict(),
            "complete": len(self.reports) == len(self.chips),
            "float": None if self.float_accuracy is None else self.float_accuracy.as_dict(),
            "fault_free": None if self.fault_free_accuracy is None else self.fault_free_accuracy.as_dict(),
            "chips": [
                self._chip_dict(chip, report, clock_mhz) for chip, report in zip(self.chips, self.reports, strict=False)
            ],
        }

    def _chip_dict(self, chip: Chip, report: ChipReport, clock_mhz: float) -> dict[str, Any]:
        return {
            "chip": chip.id,
            "faults": chip.faults.summary(),
            "digest": chip.faults.digest(),
            "bypassed_pes": self.bypassed(chip),
            **report.accuracy.as_dict(),
            "changed_predictions": report.changed_predictions,
            "serial_cycles": report.serial_cycles,
            "double_buffered_cycles": report.double_buffered_cycles,
            "latency_ms_per_image": self.latency_ms(report.serial_cycles, clock_mhz),
            "latency_ms_per_image_double_buffered": self.latency_ms(report.double_buffered_cycles, clock_mhz),
            "layers": [self._layer_dict(layer) for layer in report.layers],
        }

    def deployment_dict(self) -> dict[str, Any] | None:
        """What the weights were retrained for, as JSON takes it; None for weights of no chip."""
        if self.deployment is None:
            return None
        return {
            "about": dict(self.deployment.about),
            "bypassed_pes": int(self.deployment.bypass.sum()),
            "placed_layers": sorted(self.deployment.placements),
            "other_chips": self.other_chips(),
        }

    def _layer_dict(self, layer: LayerReport) -> dict[str, Any]:
        return {**asdict(layer), "utilisation": layer.utilisation(self.config)}

    def latency_ms(self, cycles: int, clock_mhz: float) -> float:
        """Milliseconds per image when `cycles` clock cycles classify all images."""
        return cycles / (clock_mhz * 1e3) / len(self.images)


def prepare(
    *,
    network: str,
    lot: Path,
    weights: Path | None = None,
    data: Path | None = None,
    chips: Sequence[str] = (),
    engine: Engine = "cycle",
    images: int | None = None,
    batch: int = 64,
    bypass: bool = False,
    calibration: Method = "max",
    threads: int | None = None,
) -> Simulation:
    """Load and check everything a simulation needs, before anything runs.

    Args:
        network: a name in `training.workloads.WORKLOADS`, or `package.module:function`.
        lot: HDF5 file of chips.
        weights: file of weights, which may say how they sit on a chip that they were retrained for; None for those
            that come with the network.
        data: folder or file of images; None for those that come with the network.
        chips: ids of the chips to run; empty for all.
        engine: engine that runs the chips.
        images: number of test images; None for all.
        batch: images per GEMM.
        bypass: bypass the PEs that the faults require to be bypassed, beside those that the chips' fuses bypass.
        calibration: how the activations' scales are chosen; weights that were retrained for a chip bring theirs.
        threads: threads of the cycle engine; None for one per core.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: something is of the wrong kind, does not fit or is unknown; one line says what.
    """
    with ChipLot(lot) as opened:
        chosen = [opened[chip_id] for chip_id in chips] if chips else list(opened)
        config = opened.config
    if not chosen:
        raise InputError(f"{lot} has no chips: generate or import some first")
    for chip in chosen:
        if chip.faults.has_flips:
            raise InputError(
                f"chip {chip.id} has FLIP faults, whose cycle counts within one GEMM: "
                "a network on a chip needs permanent faults only (STUCK_AT_0, STUCK_AT_1)"
            )
    workload = load_workload(network, weights=weights, data=data)
    available = len(workload.test.images)
    count = available if images is None else images
    if not 1 <= count <= available:
        raise InputError(f"images is {count}: expected 1..{available}, the test images of {workload.test.name}")
    deployment = workload.deployment
    if deployment is None:
        quantised = convert(workload.network, config, workload.calibration, method=calibration)
    else:
        deployment.check_array(config)
        quantised = convert(workload.network, config, (), activation_scales=deployment.activation_scales)
        deployment.put(quantised, Accelerator.fault_free(config))
    return Simulation(
        network_name=network,
        data_name=workload.test.name,
        config=config,
        engine=engine,
        bypass=bypass,
        batch=batch,
        images=workload.test.images[:count],
        labels=workload.test.labels[:count],
        chips=chosen,
        _float_network=workload.network,
        network=quantised,
        deployment=deployment,
        _threads=threads,
    )
