"""Retrained lots of tests: plans carried out, their folders, and what their chips compute."""

from __future__ import annotations

import copy
import hashlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from efat.campaigns.campaign import Executor
from efat.campaigns.workers import in_line, processes
from efat.confidence import at_least
from efat.image_split import SplitRequest
from efat.planning.plan import AS_IS, FileOf, LotOf, Plan, PlannedGroup, StrategyCost
from efat.planning.selection import Constraint, ResilienceMap
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import RandomFaults, ResilienceTable, write_table
from efat.retraining.lot import retrain
from efat.retraining.manifest import (
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
    read_chip_deployment,
    read_group_weights,
)
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel, sample_faults
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, ChipLot, write_lot
from tests.support.networks import ARRAY, OWN_PE
from tests.support.resilience import HELD_OUT, small_network, small_setup, table_of
from training.data.classification import count_correct
from training.data.datasets import Dataset
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.deployment import Deployment, write_deployed
from training.layers.trainable import trainable
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe

SETUP = Setup("digits-cnn", recipe=Recipe(options={"momentum": 0.9}))


def random_table(config: ArrayConfig, random: np.random.Generator, images: int = 10_000) -> ResilienceTable:
    """Accuracies that fall with the fault rate and rise with retraining, more or less."""
    rates = np.array([0.001, 0.003, 0.01, 0.03, 0.06, 0.1])
    levels = np.array([0, 10, 25, 50, 100, 200, 400], np.int64)
    spread = np.exp(random.normal(0, 0.15, (len(rates), 3)))
    faulty = np.clip(np.sort(rates[:, None] * spread, axis=0), 0, 1)
    loss = 1.2 * (faulty**1.3)[..., None] * (0.06 + np.exp(-levels / (20 + 900 * faulty[..., None])) * 3)
    noise = random.normal(0, 0.0008, loss.shape)
    correct = np.rint(images * np.clip(0.985 - np.minimum(loss, 0.88) + noise, 0.05, 1)).astype(np.int64)
    return ResilienceTable(
        rates=rates,
        levels=levels,
        correct=correct,
        images=images,
        predictors={"faulty_pes": faulty, "weights": np.clip(faulty * 1.1, 0, 1)},
        float_correct=int(0.986 * images),
        fault_free_correct=int(0.985 * images),
        start_correct=int(0.985 * images),
        array=config.record,
        fault_model=RandomFaults.of(FaultModel(0.0)),
        setup=SETUP,
        setup_identity={
            "network": hashlib.sha256(b"network").hexdigest(),
            "training images": hashlib.sha256(b"training").hexdigest(),
            "tuning images": hashlib.sha256(b"held out").hexdigest(),
            "calibration": "max",
            "strategy": "Strategy(mitigations=(Bypass(),), retrains=True)",
        },
        harden_iterations=0,
        seed=7,
    )


def _cost(
    strategy: str, groups: int, retrained: int, iterations: int, out_of_reach: int, *, aligned: bool = False
) -> StrategyCost:
    return StrategyCost(strategy, aligned, groups, retrained, iterations, min(400, iterations), out_of_reach)


