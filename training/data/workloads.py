"""Workloads by name: a network with its weights, images to calibrate it on and images to test it on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simulator.errors import InputError, did_you_mean, first_line
from training.data.batches import NO_AUGMENTATION, Augmentation
from training.data.datasets import DIGITS, FASHION_MNIST, Dataset, Normalization, evenly_spaced, load_data
from training.data.networks import DigitsCnn, LeNet5, ResNet18, ResNet20, Vgg11
from training.layers.convert import check_float_network
from training.layers.deployment import Deployment, read_deployed
from training.layers.user_code import copied, failure, line_of
from training.layers.weights import put_weights

CALIBRATION_IMAGES = 256
CALIBRATION_BATCH = 64

_SHOWN = 3

_PACKAGED_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Workload:
    """A network by name, and what comes with it.

    Args:
        name: what users call it.
        build: makes the network, without trained weights, for (channels, image size, classes).
        input_shape: (channels, height, width) of the images it was designed for; others may be given.
        classes: number of classes, if the data does not have more.
        weights: packaged weights, or None.
        data: name of the data set that is taken when none is given, or None.
        normalization: what is done to pixels of 0..1 first, or None.
        augmentation: what is done to training images.
    """

    name: str
    build: Callable[[int, int, int], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int = 10
    weights: Path | None = None
    data: str | None = None
    normalization: Normalization | None = None
    augmentation: Augmentation = NO_AUGMENTATION


CIFAR_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Per-channel mean and standard deviation that published CIFAR-10 ResNets were trained with."""

CIFAR_AUGMENTATION = Augmentation(flip=True, crop_padding=4)
"""What He et al. 2016, section 4.2, trained on CIFAR-10 with."""

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "digits-cnn",
            DigitsCnn,
            (1, 8, 8),
            weights=_PACKAGED_WEIGHTS / "digits_cnn.safetensors",
            data=DIGITS,
            augmentation=Augmentation(crop_padding=1),
        ),
        Workload("lenet5", LeNet5, (1, 28, 28), data=FASHION_MNIST),
        Workload("vgg11", Vgg11, (3, 32, 32), normalization=CIFAR_NORMALIZATION, augmentation=CIFAR_AUGMENTATION),
        Workload("resnet20", ResNet20, (3, 32, 32), normalization=CIFAR_NORMALIZATION, augmentation=CIFAR_AUGMENTATION),
        Workload("resnet18", ResNet18, (3, 32, 32), normalization=CIFAR_NORMALIZATION, augmentation=CIFAR_AUGMENTATION),
    )
}


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


class LoadedWorkload(NamedTuple):
    """A workload ready to run.

    Attributes:
        network: float32, in evaluation mode.
        calibration: batches of float32 [b, c, h, w] from the training images.
        test: the test images.
        train: all training images, if they were asked for.
        deployment: how the weights sit on the chip they were retrained for; None for weights of no chip.
    """

    network: nn.Module
    calibration: tuple[Tensor, ...]
    test: Dataset
    train: Dataset | None = None
    deployment: Deployment | None = None


