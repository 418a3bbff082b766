"""A kind of HDF5 file: what is declared is written and read, and anything else is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from simulator.errors import InputError
from simulator.hdf5 import Dataset, Format

ROWS = Dataset.table("rows", 9, {"name": "S8", "count": ("<i4", 0, 5)})
KIND = Format(
    "efat-test",
    2,
    "efat test",
    "what `efat test` writes",
    digested=2,
    integers={"images": (1, 100)},
    objects=("array",),
    datasets=(
        ROWS,
        Dataset("rates", np.dtype(np.float64), 4, bounds={"": (0, 1)}),
        Dataset("more", np.dtype(np.int64), 12, 2, optional=True),
    ),
)
VALUES: dict[str, Any] = {
    "images": np.int32(7),
    "array": {"rows": 4, "b": [1, "x"]},
    "rows": np.array([(b"one", 0), (b"two", 5)], ROWS.dtype),
    "rates": [0, 0.5, 1],
    "more": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    KIND.write(tmp_path / "x.h5", KIND.checked(VALUES))
    return tmp_path / "x.h5"


def same(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def test_what_is_written_is_read(path: Path) -> None:
    expected = {
        "images": 7,
        "array": {"rows": 4, "b": [1, "x"]},
        "rows": [(b"one", 0), (b"two", 5)],
        "rates": [0.0, 0.5, 1.0],
    }
    assert KIND.read(path, same) == expected
    before = path.read_bytes()
    more = KIND.checked({**VALUES, "more": np.eye(3, 2, dtype=np.int64), "rows": VALUES["rows"][:0]})
    KIND.write(path, more)
    assert KIND.read(path, same) == {**expected, "more": [[1, 0], [0, 1], [0, 0]], "rows": []}
    KIND.write(path, KIND.checked(VALUES))
    assert path.read_bytes() == before


def test_versions_before_the_digest_have_none(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 1
        file.attrs["images"] = 9
        del file.attrs["digest"]
    assert KIND.read(path, same)["images"] == 9
    with pytest.raises(InputError, match="has format version 1: this program reads 2; make the file anew with `efat"):
        replace(KIND, oldest=2).read(path, same)


def in_rows(file: h5py.File) -> None:
    file["rows"][0] = (b"one", 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__setitem__("images", 8),
        lambda file: file.attrs.__setitem__("array", np.bytes_(b"{}")),
        in_rows,
        lambda file: file.__delitem__("rates") or file.create_dataset("rates", data=[0, 0.25, 1]),
        lambda file: file.create_dataset("more", data=np.zeros((1, 2), np.int64)),
        lambda file: file.attrs.__delitem__("digest"),
    ],
)
def test_what_is_not_what_was_written_is_refused(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=r"x\.h5: its digest is another one than that of what it holds"):
        KIND.read(path, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": True}, "images is True: expected an integer"),
        ({"images": 101}, r"images is 101: expected 1\.\.100"),
        ({"array": {"a": float("nan")}}, "array is not what JSON takes"),
        ({"array": {"a": "x" * 60_000}}, "array takes 60008 bytes: expected at most 60000"),
        ({"rates": [0.5, float("nan")]}, r"rates is nan: expected 0\.\.1"),
        ({"rates": ["a"]}, r"rates is <U1 \(1,\): expected float64 with 1 dimension$"),
        ({"rates": [0, 0, 0, 0, 0]}, "dataset 'rates' takes 5 values: expected at most 4"),
        ({"rows": np.array([(b"one", 6)], ROWS.dtype)}, r"count in rows is 6: expected 0\.\.5"),
        ({"rows": np.zeros(2)}, r"rows is float64 \(2,\): expected its columns, as docs/formats.md says, with 1 dim"),
        ({"more": np.zeros(2, np.int64)}, r"more is int64 \(2,\): expected int64 with 2 dimensions"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KIND.checked({**VALUES, **change})


def test_parts_of_any_size_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["rates"]
        file.create_dataset("rates", (2,), np.float64, maxshape=(None,), chunks=(1 << 28,))
    with pytest.raises(InputError, match="dataset 'rates' has parts of 2147483648 bytes: expected at most 67108864"):
        KIND.read(path, same)


@pytest.mark.parametrize("chunks", [None, (1,), (3,)])
def test_what_was_never_written_is_refused(path: Path, chunks: tuple[int, ...] | None) -> None:
    """It takes no place in a file, and could be of any size."""
    with h5py.File(path, "r+") as file:
        del file["rates"]
        file.create_dataset("rates", (4,), np.float64, chunks=chunks)
        if chunks is not None:
            file["rates"][0] = 0.5
    with pytest.raises(InputError, match="dataset 'rates' takes 4 values, of which some are not in the file"):
        KIND.read(path, same)
