"""Axes of a chart as inline SVG: scales, ticks, a frame with a grid, and what is drawn in it.

Colours and strokes are classes that the style sheet of the page knows, so that charts follow its light and dark
theme. Texts are escaped by ElementTree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

FONT = 13
"""Height of texts, as the style sheet has it, in the units of a chart."""

_WIDTHS = {"%": 12.5, ",": 4.5, ".": 4.5, " ": 4.5}
_WIDTH = 8.3
"""Widths of digits and letters in these units, in a font with wide ones."""

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)

FORMS = {
    "dot": (0, 0, "h0"),
    "cross": (-4, -4, "l8 8m0-8l-8 8"),
    "small cross": (-2.5, -2.5, "l5 5m0-5l-5 5"),
    "arrow": (-4, -9, "l4 8l4-8Z"),
    "rug": (0, 0, "v-7"),
    "square": (-3.5, -3.5, "h7v7h-7Z"),
    "triangle": (-4.5, 3.5, "l4.5 -8l4.5 8Z"),
}
"""Marks: where they begin, from their place, and how they go on. Lines without length have round ends; arrows point
downwards, triangles upwards, and a rug is a short line upwards."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, width and height."""
Format = Callable[[float], str]


@dataclass(frozen=True)
class Shape:
    """Size of a chart: for wide pages, or for a phone.

    Args:
        name: class of the drawing: the style sheet shows the one that fits.
        width: in units, pixels as long as it is not scaled.
        height: in units.
    """

    name: str
    width: int
    height: int


WIDE = Shape("wide", 800, 360)
NARROW = Shape("narrow", 340, 300)


