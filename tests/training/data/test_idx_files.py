"""IDX files, whole, cut short and with headers that lie."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from training.data.datasets import read_idx


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (0, 4, 3), (7,)])
def test_what_was_written_is_read(tmp_path, name, shape):
    array = np.random.default_rng().integers(0, 256, shape, dtype=np.uint8)
    found = read_idx(write(tmp_path / name, idx(array)), array.ndim)
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08\x03\x00", "not an IDX file"),
        (idx(np.zeros(12, np.uint8)) + bytes(8), "not an IDX file of bytes with 3 dimensions"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an IDX file"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:-1], r"claims 24 bytes for its shape \(2, 3, 4\) and has 23"),
        (idx(np.zeros((2, 3, 4), np.uint8)) + b"x", "claims 24 bytes .* and has more"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "expected at most"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 1000, 1000, 1000), r"and has 0"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_gzip_file_gives_one_clear_error(tmp_path_factory, data):
    content = gzip.compress(idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)))
    damaged = bytearray(content)
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del damaged[position:]
    else:
        damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "images.gz"
    path.write_bytes(damaged)
    complaint = ""
    try:
        found = read_idx(path, 3)
    except InputError as error:
        complaint = str(error)
    if complaint:
        assert str(path) in complaint
    else:  # a change in the part of the gzip header that carries no data
        assert np.array_equal(found, np.arange(60).reshape(3, 4, 5))
