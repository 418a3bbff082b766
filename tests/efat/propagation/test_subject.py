"""The network, the images and the array that faults are put into: what is loaded, identified and refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efat.propagation.request import DEFAULT_IMAGES, Subject
from efat.records import replace
from simulator.errors import InputError
from tests.support.propagation import ARRAY, small_subject
from tests.support.resilience import HELD_OUT, TRAIN, small_network, trained_weights
from training.calibration import Method
from training.data.datasets import Normalization
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment, write_deployed


def scales_of(subject: Subject) -> dict[str, float]:
    layers = quantized_layers(subject.load(ARRAY).network)
    return {name: float(layer.activation_scale) for name, layer in layers.items()}


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_it_is_the_network_quantised_on_an_array_without_faults(folder: Path, seed: int, method: Method) -> None:
    count = int(np.random.default_rng(seed).integers(1, len(HELD_OUT) + 1))
    loaded = small_subject(folder, images=count, calibration=method).load(ARRAY)
    network = small_network()
    network.load_state_dict(trained_weights())
    accelerator = Accelerator.fault_free(ARRAY)
    expected = convert(network, ARRAY, TRAIN.images, method=method, accelerator=accelerator)
    assert torch.equal(loaded.images, HELD_OUT.images[:count])
    assert torch.equal(loaded.labels, HELD_OUT.labels[:count])
    assert torch.equal(loaded.network(loaded.images), expected(loaded.images))
    assert not loaded.network.training
    for layer in quantized_layers(loaded.network).values():
        assert (layer.accelerator.faults, layer.accelerator.bypass, layer.placement) == (None, None, None)


def test_the_first_images_are_taken_and_all_if_they_are_few(folder: Path) -> None:
    subject = small_subject(folder, images=None)
    assert len(HELD_OUT) < DEFAULT_IMAGES
    assert len(subject.load(ARRAY).labels) == subject.identified(ARRAY).images == len(HELD_OUT)
    digits = Subject("digits-cnn")
    assert len(digits.load(ARRAY).labels) == digits.identified(ARRAY).images == DEFAULT_IMAGES
    assert digits.as_dict() == {
        "network": "digits-cnn",
        "weights": None,
        "data": None,
        "images": None,
        "calibration": "max",
        "normalization": None,
        "identity": None,
    }
    normalised = replace(digits, normalization=str(Normalization((0.5,), (0.25,))))
    assert normalised.as_dict()["normalization"] == "0.5:0.25"
    assert torch.equal(normalised.load(ARRAY).images, (digits.load(ARRAY).images - 0.5) / 0.25)


def test_paths_hold_in_every_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = small_subject(folder).load(ARRAY).identity
    relative = small_subject(folder, weights=Path("inputs/weights.safetensors"), data=Path("inputs")).identified(ARRAY)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert pickle.loads(pickle.dumps(relative)) == relative
    assert relative.load(ARRAY).identity == there


def test_the_identity_is_of_what_decides_the_results(folder: Path) -> None:
    subject = small_subject(folder)
    before = subject.load(ARRAY).identity

    def different(other: Subject) -> set[str]:
        found = other.load(ARRAY).identity
        assert set(found) == set(before)
        return {name for name, text in found.items() if text != before[name]}

    assert different(subject) == set()
    assert different(replace(subject, images=7)) == {"images"}
    assert different(replace(subject, calibration="mse")) == {"calibration", "activation scales"}
    # Files that change while a process has what was in them.
    weights = subject.weights
    assert weights is not None
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "network" in different(subject)
    weights.write_bytes(content)
    np.savez(folder / "inputs/test.npz", images=HELD_OUT.images.numpy()[::-1], labels=HELD_OUT.labels.numpy()[::-1])
    assert different(subject) == {"images"}


def test_the_number_of_threads_does_not_matter(folder: Path) -> None:
    subject, threads = small_subject(folder, calibration="mse"), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            # Of another number of images, so that it is loaded anew.
            found.append(replace(subject, images=count).load(ARRAY).identity["activation scales"])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(set(found)) == 1


def test_weights_that_were_retrained_for_a_chip_bring_their_steps(folder: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    plain = small_subject(folder)
    scales = {name: scale * float(chance.uniform(0.5, 2)) for name, scale in scales_of(plain).items()}
    # Only the widths of operands have to be the same: where they sit there does not matter here.
    elsewhere = dataclasses.replace(ARRAY, rows=9, cols=7, acc_bits=20)
    deployment = Deployment(elsewhere.record, chance.random((9, 7)) < 0.5, scales, {})
    write_deployed(folder / "chip.safetensors", trained_weights(), deployment, {})
    subject = replace(plain, weights=folder / "chip.safetensors")
    assert scales_of(subject) == pytest.approx(scales)
    assert scales_of(replace(subject, calibration="mse")) == scales_of(subject)
    assert subject.load(ARRAY).identity["network"] == plain.load(ARRAY).identity["network"]
    assert subject.load(ARRAY).identity["activation scales"] != plain.load(ARRAY).identity["activation scales"]
    with pytest.raises(InputError, match="retrained for an array with act_bits=6, and this one has 7: give an array"):
        subject.load(dataclasses.replace(ARRAY, act_bits=7))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": 0}, InputError, r"images is 0: expected 1\.\.30, the test images of"),
        ({"images": 31}, InputError, r"images is 31: expected 1\.\.30"),
        ({"network": "alexnet"}, InputError, "network 'alexnet' is unknown"),
        ({"weights": Path("gone.safetensors")}, FileNotFoundError, "gone.safetensors"),
        ({"network": "digits-cnn", "weights": None}, InputError, "does not fit digits-cnn for 1x6x6 images"),
        ({"array": dataclasses.replace(ARRAY, act_signed=False)}, InputError, "activations are unsigned"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    others = {name: value for name, value in changes.items() if name != "array"}
    with pytest.raises(error, match=message) as caught:
        small_subject(folder, **others).load(changes.get("array", ARRAY))
    assert "\n" not in str(caught.value)


def test_an_unknown_calibration_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="'best'"):
        small_subject(folder, calibration="best")
