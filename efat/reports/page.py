"""The report on a retrained lot as a page: what its template shows, and the page itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from efat.campaigns.command import kept, shell_text
from efat.figures.bitmaps import data_uri, png
from efat.json_fields import SHA256
from efat.reports.charts import amounts_chart, below_axis, chips_chart, resilience_chart
from efat.reports.folder import PLAN_NAME, ReportData
from efat.reports.propagation import (
    PropagationReport,
    check_same_lot,
    propagation_commands,
    propagation_inputs,
)
from efat.reports.propagation_page import propagation_section
from efat.reports.settings import flat, plain
from efat.reports.templates import fill, write_text
from efat.reports.text import accuracy, counted, duration, short_percent, summary
from efat.resilience.table import FILE_NAME as TABLE_NAME
from efat.retraining.manifest import FILE_NAME, ManifestChip, ManifestGroup
from simulator.faults import BoolArray

MOST_ROWS = 2000
"""Chips in the table; the rest are counted."""

LARGEST_PICTURE = 256
"""Pixels along a side of a group's picture; a pixel of a larger array stands for several PEs."""

_TEMPLATE = "report.html.jinja"
_PROPAGATION = "Propagation"
_SECTIONS = ("Chips", "Cost", "Resilience", "Groups", _PROPAGATION, "Reproduce")
_NAMED = 6
_SMOOTH = 96
"""From this side on pictures are scaled down, not up."""

_COLOR = (64, 120, 205)
"""Of bypassed PEs, in both themes."""

_WHAT = {
    "fixed": "each chip alone, all for as long as the worst takes",
    "select": "each chip alone, for as long as it needs",
    "merge": "so many chips at a time, as they come",
    "efat": "chips together where that saves iterations",
}


@dataclass(frozen=True)
class CostRow:
    """A bar of the comparison of strategies.

    Args:
        name: of the strategy.
        what: what that is.
        kind: class of the bar.
        iterations: its length.
        more: of them, those drawn apart at the end: top-ups.
        share: of the iterations of `fixed`, as text; empty if there is nothing to compare with.
        out_of_reach: chips that it is predicted not to be enough for.
    """

    name: str
    what: str
    kind: str
    iterations: int
    more: int
    share: str
    out_of_reach: int = 0


@dataclass(frozen=True)
class GroupCard:
    """What is shown of a group.

    Args:
        group: from the manifest.
        picture: an address that holds it.
        chips: some of their ids.
        others: how many more there are.
        worst: accuracy of its worst chip.
        missing: chips that miss the constraint.
    """

    group: ManifestGroup
    picture: str
    chips: Sequence[str]
    others: int
    worst: str
    missing: int


def write_page(data: ReportData, path: Path, propagation: PropagationReport | None = None) -> None:
    """Write the report in one piece; the same lot gives the same bytes.

    Args:
        data: the lot.
        path: the file; its folder is there.
        propagation: what single faults of its array do; None to leave it out.

    Raises:
        InputError: that is of another array or network.
    """
    write_text(render(data, propagation), path)


def render(data: ReportData, propagation: PropagationReport | None = None) -> str:
    """The report as HTML that needs nothing else: no network, no script.

    Args:
        data: the lot.
        propagation: as for `write_page`.

    Raises:
        InputError: as `write_page`.
    """
    if propagation is not None:
        check_same_lot(propagation, data)
    manifest = data.manifest
    rows = data.by_accuracy[:MOST_ROWS]
    costs = cost_rows(data)
    lot_name = PurePath(manifest.lot.path).name or manifest.lot.path
    commands, not_kept = _commands(data, propagation)
    return fill(
        _TEMPLATE,
        manifest.images,
        title=f"Retraining of {lot_name}",
        contents=[(name.lower(), name) for name in _SECTIONS if name != _PROPAGATION or propagation is not None],
        data=data,
        manifest=manifest,
        plan=data.plan,
        table=data.table,
        summary=summary(data),
        chips_chart=chips_chart(data),
        below_axis=below_axis(data),
        rows=rows,
        left_out=_left_out(data, rows),
        costs=costs,
        longest=max(1, *(cost.iterations for cost in costs)),
        duration=duration(manifest.totals.seconds),
        resilience_chart=resilience_chart(data),
        amounts_chart=amounts_chart(data),
        cards=[_card(data, group) for group in data.shown_groups],
        not_shown=_not_shown(data),
        picture_step=_picture_step(manifest.array),
        smooth=min(manifest.array["rows"], manifest.array["cols"]) > _SMOOTH,
        section=None if propagation is None else propagation_section(propagation, "h3"),
        commands=commands,
        cautions=not_kept,
        inputs=[*_inputs(data), *_propagation_inputs(data, propagation)],
        versions=manifest.versions,
        settings=list(settings(data)),
    )


def cost_rows(data: ReportData) -> list[CostRow]:
    """The bars of the comparison: strategies as predicted, this run as it was, and the resilience analysis."""
    fixed = data.cost_of("fixed")

    def share(iterations: int) -> str:
        return "" if fixed is None or not fixed.iterations else short_percent(iterations / fixed.iterations)

    rows = []
    for cost in data.plan.comparison:
        own = (cost.strategy, cost.aligned) == (data.plan.strategy, data.plan.aligned)
        rows.append(
            CostRow(
                name=f"{cost.strategy}{', aligned' if cost.aligned else ''}",
                what=_WHAT.get(cost.strategy.split("-")[0], ""),
                kind="own" if own else "",
                iterations=cost.iterations,
                more=0,
                share=share(cost.iterations),
                out_of_reach=cost.out_of_reach,
            )
        )
    totals = data.manifest.totals
    more = totals.top_up_iterations
    what = f"{totals.iterations - more:,} as planned and {more:,} more" if more else "as planned"
    rows.append(CostRow("executed", what, "done", totals.iterations, more, share(totals.iterations)))
    spent = data.analysis_iterations
    what = f"once for all lots{f', {totals.harden_iterations:,} to harden' if totals.harden_iterations else ''}"
    rows.append(CostRow("resilience analysis", what, "", spent, 0, share(spent)))
    return rows


