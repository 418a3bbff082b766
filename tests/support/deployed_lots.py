"""A small lot as `efat retrain` leaves it: pruned weights for groups of chips, how they sit on each, and a manifest."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

from efat.confidence import at_least
from efat.image_split import SplitRequest
from efat.planning.plan import AS_IS, FileOf
from efat.planning.selection import Constraint
from efat.retraining.manifest import (
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
)
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel, sample_faults
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, write_lot
from training.data.classification import count_correct
from training.data.datasets import Dataset
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.deployment import Deployment, write_deployed
from training.layers.trainable import trainable
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe

CONFIG = ArrayConfig(16, 12)
ABOUT = {"network": "digits-cnn"}


def write_deployed_lot(folder: Path, seed: int, images: int = 30) -> Manifest:
    """Write `lot.h5` and the folder `out`: two chips that share weights, one with its own, and one with all weights.

    Nothing is trained: weights are those that come with digits-cnn, with what must be pruned at zero.

    Args:
        folder: an empty folder.
        seed: of the faults.
        images: verification images, the last ones.
    """
    model = FaultModel(0.06)
    faults = [sample_faults(CONFIG, model, random) for random in np.random.SeedSequence(seed).spawn(4)]
    chips = [Chip(f"chip {number}", found) for number, found in enumerate(faults)]
    write_lot(folder / "lot.h5", CONFIG, chips)
    out = folder / "out"
    for part in (out, out / "weights", out / "chips"):
        part.mkdir()
    split = SplitRequest(12, (360 - images, 360))
    setup = Setup("digits-cnn", None, None, "fam+t", Recipe(), split=split)
    network, data, verification, *_ = setup.load()
    converted = convert(network, CONFIG, data.calibration)
    scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(converted).items()}
    start = Deployment(CONFIG.as_dict(), np.zeros((CONFIG.rows, CONFIG.cols), np.bool_), scales, {})
    groups, manifest_chips = [], {}
    # Members are scattered, so that groups do not follow one another in the lot.
    for name, mitigation, members in (
        ("group-0000", "fap", [chips[0], chips[3]]),
        ("group-0001", "fam", [chips[1]]),
        (AS_IS, "fam-columns", [chips[2]]),
    ):
        shared = start.with_bypass(np.logical_or.reduce([chip.faults.required_bypass() for chip in members]))
        for step in Mitigations.named(mitigation).in_turn:
            shared = step.deploy(shared, members[0], trainable(network, converted))
        pruned = network if name == AS_IS else without_bypassed(network, converted, shared)
        weights = out / "weights" / f"{name}.safetensors"
        write_deployed(weights, pruned.state_dict(), start, ABOUT)
        for chip in members:
            file = out / "chips" / f"{chips.index(chip):05d}.safetensors"
            deployment = shared.with_bypass(chip.faults.required_bypass())
            write_deployed(file, {}, deployment, ABOUT)
            correct = correct_on_chip(pruned, deployment, chip, verification)
            manifest_chips[chip.id] = ManifestChip(
                id=chip.id,
                digest=chip.faults.digest(),
                group=name,
                deployment=f"chips/{file.name}",
                sha256=digest_of_file(file),
                tuning_correct=correct_on_chip(pruned, deployment, chip, data.held_out),
                correct=correct,
                at_least=at_least(correct, images),
                passes=correct >= images // 2,
                bypassed_pes=int(deployment.bypass.sum()),
                faulty_pes=int(chip.faults.faulty_pes().sum()),
                cycle_images=0,
                cycle_same=True,
            )
        groups.append(
            ManifestGroup(
                name=name,
                chips=tuple(chip.id for chip in members),
                weights=f"weights/{weights.name}",
                sha256=digest_of_file(weights),
                planned=0,
                iterations=0,
                top_ups=0,
                split_from=None,
                severity=0.25,
                tuning_correct=correct_on_chip(pruned, start, None, data.held_out),
            )
        )
    manifest = Manifest(
        strategy="efat",
        aligned=True,
        images=images,
        required=images // 2,
        fault_free_correct=images,
        verification=verification.digest,
        tuning=ManifestTuning(len(data.held_out), len(data.held_out) // 2, len(data.held_out)),
        work=ManifestWork(1000, 0),
        constraint=Constraint(0.5),
        setup=setup,
        identity=setup.identity(),
        array=CONFIG.as_dict(),
        lot=FileOf("lot.h5", digest_of_file(folder / "lot.h5")),
        groups=tuple(groups),
        chips=tuple(manifest_chips[chip.id] for chip in chips),
        totals=ManifestTotals(0, 0, 0, 120, 0, 1.5),
        versions={"python": platform.python_version()},
    )
    manifest.save(out / Manifest.FILE_NAME)
    return manifest


def without_bypassed(network: nn.Module, converted: nn.Module, deployment: Deployment) -> nn.Module:
    """A copy whose weights are zero where they would sit on bypassed PEs."""
    pruned, placed = copy.deepcopy(network), copy.deepcopy(converted)
    deployment.put(placed, Accelerator(CONFIG))
    modules = dict(pruned.named_modules())
    for name, layer in quantized_layers(placed).items():
        kept = layer.acting(deployment.bypass)
        assert kept is not None
        with torch.no_grad():
            modules[name].get_parameter("weight").mul_(kept)
    return pruned


def correct_on_chip(network: nn.Module, deployment: Deployment, chip: Chip | None, data: Dataset) -> int:
    """How many images a float network classifies correctly once it is on a chip; None for one without faults."""
    quantised = convert(network, CONFIG, (), activation_scales=deployment.activation_scales)
    deployment.put(quantised, Accelerator(CONFIG))
    if chip is not None:
        put_on_chip(quantised, deployment.accelerator(CONFIG, chip.faults))
    return count_correct(quantised, data)
