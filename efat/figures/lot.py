"""How well the chips of a retrained lot do, and how much their retraining takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from efat.figures.drawing import (
    MOST_MARKS,
    accuracy_limits,
    chart,
    color,
    dots,
    mark,
    reference_lines,
    scale,
    share_axis,
)
from simulator.dtypes import Float64Array


class ChipMark(NamedTuple):
    """A chip.

    Attributes:
        share: of its PEs that are faulty.
        accuracy: that it reaches.
        kind: whether it does what is required, after retraining or as it is.
        title: what it is, for those who point at it.
    """

    share: float
    accuracy: float
    kind: Literal["meets", "as it is", "misses"]
    title: str


class GroupMark(NamedTuple):
    """A group of chips that share a retraining.

    Attributes:
        severity: of its faults.
        planned: iterations that were planned.
        iterations: those that it took.
        as_is: whether it is of the chips that are not retrained.
        title: what it is, for those who point at it.
    """

    severity: float
    planned: int
    iterations: int
    as_is: bool
    title: str


_COLORS = {"meets": "accent", "as it is": "bar", "misses": "bad"}


def chips_chart(chips: Sequence[ChipMark], required: float, fault_free: float, label: str) -> Markup:
    """Accuracy of each chip by the share of its PEs that are faulty.

    Args:
        chips: one or more; those too far down to be shown are arrows at the lower edge.
        required: accuracy that is required.
        fault_free: accuracy without faults.
        label: what it shows, for those who do not see it.
    """
    low, high = accuracy_limits(np.array([chip.accuracy for chip in chips]), required, fault_free)

    def draw(axes: Axes) -> None:
        scale(axes, [chip.share for chip in chips])
        share_axis(axes, low, high)
        reference_lines(axes, required, fault_free)
        # Those that fail last, on top of the others.
        for kind, name in _COLORS.items():
            inside = [chip for chip in chips if chip.kind == kind and chip.accuracy >= low]
            below = [chip for chip in chips if chip.kind == kind and chip.accuracy < low]
            x, y = [chip.share for chip in inside], [chip.accuracy for chip in inside]
            if len(inside) + len(below) > MOST_MARKS:
                dots(axes, x, y, 4, name)
                dots(axes, [chip.share for chip in below], [low] * len(below), 4, name)
                continue
            crossed = {"marker": "x", "markeredgewidth": 2.25, "markersize": 8} if kind == "misses" else {}
            how = {"color": color(name), **crossed}
            if inside:
                mark(axes, x, y, [chip.title for chip in inside], **how)
            if below:
                # Its tip is at the edge.
                how = {"color": color(name), "marker": 7, "markersize": 9}
                mark(axes, [chip.share for chip in below], [low] * len(below), [chip.title for chip in below], **how)

    return chart(draw, label, "faulty PEs", "accuracy on unseen images")


def below_axis(chips: Sequence[ChipMark], required: float, fault_free: float) -> int:
    """Chips that are too far down to be on the chart of chips; arguments as there."""
    low, _ = accuracy_limits(np.array([chip.accuracy for chip in chips]), required, fault_free)
    return sum(chip.accuracy < low for chip in chips)


def amounts_chart(
    planned: tuple[Sequence[float], Sequence[float]],
    measured: tuple[Float64Array, Float64Array],
    chips: Sequence[float],
    groups: Sequence[GroupMark],
    severity: str,
) -> Markup:
    """Iterations by severity: what is planned as a line, random chips, the lot's chips, and its groups.

    Args:
        planned: severities, ascending, and the iterations that take effect there; infinite where none are enough.
        measured: severities of random chips, and the iterations that they need.
        chips: severities of the lot's chips; may be empty.
        groups: one or more.
        severity: what that is, in few enough words for a phone.
    """
    finite = [amount for amount in planned[1] if math.isfinite(amount)]
    severities = [*planned[0], *measured[0].tolist(), *(group.severity for group in groups)]
    top = 1.08 * max(1, *finite, *(max(group.planned, group.iterations) for group in groups))

    def draw(axes: Axes) -> None:
        scale(axes, [place for place in severities if place > 0] or [1.0])
        low, high = axes.get_xlim()
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        # The amount of a severity is that of the next one in the plan.
        steps = [low, *(max(place, low) for place in planned[0][: len(finite)])] if finite else [low]
        if steps[-1] < high:
            beyond = Rectangle((steps[-1], 0), high - steps[-1], top, color=color("wash"), alpha=0.12, linewidth=0)
            axes.add_patch(beyond)
            axes.text(high, top * 1.02, "out of reach", ha="right", va="bottom")
        enough = np.isfinite(measured[1])
        dots(axes, np.maximum(measured[0][enough], low).tolist(), measured[1][enough].tolist(), 4, "bar")
        if finite:
            (line,) = axes.plot(steps, [finite[0], *finite], color=color("ink"), linewidth=2, zorder=2.8)
            line.set(drawstyle="steps-pre", clip_on=False)
        places = np.unique(np.maximum(chips, low)).tolist()
        mark(axes, places, [0] * len(places), color=color("ink"), marker=2, markersize=7, markeredgewidth=1)
        other = [group for group in groups if group.planned != group.iterations]
        x = np.repeat([max(group.severity, low) for group in other], 3)
        y = [height for group in other for height in (group.planned, group.iterations, math.nan)]
        axes.plot(x, y, color=color("accent"), linewidth=2, zorder=2.9)
        for kind, as_is in (("accent", False), ("bar", True)):
            chosen = [group for group in groups if group.as_is == as_is]
            places, heights = [max(group.severity, low) for group in chosen], [group.iterations for group in chosen]
            if len(groups) > MOST_MARKS:
                dots(axes, places, heights, 4, kind)
            elif chosen:
                mark(axes, places, heights, [group.title for group in chosen], color=color(kind))

    named = f"{len(groups):,} group{'' if len(groups) == 1 else 's'}"
    label = f"Iterations of retraining by severity, and {named} of chips on it."
    return chart(draw, label, severity, "iterations")
