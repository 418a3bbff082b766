"""A plan carried out: groups retrained, topped up and split, every chip verified, and what comes out in a folder."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from efat.campaign import Campaign, Executor, Unit
from efat.execution_units import DEPLOYMENT, WEIGHTS, ChipTask, GroupTask, member_file, retrain_group, verify_chip
from efat.manifest import (
    FILE_NAME,
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestLot,
    ManifestTotals,
    write_manifest,
)
from efat.plan import AS_IS, Plan, PlannedGroup, write_plan
from efat.planning import TABLE
from efat.resilience_table import digest_of_file
from efat.training_setup import TrainingSetup, check_network_named
from simulator import ArrayConfig
from simulator.chips import Chip, ChipLot
from simulator.files import replaced
from training.errors import InputError

KIND = "retraining of a lot"
PLAN = "plan.json"
"""It and the table are copied into the folder, so that it can be understood by itself."""

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
        cycle_images: held-out images that the cycle engine classifies on each chip, too.
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
        check_network_named(Path("the plan"), TrainingSetup.from_dict(self.plan.setup).network, self.network)
        for path, source, what in ((self.lot, self.plan.lot, "lot"), (self.resilience, self.plan.resilience, "table")):
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file; it is the {what} that the plan was made from")
            if digest_of_file(path) != source["sha256"]:
                raise InputError(f"{path} is not the {what} that the plan was made from: make the plan again")
        if not 0 <= self.cycle_images <= self.plan.images:
            raise InputError(f"cycle images are {self.cycle_images}: expected 0..{self.plan.images}, the held-out ones")
        known = {chip for group in self.plan.groups for chip in group.chips}
        with ChipLot(self.lot) as opened:
            missing = known.symmetric_difference(opened.chip_ids)
        if missing:
            raise InputError(f"chip {min(missing)!r} is not in both {self.lot} and the plan: make the plan again")

    @property
    def manifest(self) -> Path:
        """The file that is written last."""
        return self.folder / FILE_NAME

    def run(self, executor: Executor, progress: Progress | None = None) -> Manifest:
        """Do what is left of it; see the module.

        Args:
            executor: does the units.
            progress: called from time to time.

        Raises:
            InputError: the folder is of something else, or network or data changed.
            VerificationError: chips do not what they must.
        """
        return _Run(self, executor, progress).run()


@dataclass(frozen=True)
class _Group:
    """A group as it is carried out."""

    name: str
    chips: tuple[str, ...]
    planned: int
    severity: float
    split_from: str | None = None
    least: int = 0

    @classmethod
    def of(cls, group: PlannedGroup) -> _Group:
        return cls(group.name, group.chips, group.amount, group.severity, least=group.amount)


class _Run:
    """One run of an execution, which goes on from what earlier ones left."""

    def __init__(self, execution: Execution, executor: Executor, progress: Progress | None) -> None:
        plan = execution.plan
        self._execution, self._plan = execution, plan
        self._executor, self._progress = executor, progress
        self._begun = time.perf_counter()
        self._setup = TrainingSetup.from_dict(plan.setup).located()
        self._setup.check_identity(plan.identity)
        with ChipLot(execution.lot) as opened:
            self._config: ArrayConfig = opened.config
            self._chips: dict[str, Chip] = {chip.id: chip for chip in opened}
        self._position = {chip: position for position, chip in enumerate(self._chips)}
        self._campaign = Campaign(
            execution.folder,
            KIND,
            {
                "plan": plan.digest_without_paths,
                "lot": plan.lot["sha256"],
                "cycle images": execution.cycle_images,
                **plan.identity,
            },
        )

    def run(self) -> Manifest:
        folder = self._execution.folder
        shutil.copyfile(self._execution.resilience, folder / TABLE)
        write_plan(folder / PLAN, self._plan)
        as_is, groups = self._verify_as_is()
        kept, split = self._retrain(groups)
        self._verify(kept)
        groups = ([as_is] if as_is is not None else []) + kept
        manifest = self._manifest(groups, split)
        write_manifest(self._execution.manifest, manifest)
        return manifest

    def _verify_as_is(self) -> tuple[_Group | None, list[_Group]]:
        """Try the chips that are planned to do without retraining; those that fail become groups of their own."""
        groups = [_Group.of(group) for group in self._plan.groups if group.name != AS_IS]
        planned = next((group for group in self._plan.groups if group.name == AS_IS), None)
        if planned is None:
            return None, groups
        self._do(
            "weights as they are", [self._group_unit(_Group(AS_IS, (), 0, planned.severity), budget=0)], retrain_group
        )
        weights = self._campaign.path(AS_IS, WEIGHTS)
        units = [self._chip_unit(chip, weights, None, suffix="as-is") for chip in planned.chips]
        self._do("chips as they are", units, verify_chip)
        passing = []
        for chip, unit in zip(planned.chips, units, strict=True):
            if self._result(unit.name)["correct"] >= self._plan.required:
                passing.append(chip)
            else:
                name = f"{AS_IS}-{self._position[chip]:05d}"
                groups.append(_Group(name, (chip,), 0, planned.severity, split_from=AS_IS))
        return (_Group(AS_IS, tuple(passing), 0, planned.severity) if passing else None), groups

    def _retrain(self, groups: list[_Group]) -> tuple[list[_Group], list[_Group]]:
        """Retrain groups, and parts of those that miss what is required; gives those kept and those split."""
        kept, split = [], []
        while groups:
            # The longest first, so that no worker has one left when all others are done.
            units = [self._group_unit(group) for group in sorted(groups, key=lambda group: -group.planned)]
            self._do("groups", units, retrain_group)
            parts = []
            for group in groups:
                if self._result(group.name)["met"] or len(group.chips) == 1:
                    kept.append(group)
                else:
                    split.append(group)
                    parts += self._halves(group)
            groups = parts
        return kept, split

    def _halves(self, group: _Group) -> list[_Group]:
        """The worse and the better half of its chips, to be retrained for no longer than it takes."""
        ordered = sorted(group.chips, key=lambda chip: -int(self._chips[chip].faults.required_bypass().sum()))
        middle = len(ordered) // 2
        return [
            _Group(f"{group.name}-{letter}", tuple(chips), 0, group.severity, split_from=group.name)
            for letter, chips in (("a", ordered[:middle]), ("b", ordered[middle:]))
        ]

    def _verify(self, groups: Sequence[_Group]) -> None:
        units = []
        for group in groups:
            for position, chip in enumerate(group.chips):
                deployment = self._campaign.path(group.name, member_file(position))
                units.append(self._chip_unit(chip, self._campaign.path(group.name, WEIGHTS), deployment))
        self._do("chips verified", units, verify_chip)
        for group in groups:
            for chip in group.chips:
                found, expected = self._result(self._verified(chip)), self._result(group.name)["correct"]
                if found["correct"] != expected or not found["cycle_same"]:
                    raise VerificationError(
                        f"chip {chip} classifies {found['correct']} images correctly and {group.name}, which was "
                        f"retrained for it, {expected}; the engines {'agree' if found['cycle_same'] else 'differ'}"
                    )

    def _group_unit(self, group: _Group, budget: int | None = None) -> Unit:
        task = GroupTask(
            name=group.name,
            setup=self._setup,
            identity=self._plan.identity,
            config=self._config,
            chips=tuple(self._chips[chip] for chip in group.chips),
            aligned=self._plan.aligned,
            predictor=self._plan.predictor,
            amount=group.least,
            step=self._plan.step,
            budget=self._plan.budget if budget is None else budget,
            required=self._plan.required,
        )
        return Unit(group.name, {"task": task})

    def _chip_unit(self, chip: str, weights: Path, deployment: Path | None, suffix: str = "verified") -> Unit:
        task = ChipTask(
            setup=self._setup,
            identity=self._plan.identity,
            config=self._config,
            chip=self._chips[chip],
            weights=weights.absolute(),
            deployment=None if deployment is None else deployment.absolute(),
            cycle_images=self._execution.cycle_images,
        )
        return Unit(self._verified(chip, suffix), {"task": task})

    def _verified(self, chip: str, suffix: str = "verified") -> str:
        """Name of the unit: ids of chips may have any characters in them."""
        return f"chip-{self._position[chip]:05d}-{suffix}"

    def _do(self, what: str, units: Sequence[Unit], work: Any) -> None:
        progress = self._progress
        told = None if progress is None else lambda done, of: progress(what, done, of)
        self._campaign.run(units, work, self._executor, told)

    def _result(self, unit: str) -> dict[str, Any]:
        found = self._campaign.done(unit)
        assert found is not None
        return found

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
        iterations = sum(self._result(group.name)["iterations"] for group in (*groups, *split))
        planned = sum(min(group.planned, self._result(group.name)["iterations"]) for group in (*groups, *split))
        return Manifest(
            strategy=plan.strategy,
            aligned=plan.aligned,
            images=plan.images,
            required=plan.required,
            constraint=dict(plan.constraint),
            setup=self._setup.as_dict(),
            identity=dict(plan.identity),
            array=self._config.as_dict(),
            lot=ManifestLot(str(self._execution.lot), plan.lot["sha256"]),
            groups=tuple(written.values()),
            chips=tuple(chips[chip] for chip in self._chips),
            totals=ManifestTotals(
                iterations=iterations,
                top_up_iterations=iterations - planned,
                split_groups=len(split),
                resilience_iterations=plan.resilience_iterations,
                harden_iterations=plan.harden_iterations,
                seconds=time.perf_counter() - self._begun,
            ),
            versions={name: version(name) for name in _PACKAGES},
        )

    def _export_group(self, group: _Group) -> ManifestGroup:
        result = self._result(group.name)
        path = f"weights/{group.name}.safetensors"
        return ManifestGroup(
            name=group.name,
            chips=group.chips,
            weights=path,
            sha256=self._export(self._campaign.path(group.name, WEIGHTS), path),
            planned=group.planned,
            iterations=result["iterations"],
            top_ups=result["top_ups"],
            split_from=group.split_from,
            severity=group.severity,
            correct=result["correct"],
        )

    def _export_chip(self, group: _Group, position: int, chip: str) -> ManifestChip:
        if group.name == AS_IS:
            unit = self._verified(chip, "as-is")
            source = self._campaign.path(unit, DEPLOYMENT)
        else:
            unit = self._verified(chip)
            source = self._campaign.path(group.name, member_file(position))
        found = self._result(unit)
        path = f"chips/{self._position[chip]:05d}.safetensors"
        return ManifestChip(
            id=chip,
            digest=found["digest"],
            group=group.name,
            deployment=path,
            sha256=self._export(source, path),
            correct=found["correct"],
            passes=found["correct"] >= self._plan.required,
            bypassed_pes=found["bypassed_pes"],
            faulty_pes=found["faulty_pes"],
            cycle_images=found["cycle_images"],
            cycle_same=found["cycle_same"],
        )

    def _export(self, source: Path, path: str) -> str:
        """Copy a file of a unit to where the manifest says; gives its digest."""
        content = source.read_bytes()
        with replaced(self._execution.folder / path) as beside:
            beside.write_bytes(content)
        return hashlib.sha256(content).hexdigest()
