"""HDF5 files: written whole, with fixed types and checksums; read as what others may have written.

A kind of file is a `Format`, which declares its attributes and datasets once. Before any is used it is checked: kind,
version, types, shapes, sizes and ranges, that nothing leads to another file or unpacks to any size, and the digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from simulator.dtypes import BoolArray
from simulator.errors import InputError, first_line
from simulator.files import other_kind, replaced

MOST_TEXT_BYTES = 60_000
"""Of an object as JSON; the HDF5 library takes little more for an attribute."""

Record = TypeVar("Record")

_LIBRARY = "v110"
"""Files of HDF5 1.10 (2016) and later have checksums on all but the data, which get theirs from a filter, and texts of
variable length, which are not used here. On damage that no checksum covers, the HDF5 library can loop for ever."""
_MOST_CHUNK_BYTES = 1 << 26
_CHUNK_ROWS = 1 << 14
_FLETCHER32 = 3
"""The number of the filter of checksums; any other might unpack to any size."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that files of a kind have.

    Args:
        name: in the file.
        dtype: of a value or, if it has columns, of a row.
        most: values or rows, at most.
        dimensions: how many.
        bounds: least and greatest value, of a column by its name, of an array without columns under "".
        optional: whether files may lack it.
        compressed: whether it may be; its parts are bounded in any case.
    """

    name: str
    dtype: np.dtype[Any]
    most: int
    dimensions: int = 1
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    optional: bool = False
    compressed: bool = False

    @classmethod
    def table(cls, name: str, most: int, columns: Mapping[str, str | tuple[str, float, float]]) -> Dataset:
        """A table of named columns: of each its type, or its type and the least and the greatest value."""
        given = {key: (column,) if isinstance(column, str) else column for key, column in columns.items()}
        dtype = np.dtype([(key, column[0]) for key, column in given.items()])
        bounds = {key: (column[1], column[2]) for key, column in given.items() if len(column) == 3}
        return cls(name, dtype, most, bounds=bounds)

    def checked(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        """Values that may be written, as an array of the declared type that nobody changes.

        Raises:
            InputError: of another type, number of dimensions or size, or one is out of bounds.
        """
        given = np.asarray(values)
        fits = given.dtype == self.dtype
        if not fits and self.dtype.names is None:
            fits = np.can_cast(given.dtype, self.dtype, "safe") and given.dtype != np.bool_
        if not fits or given.ndim != self.dimensions:
            raise InputError(f"{self.name} is {given.dtype!s:.120} {given.shape}: expected {self._expected()}")
        self._check_size(given.shape)
        for name, (least, most) in self.bounds.items():
            what = f"{name} in {self.name}" if name else self.name
            check_range(what, given[name] if name else given, least, most)
        array = given if given.base is None and not given.flags.writeable and fits else given.copy()
        array = array.astype(self.dtype, copy=False)
        array.flags.writeable = False
        return array

    def find(self, file: h5py.File, row: tuple[int, ...] | None = None) -> h5py.Dataset:
        """The dataset in an opened file, not read yet.

        Args:
            file: it.
            row: the shape of its rows, if only one is right.

        Raises:
            InputError: it is missing, elsewhere, of another type or shape, too large, or not all of it is in the file.
        """
        dataset = _own_dataset(file, self.name)
        shape = None if dataset is None else dataset.shape
        if dataset is None or shape is None or dataset.dtype != self.dtype or len(shape) != self.dimensions:
            what = "missing" if dataset is None else f"{dataset.dtype!s:.120} {shape}"
            raise InputError(f"dataset {self.name!r} is {what}: expected {self._expected()}")
        if row is not None and shape[1:] != row:
            raise InputError(f"dataset {self.name!r} has rows of shape {shape[1:]}: expected {self.dtype} {row}")
        self._check_size(shape)
        chunk = math.prod(dataset.chunks or ()) * self.dtype.itemsize
        if chunk > _MOST_CHUNK_BYTES:
            raise InputError(f"dataset {self.name!r} has parts of {chunk} bytes: expected at most {_MOST_CHUNK_BYTES}")
        layout = dataset.id.get_create_plist()
        filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
        if not self.compressed and any(number != _FLETCHER32 for number in filters):
            raise InputError(f"dataset {self.name!r} is compressed: expected checksums only")
        if not _is_stored(dataset):
            what = f"{math.prod(shape)} values, of which some are not in the file"
            raise InputError(f"dataset {self.name!r} takes {what}: is it complete?")
        return dataset

    def _check_size(self, shape: tuple[int, ...]) -> None:
        if math.prod(shape) > self.most:
            what = "values" if self.dtype.names is None else "rows"
            raise InputError(f"dataset {self.name!r} takes {math.prod(shape)} {what}: expected at most {self.most}")

    def _expected(self) -> str:
        what = str(self.dtype) if self.dtype.names is None else "its columns, as docs/formats.md says,"
        return f"{what} with {self.dimensions} dimension{'s' if self.dimensions > 1 else ''}"

    def write(self, file: h5py.File, values: npt.NDArray[Any]) -> None:
        """Write the whole dataset, with checksums and, if it may be, compressed."""
        file.create_dataset(
            self.name,
            data=values,
            # Only tables may be empty, which takes one that could grow.
            maxshape=None if self.dtype.names is None else (None,),
            chunks=self.compressed or (min(max(len(values), 1), _CHUNK_ROWS), *values.shape[1:]),
            compression=1 if self.compressed else None,
            shuffle=self.compressed,
            fletcher32=True,
        )

    def create(self, file: h5py.File, row: tuple[int, ...] = (), chunk: int = _CHUNK_ROWS) -> h5py.Dataset:
        """An empty dataset that grows by rows of that shape, with checksums and, if it may be, compressed."""
        return file.create_dataset(
            self.name,
            (0, *row),
            self.dtype,
            maxshape=(None, *row),
            chunks=(chunk, *row),
            compression=1 if self.compressed else None,
            shuffle=self.compressed,
            fletcher32=True,
        )


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        name: its attribute `format`.
        version: that is written.
        command: what makes such files, for messages.
        expected: what it is, for messages.
        oldest: the first version that is read.
        digested: the first version that has a digest of all that is declared here; None for none.
        integers: attributes that are integers: the least and the greatest.
        objects: attributes that are objects in JSON.
        datasets: what else it holds.
        hints: what to do with files of other kinds, see `simulator.files.other_kind`.
    """

    name: str
    version: int
    command: str
    expected: str
    oldest: int = 1
    digested: int | None = None
    integers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    objects: Sequence[str] = ()
    datasets: Sequence[Dataset] = ()
    hints: Mapping[str, str] = field(default_factory=dict)

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is declared here, of `values`: as it is read again. Arrays are copies that nobody changes.

        Raises:
            InputError: a value that cannot be.
        """
        found: dict[str, Any] = {}
        for name, (least, most) in self.integers.items():
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise InputError(f"{name} is {value!r}: expected an integer")
            if not least <= value <= most:
                raise InputError(f"{name} is {value}: expected {least}..{most}")
            found[name] = int(value)
        found |= {name: _as_json(name, values[name]) for name in self.objects}
        for dataset in self.datasets:
            if not dataset.optional or values.get(dataset.name) is not None:
                found[dataset.name] = dataset.checked(values[dataset.name])
        return found

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Write a file. It appears, or replaces an older one, only when it is complete.

        Args:
            path: the file; its folder is there.
            values: by name, as `checked` gives them; the same values give the same bytes.

        Raises:
            OSError: the file cannot be written.
        """
        with self.created(path) as file:
            for name in self.integers:
                file.attrs[name] = np.int64(values[name])
            for name in self.objects:
                write_text(file, name, _canonical_json(values[name]))
            if self.digested is not None:
                write_text(file, "digest", self._digest(values))
            for dataset in self.datasets:
                if dataset.name in values:
                    dataset.write(file, values[dataset.name])

    def read(self, path: Path, make: Callable[[dict[str, Any]], Record]) -> Record:
        """Read a file.

        Args:
            path: the file.
            make: makes what is returned of the values by name; all are checked, and those that may be missing left out.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, damaged or of another version, or `make` refuses it; it names the file.
        """
        with self.open(path) as file, self.reported(path):
            values: dict[str, Any] = {name: integer_attribute(file, name) for name in self.integers}
            values |= {name: _json_attribute(file, name) for name in self.objects}
            for dataset in self.datasets:
                if not dataset.optional or file.get(dataset.name, getlink=True) is not None:
                    values[dataset.name] = dataset.find(file)[:]
                    values[dataset.name].flags.writeable = False
            digested = self.digested is not None and integer_attribute(file, "version") >= self.digested
            if digested and text_attribute(file, "digest") != self._digest(values):
                raise InputError(
                    f"its digest is another one than that of what it holds: make it anew with `{self.command}`"
                )
        try:
            return make(self.checked(values))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def open(self, path: Path) -> h5py.File:
        """Open a file for reading; only its kind and version are checked.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, damaged, or of another version.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; make it with `{self.command}`")
        wrong = other_kind(path, self.expected, own=("an HDF5 file",), hints=self.hints)
        if wrong is None and not path.is_file():
            wrong = f"{path} is not a regular file: expected {self.expected}"
        if wrong is not None:
            raise InputError(wrong)
        with self.reported(path):
            file = h5py.File(path, "r")
            try:
                self._check_kind(file)
            except BaseException:
                file.close()
                raise
        return file

    def _check_kind(self, file: h5py.File) -> None:
        if text_attribute(file, "format") != self.name:
            raise InputError(
                f"it is of another kind: expected attribute format={self.name!r}, as `{self.command}` writes"
            )
        version = integer_attribute(file, "version")
        if not self.oldest <= version <= self.version:
            what = "update it" if version > self.version else f"make the file anew with `{self.command}`"
            reads = f"{self.oldest} to {self.version}" if self.oldest < self.version else f"{self.version}"
            raise InputError(f"it has format version {version}: this program reads {reads}; {what}")

    @contextmanager
    def created(self, path: Path) -> Iterator[h5py.File]:
        """A file to write into, which takes its place when all went well."""
        with replaced(path) as beside, h5py.File(beside, "w", libver=_LIBRARY) as file:
            write_text(file, "format", self.name)
            file.attrs["version"] = self.version
            yield file

    @contextmanager
    def reported(self, path: Path) -> Iterator[None]:
        """Name the file in what is refused, and turn whatever HDF5 says of a damaged one into an `InputError`."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise InputError(
                f"{path} is not an HDF5 file or is damaged ({first_line(error)}): make it anew with `{self.command}`"
            ) from None

    def _digest(self, values: Mapping[str, Any]) -> str:
        """SHA-256 (hex) of everything that is declared."""
        attributes = {name: values[name] for name in (*self.integers, *self.objects)}
        found = hashlib.sha256(_canonical_json(attributes).encode())
        for dataset in self.datasets:
            if dataset.name in values:
                array = values[dataset.name]
                found.update(f"\n{dataset.name} {' '.join(map(str, array.shape))}\n".encode() + array.tobytes())
        return found.hexdigest()


