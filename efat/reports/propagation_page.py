"""The report on fault propagation as a page of its own, or as a section of a lot's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from efat.campaigns.command import shell_text
from efat.propagation.columns import PATTERNS
from efat.propagation.heat import heat_maps
from efat.propagation.shares import ENDINGS, MOST_PLACES, LayerFate, bit_shares
from efat.reports.propagation import (
    PropagationReport,
    propagation_commands,
    propagation_inputs,
)
from efat.reports.propagation_charts import THRESHOLDS, bits_chart, heat_chart, manner, net
from efat.reports.propagation_text import (
    ENDS,
    collapse_rows,
    effect_rows,
    fate_text,
    interval_text,
    pattern_rows,
    propagation_findings,
)
from efat.reports.settings import flat
from efat.reports.templates import fill, write_text
from efat.reports.text import counted, short_percent

MOST_ROWS = 2000
"""Bits in the table; the rest are counted."""

_TEMPLATE = "propagation.html.jinja"
_SECTIONS = (
    ("faults-by-net", "Nets"),
    ("faults-by-bit", "Bits"),
    ("faults-by-place", "Places"),
    ("faults-by-layer", "Layers"),
    ("collapsed", "What need not be tried"),
    ("strata", "Table"),
    ("reproduce", "Reproduce"),
)


@dataclass(frozen=True)
class FateBar:
    """What becomes of differences that leave a layer, as a bar.

    Args:
        name: of the layer.
        differences: images whose accumulators differ, for each fault that was tried.
        text: the same in words.
        parts: class, beginning and width of each part, of 1000.
    """

    name: str
    differences: int
    text: str
    parts: list[tuple[str, float, float]]


def write_propagation_page(report: PropagationReport, path: Path) -> None:
    """Write the report in one piece; the same campaign gives the same bytes.

    Args:
        report: the campaign.
        path: the file; its folder is there.
    """
    write_text(render_propagation(report), path)


def render_propagation(report: PropagationReport) -> str:
    """The report as HTML that needs nothing else: no network, no script.

    Args:
        report: the campaign.
    """
    found = report.propagation
    section = propagation_section(report, "h2")
    commands, not_kept = propagation_commands(report)
    shown = [(name, title) for name, title in _SECTIONS if name not in _left_out(section)]
    return fill(
        _TEMPLATE,
        found.images,
        title=f"Fault propagation in {report.network}",
        contents=shown,
        summary=section["findings"],
        found=report,
        section=section,
        commands=[*commands, shell_text(["efat", "report", f"{report.name}/"])],
        cautions=not_kept,
        inputs=list(propagation_inputs(report)),
        versions=found.versions,
        settings=[
            *flat("array.", found.array),
            *flat("", {name: value for name, value in found.subject.items() if name != "identity"}),
            *flat("", found.request),
        ],
    )


def propagation_section(report: PropagationReport, heading: str) -> dict[str, Any]:
    """What the template of the section shows.

    Args:
        report: the campaign.
        heading: tag of its headings, `h2` or `h3`.
    """
    bits = bit_shares(report.estimates, MOST_PLACES)
    nets = list(dict.fromkeys(share.site for share in bits))
    top = 1.06 * max((share.avf.high for share in bits), default=1.0)
    maps = heat_maps(report.estimates)
    return {
        "heading": heading,
        "findings": propagation_findings(report),
        "images": report.propagation.images,
        "sampled": _sampled(report),
        "confidence": f"{100 * report.confidence:g}%",
        "effects": effect_rows(report),
        "transient": report.transient,
        "bits_charts": [(net(site), bits_chart([share for share in bits if share.site is site], top)) for site in nets],
        "manners": {manner(share.kind) for share in bits},
        "heat_charts": [(heat, heat_chart(heat)) for heat in maps],
        "with_accumulators": any(not np.isnan(heat.accumulators).all() for heat in maps),
        "shades": list(enumerate(_shades())),
        "fates": list(map(_bar, report.fates)),
        "endings": [*ENDS.items(), ("carried", "nothing: it goes on")],
        "patterns": PATTERNS,
        "pattern_rows": pattern_rows(report),
        "collapse": collapse_rows(report),
        "strata": report.strata[:MOST_ROWS],
        "strata_left_out": _strata_left_out(report),
        "net": net,
        "manner": manner,
        "interval": interval_text,
    }


def _left_out(section: dict[str, Any]) -> set[str]:
    """Parts that there is nothing to show of."""
    charts = {"faults-by-bit": section["bits_charts"], "faults-by-place": section["heat_charts"]}
    return {name for name, shown in charts.items() if not shown}


def _sampled(report: PropagationReport) -> str:
    tried, of = len(report.propagation.faults), report.propagation.population["size"]
    what = "upsets of one bit in one clock cycle" if report.transient else "single faults of the array"
    if tried == of:
        return f"All {of:,} {what} were tried, each by itself, on {_images(report)}."
    stratified = ", each kind of bit with its part" if report.propagation.stratified else ""
    return (
        f"{tried:,} of {of:,} {what} were drawn at random{stratified}, and tried each by itself on {_images(report)}."
    )


def _images(report: PropagationReport) -> str:
    images = counted(report.propagation.images, "image")
    return f"one of {images}" if report.transient else images


def _shades() -> Iterator[str]:
    ends = [f"{100 * threshold:g}%" for threshold in THRESHOLDS]
    yield "none"
    yield f"up to {ends[1]}"
    for low, high in pairwise(ends[1:]):
        yield f"{low} to {high}"
    yield f"more than {ends[-1]}"


def _bar(fate: LayerFate) -> FateBar:
    if not fate.differences:
        return FateBar(fate.name, 0, "no fault that was tried changes anything here", [])
    parts, start = [], 0.0
    for name, share in [*((name, fate.ended[name]) for name in ENDINGS), ("carried", fate.carried)]:
        if share > 0:
            parts.append((name, start, 1000 * share))
        start += 1000 * share
    words = fate_text([(ENDS[name], fate.ended[name]) for name in ENDINGS])
    return FateBar(fate.name, fate.differences, words or "all go on", parts)


def _strata_left_out(report: PropagationReport) -> str:
    """What of the bits is not in the table; empty if all are."""
    rest = report.strata[MOST_ROWS:]
    if not rest:
        return ""
    return f"{counted(len(rest), 'further row')} with {short_percent(rest[0].avf.value)} or less: see propagation.h5."
