"""What is printed: text without what a terminal would obey, or JSON and nothing else."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from efat import Accuracy

_WORDS = "efat.words"
_JSON_STREAM = "efat.json_stream"
"""Where a command's context keeps the stream that is for JSON alone."""


def printable(text: str) -> str:
    r"""A text as it may be printed, whoever wrote it; its lines stay lines.

    >>> printable("chip\x1b[31m-1")
    'chip\\x1b[31m-1'
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def note(text: str) -> None:
    """Print a text on standard error, above what is going on there."""
    say(text, err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print a text on standard output, or on standard error."""
    click.echo(printable(text), err=err)


def keep_words(context: click.Context, words: Sequence[str]) -> None:
    """Keep the words that a command was called with."""
    context.meta[_WORDS] = tuple(words)


def words_of(context: click.Context) -> tuple[str, ...]:
    """The command that runs in a context, as a shell hands it over."""
    return ("efat", *context.meta.get(_WORDS, ()))


def this_command(*more: str) -> str:
    """The command that runs, and more words, as one gives it to a shell."""
    context = click.get_current_context(silent=True)
    return shlex.join([*(() if context is None else words_of(context)), *more])


def command_text(name: str, *arguments: object, **options: object) -> str:
    """A command of `efat` for people to run; options that are None are left out, `output` stands for `-o`."""
    words = ["efat", name, *map(str, arguments)]
    for option, value in options.items():
        if value is not None:
            words += ["-o" if option == "output" else f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)


def own_network(network: str) -> str | None:
    """What commands must be told again of a network whose code is the user's: they run none that only a file names."""
    return network if ":" in network else None


@contextmanager
def json_alone() -> Iterator[None]:
    """Keep standard output for JSON: whatever else is printed meanwhile, in child processes, too, goes to stderr.

    Results are not shown as tables meanwhile; see `json_is_alone`.
    """
    stdout = sys.stdout
    try:
        number, error = stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # no files, but something of Python's
        with redirect_stdout(sys.stderr):
            click.get_current_context().meta[_JSON_STREAM] = stdout
            yield
        return
    stdout.flush()
    with os.fdopen(os.dup(number), "w", encoding="utf-8") as kept:
        os.dup2(error, number)
        try:
            click.get_current_context().meta[_JSON_STREAM] = kept
            yield
        finally:
            stdout.flush()
            kept.flush()
            os.dup2(kept.fileno(), number)


def json_is_alone() -> bool:
    """Whether standard output is for JSON alone."""
    context = click.get_current_context(silent=True)
    return context is not None and _JSON_STREAM in context.meta


def print_json(text: str) -> None:
    """Print JSON, which escapes what must be escaped, on standard output."""
    click.echo(text, file=click.get_current_context().meta[_JSON_STREAM])


def warn(message: str) -> None:
    """Say on standard error what the user should know about the results."""
    say(f"Warning: {message}", err=True)


def warn_of_own_weights(network: str | None, weights: Path | None) -> None:
    """Warn if a network of the user's own, `package.module:function`, runs without a file of weights."""
    if network is not None and ":" in network and weights is None:
        warn(
            f"no --weights: {network} has the weights that the function returns, which are random if it loads none; "
            "then nothing measured here means anything"
        )


def warn_of_guessing(what: str, accuracy: Accuracy | None, classes: int) -> bool:
    """Warn if a network without faults, such as "the float network", cannot be told from one that guesses.

    Of an accuracy that was not measured, None, nothing is said. Returns whether it was warned of.
    """
    if accuracy is None or not accuracy.like_guessing(classes):
        return False
    warn(
        f"{what} gets {accuracy.correct:,} of {accuracy.images:,} images right without faults, no better than guessing "
        f"among {classes} classes: check that weights, images and their normalisation belong together"
    )
    return True
