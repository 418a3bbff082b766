"""Consoles and progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from training.fit import Moment

_Thing = TypeVar("_Thing")

NARROWEST = 110
"""Tables are not squeezed below this width where the output is no terminal."""


def console() -> Console:
    """Where results go: standard output, wide enough for the tables if it is a file or a pipe.

    It prints texts as they are: ids of chips and names of files may have brackets and colons in them.
    """
    found = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not found.is_terminal and found.width < NARROWEST:
        return Console(highlight=False, markup=False, emoji=False, width=NARROWEST)
    return found


def results_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table in the style of all of them.

    Args:
        title: what it shows.
        left: headings of the first columns, of text.
        right: headings of the columns after them, of numbers.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error; yields a function that takes the number of things just done.

    Args:
        what: what is counted, in plural.
        total: how many there will be.
    """
    with progress_bars({what: total}) as (progress,):
        yield progress


@contextmanager
def progress_bars(totals: Mapping[str, int]) -> Iterator[list[Callable[[int], None]]]:
    """Show bars on standard error; yields for each of them a function that takes the number of things just done.

    Args:
        totals: what is counted, in plural, and how many there will be; what there is nothing of has no bar.
    """
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        tasks = [progress.add_task(what, total=total, visible=total > 0) for what, total in totals.items()]
        yield [partial(_advance, progress, task) for task in tasks]


def _advance(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, advance=done)


@contextmanager
def rate_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with things per second on standard error; yields a function that takes the number done so far.

    Args:
        what: what is counted, in plural.
        total: how many there will be, or None if time decides.
    """
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")
        begun = time.perf_counter()

        def show(done: int) -> None:
            rate = done / max(time.perf_counter() - begun, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f}/s")

        yield show


@contextmanager
def training_bar(iterations: int, done: int = 0) -> Iterator[Callable[[Moment], None]]:
    """Show a bar with loss and accuracy on standard error; yields a function that takes each moment of a training.

    Args:
        iterations: how many there will be.
        done: how many are done already.
    """
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("iterations", total=iterations, completed=done, state="")
        smoothed: float | None = None

        def show(moment: Moment) -> None:
            nonlocal smoothed
            smoothed = moment.loss if smoothed is None else 0.95 * smoothed + 0.05 * moment.loss
            state = f"loss {smoothed:.3f}"
            if moment.evaluation is not None:
                state += f", accuracy {moment.evaluation.accuracy:.1%} after {moment.evaluation.iteration}"
            progress.update(task, completed=moment.iteration, state=state)

        yield show


@contextmanager
def stages_bar() -> Iterator[Callable[..., None]]:
    """Show a bar for each stage of some work on standard error.

    Yields:
        A function that takes the stage's name, how much is done and of how much, and what else to say of it.
    """
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, of: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of, description=f"{what}{note}")

        yield show


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on standard error what is going on while it lasts and cannot be counted."""
    with Console(file=sys.stderr).status(what):
        yield


def counted(things: Iterable[_Thing], progress: Callable[[int], None]) -> Iterator[_Thing]:
    """Hand things on, and tell `progress` of each one that has been dealt with."""
    for thing in things:
        yield thing
        progress(1)
