"""Labelled images from what users have: packaged digits, IDX files, CIFAR-10 python batches, `.npz` files."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simulator.dtypes import Int64Array, UInt8Array
from simulator.errors import InputError, first_line
from training.data.cifar_batches import read_cifar_batch

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

DIGITS = "digits"
FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""
DATA_VARIABLE = "EFAT_DATA"
"""Environment variable with the folder of the user's data sets."""

HELD_OUT_DIGITS = 360
_DIGITS_SPLIT_SEED = 2023
_DIGITS_LEVELS = 16
_LARGEST_CLASSES = 100_000

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_CIFAR_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{index}" for index in range(1, 6)),
    "test": ("test_batch",),
}
_CIFAR_FOLDER = "cifar-10-batches-py"

_EXPECTED = (
    f"{DIGITS!r}, {FASHION_MNIST!r}, a folder of IDX files (train-images-idx3-ubyte, ..., with or without .gz), a "
    "folder of CIFAR-10 python batches, or an .npz file with images and labels"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images.

    Args:
        name: for people: where the images are from.
        images: float32 [n, channels, height, width], normalised as the network wants them.
        labels: int64 [n], from 0.
        classes: number of classes; every label is below.
        black: what a black pixel is in each channel, normalised as the images are; empty for 0 in every channel.

    Raises:
        InputError: shapes or types that do not fit, no images, or labels that are no classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: int
    black: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.float32 or self.images.ndim != 4:
            raise InputError(
                f"{self.name}: images are {self.images.dtype} {list(self.images.shape)}: expected float32 nchw"
            )
        if self.labels.dtype != torch.int64 or list(self.labels.shape) != [len(self.images)]:
            raise InputError(
                f"{self.name}: labels are {self.labels.dtype} {list(self.labels.shape)}: "
                f"expected int64 [{len(self.images)}], one for each image"
            )
        if 0 in self.images.shape:
            raise InputError(f"{self.name}: images have shape {list(self.images.shape)}: expected at least one pixel")
        least, greatest = (int(label) for label in torch.aminmax(self.labels))
        if least < 0 or greatest >= self.classes:
            raise InputError(f"{self.name}: labels go from {least} to {greatest}: expected 0..{self.classes - 1}")
        if self.black and len(self.black) != self.images.shape[1]:
            raise InputError(
                f"{self.name}: black has {len(self.black)} values: expected one for each of the "
                f"{self.images.shape[1]} channels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of shape, classes, images and labels: equal exactly for equal ones, whatever their name."""
        found = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode() + b"\n")
        for values, same_everywhere in ((self.images, "<f4"), (self.labels, "<i8")):
            found.update(values.numpy().ravel().astype(same_everywhere, copy=False).data)
        return found.hexdigest()


@dataclass(frozen=True)
class Normalization:
    """What is done to pixels of 0..1: subtract the mean of the channel, divide by its standard deviation.

    Args:
        mean: of each channel, or one value for all.
        std: likewise, as many, above 0.

    Raises:
        InputError: values that are not finite, a deviation that is not above 0, or not as many of them as means.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            raise InputError(f"normalisation {self}: expected finite means, and deviations above 0")
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"normalisation has {len(self.mean)} means and {len(self.std)} deviations: expected one of each for "
                "each channel, or one for all"
            )

    @classmethod
    def parse(cls, text: str) -> Normalization:
        """The normalisation that a text says: means with commas, a colon, deviations with commas; as `str` gives it.

        Raises:
            InputError: it says none.

        >>> Normalization.parse("0.5,0.4,0.3:0.25,0.25,0.2")
        Normalization(mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2))
        """
        try:
            mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split(":"))
        except ValueError:
            raise InputError(
                f"normalisation {text!r}: expected means and deviations of pixels of 0 to 1, such as "
                "0.485,0.456,0.406:0.229,0.224,0.225, or 0.5:0.5 for all channels"
            ) from None
        return cls(mean, std)

    def __str__(self) -> str:
        return ":".join(",".join(map(repr, values)) for values in (self.mean, self.std))

    def of_channels(self, channels: int) -> Normalization:
        """The same with values for each channel.

        Raises:
            InputError: it is of another number of channels.
        """
        if len(self.mean) == channels:
            return self
        if len(self.mean) > 1:
            raise InputError(f"images have {channels} channels: the normalisation is of {len(self.mean)}")
        return Normalization(self.mean * channels, self.std * channels)

    def apply(self, images: Tensor) -> Tensor:
        """Normalise float32 [n, c, h, w].

        Raises:
            InputError: another number of channels.
        """
        found = self.of_channels(images.shape[1])
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (found.mean, found.std))
        return (images - mean).div_(std)

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel becomes in each channel, as float32 computes it."""
        channels = len(self.mean)
        return tuple(self.apply(torch.zeros(1, channels, 1, 1)).flatten().tolist())


