"""What decides a retraining: the same from JSON, told apart by its identity, loaded once, and checked."""

from __future__ import annotations

import copy
import json
import pickle
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efat.image_split import SplitRequest
from efat.records import typed
from efat.setup import OwnNetwork, Setup, check_network_named
from simulator.errors import InputError
from tests.support import networks
from tests.support.resilience import HELD_OUT, RECIPE, TRAIN, small_setup
from training.data.batches import Augmentation
from training.data.datasets import Dataset, Normalization
from training.data.workloads import augmentation_of
from training.learning.recipe import Recipe
from training.learning.retrain import digest_of_network

SETUP = Setup("digits-cnn", None, None, "fap+t", RECIPE)


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def through_json(setup: Setup) -> Setup:
    return typed(Setup, json.loads(json.dumps(setup.as_dict())), "setup")


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
        setup = Setup(
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
            normalization=chance.choice([None, str(Normalization((chance.random(),) * 3, (0.5, 0.25, 1.0)))]),
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
        (having(None, "network"), "network is null: expected its name, or a torch.nn.Module"),
        (having(["x"], "weights"), "weights is a list of 1"),
        (having("median", "calibration"), "calibration is 'median': expected one of max, mse, percentile"),
        (having("0.5", "normalization"), "normalisation '0.5': expected means and deviations"),
        (having(1, "learn_scales"), "learn_scales is 1: expected true or false"),
        (having(0, "split", "tune_images"), "tune_images is 0: expected an integer from 1"),
        (having([1], "split", "verify_images"), "verify_images is a list of 1: expected a list of 2 or null"),
        (having([4, 4], "split", "verify_images"), "verification images are 4:4: expected A:B"),
        (having([0, True], "split", "verify_images"), "verify_images[1] is True: expected an integer"),
        (having(3, "split", "verify_data"), "verify_data is 3: expected a path or null"),
        (having("fap", "mitigation"), "mitigation fap does not retrain"),
        (having([], "recipe"), "recipe is a list of 0: expected an object"),
        (having(0, "recipe", "batch"), "batch is 0: expected 1 or more images"),
        (having(10**400, "recipe", "learning_rate"), "learning_rate is an integer of more than 30 digits"),
        (having({"momentum": "much"}, "recipe", "options"), "options: momentum is "),
        (having({"momentum": [[1]]}, "recipe", "options"), "options: momentum[0] is a list of 1: expected"),
        (having(3, "recipe", "augmentation"), "augmentation is 3: expected an object"),
        (having(-1, "recipe", "augmentation", "crop_padding"), "crop padding is -1"),
        (having(2**60, "recipe", "seed"), "seed is"),
    ],
)
def test_damaged_descriptions_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    found = copy.deepcopy(SETUP.as_dict())
    change(found)
    with pytest.raises(InputError) as caught:
        typed(Setup, found, "plan.json: setup")
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
        structs.replace(SETUP, **changes)


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
    plain, normalised = SETUP, structs.replace(SETUP, normalization="0.5:0.25")
    before, after = plain.load(), normalised.load()
    # Which images judge depends on their content, so those are others.
    assert torch.equal(after.test.images, (before.test.images - 0.5) / 0.25)
    assert torch.equal(after.data.train.images, (before.data.train.images - 0.5) / 0.25)
    assert after.data.train.black == (-2.0,)
    first, second = plain.identity(), normalised.identity()
    assert [name for name in first if first[name] != second[name]] == ["training images", "tuning images"]


def test_paths_hold_in_other_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_setup(folder)
    setup = structs.replace(SETUP, weights=Path("inputs/weights.safetensors"), data=Path("digits"))
    located = setup.located()
    assert located.weights == folder / "inputs" / "weights.safetensors"
    assert located.data == Path("digits")  # the name of a data set
    monkeypatch.chdir(folder.parent)
    assert located.located() == located
    assert structs.replace(located, hardened=Path("other")).original == located


def test_verification_images_decide_nothing(folder: Path) -> None:
    setup = small_setup(folder)
    other = structs.replace(setup, split=SplitRequest(verify_data=folder / "inputs" / "other.npz"))
    images, labels = HELD_OUT.images.numpy() + 1, HELD_OUT.labels.numpy()
    np.savez(folder / "inputs" / "other.npz", images=images, labels=labels)
    assert setup.identity() == other.identity()
    assert setup.load().verification.digest != other.load().verification.digest
    assert through_json(other).split == other.split


