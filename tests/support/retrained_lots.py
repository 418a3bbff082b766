"""Folders as `efat retrain` writes them, with random results and without any retraining."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efat.confidence import at_least
from efat.planning.plan import AS_IS, FileOf, LotOf, Plan, PlannedGroup, StrategyCost
from efat.planning.selection import Constraint, ResilienceMap
from efat.resilience.table import ResilienceTable, write_table
from efat.resilience.units import fault_model_dict
from efat.retraining.manifest import (
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
)
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel
from simulator.files import digest_of_file
from training.layers.deployment import Deployment, write_deployed
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
        array=config.as_dict(),
        fault_model=fault_model_dict(FaultModel(0.0)),
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
        array=config.as_dict(),
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
        array=config.as_dict(),
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
    write_deployed(folder / path, {}, Deployment(config.as_dict(), mask, {}, {}), {"chip": str(number)})
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
