"""What faults do as they travel through a network: where on the array they matter, which bits, and what ends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from efat.figures.drawing import FONT, color, mark, page_axes, page_figure, png_figure, share_axis
from efat.propagation.estimates import (
    ENDINGS,
    MOST_PLACES,
    BitShare,
    Estimates,
    HeatMap,
    LayerFate,
    bit_shares,
    heat_maps,
    layer_fates,
)
from efat.propagation.tables import PICTURES, FaultTables
from efat.setup import name_of
from simulator import Kind, Site
from simulator.dtypes import Float64Array

THRESHOLDS = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Shares above which a cell has the next of the shades: the first is of shares of 0."""

SHADES = ("none", "up to 1%", "1% to 5%", "5% to 20%", "20% to 50%", "more than 50%")
"""What they stand for."""

FATES = {
    "quantise": ("accent", "quantisation"),
    "relu": ("relu", "ReLU"),
    "pooling": ("pooling", "pooling"),
    "other": ("other", "other operations"),
    "carried": ("carried", "nothing: it goes on"),
}
"""Colours and names of what ends differences."""

KINDS = {
    Kind.STUCK_AT_0: ("o", "accent", "stuck at 0"),
    Kind.STUCK_AT_1: ("s", "one", "stuck at 1"),
    Kind.FLIP: ("^", "flip", "flip in one cycle"),
}
"""Marks, told apart without colours, and names of kinds of fault."""

_FLIPPED = "images whose top-1 changes"
_PANEL = (380, 250)
_HEAT_WIDTH, _HEAT_HEIGHT = 340, 400
_WIDEST = 4
"""Charts of bits side by side at most."""


def draw_pictures(folder: Path, tables: FaultTables) -> None:
    """Draw what was found into its folder, which is there: by PE, by bit, and by layer."""
    confidence = tables.request.confidence
    estimates = Estimates(tables, confidence)
    title = f"{name_of(tables.subject.network)} on {tables.array} PEs, {tables.images:,} images"
    array, bits, layers = (folder / name for name in PICTURES)
    _draw_array(array, title, heat_maps(estimates))
    _draw_bits(bits, f"{title}; intervals of {100 * confidence:g}%", bit_shares(estimates, MOST_PLACES))
    _draw_layers(layers, title, list(layer_fates(estimates)))


def heat_chart(heat: HeatMap, label: str) -> Markup:
    """The array from above for a page, each cell in the shade of its share; cells without samples are left blank."""
    down, across = heat.cells.shape
    below = not np.isnan(heat.accumulators).all()
    left, head, foot = 10 + 8 * len(f"{heat.rows - 1}"), 22, FONT + 8 if below else 4
    side = min((_HEAT_WIDTH - left - 12) / across, _HEAT_HEIGHT / (down + 1.5 * below))
    height = side * (down + 1.5 * below)
    size = _HEAT_WIDTH, round(head + height + foot)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((left / size[0], foot / size[1], side * across / size[0], height / size[1]))
        _draw_heat(axes, heat)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=4)
        axes.xaxis.tick_top()
        # The first and, where there is room, the last one.
        axes.xaxis.set_major_locator(FixedLocator([0, heat.cols - 1] if side * across > 60 else [0]))
        axes.yaxis.set_major_locator(FixedLocator([0, heat.rows - 1] if side * down > 30 else [0]))
        if below:
            figure.text(left / size[0], 4 / size[1], "accumulators")

    return page_figure(draw, size, label, "heat")


def bits_chart(shares: Sequence[BitShare], top: float, label: str, titles: Sequence[str]) -> Markup:
    """Shares of images whose top-1 changes for a page, by bit of one net, with their intervals.

    Args:
        shares: of each bit and kind of fault, one or more, all of the same net.
        top: where the axis of shares ends; the same for all nets, so that they can be compared.
        label: what it shows, for those who do not see it.
        titles: what each mark is, for those who point at it.
    """

    def draw(figure: Figure) -> None:
        axes = page_axes(figure, _bits_of(shares[0].site), "top-1 changes", right=12)
        _draw_net(axes, shares, titles)
        share_axis(axes, 0, max(top, 1e-6))

    return page_figure(draw, _PANEL, label, "panel")


def shade(share: float) -> int:
    """The number of the shade of a share: 0 for none, otherwise how many of `THRESHOLDS` are below it."""
    return int(np.searchsorted(THRESHOLDS, share))


def words(member: Site | Kind) -> str:
    """A net or a kind of fault, for people: `weight load`, or `stuck at 0`."""
    return member.name.lower().replace("_", " ")


def _draw_array(path: Path, title: str, maps: Sequence[HeatMap]) -> None:
    """The share of images whose top-1 changes by place of the fault; places without samples are left blank."""
    tallest = max((heat.rows / heat.cols for heat in maps), default=0.4)
    with png_figure(path, 6.5 * max(1, len(maps)), float(np.clip(5 * tallest, 2, 11)) + 1.3) as figure:
        figure.suptitle(title, fontsize=11)
        for number, heat in enumerate(maps, 1):
            axes = figure.add_subplot(1, len(maps), number, aspect="equal")
            _draw_heat(axes, heat)
            axes.set(xlabel="column (activations flow this way)", ylabel="row (partial sums flow this way)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(8, integer=True))
            cells = "" if heat.step == 1 else f", {heat.step}x{heat.step} PEs in a cell"
            axes.set_title(f"{int(heat.faults.sum()):,} {heat.kinds}{cells}", fontsize=10, loc="left")
        if maps:
            handles = [Rectangle((0, 0), 1, 1, color=color(f"heat-{shade}")) for shade in range(len(SHADES))]
            handles.append(Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=color("quiet")))
            labels = [*SHADES, "no fault tried"]
            figure.legend(handles, labels, loc="outside lower center", ncols=4, title=_FLIPPED)
        else:
            _say_nothing(figure)


