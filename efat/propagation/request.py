"""What is asked of the faults of an array: which of them there are, and how many of them are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efat.propagation.population import Stratum
from efat.propagation.subject import Subject
from efat.propagation.tables import MOST_FAULTS
from efat.records import LARGEST_COUNT
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError

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
