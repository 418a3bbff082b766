"""Records are read as they were written, and whatever else is in a file is refused in one line that says what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from efat.records import (
    Count,
    Document,
    Record,
    Sha256,
    Share,
    canonical_json,
    check,
    check_different,
    digest_of,
    replace,
)
from simulator.errors import InputError
from tests.support.damaged_json import (
    NO_INTEGERS,
    Damage,
    assert_every_field_is_needed,
    assert_read_or_refused,
    assert_refused,
    changed,
)


@dataclass(frozen=True)
class Padding:
    """A frozen dataclass is a record, too."""

    flip: bool
    pixels: int = 0

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise InputError(f"padding is {self.pixels}: expected 0 or more pixels")


class Part(Record, frozen=True):
    """With bounds of its own."""

    name: Annotated[str, Meta(pattern="^[a-z]+$", description="small letters")]
    amount: Annotated[int, Meta(ge=1, le=9)]
    share: Share


class Whole(Document, frozen=True):
    """Everything that a field may be."""

    FORMAT = "efat-whole"
    VERSION = 3
    SOURCE = "efat make"

    parts: Annotated[tuple[Part, ...], Meta(min_length=1, description="one part or more")]
    padding: Padding
    place: Path | None
    bounds: tuple[int, int] | None
    counts: Mapping[str, Count]
    anything: Mapping[str, Any]
    digest: Sha256
    total: Count = 0

    def check(self) -> None:
        """Over several parts."""
        check_different("part", (part.name for part in self.parts), "make it again")
        least = sum(part.amount for part in self.parts)
        check(self.total >= least, "total", self.total, f"an integer from {least}")


WHOLE = Whole(
    parts=(Part("one", 1, 0.5), Part("two", 9, 1)),
    padding=Padding(True, 4),
    place=Path("here/there"),
    bounds=(-1, 5),
    counts={"a": 1, "b c": 2},
    anything={"x": [1, {"y": None}], "z": "text"},
    digest=64 * "a",
    total=10,
)


def read(path: Path) -> Whole:
    return Whole.load(path)


def test_what_was_written_is_read_and_written_again(tmp_path: Path) -> None:
    for whole in (WHOLE, replace(WHOLE, place=None, bounds=None, counts={})):
        path, again = tmp_path / "a.json", tmp_path / "b.json"
        whole.save(path)
        found = read(path)
        assert found == whole
        assert found.place == whole.place
        found.save(again)
        assert again.read_bytes() == path.read_bytes()
        assert json.loads(path.read_text()) == json.loads(canonical_json(whole.as_dict()))


def test_the_digest_is_of_the_content_whatever_its_order() -> None:
    other = replace(WHOLE, counts={"b c": 2, "a": 1})
    assert digest_of(other) == digest_of(WHOLE)
    assert digest_of(replace(WHOLE, total=11)) != digest_of(WHOLE)


DAMAGES: list[tuple[Damage, str]] = [
    *(
        (changed("parts", 0, "amount", to=value), r"parts\[0\]: amount is .*: expected an integer of 1\.\.9")
        for value in NO_INTEGERS
    ),
    *((changed("counts", "b c", to=value), "counts: b c is .*: expected an integer from 0") for value in NO_INTEGERS),
    (changed("counts", "b c", to=2**53 + 1), "b c is 9007199254740993: expected an integer from 0 to 9007199254740992"),
    (changed("parts", 1, "share", to=1.5), r"parts\[1\]: share is 1\.5: expected a number within 0\.\.1"),
    (changed("parts", 1, "share", to=10**400), "share is an integer of more than 30 digits: expected a number within"),
    (changed("parts", 1, "name", to="ONE"), r"parts\[1\]: name is 'ONE': expected small letters"),
    (changed("parts", 1, "name", to="one\n"), r"name is 'one\\n': expected small letters"),
    (changed("parts", 1, "more", to=1), r"parts\[1\] has a field 'more': expected name, amount, share"),
    (changed("parts", to=[]), "parts is a list of 0: expected one part or more"),
    (changed("parts", 1, to=None), r"parts\[1\] is null: expected an object"),
    (changed("padding", to=[]), "padding is a list of 0: expected an object"),
    (changed("padding", "more", to=1), "padding has a field 'more': expected flip, pixels"),
    (changed("padding", "flip", to=0), "padding: flip is 0: expected true or false"),
    (changed("padding", "pixels", to=-1), "padding: padding is -1: expected 0 or more pixels"),
    (changed("place", to=3), "place is 3: expected a path or null"),
    (changed("place", to="a\x07"), r"place is 'a\\x07': expected a path or null"),
    (changed("bounds", to=[1]), "bounds is a list of 1: expected a list of 2 or null"),
    (changed("bounds", to=[1, 2.5]), r"bounds\[1\] is 2\.5: expected an integer"),
    (changed("counts", to={"a\nb": 1}), r"counts: a name is 'a\\nb': expected printable text"),
    (changed("anything", "x", 1, "y", to="a\u202eb"), r"anything: x\[1\]: y is .*: expected printable text"),
    (changed("anything", to=3), "anything is 3: expected an object"),
    (changed("digest", to=64 * "A"), "digest is .*: expected 64 hexadecimal digits, a SHA-256 digest"),
    (changed("total", to=9), "total is 9: expected an integer from 10"),
    (changed("parts", 1, "name", to="one"), "part 'one' is there twice: make it again"),
    (changed("version", to=2), "is of version 2, and this program reads 3: write it anew with efat make"),
    (changed("version", to=True), "is of version True, and this program reads 3"),
    (changed("format", to="other"), "is no efat-whole file: expected one that efat make wrote"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[str(number) for number in range(len(DAMAGES))])
def test_a_damaged_file_is_refused_in_a_line_that_names_field_and_value(
    tmp_path: Path, damage: Damage, message: str
) -> None:
    assert_refused(read, tmp_path / "whole.json", WHOLE.as_dict(), damage, message)


def test_every_field_is_needed_whatever_its_default(tmp_path: Path) -> None:
    places: list[tuple[str | int, ...]] = [(), ("parts", 0), ("padding",)]
    assert_every_field_is_needed(read, tmp_path / "whole.json", WHOLE.as_dict(), places)


@given(st.data())
def test_with_anything_anywhere_it_is_read_or_refused(data: st.DataObject) -> None:
    assert_read_or_refused(read, WHOLE.as_dict(), data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": NaN}', r"is no JSON .NaN is no finite number.: expected a file that efat make wrote"),
        ('{"format": 1e999}', "1e999 is no finite number"),
        ('{"format": "efat-whole", "format": 3}', "'format' is there twice in one object"),
        ("[" * 100_000, "is no JSON"),
        ("", "is no JSON"),
        ("[]", "is no efat-whole file"),
        ('{"format": "efat-whole"}', "is of version null, and this program reads 3"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "whole.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_too_large_or_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "whole.json"
    with pytest.raises(FileNotFoundError, match="no such file; efat make writes it"):
        read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no JSON"):
        read(path)
    monkeypatch.setattr("efat.records.MOST_BYTES", 1)
    with pytest.raises(InputError, match="has 2 bytes: expected a file that efat make wrote, of at most 1"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="has 2 bytes: expected a file that efat make wrote, of at most 1"):
        read(path)


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "whole.json"
    with pytest.raises(InputError, match="total is 3: expected an integer from 10"):
        replace(WHOLE, total=3).save(path)
    with pytest.raises(InputError, match=r"parts\[0\]: amount is 0"):
        replace(WHOLE, parts=(Part("one", 0, 1.0),)).save(path)
    assert not list(tmp_path.iterdir())
