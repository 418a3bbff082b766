"""A network on the chips of a lot: everything `efat simulate` measures, ready to show or to write down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from efat import records
from efat.confidence import Accuracy
from efat.display import Shown, Table
from efat.image_split import SplitRequest
from efat.inference.chip_networks import ChipNetworks, GroupNetworks, MitigatedNetworks, OneNetwork, check_networks
from efat.inference.classified import (
    ChipReport,
    EngineMismatchError,
    LayerReport,
    check_on_cycle_engine,
    measure_accuracy,
    run_chip,
)
from efat.retraining.manifest import Manifest
from efat.setup import (
    OwnData,
    OwnNetwork,
    Setup,
    augmentation_of,
    check_network_named,
    check_no_object,
    first_images,
    name_of,
    split_workload,
)
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip, ChipLot
from training.calibration import Method
from training.data.batches import Batches
from training.data.classification import Progress, classify
from training.data.datasets import Dataset, Normalization
from training.data.workloads import LoadedWorkload, load_workload
from training.layers.array_share import ArrayShare, array_share
from training.layers.convert import convert, put_on_chip
from training.layers.deployment import Deployment
from training.layers.quantized import Accelerator, Engine
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe

_Data = Path | tuple[Dataset, Dataset] | None

DEFAULT_CYCLE_IMAGES = 8
"""Images that each chip classifies on the cycle engine, too, if nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class RetrainedLot:
    """The retraining of the lot whose weights run.

    Args:
        path: file of the manifest.
        manifest: what it says.
        same_images: whether the images are those that chips were measured on at the retraining; what is required of
            chips is said of those alone.
    """

    path: Path
    manifest: Manifest
    same_images: bool

    def passes(self, report: ChipReport) -> bool | None:
        """Whether a chip meets what is required; None on other images."""
        return report.accuracy.correct >= self.manifest.required if self.same_images else None


