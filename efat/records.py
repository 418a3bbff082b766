"""The JSON files of the project: typed records that check themselves, with one way to read and to write them.

A record is a frozen `msgspec.Struct` (or a frozen dataclass), nested as it is meant. What each field may be is said
once, where it is declared: `Annotated[int, Meta(ge=1)]`, `Count`, `Text`, `Sha256`. What depends on several fields is
checked in `__post_init__`. A `Document` is a record that is a file of its own; what must fit over several of its parts
is checked in `Document.check`, when it is read and before it is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta, inspect
from msgspec.structs import replace

from simulator.errors import InputError, first_line
from simulator.files import content_of_file, replaced

LARGEST_COUNT = 2**53
"""Counts are at most it: JSON's numbers are exact up to there wherever they are read."""

LONGEST_TEXT = 4096
MOST_BYTES = 1 << 28
"""Of a file."""

Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits, a SHA-256 digest")]

__all__ = [
    "LARGEST_COUNT",
    "Count",
    "Document",
    "Named",
    "Positive",
    "Record",
    "Sha256",
    "Share",
    "as_json",
    "canonical_json",
    "check",
    "check_different",
    "content_of",
    "digest_of",
    "parse",
    "replace",
    "shown",
    "typed",
]

_SHOWN = 80
_T = TypeVar("_T")
_D = TypeVar("_D", bound="Document")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a document; a subclass is declared with `frozen=True`, too."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; `typed` gives the same again."""
        fields: dict[str, Any] = as_json(self)
        return fields


class Document(Record, frozen=True):
    """A record that is a file, which says of which format and version it is.

    Attributes:
        FORMAT: name of the format.
        VERSION: of the format, what this program reads and writes.
        SOURCE: the command that writes such files, for messages.
        OLDER: versions that are read, too, with the fields that they have not and what these are then.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]
    SOURCE: ClassVar[str]
    OLDER: ClassVar[Mapping[int, Mapping[str, Any]]] = {}

    def check(self) -> None:
        """Refuse parts that do not fit each other; called when it is read, and before it is written.

        Raises:
            InputError: they do not; it begins with the name of a field.
        """

    @classmethod
    def load(cls: type[_D], path: str | Path) -> _D:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, damaged, or of another version: in one line that names file, field and
                value, and says what was expected.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; {cls.SOURCE} writes it")
        content = parse(path, cls.SOURCE)
        if not isinstance(content, dict) or content.get("format") != cls.FORMAT:
            raise InputError(f"{path} is no {cls.FORMAT} file: expected one that {cls.SOURCE} wrote")
        version = content.get("version")
        if type(version) is not int or version not in (cls.VERSION, *cls.OLDER):
            raise InputError(
                f"{path} is of version {shown(version)}, and this program reads {cls.VERSION}: write it anew with "
                f"{cls.SOURCE}"
            )
        del content["format"], content["version"]
        return typed(cls, {**cls.OLDER.get(version, {}), **content}, str(path))

    def save(self, path: str | Path) -> None:
        """Write it whole or not at all; the same document gives the same bytes.

        Raises:
            InputError: `Document.load` would refuse it.
            OSError: it cannot be written.
        """
        content = content_of(self, str(path))
        with replaced(Path(path)) as beside:
            beside.write_bytes(content)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; what the file holds."""
        return {"format": self.FORMAT, "version": self.VERSION, **as_json(self)}


def content_of(document: Document, where: str) -> bytes:
    """What `Document.save` writes; `where` is the file, for messages."""
    text = json.dumps(typed(type(document), as_json(document), where).as_dict(), indent=1, allow_nan=False)
    return f"{text}\n".encode()


def parse(path: Path, source: str) -> Any:
    """What JSON is in a file of others, whose numbers are finite and whose names are there once.

    Messages name `source`, the command that writes such files.
    """
    content = content_of_file(path, MOST_BYTES, f"a file that {source} wrote")
    try:
        return json.loads(content.decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({first_line(error)}): expected a file that {source} wrote") from None


def typed(kind: type[_T], content: object, where: str) -> _T:
    """Make a record of what JSON gave; every field must be there, and no others.

    Messages begin with `where`: the file, and the place in it.
    """
    untyped: Any = kind
    _check(content, _info(untyped), where)
    try:
        found = msgspec.convert(content, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        # What single fields must be has been checked: this is what several must be together.
        message, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").replace(".", ": ").removeprefix(": ")
        told = message if error.__cause__ is None else first_line(error.__cause__)
        raise InputError(f"{where}: {place}: {told}" if place else f"{where}: {told}") from None
    if isinstance(found, Document):
        try:
            found.check()
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return found


def as_json(record: object) -> Any:
    """A record as JSON takes it; `typed` gives the same again."""
    return msgspec.to_builtins(record, enc_hook=_as_text)


def canonical_json(content: object) -> str:
    """The same text for the same content, whatever the order of its names."""
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))


def digest_of(content: object) -> str:
    """SHA-256 (hex) of what JSON takes, or of a record."""
    return hashlib.sha256(canonical_json(as_json(content)).encode()).hexdigest()


def check(fits: bool, name: str, value: object, expected: str) -> None:
    """Refuse a field that does not fit others."""
    if not fits:
        raise InputError(f"{name} is {shown(value)}: expected {expected}")


def check_different(what: str, names: Iterable[object], advice: str) -> None:
    """Refuse names, of `what`, that are there twice."""
    known: set[object] = set()
    for name in names:
        if name in known:
            raise InputError(f"{what} {name!r} is there twice: {advice}")
        known.add(name)


