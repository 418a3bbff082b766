"""How results are shown where Python prints them, and in a notebook: as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

MOST_ROWS = 40
"""Of a table; how many more there are is said."""


@dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
        title: what it is of.
        columns: their heads; a line break is where one may be broken. If all are empty, rows are names and values.
        rows: a value for each column; None shows as a dash, a fraction that is to be in percent is a text already.
        notes: lines below it.
        left: how many columns, the first ones, are of text; all others are of numbers.
        most: rows that are shown; how many more there are is said.
        sections: numbers of rows, from 0, after which a line may be drawn.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()
    left: int = 1
    most: int = MOST_ROWS
    sections: Sequence[int] = ()

    @property
    def texts(self) -> list[list[str]]:
        """The rows, as they are shown."""
        return [[_text(value) for value in row] for row in self.rows]

    @property
    def more(self) -> int:
        """Rows that are not shown."""
        return max(0, len(self.rows) - self.most)

    def __str__(self) -> str:
        shown = [self._heads, *self.texts[: self.most]]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = (
            "  ".join(
                text.ljust(width) if place < self.left else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (shown if any(self.columns) else shown[1:])
        )
        return "\n".join([self.title, *lines, *self._below])

    def _repr_html_(self) -> str:
        heads = f"<thead>{self._html_row('th', self._heads)}</thead>" if any(self.columns) else ""
        rows = "".join(self._html_row("td", row) for row in self.texts[: self.most])
        below = "".join(f"<p>{escape(line)}</p>" for line in self._below)
        return f"<table><caption>{escape(self.title)}</caption>{heads}<tbody>{rows}</tbody></table>{below}"

    def _html_row(self, tag: str, texts: Sequence[str]) -> str:
        styles = ["" if place < self.left else " style='text-align: right'" for place in range(len(texts))]
        cells = (f"<{tag}{style}>{escape(text)}</{tag}>" for style, text in zip(styles, texts, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    @property
    def _heads(self) -> list[str]:
        return [" ".join(head.replace("-\n", "-").split()) for head in self.columns]

    @property
    def _below(self) -> list[str]:
        return [*([f"and {self.more:,} more"] if self.more else []), *self.notes]


class Verdict(str):
    """A line that sums up."""

    __slots__ = ()


class Shown:
    """A mixin for what prints as tables and lines, wherever it is printed; `table` or `parts` says which."""

    __slots__ = ()

    def table(self) -> Table:
        """What is shown of it, if that is one table."""
        raise NotImplementedError

    def parts(self) -> Iterator[Table | str]:
        """What is shown of it, in turn."""
        yield self.table()

    def __str__(self) -> str:
        texts = [f"{part}\n" if isinstance(part, Table) else part for part in self.parts()]
        return "\n".join(texts).rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() if isinstance(part, Table) else _paragraph(part) for part in self.parts())


def _paragraph(text: str) -> str:
    lines = escape(text).replace("\n", "<br>")
    return f"<p><b>{lines}</b></p>" if isinstance(text, Verdict) else f"<p>{lines}</p>"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number of things."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def percent(part: int, of: int) -> str:
    """A share, as tables show it."""
    return f"{100 * part / of:.2f}%" if of else "-"


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
