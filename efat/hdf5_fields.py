"""Attributes of HDF5 files that others may have written: integers and JSON, checked before use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simulator.errors import InputError, first_line
from simulator.hdf5 import text_attribute

HDF5_VERSION = "v110"
"""As for lots of chips: what the library of 2016 and later writes has checksums."""

MOST_TEXT_BYTES = 60_000
"""Of each description, as JSON; the HDF5 library takes little more for an attribute."""

_FLETCHER32 = 3
"""The number of the only filter that is used, of checksums: any other might unpack to any size."""


@contextmanager
def damage_reported(path: Path, command: str) -> Iterator[None]:
    """Name the file in what is refused, and turn whatever HDF5 says of a damaged one into an `InputError`.

    Args:
        path: of the file.
        command: what writes such files.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path} is not an HDF5 file or is damaged ({first_line(error)}): make it anew with `{command}`"
        ) from None


def integer_attribute(file: h5py.File, name: str) -> int:
    """An attribute that is one int64.

    Raises:
        InputError: it is not.
    """
    if name not in file.attrs:
        raise InputError(f"attribute {name} is missing: expected an integer")
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype != np.int64:
        raise InputError(f"attribute {name} is {attribute.dtype} {attribute.shape}: expected one int64")
    return int(file.attrs[name])


def json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    """An attribute that is an object in JSON, of at most `MOST_TEXT_BYTES`.

    Raises:
        InputError: it is not.
    """
    length = file.attrs.get_id(name).dtype.itemsize if name in file.attrs else 0
    text = text_attribute(file, name) if length <= MOST_TEXT_BYTES else None
    if text is None:
        raise InputError(f"attribute {name} is missing, too long or no text: expected an object in JSON")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"attribute {name} is not JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"attribute {name} is {text[:40]}: expected an object in JSON")
    return found


def check_not_compressed(dataset: h5py.Dataset, name: str, command: str) -> None:
    """Refuse a dataset that might unpack to any size.

    Args:
        dataset: of a file.
        name: its name.
        command: what writes such files, without compressing them.

    Raises:
        InputError: it has any filter but checksums.
    """
    layout = dataset.id.get_create_plist()
    if any(layout.get_filter(place)[0] != _FLETCHER32 for place in range(layout.get_nfilters())):
        raise InputError(f"dataset {name!r} is compressed: expected checksums only, as `{command}` writes")


def as_json(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What is read back from a file of what is written there.

    Args:
        name: of it, for messages.
        content: what JSON takes.

    Raises:
        InputError: it is not, or is longer than `MOST_TEXT_BYTES`.
    """
    try:
        text = canonical_json(content)
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not what JSON takes: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{name} is {text[:40]}: expected an object")
    if len(text) > MOST_TEXT_BYTES:
        raise InputError(f"{name} takes {len(text)} bytes: expected at most {MOST_TEXT_BYTES}")
    return found


def canonical_json(content: Mapping[str, Any]) -> str:
    """The same text for the same content."""
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
