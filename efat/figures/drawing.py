"""What all figures have in common: colours, axes, and how they are saved, as PNG files or as SVG in a page.

A colour is drawn as it is on light ground. In a page it is a variable of the style sheet, which has another one for
dark ground. Texts stay texts there, in the font of the page.
"""

from __future__ import annotations

import io
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from simulator.dtypes import BoolArray, Float64Array
from simulator.files import replaced

COLORS = {
    "page": ("#ffffff", "#14171a"),
    "panel": ("#f5f6f7", "#1c2024"),
    "rule": ("#dfe2e6", "#343a41"),
    "ink": ("#1c2126", "#e4e7ea"),
    "quiet": ("#59626c", "#a0a9b2"),
    "accent": ("#1f5fb8", "#7fb2f5"),
    "bad": ("#b3261e", "#ff8b7e"),
    "bar": ("#a9b4c0", "#5c6772"),
    "wash": ("#5b6b7c", "#a9bccf"),
    "one": ("#b3520a", "#f2a65a"),
    "flip": ("#4d565f", "#c3cad1"),
    "relu": ("#d98a2b", "#c98a3e"),
    "pooling": ("#3f8f5f", "#57a878"),
    "other": ("#8a63a8", "#a684c2"),
    "carried": ("#d3d8de", "#3f474f"),
    "heat-0": ("#e9ecef", "#2a3036"),
    "heat-1": ("#bcd6f2", "#1f4068"),
    "heat-2": ("#86b4e6", "#2a5f9a"),
    "heat-3": ("#4a8ad4", "#4287d0"),
    "heat-4": ("#1f5aad", "#86b6f3"),
    "heat-5": ("#0c2a5c", "#e0eeff"),
    "level-0": ("#7d8894", "#78838e"),
    "level-1": ("#6987ad", "#6c8db8"),
    "level-2": ("#4f83c4", "#6f9edb"),
    "level-3": ("#2f6fc4", "#86b6f3"),
    "level-4": ("#1f55a6", "#b0d1fb"),
    "level-5": ("#12366f", "#e0eeff"),
}
"""On light and on dark ground, by the name of their variable; those on light ground all differ."""

WIDE, NARROW = (800, 360), (340, 300)
"""Width and height of the charts of a page, in pixels: for wide ones, and for phones."""

FONT = 13
"""Height of texts in a page, in pixels."""

MOST_MARKS = 500
"""Marks that can be pointed at; more are drawn as one line."""

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,
}
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}
_PAGE_STYLE: dict[Any, Any] = _STYLE | {
    "axes.edgecolor": COLORS["quiet"][0],
    "axes.spines.left": False,
    "font.size": FONT,
    "grid.color": COLORS["rule"][0],
    "grid.linewidth": 1,
    "path.simplify": False,
    "svg.fonttype": "none",
    "text.color": COLORS["quiet"][0],
    "xtick.color": COLORS["quiet"][0],
    "xtick.major.size": 5,
    "xtick.major.width": 1,
    "ytick.color": COLORS["quiet"][0],
    "ytick.major.pad": 8,
    "ytick.major.size": 0,
}
_LEFT, _TOP, _BOTTOM = 54, 34, 48
_KEPT = ("fill", "stroke", "opacity", "text-anchor")
"""Beginnings of properties that a page takes from a figure; fonts are those of the page."""


def color(name: str) -> str:
    """A colour of `COLORS`, as it is on light ground."""
    return COLORS[name][0]


