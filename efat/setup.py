"""What learns from what, and how: a network and its data, what is done about broken PEs, and the recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from efat.image_split import ImageSplit, SplitRequest, split_images
from efat.json_fields import LARGEST_COUNT, Fields
from simulator.errors import InputError
from training.calibration import METHODS, Method
from training.data.batches import NO_AUGMENTATION, Augmentation, Batches
from training.data.datasets import DATA_VARIABLE, Dataset, Normalization
from training.data.workloads import WORKLOADS, LoadedWorkload, check_fits, load_test_images, load_workload
from training.layers.deployment import Deployment
from training.layers.trainable import check_trainable
from training.layers.user_code import copied, failure
from training.learning.mitigations.combination import Strategy
from training.learning.mitigations.gradual import Gradual
from training.learning.recipe import Recipe
from training.learning.retrain import TrainingData, digest_of_network


class Loaded(NamedTuple):
    """A network with its weights, and its data, which fit each other.

    Attributes:
        network: float32, in evaluation mode; not to be changed.
        data: images to learn from, to calibrate on, and to measure on whatever is decided (the tuning images).
        verification: images that decide nothing.
        test: all test images of the data.
        learned: test images that are neither, as they are training images, too.
        deployment: how the weights sit on the chip they were retrained for; None for weights of no chip.
    """

    network: nn.Module
    data: TrainingData
    verification: Dataset
    test: Dataset
    learned: int
    deployment: Deployment | None


@dataclass(frozen=True)
class TrainingSetup:
    """What decides a retraining beside the chip and the number of iterations; the same for all chips of a lot.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, or `package.module:function`.
        weights: file of the original weights; None for those that come with the network. How weights that were
            retrained already sit on their chip is not taken over.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network.
        mitigation: name of a strategy that bypasses, and prunes and retrains what is left: see `Strategy.named`.
        recipe: how it learns; at a constant learning rate, so that fewer iterations are the beginning of more.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
        split: which test images decide, and which only judge.
        hardened: file of the weights to start from, if `weights` were hardened first; None if they were not.
        normalization: as for `training.data.workloads.load_workload`.

    Raises:
        InputError: a mitigation that does not retrain, leaves faults in, or injects them in steps; a schedule; a seed
            that JSON has no number for.
    """

    network: str
    weights: Path | None
    data: Path | None
    mitigation: str
    recipe: Recipe
    calibration: Method = "max"
    learn_scales: bool = False
    split: SplitRequest = field(default_factory=SplitRequest)
    hardened: Path | None = None
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mitigation", self.mitigation.lower())
        strategy = self.strategy
        if not strategy.retrains:
            raise InputError(
                f"mitigation {self.mitigation} does not retrain: add +t, as in {self.mitigation.split('+')[0]}+t"
            )
        if self.mitigation.startswith("none"):
            raise InputError(
                f"mitigation {self.mitigation} leaves faults to act, so that no chip can use another one's weights: "
                "choose one that bypasses them, such as fap+t"
            )
        if any(isinstance(mitigation, Gradual) for mitigation in strategy.mitigations):
            raise InputError(
                f"mitigation {self.mitigation} injects faults in steps, so that fewer iterations are not the beginning "
                "of more: leave out +gradual"
            )
        if self.recipe.seed > LARGEST_COUNT:
            raise InputError(f"seed is {self.recipe.seed}: expected at most {LARGEST_COUNT}")
        if self.recipe.schedule is not None:
            raise InputError(
                f"schedule {self.recipe.schedule} depends on the number of iterations, so that fewer are not the "
                "beginning of more: leave it out"
            )

    @property
    def strategy(self) -> Strategy:
        """What is done about broken PEs."""
        return Strategy.named(self.mitigation)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; `from_dict` gives the same setup again."""
        return {
            "network": self.network,
            "weights": None if self.weights is None else str(self.weights),
            "data": None if self.data is None else str(self.data),
            "mitigation": self.mitigation,
            "recipe": self.recipe.as_dict(),
            "calibration": self.calibration,
            "learn_scales": self.learn_scales,
            "split": self.split.as_dict(),
            "hardened": None if self.hardened is None else str(self.hardened),
            "normalization": None if self.normalization is None else str(self.normalization),
        }

    @classmethod
    def from_dict(cls, found: object, where: str = "training setup") -> TrainingSetup:
        """The setup that `as_dict` described.

        Args:
            found: what JSON gave.
            where: for messages: the file, and the place in it.

        Raises:
            InputError: a field is missing, unknown, or nothing that it can be.
        """
        given = Fields(found, where, [each.name for each in fields(cls)])
        weights, data, hardened = (given.optional_text(name) for name in ("weights", "data", "hardened"))
        normalization = given.optional_text("normalization")
        calibration = given.text("calibration")
        if calibration not in METHODS:
            given.refuse("calibration", f"one of {', '.join(METHODS)}")
        return cls(
            network=given.text("network"),
            weights=None if weights is None else Path(weights),
            data=None if data is None else Path(data),
            mitigation=given.text("mitigation"),
            recipe=_recipe(given.inner("recipe", [each.name for each in fields(Recipe)])),
            calibration=calibration,
            learn_scales=given.flag("learn_scales"),
            hardened=None if hardened is None else Path(hardened),
            normalization=None if normalization is None else Normalization.parse(normalization),
            split=SplitRequest.from_dict(given.inner("split", [each.name for each in fields(SplitRequest)])),
        )

    @property
    def original(self) -> TrainingSetup:
        """The same from the weights that the network had before it was hardened."""
        return replace(self, hardened=None)

    def located(self) -> TrainingSetup:
        """The same with paths that hold in every folder; what is no path, such as the name of a data set, stays."""
        split = replace(self.split, verify_data=_located(self.split.verify_data))
        weights, data, hardened = (_located(path) for path in (self.weights, self.data, self.hardened))
        return replace(self, weights=weights, data=data, hardened=hardened, split=split)

    def load(self) -> Loaded:
        """Load the network and its data, and check that they fit; a process keeps the last two that it loaded.

        Raises:
            FileNotFoundError: a file is not there.
            InputError: something is of the wrong kind, does not fit or is unknown.
        """
        weights = self.weights if self.hardened is None else self.hardened
        files = (weights, self.data, self.split.verify_data)
        state = (str(Path.cwd()), os.environ.get(DATA_VARIABLE), *(_stamp(path) for path in files))
        return _loaded(self.network, weights, self.data, self.split, self.normalization, state)

    def identity(self) -> dict[str, str]:
        """What decides the results, as digests and texts by name; the name says what it is of.

        Verification images are not among it: they decide nothing.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`.
        """
        loaded = self.load()
        data = loaded.data
        return {
            "network": digest_of_network(loaded.network),
            "training images": data.train.digest,
            "tuning images": data.held_out.digest,
            "calibration": self.calibration,
            "strategy": repr(self.strategy),
            "recipe": json.dumps({**self.recipe.as_dict(), "learn_scales": self.learn_scales}, sort_keys=True),
            **({} if self.hardened is None else {"original network": digest_of_network(self.original.load().network)}),
        }

    def check_identity(self, expected: Mapping[str, str]) -> None:
        """Refuse other inputs than those that something was begun with.

        Args:
            expected: what `identity` gave then.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`, or something differs.
        """
        found = self.identity()
        different = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        if different:
            raise InputError(
                f"{self.network}: another {', '.join(different)} than resilience was measured with: "
                "measure it again, or give back what it was measured with"
            )

    def try_a_step(self) -> None:
        """Take a step with a copy of the network; see the function of the same name.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`, or the network cannot learn.
        """
        loaded, recipe = self.load(), self.recipe
        try_a_step(loaded.network, Batches(loaded.data.train, recipe.batch, recipe.seed, recipe.augmentation), recipe)


