"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
