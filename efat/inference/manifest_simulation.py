"""A lot with the weights that it was retrained for: a simulation in which each chip runs what is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from efat import records
from efat.inference.chip_networks import GroupNetworks, check_networks
from efat.inference.simulation import RetrainedLot, Simulation, checked_images, read_chips
from efat.retraining.manifest import Manifest, read_manifest
from efat.setup import check_network_named, first_images
from simulator.config import ArrayConfig
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.data.workloads import load_workload
from training.layers.quantized import Engine


def prepare_manifest(
    *,
    manifest: Path,
    lot: Path,
    network: str | None = None,
    data: Path | None = None,
    chips: Sequence[str] = (),
    engine: Engine = "emulation",
    cycle_images: int | None = None,
    images: int | None = None,
    batch: int = 64,
    threads: int | None = None,
) -> Simulation:
    """Load and check everything that a simulation of a retrained lot needs, before anything runs.

    Args:
        manifest: file that `efat retrain` wrote, beside the folders of weights and chips.
        lot: HDF5 file of chips: those that were retrained for, or some of them if `chips` says which.
        network: the network that the manifest names; None to take it from there, which a network of the user's own
            refuses, as a file could then say what code to run.
        data: folder or file of images; None for where the retraining found them.
        chips: ids of the chips to run; empty for all.
        engine: engine that runs the chips.
        cycle_images: as for `efat.inference.simulation.prepare`.
        images: number of images; None for all verification images of the retraining, or all test images of `data`.
        batch: images per GEMM.
        threads: threads of the cycle engine; None for one per core.

    Returns:
        The simulation. Its chips are sorted by group; within a group they are in the order of the lot, or of `chips`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: something is of the wrong kind, does not fit or is unknown; one line says what.
    """
    found = read_manifest(manifest)
    setup = found.setup
    normalization = setup.parsed_normalization
    check_network_named(manifest, setup.network, network)
    config, chosen = read_chips(lot, chips)
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
        cycle_images=checked_images(engine, cycle_images, len(shown)),
        retrained=RetrainedLot(manifest, found, same_images),
        _threads=threads,
    )


def _check_lot(
    path: Path, manifest: Manifest, lot: Path, config: ArrayConfig, chips: Sequence[Chip], *, complete: bool
) -> None:
    """Chips are those that were retrained for: of the same array, with the same faults.

    Args:
        path: of the manifest.
        manifest: the manifest.
        lot: file of the lot.
        config: array of the lot.
        chips: chips of the lot that are to run.
        complete: whether they are all of the lot.
    """
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
