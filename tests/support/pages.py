"""Pages of reports, and the figures in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Element:
    """An element, and what is in it."""

    tag: str
    attributes: dict[str, str | None]
    content: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    def all(self, tag: str, kind: str | None = None) -> Iterator[Element]:
        """The elements in it with a tag, and among their classes one."""
        for part in self.content:
            if isinstance(part, Element):
                if part.tag == tag and (kind is None or kind in (part.attributes.get("class") or "").split()):
                    yield part
                yield from part.all(tag, kind)

    def one(self, tag: str, kind: str | None = None) -> Element:
        """The only one."""
        (found,) = self.all(tag, kind)
        return found

    def with_id(self, name: str) -> Element:
        """The element with an id."""
        (found,) = (element for element in self.elements() if element.attributes.get("id") == name)
        return found

    def elements(self) -> Iterator[Element]:
        """Everything in it."""
        for part in self.content:
            if isinstance(part, Element):
                yield part
                yield from part.elements()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].content.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def read_page(text: str) -> Element:
    """The whole page."""
    assert text.startswith("<!doctype html>")
    reader = _Reader()
    reader.feed(text)
    reader.close()
    (whole,) = reader.open
    return whole


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