@dataclass(frozen=True)
class Scale:
    """Values along an axis.

    Args:
        low: value at its beginning.
        high: value at its end, more than `low`.
        logarithmic: whether equal distances are equal ratios; `low` is then positive.
    """

    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """How far along a value is: 0 at the beginning, 1 at the end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values on it, ascending.

        Args:
            most: how many at most, >= 2; fewer than two are given only if no round values are on the scale.
        """
        if self.logarithmic:
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [tick for tick in _powers(self.low, self.high, factors) if self.low <= tick <= self.high]
                if 2 <= len(found) <= most:
                    return found
            # Too many powers of ten, or too few, and then those of a linear scale.
            if len(found) > most:
                return found[:: -(-len(found) // most)]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        for step in (power * factor for factor in (*_STEPS, 20.0)):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most:
                # Rounded, as 3 times 0.1 is not 0.3.
                found = [round(number * step, 12) for number in range(first, last + 1)]
                return [tick for tick in found if tick > 0 or not self.logarithmic]
        raise AssertionError("twenty times the first step gives fewer ticks")


class WholeScale(Scale):
    """Whole numbers along an axis, with ticks at such numbers only."""

    def ticks(self, most: int) -> list[float]:
        """Round whole numbers on it, ascending."""
        return [tick for tick in super().ticks(most) if tick == round(tick)]


def scale_of(values: Sequence[float], *, margin: float = 0.04, logarithmic: bool = False) -> Scale:
    """A scale with room for some finite values, and some more at both ends.

    Args:
        values: one or more.
        margin: what is added at both ends, as a fraction of the length.
        logarithmic: take a logarithmic one if all values are positive and span a factor of 8 or more.
    """
    low, high = min(values), max(values)
    if logarithmic and low > 0 and high >= 8 * low:
        factor = (high / low) ** margin
        return Scale(low / factor, high * factor, True)
    if high == low:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    more = margin * (high - low)
    return Scale(low - more, high + more)


class Layer:
    """Something to draw in.

    Args:
        root: the element that takes what is drawn.
    """

    def __init__(self, root: ElementTree.Element) -> None:
        self.root = root

    def text(self, x: float, y: float, text: str, kind: str) -> None:
        """Write at a place; `kind` is its classes."""
        self._add("text", text, x=number(x), y=number(y), **{"class": kind})

    def path(self, points: Iterable[Point], kind: str, *, closed: bool = False) -> None:
        """Draw a line through places."""
        places = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self._add("path", None, d=f"M{places}{'Z' if closed else ''}", **{"class": kind})

    def marks(self, points: Iterable[Point], kind: str, form: str = "dot") -> None:
        """Draw many marks, all as one element; those at the same place once. See `mark` for `form`."""
        places = sorted({(float(number(x)), float(number(y))) for x, y in points})
        if places:
            self._add("path", None, d="".join(_mark(x, y, form) for x, y in places), **{"class": kind})

    def mark(self, x: float, y: float, kind: str, title: str, form: str = "dot") -> None:
        """Draw a mark, and what it is for those who point at it.

        Args:
            x: place.
            y: place.
            kind: classes.
            title: the text.
            form: a name in `FORMS`.
        """
        ElementTree.SubElement(self._add("path", None, d=_mark(x, y, form), **{"class": kind}), "title").text = title

    def stems(self, ends: Iterable[tuple[Point, Point]], kind: str) -> None:
        """Draw many vertical lines, all as one element."""
        places = sorted({(number(x), number(low), number(high)) for (x, low), (_, high) in ends})
        if places:
            self._add("path", None, d="".join(f"M{x} {low}V{high}" for x, low, high in places), **{"class": kind})

    def boxes(self, boxes: Iterable[Box], kind: str) -> None:
        """Fill many rectangles, all as one element."""
        shapes = [
            f"M{number(x)} {number(y)}H{number(x + width)}V{number(y + height)}H{number(x)}Z"
            for x, y, width, height in boxes
        ]
        if shapes:
            self._add("path", None, d="".join(shapes), **{"class": kind})

    def _add(self, tag: str, text: str | None, **attributes: str) -> ElementTree.Element:
        added = ElementTree.SubElement(self.root, tag, attributes)
        added.text = text
        return added


class Chart(Layer):
    """A frame with axes, to draw in.

    Args:
        shape: its size.
        label: what it shows, for those who do not see it.
        x: the horizontal axis.
        y: the vertical axis.
        x_title: what is along the horizontal axis.
        y_title: what is along the vertical axis.
        x_format: text of a horizontal tick.
        y_format: text of a vertical tick.
        right: units to leave free at the right, for labels.
    """

    def __init__(
        self,
        shape: Shape,
        label: str,
        x: Scale,
        y: Scale,
        *,
        x_title: str,
        y_title: str,
        x_format: Format,
        y_format: Format,
        right: float = 12,
    ) -> None:
        attributes = {"class": f"chart {shape.name}", "viewBox": f"0 0 {shape.width} {shape.height}"}
        super().__init__(ElementTree.Element("svg", {**attributes, "role": "img", "aria-label": label}))
        self.x, self.y = x, y
        y_ticks = [(tick, y_format(tick)) for tick in y.ticks(6)]
        self.left = 12 + max((width_of(text) for _, text in y_ticks), default=0)
        self.right = shape.width - right
        self.top, self.bottom = 34.0, shape.height - 48.0
        self.text(0, FONT, y_title, "axis")
        for tick, text in y_ticks:
            level = self.at(x.low, tick)[1]
            self.path([(self.left, level), (self.right, level)], "grid")
            self.text(self.left - 8, level + 4.5, text, "tick end")
        self.path([(self.left, self.bottom), (self.right, self.bottom)], "base")
        for tick in x.ticks(max(2, int((self.right - self.left) / 62))):
            place, text = self.at(tick, y.low)[0], x_format(tick)
            self.path([(place, self.bottom), (place, self.bottom + 5)], "base")
            # Kept within the drawing at both ends.
            half = width_of(text) / 2
            self.text(min(max(place, half), shape.width - half), self.bottom + 20, text, "tick middle")
        self.text((self.left + self.right) / 2, shape.height - 6, x_title, "axis middle")

    def at(self, x: float, y: float) -> Point:
        """Where a point is in the drawing."""
        return (
            self.left + self.x.share(x) * (self.right - self.left),
            self.bottom - self.y.share(y) * (self.bottom - self.top),
        )

    def inside(self) -> Layer:
        """A layer on which nothing can be seen beyond the axes; places are the same."""
        left, top, width, height = (
            number(value) for value in (self.left, self.top, self.right - self.left, self.bottom - self.top)
        )
        return Layer(
            self._add("svg", None, x=left, y=top, width=width, height=height, viewBox=f"{left} {top} {width} {height}")
        )

    def horizontal(self, y: float, kind: str) -> None:
        """Draw a line at a value across the chart."""
        self.path([self.at(self.x.low, y), self.at(self.x.high, y)], kind)

    def markup(self) -> Markup:
        """The drawing, to be put into a page."""
        return Markup(ElementTree.tostring(self.root, encoding="unicode"))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, as little as goes one after the other.

    Args:
        places: where they should be.
        gap: what lies between two of them at least.
        low: where the first may be at least.
        high: where the last may be at most; if there is not enough room, they go on beyond `low`.

    Returns:
        Where they are, in the order of `places`.
    """
    order = sorted(range(len(places)), key=lambda number: places[number])
    moved = list(places)
    limit = low
    for position in order:
        moved[position] = max(moved[position], limit)
        limit = moved[position] + gap
    limit = high
    for position in reversed(order):
        moved[position] = min(moved[position], limit)
        limit = moved[position] - gap
    return moved


def number(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"


def _mark(x: float, y: float, form: str) -> str:
    right, down, path = FORMS[form]
    return f"M{number(x + right)} {number(y + down)}{path}"


def width_of(text: str) -> float:
    """About how wide a text is, in units."""
    return sum(_WIDTHS.get(letter, _WIDTH) for letter in text)


def _powers(low: float, high: float, factors: Sequence[int]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [round(factor * 10.0**power, 12) for power in range(first, last + 1) for factor in factors]