def settings(data: ReportData) -> Iterator[tuple[str, str]]:
    """Everything that was set, by its name."""
    plan, table = data.plan, data.table
    yield from flat("", plan.setup.as_dict())
    yield from flat("array.", plan.array)
    yield from flat("constraint.", plan.constraint.as_dict())
    for name in ("required", "images", "strategy", "aligned", "statistic", "predictor", "step", "budget"):
        yield name, plain(getattr(plan, name))
    yield from flat("resilience.fault_model.", table.fault_model)
    yield "resilience.rates", plain(table.rates.tolist())
    yield "resilience.levels", plain(table.levels.tolist())
    yield "resilience.repeats", plain(table.repeats)
    yield "resilience.seed", plain(table.seed)
    yield "resilience.harden_iterations", plain(table.harden_iterations)


def _inputs(data: ReportData) -> Iterator[tuple[str, str, str]]:
    """What everything was made from: what it is, where it was, and its digest."""
    manifest, plan = data.manifest, data.plan
    setup = plan.setup.as_dict()
    yield "lot", manifest.lot.path, manifest.lot.sha256
    yield "resilience analysis", str(plan.resilience.path), data.digests[TABLE_NAME]
    yield "plan", PLAN_NAME, data.digests[PLAN_NAME]
    places = {"network": "weights", "training images": "data", "tuning images": "data"}
    for name, text in manifest.identity.items():
        # What is no digest is among the settings.
        if SHA256.fullmatch(text):
            place = setup[places[name]] if name in places else None
            yield name, place or f"of {setup['network']}", text
    judging = setup["split"]["verify_data"] or setup["data"] or f"of {setup['network']}"
    yield "verification images", judging, manifest.verification


def _commands(data: ReportData, propagation: PropagationReport | None) -> tuple[list[str], list[str]]:
    """The commands that it was made with and those that look at it, and what is said of those that were not kept."""
    network = str(data.plan.setup.network)
    # Commands run no code that only a file names.
    own = ("--network", network) if ":" in network else ()
    found, not_kept = kept(data.commands, "resilience", "plan", "retrain")
    found.append(
        shell_text(
            ["efat", "simulate", "--manifest", f"{data.name}/{FILE_NAME}", "--lot", data.manifest.lot.path, *own]
        )
    )
    report = ["efat", "report", f"{data.name}/"]
    if propagation is not None:
        tried, missing = propagation_commands(propagation)
        found, not_kept = [*found, *tried], [*not_kept, *missing]
        report += ["--propagation", f"{propagation.name}/"]
    return [*found, shell_text(report)], not_kept


def _propagation_inputs(data: ReportData, propagation: PropagationReport | None) -> Iterator[tuple[str, str, str]]:
    """Those that are not the lot's."""
    known = {digest for _, _, digest in _inputs(data)}
    for what, where, digest in () if propagation is None else propagation_inputs(propagation):
        if digest not in known:
            yield what, where, digest


def _left_out(data: ReportData, rows: Sequence[ManifestChip]) -> str:
    """What of the chips is not in the table; empty if all are."""
    rest = data.by_accuracy[len(rows) :]
    if not rest:
        return ""
    failing = sum(not chip.passes for chip in rest)
    what = f"{failing:,} of them fail" if failing else "all of them pass"
    least = accuracy(rest[0].correct, data.manifest.images)
    return f"{counted(len(rest), 'further chip')} with {least} or more: {what}. See {FILE_NAME}."


def _not_shown(data: ReportData) -> str:
    """What of the groups is not shown; empty if all are."""
    shown = {group.name for group in data.shown_groups}
    rest = [group for group in data.retrained if group.name not in shown]
    if not rest:
        return ""
    chips, iterations = sum(len(group.chips) for group in rest), sum(group.iterations for group in rest)
    return (
        f"Those with chips that miss the constraint and the largest are shown; the other {len(rest):,} have "
        f"{counted(chips, 'chip')} and took {counted(iterations, 'iteration')}."
    )


def _card(data: ReportData, group: ManifestGroup) -> GroupCard:
    chips = [data.manifest.chip_named[chip] for chip in group.chips]
    return GroupCard(
        group=group,
        picture=_picture(data.bypassed[group.name]),
        chips=group.chips[:_NAMED],
        others=max(0, len(chips) - _NAMED),
        worst=accuracy(min(chip.correct for chip in chips), data.manifest.images),
        missing=sum(not chip.passes for chip in chips),
    )


def _picture(bypassed: BoolArray) -> str:
    """The PEs that any of a group's chips bypasses."""
    rows, cols = bypassed.shape
    step = -(-max(rows, cols) // LARGEST_PICTURE)
    filled = np.zeros((-(-rows // step) * step, -(-cols // step) * step), np.bool_)
    filled[:rows, :cols] = bypassed
    blocks = filled.reshape(filled.shape[0] // step, step, filled.shape[1] // step, step)
    return data_uri(png(np.asarray(blocks.any(axis=(1, 3))), _COLOR))


def _picture_step(array: Mapping[str, Any]) -> int:
    return -(-int(max(array["rows"], array["cols"])) // LARGEST_PICTURE)
