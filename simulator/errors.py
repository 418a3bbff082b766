"""Errors that are the input's fault: one line that states the value, what was expected and how to fix it."""

import json
from collections.abc import Mapping


class InputError(ValueError):
    """Something the user gave (a file, a name, a network, a value) cannot be used."""


class ConversionError(InputError):
    """A network cannot be turned into a quantised one."""


class NotFiniteError(InputError):
    """NaN or infinity where a network computes: broken images or weights, or a training that diverged."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def different_names(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Names under which two have something else, or just one has something; all as JSON takes it."""

    def text(content: Mapping[str, object], name: str) -> str | None:
        # As texts: true, 1 and 1.0 are equal in Python.
        return json.dumps(content[name], sort_keys=True) if name in content else None

    return [name for name in {**one, **other} if text(one, name) != text(other, name)]


def check_unchanged(found: Mapping[str, object], begun_with: Mapping[str, object]) -> None:
    """Refuse to go on with other inputs: what a process loads may have changed since the work was begun.

    Args:
        found: digests and texts of what was loaded now, by name.
        begun_with: those of what the work was begun with.

    Raises:
        InputError: they differ.
    """
    different = different_names(found, begun_with)
    if different:
        raise InputError(
            "network or data are not those that this was begun with: they changed while it ran "
            f"({', '.join(different)})"
        )
