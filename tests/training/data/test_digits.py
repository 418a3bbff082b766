"""The packaged digits network: how good it is, that it is the same on a chip, and how it is trained."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from simulator import ArrayConfig, gemm_timing
from training.data.datasets import load_data
from training.data.digits import accuracy, main, train_digits
from training.data.workloads import WORKLOADS, load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers

CONFIG = ArrayConfig(32, 32)


@pytest.fixture(scope="module")
def loaded():
    """The packaged workload."""
    return load_workload("digits-cnn")


def test_the_packaged_file_is_small():
    assert WORKLOADS["digits-cnn"].weights.stat().st_size < 100_000


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
@pytest.mark.parametrize("signed", [True, False])
def test_held_out_digits_in_float_and_in_8_bits(loaded, method, signed):
    in_float = accuracy(loaded.network, loaded.test)
    config = ArrayConfig(32, 32, act_signed=signed)
    exact = Accelerator(config, engine="exact")
    converted = convert(loaded.network, config, loaded.calibration, method=method, accelerator=exact)
    assert in_float >= 0.98
    assert abs(accuracy(converted, loaded.test) - in_float) <= 0.01


def test_all_held_out_digits_are_the_same_on_the_cycle_engine(loaded):
    converted = convert(loaded.network, CONFIG, loaded.calibration)
    runs = []
    for layer in quantized_layers(converted).values():
        layer.observer = runs.append
    with torch.no_grad():
        on_chip = converted(loaded.test.images)
        cycles = sum(gemm_timing(CONFIG, *run.x.shape, run.w.shape[1]).serial for run in runs)
        assert cycles * CONFIG.pe_count < 1e9
        put_on_chip(converted, Accelerator(CONFIG, engine="exact"))
        assert torch.equal(on_chip, converted(loaded.test.images))


def test_training_is_deterministic_and_learns():
    torch.manual_seed(123)
    first = train_digits(seed=3, epochs=2)
    torch.manual_seed(456)
    again = train_digits(seed=3, epochs=2)
    other = train_digits(seed=4, epochs=2)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert accuracy(first, load_data("digits", "train")) > 0.5


@pytest.mark.slow
def test_the_packaged_weights_can_be_trained_again(tmp_path, monkeypatch, capsys):
    output = tmp_path / "again.safetensors"
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["digits", "-o", str(output)])
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    assert f"{output}: 9" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]
    trained = load_file(output)
    packaged = load_file(WORKLOADS["digits-cnn"].weights)
    assert {key: value.shape for key, value in trained.items()} == {key: value.shape for key, value in packaged.items()}
    assert accuracy(load_workload("digits-cnn", output).network, load_data("digits", "test")) >= 0.98
