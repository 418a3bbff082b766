"""Random fault maps: how many PEs are faulty, where they lie, and what is broken in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import Float64Array, Int64Array
from simulator.errors import InputError
from simulator.faults import FAULT_DTYPE, PERMANENT, FaultMap, Kind, Site

Pattern = Literal["uniform", "clustered", "lines"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

DEFAULT_SITES: tuple[Site, ...] = (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION, Site.PRODUCT, Site.PSUM)
"""The nets between a PE's parts. Faults inside the multiplier are left to those who ask for them: PRODUCT stands for
them more coarsely."""


@dataclass(frozen=True)
class FaultModel:
    """What random faults look like. Weights are relative; they need not add up to 1.

    Args:
        rate: fraction of PEs that have a fault, 0..1; rounded to a whole number of PEs, so every map of one
            size has the same number. For a lot it may be a range (low, high) that each chip's is drawn from,
            log-uniformly (uniformly if it starts at 0). Column accumulators, if `sites` names them, are
            components of their own: the same fraction of them is faulty.
        sites: weight of each site; `DEFAULT_SITES` equally by default.
        kinds: weight of each kind; both stuck values equally by default.
        bits: weight of each bit of a site's net, least significant first; a site left out has equal weights.
        pattern: `uniform` (PEs independent of each other), `clustered` (each tile of `cluster_side` PEs has a defect
            density drawn from a gamma distribution of shape `cluster_alpha`, so faults per tile are
            negative-binomial as in the yield model of Stapper, 1983), or `lines` (whole rows and columns broken
            alike, as a broken shared wire does; the last line is cut where the rate is reached).
        cluster_alpha: clustering parameter of `clustered`, > 0; smaller clusters more.
        cluster_side: side of the tiles of `clustered`, in PEs, >= 1.
        cycles: number of clock cycles that FLIP faults are drawn from; required when `kinds` has FLIP.

    Raises:
        InputError: a rate outside 0..1, weights that are negative or all zero, too many bit weights, and so on.
    """

    rate: float | tuple[float, float]
    sites: Mapping[Site, float] = field(default_factory=lambda: dict.fromkeys(DEFAULT_SITES, 1.0))
    kinds: Mapping[Kind, float] = field(default_factory=lambda: {Kind.STUCK_AT_0: 1.0, Kind.STUCK_AT_1: 1.0})
    bits: Mapping[Site, Sequence[float]] = field(default_factory=dict)
    pattern: Pattern = "uniform"
    cluster_alpha: float = 0.5
    cluster_side: int = 8
    cycles: int | None = None

    def __post_init__(self) -> None:
        low, high = self.rates
        if not 0.0 <= low <= high <= 1.0:
            raise InputError(
                f"fault rate is {self.rate}: expected a fraction of PEs, 0..1, or a range of them, low and high"
            )
        if self.pattern not in PATTERNS:
            raise InputError(f"pattern is {self.pattern!r}: expected one of {', '.join(PATTERNS)}")
        _check_weights("sites", list(self.sites.values()))
        _check_weights("kinds", list(self.kinds.values()))
        for site, weights in self.bits.items():
            _check_weights(f"bits of {Site(site).name}", weights)
        if not (self.cluster_alpha > 0 and np.isfinite(self.cluster_alpha)):
            raise InputError(f"cluster_alpha is {self.cluster_alpha}: expected a finite number above 0")
        if self.cluster_side < 1:
            raise InputError(f"cluster_side is {self.cluster_side}: expected at least 1 PE")
        if self.kinds.get(Kind.FLIP, 0) > 0 and (self.cycles is None or self.cycles < 1):
            raise InputError(f"cycles is {self.cycles}: FLIP faults need the number of clock cycles to draw from")

    @property
    def rates(self) -> tuple[float, float]:
        """The range of the fault rate, low and high."""
        return self.rate if isinstance(self.rate, tuple) else (self.rate, self.rate)


def sample_faults(config: ArrayConfig, model: FaultModel, seed: int | np.random.SeedSequence) -> FaultMap:
    """Draw one random fault map; the same config, model and seed give the same map.

    Args:
        config: the array.
        model: what the faults look like.
        seed: an integer >= 0 or a `numpy.random.SeedSequence`.

    Returns:
        A map with `round(rate * rows * cols)` faulty PEs, one fault each.

    Raises:
        InputError: `model.bits` has more weights than a net has bits, the array's multiplier has no location that
            could be faulty, or the rate is a range.
    """
    rate, high = model.rates
    if rate != high:
        raise InputError(f"fault rate is {rate}..{high}: expected one rate; generate_chips draws chips of a range")
    random = np.random.default_rng(seed)
    pe_sites: dict[Site, float] = {
        site: weight for site, weight in model.sites.items() if site is not Site.ACCUMULATOR and weight > 0
    }
    parts = []
    if pe_sites:
        cells, shared = _place(config, model, round(rate * config.pe_count), random)
        parts.append(_draw_faults(config, model, pe_sites, cells, shared, random))
    if model.sites.get(Site.ACCUMULATOR, 0) > 0:
        columns = random.choice(config.cols, round(rate * config.cols), replace=False, shuffle=False)
        own = np.arange(len(columns))
        parts.append(_draw_faults(config, model, {Site.ACCUMULATOR: 1.0}, columns, own, random))
    return FaultMap(config, np.concatenate(parts))


def _check_weights(name: str, weights: Sequence[float]) -> None:
    values = np.asarray(weights, float)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise InputError(f"weights of {name} are {list(weights)}: expected numbers >= 0, at least one above 0")


def _place(
    config: ArrayConfig, model: FaultModel, count: int, random: np.random.Generator
) -> tuple[Int64Array, Int64Array]:
    """Flat indices of `count` distinct PEs and, for each, the number of the defect it belongs to."""
    if model.pattern == "lines":
        return _place_lines(config, count, random)
    if model.pattern == "clustered":
        cells = _place_clustered(config, model, count, random)
    else:
        cells = random.choice(config.pe_count, count, replace=False, shuffle=False)
    return cells, np.arange(count)


def _place_clustered(config: ArrayConfig, model: FaultModel, count: int, random: np.random.Generator) -> Int64Array:
    side = model.cluster_side
    shift_rows, shift_cols = random.integers(side, size=2)
    tiles = (config.rows // side + 2, config.cols // side + 2)
    # Logarithms keep densities apart that would underflow to 0: log Gamma(a) = log Gamma(a + 1) + log(U) / a.
    log_density = np.log(random.standard_gamma(model.cluster_alpha + 1, tiles))
    log_density += np.log1p(-random.random(tiles)) / model.cluster_alpha
    row_tile = (np.arange(config.rows) + shift_rows) // side
    col_tile = (np.arange(config.cols) + shift_cols) // side
    # The `count` largest Gumbel-shifted log densities are a weighted draw without replacement.
    score = log_density[row_tile[:, None], col_tile] + random.gumbel(size=(config.rows, config.cols))
    if not count:
        return np.empty(0, np.int64)
    # Sorted, because the order that a partition leaves depends on the processor's vector instructions.
    return np.sort(np.argpartition(score, config.pe_count - count, axis=None)[config.pe_count - count :])


def _place_lines(config: ArrayConfig, count: int, random: np.random.Generator) -> tuple[Int64Array, Int64Array]:
    rank = random.permutation(config.rows + config.cols)
    first_line = np.minimum(rank[: config.rows, None], rank[config.rows :]).ravel()
    cells = np.argsort(first_line, kind="stable")[:count]
    return cells, first_line[cells]


def _draw_faults(
    config: ArrayConfig,
    model: FaultModel,
    sites: Mapping[Site, float],
    cells: Int64Array,
    defect: Int64Array,
    random: np.random.Generator,
) -> npt.NDArray[np.void]:
    """One fault per cell; cells of one defect (numbers 0..) share site, bit, kind and cycle."""
    defects = int(defect.max(initial=-1)) + 1
    site = _draw(list(sites), list(sites.values()), defects, random)
    bit = np.empty(defects, np.int64)
    for one_site in sites:
        width = one_site.bits(config)
        if not width:
            raise InputError(
                f"multiplier {config.pe_multiplier.name} has no location for MULTIPLIER faults: "
                "expected gates, or a table for faulty PEs"
            )
        weights = np.zeros(width)
        given = model.bits.get(one_site, [1.0] * width)
        if len(given) > width:
            raise InputError(f"{len(given)} bit weights for {one_site.name}: its net has {width} bits")
        weights[: len(given)] = given
        chosen = site == one_site
        bit[chosen] = _draw(range(width), weights, int(chosen.sum()), random)
    kind = _draw(list(model.kinds), list(model.kinds.values()), defects, random)
    cycle = np.full(defects, PERMANENT)
    flips = kind == Kind.FLIP
    cycle[flips] = random.integers(model.cycles or 1, size=int(flips.sum()))

    table = np.empty(len(cells), FAULT_DTYPE)
    table["row"], table["col"] = np.divmod(cells, config.cols)
    for name, values in (("site", site), ("bit", bit), ("kind", kind), ("cycle", cycle)):
        table[name] = values[defect]
    return table


def _draw(
    values: Sequence[int], weights: Sequence[float] | Float64Array, count: int, random: np.random.Generator
) -> Int64Array:
    probabilities = np.asarray(weights, float) / np.sum(weights)
    return np.asarray(values, np.int64)[random.choice(len(values), count, p=probabilities)]