def shown(value: object) -> str:
    """What was found, in so many characters as fit in a line; integers of any length."""
    if value is None:
        return "null"
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "an integer of more than 30 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _finite(text: str) -> float:
    """Python's JSON takes NaN, infinities, and numbers so large that they become infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_SHOWN]} is no finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:_SHOWN]!r} is there twice in one object")
    return found


class Named:
    """What has no place in a file: its text, as `str` gives it, stands for it there."""

    def __repr__(self) -> str:
        return f"<{self}>"


def _from_text(kind: type, value: str) -> Any:
    if kind is not Path:
        raise TypeError(f"{kind} in a record")
    return Path(value)


def _as_text(value: object) -> str:
    if not isinstance(value, Path | Named):
        raise TypeError(f"{type(value)} in a record")
    return str(value)


@cache
def _info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _check(found: Any, info: inspect.Type, where: str) -> None:
    """Refuse what a type does not take, in a line that names the value, which msgspec does not.

    A field with a default may be left out in Python, and in files it may not.
    """
    plain = info.type if isinstance(info, inspect.Metadata) else info
    if isinstance(plain, inspect.UnionType):
        plain = next((kind for kind in plain.types if _takes(kind, found)), plain)
        plain = plain.type if isinstance(plain, inspect.Metadata) else plain
    if not _takes(plain, found):
        counted = isinstance(plain, inspect.IntType) and plain.le == LARGEST_COUNT
        most = f" to {LARGEST_COUNT}" if counted and isinstance(found, int) and found > LARGEST_COUNT else ""
        raise InputError(f"{where} is {shown(found)}: expected {_expected(info)}{most}")
    if isinstance(plain, inspect.StructType | inspect.DataclassType):
        fields = {field.encode_name: field.type for field in plain.fields}
        for name in fields:
            if name not in found:
                raise InputError(f"{where} has no {name!r}: is it complete?")
        for name, value in found.items():
            if name not in fields:
                raise InputError(f"{where} has a field {name[:_SHOWN]!r}: expected {', '.join(fields)}")
            _check(value, fields[name], f"{where}: {name}")
    elif isinstance(found, dict):
        for name, value in found.items():
            _check(name, inspect.StrType(), f"{where}: a name")
            _check(value, getattr(plain, "value_type", inspect.AnyType()), f"{where}: {name[:_SHOWN]}")
    elif isinstance(found, list | tuple):
        for place, value in enumerate(found):
            item: inspect.Type = getattr(plain, "item_type", inspect.AnyType())
            _check(
                value, plain.item_types[place] if isinstance(plain, inspect.TupleType) else item, f"{where}[{place}]"
            )


def _takes(kind: inspect.Type, found: Any) -> bool:
    """Whether a type takes a value, whatever is in that."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        # Integers without end are not for float().
        right = number and (isinstance(found, int) if isinstance(kind, inspect.IntType) else abs(found) < 1e300)
        return right and (kind.ge is None or found >= kind.ge) and (kind.le is None or found <= kind.le)
    if isinstance(kind, inspect.LiteralType):
        return found in kind.values
    if isinstance(found, str):
        pattern = getattr(kind, "pattern", None)
        printable = len(found) <= LONGEST_TEXT and found.isprintable()
        texts = inspect.StrType | inspect.CustomType | inspect.AnyType
        return printable and isinstance(kind, texts) and (pattern is None or re.search(pattern, found) is not None)
    if isinstance(kind, inspect.BoolType):
        return isinstance(found, bool)
    if isinstance(kind, inspect.NoneType):
        return found is None
    if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.DictType):
        return isinstance(found, dict)
    if isinstance(kind, inspect.TupleType):
        return isinstance(found, list | tuple) and len(found) == len(kind.item_types)
    if isinstance(kind, inspect.AnyType):
        return True
    if isinstance(kind, inspect.UnionType):
        return any(_takes(one, found) for one in kind.types)
    several = not isinstance(kind, inspect.StrType | inspect.CustomType)
    return several and isinstance(found, list | tuple) and len(found) >= (getattr(kind, "min_length", None) or 0)


def _expected(info: inspect.Type) -> str:
    """What a type takes, in words."""
    if isinstance(info, inspect.Metadata):
        said = (info.extra_json_schema or {}).get("description")
        return str(said) if said else _expected(info.type)
    if isinstance(info, inspect.UnionType):
        return " or ".join(_expected(kind) for kind in info.types)
    if isinstance(info, inspect.IntType):
        if info.le is None or info.le >= LARGEST_COUNT:
            return "an integer" if info.ge is None else f"an integer from {info.ge}"
        return f"an integer of {info.ge}..{info.le}"
    if isinstance(info, inspect.FloatType):
        low, high = -math.inf if info.ge is None else info.ge, math.inf if info.le is None else info.le
        return "a finite number" if -low == high == math.inf else f"a number within {low:g}..{high:g}"
    if isinstance(info, inspect.LiteralType):
        return f"one of {', '.join(map(str, info.values))}"
    if isinstance(info, inspect.TupleType):
        return f"a list of {len(info.item_types)}"
    return _WORDS.get(type(info), "a list")


_WORDS: Mapping[type[inspect.Type], str] = {
    inspect.AnyType: "printable text",
    inspect.StrType: f"printable text of at most {LONGEST_TEXT:,} characters",
    inspect.CustomType: "a path",
    inspect.BoolType: "true or false",
    inspect.StructType: "an object",
    inspect.DataclassType: "an object",
    inspect.DictType: "an object",
    inspect.NoneType: "null",
}
