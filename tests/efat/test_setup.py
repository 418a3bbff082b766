"""What decides a retraining: the same from JSON, told apart by its identity, loaded once, and checked."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from efat.image_split import SplitRequest
from efat.setup import TrainingSetup, augmentation_of, check_network_named
from simulator.errors import InputError
from tests.support.resilience_runs import HELD_OUT, RECIPE, TRAIN, small_setup
from training.data.batches import Augmentation
from training.data.datasets import Normalization
from training.learning.recipe import Recipe

SETUP = TrainingSetup("digits-cnn", None, None, "fap+t", RECIPE)


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def through_json(setup: TrainingSetup) -> TrainingSetup:
    return TrainingSetup.from_dict(json.loads(json.dumps(setup.as_dict())))


def test_json_gives_the_same_setup(seed: int) -> None:
    chance = random.Random(seed)
    optimizers: list[tuple[str, dict[str, Any] | None]] = [
        ("SGD", None),
        ("SGD", {"momentum": chance.random(), "nesterov": True}),
        ("AdamW", {"betas": (chance.random(), 0.9), "weight_decay": 1}),
    ]
    for optimizer, options in optimizers:
        recipe = Recipe(
            batch=chance.randrange(1, 999),
            optimizer=optimizer,
            learning_rate=chance.random(),
            options=options,
            label_smoothing=chance.random(),
            augmentation=Augmentation(chance.random() < 0.5, chance.randrange(5)),
            seed=chance.randrange(2**53),
        )
        setup = TrainingSetup(
            chance.choice(["digits-cnn", "package.module:function"]),
            chance.choice([None, Path("folder/weights.safetensors")]),
            chance.choice([None, Path("digits")]),
            chance.choice(["fap+t", "fam+bn+t", "fam-rows+t"]),
            recipe,
            "mse",
            chance.random() < 0.5,
            chance.choice(
                [SplitRequest(), SplitRequest(chance.randrange(1, 10000), (3, 9)), SplitRequest(None, None, Path("a"))]
            ),
            normalization=chance.choice([None, Normalization((chance.random(),) * 3, (0.5, 0.25, 1.0))]),
        )
        assert through_json(setup) == setup


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.pop(name)


def having(value: object, *names: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        for name in names[:-1]:
            found = found[name]
        found[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((without(name), f"has no '{name}'") for name in SETUP.as_dict()),
        (having(1, "surprise"), "has a field 'surprise'"),
        (having(None, "network"), "network is null: expected printable text"),
        (having(["x"], "weights"), "weights is a list of 1"),
        (having("median", "calibration"), "calibration is 'median': expected one of max, percentile, mse"),
        (having("0.5", "normalization"), "normalisation '0.5': expected means and deviations"),
        (having(1, "learn_scales"), "learn_scales is 1: expected true or false"),
        (having(0, "split", "tune_images"), "tune_images is 0: expected an integer from 1"),
        (having([1], "split", "verify_images"), "verify_images is a list of 1: expected two whole numbers, or null"),
        (having([4, 4], "split", "verify_images"), "verification images are 4:4: expected A:B"),
        (having([0, True], "split", "verify_images"), "verify_images is a list of 2"),
        (having(3, "split", "verify_data"), "verify_data is 3: expected printable text"),
        (having("fap", "mitigation"), "mitigation fap does not retrain"),
        (having([], "recipe"), "recipe is a list of 0: expected an object"),
        (having(0, "recipe", "batch"), "batch is 0: expected 1 or more images"),
        (having(10**400, "recipe", "learning_rate"), "learning_rate is an integer of more than 30 digits"),
        (having({"momentum": "much"}, "recipe", "options"), "options is an object of 1: expected numbers"),
        (having({"momentum": [[1]]}, "recipe", "options"), "options is an object of 1: expected numbers"),
        (having(3, "recipe", "augmentation"), "augmentation is 3: expected an object"),
        (having(-1, "recipe", "augmentation", "crop_padding"), "crop_padding is -1"),
        (having(2**60, "recipe", "seed"), "seed is"),
    ],
)
def test_damaged_descriptions_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    found = copy.deepcopy(SETUP.as_dict())
    change(found)
    with pytest.raises(InputError) as caught:
        TrainingSetup.from_dict(found, "plan.json: setup")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mitigation": "FAM"}, r"mitigation fam does not retrain: add \+t, as in fam\+t"),
        ({"mitigation": "none+t"}, r"mitigation none\+t leaves faults to act.*such as fap\+t"),
        ({"mitigation": "fap+t+gradual"}, r"injects faults in steps.*leave out \+gradual"),
        ({"mitigation": "fap+x"}, "is unknown"),
        ({"recipe": Recipe(schedule="CosineAnnealingLR")}, "schedule CosineAnnealingLR depends on the number"),
        ({"recipe": Recipe(seed=2**54)}, "seed is 18014398509481984: expected at most"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETUP, **changes)


def test_it_is_loaded_once_until_it_changes(folder: Path) -> None:
    setup = small_setup(folder, split=SplitRequest(11))
    first = setup.load()
    assert through_json(setup).load() is first
    assert (len(first.data.train), len(first.data.held_out), len(first.verification)) == (len(TRAIN), 11, 19)
    before = setup.identity()
    assert setup.weights is not None
    weights = load_file(setup.weights)
    save_file({name: value + 0.01 for name, value in weights.items()}, setup.weights)
    assert setup.load() is not first
    changed = setup.identity()
    assert [name for name in before if before[name] != changed[name]] == ["network"]


def test_what_decides_results_is_in_the_identity(folder: Path) -> None:
    setup = small_setup(folder)
    before = setup.identity()
    for changes, name in (
        ({"split": SplitRequest(12)}, "tuning images"),
        ({"mitigation": "fam+t"}, "strategy"),
        ({"recipe": replace(RECIPE, seed=1)}, "recipe"),
        ({"learn_scales": True}, "recipe"),
        ({"calibration": "mse"}, "calibration"),
    ):
        changed = small_setup(folder, **changes).identity()
        assert [found for found in before if before[found] != changed[found]] == [name]
    assert setup.located().identity() == before


def test_images_are_normalised_as_the_setup_says() -> None:
    plain, normalised = SETUP, replace(SETUP, normalization=Normalization((0.5,), (0.25,)))
    before, after = plain.load(), normalised.load()
    # Which images judge depends on their content, so those are others.
    assert torch.equal(after.test.images, (before.test.images - 0.5) / 0.25)
    assert torch.equal(after.data.train.images, (before.data.train.images - 0.5) / 0.25)
    assert after.data.train.black == (-2.0,)
    first, second = plain.identity(), normalised.identity()
    assert [name for name in first if first[name] != second[name]] == ["training images", "tuning images"]


def test_paths_hold_in_other_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_setup(folder)
    setup = replace(SETUP, weights=Path("inputs/weights.safetensors"), data=Path("digits"))
    located = setup.located()
    assert located.weights == folder / "inputs" / "weights.safetensors"
    assert located.data == Path("digits")  # the name of a data set
    monkeypatch.chdir(folder.parent)
    assert located.located() == located
    assert replace(located, hardened=Path("other")).original == located


def test_verification_images_decide_nothing(folder: Path) -> None:
    setup = small_setup(folder)
    other = replace(setup, split=SplitRequest(verify_data=folder / "inputs" / "other.npz"))
    images, labels = HELD_OUT.images.numpy() + 1, HELD_OUT.labels.numpy()
    np.savez(folder / "inputs" / "other.npz", images=images, labels=labels)
    assert setup.identity() == other.identity()
    assert setup.load().verification.digest != other.load().verification.digest
    assert through_json(other).split == other.split


def test_networks_that_cannot_learn_are_refused(folder: Path) -> None:
    setup = small_setup(folder)
    setup.try_a_step()
    with pytest.raises(InputError, match="fails to learn from a batch of 1 images: ValueError"):
        replace(setup, network=f"{__name__}:of_one_image", recipe=Recipe(batch=1), weights=None).try_a_step()
    # What is written of a recipe is not tried before somebody learns by it.
    described = copy.deepcopy(setup.as_dict())
    described["recipe"]["optimizer"] = "SDG"
    with pytest.raises(InputError, match="optimiser 'SDG' is unknown"):
        TrainingSetup.from_dict(described).try_a_step()
    with pytest.raises(InputError, match=r"tuning images are 31: expected 1\.\.30"):
        replace(setup, split=SplitRequest(31)).load()
    with pytest.raises(InputError, match=r"has no augmentation of its own: say how, such as flip,crop=4"):
        augmentation_of(setup.network, True)
    assert augmentation_of(setup.network, Augmentation(flip=True)) == Augmentation(flip=True)
    assert augmentation_of("digits-cnn", None).crop_padding == 1
    assert augmentation_of("digits-cnn", False).crop_padding == 0


def of_one_image() -> nn.Module:
    """A network that cannot learn from a single image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    ("name", "advice"), [("digits-cnn", "leave out --network"), ("my:own", "give --network my:own")]
)
def test_advice_on_another_network_leads_on(name: str, advice: str) -> None:
    with pytest.raises(InputError, match=f"which is '{name}': {advice}$"):
        check_network_named(Path("plan.json"), name, "my:other")
