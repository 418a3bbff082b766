"""The command line that a folder was made with: kept in it, so that what was done need not be guessed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from efat.records import MOST_BYTES
from simulator.files import content_of_file

Command = tuple[str, ...]
"""Its words, as a shell hands them over; the first is `efat`."""

running: ContextVar[Command | None] = ContextVar("running", default=None)
"""The command that runs; None where Python calls."""

_LINE = 88
"""Characters after which a command goes on in another line."""

_LONGEST = 10_000


def kept_in(folder: Path) -> tuple[Command, ...]:
    """The command that last worked on the campaign in a folder; none if Python called, or if there is no campaign."""
    try:
        content = content_of_file(folder / "campaign.json", MOST_BYTES, "a campaign")
        found = json.loads(content)["command"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return ()
    if not isinstance(found, list) or not all(isinstance(word, str) and word.isprintable() for word in found):
        return ()
    return (tuple(found),) if sum(map(len, found)) <= _LONGEST else ()


def kept(commands: Sequence[Command], *expected: str) -> tuple[list[str], list[str]]:
    """Commands as one gives them to a shell, and in a line for each of those expected that none was kept.

    Args:
        commands: that were kept.
        expected: names of commands of `efat`.
    """
    names = {name for command in commands for name in command[1:2]}
    missing = [
        f"No command line of efat {name} was kept: it was called from Python, or by an older version."
        for name in expected
        if name not in names
    ]
    return [shell_text(command) for command in commands], missing


def shell_text(command: Sequence[str], *, line: int = _LINE) -> str:
    """A command as one gives it to a shell, over as many lines as it takes; an option and its value stay in one.

    Args:
        command: its words.
        line: characters after which it goes on in another line.
    """
    parts: list[list[str]] = []
    for word in command:
        value = parts and len(parts[-1]) == 1 and parts[-1][0].startswith("-") and not word.startswith("-")
        if value or (len(parts) == 1 and len(parts[0]) == 1):
            parts[-1].append(word)
        else:
            parts.append([word])
    lines = [""]
    for text in map(shlex.join, parts):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(text) > line:
            lines.append(f"    {text}")
        else:
            lines[-1] += f" {text}" if lines[-1] else text
    return " \\\n".join(lines)
