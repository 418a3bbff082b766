"""What a sample of faults says of the population that it is from: by strata, by PE, by bit of a net, and by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efat.propagation.statistics import Interval, mean_interval
from efat.propagation.tables import FaultTables, stratum_places
from simulator import Kind, Site
from simulator.dtypes import BoolArray, Float64Array, Int64Array
from training.injection.network_graph import Kind as OperationKind


class Domain(NamedTuple):
    """Some of the strata, all together.

    Attributes:
        strata: int64 [strata], rows of the table of strata.
        rows: int64 [faults], the rows of the table of faults that are of them.
        population: faults that they have.
    """

    strata: Int64Array
    rows: Int64Array
    population: int


class Estimates:
    """Means over a population of faults, with their confidence intervals; see `mean_interval`.

    A fault of a stratified sample stands for as many as its stratum has for each one that was sampled, and one of a
    simple sample for as many as any other.

    Args:
        tables: what was found.
        confidence: of the intervals, 0..1, both excluded.

    Attributes:
        changed: float64 [faults], shares of images whose top-1 each fault changes.
        weights: float64 [faults], for how many each stands.
        stratum_weights: float64 [strata], the same by stratum.
    """

    def __init__(self, tables: FaultTables, confidence: float) -> None:
        self.tables = tables
        self.confidence = confidence
        strata, faults = tables.strata, tables.faults
        self.stratum_weights: Float64Array = np.ones(len(strata))
        if tables.request.stratify:
            self.stratum_weights = strata["population"] / np.maximum(strata["sampled"].astype(np.float64), 1)
        place = stratum_places(strata, faults)
        self.weights: Float64Array = self.stratum_weights[place]
        self.changed: Float64Array = (faults["top1"].astype(np.int64) + faults["top5"]) / faults["images"]
        self._order = np.argsort(place, kind="stable")
        self._starts = np.append(0, np.cumsum(strata["sampled"], dtype=np.int64))

    def domain(self, chosen: BoolArray) -> Domain:
        """The faults of some strata, bool [strata]."""
        strata = np.nonzero(chosen)[0]
        parts = [self._order[self._starts[place] : self._starts[place + 1]] for place in strata.tolist()]
        rows = np.concatenate([np.empty(0, np.int64), *parts])
        return Domain(strata, rows, sum(self.tables.strata["population"][strata].tolist()))

    def mean(self, values: npt.ArrayLike, domain: Domain) -> Interval | None:
        """The mean of shares, [faults of the domain], over its population; None if none of it was sampled."""
        if not len(domain.rows):
            return None
        weights = self.weights[domain.rows]
        return mean_interval(values, self.confidence, weights=weights, population=domain.population)


MOST_CELLS = 64
"""Cells along a side of the array; a cell of a larger array stands for several PEs."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Shares of images whose top-1 a fault changes, by the place of the fault.

    Args:
        kinds: of the faults, for people: `stuck-at faults` or `flips`.
        rows: of the array, as `cols`.
        cols: see there.
        step: PEs along a side of a cell; those at the last row and column may have fewer.
        cells: float64 [down, across], mean share over the sampled faults of a cell's PEs, each counted as often as it
            stands for others of its stratum; NaN without any.
        accumulators: float64 [across], likewise for the faults of the accumulators below the array's columns.
        faults: int64 [down + 1, across], sampled faults behind them; those of accumulators in the last row.
    """

    kinds: str
    rows: int
    cols: int
    step: int
    cells: Float64Array
    accumulators: Float64Array
    faults: Int64Array

    @property
    def largest(self) -> float:
        """The largest share in it."""
        return float(np.nanmax(np.append(self.cells, self.accumulators)))


def heat_maps(estimates: Estimates) -> list[HeatMap]:
    """One for faults that stay and one for upsets, as their shares do not compare; those with samples only."""
    flips = estimates.tables.faults["kind"] == Kind.FLIP
    maps = (("stuck-at faults", ~flips), ("flips", flips))
    return [_heat_map(estimates, chosen, kinds) for kinds, chosen in maps if chosen.any()]


def _heat_map(estimates: Estimates, chosen: BoolArray, kinds: str) -> HeatMap:
    rows, cols = estimates.tables.array.shape
    table, weights = estimates.tables.faults[chosen], estimates.weights[chosen]
    below = table["site"] == Site.ACCUMULATOR
    row, col = np.where(below, 0, table["row"]).astype(np.int64), table["col"].astype(np.int64)
    step = _step(rows, cols, row[~below], col[~below])
    down, across = -(-rows // step), -(-cols // step)
    cell = np.where(below, down, row // step) * across + col // step
    size = (down + 1) * across
    total = np.bincount(cell, weights, size)
    changed = np.bincount(cell, weights * estimates.changed[chosen], size)
    with np.errstate(invalid="ignore"):
        means = np.where(total > 0, changed / total, np.nan).reshape(down + 1, across)
    faults = np.bincount(cell, minlength=size).reshape(down + 1, across)
    return HeatMap(kinds, rows, cols, step, means[:-1], means[-1], faults)


def _step(rows: int, cols: int, row: Int64Array, col: Int64Array) -> int:
    """The finest cells of which half have a sample, but not so fine that there are too many."""
    step = -(-max(rows, cols) // MOST_CELLS)
    while step < max(rows, cols):
        down, across = -(-rows // step), -(-cols // step)
        if not len(row) or 2 * len(np.unique(row // step * across + col // step)) >= down * across:
            break
        step *= 2
    return step


MOST_PLACES = 64
"""Bits of a net that have a place each in a chart; of more, several that follow each other share one."""

LEAST_TRIED = 10
"""Faults of a bit to try before it is named as dangerous."""

ENDINGS: tuple[OperationKind, ...] = ("quantise", "relu", "pooling", "other")
"""Operations between two layers that can end a difference."""


@dataclass(frozen=True)
class BitShare:
    """What the faults of one kind in bits `first` to `last` of a net do, of which some were tried.

    `critical` is the share of faults that change the top-1 of any image, `avf` and `scores` are mean shares of images
    whose top-1 and whose scores a fault changes.
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

    `rest` is the share of images whose top-1 all other faults change on average, and `known` whether all faults were
    tried, so that no bit is more dangerous.
    """

    share: BitShare
    rest: Interval
    known: bool


@dataclass(frozen=True)
class LayerFate:
    """What becomes of differences that leave a layer.

    `differences` are images whose accumulators differ, counted for each fault that was tried, `ended` the shares of
    them that end in operations before the next layer, by a name in `ENDINGS`, and `carried` the share that is left.
    Faults count as often as they stand for others.
    """

    name: str
    differences: int
    ended: dict[str, float]
    carried: float


def bit_shares(estimates: Estimates, most: int | None = None) -> list[BitShare]:
    """By net, bit and kind, in this order; without those of which no fault was tried.

    At most `most` bits of a net are told apart; None for all.
    """
    strata, faults = estimates.tables.strata, estimates.tables.faults
    scores = np.minimum(1.0, estimates.changed + faults["benign"] / faults["images"])
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
                changed = estimates.changed[domain.rows]
                critical = estimates.mean(changed > 0, domain)
                avf = estimates.mean(changed, domain)
                of_scores = estimates.mean(scores[domain.rows], domain)
                if critical is not None and avf is not None and of_scores is not None:
                    size = (domain.population, len(domain.rows))
                    found.append(BitShare(site, first, last, kind, *size, critical, avf, of_scores))
    return found


def worst_bit(tables: FaultTables, confidence: float) -> Worst | None:
    """The bit and kind of fault that changes the most predictions, if enough faults were tried to name one.

    Where not all were tried, it is one of those of which `LEAST_TRIED` faults or all were, and its interval begins
    above that of all other faults together. The worst of many bits is bad by chance, too: all intervals together cover
    the truth as often as `confidence` says (Bonferroni).

    None if more faults have to be tried, or if there is no other bit.
    """
    strata = tables.strata
    estimates = Estimates(tables, 1 - (1 - confidence) / max(1, len(strata)))
    known = len(tables.faults) == tables.population.size
    enough = [share for share in bit_shares(estimates) if share.faults >= min(LEAST_TRIED, share.population)]
    if not enough:
        return None
    worst = max(enough, key=lambda share: (share.avf.low, share.avf.value))
    others = (strata["site"] != worst.site) | (strata["bit"] != worst.first) | (strata["kind"] != worst.kind)
    domain = estimates.domain(others)
    rest = estimates.mean(estimates.changed[domain.rows], domain)
    if rest is None or not (known or worst.avf.low > rest.high):
        return None
    return Worst(worst, rest, known)


def layer_fates(estimates: Estimates) -> Iterator[LayerFate]:
    """By layer, in the order in which they run.

    Where a network branches, differences that come from elsewhere may end in the operations after a layer, too: if
    they are more than leave it, all of it counts as ended.
    """
    table, graph = estimates.tables.operations, estimates.tables.graph
    place = table["operation"].astype(np.int64)
    weights = estimates.stratum_weights[table["stratum"]]
    differences = np.bincount(place, table["images_out"], len(graph))
    out, masked = (np.bincount(place, weights * table[name], len(graph)) for name in ("images_out", "images_masked"))
    for layer, shape in enumerate(estimates.tables.layer_shapes):
        here = {
            kind: [number for number, step in enumerate(graph) if (step.layer, step.kind) == (layer, kind)]
            for kind in ("multiply", *ENDINGS)
        }
        leaving = sum(out[here["multiply"]].tolist())
        ended: dict[str, float] = {name: sum(masked[here[name]].tolist()) for name in ENDINGS}
        whole = max(leaving, sum(ended.values()))
        shares = {name: count / whole if whole else 0.0 for name, count in ended.items()}
        count = int(differences[here["multiply"]].sum())
        yield LayerFate(shape.name, count, shares, max(0.0, 1.0 - sum(shares.values())))
