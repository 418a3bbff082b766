"""Files: written so that a reader never meets half of one, and told apart by their beginnings."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from simulator.errors import InputError

_BEGINNING = 1 << 16

_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
}

FAULT_LIST = "a list of faults (CSV)"
VERILOG = "a netlist in Verilog"
BLIF = "a netlist in BLIF"
YOSYS_JSON = "a netlist in JSON"
NUMPY = "a NumPy array"
SCALESIM_CONFIG = "a SCALE-Sim configuration"

_TEXTS = (
    (
        FAULT_LIST,
        re.compile(r"\A(?=[^\n]*\bchip\b)(?=[^\n]*\bsite\b)(?=[^\n]*\bkind\b)[a-z ,]+\r?\n", re.IGNORECASE),
    ),
    (YOSYS_JSON, re.compile(r'\A\s*\{\s*"creator":\s*"Yosys')),
    ("JSON", re.compile(r'\A\s*(\{\s*["}]|\[\s*[\[{"\d\]-])')),
    (VERILOG, re.compile(r"^[ \t]*(\(\*[^\n]*\*\)[ \t]*)?module[ \t]+[\w\\$]+\s*[(;#]", re.MULTILINE)),
    # Not a pin of that name.
    (BLIF, re.compile(r"^[ \t]*\.model\b(?![ \t]*\()", re.MULTILINE)),
    (SCALESIM_CONFIG, re.compile(r"^[ \t]*\[architecture_presets\]", re.MULTILINE)),
)
"""Kinds of text and how they begin; the first that fits is taken."""

_HINTS = {YOSYS_JSON: "have Yosys write it with write_verilog -noattr or write_blif"}


@contextmanager
def replaced(path: Path, *, copy: bool = False) -> Iterator[Path]:
    """Give a file beside `path` that takes its place when all went well, and is gone when not.

    Args:
        path: the file to make or replace.
        copy: start from the content of `path` instead of from nothing.

    Yields:
        The file to write into.

    Raises:
        OSError: the folder is missing or cannot be written to, or `path` is a folder or device.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file")
    if path.exists() and not path.is_file():
        raise IsADirectoryError(f"{path} is not a regular file: expected the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} into; make it first")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        if copy:
            shutil.copyfile(path, beside)
        yield beside
        beside.chmod(mode)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def content_of_file(path: Path, most: int, expected: str) -> bytes:
    """The bytes of a file, which are never more than `most`, whatever its size is said to be.

    Args:
        path: of a file, or of a device or pipe, which may have no end.
        most: bytes.
        expected: what it should be, for messages.

    Raises:
        InputError: there are more.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        size = max(path.stat().st_size, len(content))
        raise InputError(f"{path} has {size:,} bytes: expected {expected}, of at most {most:,}")
    return content


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        InputError: it is no regular file: a device or pipe may have no end.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: expected the name of a file to read")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_kind(path: Path) -> str | None:
    """What a file is, such as "a PNG picture", or None if it cannot be told.

    Args:
        path: of something that exists. Only regular files are looked into: a pipe can be read once only.
    """
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not beginning:
        return "an empty file"
    for magic, kind in _MAGIC.items():
        if beginning.startswith(magic):
            return kind
    text = beginning.decode("utf-8-sig", errors="replace")
    return next((kind for kind, begins in _TEXTS if begins.search(text)), None)


def other_kind(
    path: Path, expected: str, own: Collection[str] = (), hints: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """One line that says what a file is instead of what is expected; None if it may be the latter.

    Args:
        path: of something that exists.
        expected: what the reader reads.
        own: kinds that the reader takes.
        hints: for some kinds, what to do with them.
    """
    kind = file_kind(path)
    if kind is None or kind in own:
        return None
    hint = hints.get(kind, _HINTS.get(kind))
    return f"{path} is {kind}: expected {expected}{'; ' + hint if hint else ''}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
