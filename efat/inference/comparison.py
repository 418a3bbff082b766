"""How images are classified in one run, compared with another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from efat.inference.classified import Accuracy, measure_accuracy


@dataclass(frozen=True)
class ChangedPrediction:
    """An image that two runs classify differently.

    Attributes:
        image: index of the image.
        label: its class.
        reference: class predicted in the run that is compared with.
        found: class predicted in this run.
    """

    image: int
    label: int
    reference: int
    found: int


@dataclass(frozen=True)
class Comparison:
    """How the images are classified in one run, compared with another.

    Attributes:
        accuracy: in this run.
        changed: the images that the other run classifies differently.
    """

    accuracy: Accuracy
    changed: tuple[ChangedPrediction, ...]

    @classmethod
    def of(cls, found: Tensor, reference: Tensor, labels: Tensor) -> Comparison:
        """Compare predictions int64 [n] with those of the other run and with the labels, likewise."""
        rows = zip(labels.tolist(), reference.tolist(), found.tolist(), strict=True)
        changed = (ChangedPrediction(image, *row) for image, row in enumerate(rows))
        return cls(measure_accuracy(found, labels), tuple(each for each in changed if each.found != each.reference))

    @property
    def gained(self) -> int:
        """Images that are right in this run and wrong in the other."""
        return sum(each.found == each.label for each in self.changed)

    @property
    def lost(self) -> int:
        """Images that are wrong in this run and right in the other."""
        return sum(each.reference == each.label for each in self.changed)

    def better_by_chance(self) -> float:
        """How likely a run that is no better than the other would gain as many of those gained or lost (sign test)."""
        gained, different = self.gained, self.gained + self.lost
        return sum(math.comb(different, count) for count in range(gained, different + 1)) / (1 << different)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        changed = [asdict(each) for each in self.changed]
        return {**self.accuracy.as_dict(), "gained": self.gained, "lost": self.lost, "changed": changed}