def load_training(
    network: str,
    weights: Path | None,
    data: Path | None,
    split: SplitRequest | None,
    images: int | None = None,
    normalization: Normalization | None = None,
) -> Loaded:
    """Load a network and its data, and check that they fit.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, or `package.module:function`.
        weights: file of its weights; None for those that come with it.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network.
        split: which test images decide, and which only judge; None where nothing is decided, so that all of them judge.
        images: if nothing is decided, how many of them, the first ones; None for all.
        normalization: as for `training.data.workloads.load_workload`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown.
    """
    workload = load_workload(network, weights=weights, data=data, normalization=normalization, training=True)
    train = workload.train
    assert train is not None
    check_fits(workload.network, train, network)
    if split is None:
        test = first_images(workload.test, images)
        undecided = TrainingData(train, test, workload.calibration)
        return Loaded(workload.network, undecided, test, workload.test, 0, workload.deployment)
    found = split_workload(network, workload, split, normalization)
    decided_by = TrainingData(train, found.tuning, workload.calibration)
    return Loaded(workload.network, decided_by, found.verification, workload.test, found.learned, workload.deployment)


def split_workload(
    network: str, workload: LoadedWorkload, split: SplitRequest, normalization: Normalization | None = None
) -> ImageSplit:
    """Which test images decide, and which only judge.

    Args:
        network: name of the network.
        workload: the network and its data, training images among them.
        split: what is asked for.
        normalization: as for `training.data.workloads.load_workload`.

    Raises:
        FileNotFoundError: the other images that judge are not there.
        InputError: they do not fit, or the images cannot be split like this.
    """
    others = None
    if split.verify_data is not None:
        others = load_test_images(network, split.verify_data, normalization)
        check_fits(workload.network, others, network)
    assert workload.train is not None
    return split_images(
        workload.test,
        workload.train,
        tune_images=split.tune_images,
        verify_images=split.verify_images,
        verify_data=others,
    )


