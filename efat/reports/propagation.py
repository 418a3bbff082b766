"""The report on fault propagation: the folder that it is about, what it says, and its page or section of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from efat.command_lines import Command, kept, kept_in, shell_text
from efat.display import counted
from efat.figures.propagation import FATES, KINDS, SHADES, bits_chart, heat_chart, words
from efat.propagation.estimates import (
    ENDINGS,
    LEAST_TRIED,
    MOST_PLACES,
    BitShare,
    Estimates,
    HeatMap,
    LayerFate,
    Worst,
    bit_shares,
    heat_maps,
    layer_fates,
    worst_bit,
)
from efat.propagation.statistics import Interval
from efat.propagation.summary import Propagation, PropagationSummary
from efat.propagation.tables import FILE_NAME
from efat.records import as_json
from efat.reports.pages import MOST_ROWS, Finding, fill, flat, identity_inputs
from efat.reports.text import named, short_percent
from efat.retraining.manifest import Manifest
from efat.setup import name_of
from simulator import Kind, Site
from simulator.config import ArrayRecord
from simulator.errors import InputError
from simulator.files import digest_of_file
from training.injection.replay import PATTERNS

_SECTIONS = {
    "faults-by-net": "Nets",
    "faults-by-bit": "Bits",
    "faults-by-place": "Places",
    "faults-by-layer": "Layers",
    "collapsed": "What need not be tried",
    "strata": "Table",
    "reproduce": "Reproduce",
}
_RULES = {
    "unused": ("Nothing that any layer uses can be reached", "never acts"),
    "same_value": ("The net has the value that it is stuck at anyway", "never acts"),
    "equivalent": ("It does the same as another fault", "as the other one"),
    "simulated": ("All others", "by injecting it"),
}

_Write = Callable[[float], str]
Shown = tuple[str, str]
"""What is estimated, and from where to where its interval goes; empty if it is known, or if there is none."""


class _FateBar(NamedTuple):
    """What becomes of differences that leave a layer: of each part its class, beginning and width, of 1000."""

    name: str
    differences: int
    text: str
    parts: list[tuple[str, float, float]]


@dataclass(frozen=True, eq=False)
class PropagationReport:
    """What a propagation campaign found.

    Args:
        name: of its folder.
        path: the folder, as it was given.
        propagation: what is in its file.
        digest: SHA-256 (hex) of the file.
        commands: the command line that it was made with, if it was kept.
    """

    name: str
    path: str
    propagation: Propagation
    digest: str
    commands: tuple[Command, ...] = ()

    @property
    def confidence(self) -> float:
        """Of all intervals."""
        return self.propagation.request.confidence

    @property
    def summary(self) -> PropagationSummary:
        """What it comes to."""
        return self.propagation.summary

    @cached_property
    def estimates(self) -> Estimates:
        """Of shares in the population of faults."""
        return Estimates(self.propagation, self.confidence)

    @cached_property
    def strata(self) -> list[BitShare]:
        """Those of which faults were tried, the worst first; of equal ones in the order of nets and bits."""
        return sorted(bit_shares(self.estimates), key=lambda share: -share.avf.value)

    @cached_property
    def worst(self) -> Worst | None:
        """The bit that is surely among the most dangerous; None if more faults have to be tried to name it."""
        return worst_bit(self.propagation, self.confidence)

    @cached_property
    def fates(self) -> list[LayerFate]:
        """By layer what becomes of differences that leave it."""
        return list(layer_fates(self.estimates))

    @property
    def network(self) -> str:
        """Its name."""
        return name_of(self.propagation.subject.network)

    @property
    def transient(self) -> bool:
        """Whether all faults are upsets."""
        return bool((self.propagation.strata["kind"] == Kind.FLIP).all())

    def check_same_lot(self, array: ArrayRecord, network: str) -> None:
        """Refuse faults of another array or network than a lot's.

        Raises:
            InputError: so they are.
        """
        for what, theirs, ours in (
            ("array", self.propagation.array, array),
            ("network", str(self.propagation.subject.network), network),
        ):
            if theirs != ours:
                raise InputError(
                    f"{self.path} is of another {what} than {Manifest.FILE_NAME}: expected faults that were tried with "
                    f"the {what} of the lot"
                )


def read_propagation_report(folder: Path) -> PropagationReport:
    """Read what a report is about from the folder of `efat propagate`.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it is damaged, or something else.
    """
    path = folder / FILE_NAME
    return PropagationReport(
        folder.resolve().name, str(folder), Propagation.load(path), digest_of_file(path), kept_in(folder)
    )


def propagation_inputs(report: PropagationReport) -> Iterator[tuple[str, str, str]]:
    """What it was made from: what it is, where it was, and its digest."""
    subject = report.propagation.subject
    yield "fault propagation", f"{report.name}/{FILE_NAME}", report.digest
    places = {"network": "weights", "images": "data"}
    yield from identity_inputs(subject.identity or {}, places, subject.as_dict())


def interval_text(interval: Interval | None, write: _Write = short_percent) -> Shown:
    """A share and its interval, each as `write` makes a text of it; empty for none."""
    if interval is None:
        return "", ""
    value, low, high = (write(share) for share in (interval.value, interval.low, interval.high))
    return value, "" if interval.low == interval.high else f"{low} to {high}"


def propagation_findings(report: PropagationReport) -> tuple[Finding, ...]:
    """The report in a few sentences: for those who read nothing else."""
    if not len(report.propagation.faults):
        return (Finding("0", f"No fault of {report.network} was tried."),)
    found = [_critical(report), _lost(report), _worst(report), _ended(report), _collapsed(report)]
    return tuple(finding for finding in found if finding is not None)


def _collapse_rows(report: PropagationReport) -> list[tuple[str, str, int, str]]:
    """Why a fault need not be injected, what its outcome is, and how many there are."""
    rules = report.summary.population.rules
    return [(*_RULES[name], rules[name].faults, short_percent(rules[name].share or 0)) for name in _RULES]


def _critical(report: PropagationReport) -> Finding:
    overall = report.summary.overall
    assert overall.critical is not None
    figure, ends = interval_text(overall.critical)
    what = f"single faults change the predicted class of at least one of {counted(report.propagation.images, 'image')}"
    if report.transient:
        what = "flips of one bit in one clock cycle change the predicted class of the image that they hit"
    if overall.faults == overall.population:
        return Finding(figure, f"{figure} of all {overall.population:,} {what}.")
    return Finding(
        figure,
        f"{figure} of {what}: {ends or f'{figure} to {figure}'} with {100 * report.confidence:g}% confidence, from "
        f"{overall.faults:,} of {overall.population:,} faults.",
    )


def _lost(report: PropagationReport) -> Finding:
    overall = report.summary.overall
    assert overall.scores_changed is not None
    assert overall.avf is not None
    scores = f"{short_percent(overall.scores_changed.value)}{_range(overall.scores_changed)}"
    lost = overall.accuracy_lost
    if report.transient or lost is None:
        return Finding(
            short_percent(overall.scores_changed.value),
            f"{scores} of them change the scores of the image at all; the others leave no trace there.",
        )
    share = short_percent(overall.avf.value)
    worst = f"; the worst that was tried takes {_points(lost.worst)}" if lost.worst > 0 else ""
    return Finding(
        share,
        f"A fault changes the predicted class of {share}{_range(overall.avf)} of the images on average, and the scores "
        f"of {scores}; it {'costs' if lost.value >= 0 else 'gains'} {_points(abs(lost.value))} points of "
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
    named = f"{share.first} of {words(share.site)}, {words(share.kind)}"
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


def _accuracy_range(lost: Interval) -> str:
    """That of what a fault costs or, if it gains, of what it gains."""
    gained = Interval(-lost.value, -lost.high, -lost.low)
    return _range(lost if lost.value >= 0 else gained, write=_points)


def _ended(report: PropagationReport) -> Finding | None:
    """What ends differences; nothing of a sample in which few faults make any."""
    found = report.propagation
    if len(found.faults) < found.population.size and (found.faults["first_layer"] >= 0).sum() < LEAST_TRIED:
        return None
    shares = {row.kind: row.masked_share for row in report.summary.masking.by_kind}
    known = [(FATES[kind][1], share) for kind in ENDINGS if (share := shares.get(kind))]
    if not known:
        return None
    known.sort(key=lambda item: -item[1])
    parts = [f"{name} {short_percent(share)}" for name, share in known]
    return Finding(
        short_percent(known[0][1]),
        f"Of the differences that reach an operation, these end there: {named(parts, len(parts))}.",
    )


def _collapsed(report: PropagationReport) -> Finding:
    rules = {name: rule.share or 0 for name, rule in report.summary.population.rules.items()}
    none = rules["unused"] + rules["same_value"]
    figure = short_percent(none + rules["equivalent"])
    return Finding(
        figure,
        f"{figure} of the {report.propagation.population.size:,} faults need not be tried: {short_percent(none)} "
        f"provably do nothing, {short_percent(rules['equivalent'])} the same as another.",
    )


def _range(interval: Interval, tried: int | None = None, write: _Write = short_percent) -> str:
    """From where to where an interval goes, and how many faults it is from; nothing if the share is known."""
    _, ends = interval_text(interval, write)
    from_faults = "" if tried is None else f", {counted(tried, 'fault')} tried"
    return f" ({ends}{from_faults})" if ends else ""


def _points(share: float) -> str:
    """A share as percentage points."""
    return f"{'-' if share < 0 else ''}{short_percent(abs(share)).removesuffix('%')}"


def propagation_page(report: PropagationReport) -> str:
    """The report as HTML that needs nothing else: no network, no script."""
    found = report.propagation
    section = propagation_section(report, "h2")
    commands, not_kept = kept(report.commands, "propagate")
    empty = {"faults-by-bit": not section["bits_charts"], "faults-by-place": not section["heat_charts"]}
    return fill(
        "propagation.html.jinja",
        found.images,
        title=f"Fault propagation in {report.network}",
        contents=[(name, title) for name, title in _SECTIONS.items() if not empty.get(name)],
        summary=section["findings"],
        found=report,
        section=section,
        commands=[*commands, shell_text(["efat", "report", f"{report.name}/"])],
        cautions=not_kept,
        inputs=list(propagation_inputs(report)),
        versions=found.versions,
        settings=[
            *flat("array.", as_json(found.array)),
            *flat("", {name: value for name, value in found.subject.as_dict().items() if name != "identity"}),
            *flat("", found.request.as_dict()),
        ],
    )


def propagation_section(report: PropagationReport, heading: str) -> dict[str, Any]:
    """What the template of the section shows; `heading` is the tag of its headings, `h2` or `h3`."""
    bits = bit_shares(report.estimates, MOST_PLACES)
    nets = list(dict.fromkeys(share.site for share in bits))
    top = 1.06 * max((share.avf.high for share in bits), default=1.0)
    maps, overview = heat_maps(report.estimates), report.summary
    return {
        "heading": heading,
        "findings": propagation_findings(report),
        "images": report.propagation.images,
        "sampled": _sampled(report),
        "confidence": f"{100 * report.confidence:g}%",
        "effects": [*((words(Site[row.site]), row) for row in overview.by_site), ("", overview.overall)],
        "transient": report.transient,
        "bits_charts": [_bits_chart([share for share in bits if share.site is site], top) for site in nets],
        "kinds": [KINDS[kind] for kind in KINDS if any(share.kind is kind for share in bits)],
        "heat_charts": [(heat, heat_chart(heat, _heat_label(heat))) for heat in maps],
        "with_accumulators": any(not np.isnan(heat.accumulators).all() for heat in maps),
        "shades": list(enumerate(SHADES)),
        "fates": list(map(_bar, report.fates)),
        "endings": FATES,
        "patterns": PATTERNS,
        "layers": overview.layers,
        "collapse": _collapse_rows(report),
        "strata": report.strata[:MOST_ROWS],
        "strata_left_out": _strata_left_out(report),
        "words": words,
        "interval": interval_text,
        "points": _points,
    }


def _sampled(report: PropagationReport) -> str:
    tried, of = len(report.propagation.faults), report.propagation.population.size
    images = counted(report.propagation.images, "image")
    what = "single faults of the array"
    if report.transient:
        images, what = f"one of {images}", "upsets of one bit in one clock cycle"
    if tried == of:
        return f"All {of:,} {what} were tried, each by itself, on {images}."
    stratified = ", each kind of bit with its part" if report.propagation.request.stratify else ""
    return f"{tried:,} of {of:,} {what} were drawn at random{stratified}, and tried each by itself on {images}."


def _bar(fate: LayerFate) -> _FateBar:
    if not fate.differences:
        return _FateBar(fate.name, 0, "no fault that was tried changes anything here", [])
    parts, start = [], 0.0
    for name, share in [*((name, fate.ended[name]) for name in ENDINGS), ("carried", fate.carried)]:
        if share > 0:
            parts.append((name, start, 1000 * share))
        start += 1000 * share
    words = ", ".join(f"{FATES[name][1]} {short_percent(fate.ended[name])}" for name in ENDINGS if fate.ended[name] > 0)
    return _FateBar(fate.name, fate.differences, words or "all go on", parts)


def _strata_left_out(report: PropagationReport) -> str:
    """What of the bits is not in the table; empty if all are."""
    rest = report.strata[MOST_ROWS:]
    if not rest:
        return ""
    return f"{counted(len(rest), 'further row')} with {short_percent(rest[0].avf.value)} or less: see propagation.h5."


def _bits_chart(shares: Sequence[BitShare], top: float) -> tuple[str, Markup]:
    """A net, and its bits."""
    name = words(shares[0].site)
    label = f"Share of images whose top-1 changes by bit of {name}: {_worst_of(shares)}."
    return name, bits_chart(shares, top, label, [_mark_title(share) for share in shares])


def _mark_title(share: BitShare) -> str:
    return (
        f"bit {share.bits}, {words(share.kind)}: {short_percent(share.avf.value)}, "
        f"{short_percent(share.avf.low)} to {short_percent(share.avf.high)}, {counted(share.faults, 'fault')}"
    )


def _worst_of(shares: Sequence[BitShare]) -> str:
    worst = max(shares, key=lambda share: share.avf.value)
    if worst.avf.value == 0:
        return "none for any of them"
    return f"at most {short_percent(worst.avf.value)} of what was tried, of bit {worst.bits}, {words(worst.kind)}"


def _heat_label(heat: HeatMap) -> str:
    label = (
        f"Share of images whose top-1 changes by place on the array, {heat.rows} rows and {heat.cols} columns, of "
        f"{heat.kinds}: "
    )
    if np.isnan(heat.cells).all():
        return f"{label}at most {short_percent(heat.largest)}, all at accumulators."
    row, col = divmod(int(np.nanargmax(heat.cells)), heat.cells.shape[1])
    where = f"from row {row * heat.step}, column {col * heat.step} on" if heat.step > 1 else f"row {row}, column {col}"
    return f"{label}at most {short_percent(float(np.nanmax(heat.cells)))}, {where}."
