"""One unit of a study: a network on a random chip, with something done about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from efat.campaigns.campaign import Campaign, Outcome, Unit
from efat.campaigns.workers import with_all_threads
from simulator import ArrayConfig, FaultModel, Kind, Site, sample_faults
from simulator.lots.chips import Chip
from study.networks import Subject
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe
from training.learning.retrain import retrain

OWN_PE_SITES = (Site.WEIGHT, Site.PRODUCT, Site.PSUM)
"""Sites whose faults cost their own PE when they are bypassed, and no other: then the fault rate is what is lost."""


@dataclass(frozen=True)
class Case:
    """A random chip, and what is done about it.

    Attributes:
        size: rows and columns of the array.
        rate: fraction of PEs that are faulty.
        number: which of the random chips of that rate.
        strategy: see `Mitigations.named`.
        sites: the faults' sites, by name.
        kind: the only kind of fault, by name; None for both stuck values.
        bit: the only bit of the faults' nets; None for any.
        iterations: of retraining.
        evaluate_at: where accuracy is measured on the way.
    """

    size: int
    rate: float
    number: int
    strategy: str = "none"
    sites: tuple[str, ...] = tuple(site.name for site in OWN_PE_SITES)
    kind: str | None = None
    bit: int | None = None
    iterations: int = 0
    evaluate_at: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Of the file its result is kept in."""
        sites = "-".join(self.sites) if self.sites != Case(0, 0, 0).sites else ""
        parts = [str(self.size), f"{self.rate:g}", str(self.number), self.strategy, sites, self.kind, self.bit]
        if self.iterations:
            parts.append(self.iterations)
        return "_".join("" if part is None else str(part) for part in parts)

    def chip(self) -> Chip:
        """The chip; the same for every strategy."""
        config = ArrayConfig(self.size, self.size)
        sites = {Site[name]: 1.0 for name in self.sites}
        kinds = {Kind[self.kind]: 1.0} if self.kind else {Kind.STUCK_AT_0: 1.0, Kind.STUCK_AT_1: 1.0}
        bits = {} if self.bit is None else {site: [0.0] * self.bit + [1.0] for site in sites}
        model = FaultModel(self.rate, sites=sites, kinds=kinds, bits=bits)
        seed = np.random.SeedSequence(2023, spawn_key=(self.size, round(self.rate * 1e6), self.number))
        return Chip(f"{self.size}-{self.rate:g}-{self.number}", sample_faults(config, model, seed))


def measure(subject: Subject, key: str, case: Case, recipe: Recipe, kept: Campaign) -> Mapping[str, Any]:
    """Accuracies of a case, worked out now unless they are there already.

    Args:
        subject: the network.
        key: its name among the results.
        case: what to do.
        recipe: how it is retrained.
        kept: keeps the result.

    Returns:
        `accuracies`: by iteration; `seconds`; `bypassed`: fraction of the PEs.
    """

    def work(_: Mapping[str, Any]) -> Outcome:
        begun = time.perf_counter()
        found = retrain(
            subject.network,
            case.chip(),
            subject.data,
            case.iterations,
            mitigations=Mitigations.named(case.strategy),
            recipe=replace(recipe, seed=case.number),
            evaluate_at=case.evaluate_at,
        )
        values = {
            "accuracies": {str(one.iteration): one.accuracy for one in found.evaluations},
            "seconds": time.perf_counter() - begun,
            "bypassed": float(found.deployment.bypass.mean()),
        }
        return Outcome(values)

    unit = f"{key}_{case.name}".replace("+", "-")
    kept.run([Unit(unit, {})], work, with_all_threads)
    return kept.values(unit)


def summary(values: Sequence[float]) -> str:
    """Mean and range of accuracies."""
    return f"{np.mean(values):.1%} ({min(values):.1%} .. {max(values):.1%})"


def last(result: Mapping[str, Any]) -> float:
    """The accuracy at the end."""
    accuracies: dict[str, float] = result["accuracies"]
    return accuracies[max(accuracies, key=int)]
