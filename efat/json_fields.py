"""JSON objects from files that others wrote: every field is taken with a check of what it is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from simulator.errors import InputError, first_line

LARGEST_COUNT = 2**53
"""Counts are below it: JSON's numbers are exact up to there wherever they are read."""

LONGEST_TEXT = 4096

SHA256 = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 digest, as text."""

_SHOWN = 80


class Fields:
    """An object, and where it is in its file.

    Args:
        found: what JSON gave.
        where: for messages: the file, and the place in it.
        names: the fields it has, all of them and no others; None if it may have any.

    Raises:
        InputError: it is no object, lacks a field or has another.
    """

    def __init__(self, found: object, where: str, names: Sequence[str] | None = None) -> None:
        self.where = where
        if not isinstance(found, dict):
            raise InputError(f"{where} is {_shown(found)}: expected an object")
        self.values: dict[str, Any] = found
        for name in names or ():
            if name not in found:
                raise InputError(f"{where} has no {name!r}: is it complete?")
        for name in found:
            if names is not None and name not in names:
                raise InputError(f"{where} has a field {name[:_SHOWN]!r}: expected {', '.join(names)}")

    def text(self, name: str, pattern: re.Pattern[str] | None = None, expected: str = "") -> str:
        """A printable text, all of which matches `pattern`; `expected` says what that is."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
            self.refuse(name, expected or f"printable text of at most {LONGEST_TEXT:,} characters")
        if pattern is not None and not pattern.fullmatch(value):
            self.refuse(name, expected)
        return value

    def optional_text(self, name: str, pattern: re.Pattern[str] | None = None, expected: str = "") -> str | None:
        """The same, or None for null."""
        return None if self._get(name) is None else self.text(name, pattern, expected)

    def sha256(self, name: str) -> str:
        """A SHA-256 digest."""
        return self.text(name, SHA256, "64 hexadecimal digits, a SHA-256 digest")

    def count(self, name: str, least: int = 0, most: int = LARGEST_COUNT) -> int:
        """An integer within `least`..`most`."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(name, f"an integer of {least}..{most}" if most < LARGEST_COUNT else f"an integer from {least}")
        return value

    def number(self, name: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number within `least`..`most`."""
        value = self._get(name)
        # Integers without end are not for float().
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            self.refuse(name, "a finite number")
        if not least <= value <= most:
            self.refuse(name, f"a number within {least:g}..{most:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def inner(self, name: str, names: Sequence[str] | None = None) -> Fields:
        """An object in it, whose fields are `names`."""
        return Fields(self._get(name), f"{self.where}: {name}", names)

    def objects(self, name: str, names: Sequence[str]) -> list[Fields]:
        """A list of objects in it, whose fields are `names`."""
        return [Fields(value, f"{self.where}: {name}[{i}]", names) for i, value in enumerate(self._list(name))]

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of printable texts."""
        found = self._list(name)
        if not all(isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable() for value in found):
            self.refuse(name, "a list of printable texts")
        return tuple(found)

    def counts(self, name: str, length: int, least: int = 0, most: int = LARGEST_COUNT) -> list[int]:
        """A list of `length` integers within `least`..`most`."""
        found = self._list(name)
        integers = all(isinstance(value, int) and not isinstance(value, bool) for value in found)
        if len(found) != length or not integers or not all(least <= value <= most for value in found):
            self.refuse(name, f"a list of {length} integers of {least}..{most}")
        return found

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Say that a field is not what is expected.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.where}: {name} is {_shown(self._get(name))}: expected {expected}")

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"{self.where} has no {name!r}: is it complete?")
        return self.values[name]

    def _list(self, name: str) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            self.refuse(name, "a list")
        return value


def read_json(path: Path, file_format: str, version: int, source: str) -> Fields:
    """Read an object that says of which format and version it is; its other fields are to be taken from what is given.

    Args:
        path: the file.
        file_format: what its `format` has to be.
        version: what its `version` has to be.
        source: the command that writes such files, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is something else, or of another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {source} writes it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({first_line(error)}): expected a file that {source} wrote") from None
    if not isinstance(found, dict) or found.get("format") != file_format:
        raise InputError(f"{path} is no {file_format} file: expected one that {source} wrote")
    if type(found.get("version")) is not int or found["version"] != version:
        raise InputError(
            f"{path} is of version {_shown(found.get('version'))}, and this program reads {version}: write it "
            f"anew with {source}"
        )
    del found["format"], found["version"]
    return Fields(found, str(path))


def _number(text: str) -> float:
    """Python's JSON takes NaN, infinities, and numbers so large that they become infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_SHOWN]} is no finite number")
    return value


def _shown(value: object) -> str:
    """What was found, in so many characters as fit in a line; integers of any length."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "an integer of more than 30 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
