"""What is asked for: a network and its images on an array without faults, and the faults that are put into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import field, structs
from torch import Tensor, nn

from efat.campaigns.workers import one_thread
from efat.records import LARGEST_COUNT, Record, replace, shown
from efat.setup import OwnData, OwnNetwork, first_images, located, objects_of, settle_inputs, stamp
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError, check_unchanged
from training.calibration import DEFAULT_PERCENTILE, Method, check_method
from training.data.datasets import DATA_VARIABLE, Normalization
from training.data.workloads import load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.learning.retrain import digest_of_network

DEFAULT_IMAGES = 64
"""Images that a network classifies if nothing else is said: the first ones, or all if there are fewer."""
DEFAULT_SITES = tuple(site for site in Site if site is not Site.MULTIPLIER)
"""Nets whose faults are tried if nothing else is said: a multiplier has hundreds inside, which would outnumber them."""
DEFAULT_KINDS = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
DEFAULT_CONFIDENCE = 0.95
DEFAULT_MARGIN = 0.02

MOST_FAULTS = 1 << 22
"""That are tried."""

Stratum = tuple[Site, int, Kind]
"""Faults of one bit of one kind of net, and of one kind."""

if TYPE_CHECKING:
    _Network = str | OwnNetwork
    _Data = Path | OwnData | None
else:
    # Files have texts there; `settle_inputs` looks at them itself.
    _Network = _Data = Any


_Member = TypeVar("_Member", Site, Kind)


@dataclass(frozen=True, eq=False)
class LoadedSubject:
    """A quantised network and its images, which fit each other.

    Attributes:
        network: on a fault-free array, in evaluation mode; not to be changed.
        images: float32 [n, c, h, w].
        labels: int64 [n].
        classes: number of classes of the data.
        identity: what decides all results, as digests and texts by name.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    classes: int
    identity: Mapping[str, str]


class Subject(Record, frozen=True):
    """A network and its images.

    Args:
        network: as for `efat.Setup`.
        weights: file of weights; None for those that come with the network. Weights that were retrained for a chip
            bring the steps of their activations; how they sit on that chip is not taken over.
        data: as for `efat.Setup`.
        images: number of test images, the first ones; None for `DEFAULT_IMAGES`, or all if there are fewer.
        calibration: how the activations' steps are chosen; weights that were retrained for a chip bring theirs.
        normalization: as for `efat.Setup`.
        identity: what it was when a campaign was begun; None before.

    Raises:
        InputError: a network or data of the wrong kind, or an unknown calibration.
    """

    network: _Network
    weights: Path | None = None
    data: _Data = None
    images: int | None = None
    calibration: Method = "max"
    normalization: str | None = None
    identity: dict[str, str] | None = None

    def __post_init__(self) -> None:
        settle_inputs(self, "weights", "data")
        check_method(self.calibration, DEFAULT_PERCENTILE)

    def identified(self, array: ArrayConfig) -> Subject:
        """The same with what it is now, the number of images, and paths that hold in every folder.

        Raises:
            FileNotFoundError: as `load`.
            InputError: as `load`.
        """
        loaded = self.load(array)
        return replace(
            self,
            images=len(loaded.labels),
            weights=located(self.weights),
            data=located(self.data) if isinstance(self.data, Path) else self.data,
            identity=dict(loaded.identity),
        )

    def load(self, array: ArrayConfig) -> LoadedSubject:
        """Load everything, and check that it fits; a process keeps what it loaded last.

        Raises:
            FileNotFoundError: a file is not there.
            InputError: something is of the wrong kind, does not fit or is unknown, or is another than when a campaign
                was begun.
        """
        files = (self.weights, self.data if isinstance(self.data, Path) else None)
        state = (str(Path.cwd()), os.environ.get(DATA_VARIABLE), *map(stamp, files))
        loaded = _loaded(replace(self, identity=None), array, state)
        if self.identity is not None:
            check_unchanged(loaded.identity, self.identity)
        return loaded


@lru_cache(maxsize=1)
def _loaded(subject: Subject, array: ArrayConfig, _state: object) -> LoadedSubject:
    network, data = objects_of(subject.network, subject.data)
    normalization = None if subject.normalization is None else Normalization.parse(subject.normalization)
    workload = load_workload(network, weights=subject.weights, data=data, normalization=normalization)
    count = min(DEFAULT_IMAGES, len(workload.test)) if subject.images is None else subject.images
    test = first_images(workload.test, count)
    scales = None if workload.deployment is None else _scales(workload.deployment, array)
    with one_thread():
        quantised = convert(
            workload.network,
            array,
            workload.calibration,
            method=subject.calibration,
            accelerator=Accelerator.fault_free(array),
            activation_scales=scales,
        )
    found = {name: float(layer.activation_scale).hex() for name, layer in quantized_layers(quantised).items()}
    identity = {
        "network": digest_of_network(workload.network),
        "images": test.digest,
        "calibration": subject.calibration if scales is None else "from the weights",
        "activation scales": hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest(),
    }
    return LoadedSubject(quantised, test.images, test.labels, test.classes, identity)


