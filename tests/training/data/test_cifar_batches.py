"""CIFAR-10 batches as Python wrote and writes them, cut short, and with code in them that must not run."""

import contextlib
import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from training.data.cifar_batches import LARGEST_FILE_BYTES, interpret, read_cifar_batch


def batch(count=3, key=str.encode, **changes):
    generator = np.random.default_rng()
    fields = {
        "batch_label": "testing batch 1 of 1",
        "labels": [int(label) for label in generator.integers(0, 10, count)],
        "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
        "filenames": [f"{index}.png" for index in range(count)],
    }
    return {key(name): value for name, value in {**fields, **changes}.items()}


def python2_pickle(data, labels):
    """What cPickle of Python 2 wrote with protocol 2: byte strings are SHORT_BINSTRING and BINSTRING."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    listed = b"".join(b"K" + bytes([label]) for label in labels)
    count = len(labels).to_bytes(4, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01J" + count + b"M\x00\x0c\x86cnumpy\ndtype\nq\x07" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(data).to_bytes(4, "little") + data + b"tb"
    )
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + text(b"testing batch 1 of 1") + text(b"labels")
        + b"]q\x03(" + listed + b"e" + text(b"data") + array + text(b"filenames") + b"]q\x08(" + text(b"a.png") + b"eu."
    )  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", [str, str.encode])
def test_batches_of_every_protocol(tmp_path, protocol, key):
    fields = batch(key=key)
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(fields, protocol=protocol))
    images, labels = read_cifar_batch(path)
    assert images.dtype == np.uint8
    assert np.array_equal(images, fields[key("data")].reshape(-1, 3, 32, 32))
    assert labels.tolist() == fields[key("labels")]


def test_batches_as_python_2_wrote_them(tmp_path):
    data = np.random.default_rng().integers(0, 256, (4, 3072), dtype=np.uint8)
    content = python2_pickle(data.tobytes(), [3, 1, 4, 9])
    assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], data)
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    images, labels = read_cifar_batch(path)
    assert np.array_equal(images.reshape(4, 3072), data)
    assert labels.tolist() == [3, 1, 4, 9]


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_batch_does_not_run(tmp_path, protocol):
    proof = tmp_path / "it-ran"
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(batch(filenames=Runs(f"touch {proof}")), protocol=protocol))
    with pytest.raises(InputError, match=rf"{path}: refers to '{os.name}.system', which does not belong in a data set"):
        read_cifar_batch(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists(), "the file would have done no harm: this test shows nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "refers to 'builtins.eval'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "refers to 'posix.system'"),
        (b"(S'numpy'\nS'dtype'\no.", "opcode OBJ, which is not needed"),
        (b"(inumpy\ndtype\n.", "opcode INST, which is not needed"),
        (b"\x82\x01.", "opcode EXT1, which is not needed"),
        (b"P0\n.", "opcode PERSID, which is not needed"),
        (b"N)\x81.", "opcode NEWOBJ, which is not needed"),
        (b"N)R.", "a call of something that is not a name"),
        (b".", "not a readable pickle"),
        (b"0.", "opcode POP"),
        (b"(.", "a mark where a value belongs"),
        (b"N", "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"hello", "not a readable pickle"),
        (b"g7\n.", "not a readable pickle"),
        (b"}(]Nu.", "a dictionary key is a list"),
        (b"}NNs.", "a dictionary key is a NoneType"),
        (b"Na.", "not a readable pickle"),
        (b"T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"]q\x01h\x01a.", "holds a list: expected a dictionary"),
    ],
)
def test_pickles_that_hold_no_data(tmp_path, content, message):
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cifar_batch(path)
    assert str(path) in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.lists(st.sampled_from([o.code for o in pickletools.opcodes])).map("".join))
def test_noise_gives_a_value_or_one_clear_error(noise):
    content = noise if isinstance(noise, bytes) else noise.encode("latin-1")
    with contextlib.suppress(InputError):
        interpret(content)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_batches_give_data_or_one_clear_error(tmp_path_factory, data):
    content = bytearray(python2_pickle(bytes(3072 * 2), [1, 2]))
    position = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
    if data.draw(st.booleans()):
        content[position] = data.draw(st.integers(0, 255))
    else:
        del content[position:]
    path = tmp_path_factory.mktemp("damaged") / "test_batch"
    path.write_bytes(content)
    complaint = ""
    try:
        images, labels = read_cifar_batch(path)
    except InputError as error:
        complaint = str(error)
    if complaint:
        assert str(path) in complaint
    else:
        assert images.shape == (len(labels), 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [1, 2]}, "has 3 images and 2 labels"),
        ({"labels": [1, 2, 10]}, r"expected integers 0..9"),
        ({"labels": [1, 2, -1]}, r"expected integers 0..9"),
        ({"labels": [1, 2, True]}, r"expected integers 0..9"),
        ({"labels": "012"}, r"expected integers 0..9"),
        ({"data": np.zeros((3, 3071), np.uint8)}, r"'data' has shape \(3, 3071\): expected \(n, 3072\)"),
        ({"data": np.zeros((3, 3072), np.int16)}, "'data' does not hold bytes"),
        ({"data": np.zeros((3, 3072), np.uint8, order="F")}, "not a NumPy array in C order"),
        ({"data": [1, 2, 3]}, "not a NumPy array"),
        ({"data": np.dtype("u1")}, "not a NumPy array"),
    ],
)
def test_batches_with_other_contents(tmp_path, changes, message):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(batch(**changes), protocol=2))
    with pytest.raises(InputError, match=message):
        read_cifar_batch(path)


@pytest.mark.parametrize("name", ["data", "labels"])
def test_batches_without_a_part(tmp_path, name):
    fields = batch()
    del fields[name.encode()]
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(fields))
    with pytest.raises(InputError, match=f"has no '{name}'"):
        read_cifar_batch(path)


def test_files_that_are_missing_or_far_too_large(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_cifar_batch(tmp_path / "test_batch")
    with (tmp_path / "test_batch").open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    with pytest.raises(InputError, match="a CIFAR-10 batch has at most"):
        read_cifar_batch(tmp_path / "test_batch")
