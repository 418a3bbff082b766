"""Classifying images on the chips of a lot: what is loaded and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from efat import records
from efat.image_split import SplitRequest
from efat.inference.chip_networks import GroupNetworks, check_networks, mitigated_networks, one_network
from efat.inference.simulation import DEFAULT_CLOCK_MHZ, RetrainedLot, Simulation
from efat.retraining.manifest import Manifest
from efat.setup import (
    OwnData,
    OwnNetwork,
    Setup,
    check_network_named,
    check_no_object,
    first_images,
    name_of,
    split_workload,
)
from simulator.errors import InputError
from simulator.lots.chips import Chip, ChipLot
from training.calibration import Method
from training.data.batches import Batches
from training.data.classification import Progress
from training.data.datasets import Dataset, Normalization
from training.data.workloads import LoadedWorkload, augmentation_of, load_workload
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import convert
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe

_Data = Path | tuple[Dataset, Dataset] | None

DEFAULT_CYCLE_IMAGES = 8
"""Images that each chip classifies on the cycle engine, too, if nothing else is asked for."""


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
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
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
        manifest: what `efat.retrain` wrote for the lot, or for the chips of it that `chips` says, or the folder that it
            is in: each runs the weights of its group, bypassed and placed as is its own. The network is then None to
            take it from there. A network of the user's own is named again, as no file says what code to run; if it was
            an object, by the setup. Chips run group by group.
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
        clock_mhz: clock frequency that latencies are given for.
        threads: threads of the cycle engine; None for one per core.
        progress: called with the number of images just classified.
        run: whether it runs now; otherwise everything is loaded and checked for `Simulation.run`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown; one line says what.
        EngineMismatchError: the cycle engine gives other outputs than the emulation.
    """
    if not isinstance(network, Setup | str | nn.Module | None):
        raise InputError(f"network is {records.shown(network)}: expected its name, a torch.nn.Module or a Setup")
    records.check(not isinstance(chips, str), "chips", chips, "a list of their ids")
    records.check(engine in ("emulation", "cycle"), "engine", engine, "emulation or cycle")
    records.check(batch >= 1, "batch", batch, "1 or more images")
    records.check(clock_mhz > 0, "clock_mhz", clock_mhz, "more than 0")
    given: object = data
    said: dict[str, object] = {"weights": weights, "normalization": normalization, "split": split}
    said["calibration"] = calibration
    if isinstance(network, Setup):
        said["data"] = data
    if manifest is not None:
        _refuse_beside("a manifest", {**said, "bypass": bypass or None, "mitigation": mitigation})
        if isinstance(network, nn.Module):
            raise InputError("a network is given beside a manifest as an object: give the setup it was retrained with")
        found = _of_manifest(Path(manifest), Path(lot), network, _images(data), chips, images)
    elif network is None:
        raise InputError("no network: give one, or a manifest that names it")
    else:
        if isinstance(network, Setup):
            setup, own = network, network.network
            _refuse_beside("a setup", said)
            check_no_object(own, setup.data)
            network = own.module if isinstance(own, OwnNetwork) else str(own)
            weights = setup.weights if setup.hardened is None else setup.hardened
            given, normalization, split, calibration = setup.data, setup.normalization, setup.split, setup.calibration
        found = _of_network(
            network,
            _read_chips(Path(lot), chips),
            weights=None if weights is None else Path(weights),
            data=_images(given),
            normalization=Normalization.parse(normalization) if isinstance(normalization, str) else normalization,
            split=split,
            images=images,
            bypass=bypass,
            mitigation=mitigation,
            calibration=calibration or "max",
        )
    found.engine, found.batch, found.clock_mhz, found.threads = engine, batch, clock_mhz, threads
    found.cycle_images = _checked_images(engine, cycle_images, len(found.data))
    if run:
        found.run(progress)
    return found


def _refuse_beside(what: str, said: Mapping[str, object]) -> None:
    for name, value in said.items():
        if value is not None:
            raise InputError(f"{name} is given beside {what}, which says it: leave it out")


def _images(data: object) -> _Data:
    """What `load_workload` takes of what a user gives."""
    if isinstance(data, tuple):
        data = OwnData(*data)
    return data.pair if isinstance(data, OwnData) else None if data is None else Path(str(data))


def _read_chips(lot: Path, chips: Sequence[str]) -> list[Chip]:
    """Those chips of a lot, or all, that networks can run on."""
    with ChipLot(lot) as opened:
        chosen = [opened[chip_id] for chip_id in chips] if chips else list(opened)
    if not chosen:
        raise InputError(f"{lot} has no chips: generate or import some first")
    for chip in chosen:
        if chip.faults.has_flips:
            raise InputError(
                f"chip {chip.id} has FLIP faults, whose cycle counts within one GEMM: "
                "a network on a chip needs permanent faults only (STUCK_AT_0, STUCK_AT_1)"
            )
    return chosen


def _checked_images(engine: Engine, cycle_images: int | None, images: int) -> int:
    """How many of the first images each chip runs on the cycle engine, too."""
    if cycle_images is None:
        return min(DEFAULT_CYCLE_IMAGES, images) if engine == "emulation" else 0
    if engine == "cycle":
        raise InputError(f"cycle images is {cycle_images}: the cycle engine runs all images already; leave it out")
    if cycle_images < 0:
        raise InputError(f"cycle images is {cycle_images}: expected 0 or more")
    return min(cycle_images, images)


