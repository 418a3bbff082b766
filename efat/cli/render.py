"""Consoles, tables and progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from efat import display
from efat.cli.printing import json_is_alone, printable

if TYPE_CHECKING:
    from training.learning.fit import TrainingProgress

_Thing = TypeVar("_Thing")

_UNLIMITED = 1_000_000
_INDENT = "  "


class _Output(Console):
    """A console that prints texts as they are: ids of chips and names of files may have brackets and colons in them."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Clean a text, wherever it comes from."""
        return super().render_str(printable(text), **settings)


def console(*, stderr: bool = False) -> Console:
    """Where results go: standard output. In a file or a pipe nothing is wrapped; beside JSON alone nothing is shown.

    Args:
        stderr: for standard error instead.
    """
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "stderr": stderr}
    plain["quiet"] = not stderr and json_is_alone()
    found = _Output(**plain)
    return found if found.is_terminal else _Output(**plain, soft_wrap=True)


@dataclass(frozen=True)
class _Column:
    """A heading, and the side that cells are on."""

    heading: str
    justify: Literal["left", "right"]


@dataclass
class _Row:
    """Cells, and how they are shown."""

    cells: list[str]
    style: str = ""
    end_section: bool = False


class ResultsTable:
    """A table that shows every cell whole.

    Where a terminal is too narrow for it, a row takes several lines: columns after the first one, which names the row,
    are stacked; where that is too wide, too, each cell has a line. In a file or a pipe it is as wide as it is.

    Args:
        title: what it shows; empty for none.
        columns: of the table.
        bare: whether it is without headings and lines.
    """

    def __init__(self, title: str, columns: Sequence[_Column], *, bare: bool = False) -> None:
        self._title = title
        self._columns = columns
        self._bare = bare
        self._rows: list[_Row] = []
        self._notes: list[str] = []

    def add_row(self, *cells: str, style: str | None = None, end_section: bool = False) -> None:
        """Add a row; cells at its end may be left out.

        Args:
            cells: one for each column.
            style: of the row.
            end_section: whether a line follows.
        """
        shown = [printable(cell).replace("\n", "\\n") for cell in cells]
        filled = shown + [""] * (len(self._columns) - len(cells))
        self._rows.append(_Row(filled, style or "", end_section))

    def add_section(self) -> None:
        """Draw a line after the last row, if there is one."""
        if self._rows:
            self._rows[-1].end_section = True

    def add_note(self, text: str) -> None:
        """Say something under the table."""
        self._notes.append(printable(text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the table and the notes."""
        if self._title:
            yield Text(printable(self._title), style="bold")
        yield from self._fitting(console, options)
        yield from map(Text, self._notes)

    def _fitting(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The first form that is no wider than a terminal."""
        others = len(self._columns) - 1
        unlimited = options.update(width=_UNLIMITED)
        # With less than two columns beside the first one, cells are better told apart by their headings.
        for lines in range(1, max(2, -(-others // 2) + 1)):
            table = self._table(-(-others // lines))
            table.width = Measurement.get(console, unlimited, table).maximum
            if table.width <= options.max_width or not console.is_terminal:
                yield table
                return
        yield from self._records()

    def _table(self, places: int) -> Table:
        """The table with so many columns beside the first one; those that are so far apart are stacked."""
        table = Table(box=None if self._bare else box.SIMPLE_HEAD, pad_edge=False, show_header=not self._bare)
        first, others = self._columns[0], self._columns[1:]
        stacks = [others[place::places] for place in range(places)]
        texts = [[row.cells[1 + place :: places] for row in self._rows] for place in range(places)]
        heads = [_headings(stack, of_stack) for stack, of_stack in zip(stacks, texts, strict=True)]
        heights = [
            max(len(of_stack[level]) for of_stack in heads if level < len(of_stack)) for level in range(len(heads[0]))
        ]
        table.add_column(first.heading, no_wrap=True)
        cells = [[row.cells[0] for row in self._rows]]
        for stack, of_stack, head in zip(stacks, texts, heads, strict=True):
            width = _widest([*(line for lines in head for line in lines), *(text for row in of_stack for text in row)])
            filled = [[*[""] * (height - len(lines)), *lines] for lines, height in zip(head, heights, strict=False)]
            table.add_column(_stacked(stack, filled, width), no_wrap=True)
            cells.append([_stacked(stack, [[text] for text in row], width) for row in of_stack])
        for row, of_row in zip(self._rows, zip(*cells, strict=True), strict=True):
            table.add_row(*of_row, style=row.style, end_section=row.end_section)
        return table

    def _records(self) -> Iterator[Text]:
        """The table with a line for each cell, and the first column's above the others."""
        headings = [" ".join(column.heading.split()) for column in self._columns[1:]]
        width = _widest(headings)
        for row in self._rows:
            name, *cells = row.cells
            yield Text(name, style=row.style, overflow="fold")
            for heading, cell in zip(headings, cells, strict=True):
                if cell.strip():
                    named = set_cell_size(heading, width) + _INDENT if width else ""
                    yield Text(f"{_INDENT}{named}{cell.strip()}", style=row.style, overflow="fold")
        yield Text()


def _headings(stack: Sequence[_Column], texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lines of the headings of columns that are above each other; of several columns each in one, if there is room."""
    heads = [column.heading.split("\n") for column in stack]
    room = _widest([text for row in texts for text in row])
    joined = [" ".join(lines) for lines in heads]
    return [
        [text] if len(heads) > 1 and cell_len(text) <= room else lines
        for text, lines in zip(joined, heads, strict=True)
    ]


def _stacked(stack: Sequence[_Column], lines: Sequence[Sequence[str]], width: int) -> str:
    """Lines of each of some columns, above each other, each on its column's side."""
    return "\n".join(
        line + space if column.justify == "left" else space + line
        for column, of_column in zip(stack, lines, strict=True)
        for line in of_column
        for space in (" " * (width - cell_len(line)),)
    )


def _widest(lines: Sequence[str]) -> int:
    return max(map(cell_len, lines), default=0)


def results_table(title: str, left: Sequence[str], right: Sequence[str]) -> ResultsTable:
    """An empty table in the style of all of them.

    Args:
        title: what it shows.
        left: headings of the first columns, of text.
        right: headings of the columns after them, of numbers.
    """
    return ResultsTable(
        title, [*(_Column(heading, "left") for heading in left), *(_Column(heading, "right") for heading in right)]
    )


def shown_table(shown: display.Table, *, rest: str = "--json has them all") -> ResultsTable:
    """A table of a result, as commands show it.

    Args:
        shown: the table.
        rest: what has the rows that are too many to be shown.
    """
    table = facts_table(shown.title)
    if any(shown.columns):
        table = results_table(shown.title, left=shown.columns[: shown.left], right=shown.columns[shown.left :])
    for place, row in enumerate(shown.texts[: shown.most]):
        table.add_row(*row, end_section=place in shown.sections)
    if shown.more:
        table.add_note(f"... and {shown.more:,} more: {rest}")
    for text in shown.notes:
        table.add_note(text)
    return table


def show(result: display.Shown | Iterable[display.Table | str]) -> None:
    """Print a result, or its parts, on standard output: the tables and lines that it prints anywhere."""
    out = console()
    for part in result.parts() if isinstance(result, display.Shown) else result:
        if isinstance(part, str):
            out.print(part, style="bold" if isinstance(part, display.Verdict) else None, soft_wrap=True)
        else:
            out.print(shown_table(part))


def facts_table(title: str) -> ResultsTable:
    """An empty table of names and values, without headings."""
    return ResultsTable(title, [_Column("", "left"), _Column("", "right")], bare=True)


def _bars(extra: str | None = None) -> Progress:
    """Bars on standard error if that is a terminal; `extra` is a field of their tasks that is shown, too."""
    shown = console(stderr=True)
    columns: list[str | ProgressColumn] = ["{task.description}", BarColumn(), MofNCompleteColumn()]
    if extra is not None:
        columns.append(f"{{task.fields[{extra}]}}")
    return Progress(*columns, TimeRemainingColumn(), console=shown, transient=True, disable=not shown.is_terminal)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of what is counted, in plural; yields a function that takes the number of things just done."""
    with progress_bars({what: total}) as (progress,):
        yield progress


@contextmanager
def progress_bars(totals: Mapping[str, int]) -> Iterator[list[Callable[[int], None]]]:
    """Show a bar for each total, as `progress_bar`; what there is nothing of has no bar."""
    with _bars() as progress:
        tasks = [progress.add_task(what, total=total, visible=total > 0) for what, total in totals.items()]
        yield [partial(progress.advance, task) for task in tasks]


@contextmanager
def rate_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with things per second; yields a function that takes the number done so far.

    The total is None where time decides.
    """
    with _bars("rate") as progress:
        task = progress.add_task(what, total=total, rate="")
        begun = time.perf_counter()

        def show(done: int) -> None:
            rate = done / max(time.perf_counter() - begun, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f}/s")

        yield show


@contextmanager
def training_bar(beginning: str) -> Iterator[Callable[[int, int, TrainingProgress | None], None]]:
    """Show a bar with loss and accuracy; yields a function that takes how far a training is.

    It takes the iterations that are done, and that there will be, and the last moment if there was one. `beginning` is
    what is done before the first of them.
    """
    with _bars("state") as progress:
        task = progress.add_task(beginning, total=None, state="")
        smoothed: float | None = None

        def show(done: int, of: int, moment: TrainingProgress | None) -> None:
            nonlocal smoothed
            state = ""
            if moment is not None:
                smoothed = moment.loss if smoothed is None else 0.95 * smoothed + 0.05 * moment.loss
                state = f"loss {smoothed:.3f}"
                if moment.evaluation is not None:
                    state += f", accuracy {moment.evaluation.accuracy:.1%} after {moment.evaluation.iteration}"
            progress.update(task, description="iterations", total=of, completed=done, state=state)

        yield show


@contextmanager
def stages_bar() -> Iterator[Callable[..., None]]:
    """Show a bar for each stage of some work; yields a function that takes how far one is.

    It takes the stage's name, how much of it is done and of how much, and what else to say of it.
    """
    with _bars() as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, of: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of, description=f"{what}{note}")

        yield show


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on standard error what is going on while it lasts and cannot be counted."""
    shown = console(stderr=True)
    with shown.status(what) if shown.is_terminal else nullcontext():
        yield


def counted(things: Iterable[_Thing], progress: Callable[[int], None]) -> Iterator[_Thing]:
    """Hand things on, and tell `progress` of each one that has been dealt with."""
    for thing in things:
        yield thing
        progress(1)
