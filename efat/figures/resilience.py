"""Accuracy of random chips by fault rate, a line for each amount of retraining."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from efat.figures.drawing import (
    FONT,
    accuracy_limits,
    chart,
    color,
    pixels,
    png_figure,
    reference_lines,
    scale,
    share_axis,
)
from simulator.dtypes import Float64Array

MOST_LEVELS = 6
"""Levels that can be drawn: as many as there are shades."""

WIDEST_LINEAR = 20
"""Rates that span more have a logarithmic axis in files."""

_MOST_TICKS = 9


def draw_resilience(
    path: Path,
    title: str,
    rates: Float64Array,
    levels: Sequence[int],
    accuracy: Float64Array,
    references: Mapping[str, float],
) -> None:
    """Draw the mean accuracy of each rate's chips, and a band from the worst to the best of them.

    Args:
        path: PNG file; it appears, or replaces an older one, only when it is complete.
        title: above it.
        rates: share of PEs that are faulty, float64 [rates], ascending.
        levels: iterations of retraining, ascending, at most `MOST_LEVELS`.
        accuracy: float64 [rates, repeats, levels]; NaN where retraining diverged: such a point is crossed out and the
            others' mean.
        references: accuracies to compare with, and what they are.
    """
    with png_figure(path, 8, 5) as figure:
        axes = figure.add_subplot()
        for (label, value), style in zip(references.items(), (":", "--", "-."), strict=False):
            axes.axhline(100 * value, color="#555555", linewidth=1, linestyle=style, label=label, zorder=1)
        # The most retraining first: so the legend has the order that the lines mostly have.
        for place, shade in reversed(list(enumerate(_shades(len(levels))))):
            label = f"{levels[place]:,} iterations" if levels[place] else "no retraining"
            _draw_level(axes, 100 * rates, 100 * accuracy[:, :, place], shade, label)
        if rates[0] > 0 and rates[-1] / rates[0] > WIDEST_LINEAR:
            axes.set_xscale("log")
        if len(rates) <= _MOST_TICKS:
            axes.xaxis.set_major_locator(FixedLocator((100 * rates).tolist()))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        axes.set(xlabel="faulty PEs, %", ylabel="accuracy on tuning images, %")
        axes.set_ylim(top=min(101.0, axes.get_ylim()[1]), bottom=max(-1.0, axes.get_ylim()[0]))
        axes.grid()
        axes.set_title(title, fontsize=11, loc="left")
        figure.legend(loc="outside right upper")


def resilience_chart(
    rates: Float64Array, levels: Sequence[int], accuracy: Float64Array, required: float, fault_free: float
) -> Markup:
    """The same for a page.

    Args:
        rates: as for `draw_resilience`.
        levels: likewise.
        accuracy: likewise; retraining that diverged has 0, as it leaves nothing that could be used.
        required: accuracy that is required.
        fault_free: accuracy without faults.
    """
    names = [f"{level:,}" for level in levels]
    limits = accuracy_limits(np.append(accuracy.mean(1), fault_free), required, fault_free)

    def draw(axes: Axes) -> None:
        scale(axes, rates.tolist(), margin=0.02)
        share_axis(axes, *limits)
        for place, shade in enumerate(_shades(len(levels))):
            _draw_level(axes, rates, accuracy[..., place], shade, dotted=len(rates) == 1)
        reference_lines(axes, required, fault_free)
        _name_levels(axes, accuracy[-1].mean(0), names)

    after = f"{', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]} iterations of retraining"
    label = f"Accuracy of random chips by fault rate after {after}."
    return chart(draw, label, "fault rate", "accuracy on tuning images", right=32 + 8 * max(map(len, names)))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, as little as goes one after the other.

    Args:
        places: where they should be.
        gap: what lies between two of them at least.
        low: where the first may be at least; if there is not enough room, they go on beyond it.
        high: where the last may be at most.

    Returns:
        Where they are, in the order of `places`.
    """
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    found = np.maximum.accumulate(np.maximum(np.asarray(places, np.float64)[order], low) - steps) + steps
    # Counted from the last one.
    found = (np.minimum.accumulate(np.minimum(found[::-1], high) + steps) - steps)[::-1]
    return [float(place) for place in found[np.argsort(order)]]


def _shades(count: int) -> list[str]:
    return [color(f"level-{round(place)}") for place in np.linspace(0, MOST_LEVELS - 1, count).tolist()]


def _draw_level(
    axes: Axes, rates: Float64Array, accuracy: Float64Array, shade: str, label: str | None = None, dotted: bool = True
) -> None:
    """A line and its band, accuracies [rates, repeats]; NaN where retraining diverged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice", RuntimeWarning)
        mean, worst, best = (reduce(accuracy, axis=1) for reduce in (np.nanmean, np.nanmin, np.nanmax))
    axes.fill_between(rates, worst, best, color=shade, alpha=0.14, linewidth=0, zorder=2)
    axes.plot(rates, mean, color=shade, marker="o" if dotted else "", markersize=4, linewidth=2, label=label, zorder=3)
    lost = np.isnan(accuracy).any(axis=1) & ~np.isnan(mean)
    if lost.any():
        axes.plot(rates[lost], mean[lost], "x", color=color("bad"), markersize=9, zorder=4)


def _name_levels(axes: Axes, ends: Float64Array, names: Sequence[str]) -> None:
    """Names of lines at their right ends, apart from each other."""
    height = pixels(axes)[1]
    page = axes.get_figure(root=True)
    assert page is not None
    page.text(1, 1 - FONT / (72 * page.get_size_inches()[1]), "iterations", weight="bold", ha="right")
    low, high = axes.get_ylim()
    heights = np.clip((ends - low) / (high - low), 0, 1)
    for end, place, name, shade in zip(
        heights, spread((height * heights).tolist(), FONT + 2, 2, height), names, _shades(len(names)), strict=True
    ):
        axes.annotate(
            "", (1, end), (12, place - height * end), "axes fraction", "offset points",
            arrowprops={"arrowstyle": "-", "color": shade, "linewidth": 1, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
        )  # fmt: skip
        axes.annotate(
            name, (1, end), (16, place - height * end), "axes fraction", "offset points",
            va="center_baseline", annotation_clip=False,
        )  # fmt: skip
