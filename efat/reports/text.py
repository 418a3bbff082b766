"""Numbers and names as a report writes them, and what it says in five sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from efat.confidence import bound_text
from efat.reports.folder import ReportData
from efat.retraining.manifest import ManifestWork

_NAMED = 3
"""Chips that a sentence names before it counts."""


@dataclass(frozen=True)
class Finding:
    """A sentence of the summary.

    Args:
        figure: what it comes down to, in a few characters.
        sentence: all of it, plain.
    """

    figure: str
    sentence: str


def accuracy(correct: int, images: int) -> str:
    """A share of images in percent, with as many digits as tell one image more from one less."""
    digits = max(1, math.ceil(math.log10(images)) - 2)
    return f"{100 * correct / images:.{digits}f}%"


def short_percent(share: float) -> str:
    """A share in percent, to two digits or to the whole per cent."""
    percent = 100 * share
    if percent >= 9.95 or percent == 0:
        return f"{percent:,.0f}%"
    digits = 1 - math.floor(math.log10(percent)) if percent < 0.995 else 1
    return f"{percent:.{digits}f}%"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number of things."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def points(images: int, of: int) -> str:
    """A difference in images as percentage points."""
    text = accuracy(images, of).removesuffix("%")
    return f"{text} {'point' if float(text) == 1 else 'points'}"


def duration(seconds: float) -> str:
    """How long something took, as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """Some names, and how many there are besides."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def constraint(data: ReportData) -> str:
    """What each chip has to do on the verification images."""
    manifest = data.manifest
    text = (
        f"at least {accuracy(manifest.required, manifest.images)} of them right "
        f"({manifest.required:,} of {manifest.images:,})"
    )
    drop = data.plan.constraint.max_drop
    if drop is None:
        return text
    fault_free = accuracy(manifest.fault_free_correct, manifest.images)
    most = f"{100 * drop:.10g} {'point' if 100 * drop == 1 else 'points'}"
    return f"{text}, at most {most} below the {fault_free} of a chip without faults"


def on_array(work: ManifestWork) -> str:
    """How much of the network has the faults of its chip."""
    if not work.in_float:
        return "All multiply-accumulates of the network run on the array."
    share = work.on_array / (work.on_array + work.in_float)
    percent = f"{share:.1%}" if share < 0.9995 else "More than 99.9%"
    return (
        f"{percent} of the network's multiply-accumulates run on the array; {work.in_float:,} for an image are "
        "computed in float, without faults."
    )


def summary(data: ReportData) -> tuple[Finding, ...]:
    """The report in five sentences or so: for those who read nothing else."""
    return _passing(data), _worst(data), _cost(data), _analysis(data), _verified(data)


def _passing(data: ReportData) -> Finding:
    chips, passing = len(data.manifest.chips), data.manifest.passing
    figure = f"{passing:,} of {chips:,}"
    verb = "meets" if passing == 1 else "meet"
    unseen = counted(data.manifest.images, "unseen image")
    sentence = f"{figure} {'chip' if chips == 1 else 'chips'} {verb} the constraint on {unseen}: {constraint(data)}."
    if failing := [chip.id for chip in data.failing]:
        sentence += f" {named(failing)} {'does' if len(failing) == 1 else 'do'} not"
        met = sum(chip.tuning_correct >= data.manifest.tuning.required for chip in data.failing)
        if met:
            which = "which does" if len(failing) == 1 else f"{met} of which do"
            sentence += f", {which} on the {counted(data.manifest.tuning.images, 'image')} that decided"
        sentence += "."
    return Finding(figure, sentence)


def _worst(data: ReportData) -> Finding:
    images, required = data.manifest.images, data.manifest.required
    worst = data.by_accuracy[0]
    figure = accuracy(worst.correct, images)
    if worst.correct == required:
        difference = "exactly what is required"
    else:
        difference = (
            f"{points(abs(worst.correct - required), images)} "
            f"{'more' if worst.correct > required else 'less'} than required"
        )
    sure = f"with 95% confidence at least {bound_text(worst.at_least)} of images like these"
    return Finding(figure, f"The worst chip, {worst.id}, gets {figure} right, {difference}; {sure}.")


def _cost(data: ReportData) -> Finding:
    took = data.manifest.totals.iterations
    if not took:
        return Finding("0", "No chip needed to be retrained.")
    compared = []
    for strategy, what in (("fixed", "every chip alike"), ("select", "each chip by itself")):
        cost = data.cost_of(strategy)
        if cost is not None and cost.iterations:
            share = short_percent(took / cost.iterations)
            compared.append(f"{share} of what {strategy} would take ({cost.iterations:,}, {what})")
    sentence = f"Retraining took {counted(took, 'iteration')}"
    if compared:
        sentence += f": {' and '.join(compared)}"
    fixed = data.cost_of("fixed")
    figure = f"{took:,}" if fixed is None or not fixed.iterations else short_percent(took / fixed.iterations)
    return Finding(figure, f"{sentence}.")


def _analysis(data: ReportData) -> Finding:
    spent, hardening = data.analysis_iterations, data.manifest.totals.harden_iterations
    sentence = f"The resilience analysis before it took {counted(spent, 'iteration')}, once for all lots"
    if hardening:
        sentence += f", {hardening:,} of them to harden the network"
    if data.pays_from is None:
        return Finding("-", f"{sentence}; this lot saves nothing over fixed that would pay for it.")
    chips = counted(data.pays_from, "chip")
    return Finding(chips, f"{sentence}; against fixed it pays from {chips} like these on.")


def _verified(data: ReportData) -> Finding:
    chips, images = data.manifest.chips, data.manifest.images
    each = "The chip was" if len(chips) == 1 else f"Each of the {len(chips):,} chips was"
    sentence = f"{each} verified with its own faults, bit for bit, on {counted(images, 'image')} that decided nothing"
    run = f" {on_array(data.manifest.work)}"
    different = [chip.id for chip in chips if not chip.cycle_same]
    counts = sorted({chip.cycle_images for chip in chips})
    if different:
        verb = "predicts" if len(different) == 1 else "predict"
        return Finding(
            f"{len(different):,} differ",
            f"{sentence}; on the cycle engine {named(different)} {verb} something else: do not trust these results.",
        )
    if counts == [0]:
        sentence += "; the cycle engine was not run"
    else:
        first = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        sentence += f"; the cycle engine predicts the same on the first {first} of them"
    return Finding(f"{len(chips):,} verified", f"{sentence}.{run}")