@dataclass(repr=False)
class Simulation(Shown):
    """Networks, the images they classify and the chips they run on, with the reports of the chips that are done.

    Attributes:
        network_name: name of the network.
        data_name: name of the data set.
        config: the array of the lot.
        engine: the engine that runs the chips.
        bypass: whether the PEs that the faults require to be bypassed are, beside those that the chips' fuses bypass.
        mitigation: name of what is done about the faults of each chip; None for nothing beside `bypass`.
        normalization: what was done to pixels of 0..1 instead of what the network's name implies; None for nothing.
        split: which test images were left out, as they decided something; None for none.
        batch: images per GEMM.
        images: float32 [n, c, h, w].
        labels: int64 [n].
        classes: number of classes of the data.
        chips: the chips to run, those that run the same weights one after the other.
        networks: what runs on each of them.
        cycle_images: how many of the first images each chip runs on the cycle engine, too, and must give the same
            outputs for; 0 for none, as with the cycle engine itself.
        retrained: the retraining of the lot that the weights are from; None for weights that are no lot's.
        reports: one per chip that is done, in the order of `chips`.
        float_accuracy: of the float network; None before `run`, and for the weights of a lot.
        fault_free: of the quantised network on a fault-free array, by the name of the group that runs it.
        share: how much of the network runs on the array; None before `run`.
    """

    network_name: str
    data_name: str
    config: ArrayConfig
    engine: Engine
    bypass: bool
    batch: int
    images: Tensor
    labels: Tensor
    classes: int
    chips: list[Chip]
    networks: ChipNetworks = field(repr=False)
    cycle_images: int = 0
    mitigation: str | None = None
    normalization: Normalization | None = None
    split: SplitRequest | None = None
    _float_network: nn.Module | None = field(default=None, repr=False)
    retrained: RetrainedLot | None = field(default=None, repr=False)
    _threads: int | None = None
    reports: list[ChipReport] = field(default_factory=list)
    float_accuracy: Accuracy | None = None
    fault_free: dict[str, Accuracy] = field(default_factory=dict)
    share: ArrayShare | None = None

    @property
    def deployment(self) -> Deployment | None:
        """How all weights sit on the chip that they were retrained for; see `ChipNetworks`."""
        return self.networks.deployment

    @property
    def fault_free_accuracy(self) -> Accuracy | None:
        """Of the quantised network on a fault-free array; None before `run`, and for the weights of a lot."""
        return None if self.retrained is not None else next(iter(self.fault_free.values()), None)

    @property
    def steps(self) -> int:
        """Images to classify in all: the unit of `run`'s progress."""
        return len(self.images) * len(self.chips) * (1 if self.treatment is None else 2)

    @property
    def treatment(self) -> str | None:
        """What is done about the faults of chips, by the name of its option; None for nothing."""
        return "bypass" if self.bypass else self.mitigation

    @property
    def cycle_steps(self) -> int:
        """Images to run on the cycle engine, too: the unit of `run`'s other progress."""
        return self.cycle_images * len(self.chips)

    def run(self, progress: Progress | None = None, checked: Progress | None = None) -> None:
        """Run all chips. Interrupted, it keeps the reports of the chips that are done.

        Args:
            progress: called with the number of images just classified.
            checked: the same for the cycle engine, where that runs some of them, too.

        Raises:
            EngineMismatchError: the cycle engine gives other outputs than the emulation.
        """
        if self._float_network is not None:
            in_float = classify(self._float_network, self.images, self.batch)
            self.float_accuracy = measure_accuracy(in_float, self.labels)
        of_group: str | None = None
        for chip in self.chips[len(self.reports) :]:
            if self.networks.group(chip) != of_group:
                network = self.networks.compared_with(chip)
                # The emulation is as good without faults; it takes multipliers that are not exact, too. Nothing is
                # bypassed: weights that were retrained for bypassed PEs are zero there.
                put_on_chip(network, Accelerator.fault_free(self.config))
                if self.share is None:
                    self.share = array_share(network, self.images[:1])
                fault_free = classify(network, self.images, self.batch)
                of_group = self.networks.group(chip)
                self.fault_free[of_group] = measure_accuracy(fault_free, self.labels)
            network = self.networks.network(chip)
            report = run_chip(
                network, self.accelerator(chip), self.images, self.labels, fault_free, self.batch, progress
            )
            self._check(chip, network, checked)
            self.reports.append(replace(report, as_is=self._as_is(chip, progress)))

    def _as_is(self, chip: Chip, progress: Progress | None) -> Accuracy | None:
        """Accuracy on the chip if nothing is done about its faults, where PEs are bypassed because of them."""
        if self.treatment is None:
            return None
        before = self._mask_before(chip)
        if (self._bypass_mask(chip) & ~before).any():
            network = put_on_chip(self.networks.compared_with(chip), Accelerator(self.config, chip.faults, before))
            return measure_accuracy(classify(network, self.images, self.batch, progress), self.labels)
        if progress is not None:
            progress(len(self.images))
        return None

    def _check(self, chip: Chip, network: nn.Module, checked: Progress | None) -> None:
        if not self.cycle_images:
            return
        try:
            check_on_cycle_engine(network, self.accelerator(chip), self.images[: self.cycle_images])
        except EngineMismatchError as error:
            raise EngineMismatchError(f"chip {chip.id}: {error}") from None
        if checked is not None:
            checked(self.cycle_images)

    def accelerator(self, chip: Chip, engine: Engine | None = None) -> Accelerator:
        """The chip with what is bypassed in it, and the engine that runs it: that of the simulation if None."""
        return Accelerator(
            self.config, chip.faults, self._bypass_mask(chip), engine=engine or self.engine, threads=self._threads
        )

    def other_chips(self) -> list[str]:
        """Ids of the chips that the weights were not retrained for: with other faults, or more bypassed by fuses."""
        deployment = self.deployment
        if deployment is None:
            return []
        # Of the faults only: what is bypassed anyway may be bypassed by fuses or not.
        digest = deployment.about.get("chip_digest")
        return [
            chip.id
            for chip in self.chips
            if chip.faults.digest() != digest or (chip.bypass is not None and (chip.bypass & ~deployment.bypass).any())
        ]

    def _bypass_mask(self, chip: Chip) -> BoolArray:
        """What the chip's fuses bypass, what its network is for and, if asked for, what the faults require."""
        required = chip.faults.required_bypass() if self.bypass else None
        return _union(self.config, chip.bypass, self.networks.bypass(chip), required)

    def _mask_before(self, chip: Chip) -> BoolArray:
        """What is bypassed in a chip before anything is done about its faults here."""
        return _union(self.config, chip.bypass, None if self.mitigation is not None else self.networks.bypass(chip))

    def table(self) -> Table:
        """A row for each chip that is done."""
        rows = [
            (chip.id, len(chip.faults), found.bypassed_pes, str(found.accuracy), found.changed_predictions)
            for chip, found in zip(self.chips, self.reports, strict=False)
        ]
        measured = {"in float": self.float_accuracy, "without faults": self.fault_free_accuracy}
        return Table(
            f"{self.network_name} on {len(self.chips)} chips: {len(self.images):,} images of {self.data_name}",
            ("chip", "faults", "bypassed PEs", "accuracy", "changed predictions"),
            rows,
            [f"accuracy {where}: {accuracy}" for where, accuracy in measured.items() if accuracy is not None],
        )

    def as_dict(self, clock_mhz: float) -> dict[str, Any]:
        """Everything measured, as JSON takes it; latencies for a clock of `clock_mhz` MHz."""
        return {
            "network": self.network_name,
            "data": self.data_name,
            "normalization": None if self.normalization is None else str(self.normalization),
            "split": None if self.split is None else self.split.as_dict(),
            "images": len(self.images),
            "batch": self.batch,
            "engine": self.engine,
            "cycle_images": self.cycle_images,
            "bypass": self.bypass,
            "mitigation": self.mitigation,
            "clock_mhz": clock_mhz,
            "array": self.config.as_dict(),
            "deployment": self.deployment_dict(),
            "manifest": self._manifest_dict(),
            "complete": len(self.reports) == len(self.chips),
            "float": None if self.float_accuracy is None else self.float_accuracy.as_dict(),
            "fault_free": None if self.fault_free_accuracy is None else self.fault_free_accuracy.as_dict(),
            "on_array": None if self.share is None else self.share.as_dict(),
            "groups": self._group_dicts(),
            "chips": [
                self._chip_dict(chip, report, clock_mhz) for chip, report in zip(self.chips, self.reports, strict=False)
            ],
        }

    def _chip_dict(self, chip: Chip, report: ChipReport, clock_mhz: float) -> dict[str, Any]:
        return {
            "chip": chip.id,
            "faults": chip.faults.summary(),
            "digest": chip.digest(),
            "bypassed_pes": report.bypassed_pes,
            **report.accuracy.as_dict(),
            "as_is": None if report.as_is is None else report.as_is.as_dict(),
            "changed_predictions": report.changed_predictions,
            "serial_cycles": report.serial_cycles,
            "double_buffered_cycles": report.double_buffered_cycles,
            "latency_ms_per_image": self.latency_ms(report.serial_cycles, clock_mhz),
            "latency_ms_per_image_double_buffered": self.latency_ms(report.double_buffered_cycles, clock_mhz),
            **self._retraining_of(chip, report),
            "layers": [self._layer_dict(layer) for layer in report.layers],
        }

    def _manifest_dict(self) -> dict[str, Any] | None:
        if self.retrained is None:
            return None
        manifest = self.retrained.manifest
        return {
            "path": str(self.retrained.path),
            "strategy": manifest.strategy,
            "images": manifest.images,
            "required": manifest.required,
            "same_images": self.retrained.same_images,
        }

    def _group_dicts(self) -> list[dict[str, Any]] | None:
        if self.retrained is None:
            return None
        groups = self.retrained.manifest.group_named
        return [
            {
                "group": name,
                "chips": len(groups[name].chips),
                "iterations": groups[name].iterations,
                "fault_free": accuracy.as_dict(),
            }
            for name, accuracy in self.fault_free.items()
        ]

    def _retraining_of(self, chip: Chip, report: ChipReport) -> dict[str, Any]:
        if self.retrained is None:
            return {}
        found = self.retrained.manifest.chip_named[chip.id]
        return {
            "group": found.group,
            "correct_at_retraining": found.correct,
            "required": self.retrained.manifest.required,
            "passes": self.retrained.passes(report),
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


def _union(config: ArrayConfig, *masks: BoolArray | None) -> BoolArray:
    """PEs of an array that any mask has, bool [R, C]."""
    found = np.zeros((config.rows, config.cols), np.bool_)
    for mask in masks:
        if mask is not None:
            found |= mask
    return found


def simulate(
    network: Setup | str | nn.Module | None,
    lot: str | PathLike[str],
    *,
    manifest: str | Path | None = None,
    weights: str | Path | None = None,
    data: str | Path | tuple[object, object] | None = None,
    normalization: str | Normalization | None = None,
    split: SplitRequest | None = None,
    chips: Sequence[str] = (),
    engine: Engine = "emulation",
    cycle_images: int | None = None,
    images: int | None = None,
    batch: int = 64,
    bypass: bool = False,
    mitigation: str | None = None,
    calibration: Method | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    run: bool = True,
) -> Simulation:
    """Classify images on the chips of a lot, and measure what the faults change.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, `package.module:function`, or a float
            `torch.nn.Module`. Of a setup its network, weights and data are taken as they are before any retraining,
            its calibration, and those test images that judge; its mitigation retrains, and is not done here.
        lot: an `efat.Lot`, or a file of chips.
        manifest: what `efat.retrain` wrote for the lot, or for the chips of it that `chips` says: each runs the weights
            of its group, bypassed and placed as is its own. The network is then None to take it from there. A network
            of the user's own is named again, as no file says what code to run; if it was an object, by the setup.
            Chips run group by group.
        weights: file of weights, which may say how they sit on a chip that they were retrained for; None for those
            that come with the network.
        data: what `training.data.datasets.load_data` reads, or a pair of training and test images as for
            `efat.Setup`; None for what comes with the network, or for where the retraining found them.
        normalization: as for `efat.Setup`.
        split: which test images decided something, and are left out; None for all test images.
        chips: ids of the chips to run; none for all.
        engine: `emulation`, or `cycle` for every register in every clock cycle; both give the same, bit for bit.
        cycle_images: how many of the first images each chip runs on the cycle engine, too; None for
            `DEFAULT_CYCLE_IMAGES` of the emulation's.
        images: number of images; None for all, or for all verification images of the retraining.
        batch: images per GEMM.
        bypass: bypass the PEs that the faults require to be bypassed, beside those that the chips' fuses bypass.
        mitigation: what is done about the faults of each chip without retraining, such as `fam`: see
            `Mitigations.named`; None for nothing beside `bypass`.
        calibration: how the activations' scales are chosen, for weights that do not bring theirs; None for `max`.
        threads: threads of the cycle engine; None for one per core.
        progress: called with the number of images just classified.
        run: whether it runs now; otherwise everything is loaded and checked for `Simulation.run`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown; one line says what.
        EngineMismatchError: the cycle engine gives other outputs than the emulation.
    """
    own: object = data
    said: dict[str, object] = {
        "weights": weights,
        "normalization": normalization,
        "split": split,
        "calibration": calibration,
    }
    if manifest is not None:
        said |= {"bypass": bypass or None, "mitigation": mitigation}
        _refuse_beside("a manifest", {**said, **({"data": data} if isinstance(network, Setup) else {})})
    elif isinstance(network, Setup):
        _refuse_beside("a setup", {**said, "data": data})
        check_no_object(network.network, network.data)
        weights = network.weights if network.hardened is None else network.hardened
        own, normalization, split, calibration = network.data, network.normalization, network.split, network.calibration
        network = network.network.module if isinstance(network.network, OwnNetwork) else str(network.network)
    if isinstance(own, tuple):
        own = OwnData(*own)
    images_of = own.pair if isinstance(own, OwnData) else None if own is None else Path(str(own))
    if manifest is not None:
        if isinstance(network, nn.Module):
            raise InputError("a network is given beside a manifest as an object: give the setup it was retrained with")
        prepared = _of_manifest(
            Path(manifest), Path(lot), network, images_of, chips, engine, cycle_images, images, batch, threads
        )
    else:
        if network is None:
            raise InputError("no network: give one, or a manifest that names it")
        assert not isinstance(network, Setup)
        prepared = _prepared(
            network=network,
            lot=Path(lot),
            weights=None if weights is None else Path(weights),
            data=images_of,
            normalization=Normalization.parse(normalization) if isinstance(normalization, str) else normalization,
            split=split,
            chips=chips,
            engine=engine,
            cycle_images=cycle_images,
            images=images,
            batch=batch,
            bypass=bypass,
            mitigation=mitigation,
            calibration=calibration or "max",
            threads=threads,
        )
    if run:
        prepared.run(progress)
    return prepared


def _refuse_beside(what: str, said: Mapping[str, object]) -> None:
    for name, value in said.items():
        if value is not None:
            raise InputError(f"{name} is given beside {what}, which says it: leave it out")


def _prepared(
    *,
    network: str | nn.Module,
    lot: Path,
    weights: Path | None,
    data: _Data,
    normalization: Normalization | None,
    split: SplitRequest | None,
    chips: Sequence[str],
    engine: Engine,
    cycle_images: int | None,
    images: int | None,
    batch: int,
    bypass: bool,
    mitigation: str | None,
    calibration: Method,
    threads: int | None,
) -> Simulation:
    strategy = None if mitigation is None else _without_retraining(mitigation, bypass=bypass)
    measures = strategy is not None and any(isinstance(each, BatchNormStatistics) for each in strategy.in_turn)
    needs_training_images = measures or split is not None
    config, chosen = _read_chips(lot, chips)
    workload = load_workload(
        network, weights=weights, data=data, normalization=normalization, training=needs_training_images
    )
    judging = workload.test if split is None else split_workload(network, workload, split, normalization).verification
    shown = first_images(judging, images, "test" if split is None else "verification")
    deployment = workload.deployment
    if deployment is None:
        quantised = convert(workload.network, config, workload.calibration, method=calibration)
    else:
        deployment.check_array(config)
        quantised = convert(
            workload.network, config, workload.calibration, activation_scales=deployment.activation_scales
        )
        deployment.put(quantised, Accelerator.fault_free(config))
    networks: ChipNetworks = OneNetwork(quantised, deployment)
    if strategy is not None:
        if deployment is not None:
            raise InputError(
                f"{weights} was retrained for a chip, which says what is bypassed: leave out the mitigation"
            )
        _check_columns(chosen, strategy)
        batches = _batches(network, workload) if measures else None
        networks = MitigatedNetworks(workload.network, quantised, strategy, batches)
    return Simulation(
        network_name=name_of(network),
        data_name=judging.name,
        config=config,
        engine=engine,
        bypass=bypass,
        batch=batch,
        images=shown.images,
        labels=shown.labels,
        classes=shown.classes,
        chips=chosen,
        networks=networks,
        cycle_images=_checked_images(engine, cycle_images, len(shown)),
        normalization=normalization,
        split=split,
        mitigation=None if mitigation is None else mitigation.lower(),
        _float_network=workload.network,
        _threads=threads,
    )


def _without_retraining(mitigation: str, *, bypass: bool) -> Mitigations:
    """The strategy of a name, which does not retrain."""
    strategy = Mitigations.named(mitigation)
    if bypass:
        raise InputError(f"mitigation {mitigation} and bypass both say what is bypassed: leave out one of them")
    if strategy.retrains:
        raise InputError(
            f"mitigation {mitigation} retrains, which a simulation does not: efat retrain-chip does for one chip, and "
            "efat resilience is the first step for a lot"
        )
    return strategy


def _check_columns(chips: Sequence[Chip], strategy: Mitigations) -> None:
    """Refuse chips that a strategy that bypasses can put no output on, before any of them runs."""
    if any(isinstance(mitigation, Bypass) for mitigation in strategy.in_turn):
        for chip in chips:
            if len(chip.faults.unusable_columns()) == chip.faults.config.cols:
                raise InputError(
                    f"chip {chip.id} has no column whose accumulator works, so that no mitigation helps: "
                    "leave it out by choosing the others"
                )


def _batches(network: str | nn.Module, workload: LoadedWorkload) -> Batches:
    """Batches of training images, as `efat retrain-chip` measures batch normalisation on."""
    if not any(isinstance(module, _BatchNorm) and module.track_running_stats for module in workload.network.modules()):
        raise InputError(
            f"network {name_of(network)} has no statistics of batch normalisation to measure: leave out +bn"
        )
    assert workload.train is not None
    recipe = Recipe(augmentation=augmentation_of(name_of(network), None))
    return Batches(workload.train, recipe.batch, recipe.seed, recipe.augmentation)


def _read_chips(lot: Path, chips: Sequence[str]) -> tuple[ArrayConfig, list[Chip]]:
    """The array of a lot, and chips of it that networks can run on."""
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
    return config, chosen


def _checked_images(engine: Engine, cycle_images: int | None, images: int) -> int:
    """How many of the first images each chip runs on the cycle engine, too."""
    if cycle_images is None:
        return min(DEFAULT_CYCLE_IMAGES, images) if engine == "emulation" else 0
    if engine == "cycle":
        raise InputError(f"cycle images is {cycle_images}: the cycle engine runs all images already; leave it out")
    if cycle_images < 0:
        raise InputError(f"cycle images is {cycle_images}: expected 0 or more")
    return min(cycle_images, images)


def _of_manifest(
    manifest: Path,
    lot: Path,
    network: Setup | str | None,
    data: _Data,
    chips: Sequence[str],
    engine: Engine,
    cycle_images: int | None,
    images: int | None,
    batch: int,
    threads: int | None,
) -> Simulation:
    found = Manifest.load(manifest)
    setup = found.setup
    if isinstance(network, Setup):
        given, kept = (records.replace(each, hardened=None).as_dict() for each in (network.located(), setup))
        different = [name for name, value in kept.items() if given[name] != value]
        if different:
            raise InputError(f"{manifest} is of another setup ({', '.join(different)}): give the one it was made with")
        setup = records.replace(setup, network=network.network, data=network.data)
    else:
        check_network_named(manifest, setup.network, network)
    normalization = setup.parsed_normalization
    config, chosen = _read_chips(lot, chips)
    _check_lot(manifest, found, lot, config, chosen, complete=not chips)
    position = {group.name: number for number, group in enumerate(found.groups)}
    chosen.sort(key=lambda chip: position[found.chip_named[chip.id].group])
    folder = manifest.parent
    check_networks(found, folder, chosen)
    first = found.group_named[found.chip_named[chosen[0].id].group]
    # Any group's weights make the network; each chip's own replace them before it runs.
    weights = folder / first.weights
    if data is None:
        loaded = records.replace(setup, weights=weights, hardened=None).load()
        base, shown = loaded.network, first_images(loaded.verification, images, "verification")
    else:
        workload = load_workload(str(setup.network), weights=weights, data=data, normalization=normalization)
        base, shown = workload.network, first_images(workload.test, images)
    same_images = found.verification == shown.digest
    return Simulation(
        network_name=str(setup.network),
        data_name=shown.name,
        config=config,
        engine=engine,
        bypass=False,
        batch=batch,
        images=shown.images,
        labels=shown.labels,
        classes=shown.classes,
        chips=chosen,
        networks=GroupNetworks(found, folder, config, base),
        normalization=normalization,
        cycle_images=_checked_images(engine, cycle_images, len(shown)),
        retrained=RetrainedLot(manifest, found, same_images),
        _threads=threads,
    )


def _check_lot(
    path: Path, manifest: Manifest, lot: Path, config: ArrayConfig, chips: Sequence[Chip], *, complete: bool
) -> None:
    """Chips are those that were retrained for: of the same array, with the same faults; all of them if `complete`."""
    array = config.as_dict()
    for name, value in array.items():
        if manifest.array[name] != value:
            raise InputError(
                f"{lot} has an array with {name}={value}, and {path} one with {manifest.array[name]}: "
                "give the lot that was retrained"
            )
    for chip in chips:
        retrained = manifest.chip_named.get(chip.id)
        if retrained is None:
            raise InputError(f"chip {chip.id} of {lot} is not in {path}: choose those that are with --chip ID")
        if not chip.has_digest(retrained.digest):
            raise InputError(
                f"chip {chip.id} of {lot} has other faults or bypassed PEs than the one that {path} has weights for: "
                "give the lot that was retrained, or retrain this one"
            )
    if complete:
        ids = {chip.id for chip in chips}
        missing = [chip.id for chip in manifest.chips if chip.id not in ids]
        if missing:
            raise InputError(
                f"{lot} has no chip {missing[0]}, which is in {path}: give the lot that was retrained, or choose chips "
                "with --chip ID"
            )
