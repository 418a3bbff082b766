"""The report on a retrained lot: the files in its folder, checked against each other, and the page that they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from safetensors import SafetensorError
from safetensors.numpy import load

from efat.command_lines import Command, kept, kept_in, shell_text
from efat.confidence import bound_text
from efat.display import counted
from efat.figures.drawing import bitmap
from efat.figures.lot import ChipMark, GroupMark, amounts_chart, below_axis, chips_chart
from efat.figures.resilience import MOST_LEVELS, resilience_chart
from efat.planning.plan import AS_IS, Plan, StrategyCost
from efat.planning.selection import ResilienceMap
from efat.records import as_json
from efat.reports.pages import MOST_ROWS, Finding, fill, flat, identity_inputs
from efat.reports.propagation import PropagationReport, propagation_inputs, propagation_section
from efat.reports.text import accuracy, duration, named, short_percent
from efat.resilience.table import FILE_NAME as TABLE_NAME
from efat.resilience.table import ResilienceTable, read_table, telling_levels
from efat.retraining.manifest import Manifest, ManifestChip, ManifestGroup, named_file
from simulator.dtypes import BoolArray, UInt8Array
from simulator.errors import InputError, first_line
from simulator.files import digest_of_file

PLAN_NAME, MANIFEST_NAME = "plan.json", Manifest.FILE_NAME

MOST_GROUPS = 40
"""Groups that are shown; the rest are counted."""

LARGEST_PICTURE = 256
"""Pixels along a side of a group's picture; a pixel of a larger array stands for several PEs."""

SEVERITIES = {
    "faulty_pes": "faulty PEs",
    "weights": "weights on bypassed PEs",
    "pruned": "weights pruned",
    "saliency": "squared weights pruned, mean of layers",
}
"""What severity is, by the name of a predictor."""

_SECTIONS = ("Chips", "Cost", "Resilience", "Groups", "Propagation", "Reproduce")
_NAMED = 6
"""Chips that a group names before it counts."""

_SMOOTH = 96
"""From this side on pictures are scaled down, not up."""

_WHAT = {
    "fixed": "each chip alone, all for as long as the worst takes",
    "select": "each chip alone, for as long as it needs",
    "merge": "so many chips at a time, as they come",
    "efat": "chips together where that saves iterations",
}


@dataclass(frozen=True, eq=False)
class LotReport:
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
        propagation: what single faults of its array do; None to leave it out.
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
    propagation: PropagationReport | None = None

    @property
    def pes(self) -> int:
        """PEs of a chip."""
        return self.manifest.array.sizes.pe_count

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


def read_lot_report(folder: Path, propagation: PropagationReport | None = None) -> LotReport:
    """Read what a report is about.

    Args:
        folder: of `efat retrain`.
        propagation: what single faults of its array do; None to leave it out.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is damaged, or is not of the same lot and plan as the others; the faults are of another
            array or network.
    """
    manifest_path, plan_path, table_path = (folder / name for name in (MANIFEST_NAME, PLAN_NAME, TABLE_NAME))
    manifest = Manifest.load(manifest_path)
    plan = Plan.load(plan_path)
    table = read_table(table_path)
    _check_plan(plan_path, plan, manifest)
    if digest_of_file(table_path) != plan.resilience.sha256 or table.images != plan.images:
        raise InputError(f"{table_path} is not the table that {plan_path} was made from: expected the one that was")
    if propagation is not None:
        propagation.check_same_lot(manifest.array, str(plan.setup.network))
    shown = _shown(manifest)
    return LotReport(
        name=folder.resolve().name,
        manifest=manifest,
        plan=plan,
        table=table,
        resilience=_resilience(plan_path, plan, table),
        shown_groups=shown,
        bypassed={group.name: _bypassed_by_any(folder, manifest, group.chips) for group in shown},
        digests={path.name: digest_of_file(path) for path in (manifest_path, plan_path, table_path)},
        commands=(*plan.commands, *kept_in(folder)),
        propagation=propagation,
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
            raise InputError(f"{path} has another {what} than {MANIFEST_NAME}: expected the plan that was executed")


def _resilience(path: Path, plan: Plan, table: ResilienceTable) -> ResilienceMap:
    try:
        return ResilienceMap(table, plan.constraint, plan.statistic, plan.predictor)
    except InputError as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): make it again with efat plan") from None


