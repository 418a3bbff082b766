"""What a report says of fault propagation: a few sentences, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efat.propagation.columns import PATTERNS
from efat.propagation.shares import ENDINGS, LEAST_TRIED
from efat.propagation.statistics import Interval
from efat.reports.axes import Format
from efat.reports.propagation import PropagationReport
from efat.reports.propagation_charts import manner, net
from efat.reports.text import Finding, counted, named, short_percent
from simulator import Site

ENDS = {"quantise": "quantisation", "relu": "ReLU", "pooling": "pooling", "other": "other operations"}
"""Operations that end differences, for people."""

_RULES = {
    "unused": ("Nothing that any layer uses can be reached", "never acts"),
    "same_value": ("The net has the value that it is stuck at anyway", "never acts"),
    "equivalent": ("It does the same as another fault", "as the other one"),
    "simulated": ("All others", "by injecting it"),
}


Shown = tuple[str, str]
"""What is estimated, and from where to where its interval goes; empty if it is known, or if there is none."""


@dataclass(frozen=True)
class EffectRow:
    """What faults of a net do, as text.

    Args:
        name: the net; empty for all of them.
        faults: how many were tried.
        population: how many there are.
        critical: share that changes the top-1 of any image.
        avf: share of images whose top-1 changes.
        scores: share of images whose scores change.
        lost: accuracy lost in percentage points; of upsets empty.
    """

    name: str
    faults: int
    population: int
    critical: Shown
    avf: Shown
    scores: Shown
    lost: Shown


def interval_text(interval: Mapping[str, float] | Interval | None, write: Format = short_percent) -> Shown:
    """A share and its interval.

    Args:
        interval: with `low`, `value` and `high`; None for none.
        write: makes a text of each of them.
    """
    if interval is None:
        return "", ""
    if isinstance(interval, Interval):
        interval = interval._asdict()
    value, low, high = (write(interval[name]) for name in ("value", "low", "high"))
    return value, "" if interval["low"] == interval["high"] else f"{low} to {high}"


def propagation_findings(report: PropagationReport) -> tuple[Finding, ...]:
    """The report in a few sentences: for those who read nothing else."""
    if not len(report.propagation.faults):
        return (Finding("0", f"No fault of {report.network} was tried."),)
    found = [_critical(report), _lost(report), _worst(report), _ended(report), _collapsed(report)]
    return tuple(finding for finding in found if finding is not None)


def effect_rows(report: PropagationReport) -> list[EffectRow]:
    """By net, and of all."""
    rows = [(net(Site[row["site"]]), row) for row in report.summary["by_site"]]
    return [_effect(name, row) for name, row in [*rows, ("", report.summary["overall"])]]


def pattern_rows(report: PropagationReport) -> list[tuple[str, Shown, list[str], str]]:
    """Of each layer its name, the share of images with other outputs, which outputs, and the share of outputs."""
    return [
        (
            layer["layer"],
            interval_text(layer["reached"]),
            [_share(layer["pattern_shares"][name]) for name in PATTERNS],
            _share(layer["outputs_share"]),
        )
        for layer in report.summary["layers"]
    ]


def collapse_rows(report: PropagationReport) -> list[tuple[str, str, int, str]]:
    """Why a fault need not be injected, what its outcome is, and how many there are; empty if that was not counted."""
    rules = report.summary["population"]["rules"]
    if rules is None:
        return []
    return [(*_RULES[name], rules[name]["faults"], _share(rules[name]["share"])) for name in _RULES]


def _effect(name: str, row: Mapping[str, Any]) -> EffectRow:
    return EffectRow(
        name=name,
        faults=row["faults"],
        population=row["population"],
        critical=interval_text(row["critical"]),
        avf=interval_text(row["avf"]),
        scores=interval_text(row["scores_changed"]),
        lost=interval_text(row["accuracy_lost"], _points),
    )


def _critical(report: PropagationReport) -> Finding:
    overall = report.summary["overall"]
    tried, of = overall["faults"], overall["population"]
    figure = short_percent(overall["critical"]["value"])
    if report.transient:
        what = "flips of one bit in one clock cycle change the predicted class of the image that they hit"
    else:
        what = (
            f"single faults change the predicted class of at least one of {counted(report.propagation.images, 'image')}"
        )
    if tried == of:
        return Finding(figure, f"{figure} of all {of:,} {what}.")
    confidence = f"{100 * report.confidence:g}%"
    low, high = short_percent(overall["critical"]["low"]), short_percent(overall["critical"]["high"])
    return Finding(
        figure,
        f"{figure} of {what}: {low} to {high} with {confidence} confidence, from {tried:,} of {of:,} faults.",
    )


def _lost(report: PropagationReport) -> Finding | None:
    overall = report.summary["overall"]
    scores = short_percent(overall["scores_changed"]["value"])
    if report.transient or overall["accuracy_lost"] is None:
        return Finding(
            scores,
            f"{scores}{_range(overall['scores_changed'])} of them change the scores of the image at all; the others "
            "leave no trace there.",
        )
    share, lost = short_percent(overall["avf"]["value"]), overall["accuracy_lost"]
    change = _points(lost["value"])
    worst = f"; the worst that was tried takes {_points(lost['worst'])}" if lost["worst"] > 0 else ""
    verb = "costs" if lost["value"] >= 0 else "gains"
    return Finding(
        share,
        f"A fault changes the predicted class of {share}{_range(overall['avf'])} of the images on average, and the "
        f"scores of {scores}{_range(overall['scores_changed'])}; it {verb} {change.removeprefix('-')} points of "
        f"accuracy{_accuracy_range(lost)}{worst}.",
    )


def _worst(report: PropagationReport) -> Finding | None:
    """The most dangerous bit, if there is one that is surely more so than the others are."""
    if report.strata[0].avf.value == 0:
        return Finding("none", "No fault that was tried changes the predicted class of an image.")
    if len(report.propagation.strata) == 1:
        return None
    worst = report.worst
    if worst is None:
        tried = counted(len(report.propagation.faults), "fault")
        return Finding(
            "-",
            f"Which bit is the most dangerous takes more than {tried} to say: none of which {LEAST_TRIED} or all were "
            "tried is surely worse than the others on average. Try more faults, or those of fewer bits.",
        )
    share = worst.share
    where = "location" if share.site is Site.MULTIPLIER else "bit"
    named = f"{share.first} of {net(share.site)}, {manner(share.kind)}"
    figure = short_percent(share.avf.value)
    if worst.known:
        return Finding(
            figure,
            f"No {where} is more dangerous than {named}: {figure} of the images change their predicted class.",
        )
    return Finding(
        figure,
        f"Surely more dangerous than the others on average is {where} {named}: {figure} of the images change their "
        f"predicted class{_range(share.avf, share.faults)}, against {short_percent(worst.rest.value)}"
        f"{_range(worst.rest)}.",
    )


def _accuracy_range(lost: Mapping[str, float]) -> str:
    """That of what a fault costs or, if it gains, of what it gains."""
    if lost["value"] >= 0:
        return _range(lost, write=_points)
    return _range({"low": -lost["high"], "value": -lost["value"], "high": -lost["low"]}, write=_points)


def _ended(report: PropagationReport) -> Finding | None:
    """What ends differences; nothing of a sample in which few faults make any."""
    found = report.propagation
    if len(found.faults) < found.population["size"] and (found.faults["first_layer"] >= 0).sum() < LEAST_TRIED:
        return None
    shares = {row["kind"]: row["masked_share"] for row in report.summary["masking"]["by_kind"]}
    known = [(ENDS[kind], shares[kind]) for kind in ENDINGS if shares.get(kind)]
    if not known:
        return None
    known.sort(key=lambda item: -item[1])
    parts = [f"{name} {short_percent(share)}" for name, share in known]
    return Finding(
        short_percent(known[0][1]),
        f"Of the differences that reach an operation, these end there: {named(parts, len(parts))}.",
    )


def _collapsed(report: PropagationReport) -> Finding | None:
    rules = report.summary["population"]["rules"]
    if rules is None or report.summary["population"]["faults"] == 0:
        return None
    none = rules["unused"]["share"] + rules["same_value"]["share"]
    figure = short_percent(none + rules["equivalent"]["share"])
    return Finding(
        figure,
        f"{figure} of the {report.summary['population']['faults']:,} faults need not be tried: {short_percent(none)} "
        f"provably do nothing, {short_percent(rules['equivalent']['share'])} the same as another.",
    )


def _range(interval: Interval | Mapping[str, float], tried: int | None = None, write: Format = short_percent) -> str:
    """From where to where an interval goes, and how many faults it is from; nothing if the share is known."""
    _, ends = interval_text(interval, write)
    from_faults = "" if tried is None else f", {counted(tried, 'fault')} tried"
    return f" ({ends}{from_faults})" if ends else ""


def _points(share: float) -> str:
    """A share as percentage points."""
    return f"{'-' if share < 0 else ''}{short_percent(abs(share)).removesuffix('%')}"


def _share(share: float | None) -> str:
    return "" if share is None else short_percent(share)


def fate_text(parts: Sequence[tuple[str, float]]) -> str:
    """What becomes of differences, in words; the parts that are nothing are left out."""
    return ", ".join(f"{name} {short_percent(share)}" for name, share in parts if share > 0)
