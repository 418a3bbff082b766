"""What pictures and pages show of a propagation campaign: by bit of a net, and by layer what ends a difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from efat.propagation.estimates import Estimates
from efat.propagation.statistics import Interval
from efat.propagation.tables import Propagation
from simulator import Kind, Site

MOST_PLACES = 64
"""Bits of a net that have a place each in a chart; of more, several that follow each other share one."""

LEAST_TRIED = 10
"""Faults of a bit to try before it is named as dangerous."""

ENDINGS = ("quantise", "relu", "pooling", "other")
"""Operations between two layers that can end a difference, as in `OPERATION_KINDS`."""


@dataclass(frozen=True)
class BitShare:
    """What the faults of one kind in some bits of a net do.

    Args:
        site: the net.
        first: the first bit.
        last: the last one, mostly the same.
        kind: how it is faulty.
        population: faults there are.
        faults: how many of them were tried, 1 or more.
        critical: share of faults that change the top-1 of any image.
        avf: share of images whose top-1 a fault changes, mean of the faults.
        scores: share of images whose scores it changes, likewise.
    """

    site: Site
    first: int
    last: int
    kind: Kind
    population: int
    faults: int
    critical: Interval
    avf: Interval
    scores: Interval

    @property
    def bits(self) -> str:
        """Which they are."""
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Worst:
    """The bit that is surely among the most dangerous.

    Args:
        share: the bit, and what its faults do.
        rest: share of images whose top-1 all other faults change, on average.
        known: whether all faults were tried, so that no bit is more dangerous.
    """

    share: BitShare
    rest: Interval
    known: bool


@dataclass(frozen=True)
class LayerFate:
    """What becomes of differences that leave a layer.

    Args:
        name: of the layer.
        differences: images whose accumulators differ, counted for each fault that was tried.
        ended: share of them that ends in operations before the next layer, by a name in `ENDINGS`; all zero where
            there are no differences. Faults count as often as they stand for others.
        carried: the share that is left, 1 without differences.
    """

    name: str
    differences: int
    ended: dict[str, float]
    carried: float


def bit_shares(estimates: Estimates, most: int | None = None) -> list[BitShare]:
    """By net, bit and kind, in this order; without those of which no fault was tried.

    Args:
        estimates: of what was found.
        most: bits of a net that are told apart, 1 or more; None for all.
    """
    propagation, strata = estimates.propagation, estimates.propagation.strata
    found = []
    for site in Site:
        of_site = strata["site"] == site
        bits = strata["bit"][of_site]
        if not len(bits):
            continue
        low, high = int(bits.min()), int(bits.max())
        step = 1 if most is None else -(-(high - low + 1) // most)
        for first in range(low, high + 1, step):
            last = min(high, first + step - 1)
            of_bits = of_site & (strata["bit"] >= first) & (strata["bit"] <= last)
            for kind in Kind:
                domain = estimates.domain(of_bits & (strata["kind"] == kind))
                faults = propagation.faults[domain.rows]
                images = np.maximum(faults["images"], 1)
                flipped = (faults["top1"].astype(np.int64) + faults["top5"]) / images
                critical = estimates.mean(flipped > 0, domain)
                avf = estimates.mean(flipped, domain)
                scores = estimates.mean(np.minimum(1.0, flipped + faults["benign"] / images), domain)
                if critical is not None and avf is not None and scores is not None:
                    size = (domain.population, len(faults))
                    found.append(BitShare(site, first, last, kind, *size, critical, avf, scores))
    return found


def worst_bit(propagation: Propagation, confidence: float) -> Worst | None:
    """The bit and kind of fault that changes the most predictions, if enough faults were tried to name one.

    Where not all were tried, it is one of those of which `LEAST_TRIED` faults or all were, and its interval begins
    above that of all other faults together. The worst of many bits is bad by chance, too: all intervals together cover
    the truth as often as `confidence` says (Bonferroni).

    Args:
        propagation: what was found.
        confidence: of all intervals together, 0..1, both excluded.

    Returns:
        It; None if more faults have to be tried, or if there is no other bit.
    """
    strata = propagation.strata
    estimates = Estimates(propagation, 1 - (1 - confidence) / max(1, len(strata)))
    known = len(propagation.faults) == propagation.population["size"]
    enough = [share for share in bit_shares(estimates) if share.faults >= min(LEAST_TRIED, share.population)]
    if not enough:
        return None
    worst = max(enough, key=lambda share: (share.avf.low, share.avf.value))
    others = (strata["site"] != worst.site) | (strata["bit"] != worst.first) | (strata["kind"] != worst.kind)
    domain = estimates.domain(others)
    faults = propagation.faults[domain.rows]
    changed = (faults["top1"].astype(np.int64) + faults["top5"]) / np.maximum(faults["images"], 1)
    rest = estimates.mean(changed, domain)
    if rest is None or not (known or worst.avf.low > rest.high):
        return None
    return Worst(worst, rest, known)


def layer_fates(estimates: Estimates) -> list[LayerFate]:
    """By layer, in the order in which they run.

    Where a network branches, differences that come from elsewhere may end in the operations after a layer, too: if
    they are more than leave it, all of it counts as ended.

    Args:
        estimates: of what was found.
    """
    propagation = estimates.propagation
    table, graph = propagation.operations, propagation.graph
    place = table["operation"].astype(np.int64)
    of_stratum = estimates.stratum_weights[table["stratum"]]
    counts = {
        name: np.bincount(place, of_stratum * table[name], len(graph)) for name in ("images_out", "images_masked")
    }
    raw = np.bincount(place, table["images_out"], len(graph))
    return list(_fates(propagation, counts["images_out"].tolist(), counts["images_masked"].tolist(), raw.tolist()))


def _fates(
    propagation: Propagation, out: list[float], masked: list[float], differences: list[float]
) -> Iterator[LayerFate]:
    for layer, shape in enumerate(propagation.layer_shapes):
        here = [(number, step.kind) for number, step in enumerate(propagation.graph) if step.layer == layer]
        leaving = sum(out[number] for number, kind in here if kind == "multiply")
        ended = {name: sum(masked[number] for number, kind in here if kind == name) for name in ENDINGS}
        whole = max(leaving, sum(ended.values()))
        shares = {name: count / whole if whole else 0.0 for name, count in ended.items()}
        count = sum(differences[number] for number, kind in here if kind == "multiply")
        yield LayerFate(shape.name, int(count), shares, max(0.0, 1.0 - sum(shares.values())))
