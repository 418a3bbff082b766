"""What learns from what, and how: a network and its data, what is done about broken PEs, and the recipe."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import nn
from torch.nn import functional

from efat.image_split import ImageSplit, SplitRequest, split_images
from efat.records import LARGEST_COUNT, Named, Record, shown
from simulator.errors import InputError, different_names, first_line
from training.calibration import Method
from training.data.batches import Batches
from training.data.datasets import DATA_VARIABLE, Dataset, Normalization
from training.data.workloads import (
    WORKLOADS,
    LoadedWorkload,
    augmentation_of,
    check_fits,
    load_test_images,
    load_workload,
)
from training.layers.convert import check_float_network
from training.layers.deployment import Deployment
from training.layers.trainable import check_trainable
from training.layers.user_code import copied, failure
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.gradual import Gradual
from training.learning.recipe import DEFAULT_OPTIONS, Recipe
from training.learning.retrain import TrainingData, digest_of_network

_OBJECT = "object "
"""How the name of an object begins in files; no name of a network does."""

_OF_NETWORK = Recipe(options=DEFAULT_OPTIONS["SGD"])
"""Stands for the recipe of a setup that gives none."""


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


class OwnNetwork(Named):
    """A network that was given as an object; two are equal if they print the same and have the same weights.

    Args:
        module: a float network; it is copied, and what is done to it later is of no matter.

    Attributes:
        module: the copy, in evaluation mode; not to be changed.
        digest: SHA-256 (hex) of what it prints and of its weights.

    Raises:
        InputError: it is no float network, or cannot be copied.
    """

    def __init__(self, module: nn.Module) -> None:
        check_float_network(module)
        # It may return nothing from `eval`.
        self.module = copied(module)
        self.module.eval()
        self.digest = digest_of_network(self.module)

    def __str__(self) -> str:
        return f"{_OBJECT}{type(self.module).__name__} {self.digest[:16]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnNetwork) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class OwnData(Named):
    """Images that were given as objects; two are equal if all pixels and labels are.

    Args:
        train: images to learn from: a `Dataset`, a pair of images float32 [n, channels, height, width] and labels
            int64 [n], tensors or arrays, or a data set of PyTorch that gives such pairs one by one.
        test: images to test on, likewise.

    Attributes:
        pair: both as `Dataset`, of as many classes as both have together.

    Raises:
        InputError: they are something else.
    """

    def __init__(self, train: object, test: object) -> None:
        if isinstance(train, torch.Tensor | np.ndarray):
            raise InputError("data is one pair of images and labels: expected two, training images and test images")
        found = [_dataset(given, what) for given, what in ((train, "training images"), (test, "test images"))]
        classes = max(data.classes for data in found)
        self.pair = (replace(found[0], classes=classes), replace(found[1], classes=classes))

    def __str__(self) -> str:
        return f"{_OBJECT}{self.pair[1].name} {' '.join(data.digest[:16] for data in self.pair)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnData) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))


if TYPE_CHECKING:
    _Network = str | nn.Module | OwnNetwork
    _Data = Path | OwnData | tuple[object, object] | None
else:
    # Files have texts there; `Setup` looks at them itself.
    _Network = _Data = Any


class Setup(Record, frozen=True):
    """What decides a retraining beside the chip and the number of iterations; the same for all chips of a lot.

    A network and data that are objects travel to worker processes by pickle: the class of the network has to be one
    that other processes can import, so none that is defined in a function or in a notebook.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, `package.module:function`, or a `torch.nn.Module`.
        weights: file of the original weights; None for those that come with the network. How weights that were
            retrained already sit on their chip is not taken over.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network. Or a pair of training
            and test images, as for `OwnData`.
        mitigation: name of mitigations that bypass, and prune and retrain what is left: see `Mitigations.named`.
        recipe: how it learns; at a constant learning rate, so that fewer iterations are the beginning of more. SGD with
            momentum, and the network's own augmentation, if none is given.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
        split: which test images decide, and which only judge.
        hardened: file of the weights to start from, if `weights` were hardened first; None if they were not.
        normalization: as for `training.data.workloads.load_workload`; a text or a `Normalization`, kept as a text.

    Raises:
        InputError: a mitigation that does not retrain, leaves faults in, or injects them in steps; a schedule; a seed
            that JSON has no number for.
    """

    network: _Network
    weights: Path | None = None
    data: _Data = None
    mitigation: str = "fap+t"
    recipe: Recipe = _OF_NETWORK
    calibration: Method = "max"
    learn_scales: bool = False
    split: SplitRequest = SplitRequest()
    hardened: Path | None = None
    normalization: str | None = None

    def __post_init__(self) -> None:
        settle_inputs(self, "weights", "data", "hardened")
        if self.recipe is _OF_NETWORK:
            self._set("recipe", replace(self.recipe, augmentation=augmentation_of(str(self.network), None)))
        self._set("mitigation", self.mitigation.lower())
        self._check_mitigation()
        if self.recipe.seed > LARGEST_COUNT:
            raise InputError(f"seed is {self.recipe.seed}: expected at most {LARGEST_COUNT}")
        if self.recipe.schedule is not None:
            raise InputError(
                f"schedule {self.recipe.schedule} depends on the number of iterations, so that fewer are not the "
                "beginning of more: leave it out"
            )

    def _check_mitigation(self) -> None:
        mitigations = self.mitigations
        if not mitigations.retrains:
            raise InputError(
                f"mitigation {self.mitigation} does not retrain: add +t, as in {self.mitigation.split('+')[0]}+t"
            )
        if self.mitigation.startswith("none"):
            raise InputError(
                f"mitigation {self.mitigation} leaves faults to act, so that no chip can use another one's weights: "
                "choose one that bypasses them, such as fap+t"
            )
        if any(isinstance(mitigation, Gradual) for mitigation in mitigations.in_turn):
            raise InputError(
                f"mitigation {self.mitigation} injects faults in steps, so that fewer iterations are not the beginning "
                "of more: leave out +gradual"
            )

    def _set(self, name: str, value: object) -> None:
        structs.force_setattr(self, name, value)

    @property
    def mitigations(self) -> Mitigations:
        """What is done about broken PEs."""
        return Mitigations.named(self.mitigation)

    @property
    def parsed_normalization(self) -> Normalization | None:
        """What is done to pixels, if it is said."""
        return None if self.normalization is None else Normalization.parse(self.normalization)

    @property
    def original(self) -> Setup:
        """The same from the weights that the network had before it was hardened."""
        return structs.replace(self, hardened=None)

    def located(self) -> Setup:
        """The same with paths that hold in every folder; what is no path, such as the name of a data set, stays."""
        split = structs.replace(self.split, verify_data=located(self.split.verify_data))
        data = located(self.data) if isinstance(self.data, Path) else self.data
        weights, hardened = located(self.weights), located(self.hardened)
        return structs.replace(self, weights=weights, data=data, hardened=hardened, split=split)

    def load(self) -> Loaded:
        """Load the network and its data, and check that they fit; a process keeps the last two that it loaded."""
        weights = self.weights if self.hardened is None else self.hardened
        files = (weights, self.data if isinstance(self.data, Path) else None, self.split.verify_data)
        state = (str(Path.cwd()), os.environ.get(DATA_VARIABLE), *(stamp(path) for path in files))
        return _loaded(self.network, weights, self.data, self.split, self.normalization, state)

    def check_travels(self) -> None:
        """Refuse objects that cannot be given to worker processes, as they cannot be pickled."""
        check_travels(self.network, self.data)

    def identity(self) -> dict[str, str]:
        """What decides the results, as digests and texts by name; the name says what it is of.

        Verification images are not among it: they decide nothing.
        """
        loaded = self.load()
        data = loaded.data
        return {
            "network": digest_of_network(loaded.network),
            "training images": data.train.digest,
            "tuning images": data.held_out.digest,
            "calibration": self.calibration,
            "strategy": self.mitigations.text,
            "recipe": json.dumps({**self.recipe.as_dict(), "learn_scales": self.learn_scales}, sort_keys=True),
            **({} if self.hardened is None else {"original network": digest_of_network(self.original.load().network)}),
        }

    def check_identity(self, expected: Mapping[str, str]) -> None:
        """Refuse other inputs than those of which `identity` gave this when something was begun."""
        different = different_names(self.identity(), expected)
        if different:
            raise InputError(
                f"{self.network}: another {', '.join(different)} than resilience was measured with: "
                "measure it again, or give back what it was measured with"
            )

    def try_a_step(self) -> None:
        """Take a step with a copy of the network; see the function of the same name."""
        loaded, recipe = self.load(), self.recipe
        try_a_step(loaded.network, Batches(loaded.data.train, recipe.batch, recipe.seed, recipe.augmentation), recipe)


def load_training(
    network: str | nn.Module,
    weights: Path | None,
    data: Path | tuple[Dataset, Dataset] | None,
    split: SplitRequest | None,
    images: int | None = None,
    normalization: Normalization | None = None,
) -> Loaded:
    """Load a network and its data, as `training.load_workload`, and check that they fit.

    Where nothing is decided, `split` is None: all test images judge, or the first `images` of them.
    """
    workload = load_workload(network, weights=weights, data=data, normalization=normalization, training=True)
    train = workload.train
    assert train is not None
    check_fits(workload.network, train, name_of(network))
    if split is None:
        test = first_images(workload.test, images)
        undecided = TrainingData(train, test, workload.calibration)
        return Loaded(workload.network, undecided, test, workload.test, 0, workload.deployment)
    found = split_workload(network, workload, split, normalization)
    decided_by = TrainingData(train, found.tuning, workload.calibration)
    return Loaded(workload.network, decided_by, found.verification, workload.test, found.learned, workload.deployment)


def split_workload(
    network: str | nn.Module,
    workload: LoadedWorkload,
    split: SplitRequest,
    normalization: Normalization | None = None,
) -> ImageSplit:
    """Which test images of a workload with training images decide, and which only judge."""
    others = None
    if split.verify_data is not None:
        others = load_test_images(name_of(network), split.verify_data, normalization)
        check_fits(workload.network, others, name_of(network))
    assert workload.train is not None
    return split_images(
        workload.test,
        workload.train,
        tune_images=split.tune_images,
        verify_images=split.verify_images,
        verify_data=others,
    )


def first_images(data: Dataset, images: int | None, what: str = "test") -> Dataset:
    """The first images of a data set; None for all."""
    count = len(data) if images is None else images
    if not 1 <= count <= len(data):
        raise InputError(f"images is {count}: expected 1..{len(data)}, the {what} images of {data.name}")
    return data if count == len(data) else replace(data, images=data.images[:count], labels=data.labels[:count])


def name_of(network: object) -> str:
    """What people call a network: its name, or the class of an object, which files have with a digest."""
    if isinstance(network, nn.Module):
        return type(network).__name__
    text = str(network)
    return text.removeprefix(_OBJECT).split()[0] if text.startswith(_OBJECT) else text


def check_no_object(network: object, data: object) -> None:
    """Refuse what a file says of a network or data that it does not hold, as they were objects."""
    for what, named in (("network", network), ("data", data)):
        if not isinstance(named, Named) and str(named).startswith(_OBJECT):
            raise InputError(
                f"{what} {str(named).removeprefix(_OBJECT)!r} was given as an object in Python, which no file holds: "
                "go on from there, with a Setup of the same object"
            )


def check_network_named(path: Path, name: object, given: str | None) -> None:
    """Refuse to run code that only a file names: a network is one that comes with the program, or the user names it.

    One that is an object here is nobody's code but the caller's.
    """
    if isinstance(name, Named):
        return
    check_no_object(name, None)
    if given is not None and given != name:
        advice = "leave out --network" if name in WORKLOADS else f"give --network {name}"
        raise InputError(f"network {given!r} is not that of {path}, which is {name!r}: {advice}")
    if given is None and name not in WORKLOADS:
        raise InputError(
            f"{path} is for network {name!r}, which is none of {', '.join(WORKLOADS)}: if it is your own, say so with "
            f"--network {name}, as it is code that will run"
        )


def try_a_step(network: nn.Module, batches: Batches, recipe: Recipe, iterations: int = 0) -> None:
    """Take one step with a copy of the float network: what cannot learn at all is refused before anything runs."""
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


def settle_inputs(record: Record, *paths: str) -> None:
    """Keep objects, paths and texts of a new record with `network`, `data` and `normalization` as it wants them.

    Raises:
        InputError: they are something else.
    """
    given = {name: getattr(record, name) for name in ("network", "normalization", *paths)}
    if isinstance(given["network"], nn.Module):
        given["network"] = OwnNetwork(given["network"])
    if not isinstance(given["network"], str | OwnNetwork):
        raise InputError(f"network is {shown(given['network'])}: expected its name, or a torch.nn.Module")
    if isinstance(given["data"], tuple) and len(given["data"]) == 2:
        given["data"] = OwnData(*given["data"])
    for name in paths:
        if isinstance(given[name], str):
            given[name] = Path(given[name])
        elif not isinstance(given[name], Path | OwnData | None):
            raise InputError(
                f"{name} is {shown(given[name])}: expected a path, or for data a pair of training and test images"
            )
    if given["normalization"] is not None:
        given["normalization"] = str(Normalization.parse(str(given["normalization"])))
    for name, value in given.items():
        structs.force_setattr(record, name, value)


def check_travels(network: object, data: object) -> None:
    """Refuse a network and data that cannot be given to worker processes.

    Raises:
        InputError: they cannot be pickled.
    """
    try:
        pickle.dumps((network, data))
    except Exception as error:
        # Whatever the user's class raises: it is the class that must change.
        raise InputError(
            f"network {network} cannot go to worker processes ({first_line(error)}): define its class at the top of a "
            "module, or use no workers"
        ) from None


def objects_of(
    network: str | OwnNetwork, data: Path | OwnData | None
) -> tuple[str | nn.Module, Path | tuple[Dataset, Dataset] | None]:
    """Network and data as `training.data.workloads.load_workload` takes them.

    Raises:
        InputError: they were objects, of which a file has but the names.
    """
    check_no_object(network, data)
    module = network.module if isinstance(network, OwnNetwork) else network
    return module, data.pair if isinstance(data, OwnData) else data


@lru_cache(maxsize=2)
def _loaded(
    network: str | OwnNetwork,
    weights: Path | None,
    data: Path | OwnData | None,
    split: SplitRequest,
    normalization: str | None,
    _state: object,
) -> Loaded:
    module, images = objects_of(network, data)
    return load_training(
        module,
        weights,
        images,
        split,
        normalization=None if normalization is None else Normalization.parse(normalization),
    )


def _dataset(given: Any, what: str) -> Dataset:
    """Images and labels, whatever they are given as."""
    if isinstance(given, Dataset):
        return given
    try:
        images, labels = given if isinstance(given, tuple | list) else zip(*given, strict=True)
        if isinstance(images, tuple):
            images, labels = torch.stack([torch.as_tensor(image) for image in images]), torch.tensor(labels)
        images, labels = torch.as_tensor(images), torch.as_tensor(labels).to(torch.int64)
        classes = int(labels.max()) + 1
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} are {type(given).__name__} ({first_line(error)}): expected images float32 [n, channels, height, "
            "width] and labels int64 [n], or a data set that gives both one by one"
        ) from None
    return Dataset(what, images, labels, classes)


def located(path: Path | None) -> Path | None:
    """A path that holds in every folder; what is no path, such as the name of a data set, stays."""
    return path.absolute() if path is not None and path.exists() else path


def stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; None for no file."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