def load_data(
    source: str | Path,
    split: Split,
    *,
    limit: int | None = None,
    normalization: Normalization | None = None,
    only_bytes: bool = False,
) -> Dataset:
    """Read labelled images, finding out which format they are in.

    Args:
        source: `digits` (scikit-learn's, packaged); `fashion-mnist`, which is looked for in `$EFAT_DATA/fashion-mnist`,
            in `$EFAT_DATA` and where Debian's package puts it; or a path, which is taken as one even if it is called
            like one of these: a folder of IDX files under their standard names; a folder of
            CIFAR-10 python batches, or the folder around it; or an `.npz` file with `images` and `labels`, which is all
            there is of either split, or a folder of `train.npz` and `test.npz`.
        split: `train` or `test`.
        limit: at most this many images, evenly spaced over the set; None for all.
        normalization: what the network wants done to pixels of 0..1. Images of bytes are divided by 255 first
            (digits by 16); images that are floats already are taken as they are, normalised like this.
        only_bytes: whether to refuse images that are floats already.

    Raises:
        FileNotFoundError: there is no such file or folder, or a part of the data set is missing in it.
        InputError: the files are of no known format, malformed or cut short, or `split` or `limit` make no sense.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"asked for {limit} images: expected 1 or more")
    name, pixels, labels, levels = _read(source, split)
    if len(pixels) != len(labels):
        raise InputError(f"{name} has {len(pixels)} images and {len(labels)} labels: expected as many")
    if not len(labels):
        raise InputError(f"{name} has no images: expected at least one")
    classes = int(labels.max()) + 1
    if labels.min() < 0 or classes > _LARGEST_CLASSES:
        raise InputError(f"{name}: labels go from {labels.min()} to {labels.max()}: expected classes from 0 on")
    if limit is not None:
        chosen = evenly_spaced(limit, len(labels))
        pixels, labels = pixels[chosen], labels[chosen]
    images = torch.from_numpy(np.array(pixels, np.float32))
    if pixels.dtype == np.uint8:
        images /= levels
        if normalization is not None:
            images = normalization.apply(images)
    elif only_bytes:
        raise InputError(
            f"{name} has images of floats, which are taken as normalised already: leave the normalisation out, or give "
            "images of bytes"
        )
    fits = normalization is not None and len(normalization.mean) in (1, images.shape[1])
    black = normalization.of_channels(images.shape[1]).black if normalization is not None and fits else ()
    return Dataset(name, images, torch.from_numpy(np.array(labels, np.int64)), classes, black)


def evenly_spaced(limit: int, count: int) -> Int64Array:
    """Indices of at most `limit` of `count` images, evenly spaced: int64 [min(limit, count)], ascending."""
    taken = min(limit, count)
    return np.arange(taken) * count // taken


_Parts = tuple[str, npt.NDArray[Any], npt.NDArray[Any], int]
"""Name, pixels [n, c, h, w] (uint8 or float32), labels [n], and the value of a full pixel."""


def _read(source: str | Path, split: Split) -> _Parts:
    path = Path(source)
    if str(source) == DIGITS and not path.exists():
        return _digits(split)
    if str(source) == FASHION_MNIST and not path.exists():
        return FASHION_MNIST, *_idx(_find_fashion_mnist(), split)[1:]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such data; expected {_EXPECTED}")
    if path.is_file():
        if path.suffix != ".npz":
            raise InputError(f"{path} is a file of no known format: expected {_EXPECTED}")
        return _npz(path)
    for folder in (path, path / _CIFAR_FOLDER):
        if (folder / "test_batch").exists() or (folder / "data_batch_1").exists():
            return _cifar(folder, split)
    if (path / f"{split}.npz").is_file():
        return _npz(path / f"{split}.npz")
    if any(_idx_names(path)):
        return _idx(path, split)
    raise InputError(f"{path} holds no data of a known format: expected {_EXPECTED}")


def _find_fashion_mnist() -> Path:
    named = os.environ.get(DATA_VARIABLE)
    places = [Path(named) / FASHION_MNIST, Path(named)] if named else []
    places.append(FASHION_MNIST_FOLDER)
    for place in places:
        if any(_idx_names(place)):
            return place
    raise FileNotFoundError(
        f"{FASHION_MNIST}: no IDX files in {', '.join(map(str, places))}: apt-get install dataset-fashion-mnist, "
        f"or give the folder with its IDX files with --data or in the environment variable {DATA_VARIABLE}"
    )


def _digits(split: Split) -> _Parts:
    """The 1,797 digits of scikit-learn, 360 of them held out for test, each class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = found.images.astype(np.uint8)[:, None]
    parts = train_test_split(
        images, found.target, test_size=HELD_OUT_DIGITS, stratify=found.target, random_state=_DIGITS_SPLIT_SEED
    )
    chosen = SPLITS.index(split)
    return "scikit-learn digits", parts[chosen], parts[2 + chosen], _DIGITS_LEVELS