def load_workload(
    name: str | nn.Module,
    weights: str | Path | None = None,
    data: str | Path | tuple[Dataset, Dataset] | None = None,
    *,
    normalization: Normalization | None = None,
    training: bool = False,
) -> LoadedWorkload:
    """Build a network, load its weights, and read its data.

    Args:
        name: a name in `WORKLOADS`; or `package.module:function`, a function without arguments that returns the
            user's own network, which is imported from the current folder or from what is installed; or a float network
            itself, which is copied.
        weights: file with weights, or with weights and how they sit on a chip, as
            `training.layers.deployment.write_deployed` writes; None for the packaged ones, or for those
            that the user's function returns.
        data: what `training.data.datasets.load_data` reads; None for the data set of the workload. A single `.npz` file
            gives both the calibration and the test images. Or the training and test images themselves, as they are.
        normalization: what is done to pixels of 0..1; None for what the workload wants, or nothing for the user's own.
        training: whether to load all training images, too.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: an unknown name, weights or data that are needed and not given, malformed or do not fit; a
            normalisation where the workload has one or the images are normalised already; or training images are asked
            for of a single file, which has no others to test with.
    """
    if isinstance(name, nn.Module) or ":" in name:
        return _load_own(name, weights, data, normalization, training)
    workload = WORKLOADS.get(name)
    if workload is None:
        raise InputError(
            f"network {name!r} is unknown: choose one of {', '.join(WORKLOADS)}, "
            f"or name your own as package.module:function{did_you_mean(name, WORKLOADS)}"
        )
    weights_path = workload.weights if weights is None else Path(weights)
    source = workload.data if data is None else data
    missing = [what for what, given in (("weights", weights_path), ("data", source)) if given is None]
    if weights_path is None or source is None:
        raise InputError(f"network {name!r} comes without {' and '.join(missing)}: give a path to your own")
    if normalization is not None and workload.normalization is not None:
        raise InputError(f"network {name!r} has a normalisation of its own, {workload.normalization}: leave yours out")
    images = _load_images(source, normalization, training, default=workload.normalization)
    channels, height, width = images.test.images.shape[1:]
    if height != width:
        raise InputError(
            f"{images.test.name} has images of {height}x{width} pixels: network {name!r} wants square ones"
        )
    classes = max(workload.classes, images.classes)
    network = workload.build(channels, height, classes)
    described = f"{name} for {channels}x{height}x{width} images and {classes} classes"
    deployment = _load_weights(network, weights_path, described)
    network.eval()
    check_fits(network, images.test, described)
    return LoadedWorkload(network, images.calibration, images.test, images.train, deployment)


def load_test_images(name: str, data: str | Path, normalization: Normalization | None = None) -> Dataset:
    """The test images of other data than that of a network, normalised as the network wants them.

    Args:
        name: as for `load_workload`.
        data: what `training.data.datasets.load_data` reads.
        normalization: as for `load_workload`.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: malformed images, or such as are normalised already where a normalisation is given.
    """
    default = WORKLOADS[name].normalization if name in WORKLOADS else None
    return load_data(data, "test", normalization=normalization or default, only_bytes=normalization is not None)


