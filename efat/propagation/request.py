"""What is asked for: a quantised network and its images on a fault-free array, and the faults that are put into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from efat.campaigns.workers import one_thread
from efat.propagation.population import Stratum
from efat.propagation.tables import MOST_FAULTS
from efat.records import LARGEST_COUNT
from efat.setup import first_images
from simulator import ArrayConfig, Kind, Site
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


DEFAULT_SITES = tuple(site for site in Site if site is not Site.MULTIPLIER)
"""Nets whose faults are tried if nothing else is said: a multiplier has hundreds inside, which would outnumber them."""

DEFAULT_KINDS = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
DEFAULT_CONFIDENCE = 0.95
DEFAULT_MARGIN = 0.02


@dataclass(frozen=True, eq=False)
class Request:
    """Which faults there are, and how many of them are tried; just one of `samples`, `exhaustive` and `margin`.

    Args:
        subject: network, images and array.
        sites: nets that can be faulty.
        kinds: how; stuck values or upsets, not both.
        bits: bits of a net that can be faulty, from 0; all bits of nets that are not named.
        samples: how many faults are tried.
        exhaustive: whether all are.
        margin: how far the share of critical faults may be from what is found, within 0..1: as many are tried as it
            takes.
        confidence: of intervals, within 0..1.
        stratify: whether each stratum has its part of the sample; otherwise chance decides.
        seed: of the sample, from 0.

    Raises:
        InputError: a value that cannot be.
    """

    subject: Subject
    sites: Sequence[Site] = DEFAULT_SITES
    kinds: Sequence[Kind] = DEFAULT_KINDS
    bits: Mapping[Site, Sequence[int]] = field(default_factory=dict)
    samples: int | None = None
    exhaustive: bool = False
    margin: float | None = None
    confidence: float = DEFAULT_CONFIDENCE
    stratify: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        # In an order of their own, and each once: what is drawn depends on it.
        object.__setattr__(self, "sites", tuple(sorted(set(self.sites))))
        object.__setattr__(self, "kinds", tuple(sorted(set(self.kinds))))
        object.__setattr__(self, "bits", {site: tuple(sorted(set(self.bits[site]))) for site in sorted(self.bits)})
        _check_kinds(self.kinds)
        _check_nets(self.subject.config, self.sites, self.bits)
        asked = [self.samples is not None, self.exhaustive, self.margin is not None]
        if sum(asked) != 1:
            raise InputError(
                "expected just one of a number of samples, all faults, and a margin: "
                + ("none is given" if not any(asked) else "several are given")
            )
        if self.samples is not None and not 1 <= self.samples <= MOST_FAULTS:
            raise InputError(f"samples is {self.samples}: expected 1..{MOST_FAULTS}")
        for name, value in (("margin", self.margin), ("confidence", self.confidence)):
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is {value}: expected a share between 0 and 1, such as 0.05 or 0.95")
        if not 0 <= self.seed <= LARGEST_COUNT:
            raise InputError(f"seed is {self.seed}: expected 0..{LARGEST_COUNT}")

    @property
    def transient(self) -> bool:
        """Whether the faults are upsets."""
        return Kind.FLIP in self.kinds

    @property
    def strata(self) -> list[Stratum]:
        """All that there are, in the order of sites, bits and kinds."""
        config = self.subject.config
        return [
            (site, bit, kind)
            for site in self.sites
            for bit in self.bits.get(site, range(site.bits(config)))
            for kind in self.kinds
        ]

    def as_dict(self) -> dict[str, Any]:
        """What is asked, as JSON takes it; without the subject."""
        return {
            "sites": [site.name for site in self.sites],
            "kinds": [kind.name for kind in self.kinds],
            "bits": {site.name: list(bits) for site, bits in self.bits.items()},
            "samples": self.samples,
            "exhaustive": self.exhaustive,
            "margin": self.margin,
            "confidence": self.confidence,
            "stratify": self.stratify,
            "seed": self.seed,
        }

    def inputs(self) -> dict[str, Any]:
        """Everything that decides the results, by a name that says what it is.

        Raises:
            FileNotFoundError: as `Subject.load`.
            InputError: as `Subject.load`.
        """
        asked = self.as_dict()
        how_many = {name: asked.pop(name) for name in ("samples", "exhaustive", "margin", "confidence", "stratify")}
        return {
            "array": self.subject.config.as_dict(),
            **asked,
            "number of faults": how_many,
            **self.subject.identity(),
        }


def _check_kinds(kinds: Sequence[Kind]) -> None:
    if not kinds:
        raise InputError("kinds are none: expected one or more")
    if Kind.FLIP in kinds and len(kinds) > 1:
        raise InputError(
            "kinds are flip and stuck-at: an upset is of one clock cycle and one image, a stuck bit of all of them, so "
            "that no share is of both: try them one after the other, each into a folder of its own"
        )


def _check_nets(config: ArrayConfig, sites: Sequence[Site], bits: Mapping[Site, Sequence[int]]) -> None:
    if not sites:
        raise InputError("sites are none: expected one or more")
    if Site.MULTIPLIER in sites and not Site.MULTIPLIER.bits(config):
        raise InputError(
            f"multiplier {config.pe_multiplier.name} is a table for all PEs and has no place for faults: leave out "
            "site multiplier, or give what faulty PEs multiply by"
        )
    for site, chosen in bits.items():
        name, width = site.name.lower(), site.bits(config)
        if site not in sites:
            raise InputError(f"bits are given of {name}, which is not among the sites: add it, or leave them out")
        if not chosen:
            raise InputError(f"bits of {name} are none: expected some of 0..{width - 1}")
        for bit in chosen:
            if not 0 <= bit < width:
                raise InputError(f"bits of {name} have {bit}: expected 0..{width - 1}, as it has {width} of them")