def write_retrained_lot(
    folder: Path,
    seed: int,
    *,
    chips: int = 12,
    failing: int = 1,
    ids: Sequence[str] | None = None,
    side: int = 16,
    together: int = 3,
    as_is: int = 2,
    images: int = 10_000,
    constraint: Constraint | None = None,
    predictor: str = "faulty_pes",
    aligned: bool = False,
    lot_path: str = "lot.h5",
) -> Manifest:
    """Write the folder.

    Args:
        folder: made anew.
        seed: of everything random.
        chips: number of chips.
        failing: how many of them miss the constraint.
        ids: of the chips.
        side: rows and columns of the array.
        together: chips in a group.
        as_is: chips that are not retrained.
        images: tuning images, and verification images.
        constraint: a drop of one point if not given.
        predictor: of the plan.
        aligned: whether the plan is.
        lot_path: what the files call the lot.

    Returns:
        What `manifest.json` says.
    """
    random = np.random.default_rng(seed)
    config = ArrayConfig(side, side)
    for inner in ("chips", "weights"):
        (folder / inner).mkdir(parents=True)
    table = random_table(config, random, images)
    write_table(folder / "resilience.h5", table)
    constraint = constraint or Constraint(max_drop=0.01)
    required = constraint.required(table)
    names = [f"chip-{number:04d}" for number in range(chips)] if ids is None else list(ids)
    bad = set(random.permutation(chips)[:failing].tolist())
    rates = np.exp(random.uniform(np.log(0.002), np.log(0.06), chips))
    masks = [random.random((side, side)) < rate for rate in rates]
    amounts = ResilienceMap(table, constraint, predictor=predictor).amounts
    order = np.argsort([mask.sum() for mask in masks], kind="stable").tolist()
    members = [order[:as_is]] if as_is else []
    members += [order[start : start + together] for start in range(as_is, chips, together)]
    planned, groups, found = [], [], {}
    for place, inside in enumerate(members):
        retrained = bool(place or not as_is)
        name = f"group-{place:04d}" if retrained else AS_IS
        union = np.logical_or.reduce([masks[chip] for chip in inside])
        severity = float(union.mean())
        amount = float(amounts.amount(severity)) if retrained else 0.0
        out_of_reach = not np.isfinite(amount)
        amount_planned = int(table.levels[-1] if out_of_reach else amount)
        done = amount_planned + (25 * int(random.integers(1, 3)) if retrained and random.random() < 0.25 else 0)
        ids_inside = tuple(names[chip] for chip in inside)
        planned.append(PlannedGroup(name, ids_inside, severity, amount_planned, out_of_reach))
        groups.append(
            ManifestGroup(
                name=name,
                chips=ids_inside,
                weights=f"weights/{name}.safetensors",
                sha256=hashlib.sha256(name.encode()).hexdigest(),
                planned=amount_planned,
                iterations=done,
                top_ups=(done - amount_planned) // 25,
                split_from=None,
                severity=severity,
                tuning_correct=min(images, required + 10),
            )
        )
        for chip in inside:
            correct = int(required + random.integers(0, max(1, min(80, images - required + 1))))
            if chip in bad:
                correct = max(0, required - int(random.integers(1, max(2, images // 20))))
            found[chip] = _chip(folder, config, names[chip], name, chip, masks[chip], correct, required, images)
    lot = LotOf(lot_path, hashlib.sha256(b"lot").hexdigest(), chips)
    iterations = sum(group.iterations for group in groups)
    fixed = 400 * chips
    plan = Plan(
        strategy="efat",
        aligned=aligned,
        groups=tuple(planned),
        step=25,
        budget=1000,
        required=required,
        images=images,
        constraint=constraint,
        statistic="max",
        predictor=predictor,
        setup=SETUP,
        identity=table.setup_identity,
        array=config.record,
        resilience=FileOf("res/resilience.h5", digest_of_file(folder / "resilience.h5")),
        lot=lot,
        resilience_iterations=table.iterations_spent - table.harden_iterations,
        harden_iterations=table.harden_iterations,
        fault_free_correct=table.fault_free_correct,
        tried=(),
        comparison=(
            _cost("fixed", chips, chips, fixed, 0),
            _cost("select", chips, chips - as_is, int(fixed * 0.4), min(1, chips)),
            _cost("merge-4", -(-chips // 4), -(-chips // 4), int(fixed * 0.7), min(2, chips)),
            StrategyCost.of("efat", False, tuple(planned)),
            _cost("efat", len(planned), len(planned), int(0.8 * iterations), 0, aligned=True),
        ),
    )
    plan.save(folder / "plan.json")
    manifest = Manifest(
        strategy="efat",
        aligned=aligned,
        images=images,
        required=required,
        fault_free_correct=table.fault_free_correct,
        verification=hashlib.sha256(b"verification").hexdigest(),
        tuning=ManifestTuning(images, required, table.fault_free_correct),
        work=ManifestWork(964_000, 36_000),
        constraint=constraint,
        setup=SETUP,
        identity=table.setup_identity,
        array=config.record,
        lot=FileOf(lot_path, lot.sha256),
        groups=tuple(groups),
        chips=tuple(found[chip] for chip in range(chips)),
        totals=ManifestTotals(
            iterations=iterations,
            top_up_iterations=sum(group.iterations - group.planned for group in groups),
            split_groups=0,
            resilience_iterations=plan.resilience_iterations,
            harden_iterations=plan.harden_iterations,
            seconds=5025.3,
        ),
        versions={"efat": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    )
    manifest.save(folder / "manifest.json")
    return manifest


def _chip(
    folder: Path,
    config: ArrayConfig,
    name: str,
    group: str,
    number: int,
    mask: npt.NDArray[np.bool_],
    correct: int,
    required: int,
    images: int,
) -> ManifestChip:
    path = f"chips/{number:05d}.safetensors"
    write_deployed(folder / path, {}, Deployment(config.record, mask, {}, {}), {"chip": str(number)})
    return ManifestChip(
        id=name,
        digest=hashlib.sha256(str(number).encode()).hexdigest(),
        group=group,
        deployment=path,
        sha256=digest_of_file(folder / path),
        tuning_correct=min(images, required + 3),
        correct=correct,
        at_least=at_least(correct, images),
        passes=correct >= required,
        bypassed_pes=int(mask.sum()),
        faulty_pes=int(mask.sum()),
        cycle_images=16,
        cycle_same=True,
    )


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
    start = Deployment(CONFIG.record, np.zeros((CONFIG.rows, CONFIG.cols), np.bool_), scales, {})
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
        array=CONFIG.record,
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


NETWORK = "tests.support.resilience:small_network"
LOT, TABLE, PLAN, OUT = "lot.h5", "table.h5", "plan.json", "out"


def random_chips(seed: int, rates: Sequence[float], config: ArrayConfig = ARRAY) -> list[Chip]:
    """Chips of these fault rates; a fault costs its own PE."""
    seeds = np.random.SeedSequence(seed).spawn(len(rates))
    models = [FaultModel(rate, sites=dict.fromkeys(OWN_PE, 1.0)) for rate in rates]
    return [
        Chip(f"chip-{number}", sample_faults(config, model, own))
        for number, (model, own) in enumerate(zip(models, seeds, strict=True))
    ]


def write_measured(
    folder: Path, setup: Setup, config: ArrayConfig = ARRAY, names: Sequence[str] = PREDICTORS, **changes: Any
) -> ResilienceTable:
    """Write a table that nobody measured: of 30 images, chips of severity s get 29 right after 40 s^2 iterations.

    So they take 0 iterations at 0.1, 2 at 0.2, 4 at 0.3, 8 at 0.4, and more than there are at 0.5.

    Args:
        folder: where to.
        setup: of what it is.
        config: the array.
        names: of the predictors, all of which foretell as much.
        changes: other fields.
    """
    severity = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    levels = np.array([0, 2, 4, 8])
    correct = np.where(levels >= np.floor(40 * severity**2)[:, None, None], 29, 20)
    correct[0] = 29
    given = {
        "rates": severity,
        "levels": levels,
        "images": len(HELD_OUT),
        "float_correct": 30,
        "fault_free_correct": 29,
        "start_correct": 29,
        "array": config.record,
        "setup": setup,
        "setup_identity": setup.identity(),
        **changes,
    }
    table = table_of(correct, dict.fromkeys(names, severity[:, None]), **given)
    write_table(folder / TABLE, table)
    return table


def write_digits_measured(folder: Path, config: ArrayConfig, mitigation: str = "fap+t") -> Path:
    """The same for digits-cnn with 30 of its images; gives the path of the table."""
    recipe = Recipe(batch=16, optimizer="AdamW", learning_rate=5e-4, options={})
    write_measured(
        folder, Setup("digits-cnn", None, None, mitigation, recipe, split=SplitRequest(len(HELD_OUT))), config
    )
    return folder / TABLE


def planned(
    folder: Path,
    chips: Sequence[Chip],
    groups: Mapping[str, tuple[Sequence[int], int]],
    *,
    setup: Setup | None = None,
    required: int = 0,
    **changes: Any,
) -> Plan:
    """Write a lot and a table, and make a plan for them by hand.

    Args:
        folder: where to.
        chips: of the lot.
        groups: positions of its chips and iterations of each group by its name.
        setup: None for the small network with fap+t.
        required: images.
        changes: other fields of the plan.
    """
    setup = small_setup(folder) if setup is None else setup
    config = chips[0].faults.config
    write_lot(folder / LOT, config, chips)
    table = table_of(
        [[[30, 30]]],
        {"weights": [[0.1]]},
        images=len(HELD_OUT),
        float_correct=30,
        fault_free_correct=29,
        start_correct=29,
    )
    write_table(folder / TABLE, table)
    named = tuple(
        PlannedGroup(name, tuple(chips[member].id for member in members), 0.0, amount)
        for name, (members, amount) in groups.items()
    )
    given: dict[str, Any] = {
        "strategy": "efat",
        "aligned": False,
        "step": 2,
        "budget": 6,
        "constraint": Constraint(max(0, required - 0.5) / len(HELD_OUT)),
        "tried": (),
        "statistic": "max",
        "predictor": "weights",
        "resilience_iterations": 20,
        "harden_iterations": 0,
        "comparison": (StrategyCost.of("efat", False, named),),
        **changes,
    }
    return Plan(
        groups=named,
        required=required,
        images=len(HELD_OUT),
        setup=setup,
        identity=setup.identity(),
        array=config.record,
        resilience=FileOf(str(folder / TABLE), digest_of_file(folder / TABLE)),
        lot=LotOf(str(folder / LOT), digest_of_file(folder / LOT), len(chips)),
        fault_free_correct=29,
        **given,
    )


def carried_out(
    folder: Path,
    plan: Plan,
    out: str = OUT,
    executor: Executor = in_line,
    progress: Callable[[str, int, int], None] | None = None,
    **others: Any,
) -> Manifest:
    """What comes out of a plan that is carried out in a folder of the folder."""
    given = {"lot": folder / LOT, "resilience": folder / TABLE, "cycle_images": 2, "network": NETWORK, **others}
    return retrain(plan, folder / out, workers=executor, progress=progress, **given)


def logits(out: Path, manifest: Manifest, found: ManifestChip, chip: Chip, engine: Engine, images: Tensor) -> Tensor:
    """What a chip computes, from the files that the manifest names alone."""
    network: nn.Module = copy.deepcopy(small_network())
    weights, _ = read_group_weights(out, manifest.group_named[found.group])
    network.load_state_dict(weights)
    deployment = read_chip_deployment(out, found)
    config = chip.faults.config
    converted = convert(network.eval(), config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults, engine))
    with torch.no_grad():
        result: Tensor = converted(images)
    return result


def chips_of(folder: Path) -> dict[str, Chip]:
    """The chips of the lot by their ids."""
    with ChipLot(folder / LOT) as lot:
        return {chip.id: chip for chip in lot}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    workers = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    carried_out(where, Plan.load(where / PLAN), executor=workers)