def _draw_bits(path: Path, title: str, shares: Sequence[BitShare]) -> None:
    """The share of images whose top-1 changes by bit of each net, stuck values apart, with its interval."""
    sites = list(dict.fromkeys(share.site for share in shares))
    across = min(_WIDEST, max(1, len(sites)))
    down = -(-len(sites) // across)
    width, height = max(6.5, 3.4 * across), 0.9 + 2.8 * max(1, down)
    top = max((share.avf.high for share in shares), default=1.0)
    with png_figure(path, width, height, fitted=False) as figure:
        # Margins in inches: to find them by drawing takes a second.
        figure.subplots_adjust(0.9 / width, 0.85 / height, 1 - 0.2 / width, 1 - 0.75 / height, 0.15, 0.45)
        figure.suptitle(title, fontsize=11)
        for number, site in enumerate(sites):
            axes = figure.add_subplot(down, across, number + 1)
            axes.grid(axis="y")
            _draw_net(axes, [share for share in shares if share.site is site])
            axes.set(title=words(site), xlabel=_bits_of(site))
            share_axis(axes, -0.02 * top, 1.05 * max(top, 1e-6))
            axes.tick_params(axis="y", labelleft=number % across == 0)
        if sites:
            kinds = [KINDS[kind] for kind in Kind if any(share.kind is kind for share in shares)]
            handles = [
                figure.axes[0].plot([], [], marker, color=color(name), label=label)[0] for marker, name, label in kinds
            ]
            figure.supylabel(_FLIPPED, fontsize=10, x=0.12 / width)
            figure.legend(handles=handles, loc="lower right", ncols=3)
        else:
            _say_nothing(figure)


def _draw_layers(path: Path, title: str, fates: Sequence[LayerFate]) -> None:
    """By layer what ends the differences that leave it, before the next layer."""
    with png_figure(path, 8, 1.6 + 0.3 * len(fates)) as figure:
        figure.suptitle(title, fontsize=11)
        axes = figure.add_subplot()
        places = np.arange(len(fates))
        left = np.zeros(len(fates))
        for name in (*ENDINGS, "carried"):
            values = np.array([fate.carried if name == "carried" else fate.ended[name] for fate in fates])
            # A layer that nothing ever reached has no bar.
            values *= [fate.differences > 0 for fate in fates]
            shade, label = FATES[name]
            axes.barh(places, values, left=left, color=color(shade), label=label, height=0.72)
            left += values
        axes.set_yticks(places, [fate.name for fate in fates], fontsize=9)
        axes.set(xlim=(0, 1), ylim=(len(fates) - 0.5, -0.5), xlabel="differences that leave a layer, by what ends them")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=5)


def _draw_heat(axes: Axes, heat: HeatMap) -> None:
    """Cells in their shades, in places of PEs; accumulators lie below the last row."""
    down, across = heat.cells.shape
    bottom = down * heat.step - 0.5
    _draw_cells(axes, heat.cells, -0.5, heat.step)
    if not np.isnan(heat.accumulators).all():
        _draw_cells(axes, heat.accumulators[None], bottom + 0.5 * heat.step, heat.step)
        bottom += 1.5 * heat.step
    axes.set(xlim=(-0.5, across * heat.step - 0.5), ylim=(bottom, -0.5))


def _draw_cells(axes: Axes, cells: Float64Array, top: float, step: int) -> None:
    """Cells of an area, and a frame; neighbours of one shade in a row are one rectangle."""
    numbers = np.where(np.isnan(cells), -1, np.searchsorted(THRESHOLDS, cells))
    for number in range(len(SHADES)):
        edges = np.diff(np.pad(numbers == number, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, first = np.nonzero(edges == 1)
        last = np.nonzero(edges == -1)[1]
        if len(rows):
            corners = np.stack([first, rows, last, rows, last, rows + 1, first, rows + 1, first, rows], axis=1)
            codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(rows)
            outline = Outline(corners.reshape(-1, 2) * step + (-0.5, top), codes)
            axes.add_patch(PathPatch(outline, facecolor=color(f"heat-{number}"), linewidth=0))
    down, across = cells.shape
    frame = Rectangle((-0.5, top), across * step, down * step, edgecolor=color("quiet"), linewidth=1, fill=False)
    frame.set_clip_on(False)
    axes.add_patch(frame)


def _draw_net(axes: Axes, shares: Sequence[BitShare], titles: Sequence[str] | None = None) -> None:
    kinds = [kind for kind in KINDS if any(share.kind is kind for share in shares)]
    step = max(share.last - share.first + 1 for share in shares)
    for number, kind in enumerate(kinds):
        form, name, _ = KINDS[kind]
        chosen = [place for place, share in enumerate(shares) if share.kind is kind]
        found = [shares[place] for place in chosen]
        # Beside each other, as intervals would hide each other.
        apart = 0.3 * step * (number - (len(kinds) - 1) / 2)
        places = [(share.first + share.last) / 2 + apart for share in found]
        ends = [value for share in found for value in (share.avf.low, share.avf.high, np.nan)]
        axes.plot(np.repeat(places, 3), ends, color=color(name), alpha=0.4, linewidth=2, solid_capstyle="butt")
        named = None if titles is None else [titles[place] for place in chosen]
        size = 7 if titles else 5
        mark(axes, places, [share.avf.value for share in found], named, marker=form, color=color(name), markersize=size)
    axes.set_xlim(min(share.first for share in shares) - 0.7, max(share.last for share in shares) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _bits_of(site: Site) -> str:
    return "location in the multiplier" if site is Site.MULTIPLIER else "bit"


def _say_nothing(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no fault was tried", ha="center", va="center")