def check_fits(network: nn.Module, data: Dataset, described: str) -> None:
    """Check that a network can classify the images: run it on two of them and on one, in evaluation mode.

    Args:
        network: takes float32 [b, c, h, w]; each of its modules is in the mode it was in afterwards.
        data: the images.
        described: for people: what the network is.

    Raises:
        InputError: it fails on such images or writes into them, returns anything but finite floats [b, classes], or
            has fewer classes than `data`.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for images in (data.images[[0, -1]], data.images[:1].clone()):
            scores = _scores(network, images, data, described)
    finally:
        for module, mode in modes:
            module.training = mode
    if scores.shape[1] < data.classes:
        raise InputError(
            f"{described} has {scores.shape[1]} classes and {data.name} has {data.classes}: "
            "expected at least as many as the data has"
        )


def _scores(network: nn.Module, images: Tensor, data: Dataset, described: str) -> Tensor:
    """What a network says of images, which nobody else has."""
    given, count = images.clone(), len(images)
    shape = "x".join(str(size) for size in images.shape[1:])
    try:
        with torch.no_grad():
            scores = network(images)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{described} does not take the {shape} images of {data.name}: {failure(error, network)}; "
            "give images or a network that fit"
        ) from error
    if not torch.equal(images.view(torch.int32), given.view(torch.int32)):
        raise InputError(
            f"{described} writes into the images that it is given: make a new tensor (x = x - mean, not x -= mean)"
        )
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim != 2 or len(scores) != count:
        raise InputError(
            f"{described} gives {_described(scores)} for {count} image{'s' * (count > 1)}: expected floats "
            f"[{count}, classes], one for each class; {_hint(scores)}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            f"{described} gives NaN or infinity among the scores of {data.name}: check its weights and the images"
        )
    return scores


def _described(returned: object) -> str:
    """What a network returned, in words."""
    if isinstance(returned, Tensor):
        return f"{returned.dtype} {list(returned.shape)}"
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"{kind} of {', '.join(map(repr, list(returned)[:_SHOWN])) or 'nothing'}"
    if isinstance(returned, tuple | list):
        return f"{kind} of {', '.join(map(_described, returned[:_SHOWN])) or 'nothing'}"
    return kind


def _hint(returned: object) -> str:
    """How to give scores instead."""
    if isinstance(returned, Mapping | tuple | list):
        return "return the scores alone, from a module around the network if need be"
    if not isinstance(returned, Tensor):
        return "return them from its forward"
    if not returned.is_floating_point():
        return "return the scores from before they are made into that"
    if returned.ndim > 2:
        return "end it with a mean over pixels, or with Flatten and Linear"
    return "keep the dimension of the images: Flatten(1), or squeeze only others"


class _Images(NamedTuple):
    """Images of a workload, and how many classes they are of, training and test taken together."""

    calibration: tuple[Tensor, ...]
    test: Dataset
    train: Dataset | None
    classes: int


def _load_own(
    given: str | nn.Module,
    weights: str | Path | None,
    data: str | Path | tuple[Dataset, Dataset] | None,
    normalization: Normalization | None,
    training: bool,
) -> LoadedWorkload:
    name = given if isinstance(given, str) else type(given).__name__
    if data is None:
        raise InputError(f"network {name!r} is your own and has no data: give a path to it")
    if isinstance(given, nn.Module):
        check_float_network(given)
    network = own_network(given) if isinstance(given, str) else copied(given)
    images = _load_images(data, normalization, training)
    deployment = None if weights is None else _load_weights(network, Path(weights), name)
    network.eval()
    check_fits(network, images.test, name)
    return LoadedWorkload(network, images.calibration, images.test, images.train, deployment)


def _load_weights(network: nn.Module, path: Path, described: str) -> Deployment | None:
    weights, deployment = read_deployed(path)
    put_weights(network, weights, path, described)
    return deployment


def _load_images(
    source: str | Path | tuple[Dataset, Dataset],
    normalization: Normalization | None,
    training: bool,
    default: Normalization | None = None,
) -> _Images:
    """Images, normalised as the user says; where nothing is said as `default` does, if they are bytes."""
    if isinstance(source, tuple):
        if normalization is not None:
            raise InputError(f"images of {source[1].name} are given as the network takes them: leave normalization out")
        return _images(*source, training)
    if training and Path(source).suffix == ".npz" and Path(source).is_file():
        raise InputError(
            f"{source} is one file and leaves no images to test with that were not trained on: "
            "give a folder with train.npz and test.npz"
        )
    read = partial(load_data, source, normalization=normalization or default, only_bytes=normalization is not None)
    test = read("test")
    return _images(read("train", limit=None if training else CALIBRATION_IMAGES), test, training)


def _images(train: Dataset, test: Dataset, training: bool) -> _Images:
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{test.name} has training images of {list(train.images.shape[1:])} and test images of "
            f"{list(test.images.shape[1:])}: expected the same shape"
        )
    calibration = train.images[evenly_spaced(CALIBRATION_IMAGES, len(train))]
    batches = torch.split(calibration, CALIBRATION_BATCH)
    return _Images(batches, test, train if training else None, max(train.classes, test.classes))


def own_network(name: str) -> nn.Module:
    """A network of the user's own.

    Args:
        name: `package.module:function`, imported from the current folder or from what is installed: its code runs.

    Raises:
        InputError: there is no such function, it fails, or it returns something else than a float network in Python.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name or "/" in module_name or module_name.endswith(".py"):
        raise InputError(f"network {name!r}: expected package.module:function, such as nets.mine:network, and no path")
    folder = str(Path.cwd())
    if folder not in sys.path:  # a command that is installed does not look into the current folder by itself
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"network {name!r} cannot be imported: {first_line(error)}{_at(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"network {name!r}: import raised {_raised(error)}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise InputError(
            f"network {name!r}: module {module_name!r} has no {function_name!r}"
            f"{did_you_mean(function_name, dir(module))}"
        )
    if not callable(function):
        raise InputError(f"network {name!r} is a {type(function).__name__}: expected a function that returns a network")
    try:
        network = function()
    except (Exception, SystemExit) as error:
        raise InputError(f"network {name!r}: the call raised {_raised(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name!r} returned a {type(network).__name__}: expected a torch.nn.Module")
    check_float_network(network)
    return network


def _raised(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}{_at(error)}"


def _at(error: BaseException) -> str:
    line = line_of(error)
    return "" if line is None else f" (at {line})"
