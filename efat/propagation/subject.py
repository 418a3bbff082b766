"""What faults are put into: a quantised network on a fault-free array, and the images that it classifies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from efat.campaigns.workers import one_thread
from efat.setup import first_images
from simulator import ArrayConfig
from simulator.errors import InputError
from training.calibration import DEFAULT_PERCENTILE, Method, check_method
from training.data.datasets import DATA_VARIABLE, Normalization
from training.data.workloads import load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.learning.retrain import digest_of_network

DEFAULT_IMAGES = 64
"""Images that a network classifies if nothing else is said: the first ones, or all if there are fewer."""


class Loaded(NamedTuple):
    """A quantised network and its images, which fit each other.

    Attributes:
        network: on a fault-free array, in evaluation mode; not to be changed.
        images: float32 [n, c, h, w].
        labels: int64 [n].
        classes: number of classes of the data.
        data: for people: where the images are from.
        identity: what decides all results, as digests and texts by name.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    classes: int
    data: str
    identity: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """A network, its images, and the array that it runs on.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, or `package.module:function`.
        weights: file of weights; None for those that come with the network. Weights that were retrained for a chip
            bring the steps of their activations; how they sit on that chip is not taken over.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network.
        images: number of test images, the first ones; None for `DEFAULT_IMAGES`, or all if there are fewer.
        config: the array.
        calibration: how the activations' steps are chosen; weights that were retrained for a chip bring theirs.
        normalization: as for `training.data.workloads.load_workload`.

    Raises:
        InputError: an unknown calibration.
    """

    network: str
    weights: Path | None
    data: Path | None
    images: int | None
    config: ArrayConfig
    calibration: Method = "max"
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        check_method(self.calibration, DEFAULT_PERCENTILE)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them, without the array."""
        return {
            "network": self.network,
            "weights": None if self.weights is None else str(self.weights),
            "data": None if self.data is None else str(self.data),
            "images": self.images,
            "calibration": self.calibration,
            "normalization": None if self.normalization is None else str(self.normalization),
        }

    def located(self) -> Subject:
        """The same with the number of images, and with paths that hold in every folder.

        What is no path, such as the name of a data set, stays.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`.
        """
        count = len(self.load().labels)
        return replace(self, images=count, weights=_located(self.weights), data=_located(self.data))

    def load(self) -> Loaded:
        """Load everything, and check that it fits; a process keeps what it loaded last.

        Raises:
            FileNotFoundError: a file is not there.
            InputError: something is of the wrong kind, does not fit or is unknown.
        """
        state = (str(Path.cwd()), os.environ.get(DATA_VARIABLE), _stamp(self.weights), _stamp(self.data))
        return _loaded(self, state)

    def identity(self) -> dict[str, str]:
        """What decides all results beside the array, as digests and texts by name; the name says what it is of.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`.
        """
        return dict(self.load().identity)


@lru_cache(maxsize=1)
def _loaded(subject: Subject, _state: object) -> Loaded:
    workload = load_workload(
        subject.network, weights=subject.weights, data=subject.data, normalization=subject.normalization
    )
    count = min(DEFAULT_IMAGES, len(workload.test)) if subject.images is None else subject.images
    test = first_images(workload.test, count)
    accelerator = Accelerator.fault_free(subject.config)
    scales = None if workload.deployment is None else _scales(workload.deployment, subject.config)
    with one_thread():
        quantised = convert(
            workload.network,
            subject.config,
            workload.calibration,
            method=subject.calibration,
            accelerator=accelerator,
            activation_scales=scales,
        )
    found = {name: float(layer.activation_scale).hex() for name, layer in quantized_layers(quantised).items()}
    identity = {
        "network": digest_of_network(workload.network),
        "images": test.digest,
        "calibration": subject.calibration if scales is None else "from the weights",
        "activation scales": hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest(),
    }
    return Loaded(quantised, test.images, test.labels, test.classes, test.name, identity)


def _scales(deployment: Deployment, config: ArrayConfig) -> Mapping[str, float]:
    """The steps of activations that weights bring; they are steps of operands of one width only."""
    for name in ("weight_bits", "act_bits", "act_signed"):
        found, expected = getattr(config, name), deployment.array.get(name)
        if found != expected:
            raise InputError(
                f"the weights were retrained for an array with {name}={expected}, and this one has {found}: "
                "give an array with operands like theirs"
            )
    return deployment.activation_scales


def _located(path: Path | None) -> Path | None:
    return path.absolute() if path is not None and path.exists() else path


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