def first_images(data: Dataset, images: int | None, what: str = "test") -> Dataset:
    """The first images of a data set; None for all.

    Args:
        data: the images.
        images: how many; None for all.
        what: kind of images that these are.

    Raises:
        InputError: it has not so many.
    """
    count = len(data) if images is None else images
    if not 1 <= count <= len(data):
        raise InputError(f"images is {count}: expected 1..{len(data)}, the {what} images of {data.name}")
    return data if count == len(data) else replace(data, images=data.images[:count], labels=data.labels[:count])


def check_network_named(path: Path, name: str, given: str | None) -> None:
    """Refuse to run code that only a file names: a network is one that comes with the program, or the user names it.

    Args:
        path: the file.
        name: the network that the file names.
        given: the one that the user names; None for none.

    Raises:
        InputError: it is the user's own and was not named, or another one was.
    """
    if given is not None and given != name:
        advice = "leave out --network" if name in WORKLOADS else f"give --network {name}"
        raise InputError(f"network {given!r} is not that of {path}, which is {name!r}: {advice}")
    if given is None and name not in WORKLOADS:
        raise InputError(
            f"{path} is for network {name!r}, which is none of {', '.join(WORKLOADS)}: if it is your own, say so with "
            f"--network {name}, as it is code that will run"
        )


def augmentation_of(network: str, augment: Augmentation | bool | None) -> Augmentation:
    """What is done to training images.

    Args:
        network: name of the network.
        augment: how, or whether they are augmented as the network's are; None to do so if it has an augmentation.

    Raises:
        InputError: it is asked for, and the network has none.
    """
    if isinstance(augment, Augmentation):
        return augment
    found = WORKLOADS[network].augmentation if network in WORKLOADS else NO_AUGMENTATION
    if augment and found == NO_AUGMENTATION:
        raise InputError(f"network {network!r} has no augmentation of its own: say how, such as flip,crop=4")
    return NO_AUGMENTATION if augment is False else found


def try_a_step(network: nn.Module, batches: Batches, recipe: Recipe, iterations: int = 0) -> None:
    """Take one step with a copy of the float network: what cannot learn at all is refused before anything runs.

    Args:
        network: the float network; it is not changed.
        batches: of training images.
        recipe: how it learns.
        iterations: that its schedule has to be for.

    Raises:
        InputError: it cannot learn like this.
    """
    check_trainable(network)
    learner = copied(network)
    learner.train()
    optimizer = recipe.make_optimizer(learner.parameters())
    recipe.make_schedule(optimizer, iterations)
    images, labels = batches.at(0)
    try:
        with torch.random.fork_rng(devices=[]):
            functional.cross_entropy(learner(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    except Exception as error:
        # Whatever the user's network raises when it is to learn, it is the network or its options that must change.
        raise InputError(
            f"the network fails to learn from a batch of {len(images)} images: {failure(error, learner)}; "
            "give a network that can be trained, or another batch size"
        ) from error


@lru_cache(maxsize=2)
def _loaded(
    network: str,
    weights: Path | None,
    data: Path | None,
    split: SplitRequest,
    normalization: Normalization | None,
    _state: object,
) -> Loaded:
    return load_training(network, weights, data, split, normalization=normalization)


def _located(path: Path | None) -> Path | None:
    return path.absolute() if path is not None and path.exists() else path


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _recipe(given: Fields) -> Recipe:
    augmentation = given.inner("augmentation", [each.name for each in fields(Augmentation)])
    return Recipe(
        batch=given.count("batch"),
        optimizer=given.text("optimizer"),
        learning_rate=given.number("learning_rate"),
        options=None if given.values["options"] is None else _options(given, "options"),
        schedule=given.optional_text("schedule"),
        schedule_options=_options(given, "schedule_options"),
        label_smoothing=given.number("label_smoothing"),
        augmentation=Augmentation(augmentation.flag("flip"), augmentation.count("crop_padding")),
        seed=given.count("seed"),
        try_options=False,
    )


def _options(given: Fields, name: str) -> dict[str, Any]:
    """Numbers, true or false by name, and lists of them as tuples, which they were."""
    found: Mapping[str, Any] = given.inner(name).values
    taken = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    for value in taken.values():
        if not all(isinstance(part, bool | int | float) for part in (value if isinstance(value, tuple) else [value])):
            given.refuse(name, "numbers, true or false, or lists of them, by name")
    return taken