def _npz(path: Path) -> _Parts:
    images, labels = read_npz(path)
    return path.name, images, labels, 255


def _cifar(folder: Path, split: Split) -> _Parts:
    batches = [read_cifar_batch(folder / name) for name in _CIFAR_FILES[split]]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return f"CIFAR-10 ({folder.name})", images, labels, 255


def _idx_names(folder: Path) -> Iterator[Path]:
    """Files of the folder that have the name of some part of an IDX data set."""
    for prefix in _IDX_PREFIX.values():
        for part in ("images", "labels"):
            yield from _idx_candidates(folder, prefix, part)


def _idx_candidates(folder: Path, prefix: str, part: str) -> Iterator[Path]:
    dimensions = {"images": 3, "labels": 1}[part]
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{part}{separator}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                yield path


def _idx(folder: Path, split: Split) -> _Parts:
    paths = []
    for part in ("images", "labels"):
        found = next(_idx_candidates(folder, _IDX_PREFIX[split], part), None)
        if found is None:
            dimensions = {"images": 3, "labels": 1}[part]
            missing = folder / f"{_IDX_PREFIX[split]}-{part}-idx{dimensions}-ubyte"
            raise FileNotFoundError(f"{missing}: no such file, with or without .gz; the data set is not complete")
        paths.append(found)
    return folder.resolve().name, read_idx(paths[0], 3)[:, None], read_idx(paths[1], 1), 255


LARGEST_IDX_BYTES = 4 << 30
_UINT8 = 0x08
_LARGEST_GZIP_RATIO = 1100
"""Deflate shrinks data to no less than 1/1032."""


def read_idx(path: Path, dimensions: int) -> UInt8Array:
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
            return _read_idx(file, path, dimensions, size * _LARGEST_GZIP_RATIO if zipped else size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): is the file complete?") from None


def _read_idx(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, most: int) -> UInt8Array:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, _UINT8, dimensions]):
        raise InputError(f"{path} is not an IDX file of bytes with {dimensions} dimensions: begins with {header[:4]!r}")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    expected = math.prod(shape)
    if expected > LARGEST_IDX_BYTES:
        raise InputError(f"{path} claims {expected} bytes: expected at most {LARGEST_IDX_BYTES}")
    content = file.read(min(expected, most) + 1)
    if len(content) != expected:
        found = "more" if len(content) > expected else str(len(content))
        raise InputError(f"{path} claims {expected} bytes for its shape {shape} and has {found}: is the file complete?")
    return np.frombuffer(content, np.uint8).reshape(shape)


LARGEST_NPZ_BYTES = 16 << 30
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


def read_npz(path: Path) -> tuple[npt.NDArray[Any], Int64Array]:
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
            if size > LARGEST_NPZ_BYTES or size != info.file_size - file.tell():
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


def _as_labels(labels: npt.NDArray[Any]) -> Int64Array:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"'labels' holds {labels.dtype} of shape {labels.shape}: expected integers [n]")
    return labels.astype(np.int64)
