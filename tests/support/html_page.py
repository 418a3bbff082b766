"""An HTML page as a tree, read strictly: every element that is opened is closed, in order."""

from __future__ import annotations

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
