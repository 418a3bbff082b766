"""How results are shown where Python prints them, and in a notebook: as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_ROWS = 40
"""Of a table; how many more there are is said."""


@dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
        title: what it is of.
        columns: their heads.
        rows: a value for each column; None shows as a dash, a fraction that is to be in percent is a text already.
        notes: lines below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()

    @property
    def texts(self) -> list[list[str]]:
        """The rows, as they are shown."""
        return [[_text(value) for value in row] for row in self.rows]

    def __str__(self) -> str:
        cells = self.texts[:MOST_ROWS]
        widths = [max(map(len, column)) for column in zip(self.columns, *cells, strict=True)]
        right = self._numbers()
        lines = [
            "  ".join(
                text.rjust(width) if is_number else text.ljust(width)
                for text, width, is_number in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in (self.columns, *cells)
        ]
        return "\n".join([self.title, *lines, *self._below()])

    def _repr_html_(self) -> str:
        right = [" style='text-align: right'" if is_number else "" for is_number in self._numbers()]
        heads = "".join(f"<th{style}>{escape(head)}</th>" for head, style in zip(self.columns, right, strict=True))
        rows = "".join(
            "<tr>"
            + "".join(f"<td{style}>{escape(text)}</td>" for text, style in zip(row, right, strict=True))
            + "</tr>"
            for row in self.texts[:MOST_ROWS]
        )
        below = "".join(f"<p>{escape(line)}</p>" for line in self._below())
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
            f"</table>{below}"
        )

    def _numbers(self) -> list[bool]:
        """Which columns have numbers, or percentages."""
        texts = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        return [any(not isinstance(value, str) or value.endswith("%") for value in column) for column in texts]

    def _below(self) -> list[str]:
        more = len(self.rows) - MOST_ROWS
        return [*([f"and {more:,} more"] if more > 0 else []), *self.notes]


class Shown:
    """A mixin for what prints as a table; `table` says which."""

    __slots__ = ()

    def table(self) -> Table:
        """What is shown of it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def percent(part: int, of: int) -> str:
    """A share, as tables show it."""
    return f"{100 * part / of:.2f}%" if of else "-"


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
