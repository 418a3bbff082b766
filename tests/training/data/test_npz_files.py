"""`.npz` data sets in every layout, damaged ones, and ones with Python objects in them."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from training.data.datasets import read_npz


def pixels(*shape):
    return np.random.default_rng().integers(0, 256, shape, dtype=np.uint8)


LABELS = np.array([2, 0, 1, 1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("images", "axes"),
    [
        (pixels(4, 6, 5), None),
        (pixels(4, 6, 5, 3), (0, 3, 1, 2)),
        (pixels(4, 1, 6, 5), (0, 1, 2, 3)),
        (pixels(4, 3, 6, 3), (0, 3, 1, 2)),
        (pixels(4, 3, 6, 5).astype(np.float32), (0, 1, 2, 3)),
        (pixels(4, 6, 5, 1).astype(np.float64), (0, 3, 1, 2)),
        (pixels(4, 3, 6, 3).astype(np.float16), (0, 1, 2, 3)),
        (np.asfortranarray(pixels(4, 6, 5, 3)), (0, 3, 1, 2)),
    ],
)
def test_layouts(tmp_path, save, images, axes):
    path = tmp_path / "data.npz"
    save(path, images=images, labels=LABELS)
    found, labels = read_npz(path)
    assert np.array_equal(found, images[:, None] if axes is None else images.transpose(axes))
    assert found.dtype == (np.uint8 if images.dtype == np.uint8 else np.float32)
    assert labels.dtype == np.int64
    assert labels.tolist() == LABELS.tolist()


class Runs:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(4, 6, 5)}, "has no array 'labels': expected 'images' and 'labels', found images"),
        ({"x": LABELS}, "has no array 'images': .* found x"),
        ({"images": np.array([Runs()], object), "labels": LABELS}, "'images' holds Python objects"),
        ({"images": pixels(4, 6, 5), "labels": np.array([Runs()], object)}, "'labels' holds Python objects"),
        ({"images": pixels(4, 6), "labels": LABELS}, r"'images' has shape \(4, 6\)"),
        ({"images": pixels(4, 6, 5, 2), "labels": LABELS}, "expected 1, 3 or 4 channels"),
        ({"images": pixels(4, 6, 5).astype(np.int32), "labels": LABELS}, "'images' holds int32"),
        ({"images": np.full((4, 6, 5), np.nan), "labels": LABELS}, "NaN or infinite"),
        ({"images": np.full((4, 6, 5), 1e300), "labels": LABELS}, "NaN or infinite"),
        ({"images": pixels(4, 6, 5), "labels": LABELS[:, None]}, r"'labels' holds int64 of shape \(4, 1\)"),
        ({"images": pixels(4, 6, 5), "labels": LABELS / 2}, "'labels' holds float64"),
        ({"images": np.zeros(3, "U4"), "labels": LABELS}, "'images' holds <U4"),
    ],
)
def test_files_with_other_contents(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_npz(path)
    assert str(path) in str(caught.value)


def member(header):
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            member("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
            "does not fill its 128 bytes",
        ),
        (member("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 5)}") + bytes(59), "does not fill"),
        (member("{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -4, 5)}") + bytes(60), "cannot be read|shape"),
        (member("__import__('os').abort()"), "cannot be read"),
        (b"not an array", "cannot be read"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_whose_headers_lie(tmp_path, content, message):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(InputError, match=message) as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_file_gives_one_clear_error(tmp_path_factory, data):
    images = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    buffer = io.BytesIO()
    (np.savez if data.draw(st.booleans()) else np.savez_compressed)(buffer, images=images, labels=LABELS)
    damaged = bytearray(buffer.getvalue())
    position = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        del damaged[position:]
    else:
        damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "data.npz"
    path.write_bytes(damaged)
    complaint = ""
    try:
        found, labels = read_npz(path)
    except InputError as error:
        complaint = str(error)
    if complaint:
        assert str(path) in complaint
    else:  # a change in a field that carries no data
        assert np.array_equal(found[:, 0], images)
        assert np.array_equal(labels, LABELS)