def _of_network(
    network: str | nn.Module,
    chips: list[Chip],
    *,
    weights: Path | None,
    data: _Data,
    normalization: Normalization | None,
    split: SplitRequest | None,
    images: int | None,
    bypass: bool,
    mitigation: str | None,
    calibration: Method,
) -> Simulation:
    mitigations = None if mitigation is None else _without_retraining(mitigation, bypass=bypass)
    measures = mitigations is not None and any(isinstance(each, BatchNormStatistics) for each in mitigations.in_turn)
    workload = load_workload(
        network, weights=weights, data=data, normalization=normalization, training=measures or split is not None
    )
    judging = workload.test if split is None else split_workload(network, workload, split, normalization).verification
    config, deployment = chips[0].faults.config, workload.deployment
    if deployment is None:
        quantised = convert(workload.network, config, workload.calibration, method=calibration)
    else:
        deployment.check_array(config)
        scales = deployment.activation_scales
        quantised = convert(workload.network, config, workload.calibration, activation_scales=scales)
        deployment.put(quantised, Accelerator.fault_free(config))
    networks = one_network(quantised, deployment)
    if mitigations is not None:
        if deployment is not None:
            raise InputError(
                f"{weights} was retrained for a chip, which says what is bypassed: leave out the mitigation"
            )
        _check_columns(chips, mitigations)
        batches = _batches(network, workload) if measures else None
        networks = mitigated_networks(workload.network, quantised, mitigations, batches)
    return Simulation(
        network_name=name_of(network),
        data=first_images(judging, images, "test" if split is None else "verification"),
        chips=chips,
        networks=networks,
        deployment=deployment,
        bypass=bypass,
        mitigation=None if mitigation is None else mitigation.lower(),
        normalization=normalization,
        split=split,
        float_network=workload.network,
    )


def _without_retraining(mitigation: str, *, bypass: bool) -> Mitigations:
    """What has a name, and does not retrain."""
    mitigations = Mitigations.named(mitigation)
    if bypass:
        raise InputError(f"mitigation {mitigation} and bypass both say what is bypassed: leave out one of them")
    if mitigations.retrains:
        raise InputError(
            f"mitigation {mitigation} retrains, which a simulation does not: efat retrain-chip does for one chip, and "
            "efat resilience is the first step for a lot"
        )
    return mitigations


def _check_columns(chips: Sequence[Chip], mitigations: Mitigations) -> None:
    """Refuse chips that mitigations that bypass can put no output on, before any of them runs."""
    if any(isinstance(mitigation, Bypass) for mitigation in mitigations.in_turn):
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


def _of_manifest(
    path: Path, lot: Path, network: Setup | str | None, data: _Data, chips: Sequence[str], images: int | None
) -> Simulation:
    path = path / Manifest.FILE_NAME if path.is_dir() else path
    manifest = Manifest.load(path)
    setup = manifest.setup
    if isinstance(network, Setup):
        given, kept = (records.replace(each, hardened=None).as_dict() for each in (network.located(), setup))
        different = [name for name, value in kept.items() if given[name] != value]
        if different:
            raise InputError(f"{path} is of another setup ({', '.join(different)}): give the one it was made with")
        setup = records.replace(setup, network=network.network, data=network.data)
    else:
        check_network_named(path, setup.network, network)
    chosen = _read_chips(lot, chips)
    _check_lot(path, manifest, lot, chosen, complete=not chips)
    position = {chip: number for number, group in enumerate(manifest.groups) for chip in group.chips}
    chosen.sort(key=lambda chip: position[chip.id])
    folder, config = path.parent, chosen[0].faults.config
    check_networks(manifest, folder, chosen)
    # Any group's weights make the network; each chip's own replace them before it runs.
    weights = folder / manifest.group_named[manifest.chip_named[chosen[0].id].group].weights
    if data is None:
        loaded = records.replace(setup, weights=weights, hardened=None).load()
        base, shown = loaded.network, first_images(loaded.verification, images, "verification")
    else:
        workload = load_workload(
            str(setup.network), weights=weights, data=data, normalization=setup.parsed_normalization
        )
        base, shown = workload.network, first_images(workload.test, images)
    return Simulation(
        network_name=str(setup.network),
        data=shown,
        chips=chosen,
        networks=GroupNetworks(manifest, folder, config, base),
        normalization=setup.parsed_normalization,
        retrained=RetrainedLot(path, manifest, same_images=manifest.verification == shown.digest),
    )


def _check_lot(path: Path, manifest: Manifest, lot: Path, chips: Sequence[Chip], *, complete: bool) -> None:
    """Chips are those that were retrained for: of the same array, with the same faults; all of them if `complete`."""
    different = chips[0].faults.config.record.difference(manifest.array)
    if different is not None:
        name, value, retrained_for = different
        raise InputError(
            f"{lot} has an array with {name}={value}, and {path} one with {retrained_for}: "
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
