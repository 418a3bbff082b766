"""A picture of a resilience table: accuracy against fault rate, a line for each amount of retraining."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from efat.resilience.table import ResilienceTable, telling_levels
from simulator.faults import Float64Array
from simulator.files import replaced

MOST_LINES = 6
WIDEST_LINEAR = 20
"""Rates that span more have a logarithmic axis."""

_MOST_TICKS = 9
_LIGHTEST, _DARKEST = 0.88, 0.1
_REFERENCE = "#555555"


def draw_resilience(table: ResilienceTable, path: Path) -> None:
    """Draw the mean accuracy of each rate's chips, and a band from the worst to the best of them.

    Args:
        table: what was measured. Where retraining of a chip diverged, its point is crossed out and the others' mean.
        path: PNG file; it appears, or replaces an older one, only when it is complete.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_references(axes, table)
    accuracy = 100 * table.accuracy
    shown = telling_levels(table.levels.tolist(), MOST_LINES)
    colors = matplotlib.colormaps["viridis"](np.linspace(_DARKEST, _LIGHTEST, len(shown)))
    # The most retraining first: so the legend has the order that the lines mostly have.
    for color, place in zip(colors, reversed(shown), strict=True):
        _draw_level(axes, table.rates * 100, accuracy[:, :, place], tuple(color), _label(int(table.levels[place])))
    _scale_rates(axes, table.rates * 100)
    axes.set(xlabel="faulty PEs, %", ylabel="accuracy on tuning images, %")
    axes.set_ylim(top=min(101.0, axes.get_ylim()[1]), bottom=max(-1.0, axes.get_ylim()[0]))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    setup, array = table.setup, table.array
    chips = f"{table.repeats} random chips a rate, worst to best" if table.repeats > 1 else "one random chip a rate"
    axes.set_title(
        f"{setup.network} with {setup.mitigation} on {array['rows']}x{array['cols']} PEs; {chips}",
        parse_math=False,
        fontsize=11,
        loc="left",
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    with replaced(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _draw_references(axes: Axes, table: ResilienceTable) -> None:
    lines = {"float": (table.float_correct, ":"), "quantised, fault-free": (table.fault_free_correct, "--")}
    if table.harden_iterations:
        lines["hardened, fault-free"] = (table.start_correct, "-.")
    for label, (correct, style) in lines.items():
        accuracy = 100 * correct / table.images
        axes.axhline(accuracy, color=_REFERENCE, linewidth=1, linestyle=style, label=label, zorder=1)


def _draw_level(axes: Axes, rates: Float64Array, accuracy: Float64Array, color: object, label: str) -> None:
    """A line and its band, accuracies [rates, repeats]; NaN where retraining diverged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice", RuntimeWarning)
        mean, worst, best = (reduce(accuracy, axis=1) for reduce in (np.nanmean, np.nanmin, np.nanmax))
    axes.fill_between(rates, worst, best, color=color, alpha=0.13, linewidth=0, zorder=2)
    axes.plot(rates, mean, color=color, marker="o", markersize=4, linewidth=1.6, label=label, zorder=3)
    lost = np.isnan(accuracy).any(axis=1) & ~np.isnan(mean)
    axes.plot(rates[lost], mean[lost], "x", color="#D62728", markersize=9, zorder=4)


def _label(level: int) -> str:
    return f"{level:,} iterations" if level else "no retraining"


def _scale_rates(axes: Axes, rates: Float64Array) -> None:
    if rates[0] > 0 and rates[-1] / rates[0] > WIDEST_LINEAR:
        axes.set_xscale("log")
    if len(rates) <= _MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(rates.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
