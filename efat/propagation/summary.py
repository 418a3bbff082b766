"""What a propagation campaign found, in numbers that people ask for, as JSON takes them.

docs/formats.md describes them. Counts are of the sample; shares are estimates for the population, strata weighted by
their sizes, with confidence intervals where faults are what was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from efat.propagation.estimates import Domain, Estimates
from efat.propagation.statistics import Interval
from efat.propagation.tables import OPERATION_KINDS, OPERATIONS_DTYPE, OUTCOMES, PATTERNS, Propagation, Rule
from simulator import Kind, Site
from simulator.dtypes import BoolArray, Int64Array

FORMAT = "efat-propagation-summary"
VERSION = 1

_COUNTED = tuple(name for name in OPERATIONS_DTYPE.names or () if name not in ("stratum", "operation"))
_IN_LAYERS = ("images_in", "images_acted", "images_out", "outputs_changed")


def summary(propagation: Propagation, confidence: float) -> dict[str, Any]:
    """Sum up what was found.

    Args:
        propagation: what was found.
        confidence: of the intervals, 0..1, both excluded.

    Returns:
        What docs/formats.md says of `summary.json`; the same for the same arguments.

    Raises:
        ValueError: a confidence that cannot be.
    """
    estimates = Estimates(propagation, confidence)
    strata = propagation.strata
    whole = np.ones(len(strata), np.bool_)
    return {
        "format": FORMAT,
        "version": VERSION,
        "confidence": confidence,
        "array": dict(propagation.array),
        "subject": dict(propagation.subject),
        "request": dict(propagation.request),
        "images": propagation.images,
        "fault_free": {
            "correct": propagation.fault_free_correct,
            "accuracy": propagation.fault_free_correct / propagation.images,
        },
        "population": _population(propagation),
        "sample": {
            "faults": len(propagation.faults),
            "stratified": propagation.stratified,
            "rules": _by_rule(np.bincount(propagation.faults["rule"], minlength=len(Rule)).tolist()),
        },
        "overall": _effects(estimates, whole),
        "by_site": [
            {"site": site.name, **_effects(estimates, of_site)}
            for site in Site
            if (of_site := strata["site"] == site).any()
        ],
        "by_kind": [
            {"kind": kind.name, **_effects(estimates, of_kind)}
            for kind in Kind
            if (of_kind := strata["kind"] == kind).any()
        ],
        "by_site_and_kind": [
            {"site": site.name, "kind": kind.name, **_effects(estimates, chosen)}
            for site in Site
            for kind in Kind
            if (chosen := (strata["site"] == site) & (strata["kind"] == kind)).any()
        ],
        "by_bit": [
            {"site": site.name, "bit": bit, **_effects(estimates, (strata["site"] == site) & (strata["bit"] == bit))}
            for site in Site
            for bit in np.unique(strata["bit"][strata["site"] == site]).tolist()
        ],
        "layers": _layers(estimates),
        "masking": _masking(estimates),
        "versions": dict(propagation.versions),
    }


def _population(propagation: Propagation) -> dict[str, Any]:
    counted = len(propagation.population) > 1
    counts = [propagation.population[rule.name.lower()] for rule in Rule] if counted else []
    return {
        "faults": propagation.population["size"],
        "strata": len(propagation.strata),
        "rules": _by_rule(counts) if counted else None,
    }


def _by_rule(counts: list[int]) -> dict[str, dict[str, Any]]:
    """By the name of each rule: how many faults it is for, and their share; null of none."""
    total = sum(counts)
    return {
        rule.name.lower(): {"faults": count, "share": count / total if total else None}
        for rule, count in zip(Rule, counts, strict=True)
    }


def _effects(estimates: Estimates, chosen: BoolArray) -> dict[str, Any]:
    """What the faults of some strata, bool [strata], do."""
    domain = estimates.domain(chosen)
    faults = estimates.propagation.faults[domain.rows]
    images = np.maximum(faults["images"], 1)
    # In floats: sums of unsigned columns would wrap.
    shares = {name: faults[name] / images for name in OUTCOMES}
    flipped = shares["top1"] + shares["top5"]
    return {
        "faults": len(faults),
        "population": domain.population,
        "outcomes": {name: int(faults[name].sum(dtype=np.int64)) for name in OUTCOMES},
        "shares": {name: _value(estimates.mean(shares[name], domain)) for name in OUTCOMES},
        "active": _as_json(estimates.mean(faults["first_layer"] >= 0, domain)),
        "critical": _as_json(estimates.mean(flipped > 0, domain)),
        "scores_changed": _as_json(estimates.mean(np.minimum(1.0, shares["benign"] + flipped), domain)),
        "avf": _as_json(estimates.mean(np.minimum(1.0, flipped), domain)),
        "sdc5": _as_json(estimates.mean(shares["top5"], domain)),
        "accuracy_lost": _accuracy_lost(estimates, domain),
    }


def _accuracy_lost(estimates: Estimates, domain: Domain) -> dict[str, float] | None:
    """By permanent faults, on average and by the worst that was sampled; negative if more images became right."""
    strata = estimates.propagation.strata
    permanent = np.zeros(len(strata), np.bool_)
    permanent[domain.strata] = strata["kind"][domain.strata] != Kind.FLIP
    of_permanent = estimates.domain(permanent)
    faults = estimates.propagation.faults[of_permanent.rows]
    lost = (faults["correct_lost"].astype(np.float64) - faults["correct_gained"]) / np.maximum(faults["images"], 1)
    # Within -1..1; an interval is of what lies within 0..1.
    found = estimates.mean((lost + 1) / 2, of_permanent)
    if found is None:
        return None
    mean = float(np.average(lost, weights=estimates.weights[of_permanent.rows]))
    known = found.low == found.high
    low, high = (mean, mean) if known else (min(mean, 2 * found.low - 1), max(mean, 2 * found.high - 1))
    return {"value": mean, "low": low, "high": high, "worst": float(lost.max())}


def _layers(estimates: Estimates) -> list[dict[str, Any]]:
    """How differences arrive at each layer and leave it."""
    found = estimates.propagation
    everything = estimates.domain(np.ones(len(found.strata), np.bool_))
    weights = estimates.weights[found.layers["fault"]]
    layers = []
    for place, shape in enumerate(found.layer_shapes):
        rows = found.layers["layer"] == place
        table, weight = found.layers[rows], weights[rows]
        out = _dot(weight, table["images_out"])
        changed = _dot(weight, table["outputs_changed"])
        reached = np.zeros(len(found.faults))
        reached[table["fault"]] = table["images_out"] / found.faults["images"][table["fault"]]
        layers.append(
            {
                "layer": shape.name,
                "groups": shape.groups,
                "m": shape.m,
                "k": shape.k,
                "n": shape.n,
                **{name: int(table[name].sum(dtype=np.int64)) for name in _IN_LAYERS},
                "reached": _as_json(estimates.mean(reached[everything.rows], everything)),
                "patterns": {name: int(table[name].sum(dtype=np.int64)) for name in PATTERNS},
                "pattern_shares": {name: _ratio(_dot(weight, table[name]), out) for name in PATTERNS},
                "outputs_share": _ratio(changed, out * shape.groups * shape.n * shape.m),
                "largest_error": int(table["largest_error"].max(initial=0)),
                "mean_error": _ratio(_dot(weight, table["error_sum"]), changed),
            }
        )
    return layers


def _masking(estimates: Estimates) -> dict[str, list[dict[str, Any]]]:
    """How often differences that arrive at operations end there: by kind, by layer and kind, and of each by itself."""
    found = estimates.propagation
    operation, weights = found.operations["operation"], estimates.stratum_weights[found.operations["stratum"]]
    counts = {name: _sums(operation, found.operations[name], len(found.graph)) for name in _COUNTED}
    weighted = {
        name: np.bincount(operation, weights * found.operations[name], len(found.graph)).astype(np.float64)
        for name in _COUNTED
    }
    kinds = np.array([step.kind for step in found.graph])
    layers = np.array([step.layer for step in found.graph])
    names = [None, *(shape.name for shape in found.layer_shapes)]

    def total(chosen: BoolArray) -> dict[str, Any]:
        return _passed(
            {name: sum(values[chosen].tolist()) for name, values in counts.items()},
            {name: float(values[chosen].sum()) for name, values in weighted.items()},
        )

    return {
        "by_kind": [{"kind": kind, **total(kinds == kind)} for kind in OPERATION_KINDS if (kinds == kind).any()],
        "by_layer": [
            {"layer": name, "kind": kind, **total(chosen)}
            for place, name in enumerate(names, -1)
            for kind in OPERATION_KINDS
            if (chosen := (layers == place) & (kinds == kind)).any()
        ],
        "by_operation": [
            {
                "operation": step.name,
                "kind": step.kind,
                "layer": names[step.layer + 1],
                **total(np.arange(len(found.graph)) == place),
            }
            for place, step in enumerate(found.graph)
        ],
    }


def _sums(places: npt.NDArray[np.integer], values: npt.NDArray[np.integer], length: int) -> Int64Array:
    """Exact sums of integers by place, int64 [length]."""
    totals = np.zeros(length, np.int64)
    np.add.at(totals, places, values.astype(np.int64))
    return totals


def _dot(weights: npt.NDArray[np.floating], values: npt.NDArray[np.number]) -> float:
    # Not by @, whose rounding depends on the number of threads.
    return float((weights * values).sum())


def _passed(counts: Mapping[str, int], weighted: Mapping[str, float]) -> dict[str, Any]:
    return {
        **counts,
        "masked_share": _ratio(weighted["images_masked"], weighted["images_in"]),
        "rounded_share": _ratio(weighted["rounded"], weighted["elements_in"]),
        "saturated_share": _ratio(weighted["saturated"], weighted["elements_in"]),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _as_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
