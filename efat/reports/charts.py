"""Charts of a report: how well chips do, resilience, and how much retraining takes.

Each is drawn twice, for wide pages and for phones; the style sheet shows the one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from efat.reports.axes import FONT, NARROW, WIDE, Chart, Point, Scale, Shape, scale_of, spread, width_of
from efat.reports.folder import ReportData
from efat.reports.text import accuracy, counted, short_percent
from efat.resilience.table import telling_levels
from efat.retraining.manifest import AS_IS, ManifestChip, ManifestGroup
from simulator.faults import Float64Array

MOST_LEVELS = 6
"""Levels that are drawn: as many shades as the style sheet has."""

MOST_MARKS = 500
"""Marks that can be pointed at; more are dots of one drawing."""

SEVERITIES = {
    "faulty_pes": "faulty PEs",
    "weights": "weights on bypassed PEs",
    "pruned": "weights pruned",
    "saliency": "squared weights pruned, mean of layers",
}
"""What severity is, by the name of a predictor."""

_ZOOM = 5
"""How much further down the axis of accuracies goes below what is required than it goes up."""


def chips_chart(data: ReportData) -> Markup:
    """Accuracy of each chip by the share of its PEs that are faulty, and what is required."""
    return _both(_draw_chips, data)


def resilience_chart(data: ReportData) -> Markup:
    """Accuracy of random chips by fault rate: the mean and the range of each level."""
    return _both(_draw_resilience, data)


def amounts_chart(data: ReportData) -> Markup:
    """Iterations by severity, and the groups on it: planned and executed."""
    return _both(_draw_amounts, data)


def below_axis(data: ReportData) -> int:
    """Chips that are too far down to be on the chart of chips."""
    low = _chips_accuracies(data).low
    return sum(chip.correct / data.manifest.images < low for chip in data.manifest.chips)


def _both(draw: Callable[[ReportData, Shape], Chart], data: ReportData) -> Markup:
    return Markup("\n").join(draw(data, shape).markup() for shape in (WIDE, NARROW))


def _percent(value: float) -> str:
    return f"{100 * value:.10g}%"


class Marks(NamedTuple):
    """Accuracies that are marked by lines: what is required, and what the network reaches without faults."""

    required: float
    fault_free: float


def _judged(data: ReportData) -> Marks:
    """On the verification images."""
    manifest = data.manifest
    return Marks(manifest.required / manifest.images, manifest.fault_free_correct / manifest.images)


def _decided(data: ReportData) -> Marks:
    """On the tuning images."""
    tuning = data.manifest.tuning
    return Marks(tuning.required / tuning.images, tuning.fault_free_correct / tuning.images)


def _accuracies(values: Float64Array, marks: Marks) -> Scale:
    """An axis that shows what is required well: what is far below it may be left out."""
    required = marks.required
    top = max(float(values.max()), *marks)
    floor = required - _ZOOM * max(top - required, 0.004)
    # At most a tenth of the values are left out.
    low = max(float(values.min()), min(floor, float(np.quantile(values, 0.1))))
    low = min(low, required)
    room = 0.06 * (top - low) or 0.01
    return Scale(max(low - room, -0.01), min(top + room, 1.005))


def _chips_accuracies(data: ReportData) -> Scale:
    return _accuracies(np.array([chip.correct for chip in data.manifest.chips]) / data.manifest.images, _judged(data))


def _lines(chart: Chart, marks: Marks) -> None:
    """What is required, and what a chip without faults reaches."""
    chart.horizontal(marks.fault_free, "free")
    chart.horizontal(marks.required, "required")


def _draw_chips(data: ReportData, shape: Shape) -> Chart:
    manifest, images = data.manifest, data.manifest.images
    shares = [chip.faulty_pes / data.pes for chip in manifest.chips]
    chart = Chart(
        shape,
        f"Accuracy of {counted(len(manifest.chips), 'chip')} by the share of faulty PEs: {manifest.passing:,} reach "
        f"the required {accuracy(manifest.required, images)}, {len(data.failing):,} do not.",
        scale_of(shares, logarithmic=True),
        _chips_accuracies(data),
        x_title="faulty PEs",
        y_title="accuracy on unseen images",
        x_format=_percent,
        y_format=_percent,
    )
    _lines(chart, _judged(data))
    many = {passes: count > MOST_MARKS for passes, count in ((True, manifest.passing), (False, len(data.failing)))}
    as_is = set() if data.as_is is None else set(data.as_is.chips)
    places: dict[tuple[str, str], list[Point]] = {}
    single: list[tuple[str, str, Point, ManifestChip]] = []
    for chip, share in zip(manifest.chips, shares, strict=True):
        value = chip.correct / images
        place = chart.at(share, max(value, chart.y.low))
        kind = "fail" if not chip.passes else "dot as-is" if chip.id in as_is else "dot"
        form = "dot" if chip.passes else "arrow" if value < chart.y.low else "cross"
        if many[chip.passes]:
            places.setdefault((f"{kind} small", "small cross" if form == "cross" else form), []).append(place)
        else:
            single.append((kind, form, place, chip))
    for (kind, form), found in sorted(places.items()):
        chart.marks(found, kind, form)
    # Those that fail last, on top of the others.
    for kind, form, place, chip in sorted(single, key=lambda mark: mark[0]):
        chart.mark(*place, kind, _chip_title(chip, images), form)
    return chart


def _chip_title(chip: ManifestChip, images: int) -> str:
    return f"{chip.id}: {accuracy(chip.correct, images)}, {counted(chip.faulty_pes, 'faulty PE')}, {chip.group}"


def _draw_resilience(data: ReportData, shape: Shape) -> Chart:
    table = data.table
    values = table.accuracy
    # Retraining that diverged leaves nothing that could be used.
    values = np.where(np.isnan(values), 0.0, values)
    levels = telling_levels(table.levels.tolist(), MOST_LEVELS)
    names = [f"{table.levels[level]:,}" for level in levels]
    rates = table.rates.tolist()
    chart = Chart(
        shape,
        "Accuracy of random chips by fault rate after "
        f"{', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]} iterations of retraining.",
        scale_of(rates, logarithmic=True, margin=0.02),
        _accuracies(np.append(values[..., levels].mean(1), table.fault_free_correct / table.images), _decided(data)),
        x_title="fault rate",
        y_title="accuracy on tuning images",
        x_format=_percent,
        y_format=_percent,
        right=20 + max(map(width_of, names)),
    )
    inside = chart.inside()
    shades = [f"level-{round(place)}" for place in np.linspace(0, MOST_LEVELS - 1, len(levels)).tolist()]
    ends = []
    for level, shade in zip(levels, shades, strict=True):
        worst, best, mean = (
            [chart.at(rate, value) for rate, value in zip(rates, found.tolist(), strict=True)]
            for found in (values[..., level].min(1), values[..., level].max(1), values[..., level].mean(1))
        )
        inside.path([*best, *reversed(worst)], f"band {shade}", closed=True)
        inside.path(mean, f"line {shade}")
        if len(rates) == 1:
            inside.marks(mean, f"dot {shade}")
        ends.append(mean[-1][1])
    _lines(chart, _decided(data))
    chart.text(shape.width, FONT, "iterations", "axis end")
    for end, place, name, shade in zip(
        ends, spread(ends, FONT + 2, chart.top, chart.bottom - 2), names, shades, strict=True
    ):
        chart.path([(chart.right + 2, min(end, chart.bottom)), (chart.right + 14, place)], f"leader {shade}")
        chart.text(chart.right + 18, place + 4.5, name, "tick")
    return chart


def _draw_amounts(data: ReportData, shape: Shape) -> Chart:
    severities, amounts = data.resilience.amounts.severities.tolist(), data.resilience.amounts.amounts.tolist()
    groups = data.manifest.groups
    measured = data.table.predictors[data.plan.predictor].ravel().tolist()
    finite = [amount for amount in amounts if math.isfinite(amount)]
    places = [place for place in [*severities, *measured, *(group.severity for group in groups)] if place > 0]
    chart = Chart(
        shape,
        f"Iterations of retraining by severity, and {counted(len(groups), 'group')} of chips on it.",
        scale_of(places or [1.0], logarithmic=True),
        Scale(0, 1.08 * max(1, *finite, *(max(group.planned, group.iterations) for group in groups))),
        x_title=f"severity: {SEVERITIES.get(data.plan.predictor, data.plan.predictor)}",
        y_title="iterations",
        x_format=_percent,
        y_format=lambda value: f"{value:,.10g}",
    )
    x = chart.x
    steps: list[Point] = [chart.at(x.low, amounts[0])] if finite else []
    for place, amount, following in zip(severities, finite, [*finite[1:], None], strict=False):
        steps.append(chart.at(max(place, x.low), amount))
        if following is not None:
            steps.append(chart.at(max(place, x.low), following))
    edge = steps[-1][0] if steps else chart.left
    if edge < chart.right - 1:
        corners = [(edge, chart.top), (chart.right, chart.top), (chart.right, chart.bottom), (edge, chart.bottom)]
        chart.path(corners, "beyond", closed=True)
        chart.text(chart.right, chart.top - 6, "out of reach", "note end")
    chart.marks(
        [
            chart.at(max(place, x.low), needed)
            for place, needed in zip(measured, data.resilience.needed.ravel().tolist(), strict=True)
            if math.isfinite(needed)
        ],
        "dot small measured",
    )
    if steps:
        chart.path(steps, "line step")
    chart.marks([chart.at(max(place, x.low), 0) for place in data.chip_severities], "rug", "rug")
    _draw_groups(chart, data)
    return chart


def _draw_groups(chart: Chart, data: ReportData) -> None:
    groups = data.manifest.groups
    places = [max(group.severity, chart.x.low) for group in groups]
    done = [chart.at(place, group.iterations) for place, group in zip(places, groups, strict=True)]
    planned = [chart.at(place, group.planned) for place, group in zip(places, groups, strict=True)]
    chart.stems([ends for ends in zip(planned, done, strict=True) if ends[0] != ends[1]], "topped")
    if len(groups) > MOST_MARKS:
        chart.marks(done, "dot small")
        return
    for place, group in zip(done, groups, strict=True):
        chart.mark(*place, "dot as-is" if group.name == AS_IS else "dot", _group_title(group))


def _group_title(group: ManifestGroup) -> str:
    done = counted(group.iterations, "iteration")
    more = "" if group.planned == group.iterations else f" ({group.planned:,} planned)"
    return f"{group.name}: {counted(len(group.chips), 'chip')}, severity {short_percent(group.severity)}, {done}{more}"
