"""What a report on a retrained lot is about: the files in the folder of `efat retrain`, checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from efat.campaigns.command import Command, kept_in
from efat.planning.plan import Plan, StrategyCost, read_plan
from efat.planning.selection import ResilienceMap
from efat.resilience.table import FILE_NAME as TABLE_NAME
from efat.resilience.table import ResilienceTable, read_table
from efat.retraining.manifest import AS_IS, FILE_NAME, Manifest, ManifestChip, ManifestGroup, read_manifest
from simulator.errors import InputError, first_line
from simulator.faults import BoolArray
from simulator.files import digest_of_file

PLAN_NAME = "plan.json"

MOST_GROUPS = 40
"""Groups that are shown; the rest are counted."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """A retrained lot.

    Args:
        name: of its folder.
        manifest: what was done, and how well each chip does.
        plan: what was planned.
        table: the resilience analysis that the plan is from.
        resilience: iterations by severity, which the plan is from.
        shown_groups: those that are shown, in the order of the manifest; never the chips that are not retrained.
        bypassed: bool [R, C] of each of them, by its name: the PEs that any of its chips bypasses.
        digests: SHA-256 (hex) of the files, by name.
        commands: the command lines that it was made with, as they were kept.
    """

    name: str
    manifest: Manifest
    plan: Plan
    table: ResilienceTable
    resilience: ResilienceMap
    shown_groups: tuple[ManifestGroup, ...]
    bypassed: Mapping[str, BoolArray]
    digests: Mapping[str, str]
    commands: tuple[Command, ...]

    @property
    def pes(self) -> int:
        """PEs of a chip."""
        return int(self.manifest.array["rows"]) * int(self.manifest.array["cols"])

    @property
    def failing(self) -> list[ManifestChip]:
        """Chips that miss the constraint, the worst first."""
        return [chip for chip in self.by_accuracy if not chip.passes]

    @cached_property
    def by_accuracy(self) -> list[ManifestChip]:
        """All chips, the worst first; of equal ones as in the lot."""
        return sorted(self.manifest.chips, key=lambda chip: chip.correct)

    @property
    def retrained(self) -> list[ManifestGroup]:
        """Groups that were retrained, or would have been if that had helped: all but those that stay as they are."""
        return [group for group in self.manifest.groups if group.name != AS_IS]

    @property
    def as_is(self) -> ManifestGroup | None:
        """The chips that are not retrained."""
        return self.manifest.group_named.get(AS_IS)

    @cached_property
    def chip_severities(self) -> list[float]:
        """Severities of the chips one by one; empty where the files say them of groups only."""
        if self.plan.predictor == "faulty_pes":
            return [chip.faulty_pes / self.pes for chip in self.manifest.chips]
        groups = self.manifest.groups
        return [group.severity for group in groups] if len(groups) == len(self.manifest.chips) else []

    def cost_of(self, strategy: str) -> StrategyCost | None:
        """What a strategy is predicted to cost; without alignment, if the plan compares both."""
        found = [cost for cost in self.plan.comparison if cost.strategy == strategy]
        return min(found, key=lambda cost: cost.aligned, default=None)

    @property
    def analysis_iterations(self) -> int:
        """Iterations that the resilience analysis took, hardening included."""
        return self.manifest.totals.resilience_iterations + self.manifest.totals.harden_iterations

    @property
    def pays_from(self) -> int | None:
        """How many chips like these save as many iterations over `fixed` as the resilience analysis took.

        None if the lot saved none, or the plan does not say what `fixed` takes.
        """
        fixed = self.cost_of("fixed")
        saved = 0 if fixed is None else fixed.iterations - self.manifest.totals.iterations
        return -(-self.analysis_iterations * len(self.manifest.chips) // saved) if saved > 0 else None


def read_report(folder: Path) -> ReportData:
    """Read what a report is about.

    Args:
        folder: of `efat retrain`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is damaged, or is not of the same lot and plan as the others.
    """
    manifest_path, plan_path, table_path = (folder / name for name in (FILE_NAME, PLAN_NAME, TABLE_NAME))
    manifest = read_manifest(manifest_path)
    plan = read_plan(plan_path)
    table = read_table(table_path)
    _check_plan(plan_path, plan, manifest)
    if digest_of_file(table_path) != plan.resilience.sha256 or table.images != plan.images:
        raise InputError(f"{table_path} is not the table that {plan_path} was made from: expected the one that was")
    shown = _shown(manifest)
    return ReportData(
        name=folder.resolve().name,
        manifest=manifest,
        plan=plan,
        table=table,
        resilience=_resilience(plan_path, plan, table),
        shown_groups=shown,
        bypassed={group.name: _bypassed_by_any(folder, manifest, group.chips) for group in shown},
        digests={path.name: digest_of_file(path) for path in (manifest_path, plan_path, table_path)},
        commands=(*plan.commands, *kept_in(folder)),
    )


def _check_plan(path: Path, plan: Plan, manifest: Manifest) -> None:
    chips = {chip for group in plan.groups for chip in group.chips}
    for what, planned, done in (
        ("lot", plan.lot.sha256, manifest.lot.sha256),
        ("number of tuning images", plan.images, manifest.tuning.images),
        ("number of required tuning images", plan.required, manifest.tuning.required),
        ("number of tuning images right without faults", plan.fault_free_correct, manifest.tuning.fault_free_correct),
        ("constraint", plan.constraint, manifest.constraint),
        ("strategy", (plan.strategy, plan.aligned), (manifest.strategy, manifest.aligned)),
        ("array", plan.array, manifest.array),
        ("list of chips", chips, set(manifest.chip_named)),
    ):
        if planned != done:
            raise InputError(f"{path} has another {what} than {FILE_NAME}: expected the plan that was executed")


def _resilience(path: Path, plan: Plan, table: ResilienceTable) -> ResilienceMap:
    try:
        found = ResilienceMap(table, plan.constraint, plan.statistic, plan.predictor)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): make it again with efat plan") from None
    if found.required != plan.required or table.fault_free_correct != plan.fault_free_correct:
        raise InputError(
            f"{path} requires {plan.required} images of chips and has {plan.fault_free_correct} without faults: the "
            f"table says {found.required} and {table.fault_free_correct}; make it again with efat plan"
        )
    return found


def _shown(manifest: Manifest) -> tuple[ManifestGroup, ...]:
    """Groups with chips that fail first, then those with the most chips; in the order of the manifest."""
    retrained = [group for group in manifest.groups if group.name != AS_IS]
    chosen = sorted(
        range(len(retrained)),
        key=lambda place: (
            all(manifest.chip_named[chip].passes for chip in retrained[place].chips),
            -len(retrained[place].chips),
        ),
    )
    return tuple(retrained[place] for place in sorted(chosen[:MOST_GROUPS]))


def _bypassed_by_any(folder: Path, manifest: Manifest, chips: Sequence[str]) -> BoolArray:
    rows, cols = manifest.array["rows"], manifest.array["cols"]
    marked = np.zeros((rows, cols), np.bool_)
    for chip in chips:
        marked |= _bypass(folder, manifest.chip_named[chip], (rows, cols)) == 1
    return marked


def _bypass(folder: Path, chip: ManifestChip, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The PEs that a chip bypasses, uint8 [R, C]; placements, which are most of its file, are not looked at."""
    path = folder / chip.deployment
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {FILE_NAME} names it")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} leads out of {folder}: expected a file in it, no link to others")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != chip.sha256:
        raise InputError(f"{path} is not the file that {FILE_NAME} names: its SHA-256 is not {chip.sha256[:12]}...")
    try:
        mask = load(content)["efat.bypass"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no deployment ({first_line(error)}): write it anew with efat retrain") from None
    if mask.dtype != np.uint8 or mask.shape != shape or mask.max() > 1 or mask.sum() != chip.bypassed_pes:
        raise InputError(
            f"{path} bypasses {mask.sum()} PEs in {mask.dtype} {list(mask.shape)}: expected {chip.bypassed_pes} in "
            f"uint8 {list(shape)}, as in {FILE_NAME}"
        )
    return mask