def _scales(deployment: Deployment, array: ArrayConfig) -> Mapping[str, float]:
    """The steps of activations that weights bring; they are steps of operands of one width only."""
    for name in ("weight_bits", "act_bits", "act_signed"):
        found, expected = getattr(array, name), getattr(deployment.array, name)
        if found != expected:
            raise InputError(
                f"the weights were retrained for an array with {name}={expected}, and this one has {found}: "
                "give an array with operands like theirs"
            )
    return deployment.activation_scales


class PropagationRequest(Record, frozen=True):
    """Which faults there are, and how many of them are tried; just one of `samples`, `exhaustive` and `margin`.

    Args:
        sites: names of the nets that can be faulty.
        kinds: names of how they are: stuck values or upsets, not both.
        bits: bits of a net that can be faulty, from 0, by its name; all bits of nets that are not named.
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

    sites: tuple[str, ...] = tuple(site.name for site in DEFAULT_SITES)
    kinds: tuple[str, ...] = tuple(kind.name for kind in DEFAULT_KINDS)
    bits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    samples: int | None = None
    exhaustive: bool = False
    margin: float | None = None
    confidence: float = DEFAULT_CONFIDENCE
    stratify: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        # In an order of their own, and each once: what is drawn depends on it.
        settled = {
            "sites": tuple(site.name for site in sorted({_member(Site, name) for name in self.sites})),
            "kinds": tuple(kind.name for kind in sorted({_member(Kind, name) for name in self.kinds})),
            "bits": {
                site.name: tuple(sorted(set(chosen)))
                for site, chosen in sorted((_member(Site, name), bits) for name, bits in self.bits.items())
            },
        }
        for name, value in settled.items():
            structs.force_setattr(self, name, value)
        for name in ("sites", "kinds"):
            if not getattr(self, name):
                raise InputError(f"{name} are none: expected one or more")
        if Kind.FLIP.name in self.kinds and len(self.kinds) > 1:
            raise InputError(
                "kinds are flip and stuck-at: an upset is of one clock cycle and one image, a stuck bit of all of "
                "them, so that no share is of both: try them one after the other, each into a folder of its own"
            )
        asked = [self.samples is not None, self.exhaustive, self.margin is not None]
        if sum(asked) != 1:
            raise InputError(
                "expected just one of a number of samples, all faults, and a margin: "
                + ("none is given" if not any(asked) else "several are given")
            )
        if self.samples is not None and not 1 <= self.samples <= MOST_FAULTS:
            raise InputError(f"samples is {self.samples}: expected 1..{MOST_FAULTS}")
        for name in ("margin", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is {value}: expected a share between 0 and 1, such as 0.05 or 0.95")
        if not 0 <= self.seed <= LARGEST_COUNT:
            raise InputError(f"seed is {self.seed}: expected 0..{LARGEST_COUNT}")

    def strata(self, array: ArrayConfig) -> list[Stratum]:
        """All that there are on an array, in the order of sites, bits and kinds.

        Raises:
            InputError: a net or bit that the array does not have.
        """
        sites, kinds = [Site[name] for name in self.sites], [Kind[name] for name in self.kinds]
        if Site.MULTIPLIER in sites and not Site.MULTIPLIER.bits(array):
            raise InputError(
                f"multiplier {array.pe_multiplier.name} is a table for all PEs and has no place for faults: leave out "
                "site multiplier, or give what faulty PEs multiply by"
            )
        for name, chosen in self.bits.items():
            net, width = name.lower(), Site[name].bits(array)
            if name not in self.sites:
                raise InputError(f"bits are given of {net}, which is not among the sites: add it, or leave them out")
            if not chosen:
                raise InputError(f"bits of {net} are none: expected some of 0..{width - 1}")
            for bit in chosen:
                if not 0 <= bit < width:
                    raise InputError(f"bits of {net} have {bit}: expected 0..{width - 1}, as it has {width} of them")
        return [
            (site, bit, kind)
            for site in sites
            for bit in self.bits.get(site.name, range(site.bits(array)))
            for kind in kinds
        ]

    def inputs(self, subject: Subject, array: ArrayConfig) -> dict[str, Any]:
        """Everything that decides the results, by a name that says what it is; the subject is an identified one."""
        asked = self.as_dict()
        how_many = {name: asked.pop(name) for name in ("samples", "exhaustive", "margin", "confidence", "stratify")}
        return {"array": array.as_dict(), **asked, "number of faults": how_many, **(subject.identity or {})}


def _member(kind: type[_Member], name: str) -> _Member:
    """The one of a name, in capitals or not."""
    found = str(getattr(name, "name", name)).upper()
    if found not in kind.__members__:
        known = ", ".join(member.name.lower() for member in kind)
        raise InputError(f"{shown(name)} is no {kind.__name__.lower()}: expected one of {known}")
    return kind[found]
