"""What a propagation campaign found, in numbers that people ask for: records of `summary.json`, and how they are shown.

docs/formats.md describes them. Counts are of the sample; shares are estimates for the population, strata weighted by
their sizes, with confidence intervals where faults are what was sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from efat.display import Shown, Table, Verdict
from efat.propagation.estimates import Domain, Estimates
from efat.propagation.request import PropagationRequest, Subject
from efat.propagation.statistics import Interval
from efat.propagation.tables import FILE_NAME, OPERATION_KINDS, PICTURES, SUMMARY, FaultTables, Rule
from efat.records import Document, Record
from efat.setup import name_of
from simulator import Kind, Site
from simulator.config import ArrayRecord
from simulator.dtypes import BoolArray, Int64Array
from training.injection.replay import OPERATION_COUNTS, OUTCOMES, PATTERNS

_IN_LAYERS = ("images_in", "images_acted", "images_out", "outputs_changed")


class AccuracyLost(Interval, frozen=True):
    """By permanent faults, on average and by the worst that was sampled; negative if more images became right."""

    worst: float


class Effects(Record, frozen=True, kw_only=True):
    """What some faults do; docs/formats.md says what each field is."""

    faults: int
    population: int
    outcomes: dict[str, int]
    shares: dict[str, float | None]
    active: Interval | None
    critical: Interval | None
    scores_changed: Interval | None
    avf: Interval | None
    sdc5: Interval | None
    accuracy_lost: AccuracyLost | None


class SiteEffects(Effects, frozen=True):
    """Of one kind of net."""

    site: str


class KindEffects(Effects, frozen=True):
    """Of one kind."""

    kind: str


class SiteKindEffects(Effects, frozen=True):
    """Of one kind, of one kind of net."""

    site: str
    kind: str


class BitEffects(Effects, frozen=True):
    """Of one bit of one kind of net."""

    site: str
    bit: int


class LayerSummary(Record, frozen=True):
    """How differences arrive at a layer and leave it."""

    layer: str
    groups: int
    m: int
    k: int
    n: int
    images_in: int
    images_acted: int
    images_out: int
    outputs_changed: int
    reached: Interval | None
    patterns: dict[str, int]
    pattern_shares: dict[str, float | None]
    outputs_share: float | None
    largest_error: int
    mean_error: float | None


class Masking(Record, frozen=True, kw_only=True):
    """How often differences that arrive at some operations end there."""

    images_in: int
    images_masked: int
    images_out: int
    elements_in: int
    elements_out: int
    rounded: int
    saturated: int
    masked_share: float | None
    rounded_share: float | None
    saturated_share: float | None


class KindMasking(Masking, frozen=True):
    """At those of a kind."""

    kind: str


class LayerMasking(Masking, frozen=True):
    """At those of a kind after a layer; None before the first."""

    layer: str | None
    kind: str


class OperationMasking(Masking, frozen=True):
    """At one operation."""

    operation: str
    kind: str
    layer: str | None


class MaskingSummary(Record, frozen=True):
    """The same by kind, by layer and kind, and of each operation by itself."""

    by_kind: tuple[KindMasking, ...]
    by_layer: tuple[LayerMasking, ...]
    by_operation: tuple[OperationMasking, ...]


class RuleCount(Record, frozen=True):
    """Faults that a rule is for, and their share; None of none."""

    faults: int
    share: float | None


class FaultFree(Record, frozen=True):
    """What the quantised network gets right without faults."""

    correct: int
    accuracy: float


class FaultPopulation(Record, frozen=True):
    """The faults that there are; rules by name."""

    faults: int
    strata: int
    rules: dict[str, RuleCount]


class FaultSample(Record, frozen=True):
    """Those that were tried; rules by name."""

    faults: int
    stratified: bool
    rules: dict[str, RuleCount]


class PropagationSummary(Document, frozen=True):
    """`summary.json`; docs/formats.md says what each field is."""

    FORMAT = "efat-propagation-summary"
    VERSION = 1
    SOURCE = "efat propagate"

    confidence: float
    array: ArrayRecord
    subject: Subject
    request: PropagationRequest
    images: int
    fault_free: FaultFree
    population: FaultPopulation
    sample: FaultSample
    overall: Effects
    by_site: tuple[SiteEffects, ...]
    by_kind: tuple[KindEffects, ...]
    by_site_and_kind: tuple[SiteKindEffects, ...]
    by_bit: tuple[BitEffects, ...]
    layers: tuple[LayerSummary, ...]
    masking: MaskingSummary
    versions: dict[str, str]


def summary(found: FaultTables, confidence: float | None = None) -> PropagationSummary:
    """Sum up what was found; the same for the same arguments.

    Args:
        found: what was found.
        confidence: of the intervals, 0..1, both excluded; None for what was asked for.

    Raises:
        InputError: a confidence that cannot be.
    """
    estimates = Estimates(found, found.request.confidence if confidence is None else confidence)
    strata, population = found.strata, found.population
    sites = [site for site in Site if (strata["site"] == site).any()]
    kinds = [kind for kind in Kind if (strata["kind"] == kind).any()]
    of_site = {site: strata["site"] == site for site in sites}
    of_kind = {kind: strata["kind"] == kind for kind in kinds}

    def effects(chosen: BoolArray) -> dict[str, Any]:
        return _effects(estimates, estimates.domain(chosen))

    return PropagationSummary(
        confidence=estimates.confidence,
        array=found.array,
        subject=found.subject,
        request=found.request,
        images=found.images,
        fault_free=FaultFree(found.fault_free_correct, found.fault_free_correct / found.images),
        population=FaultPopulation(population.size, len(strata), _by_rule(population.of_rules)),
        sample=FaultSample(
            len(found.faults),
            found.request.stratify,
            _by_rule(np.bincount(found.faults["rule"], minlength=len(Rule)).tolist()),
        ),
        overall=Effects(**effects(np.ones(len(strata), np.bool_))),
        by_site=tuple(SiteEffects(site.name, **effects(of_site[site])) for site in sites),
        by_kind=tuple(KindEffects(kind.name, **effects(of_kind[kind])) for kind in kinds),
        by_site_and_kind=tuple(
            SiteKindEffects(site.name, kind.name, **effects(chosen))
            for site in sites
            for kind in kinds
            if (chosen := of_site[site] & of_kind[kind]).any()
        ),
        by_bit=tuple(
            BitEffects(site.name, bit, **effects(of_site[site] & (strata["bit"] == bit)))
            for site in sites
            for bit in np.unique(strata["bit"][of_site[site]]).tolist()
        ),
        layers=tuple(_layers(estimates)),
        masking=_masking(estimates),
        versions=dict(found.versions),
    )


def _by_rule(counts: Sequence[int]) -> dict[str, RuleCount]:
    total = sum(counts)
    return {
        rule.name.lower(): RuleCount(count, count / total if total else None)
        for rule, count in zip(Rule, counts, strict=True)
    }


def _effects(estimates: Estimates, domain: Domain) -> dict[str, Any]:
    faults = estimates.tables.faults[domain.rows]
    # In floats: sums of unsigned columns would wrap.
    shares = {name: faults[name] / faults["images"] for name in OUTCOMES}
    means = {name: estimates.mean(shares[name], domain) for name in OUTCOMES}
    flipped = shares["top1"] + shares["top5"]
    return {
        "faults": len(faults),
        "population": domain.population,
        "outcomes": {name: int(faults[name].sum(dtype=np.int64)) for name in OUTCOMES},
        "shares": {name: None if mean is None else mean.value for name, mean in means.items()},
        "active": estimates.mean(faults["first_layer"] >= 0, domain),
        "critical": estimates.mean(flipped > 0, domain),
        "scores_changed": estimates.mean(np.minimum(1.0, shares["benign"] + flipped), domain),
        "avf": estimates.mean(np.minimum(1.0, flipped), domain),
        "sdc5": means["top5"],
        "accuracy_lost": _accuracy_lost(estimates, domain),
    }


def _accuracy_lost(estimates: Estimates, domain: Domain) -> AccuracyLost | None:
    strata = estimates.tables.strata
    permanent = np.zeros(len(strata), np.bool_)
    permanent[domain.strata] = strata["kind"][domain.strata] != Kind.FLIP
    of_permanent = estimates.domain(permanent)
    faults = estimates.tables.faults[of_permanent.rows]
    lost = (faults["correct_lost"].astype(np.float64) - faults["correct_gained"]) / faults["images"]
    # Within -1..1; an interval is of what lies within 0..1.
    found = estimates.mean((lost + 1) / 2, of_permanent)
    if found is None:
        return None
    mean = float(np.average(lost, weights=estimates.weights[of_permanent.rows]))
    known = found.low == found.high
    low, high = (mean, mean) if known else (min(mean, 2 * found.low - 1), max(mean, 2 * found.high - 1))
    return AccuracyLost(mean, low, high, float(lost.max()))


def _layers(estimates: Estimates) -> Iterator[LayerSummary]:
    found = estimates.tables
    everything = estimates.domain(np.ones(len(found.strata), np.bool_))
    weights = estimates.weights[found.layers["fault"]]
    for place, shape in enumerate(found.layer_shapes):
        rows = found.layers["layer"] == place
        table, weight = found.layers[rows], weights[rows]
        out, changed = _dot(weight, table["images_out"]), _dot(weight, table["outputs_changed"])
        reached = np.zeros(len(found.faults))
        reached[table["fault"]] = table["images_out"] / found.faults["images"][table["fault"]]
        counts = {name: int(table[name].sum(dtype=np.int64)) for name in (*_IN_LAYERS, *PATTERNS)}
        yield LayerSummary(
            shape.name,
            shape.groups,
            shape.m,
            shape.k,
            shape.n,
            **{name: counts[name] for name in _IN_LAYERS},
            reached=estimates.mean(reached[everything.rows], everything),
            patterns={name: counts[name] for name in PATTERNS},
            pattern_shares={name: _ratio(_dot(weight, table[name]), out) for name in PATTERNS},
            outputs_share=_ratio(changed, out * shape.groups * shape.n * shape.m),
            largest_error=int(table["largest_error"].max(initial=0)),
            mean_error=_ratio(_dot(weight, table["error_sum"]), changed),
        )


def _masking(estimates: Estimates) -> MaskingSummary:
    found = estimates.tables
    operation, weights = found.operations["operation"], estimates.stratum_weights[found.operations["stratum"]]
    counts = {name: _sums(operation, found.operations[name], len(found.graph)) for name in OPERATION_COUNTS}
    weighted = {
        name: np.bincount(operation, weights * found.operations[name], len(found.graph)).astype(np.float64)
        for name in OPERATION_COUNTS
    }
    kinds = np.array([step.kind for step in found.graph])
    layers = np.array([step.layer for step in found.graph])
    names = [None, *(shape.name for shape in found.layer_shapes)]

    def masking(chosen: BoolArray) -> dict[str, Any]:
        of = {name: float(values[chosen].sum()) for name, values in weighted.items()}
        return {
            **{name: sum(values[chosen].tolist()) for name, values in counts.items()},
            "masked_share": _ratio(of["images_masked"], of["images_in"]),
            "rounded_share": _ratio(of["rounded"], of["elements_in"]),
            "saturated_share": _ratio(of["saturated"], of["elements_in"]),
        }

    return MaskingSummary(
        by_kind=tuple(KindMasking(kind, **masking(kinds == kind)) for kind in OPERATION_KINDS if (kinds == kind).any()),
        by_layer=tuple(
            LayerMasking(name, kind, **masking(chosen))
            for place, name in enumerate(names, -1)
            for kind in OPERATION_KINDS
            if (chosen := (layers == place) & (kinds == kind)).any()
        ),
        by_operation=tuple(
            OperationMasking(
                step.name, step.kind, names[step.layer + 1], **masking(np.arange(len(found.graph)) == place)
            )
            for place, step in enumerate(found.graph)
        ),
    )


def _sums(places: npt.NDArray[np.integer], values: npt.NDArray[np.integer], length: int) -> Int64Array:
    """Exact sums of integers by place, int64 [length]."""
    totals = np.zeros(length, np.int64)
    np.add.at(totals, places, values.astype(np.int64))
    return totals


def _dot(weights: npt.NDArray[np.floating], values: npt.NDArray[np.number]) -> float:
    # Not by @, whose rounding depends on the number of threads.
    return float((weights * values).sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class Propagation(FaultTables, Shown):
    """What single faults do to a network: tables that `pandas.DataFrame` takes, their summary, and what is shown of it.

    `efat.propagate` returns it, and `load` reads it; the fields are those of `FaultTables`, and docs/formats.md says
    what each column is.

    Attributes:
        FILES: names of what `efat.propagate` writes for people into its folder.
    """

    FILES: ClassVar = (FILE_NAME, SUMMARY, *PICTURES)

    @cached_property
    def summary(self) -> PropagationSummary:
        """What it comes to, with intervals as they were asked for."""
        return summary(self)

    def parts(self) -> Iterator[Table | str]:
        """See `Shown.parts`."""
        yield from shown(self.summary)


def shown(found: PropagationSummary) -> Iterator[Table | str]:
    """What is shown of a summary, in turn."""
    yield Verdict(
        f"{name_of(found.subject.network)} on {found.array} PEs, {found.images:,} images: "
        f"{found.sample.faults:,} of {found.population.faults:,} faults tried"
    )
    rows: list[tuple[str, Effects]] = [(row.site.lower(), row) for row in found.by_site]
    if len(found.by_kind) > 1:
        rows += [(row.kind.lower().replace("_", "-"), row) for row in found.by_kind]
    yield Table(
        f"What they do, in % (with {100 * found.confidence:g} % intervals)",
        (
            "faults of",
            "tried",
            "critical\nfaults",
            "images with\nanother class",
            "images with\nother scores",
            "accuracy\nlost",
        ),
        [
            (
                name,
                row.faults,
                _interval(row.critical),
                _interval(row.avf),
                _interval(row.scores_changed),
                "" if row.accuracy_lost is None else f"{100 * row.accuracy_lost.value:.2f}",
            )
            for name, row in [*rows, ("all", found.overall)]
        ],
        sections=sorted({len(found.by_site) - 1, len(rows) - 1}),
    )
    yield Table(
        "How they leave layers: images with other outputs, and which outputs, in %",
        ("layer", "images", *PATTERNS),
        [
            (row.layer, _interval(row.reached), *(_share(row.pattern_shares[name]) for name in PATTERNS))
            for row in found.layers
        ],
        most=len(found.layers),
    )
    yield Table(
        "What ends differences: images that differ before an operation, not after it",
        ("operation", "differ", "end there\nin %"),
        [(row.kind, row.images_in, _share(row.masked_share)) for row in found.masking.by_kind],
    )
    rules = found.population.rules
    yield Table(
        "Of all faults, and without faults",
        ("", ""),
        [
            *(
                (f"faults that are {name}", f"{rules[rule].faults:,} ({rules[rule].share or 0:.1%})")
                for name, rule in _COLLAPSED
            ),
            ("accuracy quantised, fault-free", f"{found.fault_free.accuracy:.1%}"),
        ],
    )


_COLLAPSED = (
    ("provably unused", "unused"),
    ("provably the same value", "same_value"),
    ("the same as another fault", "equivalent"),
)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    value, low, high = (100 * end for end in (interval.value, interval.low, interval.high))
    # All faults were tried where both ends are the same.
    return f"{value:.1f}" if low == high else f"{value:.1f} ({low:.1f}-{high:.1f})"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
