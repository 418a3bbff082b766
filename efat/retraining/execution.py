"""A plan carried out: groups retrained, topped up and split, every chip verified, and what comes out in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from efat.campaigns.campaign import Campaign, Executor, Notes, Unit, UnitFile, Work, warned
from efat.campaigns.elapsed import Elapsed
from efat.confidence import at_least
from efat.json_fields import Fields
from efat.planning.alignment import PREDICTORS as ALIGNED_PREDICTORS
from efat.planning.plan import AS_IS, Plan, PlannedGroup, write_plan
from efat.planning.planner import TABLE
from efat.resilience.severity import bypass_of
from efat.retraining.manifest import (
    FILE_NAME,
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestLot,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
    write_manifest,
)
from efat.retraining.units import (
    DEPLOYMENT,
    WEIGHTS,
    ChipTask,
    GroupTask,
    measure_fault_free,
    member_file,
    retrain_group,
    verify_chip,
)
from efat.setup import check_network_named
from simulator import ArrayConfig
from simulator.errors import InputError
from simulator.files import digest_of_file, replaced
from simulator.lots.chips import Chip, ChipLot

KIND = "retraining of a lot"
PLAN = "plan.json"
"""It and the table are copied into the folder, so that it can be understood by itself."""

ELAPSED = "elapsed.json"

FAULT_FREE = "fault-free"
"""Name of the unit that measures the original network without faults."""

_PACKAGES = ("efat", "torch", "numpy", "numba")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class VerificationError(RuntimeError):
    """A chip does other than the network that was retrained for it, though it must do just that: a bug in eFAT."""


@dataclass(frozen=True)
class Execution:
    """A plan, its lot, and a folder to carry it out in.

    Args:
        plan: the plan.
        lot: the file of chips.
        resilience: the table that the plan is made from.
        folder: made if it is not there.
        cycle_images: verification images that the cycle engine classifies on each chip, too; fewer if there are fewer.
        network: the network that the plan names; None to take it from there, which a network of the user's own is not.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is not the one that the plan was made from, or `folder` is something else.
        LotError: the lot is damaged.
    """

    plan: Plan
    lot: Path
    resilience: Path
    folder: Path
    cycle_images: int = 8
    network: str | None = None

    def __post_init__(self) -> None:
        check_network_named(Path("the plan"), str(self.plan.setup.network), self.network)
        for path, source, what in ((self.lot, self.plan.lot, "lot"), (self.resilience, self.plan.resilience, "table")):
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file; it is the {what} that the plan was made from")
            if digest_of_file(path) != source.sha256:
                raise InputError(f"{path} is not the {what} that the plan was made from: make the plan again")
        if self.plan.aligned and self.plan.predictor not in ALIGNED_PREDICTORS:
            raise InputError(f"the plan aligns chips by predictor {self.plan.predictor!r}: make the plan again")
        if self.cycle_images < 0:
            raise InputError(f"cycle images are {self.cycle_images}: expected 0 or more")
        known = {chip for group in self.plan.groups for chip in group.chips}
        with ChipLot(self.lot) as opened:
            missing, array = known.symmetric_difference(opened.chip_ids), opened.config.as_dict()
        if array != self.plan.array:
            raise InputError(f"the array of {self.lot} is not that of the plan: make the plan again")
        if missing:
            raise InputError(f"chip {min(missing)!r} is not in both {self.lot} and the plan: make the plan again")

    @property
    def manifest(self) -> Path:
        """The file that is written last."""
        return self.folder / FILE_NAME

    def run(self, executor: Executor, progress: Progress | None = None, notes: Notes = warned) -> Manifest:
        """Do what is left of it; see the module.

        Args:
            executor: does the units.
            progress: called from time to time.
            notes: told of what is in the folder and does not fit; it is done again.

        Raises:
            InputError: the folder is of something else, or network or data changed.
            VerificationError: chips do not what they must.
        """
        return _Run(self, executor, progress, notes).run()


@dataclass(frozen=True)
class _Group:
    """A group as it is carried out; the severity of parts is known when they are retrained."""

    name: str
    chips: tuple[str, ...]
    planned: int
    severity: float | None
    split_from: str | None = None

    @classmethod
    def of(cls, group: PlannedGroup) -> _Group:
        return cls(group.name, group.chips, group.amount, group.severity)


class _Run:
    """One run of an execution, which goes on from what earlier ones left."""

    def __init__(self, execution: Execution, executor: Executor, progress: Progress | None, notes: Notes) -> None:
        plan = execution.plan
        self._execution, self._plan = execution, plan
        self._executor, self._progress = executor, progress
        self._setup = plan.setup.located()
        self._setup.check_identity(plan.identity)
        loaded = self._setup.load()
        images = len(loaded.data.held_out)
        if images != plan.images:
            raise InputError(f"the plan is for {plan.images} tuning images, and there are {images}: make it again")
        self._verification = loaded.verification
        self._cycle_images = min(execution.cycle_images, len(loaded.verification))
        self._tried = {chip.id: chip.correct for chip in plan.tried}
        with ChipLot(execution.lot) as opened:
            self._config: ArrayConfig = opened.config
            self._chips: dict[str, Chip] = {}
            for done, chip in enumerate(opened, 1):
                self._chips[chip.id] = chip
                self._tell("reading chips", done, len(opened))
        self._position = {chip: position for position, chip in enumerate(self._chips)}
        self._campaign = Campaign(
            execution.folder,
            KIND,
            {
                "plan": plan.digest_without_paths,
                "lot": plan.lot.sha256,
                "verification images": self._verification.digest,
                "cycle images": self._cycle_images,
                **plan.identity,
            },
            notes,
        )
        self._elapsed = Elapsed(execution.folder / ELAPSED)

    def run(self) -> Manifest:
        folder = self._execution.folder
        _put(folder / TABLE, self._execution.resilience.read_bytes())
        write_plan(folder / PLAN, self._plan)
        self._required, self._fault_free_correct = self._measure_required()
        as_is, groups = self._verify_as_is()
        kept, split = self._retrain(groups)
        self._verify(kept)
        groups = ([as_is] if as_is is not None else []) + kept
        manifest = self._manifest(groups, split)
        write_manifest(self._execution.manifest, manifest)
        return manifest

    def _measure_required(self) -> tuple[int, int]:
        """Verification images that a chip must classify correctly, and how many the original network does."""
        arguments = {"setup": self._setup, "identity": self._plan.identity, "config": self._config}
        self._do("the network without faults", [Unit(FAULT_FREE, arguments)], measure_fault_free)
        images = len(self._verification)
        correct = self._result(FAULT_FREE).count("correct", 0, images)
        return self._plan.constraint.required_of(images, correct), correct

    def _verify_as_is(self) -> tuple[_Group | None, list[_Group]]:
        """Try the chips that are planned to do without retraining; those that fail become groups of their own."""
        groups = [_Group.of(group) for group in self._plan.groups if group.name != AS_IS]
        planned = next((group for group in self._plan.groups if group.name == AS_IS), None)
        if planned is None:
            return None, groups
        self._do(
            "weights as they are", [self._group_unit(_Group(AS_IS, (), 0, planned.severity), budget=0)], retrain_group
        )
        weights = self._campaign.file(AS_IS, WEIGHTS)
        units = [self._chip_unit(chip, weights, None, suffix="as-is") for chip in planned.chips]
        self._do("chips as they are", units, verify_chip)
        passing = []
        for chip, unit in zip(planned.chips, units, strict=True):
            found = self._result(unit.name)
            self._check_engines(chip, found)
            tuned = self._tuned(found)
            if tuned != self._tried.get(chip, tuned):
                raise InputError(
                    f"chip {chip} classifies {tuned} tuning images correctly without retraining, and the plan says "
                    f"{self._tried[chip]}: delete trials/ beside the table, and make the plan again"
                )
            if tuned >= self._plan.required:
                passing.append(chip)
            else:
                name = f"{AS_IS}-{self._position[chip]:05d}"
                groups.append(_Group(name, (chip,), 0, None, split_from=AS_IS))
        return (_Group(AS_IS, tuple(passing), 0, planned.severity) if passing else None), groups

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
        if len(group.chips) == 1:
            return True
        return self._can_run(group) and self._correct(self._result(group.name)) >= self._plan.required

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
            _Group(f"{group.name}-{letter}", tuple(chips), 0, None, split_from=group.name)
            for letter, chips in (("a", ordered[:middle]), ("b", ordered[middle:]))
        ]

    def _verify(self, groups: Sequence[_Group]) -> None:
        units = []
        for group in groups:
            for position, chip in enumerate(group.chips):
                deployment = self._campaign.file(group.name, member_file(position))
                units.append(self._chip_unit(chip, self._campaign.file(group.name, WEIGHTS), deployment))
        self._do("chips verified", units, verify_chip)
        for group in groups:
            for chip in group.chips:
                found = self._result(self._verified(chip))
                self._check_engines(chip, found)
                tuned, expected = self._tuned(found), self._correct(self._result(group.name))
                if tuned != expected:
                    raise VerificationError(
                        f"chip {chip} classifies {tuned} tuning images correctly and {group.name}, which was retrained "
                        f"for it, {expected}"
                    )

    def _check_engines(self, chip: str, found: Fields) -> None:
        if not found.flag("cycle_same"):
            raise VerificationError(f"chip {chip}: the cycle engine predicts otherwise than the emulation")

    def _group_unit(self, group: _Group, budget: int | None = None) -> Unit:
        task = GroupTask(
            name=group.name,
            setup=self._setup,
            identity=self._plan.identity,
            config=self._config,
            chips=tuple(self._chips[chip] for chip in group.chips),
            aligned=self._plan.aligned,
            predictor=self._plan.predictor,
            amount=group.planned,
            step=self._plan.step,
            budget=self._plan.budget if budget is None else budget,
            required=self._plan.required,
        )
        return Unit(group.name, {"task": task})

    def _chip_unit(self, chip: str, weights: UnitFile, deployment: UnitFile | None, suffix: str = "verified") -> Unit:
        task = ChipTask(
            setup=self._setup,
            identity=self._plan.identity,
            config=self._config,
            chip=self._chips[chip],
            weights=weights.located(),
            deployment=None if deployment is None else deployment.located(),
            cycle_images=self._cycle_images,
        )
        inputs = {"weights": weights.sha256, "deployment": None if deployment is None else deployment.sha256}
        return Unit(self._verified(chip, suffix), {"task": task}, inputs)

    def _verified(self, chip: str, suffix: str = "verified") -> str:
        """Name of the unit: ids of chips may have any characters in them."""
        return f"chip-{self._position[chip]:05d}-{suffix}"

    def _do(self, what: str, units: Sequence[Unit], work: Work) -> None:
        first = True

        def told(done: int, of: int) -> None:
            nonlocal first
            if not first:
                self._elapsed.note()
            first = False
            self._tell(what, done, of)

        self._campaign.run(units, work, self._executor, told)

    def _tell(self, what: str, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(what, done, of)

    def _result(self, unit: str) -> Fields:
        return Fields(dict(self._campaign.values(unit)), str(self._campaign.path(unit, "json")))

    def _correct(self, found: Fields) -> int:
        """Tuning images that a group classifies correctly."""
        return found.count("correct", 0, self._plan.images)

    def _tuned(self, found: Fields) -> int:
        """Tuning images that a chip classifies correctly."""
        return found.count("tuning_correct", 0, self._plan.images)

    def _manifest(self, groups: Sequence[_Group], split: Sequence[_Group]) -> Manifest:
        """Write what belongs to it, and put it together."""
        folder, plan = self._execution.folder, self._plan
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "chips").mkdir(exist_ok=True)
        written = {group.name: self._export_group(group) for group in groups}
        chips: dict[str, ManifestChip] = {}
        for group in groups:
            for position, chip in enumerate(group.chips):
                chips[chip] = self._export_chip(group, position, chip)
        done = [group for group in (*groups, *split) if self._can_run(group)]
        spent = {group: self._result(group.name).count("spent") for group in done}
        iterations = sum(spent.values())
        planned = sum(min(group.planned, count) for group, count in spent.items())
        return Manifest(
            strategy=plan.strategy,
            aligned=plan.aligned,
            images=len(self._verification),
            required=self._required,
            fault_free_correct=self._fault_free_correct,
            verification=self._verification.digest,
            tuning=ManifestTuning(plan.images, plan.required, plan.fault_free_correct),
            work=ManifestWork(
                self._result(FAULT_FREE).count("on_array", 1), self._result(FAULT_FREE).count("in_float")
            ),
            constraint=plan.constraint.as_dict(),
            setup=self._setup.as_dict(),
            identity=dict(plan.identity),
            array=self._config.as_dict(),
            lot=ManifestLot(str(self._execution.lot), plan.lot.sha256),
            groups=tuple(written.values()),
            chips=tuple(chips[chip] for chip in self._chips),
            totals=ManifestTotals(
                iterations=iterations,
                top_up_iterations=iterations - planned,
                split_groups=len(split),
                resilience_iterations=plan.resilience_iterations,
                harden_iterations=plan.harden_iterations,
                seconds=self._elapsed.seconds,
            ),
            versions={name: version(name) for name in _PACKAGES},
        )

    def _export_group(self, group: _Group) -> ManifestGroup:
        found = self._result(group.name)
        path = f"weights/{group.name}.safetensors"
        return ManifestGroup(
            name=group.name,
            chips=group.chips,
            weights=path,
            sha256=self._export(group.name, WEIGHTS, path),
            planned=group.planned,
            iterations=found.count("iterations"),
            top_ups=found.count("top_ups"),
            split_from=group.split_from,
            severity=found.number("severity", 0, 1) if group.severity is None else group.severity,
            tuning_correct=self._correct(found),
        )

    def _export_chip(self, group: _Group, position: int, chip: str) -> ManifestChip:
        as_is = group.name == AS_IS
        unit = self._verified(chip, "as-is" if as_is else "verified")
        source = (unit, DEPLOYMENT) if as_is else (group.name, member_file(position))
        found = self._result(unit)
        images = len(self._verification)
        correct, path = found.count("correct", 0, images), f"chips/{self._position[chip]:05d}.safetensors"
        return ManifestChip(
            id=chip,
            digest=found.sha256("digest"),
            group=group.name,
            deployment=path,
            sha256=self._export(*source, path),
            tuning_correct=self._tuned(found),
            correct=correct,
            at_least=at_least(correct, images),
            passes=correct >= self._required,
            bypassed_pes=found.count("bypassed_pes"),
            faulty_pes=found.count("faulty_pes"),
            cycle_images=found.count("cycle_images"),
            cycle_same=found.flag("cycle_same"),
        )

    def _export(self, unit: str, file: str, path: str) -> str:
        """Copy a file of a unit to where the manifest says; gives its digest."""
        source = self._campaign.file(unit, file)
        _put(self._execution.folder / path, source.read())
        return source.sha256


def _put(path: Path, content: bytes) -> None:
    """Write a file in one piece, unless it is there already."""
    if path.is_file() and path.read_bytes() == content:
        return
    with replaced(path) as beside:
        beside.write_bytes(content)