def _shown(manifest: Manifest) -> tuple[ManifestGroup, ...]:
    """Groups with chips that fail first, then those with the most chips; in the order of the manifest."""

    def rank(group: ManifestGroup) -> tuple[bool, int]:
        return all(manifest.chip_named[chip].passes for chip in group.chips), -len(group.chips)

    retrained = [group for group in manifest.groups if group.name != AS_IS]
    chosen = {group.name for group in sorted(retrained, key=rank)[:MOST_GROUPS]}
    return tuple(group for group in retrained if group.name in chosen)


def _bypassed_by_any(folder: Path, manifest: Manifest, chips: Sequence[str]) -> BoolArray:
    shape = manifest.array.shape
    return np.asarray(np.logical_or.reduce([_bypass(folder, manifest.chip_named[chip], shape) for chip in chips]))


def _bypass(folder: Path, chip: ManifestChip, shape: tuple[int, int]) -> UInt8Array:
    """The PEs that a chip bypasses, uint8 [R, C]; placements, which are most of its file, are not looked at."""
    path = named_file(folder, chip.deployment, chip.sha256)
    try:
        mask = load(path.read_bytes())["efat.bypass"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no deployment ({first_line(error)}): write it anew with efat retrain") from None
    if mask.dtype != np.uint8 or mask.shape != shape or mask.max() > 1 or mask.sum() != chip.bypassed_pes:
        raise InputError(
            f"{path} bypasses {mask.sum()} PEs in {mask.dtype} {list(mask.shape)}: expected {chip.bypassed_pes} in "
            f"uint8 {list(shape)}, as in {MANIFEST_NAME}"
        )
    return mask


def _points(images: int, of: int) -> str:
    """A difference in images as percentage points."""
    text = accuracy(images, of).removesuffix("%")
    return f"{text} {'point' if float(text) == 1 else 'points'}"


def _constraint(report: LotReport) -> str:
    """What each chip has to do on the verification images."""
    manifest = report.manifest
    text = (
        f"at least {accuracy(manifest.required, manifest.images)} of them right "
        f"({manifest.required:,} of {manifest.images:,})"
    )
    drop = report.plan.constraint.max_drop
    if drop is None:
        return text
    fault_free = accuracy(manifest.fault_free_correct, manifest.images)
    if drop == 0:
        return f"{text}, no less than the {fault_free} of a chip without faults"
    most = f"{100 * drop:.10g} {'point' if 100 * drop == 1 else 'points'}"
    return f"{text}, at most {most} below the {fault_free} of a chip without faults"


def lot_findings(report: LotReport) -> tuple[Finding, ...]:
    """The report in five sentences or so: for those who read nothing else."""
    return _passing(report), _worst(report), _cost(report), _analysis(report), _verified(report)


def _passing(report: LotReport) -> Finding:
    chips, passing = len(report.manifest.chips), report.manifest.passing
    figure = f"{passing:,} of {chips:,}"
    verb = "meets" if passing == 1 else "meet"
    unseen = counted(report.manifest.images, "unseen image")
    sentence = f"{figure} {'chip' if chips == 1 else 'chips'} {verb} the constraint on {unseen}: {_constraint(report)}."
    if failing := [chip.id for chip in report.failing]:
        sentence += f" {named(failing)} {'does' if len(failing) == 1 else 'do'} not"
        met = sum(chip.tuning_correct >= report.manifest.tuning.required for chip in report.failing)
        if met:
            which = "which does" if len(failing) == 1 else f"{met} of which do"
            sentence += f", {which} on the {counted(report.manifest.tuning.images, 'image')} that decided"
        sentence += "."
    return Finding(figure, sentence)


def _worst(report: LotReport) -> Finding:
    images, required = report.manifest.images, report.manifest.required
    worst = report.by_accuracy[0]
    figure = accuracy(worst.correct, images)
    if worst.correct == required:
        difference = "exactly what is required"
    else:
        difference = (
            f"{_points(abs(worst.correct - required), images)} "
            f"{'more' if worst.correct > required else 'less'} than required"
        )
    sure = f"with 95% confidence at least {bound_text(worst.at_least)} of images like these"
    return Finding(figure, f"The worst chip, {worst.id}, gets {figure} right, {difference}; {sure}.")


def _cost(report: LotReport) -> Finding:
    took = report.manifest.totals.iterations
    if not took:
        return Finding("0", "No chip needed to be retrained.")
    compared = []
    for strategy, what in (("fixed", "every chip alike"), ("select", "each chip by itself")):
        cost = report.cost_of(strategy)
        if cost is not None and cost.iterations:
            share = short_percent(took / cost.iterations)
            compared.append(f"{share} of what {strategy} would take ({cost.iterations:,}, {what})")
    sentence = f"Retraining took {counted(took, 'iteration')}"
    if compared:
        sentence += f": {' and '.join(compared)}"
    fixed = report.cost_of("fixed")
    figure = f"{took:,}" if fixed is None or not fixed.iterations else short_percent(took / fixed.iterations)
    return Finding(figure, f"{sentence}.")


def _analysis(report: LotReport) -> Finding:
    spent, hardening = report.analysis_iterations, report.manifest.totals.harden_iterations
    sentence = f"The resilience analysis before it took {counted(spent, 'iteration')}, once for all lots"
    if hardening:
        sentence += f", {hardening:,} of them to harden the network"
    if report.pays_from is None:
        return Finding("-", f"{sentence}; this lot saves nothing over fixed that would pay for it.")
    chips = counted(report.pays_from, "chip")
    return Finding(chips, f"{sentence}; against fixed it pays from {chips} like these on.")


def _verified(report: LotReport) -> Finding:
    chips, images = report.manifest.chips, report.manifest.images
    each = "The chip was" if len(chips) == 1 else f"Each of the {len(chips):,} chips was"
    sentence = f"{each} verified with its own faults, bit for bit, on {counted(images, 'image')} that decided nothing"
    run = f" {report.manifest.work.summary}"
    different = [chip.id for chip in chips if not chip.cycle_same]
    counts = sorted({chip.cycle_images for chip in chips})
    if different:
        verb = "predicts" if len(different) == 1 else "predict"
        return Finding(
            f"{len(different):,} differ",
            f"{sentence}; on the cycle engine {named(different)} {verb} something else: do not trust these results.",
        )
    if counts == [0]:
        sentence += "; the cycle engine was not run"
    else:
        first = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        sentence += f"; the cycle engine predicts the same on the first {first} of them"
    return Finding(f"{len(chips):,} verified", f"{sentence}.{run}")


class _CostRow(NamedTuple):
    """A bar of the comparison of strategies: `more` of its iterations are drawn apart at the end."""

    name: str
    what: str
    kind: str
    iterations: int
    more: int = 0
    out_of_reach: int = 0


class _GroupCard(NamedTuple):
    """What is shown of a group; `others` are chips that are not named."""

    group: ManifestGroup
    picture: str
    chips: Sequence[str]
    others: int
    worst: str
    missing: int


def lot_page(report: LotReport) -> str:
    """The report as HTML that needs nothing else: no network, no script; the same lot gives the same text.

    Args:
        report: the lot.
    """
    manifest, propagation = report.manifest, report.propagation
    rows = report.by_accuracy[:MOST_ROWS]
    costs = list(_cost_rows(report))
    fixed = report.cost_of("fixed")
    commands, not_kept = _commands(report)
    chips = _chip_marks(report)
    judged = manifest.required / manifest.images, manifest.fault_free_correct / manifest.images
    side = max(manifest.array.shape)
    return fill(
        "report.html.jinja",
        manifest.images,
        title=f"Retraining of {PurePath(manifest.lot.path).name or manifest.lot.path}",
        contents=[(name.lower(), name) for name in _SECTIONS if name != "Propagation" or propagation is not None],
        data=report,
        manifest=manifest,
        plan=report.plan,
        table=report.table,
        summary=lot_findings(report),
        chips_chart=chips_chart(
            chips,
            *judged,
            f"Accuracy of {counted(len(chips), 'chip')} by the share of faulty PEs: {manifest.passing:,} reach the "
            f"required {accuracy(manifest.required, manifest.images)}, {len(report.failing):,} do not.",
        ),
        below_axis=below_axis(chips, *judged),
        rows=rows,
        left_out=_left_out(report, rows),
        costs=costs,
        longest=max(1, *(cost.iterations for cost in costs)),
        fixed=0 if fixed is None else fixed.iterations,
        duration=duration(manifest.totals.seconds),
        resilience_chart=_resilience_chart(report),
        amounts_chart=amounts_chart(
            (report.resilience.amounts.severities.tolist(), report.resilience.amounts.amounts.tolist()),
            (report.table.predictors[report.plan.predictor].ravel(), report.resilience.needed.ravel()),
            report.chip_severities,
            [_group_mark(group) for group in manifest.groups],
            SEVERITIES.get(report.plan.predictor, report.plan.predictor),
        ),
        cards=[_card(report, group) for group in report.shown_groups],
        not_shown=_not_shown(report),
        picture_step=-(-side // LARGEST_PICTURE),
        smooth=min(manifest.array.shape) > _SMOOTH,
        section=None if propagation is None else propagation_section(propagation, "h3"),
        commands=commands,
        cautions=not_kept,
        inputs=list(_inputs(report)),
        versions=manifest.versions,
        settings=list(_settings(report)),
    )


def _chip_marks(report: LotReport) -> list[ChipMark]:
    images = report.manifest.images
    return [
        ChipMark(
            chip.faulty_pes / report.pes,
            chip.correct / images,
            "misses" if not chip.passes else "as it is" if chip.group == AS_IS else "meets",
            f"{chip.id}: {accuracy(chip.correct, images)}, {counted(chip.faulty_pes, 'faulty PE')}, {chip.group}",
        )
        for chip in report.manifest.chips
    ]


def _group_mark(group: ManifestGroup) -> GroupMark:
    done = counted(group.iterations, "iteration")
    more = "" if group.planned == group.iterations else f" ({group.planned:,} planned)"
    chips = counted(len(group.chips), "chip")
    title = f"{group.name}: {chips}, severity {short_percent(group.severity)}, {done}{more}"
    return GroupMark(group.severity, group.planned, group.iterations, group.name == AS_IS, title)


def _resilience_chart(report: LotReport) -> Markup:
    table, tuning = report.table, report.manifest.tuning
    # Retraining that diverged leaves nothing that could be used.
    shown = telling_levels(table.levels.tolist(), MOST_LEVELS)
    reached = np.where(np.isnan(table.accuracy), 0.0, table.accuracy)[..., shown]
    marks = tuning.required / tuning.images, tuning.fault_free_correct / tuning.images
    return resilience_chart(table.rates, table.levels[shown].tolist(), reached, *marks)


def _cost_rows(report: LotReport) -> Iterator[_CostRow]:
    """Strategies as predicted, this run as it was, and the resilience analysis."""
    for cost in report.plan.comparison:
        own = (cost.strategy, cost.aligned) == (report.plan.strategy, report.plan.aligned)
        name, what = f"{cost.strategy}{', aligned' if cost.aligned else ''}", _WHAT.get(cost.strategy.split("-")[0], "")
        yield _CostRow(name, what, "own" if own else "", cost.iterations, out_of_reach=cost.out_of_reach)
    totals = report.manifest.totals
    more = totals.top_up_iterations
    what = f"{totals.iterations - more:,} as planned and {more:,} more" if more else "as planned"
    yield _CostRow("executed", what, "done", totals.iterations, more)
    what = f"once for all lots{f', {totals.harden_iterations:,} to harden' if totals.harden_iterations else ''}"
    yield _CostRow("resilience analysis", what, "", report.analysis_iterations)


def _settings(report: LotReport) -> Iterator[tuple[str, str]]:
    """Everything that was set, by its name."""
    plan, table = report.plan, report.table
    yield from flat("", plan.setup.as_dict())
    yield from flat("array.", as_json(plan.array))
    yield from flat("constraint.", plan.constraint.as_dict())
    names = ("required", "images", "strategy", "aligned", "statistic", "predictor", "step", "budget")
    yield from flat("", {name: getattr(plan, name) for name in names})
    analysis = {
        "fault_model": table.fault_model.as_dict(),
        "rates": table.rates.tolist(),
        "levels": table.levels.tolist(),
        "repeats": table.repeats,
        "seed": table.seed,
        "harden_iterations": table.harden_iterations,
    }
    yield from flat("resilience.", analysis)


def _inputs(report: LotReport) -> Iterator[tuple[str, str, str]]:
    """What everything was made from: what it is, where it was, and its digest."""
    manifest, plan = report.manifest, report.plan
    setup = plan.setup.as_dict()
    yield "lot", manifest.lot.path, manifest.lot.sha256
    yield "resilience analysis", str(plan.resilience.path), report.digests[TABLE_NAME]
    yield "plan", PLAN_NAME, report.digests[PLAN_NAME]
    places = {"network": "weights", "training images": "data", "tuning images": "data"}
    yield from identity_inputs(manifest.identity, places, setup)
    judging = setup["split"]["verify_data"] or setup["data"] or f"of {setup['network']}"
    yield "verification images", judging, manifest.verification
    if report.propagation is not None:
        known = {*manifest.identity.values(), manifest.verification}
        yield from (each for each in propagation_inputs(report.propagation) if each[2] not in known)


def _commands(report: LotReport) -> tuple[list[str], list[str]]:
    """The commands that it was made with and those that look at it, and what is said of those that were not kept."""
    network = str(report.plan.setup.network)
    # Commands run no code that only a file names.
    own = ("--network", network) if ":" in network else ()
    found, not_kept = kept(report.commands, "resilience", "plan", "retrain")
    again = [
        "efat",
        "simulate",
        "--manifest",
        f"{report.name}/{MANIFEST_NAME}",
        "--lot",
        report.manifest.lot.path,
        *own,
    ]
    found.append(shell_text(again))
    page = ["efat", "report", f"{report.name}/"]
    if report.propagation is not None:
        tried, missing = kept(report.propagation.commands, "propagate")
        found, not_kept = [*found, *tried], [*not_kept, *missing]
        page += ["--propagation", f"{report.propagation.name}/"]
    return [*found, shell_text(page)], not_kept


def _left_out(report: LotReport, rows: Sequence[ManifestChip]) -> str:
    """What of the chips is not in the table; empty if all are."""
    rest = report.by_accuracy[len(rows) :]
    if not rest:
        return ""
    failing = sum(not chip.passes for chip in rest)
    what = f"{failing:,} of them fail" if failing else "all of them pass"
    least = accuracy(rest[0].correct, report.manifest.images)
    return f"{counted(len(rest), 'further chip')} with {least} or more: {what}. See {MANIFEST_NAME}."


def _not_shown(report: LotReport) -> str:
    """What of the groups is not shown; empty if all are."""
    shown = {group.name for group in report.shown_groups}
    rest = [group for group in report.retrained if group.name not in shown]
    if not rest:
        return ""
    chips, iterations = sum(len(group.chips) for group in rest), sum(group.iterations for group in rest)
    return (
        f"Those with chips that miss the constraint and the largest are shown; the other {len(rest):,} have "
        f"{counted(chips, 'chip')} and took {counted(iterations, 'iteration')}."
    )


def _card(report: LotReport, group: ManifestGroup) -> _GroupCard:
    chips = [report.manifest.chip_named[chip] for chip in group.chips]
    return _GroupCard(
        group=group,
        picture=_picture(report.bypassed[group.name]),
        chips=group.chips[:_NAMED],
        others=max(0, len(chips) - _NAMED),
        worst=accuracy(min(chip.correct for chip in chips), report.manifest.images),
        missing=sum(not chip.passes for chip in chips),
    )


def _picture(bypassed: BoolArray) -> str:
    """The PEs that any of a group's chips bypasses."""
    step = -(-max(bypassed.shape) // LARGEST_PICTURE)
    filled = np.pad(bypassed, [(0, -side % step) for side in bypassed.shape])
    down, across = (side // step for side in filled.shape)
    return bitmap(np.asarray(filled.reshape(down, step, across, step).any(axis=(1, 3))))
