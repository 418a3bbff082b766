"""A plan carried out: groups retrained, topped up and split, every chip verified, and what comes out in a folder.

It is a campaign whose units are the network without faults, each group, and each chip. `_Run` says what they are and
how they follow each other; the functions after it are what each of them does, in whatever process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from efat import records
from efat.campaigns.campaign import Campaign, Executor, Notes, Outcome, Unit, UnitFile, Work, put, warned
from efat.campaigns.workers import Workers, executor_of, in_line
from efat.confidence import at_least
from efat.planning.alignment import PREDICTORS as ALIGNED_PREDICTORS
from efat.planning.alignment import Aligner, Placements, model_of
from efat.planning.plan import AS_IS, FileOf, Plan
from efat.planning.planner import table_of
from efat.planning.trial import deployed_as_is, network_on_chip
from efat.records import Count, Positive, Record, Sha256, Share
from efat.resilience.severity import (
    MASK_PREDICTORS,
    bypass_of,
    counts_of,
    mask_of,
    pruned_severity,
    severity,
    weights_per_pe,
)
from efat.resilience.table import FILE_NAME as TABLE
from efat.retraining.manifest import (
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
)
from efat.setup import Loaded, check_network_named
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.dtypes import BoolArray
from simulator.errors import InputError, check_unchanged
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, ChipLot
from training.data.classification import classify, count_correct
from training.layers.accelerator import Accelerator
from training.layers.array_share import array_share
from training.layers.convert import convert
from training.layers.deployment import Deployment, deployed_bytes, deployed_from
from training.layers.placement import Placement
from training.layers.trainable import trainable_layers
from training.layers.user_code import copied
from training.layers.weights import put_weights
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.permutation import Permutation
from training.learning.retrain import PreparedRetraining, Pruned, RetrainDivergedError

KIND = "retraining of a lot"
PLAN = "plan.json"
"""It and the table are copied into the folder, so that it can be understood by itself."""

FAULT_FREE = "fault-free"
"""Name of the unit that measures the original network without faults."""

WEIGHTS = "weights.safetensors"
"""A file of a group: its weights."""

DEPLOYMENT = "deployment.safetensors"
"""A file of a chip that is not retrained: how the weights sit on it."""

BATCH = 256
"""Images in one GEMM where accuracy is measured."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class VerificationError(RuntimeError):
    """A chip does other than the network that was retrained for it, though it must do just that: a bug in eFAT."""


