"""Errors that are the input's fault: one line that states the value, what was expected and how to fix it."""

import difflib
import json
import operator
from collections.abc import Collection, Mapping

_MOST_KNOWN = 20_000
"""Names to compare with; more would take longer than anybody waits for a message."""


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


def checked_integer(name: str, value: object, least: int, most: int, note: str = "") -> int:
    """`value` as a Python integer, if it is one in `least..most`; `note` ends the message of one that is outside.

    Raises:
        InputError: it is no integer, or out of its range.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} is {value!r}: expected an integer") from None
    if not least <= number <= most:
        raise InputError(f"{name} is {number}: expected {least}..{most}{note}")
    return number


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


def did_you_mean(given: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: a question, or nothing if no name is near.

    Args:
        given: the name, in capitals or not.
        known: the names there are.

    >>> did_you_mean("resnet19", ["lenet5", "resnet18", "vgg11"])
    '; did you mean resnet18?'
    >>> did_you_mean("alexnet9000", ["lenet5", "resnet18", "vgg11"])
    ''
    """
    if len(known) > _MOST_KNOWN:
        return ""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=3)
    return f"; did you mean {' or '.join(by_lower[name] for name in near)}?" if near else ""
