"""Weights from files of both formats, of other networks, damaged, and with code in them."""

import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simulator.errors import InputError
from training.layers.weights import load_weights, read_weights


def network():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), head=nn.Linear(4, 3)))


def assert_loaded(target, source):
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_state_dicts_of_every_kind(tmp_path, legacy, prefix, wrapper):
    source, target = network(), network()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    content = state if wrapper is None else {"epoch": 3, wrapper: state}
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
    load_weights(target, tmp_path / "weights.pt", "mine")
    assert_loaded(target, source)


def test_safetensors_are_known_by_their_content(tmp_path):
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt", "mine")
    assert_loaded(target, source)


def test_counters_of_batches_may_be_missing(tmp_path):
    source, target = network(), network()
    state = source.state_dict()
    del state["norm.num_batches_tracked"]
    torch.save(dict(state), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt", "mine")
    assert_loaded(target, source)


def test_half_precision_is_widened(tmp_path):
    source, target = network().half(), network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors", "mine")
    assert target.head.weight.dtype == torch.float32
    assert torch.equal(target.head.weight, source.head.weight.float())


def test_weights_that_do_not_fit_say_which_and_change_nothing(tmp_path):
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = network().state_dict()
    state["head.weight"] = torch.zeros(5, 4)
    state["head.bias"] = torch.zeros(3, dtype=torch.int32)
    del state["conv.bias"]
    state.update({f"extra.{index}": torch.zeros(1) for index in range(4)})
    torch.save(dict(state), tmp_path / "weights.pt")
    with pytest.raises(InputError) as caught:
        load_weights(target, tmp_path / "weights.pt", "mine")
    assert str(caught.value) == (
        f"{tmp_path / 'weights.pt'} does not fit mine: 1 missing (conv.bias); "
        "4 unexpected (extra.0, extra.1, extra.2, ...); "
        "1 of another shape (head.weight is [5, 4], expected [3, 4]); 1 not float (head.bias is torch.int32)"
    )
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_state_dict_does_not_run(tmp_path, legacy):
    proof = tmp_path / "it-ran"
    path = tmp_path / "weights.pt"
    torch.save({"a": Runs(f"touch {proof}")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError, match=r"weights\.pt is not a state dict of tensors: it is damaged, or there are other things in it"
    ) as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the file would have done no harm: this test shows nothing"


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_files_that_are_cut_short(tmp_path):
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    torch.save(network().state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pt", "legacy.pt"):
        truncated(tmp_path / name)
        with pytest.raises(
            InputError, match=rf"{name} is not a (readable safetensors file|state dict of tensors)"
        ) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list: expected a state dict"),
        ({"weights": 3}, "holds a int under 'weights': expected only tensors"),
        ({7: torch.zeros(1)}, "holds a Tensor under 7"),
        ({"net": {"a": torch.zeros(1)}}, "holds a dict under 'net'"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02N.", bytes(8) + b"{", b"PK\x03\x04", b"\xff" * 8 + b"{}"])
def test_files_of_no_format(tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"weights.pt is not a|weights.pt holds a NoneType"):
        read_weights(tmp_path / "weights.pt")


def test_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_weights(tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_weights(tmp_path)
