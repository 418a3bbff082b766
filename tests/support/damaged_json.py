"""JSON files with one thing wrong, and how readers have to refuse them."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from simulator.errors import InputError

NO_INTEGERS = [-1, 1.0, True, None, "1", 2**53 + 1, 10**400, []]
"""Values that are no counts."""

JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)

Damage = Callable[[dict[str, Any]], None]
Reader = Callable[[Path], Any]


def changed(*place: str | int, to: Any) -> Damage:
    """Replaces what is at a place."""

    def change(content: dict[str, Any]) -> None:
        _at(content, place[:-1])[place[-1]] = to

    return change


def assert_refused(read: Reader, path: Path, whole: Mapping[str, Any], damage: Damage, message: str) -> None:
    """A damaged file is refused in a line that names it."""
    content = json.loads(json.dumps(whole))
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def assert_every_field_is_needed(
    read: Reader, path: Path, whole: Mapping[str, Any], places: Iterable[tuple[str | int, ...]]
) -> None:
    """A file that lacks any one field of the objects at some places is refused."""
    content = json.loads(json.dumps(whole))
    for place in places:
        for name in _at(content, place):
            lacking = copy.deepcopy(content)
            del _at(lacking, place)[name]
            path.write_text(json.dumps(lacking))
            with pytest.raises(InputError, match=rf"has no '{name}'|is no efat-\w+ file|version None|version null"):
                read(path)


def assert_read_or_refused(read: Reader, whole: Mapping[str, Any], data: st.DataObject) -> None:
    """With anything anywhere a file is refused in a line that names it, or what was read can be written and read."""
    content = json.loads(json.dumps(whole))
    inner, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(inner[key], dict | list) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(range(len(inner)) if isinstance(inner, list) else sorted(inner)))
    inner[key] = data.draw(JSON_VALUES | st.text(max_size=5) | st.lists(JSON_VALUES, max_size=2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_text(json.dumps(content))
        try:
            found = read(path)
        except InputError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
        else:
            found.save(path)
            assert read(path).as_dict() == found.as_dict()


def _at(content: Any, place: Iterable[str | int]) -> Any:
    for step in place:
        content = content[step]
    return content
