"""Data sets in every format, found out from what the files are."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from training.data import datasets
from training.data.datasets import HELD_OUT_DIGITS, Dataset, Normalization, evenly_spaced, load_data, read_idx, read_npz

IDX_NAMES = {"train": "train", "test": "t10k"}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images_and_labels(count, *shape):
    generator = np.random.default_rng()
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, 10, count).astype(
        np.uint8
    )


def write_idx(folder, split, count, separator="-", suffix=""):
    images, labels = images_and_labels(count, 6, 6)
    for part, array in (("images", images), ("labels", labels)):
        content = idx(array)
        name = f"{IDX_NAMES[split]}-{part}{separator}idx{array.ndim}-ubyte{suffix}"
        (folder / name).write_bytes(gzip.compress(content) if suffix else content)
    return images, labels


def write_cifar(folder, counts):
    folder.mkdir()
    written = {}
    for name, count in counts.items():
        images, labels = images_and_labels(count, 3072)
        (folder / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=2))
        written[name] = images.reshape(-1, 3, 32, 32), labels
    return written


def assert_same(dataset, images, labels):
    assert dataset.images.dtype == torch.float32
    assert np.array_equal(dataset.images.numpy(), images.astype(np.float32) / np.float32(255))
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.classes == labels.max() + 1
    assert len(dataset) == len(labels)


def test_digits_are_split_once_and_for_all():
    train, test = load_data("digits", "train"), load_data("digits", "test")
    assert (len(train), len(test)) == (1797 - HELD_OUT_DIGITS, HELD_OUT_DIGITS)
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    assert (float(test.images.min()), float(test.images.max())) == (0.0, 1.0)
    assert set((test.images * 16).unique().tolist()) <= set(range(17))
    assert torch.bincount(test.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert test.labels[:12].tolist() == load_data("digits", "test").labels[:12].tolist()
    rows = torch.cat([train.images, test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folders(tmp_path, separator, suffix):
    for split, count in (("train", 7), ("test", 3)):
        images, labels = write_idx(tmp_path, split, count, separator, suffix)
        assert_same(load_data(tmp_path, split), images[:, None], labels)
        assert load_data(str(tmp_path), split).name == tmp_path.name


def test_idx_folders_with_a_part_missing(tmp_path):
    write_idx(tmp_path, "test", 3)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte: no such file, with or without"):
        load_data(tmp_path, "train")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_data(tmp_path, "test")


def test_idx_folders_whose_parts_do_not_match(tmp_path):
    write_idx(tmp_path, "test", 3)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(InputError, match="has 3 images and 4 labels"):
        load_data(tmp_path, "test")


@pytest.mark.parametrize("inside", [True, False])
def test_cifar_folders(tmp_path, inside):
    folder = tmp_path / "cifar-10-batches-py"
    written = write_cifar(folder, {**{f"data_batch_{index}": index for index in range(1, 6)}, "test_batch": 4})
    source = folder if inside else tmp_path
    assert_same(load_data(source, "test"), *written["test_batch"])
    train = [written[f"data_batch_{index}"] for index in range(1, 6)]
    assert_same(load_data(source, "train"), *(np.concatenate(parts) for parts in zip(*train, strict=True)))
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3: no such file"):
        load_data(source, "train")


def test_npz_files(tmp_path):
    images, labels = images_and_labels(5, 6, 6, 3)
    np.savez(tmp_path / "all.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images[:2], labels=labels[:2])
    for split in ("train", "test"):
        assert_same(load_data(tmp_path / "all.npz", split), images.transpose(0, 3, 1, 2), labels)
    assert_same(load_data(tmp_path, "test"), images[:2].transpose(0, 3, 1, 2), labels[:2])


def test_normalization_is_of_bytes_and_not_of_floats(tmp_path):
    images, labels = images_and_labels(5, 6, 6, 3)
    floats = np.random.default_rng().normal(size=(5, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "bytes.npz", images=images, labels=labels)
    np.savez(tmp_path / "floats.npz", images=floats, labels=labels)
    normalization = Normalization((0.5, 0.25, 0.125), (0.5, 2.0, 4.0))
    found = load_data(tmp_path / "bytes.npz", "test", normalization=normalization).images.numpy()
    expected = (images / 255 - [0.5, 0.25, 0.125]) / [0.5, 2.0, 4.0]
    assert np.allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-6)
    unchanged = load_data(tmp_path / "floats.npz", "test", normalization=normalization)
    assert np.array_equal(unchanged.images.numpy(), floats)
    with pytest.raises(InputError, match="images have 3 channels: the normalisation is of 2"):
        load_data(tmp_path / "bytes.npz", "test", normalization=Normalization((0.5, 0.5), (0.5, 0.5)))
    with pytest.raises(InputError, match=r"floats.npz has images of floats, which are taken as normalised already"):
        load_data(tmp_path / "floats.npz", "test", normalization=normalization, only_bytes=True)
    of_all, of_each = Normalization((0.5,), (0.25,)), Normalization((0.5,) * 3, (0.25,) * 3)
    one, each = (load_data(tmp_path / "bytes.npz", "test", normalization=found) for found in (of_all, of_each))
    assert torch.equal(one.images, each.images)
    assert one.black == each.black == (-2, -2, -2)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(1e-9, 9)), min_size=1, max_size=4))
def test_normalisations_are_read_as_they_are_written(values: list[tuple[float, float]]) -> None:
    mean, std = zip(*values, strict=True)
    found = Normalization(mean, std)
    assert Normalization.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "normalisation '0.5': expected means and deviations"),
        ("0.5:x", "normalisation '0.5:x': expected means and deviations"),
        ("1:2:3", "normalisation '1:2:3': expected means and deviations"),
        ("", "normalisation '': expected means and deviations"),
        ("0.5,0.5:0.5", "normalisation has 2 means and 1 deviations"),
        ("0.5:0", "expected finite means, and deviations above 0"),
        ("nan:1", "expected finite means, and deviations above 0"),
    ],
)
def test_texts_that_are_no_normalisation_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Normalization.parse(text)


def test_a_limit_takes_images_evenly_over_the_set(tmp_path):
    images, _ = images_and_labels(10, 4, 4)
    np.savez(tmp_path / "sorted.npz", images=images, labels=np.repeat(np.arange(5), 2))
    few = load_data(tmp_path / "sorted.npz", "test", limit=5)
    assert few.labels.tolist() == [0, 1, 2, 3, 4]
    assert few.classes == 5
    assert np.array_equal(few.images[:, 0].numpy(), images[::2].astype(np.float32) / np.float32(255))
    assert len(load_data(tmp_path / "sorted.npz", "test", limit=99)) == 10
    assert load_data(tmp_path / "sorted.npz", "test", limit=1).classes == 5
    for limit in (0, -1):
        with pytest.raises(InputError, match=f"asked for {limit} images"):
            load_data(tmp_path / "sorted.npz", "test", limit=limit)


def test_evenly_spaced_indices(seed: int) -> None:
    for limit, count in np.random.default_rng(seed).integers(1, 500, (50, 2)).tolist():
        chosen = evenly_spaced(limit, count)
        assert (len(chosen), chosen[0]) == (min(limit, count), 0)
        gaps = np.diff(np.append(chosen, count))
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_black_is_what_a_black_pixel_becomes(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    images, labels = images_and_labels(3, 4, 4, 3)
    images[1] = 0
    np.savez(tmp_path / "bytes.npz", images=images, labels=labels)
    np.savez(tmp_path / "floats.npz", images=images.astype(np.float32).transpose(0, 3, 1, 2), labels=labels)
    normalization = Normalization(tuple(random.random(3)), tuple(random.random(3) + 0.1))
    data = load_data(tmp_path / "bytes.npz", "test", normalization=normalization)
    assert torch.equal(torch.tensor(data.black), data.images[1, :, 0, 0])
    assert len(set(data.black)) == 3
    assert load_data(tmp_path / "floats.npz", "test", normalization=normalization).black == data.black
    of_another = Normalization((0.5, 0.5), (0.5, 0.5))
    assert load_data(tmp_path / "floats.npz", "test", normalization=of_another).black == ()
    for source in (tmp_path / "bytes.npz", "digits"):
        assert load_data(source, "test").black == ()


def test_digests_tell_data_apart(seed: int) -> None:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.random((4, 2, 3, 5), np.float32))
    labels = torch.tensor([0, 1, 2, 1])
    data = Dataset("data", images, labels, 3)
    changed, swapped = images.clone(), labels.clone()
    changed.view(-1)[random.integers(120)] += 1
    swapped[random.integers(4)] += 1
    others = [
        Dataset("data", changed, labels, 3),
        Dataset("data", images, swapped, 4),
        Dataset("data", images, labels, 4),
        Dataset("data", images.view(4, 2, 5, 3), labels, 3),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 5
    elsewhere = images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert not elsewhere.is_contiguous()
    assert Dataset("another name", elsewhere, labels.clone(), 3).digest == data.digest
    assert re.fullmatch("[0-9a-f]{64}", data.digest)
    assert data.digest is data.digest


@pytest.fixture
def places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders where fashion-mnist can be, those that are looked at first before others; none is there yet."""
    monkeypatch.setenv("EFAT_DATA", str(folder / "data"))
    monkeypatch.setattr(datasets, "FASHION_MNIST_FOLDER", folder / "system" / "fashion-mnist")
    return [
        folder / "fashion-mnist",
        folder / "data" / "fashion-mnist",
        folder / "data",
        folder / "system" / "fashion-mnist",
    ]