def test_networks_that_cannot_learn_are_refused(folder: Path) -> None:
    setup = small_setup(folder)
    setup.try_a_step()
    with pytest.raises(InputError, match="fails to learn from a batch of 1 images: ValueError"):
        structs.replace(setup, network=f"{__name__}:of_one_image", recipe=Recipe(batch=1), weights=None).try_a_step()
    # What is written of a recipe is not tried before somebody learns by it.
    described = copy.deepcopy(setup.as_dict())
    described["recipe"]["optimizer"] = "SDG"
    with pytest.raises(InputError, match="optimiser 'SDG' is unknown"):
        typed(Setup, described, "setup").try_a_step()
    with pytest.raises(InputError, match=r"tuning images are 31: expected 1\.\.30"):
        structs.replace(setup, split=SplitRequest(31)).load()
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


class InPairs:
    """Images one by one, as PyTorch's data sets give them."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place >= len(self.data):
            raise IndexError
        return self.data.images[place], int(self.data.labels[place])


def test_a_network_and_data_may_be_objects(folder: Path) -> None:
    named = small_setup(folder, split=SplitRequest())
    network = named.load().network
    weights = [value.clone() for value in network.state_dict().values()]
    digests = set()
    for train, test in (
        (TRAIN, HELD_OUT),
        ((TRAIN.images, TRAIN.labels), (HELD_OUT.images.numpy(), HELD_OUT.labels.numpy())),
        (InPairs(TRAIN), InPairs(HELD_OUT)),
    ):
        setup = Setup(network, data=(train, test), mitigation="fap+t", recipe=RECIPE)
        assert setup.identity() == named.identity()
        assert setup.located().load() is setup.load()
        digests.add(str(setup.network))
        # In another process it is the same.
        assert pickle.loads(pickle.dumps(setup)).identity() == named.identity()
    assert len(digests) == 1
    setup.try_a_step()
    setup.check_travels()
    for value in network.parameters():
        value.data += 1
    assert all(map(torch.equal, setup.load().network.state_dict().values(), weights))
    others = structs.replace(setup, data=(TRAIN, (HELD_OUT.images + 1, HELD_OUT.labels)))
    assert [name for name, value in setup.identity().items() if others.identity()[name] != value] == ["tuning images"]


def test_a_file_says_that_it_is_of_an_object_and_cannot_give_it(folder: Path) -> None:
    network = small_setup(folder).load().network
    setup = Setup(network, data=(TRAIN, HELD_OUT))
    read = through_json(setup)
    assert read.network == f"object Sequential {digest_of_network(network)[:16]}"
    assert str(read.data) == f"object {HELD_OUT.name} {TRAIN.digest[:16]} {HELD_OUT.digest[:16]}"
    for found in (lambda: read.load(), lambda: check_network_named(Path("plan.json"), str(read.network), None)):
        with pytest.raises(InputError, match=r"network 'Sequential \w{16}' was given as an object .*: go on from"):
            found()
    with pytest.raises(InputError, match=rf"data '{HELD_OUT.name} .*' was given as an object"):
        structs.replace(read, network="digits-cnn").load()
    assert structs.replace(read, network=network, data=setup.data).load().network is setup.load().network


def test_a_network_may_return_nothing_from_eval() -> None:
    network = networks.no_return()
    assert isinstance(OwnNetwork(network).module, type(network))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": 3}, "network is 3: expected its name, or a torch.nn.Module"),
        ({"data": (1, 2)}, "training images are int .*: expected images float32"),
        ({"data": (torch.zeros(2, 1, 4, 4), torch.zeros(2))}, "data is one pair of images and labels: expected two"),
        ({"data": (TRAIN, (HELD_OUT.images.double(), HELD_OUT.labels))}, "test images: images are torch.float64"),
        ({"data": 3}, "data is 3: expected a path, or for data a pair of training and test images"),
        ({"data": (TRAIN, HELD_OUT), "normalization": "0.5:0.5"}, "are given as the network takes them: leave normal"),
    ],
)
def test_objects_that_are_something_else_are_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Setup(**{"network": small_setup(folder).load().network, **given}).load()


def test_what_cannot_travel_to_other_processes_is_refused(folder: Path) -> None:
    class Inside(nn.Sequential):
        pass

    setup = Setup(Inside(*small_setup(folder).load().network), data=(TRAIN, HELD_OUT))
    with pytest.raises(InputError, match=r"network object Inside .* cannot go to worker processes .*: define its"):
        setup.check_travels()


def test_the_default_recipe_has_the_augmentation_of_the_network() -> None:
    assert Setup("digits-cnn").recipe.augmentation.crop_padding == 1
    assert Setup("my:own").recipe.augmentation == Augmentation()
    assert Setup("digits-cnn", recipe=Recipe()).recipe == Recipe()
