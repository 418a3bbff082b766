"""Data sets in every format, found out from what the files are."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from training.datasets import HELD_OUT_DIGITS, Dataset, Normalization, load_data
from training.errors import InputError

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
    with pytest.raises(InputError, match="images have 3 channels: the network wants 1"):
        load_data(tmp_path / "bytes.npz", "test", normalization=Normalization((0.5,), (0.5,)))


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


def test_sources_that_are_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data; expected 'digits', a folder of IDX files"):
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


@pytest.mark.slow
def test_fashion_mnist_as_it_is_distributed():
    folder = Path(os.environ.get("EFAT_DATA", "")) / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("EFAT_DATA names no folder with data/fashion-mnist in it")
    data = load_data(folder, "test")
    assert data.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.labels).tolist() == [1000] * 10
