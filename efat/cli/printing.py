"""What is printed as text: characters that a terminal would obey, or that cannot be shown, are shown escaped."""

from __future__ import annotations

import click


def printable(text: str) -> str:
    r"""A text as it may be printed, whoever wrote it.

    Args:
        text: from a file, an exception or a user's module, say; its lines stay lines.

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
    """Print a text on standard output.

    Args:
        text: what to say.
        err: on standard error instead.
    """
    click.echo(printable(text), err=err)