@contextmanager
def png_figure(path: Path, width: float, height: float, *, dpi: int = 120, fitted: bool = True) -> Iterator[Figure]:
    """A figure to draw in; at the end it is saved.

    Args:
        path: PNG file; it appears, or replaces an older one, only when it is complete.
        width: in inches.
        height: in inches.
        dpi: pixels in an inch.
        fitted: find margins by drawing it, which takes time.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained" if fitted else None)
        FigureCanvasAgg(figure)
        yield figure
        with replaced(path) as beside:
            figure.savefig(beside, format="png", dpi=dpi)


def page_figure(draw: Callable[[Figure], None], size: tuple[int, int], label: str, kind: str) -> Markup:
    """A figure as SVG for a page; the same drawing gives the same text.

    Args:
        draw: draws in it; a point (1/72 inch) is a pixel.
        size: width and height in pixels.
        label: what it shows, for those who do not see it.
        kind: its class in the style sheet.
    """
    with matplotlib.rc_context(_PAGE_STYLE | {"svg.hashsalt": f"{kind} {label}"}):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        draw(figure)
        content = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=nothing, transparent=True)
    found = ElementTree.fromstring(content.getvalue())
    root = ElementTree.Element(
        "svg", {"class": f"chart {kind}", "viewBox": found.attrib["viewBox"], "role": "img", "aria-label": label}
    )
    used = set(re.findall(r"#([\w-]+)[\")]", content.getvalue().decode()))
    for part in found:
        _adopt(part, root, used)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def chart(draw: Callable[[Axes], None], label: str, x_title: str, y_title: str, right: int = 14) -> Markup:
    """A chart with axes as SVG, once for wide pages and once for phones: the style sheet shows the one that fits.

    Args:
        draw: draws in the axes, and sets their limits and ticks; see `scale` and `percent_axis`.
        label: as for `page_figure`.
        x_title: what is along the horizontal axis.
        y_title: what is along the vertical axis.
        right: pixels to leave free at the right, for labels.
    """
    return Markup("\n").join(
        page_figure(lambda figure: draw(page_axes(figure, x_title, y_title, right)), size, label, kind)
        for size, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    )


def page_axes(figure: Figure, x_title: str, y_title: str, right: int = 14) -> Axes:
    """Axes with a grid of horizontal lines, and their titles; arguments as for `chart`."""
    width, height = figure.get_size_inches() * 72
    room = (_LEFT / width, _BOTTOM / height, (width - _LEFT - right) / width, (height - _TOP - _BOTTOM) / height)
    axes = figure.add_axes(room)
    axes.grid(axis="y")
    figure.text(0, 1 - FONT / height, y_title, weight="bold")
    figure.text((room[0] + room[2] / 2), 6 / height, x_title, weight="bold", ha="center")
    return axes


def pixels(axes: Axes) -> tuple[float, float]:
    """Width and height of axes in a page."""
    box = axes.get_window_extent()
    return float(box.width), float(box.height)


def percent(value: float, _: object = None) -> str:
    """Text of a tick."""
    return f"{100 * value:.10g}%"


def scale(axes: Axes, values: Sequence[float], margin: float = 0.04) -> None:
    """A horizontal axis of shares with room for all values and a margin; logarithmic if they span a factor of 8."""
    low, high = min(values), max(values)
    logarithmic = low > 0 and high >= 8 * low
    if logarithmic:
        factor = (high / low) ** margin
        low, high = low / factor, high * factor
        axes.set_xscale("log")
    else:
        if high == low:
            low, high = low - abs(low) / 10, high + (abs(high) / 10 or 0.5)
        more = margin * (high - low)
        low, high = low - more, high + more
    axes.set_xlim(low, high)
    ticks = _ticks(low, high, logarithmic, max(2, int(pixels(axes)[0] / 62)))
    axes.set_xticks(ticks, [percent(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def share_axis(axes: Axes, low: float, high: float) -> None:
    """A vertical axis of shares."""
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(percent)


def accuracy_limits(values: Float64Array, required: float, fault_free: float) -> tuple[float, float]:
    """Ends of an axis that shows what is required well: what is far below it may be left out.

    Args:
        values: accuracies to show; at most a tenth of them is left out.
        required: of a chip.
        fault_free: of a chip without faults.
    """
    top = max(float(values.max()), required, fault_free)
    # It goes five times as far below what is required as above.
    floor = required - 5 * max(top - required, 0.004)
    low = min(required, max(float(values.min()), min(floor, float(np.quantile(values, 0.1)))))
    room = 0.06 * (top - low) or 0.01
    return max(low - room, -0.01), min(top + room, 1.005)


def reference_lines(axes: Axes, required: float, fault_free: float) -> None:
    """What is required, and what a chip without faults reaches."""
    how = {"linewidth": 1.5, "zorder": 2.5}
    axes.axhline(fault_free, color=color("quiet"), dashes=(0.67, 2.67), dash_capstyle="round", **how)
    axes.axhline(required, color=color("ink"), dashes=(4, 2.7), **how)


def mark(axes: Axes, x: Sequence[float], y: Sequence[float], titles: Sequence[str] | None = None, **how: Any) -> None:
    """Marks at places; in a page each has a title for those who point at it, if there are any titles.

    Args:
        axes: to draw in.
        x: places.
        y: places.
        titles: one for each.
        how: as `matplotlib.lines.Line2D` takes it: marker, color, size and so on.
    """
    how = {"clip_on": False, "zorder": 3, "markeredgewidth": 0, "markersize": 7, "marker": "o", **how}
    axes.add_line(Line2D(x, y, linestyle="", gid=None if titles is None else json.dumps(list(titles)), **how))


def dots(axes: Axes, x: Sequence[float], y: Sequence[float], size: float, name: str) -> None:
    """Many dots as one line, those at the same place once."""
    places = np.unique(np.stack([x, y], axis=1), axis=0) if len(x) else np.zeros((0, 2))
    # Parts of a line without length have round ends.
    broken = np.stack([places, places, np.full_like(places, np.nan)], axis=1).reshape(-1, 2)
    axes.add_line(
        Line2D(*broken.T, color=color(name), linewidth=size, solid_capstyle="round", clip_on=False, zorder=2.7)
    )


def bitmap(marked: BoolArray, name: str = "heat-3") -> str:
    """Marked pixels on nothing, as an address that holds a PNG.

    Args:
        marked: bool [height, width], not empty.
        name: of its colour, which is that on light ground everywhere.
    """
    picture = Image.fromarray(marked.astype(np.uint8), "L").convert("P")
    picture.putpalette([0, 0, 0, *bytes.fromhex(color(name)[1:])])
    content = io.BytesIO()
    picture.save(content, "PNG", bits=1, transparency=0, optimize=True)
    return f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"


def _ticks(low: float, high: float, logarithmic: bool, most: int) -> list[float]:
    """Round values between both, at most so many; two or more, if that goes."""
    locators = [LogLocator(subs=factors, numticks=most) for factors in ((1, 2, 5), (1, 3), (1,)) if logarithmic]
    for locator in (*locators, MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10])):
        found = [float(f"{tick:.12g}") for tick in locator.tick_values(low, high) if low <= tick <= high]
        if 2 <= len(found) <= most:
            break
    return found


def _adopt(part: ElementTree.Element, parent: ElementTree.Element, used: set[str]) -> None:
    """Take over an element of a drawing: colours become variables, and only identifiers that are used stay."""
    tag = part.tag.rpartition("}")[2]
    if tag in ("metadata", "style") or part.get("style") == "fill: none":
        return
    attributes = {name.rpartition("}")[2]: value for name, value in part.attrib.items()}
    name = attributes.pop("id", "")
    style = [each.strip() for each in attributes.pop("style", "").split(";")]
    kept = [_themed(each) for each in style if each.startswith(_KEPT)]
    if any(each.startswith("font") and re.search(r"\b(bold|700)\b", each) for each in style):
        kept.append("font-weight: 600")
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    digits = 2 if parent.tag == "defs" else 1
    attributes = {
        key: value if key in ("href", "clip-path") else _rounded(value, digits) for key, value in attributes.items()
    }
    if name in used:
        attributes["id"] = name
    if kept:
        attributes["style"] = "; ".join(kept)
    # Groups of nothing but other elements say nothing.
    bare = tag == "g" and not attributes and not name.startswith("[")
    added = parent if bare else ElementTree.SubElement(parent, tag, attributes)
    added.text = (part.text or "").strip() or added.text
    for inner in part:
        _adopt(inner, added, used)
    if name.startswith("["):
        marks = list(added.iter("use"))
        for place, text in zip(marks, json.loads(name), strict=True):
            ElementTree.SubElement(place, "title").text = text


def _themed(declaration: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES[found[0]], declaration)


def _rounded(value: str, digits: int) -> str:
    def shorter(found: re.Match[str]) -> str:
        return f"{round(float(found[0]), digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".")

    return re.sub(r"-?\d+\.\d+", shorter, " ".join(value.split()))
