"""How the pictures of a propagation campaign are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from efat.propagation.estimates import Estimates
from efat.propagation.heat import HeatMap, heat_maps
from efat.propagation.shares import ENDINGS, MOST_PLACES, BitShare, bit_shares, layer_fates
from simulator import Kind, Site
from simulator.files import replaced

_FLIPPED = "images whose top-1 changes"
_NOTHING = "no fault was tried"

_KINDS = {
    Kind.STUCK_AT_0: ("o", "#1F5FB8", "stuck at 0"),
    Kind.STUCK_AT_1: ("s", "#C4590B", "stuck at 1"),
    Kind.FLIP: ("^", "#555555", "flip"),
}
_COLORS = {"quantise": "#4C78A8", "relu": "#F58518", "pooling": "#54A24B", "other": "#B279A2", "carried": "#DDDDDD"}
_LABELS = {"quantise": "quantisation", "relu": "ReLU", "pooling": "pooling", "other": "other", "carried": "nothing"}
_WIDEST = 4
"""Charts of bits side by side at most."""
_BLANK = "#E6E6E6"


def draw_array(estimates: Estimates, path: Path) -> None:
    """Draw the share of images whose top-1 changes by place of the fault; places without samples are left blank.

    Args:
        estimates: of what was found.
        path: PNG file; it appears, or replaces an older one, only when it is complete.
    """
    maps = heat_maps(estimates)
    array = estimates.propagation.array
    figure = _figure(6.5 * max(1, len(maps)), float(np.clip(5 * array["rows"] / array["cols"], 2, 11)) + 1)
    if not maps:
        _say_nothing(figure)
    for number, heat in enumerate(maps, 1):
        axes = figure.add_subplot(1, len(maps), number)
        # The first shades are wide: most faults do little.
        norm = PowerNorm(0.5, 0, max(heat.largest, 1e-6))
        colors = matplotlib.colormaps["YlGnBu"].with_extremes(bad=_BLANK)
        options: dict[str, Any] = {"cmap": colors, "norm": norm, "interpolation": "nearest", "aspect": "equal"}
        high, wide = (size * heat.step for size in heat.cells.shape)
        bottom = high - 0.5
        image = axes.imshow(heat.cells, extent=(-0.5, wide - 0.5, high - 0.5, -0.5), **options)
        if not np.isnan(heat.accumulators).all():
            # Accumulators lie below the last row.
            top, bottom = high - 0.5 + 0.5 * heat.step, high - 0.5 + 1.5 * heat.step
            axes.imshow(heat.accumulators[None], extent=(-0.5, wide - 0.5, bottom, top), **options)
        axes.set(xlim=(-0.5, wide - 0.5), ylim=(bottom, -0.5))
        axes.set(xlabel="column (activations flow this way)", ylabel="row (partial sums flow this way)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label=_FLIPPED)
        axes.set_title(_array_title(heat), fontsize=10, loc="left")
    _title(figure, estimates)
    _save(figure, path)


def draw_bits(estimates: Estimates, path: Path) -> None:
    """Draw the share of images whose top-1 changes by bit of each net, stuck values apart, with its interval.

    Args:
        estimates: of what was found.
        path: as for `draw_array`.
    """
    shares = bit_shares(estimates, MOST_PLACES)
    sites = list(dict.fromkeys(share.site for share in shares))
    across = min(_WIDEST, max(1, len(sites)))
    down = -(-len(sites) // across)
    width, height = max(6.5, 3.4 * across), 0.9 + 2.8 * max(1, down)
    # Margins in inches: to find them by drawing takes a second.
    figure = _figure(width, height, layout=None)
    figure.subplots_adjust(0.9 / width, 0.85 / height, 1 - 0.2 / width, 1 - 0.75 / height, 0.15, 0.45)
    top = max((share.avf.high for share in shares), default=1.0)
    for number, site in enumerate(sites):
        axes = figure.add_subplot(down, across, number + 1)
        _draw_net(axes, [share for share in shares if share.site is site])
        axes.set(title=site.name.lower().replace("_", " "), ylim=(-0.02 * top, 1.05 * max(top, 1e-6)))
        axes.set_xlabel("location" if site is Site.MULTIPLIER else "bit")
        axes.tick_params(axis="y", labelleft=number % across == 0)
    if sites:
        kinds = [kind for kind in Kind if any(share.kind is kind for share in shares)]
        handles = [
            figure.axes[0].plot([], [], marker, color=color, label=label)[0]
            for marker, color, label in map(_KINDS.__getitem__, kinds)
        ]
        figure.supylabel(_FLIPPED, fontsize=10, x=0.12 / width)
        figure.legend(handles=handles, loc="lower right", ncols=3, frameon=False, fontsize=9)
    else:
        _say_nothing(figure)
    _title(figure, estimates, f"; intervals of {100 * estimates.confidence:g}%")
    _save(figure, path)


def draw_layers(estimates: Estimates, path: Path) -> None:
    """Draw by layer what ends the differences that leave it, before the next layer.

    Args:
        estimates: of what was found.
        path: as for `draw_array`.
    """
    fates = layer_fates(estimates)
    figure = _figure(8, 1.6 + 0.3 * len(fates))
    axes = figure.add_subplot()
    places = np.arange(len(fates))
    left = np.zeros(len(fates))
    for name in (*ENDINGS, "carried"):
        values = np.array([fate.carried if name == "carried" else fate.ended[name] for fate in fates])
        # A layer that nothing ever reached has no bar.
        values *= [fate.differences > 0 for fate in fates]
        axes.barh(places, values, left=left, color=_COLORS[name], label=_LABELS[name], height=0.72)
        left += values
    axes.set_yticks(places, [fate.name for fate in fates], parse_math=False, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(len(fates) - 0.5, -0.5), xlabel="differences that leave a layer, by what ends them")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    _title(figure, estimates)
    _save(figure, path)


def _draw_net(axes: Axes, shares: list[BitShare]) -> None:
    kinds = [kind for kind in Kind if any(share.kind is kind for share in shares)]
    step = max(share.last - share.first + 1 for share in shares)
    for number, kind in enumerate(kinds):
        marker, color, _ = _KINDS[kind]
        found = [share for share in shares if share.kind is kind]
        # Beside each other, as intervals would hide each other.
        apart = 0.3 * step * (number - (len(kinds) - 1) / 2)
        places = np.array([(share.first + share.last) / 2 + apart for share in found])
        axes.vlines(places, [s.avf.low for s in found], [s.avf.high for s in found], color=color, alpha=0.45)
        axes.plot(places, [s.avf.value for s in found], marker, color=color, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _array_title(heat: HeatMap) -> str:
    cells = "" if heat.step == 1 else f", {heat.step}x{heat.step} PEs in a cell"
    blank = "; grey: none" if (heat.faults[:-1] == 0).any() else ""
    return f"{int(heat.faults.sum()):,} {heat.kinds}{cells}{blank}"


def _title(figure: Figure, estimates: Estimates, more: str = "") -> None:
    found = estimates.propagation
    array = f"{found.array['rows']}x{found.array['cols']} PEs"
    network = str(found.subject.get("network", "network"))
    title = figure.suptitle(f"{network} on {array}, {found.images:,} images{more}", fontsize=11)
    title.set_parse_math(False)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _say_nothing(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, _NOTHING, ha="center", va="center")


def _save(figure: Figure, path: Path) -> None:
    with replaced(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
