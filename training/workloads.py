"""Workloads by name: a network with its weights, images to calibrate it on and images to test it on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from training.checkpoint import load_weights
from training.datasets import DIGITS, Dataset, Normalization, load_data
from training.errors import InputError, first_line
from training.networks import DigitsCnn, LeNet5, ResNet18, ResNet20, Vgg11

CALIBRATION_IMAGES = 256
CALIBRATION_BATCH = 64

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
        data: name of the packaged data set, or None.
        normalization: what is done to pixels of 0..1 first, or None.
    """

    name: str
    build: Callable[[int, int, int], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int = 10
    weights: Path | None = None
    data: str | None = None
    normalization: Normalization | None = None


CIFAR_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Per-channel mean and standard deviation that published CIFAR-10 ResNets were trained with."""

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("digits-cnn", DigitsCnn, (1, 8, 8), weights=_PACKAGED_WEIGHTS / "digits_cnn.safetensors", data=DIGITS),
        Workload("lenet5", LeNet5, (1, 28, 28)),
        Workload("vgg11", Vgg11, (3, 32, 32), normalization=CIFAR_NORMALIZATION),
        Workload("resnet20", ResNet20, (3, 32, 32), normalization=CIFAR_NORMALIZATION),
        Workload("resnet18", ResNet18, (3, 32, 32), normalization=CIFAR_NORMALIZATION),
    )
}


class LoadedWorkload(NamedTuple):
    """A workload ready to run.

    Attributes:
        network: float32, in evaluation mode.
        calibration: batches of float32 [b, c, h, w] from the training images.
        test: the test images.
    """

    network: nn.Module
    calibration: tuple[Tensor, ...]
    test: Dataset


def load_workload(name: str, weights: str | Path | None = None, data: str | Path | None = None) -> LoadedWorkload:
    """Build a network, load its weights, and read its data.

    Args:
        name: a name in `WORKLOADS`; or `package.module:function`, a function without arguments that returns the
            user's own network, which is imported from the current folder or from what is installed.
        weights: file with weights; None for the packaged ones, or for those that the user's function returns.
        data: what `training.datasets.load_data` reads; None for the packaged data. A single `.npz` file gives both the
            calibration and the test images.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: an unknown name, weights or data that are needed and not given, malformed or do not fit.
    """
    if ":" in name:
        return _load_own(name, weights, data)
    workload = WORKLOADS.get(name)
    if workload is None:
        raise InputError(
            f"network {name!r} is unknown: choose one of {', '.join(WORKLOADS)}, "
            "or name your own as package.module:function"
        )
    weights_path = workload.weights if weights is None else Path(weights)
    source = workload.data if data is None else data
    missing = [what for what, given in (("weights", weights_path), ("data", source)) if given is None]
    if weights_path is None or source is None:
        raise InputError(f"network {name!r} comes without {' and '.join(missing)}: give a path to your own")
    calibration, test = _load_data(source, workload.normalization)
    channels, height, width = test.images.shape[1:]
    if height != width:
        raise InputError(f"{test.name} has images of {height}x{width} pixels: network {name!r} wants square ones")
    classes = max(workload.classes, test.classes)
    network = workload.build(channels, height, classes)
    described = f"{name} for {channels}x{height}x{width} images and {classes} classes"
    load_weights(network, weights_path, described)
    return LoadedWorkload(network.eval(), calibration, test)


def _load_own(name: str, weights: str | Path | None, data: str | Path | None) -> LoadedWorkload:
    if data is None:
        raise InputError(f"network {name!r} is your own and has no data: give a path to it")
    network = _build_own(name)
    calibration, test = _load_data(data, None)
    if weights is not None:
        load_weights(network, Path(weights), name)
    return LoadedWorkload(network.eval(), calibration, test)


def _load_data(source: str | Path, normalization: Normalization | None) -> tuple[tuple[Tensor, ...], Dataset]:
    test = load_data(source, "test", normalization=normalization)
    train = load_data(source, "train", limit=CALIBRATION_IMAGES, normalization=normalization)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{test.name} has training images of {list(train.images.shape[1:])} and test images of "
            f"{list(test.images.shape[1:])}: expected the same shape"
        )
    batches = tuple(
        train.images[start : start + CALIBRATION_BATCH] for start in range(0, len(train), CALIBRATION_BATCH)
    )
    return batches, test


def _build_own(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f"network {name!r}: expected package.module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:  # a command that is installed does not look into the current folder by itself
        sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise InputError(f"network {name!r} cannot be imported: {first_line(error)}") from error
    except AttributeError:
        raise InputError(f"network {name!r}: module {module_name!r} has no {function_name!r}") from None
    except Exception as error:
        raise InputError(f"network {name!r}: import raised {type(error).__name__}: {first_line(error)}") from error
    if not callable(function):
        raise InputError(f"network {name!r} is a {type(function).__name__}: expected a function that returns a network")
    try:
        network = function()
    except Exception as error:
        raise InputError(f"network {name!r}: the call raised {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name!r} returned a {type(network).__name__}: expected a torch.nn.Module")
    return network
