"""What a figure in a page shows: where its marks and lines are."""

from __future__ import annotations

import re

from tests.support.html_page import Element

Place = tuple[float, float]


def has(element: Element, declaration: str) -> bool:
    """Whether an element has a style."""
    return declaration in (element.attributes.get("style") or "").split("; ")


def points(path: Element) -> list[Place]:
    """Where a line goes."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.attributes["d"] or "")]


def lines(chart: Element, *declarations: str) -> list[list[Place]]:
    """Where the lines and areas with some styles go, those that are used elsewhere included."""
    named = {path.attributes["id"]: points(path) for path in chart.all("path") if "id" in path.attributes}
    found = []
    for element in chart.elements():
        if all(has(element, each) for each in declarations) and "id" not in element.attributes:
            if element.tag == "path":
                found.append(points(element))
            elif element.tag == "use" and not list(element.all("title")):
                right, down = place(element)
                used = named[(element.attributes["href"] or "").removeprefix("#")]
                found.append([(x + right, y + down) for x, y in used])
    return found


def marks(chart: Element) -> dict[str, Place]:
    """Where the marks that can be pointed at are, by what they say."""
    titled = [use for use in chart.all("use") if list(use.all("title"))]
    return {use.one("title").text: place(use) for use in titled}


def place(element: Element) -> Place:
    """Where an element is."""
    return float(element.attributes["x"] or ""), float(element.attributes["y"] or "")


def levels(chart: Element, *names: str) -> list[float]:
    """Heights of the grid's lines, by the texts at them."""
    heights = {text.text: place(text)[1] for text in chart.all("text") if has(text, "text-anchor: end")}
    grid = [line[0][1] for line in lines(chart, "stroke: var(--rule)")]
    return [min(grid, key=lambda height: abs(height + 4.9 - heights[name])) for name in names]
