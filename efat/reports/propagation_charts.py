"""Charts of fault propagation in a report: where on the array faults matter, and which bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from efat.propagation.heat import HeatMap
from efat.propagation.shares import BitShare
from efat.reports.axes import FONT, Box, Chart, Layer, Point, Scale, Shape, WholeScale, number, width_of
from efat.reports.text import counted, short_percent
from simulator import Kind, Site
from simulator.faults import Float64Array

THRESHOLDS = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Shares above which a cell has the next of the shades that the style sheet has: the first is of shares of 0."""

PANEL = Shape("panel", 380, 250)
"""Several of them are side by side where there is room."""

FORMS = {Kind.STUCK_AT_0: "dot", Kind.STUCK_AT_1: "square", Kind.FLIP: "triangle"}
"""Marks by kind of fault, told apart without colours; the style sheet has a colour for each."""

_WIDTH = 340.0
"""Of a heat map, in units; as the style sheet has it."""
_TALLEST = 420.0
_HEAD = 22.0
_GAP = 8.0


def heat_chart(heat: HeatMap) -> Markup:
    """The array from above, each cell in the shade of its share; cells without samples are left blank."""
    down, across = heat.cells.shape
    below = not np.isnan(heat.accumulators).all()
    left = 8 + max(width_of(f"{heat.rows - 1}"), width_of("0"))
    side = min((_WIDTH - left - 2) / across, (_TALLEST - _HEAD) / (down + below))
    right, bottom = left + side * across, _HEAD + side * down
    height = bottom + (_GAP + side + FONT if below else 0) + 6
    root = ElementTree.Element(
        "svg",
        {
            "class": "chart heat",
            "viewBox": f"0 0 {number(_WIDTH)} {number(height)}",
            "role": "img",
            "aria-label": _heat_label(heat),
        },
    )
    layer = Layer(root)
    _draw_cells(layer, heat.cells, (left, _HEAD), side)
    if below:
        _draw_cells(layer, heat.accumulators[None], (left, bottom + _GAP), side)
        layer.text(left, bottom + _GAP + side + FONT, "accumulators", "tick")
    layer.text(left, FONT, "0", "tick")
    layer.text(left - 6, _HEAD + FONT - 2, "0", "tick end")
    if right - left > 2 * width_of(f"{heat.cols - 1}") and heat.cols > 1:
        layer.text(right, FONT, f"{heat.cols - 1}", "tick end")
    if bottom - _HEAD > 2 * FONT + 4 and heat.rows > 1:
        layer.text(left - 6, bottom, f"{heat.rows - 1}", "tick end")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def bits_chart(shares: Sequence[BitShare], top: float) -> Markup:
    """Shares of images whose top-1 changes, by bit of one net, with their intervals.

    Args:
        shares: of each bit and kind of fault, one or more, all of the same net.
        top: where the axis of shares ends; the same for all nets, so that they can be compared.
    """
    first, last = min(share.first for share in shares), max(share.last for share in shares)
    kinds = [kind for kind in Kind if any(share.kind is kind for share in shares)]
    site = shares[0].site
    chart = Chart(
        PANEL,
        f"Share of images whose top-1 changes by bit of {net(site)}: {_worst(shares)}.",
        WholeScale(first - 0.7, last + 0.7),
        Scale(0, max(top, 1e-6)),
        x_title="location in the multiplier" if site is Site.MULTIPLIER else "bit",
        y_title="top-1 changes",
        x_format=lambda value: f"{value:,.10g}",
        y_format=lambda value: f"{100 * value:.10g}%",
    )
    step = max(share.last - share.first + 1 for share in shares)
    for place_of_kind, kind in enumerate(kinds):
        found = [share for share in shares if share.kind is kind]
        # Beside each other, as intervals would hide each other.
        apart = 0.3 * step * (place_of_kind - (len(kinds) - 1) / 2)
        name = kind.name.lower().replace("_", "-")
        places = [(share.first + share.last) / 2 + apart for share in found]
        ends: list[tuple[Point, Point]] = [
            (chart.at(place, share.avf.low), chart.at(place, share.avf.high))
            for place, share in zip(places, found, strict=True)
        ]
        chart.inside().stems(ends, f"interval {name}")
        for place, share in zip(places, found, strict=True):
            chart.mark(*chart.at(place, share.avf.value), f"mark {name}", _mark_title(share), FORMS[kind])
    return chart.markup()


def shade(share: float) -> int:
    """The number of the shade of a share: 0 for none, otherwise how many of `THRESHOLDS` are below it."""
    return sum(share > threshold for threshold in THRESHOLDS)


def net(site: Site) -> str:
    """A site, for people."""
    return site.name.lower().replace("_", " ")


def manner(kind: Kind) -> str:
    """A kind of fault, for people: `stuck at 0`, `stuck at 1` or `flip`."""
    return kind.name.lower().replace("_", " ")


def _mark_title(share: BitShare) -> str:
    return (
        f"bit {share.bits}, {manner(share.kind)}: {short_percent(share.avf.value)}, "
        f"{short_percent(share.avf.low)} to {short_percent(share.avf.high)}, {counted(share.faults, 'fault')}"
    )


def _worst(shares: Sequence[BitShare]) -> str:
    worst = max(shares, key=lambda share: share.avf.value)
    if worst.avf.value == 0:
        return "none for any of them"
    return f"at most {short_percent(worst.avf.value)} of what was tried, of bit {worst.bits}, {manner(worst.kind)}"


def _heat_label(heat: HeatMap) -> str:
    label = (
        f"Share of images whose top-1 changes by place on the array, {heat.rows} rows and {heat.cols} columns, of "
        f"{heat.kinds}: "
    )
    if np.isnan(heat.cells).all():
        return f"{label}at most {short_percent(heat.largest)}, all at accumulators."
    row, col = divmod(int(np.nanargmax(heat.cells)), heat.cells.shape[1])
    where = f"from row {row * heat.step}, column {col * heat.step} on" if heat.step > 1 else f"row {row}, column {col}"
    return f"{label}at most {short_percent(float(np.nanmax(heat.cells)))}, {where}."


def _draw_cells(layer: Layer, cells: Float64Array, corner: Point, side: float) -> None:
    """Cells of an area in their shades, and a frame; neighbours of one shade in a row are one box."""
    left, top = corner
    found: dict[str, list[Box]] = {}
    for row, shares in enumerate(cells.tolist()):
        col = 0
        for shown, run in groupby(None if np.isnan(share) else shade(share) for share in shares):
            width = len(list(run))
            if shown is not None:
                box = (left + col * side, top + row * side, width * side, side)
                found.setdefault(f"heat-{shown}", []).append(box)
            col += width
    for kind, boxes in sorted(found.items()):
        layer.boxes(boxes, kind)
    down, across = cells.shape
    right, bottom = left + side * across, top + side * down
    layer.path([(left, top), (right, top), (right, bottom), (left, bottom)], "frame", closed=True)
