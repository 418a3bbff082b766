"""What of a folder of `efat resilience` serves for other rates, repeats, levels or images, and what runs again.

A chip and its retraining are the same whatever else is measured, so what is there of other rates and repeats just
stays. Higher levels go on from the state at the last one. Levels between, and other images, are measured on the way, so
for those the retraining runs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efat.campaigns.campaign import Campaign, Unit
from efat.json_fields import Fields
from efat.resilience.inputs import IMAGES, Resilience
from efat.resilience.units import STATE, baseline_unit, chip_unit
from efat.setup import Setup


@dataclass(frozen=True)
class Measured:
    """What a chip's unit measured.

    Attributes:
        correct: images by level; -1 where retraining had diverged.
        diverged_at: mini-batches after which it diverged; None if it did not.
        images: how many were classified.
    """

    correct: Mapping[int, int]
    diverged_at: int | None
    images: int

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Measured:
        """Take it from what a unit gave.

        Raises:
            InputError: it is nothing that a unit gives.
        """
        found = Fields(dict(values), where, ("chip", "images", "levels", "correct", "diverged_at", "predictors"))
        images = found.count("images", 1)
        levels, correct = found.values["levels"], found.values["correct"]
        lists = isinstance(levels, list) and isinstance(correct, list) and len(levels) == len(correct)
        if not lists or not all(type(count) is int and -1 <= count <= images for count in correct):
            found.refuse("correct", f"as many integers up to {images} as there are levels")
        diverged_at = None if found.values["diverged_at"] is None else found.count("diverged_at")
        return cls(dict(zip(levels, correct, strict=True)), diverged_at, images)

    def at(self, level: int) -> int:
        """Images at a level that it covers."""
        return self.correct[level] if self.diverged_at is None else self.correct.get(level, -1)

    def missing(self, levels: Sequence[int]) -> list[int]:
        """Levels at which it is not known what a retraining that measures at just `levels` gives."""
        if self.diverged_at is None:
            return [level for level in levels if level not in self.correct]
        end = self.diverged_at
        missing = [level for level in levels if level <= end and level not in self.correct]
        # Noticed when it was measured there, it may be noticed later by one that does not.
        noticed_there = self.correct.get(end, 0) < 0 and end not in levels
        return missing or ([end] if noticed_there and levels[-1] > end else [])


_RUN_AGAIN = "retraining runs again", "retrainings run again"
_GO_ON = "retraining goes on", "retrainings go on"


@dataclass
class Growth:
    """The units that a table is made from.

    Attributes:
        units: all of them.
        again: names of those that are there, and are not enough.
        reasons: why they are not, and what happens to one and to several of them, counted.
    """

    units: list[Unit] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    reasons: Counter[tuple[str, tuple[str, str]]] = field(default_factory=Counter)

    @classmethod
    def of(cls, campaign: Campaign, resilience: Resilience, original: Setup) -> Growth:
        """See what is there.

        Args:
            campaign: has the units.
            resilience: what is to be measured, with the weights that retraining starts from.
            original: the setup with those of the original network.
        """
        growth = cls()
        baseline = baseline_unit(resilience, original)
        growth.units.append(baseline)
        there = campaign.there(baseline.name)
        if there is not None and there.inputs[IMAGES] != baseline.inputs[IMAGES]:
            growth.again.add(baseline.name)
        identity = resilience.setup.identity()
        growth.units += [growth._chip_unit(campaign, resilience, identity, place) for place in resilience.places]
        return growth

    @property
    def notes(self) -> list[str]:
        """What runs again or goes on, and why, each in a line."""
        return [f"{why}: {count} {what[count > 1]}" for (why, what), count in self.reasons.items()]

    def _chip_unit(
        self, campaign: Campaign, resilience: Resilience, identity: Mapping[str, str], place: tuple[int, int]
    ) -> Unit:
        fresh = chip_unit(resilience, identity, place, resilience.levels)
        there = campaign.there(fresh.name)
        if there is None or there.inputs["network"] != fresh.inputs["network"]:
            return fresh
        measured = Measured.of(there.values, str(campaign.path(fresh.name, "json")))
        if there.inputs[IMAGES] != fresh.inputs[IMAGES]:
            images = len(resilience.setup.load().data.held_out)
            other = f" instead of {measured.images}" if images != measured.images else ", others than before"
            self._again(fresh, f"{images} tuning images{other}", _RUN_AGAIN)
            return fresh
        levels, missing = sorted(measured.correct), measured.missing(resilience.levels)
        if not missing:
            return chip_unit(resilience, identity, place, levels)
        together = sorted({*levels, *resilience.levels})
        if missing[0] > levels[-1]:
            self._again(fresh, f"levels up to {missing[-1]} instead of {levels[-1]}", _GO_ON)
            return chip_unit(resilience, identity, place, together, campaign.file(fresh.name, STATE))
        between = ", ".join(str(level) for level in missing if level <= levels[-1])
        are = "levels {} lie" if "," in between else "level {} lies"
        self._again(fresh, f"{are.format(between)} between measured ones", _RUN_AGAIN)
        # Where retraining diverged, levels that are not asked for could hide it.
        return fresh if measured.diverged_at is not None else chip_unit(resilience, identity, place, together)

    def _again(self, unit: Unit, why: str, what: tuple[str, str]) -> None:
        self.again.add(unit.name)
        self.reasons[why, what] += 1