def test_fashion_mnist_is_found_by_its_name(places: list[Path]) -> None:
    places[1].mkdir(parents=True)  # without anything in it, it is none of the places
    for place in reversed(places):
        place.mkdir(parents=True, exist_ok=True)
        written = {"train": write_idx(place, "train", 7), "test": write_idx(place, "test", 3)}
        for split, (images, labels) in written.items():
            data = load_data("fashion-mnist", split)
            assert_same(data, images[:, None], labels)
            assert data.name == "fashion-mnist"


def test_fashion_mnist_in_nothing_but_the_system(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("EFAT_DATA")
        else:
            monkeypatch.setenv("EFAT_DATA", value)
        with pytest.raises(FileNotFoundError, match=f"fashion-mnist: no IDX files in {places[-1]}: apt-get install"):
            load_data("fashion-mnist", "test")
    places[-1].mkdir(parents=True)
    images, labels = write_idx(places[-1], "test", 3, suffix=".gz")
    assert_same(load_data("fashion-mnist", "test"), images[:, None], labels)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte: no such file"):
        load_data("fashion-mnist", "train")


def test_fashion_mnist_that_is_nowhere(places: list[Path]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data("fashion-mnist", "test")
    assert str(caught.value) == (
        f"fashion-mnist: no IDX files in {', '.join(map(str, places[1:]))}: apt-get install dataset-fashion-mnist, "
        "or give the folder with its IDX files with --data or in the environment variable EFAT_DATA"
    )
    places[0].write_bytes(b"a file")
    with pytest.raises(InputError, match="fashion-mnist is a file of no known format"):
        load_data("fashion-mnist", "test")


def test_sources_that_are_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data; expected 'digits', 'fashion-mnist', a folder of IDX"):
        load_data(tmp_path / "nowhere", "test")
    with pytest.raises(InputError, match="holds no data of a known format"):
        load_data(tmp_path, "test")
    (tmp_path / "images.png").write_bytes(b"png")
    with pytest.raises(InputError, match="is a file of no known format"):
        load_data(tmp_path / "images.png", "test")
    with pytest.raises(InputError, match="split 'validation' is unknown: choose one of train, test"):
        load_data("digits", "validation")


def test_a_folder_called_digits_is_read(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    images, labels = write_idx(tmp_path / "digits", "test", 3)
    monkeypatch.chdir(tmp_path)
    assert_same(load_data("digits", "test"), images[:, None], labels)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "has no images"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, -1]), "labels go from -1 to 0"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 10**9]), "expected classes from 0 on"),
        (np.zeros((2, 0, 4), np.uint8), np.array([0, 1]), "expected at least one pixel"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0]), "has 2 images and 1 labels"),
    ],
)
def test_images_and_labels_that_make_no_data_set(tmp_path, images, labels, message):
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    with pytest.raises(InputError, match=message):
        load_data(tmp_path / "data.npz", "test")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4).double(), torch.zeros(2).long(), "expected float32"),
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), "expected float32"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).int(), "expected int64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), r"expected int64 \[2\]"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]), r"expected 0..2"),
    ],
)
def test_a_dataset_checks_itself(images, labels, message):
    with pytest.raises(InputError, match=message):
        Dataset("mine", images, labels, classes=3)


def test_black_has_a_value_for_each_channel() -> None:
    with pytest.raises(InputError, match="black has 3 values: expected one for each of the 2 channels"):
        Dataset("mine", torch.zeros(2, 2, 4, 4), torch.tensor([0, 1]), classes=2, black=(0.0, 0.0, 0.0))


@pytest.mark.slow
def test_fashion_mnist_as_it_is_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    named = Path(os.environ.get("EFAT_DATA", ""))
    around = next((place for place in (named, named / "data") if (place / "fashion-mnist").is_dir()), None)
    if around is None:
        pytest.skip("EFAT_DATA names no folder with fashion-mnist or data/fashion-mnist in it")
    monkeypatch.setenv("EFAT_DATA", str(around.absolute()))
    for split, count in (("train", 6000), ("test", 1000)):
        data = load_data("fashion-mnist", split)
        assert data.images.shape == (10 * count, 1, 28, 28)
        assert torch.bincount(data.labels).tolist() == [count] * 10


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