def retrain(
    plan: Plan | Path | str,
    folder: Path | str,
    *,
    lot: Path | str | None = None,
    resilience: Path | str | None = None,
    cycle_images: int = 8,
    network: str | None = None,
    workers: Workers = 0,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> Manifest:
    """Carry out a plan for a lot: retrain the groups, and verify every chip; what was interrupted is gone on with.

    Args:
        plan: the plan, or its file.
        folder: for what comes out; made if it is not there.
        lot: the file of chips, if it is not where it was for the plan.
        resilience: the table that the plan is made from, or its folder, likewise.
        cycle_images: verification images that the cycle engine classifies on each chip, too; fewer if there are fewer.
        network: the network that the plan names, if it is the user's own: its code will run.
        workers: where; the result does not depend on it. See `efat.campaigns.workers.executor_of`.
        progress: called from time to time.
        notes: told of what is in the folder and does not fit; it is done again.

    Returns:
        What is in the folder's `manifest.json`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is not the one that the plan was made from, the folder is of something else, or network or
            data changed.
        VerificationError: chips do not what they must.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
    folder, lot = Path(folder), Path(plan.lot.path if lot is None else lot)
    table = table_of(Path(plan.resilience.path if resilience is None else resilience))
    _check(plan, lot, table, cycle_images, network)
    if workers not in (0, in_line):
        plan.setup.check_travels()
    run = _Run(plan, lot, folder, cycle_images, executor_of(workers), progress, notes)
    put(folder / TABLE, table.read_bytes())
    plan.save(folder / PLAN)
    manifest = run.manifest()
    manifest.save(folder / Manifest.FILE_NAME)
    return manifest


def _check(plan: Plan, lot: Path, table: Path, cycle_images: int, network: str | None) -> None:
    """Refuse files that are not those that the plan was made from."""
    check_network_named(Path("the plan"), plan.setup.network, network)
    for path, sha256, what in ((lot, plan.lot.sha256, "lot"), (table, plan.resilience.sha256, "table")):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; it is the {what} that the plan was made from")
        if digest_of_file(path) != sha256:
            raise InputError(f"{path} is not the {what} that the plan was made from: make the plan again")
    if plan.aligned and plan.predictor not in ALIGNED_PREDICTORS:
        raise InputError(f"the plan aligns chips by predictor {plan.predictor!r}: make the plan again")
    if cycle_images < 0:
        raise InputError(f"cycle images are {cycle_images}: expected 0 or more")
    known = {chip for group in plan.groups for chip in group.chips}
    with ChipLot(lot) as opened:
        missing, array = known.symmetric_difference(opened.chip_ids), opened.config.record
    if array != plan.array:
        raise InputError(f"the array of {lot} is not that of the plan: make the plan again")
    if missing:
        raise InputError(f"chip {min(missing)!r} is not in both {lot} and the plan: make the plan again")


class FaultFree(Record, frozen=True):
    """The original network, quantised and without faults: its correct verification images, and its work for an image.

    `images` is `Dataset.digest` of them; `on_array` and `in_float` are multiply-accumulates.
    """

    images: Sha256
    correct: Count
    on_array: Positive
    in_float: Count


class RetrainedGroup(Record, frozen=True):
    """What came of a group.

    `evaluations` are iterations and the tuning images that are classified correctly after them, `correct` those in the
    end, and `met` whether they are enough. `iterations` are those that its weights have, `spent` what it took, which is
    more if it diverged, and `top_ups` how often it went on because it missed what is required.
    """

    chips: tuple[str, ...]
    evaluations: tuple[tuple[Count, Count], ...]
    iterations: Count
    spent: Count
    severity: Share
    top_ups: Count
    correct: Count
    met: bool
    diverged_at: Count | None


class VerifiedChip(Record, frozen=True):
    """What a chip does with its own faults; fields as of `ManifestChip`."""

    chip: str
    digest: Sha256
    tuning_correct: Count
    correct: Count
    bypassed_pes: Count
    faulty_pes: Count
    cycle_images: Count
    cycle_same: bool


@dataclass(frozen=True)
class _Group:
    """A group as it is carried out; the severity of parts is known when they are retrained."""

    name: str
    chips: tuple[str, ...]
    planned: int = 0
    severity: float | None = None
    split_from: str | None = None


class _Run:
    """One run of a campaign, which goes on from what earlier ones left."""

    def __init__(
        self,
        plan: Plan,
        lot: Path,
        folder: Path,
        cycle_images: int,
        executor: Executor,
        progress: Progress | None,
        notes: Notes,
    ) -> None:
        self._plan, self._lot, self._executor, self._progress = plan, lot, executor, progress
        # What units are told of the plan.
        self._terms = records.replace(plan, setup=plan.setup.located(), groups=(), tried=(), comparison=())
        self._terms.setup.check_identity(plan.identity)
        loaded = self._terms.setup.load()
        images = len(loaded.data.held_out)
        if images != plan.images:
            raise InputError(f"the plan is for {plan.images} tuning images, and there are {images}: make it again")
        self._verification = loaded.verification
        self._cycle_images = min(cycle_images, len(loaded.verification))
        self._chips: dict[str, Chip] = {}
        with ChipLot(lot) as opened:
            self._config: ArrayConfig = opened.config
            for done, chip in enumerate(opened, 1):
                self._chips[chip.id] = chip
                self._tell("reading chips", done, len(opened))
        self._position = {chip: position for position, chip in enumerate(self._chips)}
        inputs = {
            "plan": plan.digest_without_paths,
            "lot": plan.lot.sha256,
            "verification images": self._verification.digest,
            "cycle images": self._cycle_images,
            **plan.identity,
        }
        self._campaign = Campaign(folder, KIND, inputs, notes, timed=True)

    def manifest(self) -> Manifest:
        """Do everything, and write all files but the manifest."""
        self._do("the network without faults", [Unit(FAULT_FREE, (self._terms, self._config))], measure_fault_free)
        fault_free = self._campaign.result(FaultFree, FAULT_FREE)
        required = self._plan.constraint.required_of(len(self._verification), fault_free.correct)
        as_is, groups = self._verify_as_is()
        kept, split = self._retrain(groups)
        self._verify(kept)
        groups = as_is + kept
        for name in ("weights", "chips"):
            (self._campaign.folder / name).mkdir(exist_ok=True)
        # Chips are in the order of the lot.
        exported_groups = tuple(map(self._export_group, groups))
        exported = [self._export_chip(group, chip, required) for group in groups for chip in group.chips]
        return Manifest(
            strategy=self._plan.strategy,
            aligned=self._plan.aligned,
            images=len(self._verification),
            required=required,
            fault_free_correct=fault_free.correct,
            verification=self._verification.digest,
            tuning=ManifestTuning(self._plan.images, self._plan.required, self._plan.fault_free_correct),
            work=ManifestWork(fault_free.on_array, fault_free.in_float),
            constraint=self._plan.constraint,
            setup=self._terms.setup,
            identity=dict(self._plan.identity),
            array=self._config.record,
            lot=FileOf(str(self._lot), self._plan.lot.sha256),
            groups=exported_groups,
            chips=tuple(sorted(exported, key=lambda chip: self._position[chip.id])),
            totals=self._totals([*groups, *split], len(split)),
            versions={name: version(name) for name in ("efat", "torch", "numpy", "numba")},
        )

    def _verify_as_is(self) -> tuple[list[_Group], list[_Group]]:
        """Try the chips that are planned to do without retraining; those that fail become groups of their own."""
        groups = [
            _Group(group.name, group.chips, group.amount, group.severity)
            for group in self._plan.groups
            if group.name != AS_IS
        ]
        planned = next((group for group in self._plan.groups if group.name == AS_IS), None)
        if planned is None:
            return [], groups
        self._do("weights as they are", [self._group_unit(_Group(AS_IS, ()), budget=0)], retrain_group)
        weights = self._campaign.file(AS_IS, WEIGHTS)
        units = [self._chip_unit(chip, weights, None) for chip in planned.chips]
        self._do("chips as they are", units, verify_chip)
        tried = {chip.id: chip.correct for chip in self._plan.tried}
        passing = []
        for chip, unit in zip(planned.chips, units, strict=True):
            tuned = self._checked(chip, unit.name).tuning_correct
            if tuned != tried.get(chip, tuned):
                raise InputError(
                    f"chip {chip} classifies {tuned} tuning images correctly without retraining, and the plan says "
                    f"{tried[chip]}: delete trials/ beside the table, and make the plan again"
                )
            if tuned >= self._plan.required:
                passing.append(chip)
            else:
                groups.append(_Group(f"{AS_IS}-{self._position[chip]:05d}", (chip,), split_from=AS_IS))
        return [_Group(AS_IS, tuple(passing), severity=planned.severity)] if passing else [], groups

    def _retrain(self, groups: list[_Group]) -> tuple[list[_Group], list[_Group]]:
        """Retrain groups, and parts of those that miss what is required; gives those kept and those split."""
        kept, split = [], []
        while groups:
            able = [group for group in groups if self._can_run(group)]
            # The longest first, so that no worker has one left when all others are done.
            units = [self._group_unit(group) for group in sorted(able, key=lambda group: -group.planned)]
            self._do("groups", units, retrain_group)
            missing = [group for group in groups if not self._is_kept(group)]
            kept += [group for group in groups if group not in missing]
            split += missing
            groups = [part for group in missing for part in self._halves(group)]
        return kept, split

    def _is_kept(self, group: _Group) -> bool:
        return len(group.chips) == 1 or (self._can_run(group) and self._of_group(group).met)

    def _can_run(self, group: _Group) -> bool:
        """Whether there is a column that all chips of a group can use, or each has places of its own."""
        if self._plan.aligned or len(group.chips) == 1:
            return True
        broken = [self._chips[chip].faults.unusable_columns() for chip in group.chips]
        return len(np.unique(np.concatenate(broken))) < self._config.cols

    def _halves(self, group: _Group) -> list[_Group]:
        """The worse and the better half of its chips, to be retrained for no longer than it takes."""
        ordered = sorted(group.chips, key=lambda chip: -int(bypass_of(self._chips[chip]).sum()))
        middle = len(ordered) // 2
        return [
            _Group(f"{group.name}-{letter}", tuple(chips), split_from=group.name)
            for letter, chips in (("a", ordered[:middle]), ("b", ordered[middle:]))
        ]

    def _verify(self, groups: Sequence[_Group]) -> None:
        units = []
        for group in groups:
            weights = self._campaign.file(group.name, WEIGHTS)
            for position, chip in enumerate(group.chips):
                units.append(self._chip_unit(chip, weights, self._campaign.file(group.name, member_file(position))))
        self._do("chips verified", units, verify_chip)
        for group in groups:
            expected = self._of_group(group).correct
            for chip in group.chips:
                tuned = self._checked(chip, self._verified(chip)).tuning_correct
                if tuned != expected:
                    raise VerificationError(
                        f"chip {chip} classifies {tuned} tuning images correctly and {group.name}, which was retrained "
                        f"for it, {expected}"
                    )

    def _checked(self, chip: str, unit: str) -> VerifiedChip:
        found = self._campaign.result(VerifiedChip, unit)
        if not found.cycle_same:
            raise VerificationError(f"chip {chip}: the cycle engine predicts otherwise than the emulation")
        return found

    def _of_group(self, group: _Group) -> RetrainedGroup:
        return self._campaign.result(RetrainedGroup, group.name)

    def _group_unit(self, group: _Group, budget: int | None = None) -> Unit:
        chips = tuple(self._chips[chip] for chip in group.chips)
        most = self._plan.budget if budget is None else budget
        return Unit(group.name, GroupTask(self._terms, self._config, group.name, chips, group.planned, most))

    def _chip_unit(self, chip: str, weights: UnitFile, deployment: UnitFile | None) -> Unit:
        sits = None if deployment is None else deployment.located()
        task = ChipTask(self._terms, self._chips[chip], weights.located(), sits, self._cycle_images)
        inputs = {"weights": weights.sha256, "deployment": None if deployment is None else deployment.sha256}
        return Unit(self._verified(chip, as_is=deployment is None), task, inputs)

    def _verified(self, chip: str, *, as_is: bool = False) -> str:
        """Name of the unit: ids of chips may have any characters in them."""
        return f"chip-{self._position[chip]:05d}-{'as-is' if as_is else 'verified'}"

    def _do(self, what: str, units: Sequence[Unit], work: Work) -> None:
        self._campaign.run(units, work, self._executor, lambda done, of: self._tell(what, done, of))

    def _tell(self, what: str, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(what, done, of)

    def _totals(self, groups: Sequence[_Group], split_groups: int) -> ManifestTotals:
        spent = {group: self._of_group(group).spent for group in groups if self._can_run(group)}
        return ManifestTotals(
            iterations=sum(spent.values()),
            top_up_iterations=sum(max(0, count - group.planned) for group, count in spent.items()),
            split_groups=split_groups,
            resilience_iterations=self._plan.resilience_iterations,
            harden_iterations=self._plan.harden_iterations,
            seconds=self._campaign.seconds,
        )

    def _export_group(self, group: _Group) -> ManifestGroup:
        found = self._of_group(group)
        path = f"weights/{group.name}.safetensors"
        return ManifestGroup(
            name=group.name,
            chips=group.chips,
            weights=path,
            sha256=self._campaign.export(group.name, WEIGHTS, path),
            planned=group.planned,
            iterations=found.iterations,
            top_ups=found.top_ups,
            split_from=group.split_from,
            severity=found.severity if group.severity is None else group.severity,
            tuning_correct=found.correct,
        )

    def _export_chip(self, group: _Group, chip: str, required: int) -> ManifestChip:
        unit = self._verified(chip, as_is=group.name == AS_IS)
        source = (unit, DEPLOYMENT) if group.name == AS_IS else (group.name, member_file(group.chips.index(chip)))
        found = self._campaign.result(VerifiedChip, unit)
        path = f"chips/{self._position[chip]:05d}.safetensors"
        return ManifestChip(
            id=chip,
            digest=found.digest,
            group=group.name,
            deployment=path,
            sha256=self._campaign.export(*source, path),
            tuning_correct=found.tuning_correct,
            correct=found.correct,
            at_least=at_least(found.correct, len(self._verification)),
            passes=found.correct >= required,
            bypassed_pes=found.bypassed_pes,
            faulty_pes=found.faulty_pes,
            cycle_images=found.cycle_images,
            cycle_same=found.cycle_same,
        )


@dataclass(frozen=True, eq=False)
class GroupTask:
    """A group to retrain for `amount` to `budget` iterations; no chips for the weights that everything starts from."""

    plan: Plan
    config: ArrayConfig
    name: str
    chips: tuple[Chip, ...]
    amount: int
    budget: int


@dataclass(frozen=True, eq=False)
class ChipTask:
    """A chip to verify; without a deployment weights are put on it as the setup's mitigation does."""

    plan: Plan
    chip: Chip
    weights: UnitFile
    deployment: UnitFile | None
    cycle_images: int


def member_file(position: int) -> str:
    """The file of a group that says how its weights sit on a chip, by the chip's place among its chips."""
    return f"chip-{position:05d}.safetensors"


def retrain_group(task: GroupTask) -> Outcome:
    """Retrain a group: the amount that was planned, and more in steps for as long as it misses what is required.

    Gives a `RetrainedGroup`, and the files of its weights and of its chips.
    """
    loaded = _load(task.plan)
    prepared, placements, lost = _prepared(task, loaded)
    diverged_at = None
    try:
        result = prepared.run()
    except RetrainDivergedError as error:
        result, diverged_at = error.result, error.iteration
    iterations, last = len(result.losses), result.evaluations[-1]
    scales = result.deployment.activation_scales
    # What is bypassed, and where operands sit, is each chip's; the weights are those of all.
    bare = Deployment(task.config.record, _nowhere(task.config), scales, {})
    about = {
        "network": str(task.plan.setup.network),
        "mitigation": task.plan.setup.mitigation,
        "group": task.name,
        "chips": str(len(task.chips)),
        "iterations": str(iterations),
    }
    files = {WEIGHTS: deployed_bytes(result.weights, bare, about)}
    for position, chip in enumerate(task.chips):
        if placements is None:
            deployment = replace(result.deployment, placements=dict(sorted(result.deployment.placements.items())))
        else:
            moved = {name: found for name, found in sorted(placements[position].items()) if not found.is_in_order}
            deployment = Deployment(task.config.record, bypass_of(chip), scales, moved)
        about = {"chip": chip.id, "chip_digest": chip.faults.digest(), "group": task.name}
        files[member_file(position)] = deployed_bytes({}, deployment, about)
    retrained = RetrainedGroup(
        chips=tuple(chip.id for chip in task.chips),
        evaluations=tuple((found.iteration, found.correct) for found in result.evaluations),
        iterations=iterations,
        spent=iterations if diverged_at is None else diverged_at,
        severity=_severity(task, loaded, prepared.deployment, lost),
        top_ups=sum(found.iteration > task.amount for found in result.evaluations),
        correct=last.correct,
        met=last.correct >= task.plan.required,
        diverged_at=diverged_at,
    )
    return Outcome(retrained.as_dict(), files)


def measure_fault_free(task: tuple[Plan, ArrayConfig]) -> Outcome:
    """Classify the verification images with the original network, quantised and without faults: what a drop is from.

    And count its multiply-accumulates for one image, on the array and in float. Gives a `FaultFree`.
    """
    plan, config = task
    _load(plan)
    loaded = plan.setup.original.load()
    accelerator = Accelerator.fault_free(config)
    quantised = convert(
        loaded.network, config, loaded.data.calibration, method=plan.setup.calibration, accelerator=accelerator
    )
    work = array_share(quantised, loaded.verification.images[:1])
    correct = count_correct(quantised, loaded.verification, BATCH)
    found = FaultFree(loaded.verification.digest, correct, work.on_array, sum(work.in_float.values()))
    return Outcome(found.as_dict())


def verify_chip(task: ChipTask) -> Outcome:
    """Classify tuning and verification images on a chip with its own faults, some of these on the cycle engine, too.

    Gives a `VerifiedChip`, and the chip's file if it has none yet.
    """
    loaded = _load(task.plan)
    weights, group = deployed_from(task.weights.read(), task.weights.path)
    network = copied(loaded.network)
    put_weights(network, weights, task.weights.path, f"network {task.plan.setup.network}")
    deployment = None if task.deployment is None else deployed_from(task.deployment.read(), task.deployment.path)[1]
    files = {}
    if deployment is None:
        assert group is not None
        deployment = deployed_as_is(network, group.activation_scales, task.chip, task.plan.setup.mitigations)
        files[DEPLOYMENT] = deployed_bytes({}, deployment, {"chip": task.chip.id})
    on_chip = network_on_chip(network, deployment, task.chip, "emulation")
    tuning, verification = loaded.data.held_out, loaded.verification
    tuned, predicted = (classify(on_chip, part.images, BATCH) for part in (tuning, verification))
    expected = stepped = predicted[: task.cycle_images]
    if task.cycle_images:
        by_cycles = network_on_chip(network, deployment, task.chip, "cycle")
        stepped = classify(by_cycles, verification.images[: task.cycle_images], BATCH)
    verified = VerifiedChip(
        chip=task.chip.id,
        digest=task.chip.digest(),
        tuning_correct=int((tuned == tuning.labels).sum()),
        correct=int((predicted == verification.labels).sum()),
        bypassed_pes=int(deployment.bypass.sum()),
        faulty_pes=int(task.chip.faults.faulty_pes().sum()),
        cycle_images=task.cycle_images,
        cycle_same=bool(torch.equal(stepped, expected)),
    )
    return Outcome(verified.as_dict(), files)


def fused_chip(name: str, config: ArrayConfig, chips: Sequence[Chip]) -> Chip:
    """A chip that stands for several: what any of them bypasses is bypassed, and what any cannot use is broken.

    Weights that work on it work on each of them, as nothing that is broken in one of them acts.
    """
    bypass = np.logical_or.reduce([_nowhere(config), *map(bypass_of, chips)])
    columns = sorted({int(column) for chip in chips for column in chip.faults.unusable_columns()})
    broken = [Fault(0, column, Site.ACCUMULATOR, 0, Kind.STUCK_AT_0) for column in columns]
    return Chip(name, FaultMap.from_faults(config, broken), bypass)


def _nowhere(config: ArrayConfig) -> BoolArray:
    return np.zeros((config.rows, config.cols), np.bool_)


def _load(plan: Plan) -> Loaded:
    check_unchanged(plan.setup.identity(), plan.identity)
    return plan.setup.load()


def _prepared(
    task: GroupTask, loaded: Loaded
) -> tuple[PreparedRetraining, list[Placements] | None, dict[str, BoolArray] | None]:
    """The retraining, and if chips are aligned the places of each and what they lose together."""
    setup, config = task.plan.setup, task.config
    strategy = setup.mitigations
    chip, placements, lost = fused_chip(task.name, config, task.chips), None, None
    if task.plan.aligned and task.chips:
        aligner = Aligner(model_of(loaded, config), config, strategy, task.plan.predictor)
        placements, lost = aligner.place_together(task.chips)
        others = tuple(part for part in strategy.in_turn if not isinstance(part, Bypass | Permutation))
        chip, strategy = Chip(task.name, FaultMap(config)), Mitigations(others)
    prepared = PreparedRetraining(
        loaded.network,
        chip,
        loaded.data,
        task.budget,
        mitigations=strategy,
        recipe=setup.recipe,
        evaluate_at=range(task.amount, task.budget, task.plan.step),
        target_accuracy=task.plan.required / len(loaded.data.held_out),
        least_iterations=task.amount,
        calibration=setup.calibration,
        learn_scales=setup.learn_scales,
        pruned=lost,
    )
    return prepared, placements, lost


def _severity(task: GroupTask, loaded: Loaded, deployment: Deployment, lost: Pruned | None) -> float:
    """How bad a group is, 0..1, by the predictor of the plan: by what its chips lose together."""
    config = task.config
    layers = trainable_layers(model_of(loaded, config))
    if task.plan.predictor in MASK_PREDICTORS:
        masks = [mask_of(chip, task.plan.predictor) for chip in task.chips]
        held = weights_per_pe([layer.gemm_shape for layer in layers.values()], config)
        together = np.logical_or.reduce([_nowhere(config), *masks])
        return float(severity(together, counts_of(task.plan.predictor, held)))
    if lost is None:
        places = {name: Placement.in_order(*layer.gemm_shape) for name, layer in layers.items()}
        places |= deployment.placements
        lost = {name: placement.at_weights(deployment.bypass, config) for name, placement in places.items()}
    weights = [layer.weight.detach().flatten(1).cpu().numpy() for layer in layers.values()]
    return float(getattr(pruned_severity(weights, [lost[name] for name in layers]), task.plan.predictor))