@contextmanager
def extended(path: Path) -> Iterator[h5py.File]:
    """A copy of a file to write into, which takes its place when all went well."""
    with replaced(path, copy=True) as beside, h5py.File(beside, "r+", libver=_LIBRARY) as file:
        yield file


def append(dataset: h5py.Dataset, values: npt.NDArray[Any]) -> None:
    """Add rows to a dataset that `Dataset.create` made."""
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _own_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset stored in this very file: links and storage that lead to other files are not followed."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    dataset = file[name]
    outside = not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None
    return None if outside else dataset


def _is_stored(dataset: h5py.Dataset) -> bool:
    """Whether all of a dataset is in the file: one of any size that was never written takes no place there."""
    if dataset.chunks is None:
        stored, needed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    else:
        stored = dataset.id.get_num_chunks()
        needed = math.prod(-(-side // part) for side, part in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(stored >= needed)


def integer_attribute(file: h5py.File, name: str) -> int:
    """An attribute that is an integer."""
    if name not in file.attrs:
        raise InputError(f"attribute {name} is missing: expected an integer")
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind not in "iu":
        raise InputError(f"attribute {name} is {attribute.dtype!s:.120} {attribute.shape}: expected one integer")
    return int(file.attrs[name])


def truth_attribute(file: h5py.File, name: str) -> bool:
    """An attribute that is true or false."""
    if name not in file.attrs:
        raise InputError(f"attribute {name} is missing: expected true or false")
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind != "b":
        raise InputError(f"attribute {name} is {attribute.dtype!s:.120} {attribute.shape}: expected true or false")
    return bool(file.attrs[name])


def write_text(file: h5py.File, name: str, text: str) -> None:
    """Write an attribute that is a text of fixed length."""
    file.attrs[name] = np.bytes_(text.encode(errors="backslashreplace"))


def text_attribute(file: h5py.File, name: str) -> str | None:
    """A text of fixed length, None if there is none: those of variable length are kept in a heap without checksums."""
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
        return None
    value = file.attrs[name]
    return _printable(value.decode()) if isinstance(value, bytes) else None


def _printable(text: str) -> str:
    """The text without what could steer the terminal it is shown on."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    """An attribute that is an object in JSON."""
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


def _as_json(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What is read back from a file of what is written there."""
    try:
        text = _canonical_json(content)
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not what JSON takes: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{name} is {text[:40]}: expected an object")
    if len(text) > MOST_TEXT_BYTES:
        raise InputError(f"{name} takes {len(text)} bytes: expected at most {MOST_TEXT_BYTES}")
    return found


def _canonical_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))


def texts(what: str, values: npt.NDArray[np.bytes_]) -> list[str]:
    """Names, S [names], as printable texts.

    Raises:
        InputError: one is not UTF-8, or could steer the terminal it is shown on.
    """
    try:
        found = [value.decode() for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text: {error.object!r}") from None
    if not "".join(found).isprintable():
        raise InputError(f"{what} is not printable text")
    return found


def check_range(what: str, values: npt.ArrayLike, least: float, most: float) -> None:
    """Refuse values out of a range, both ends included, and NaN."""
    array = np.asarray(values)
    refuse(what, array, ~((array >= least) & (array <= most)), f"{least}..{most}")


def refuse(what: str, values: npt.NDArray[Any], wrong: BoolArray, expected: str) -> None:
    """Refuse values that are wrong, naming the first.

    Raises:
        InputError: one is.
    """
    if wrong.any():
        raise InputError(f"{what} is {values[wrong].flat[0]}: expected {expected}")
