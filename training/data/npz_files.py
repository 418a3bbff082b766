"""Data sets in NumPy's `.npz` format: one file with `images` and `labels`."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, first_line

LARGEST_BYTES = 16 << 30
_CHANNELS = (1, 3, 4)

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
"""What `zipfile` raises on files that are cut short, overwritten in places, encrypted or packed in another way."""


def read_npz(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Read images and labels; nothing is unpickled.

    Args:
        path: file with `images` (uint8 [n, h, w], [n, h, w, c] or [n, c, h, w]; or float of the same shapes) and
            `labels` (integers [n]). In four dimensions the channels are the axis of length 1, 3 or 4; if both could be,
            the last one for uint8 and the first one for float.

    Returns:
        Images uint8 or float32 [n, c, h, w] and labels int64 [n].

    Raises:
        FileNotFoundError: there is no such file.
        InputError: not such a file, cut short, or arrays of other shapes or types.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            images, labels = (_read_member(archive, name) for name in ("images", "labels"))
        return _channels_first(images), _as_labels(labels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable .npz file ({first_line(error)}): is the file complete?") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        present = ", ".join(sorted(member.removesuffix(".npy") for member in archive.namelist()[:10])) or "nothing"
        raise InputError(f"has no array {name!r}: expected 'images' and 'labels', found {present}") from None
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise InputError(f"array {name!r} has .npy version {version}: expected 1.0 or 2.0")
            shape, _, dtype = read_header(file)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise InputError(f"array {name!r} holds Python objects: expected numbers")
            # Before memory is taken for an array, its size must be that of the member, and that one plausible.
            if size > LARGEST_BYTES or size != info.file_size - file.tell():
                raise InputError(f"array {name!r} of shape {shape} does not fill its {info.file_size} bytes")
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except (ValueError, TypeError, SyntaxError, MemoryError) as error:
        raise InputError(f"array {name!r} cannot be read ({first_line(error)}): is the file complete?") from None


def _channels_first(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"'images' holds {images.dtype}: expected uint8 or float32")
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise InputError("'images' has NaN or infinite values: expected finite numbers")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise InputError(f"'images' has shape {images.shape}: expected [n, h, w], [n, h, w, c] or [n, c, h, w]")
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if not first and not last:
        raise InputError(f"'images' has shape {images.shape}: expected 1, 3 or 4 channels")
    if last and (images.dtype == np.uint8 or not first):
        return np.moveaxis(images, 3, 1)
    return images


def _as_labels(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"'labels' holds {labels.dtype} of shape {labels.shape}: expected integers [n]")
    return labels.astype(np.int64)
