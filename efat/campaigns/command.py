"""The command line that a folder was made with: kept in it, so that what was done need not be guessed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

Command = tuple[str, ...]
"""Its words, as a shell hands them over; the first is `efat`."""

running: ContextVar[Command | None] = ContextVar("running", default=None)
"""The command that runs; None where Python calls."""

_LINE = 88
"""Characters after which a command goes on in another line."""

_LONGEST = 10_000


def command_of(folder: Path) -> Command | None:
    """The command that last worked on the campaign in a folder.

    Args:
        folder: of the campaign, which may be no campaign, or damaged.

    Returns:
        None if there is none, or if it was called from Python.
    """
    try:
        return checked_command(json.loads((folder / "campaign.json").read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def checked_command(found: object) -> Command | None:
    """Words of a command that were read from a file; None for anything else."""
    if not isinstance(found, list | tuple) or not all(isinstance(word, str) and word.isprintable() for word in found):
        return None
    return tuple(found) if sum(map(len, found)) <= _LONGEST else None


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
