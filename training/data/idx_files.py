"""IDX files, the format of MNIST and the data sets made like it, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, first_line

LARGEST_BYTES = 4 << 30
_UINT8 = 0x08
_LARGEST_GZIP_RATIO = 1100
"""Deflate shrinks data to no less than 1/1032."""


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of bytes (LeCun et al., the MNIST database).

    Args:
        path: the file; gzipped if its name ends in `.gz`.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8 with that many dimensions.

    Raises:
        InputError: not such a file, cut short, or with bytes left over.
    """
    zipped = path.suffix == ".gz"
    size = path.stat().st_size
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _read(file, path, dimensions, size * _LARGEST_GZIP_RATIO if zipped else size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): is the file complete?") from None


def _read(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, most: int) -> npt.NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, _UINT8, dimensions]):
        raise InputError(f"{path} is not an IDX file of bytes with {dimensions} dimensions: begins with {header[:4]!r}")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    expected = math.prod(shape)
    if expected > LARGEST_BYTES:
        raise InputError(f"{path} claims {expected} bytes: expected at most {LARGEST_BYTES}")
    content = file.read(min(expected, most) + 1)
    if len(content) != expected:
        found = "more" if len(content) > expected else str(len(content))
        raise InputError(f"{path} claims {expected} bytes for its shape {shape} and has {found}: is the file complete?")
    return np.frombuffer(content, np.uint8).reshape(shape)
