"""What each fault of a chip costs, and what the bypass of each of its PEs does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, inf

from efat.display import Table, Verdict
from efat.explanation.fault_subsets import FaultSubsets
from efat.inference.classified import Comparison
from simulator.lots.chips import Chip
from training.data.classification import Progress

MOST_SHOWN = 20
"""Rows of a table of costs; `as_dict` has all."""

Reason = Literal["faults", "fuses", "faults and fuses", "weights"]
"""Why a PE is bypassed: its faults require it, the chip's fuses do it, or the weights were made for it."""


@dataclass(frozen=True)
class FaultCost:
    """What one fault of the chip does to the accuracy.

    Attributes:
        index: the fault's place in canonical order.
        left_out: the chip without this fault, compared with the chip.
        alone: the chip with this fault only, compared with the chip without faults.
    """

    index: int
    left_out: Comparison
    alone: Comparison

    @property
    def rank(self) -> tuple[int, int, int]:
        """What they are sorted by: images gained without it, then those lost with it alone, the most first."""
        left_out, alone = self.left_out, self.alone
        return left_out.lost - left_out.gained, alone.gained - alone.lost, -len(alone.changed)


@dataclass(frozen=True)
class BypassCost:
    """What the bypass of one PE costs: the chip with this PE in use, compared with the chip."""

    row: int
    col: int
    reason: Reason
    in_use: Comparison
    margin: float | None
    """How much further, in the mean over the images, the score of the right class is then above the highest of the
    others; None if a score is not finite, or there are no others."""

    @property
    def gain(self) -> tuple[int, float]:
        """Images more that are right with this PE in use, and the margin; the greater, the more its bypass costs."""
        return self.in_use.gained - self.in_use.lost, self.margin or 0.0


@dataclass(frozen=True)
class Release:
    """The chip with so many PEs not bypassed, the costliest first, compared with the chip."""

    pes: int
    in_use: Comparison


class BypassCosts:
    """What the bypass of each PE of a chip costs on some images. All runs are exact, on the emulation.

    Attributes:
        places: row and column of the bypassed PEs whose column any layer uses; all others change nothing.
        costs: of those that are done, in this order.
        releases: of the first 1, 2, 4, ... of `ranked`, up to all whose bypass costs anything by itself.
    """

    def __init__(self, subsets: FaultSubsets, chip: Chip, images: Tensor, labels: Tensor, batch: int) -> None:
        self._subsets, self._chip = subsets, chip
        self._images, self._labels, self._batch = images, labels, batch
        bypassed = np.argwhere(subsets.bypass & subsets.used_columns)
        self.places: list[tuple[int, int]] = [(int(row), int(col)) for row, col in bypassed]
        self.costs: list[BypassCost] = []
        self.releases: list[Release] = []

    @property
    def steps(self) -> int:
        """Images to classify in all for `measure`, at most."""
        return len(self._images) * (1 + len(self.places) + len(self.places).bit_length() + 1) if self.places else 0

    def measure(self, progress: Progress | None = None) -> None:
        """Find out what each bypass costs. Interrupted, it keeps the PEs that are done."""
        if not self.places:
            return
        on_chip = self._scores([], progress)
        for pe in self.places:
            found = self._scores([pe], progress)
            margin = float((self._margins(found) - self._margins(on_chip)).mean())
            gained = margin if math.isfinite(margin) else None
            self.costs.append(BypassCost(*pe, self._reason(pe), self._compared(found, on_chip), gained))
        worst = [(cost.row, cost.col) for cost in self.ranked if cost.gain > (0, 0)]
        for count in _doubling(len(worst)):
            found = self._scores(worst[:count], progress)
            self.releases.append(Release(count, self._compared(found, on_chip)))

    @property
    def ranked(self) -> list[BypassCost]:
        """The costs, the PE first with which in use most images more are right, then the one that widens margins."""
        return sorted(self.costs, key=lambda cost: cost.gain, reverse=True)

    @property
    def best(self) -> Release | None:
        """The release that makes most images right, of fewest PEs; None if none makes more right than the chip does."""
        better = [release for release in self.releases if release.in_use.gained > release.in_use.lost]
        return max(better, key=lambda release: release.in_use.accuracy.correct, default=None)

    def parts(self) -> Iterator[Table | str]:
        """What is shown of them; nothing if nothing is known."""
        if not self.costs:
            return
        yield ""
        yield Table(
            "Bypassed PEs; in use: the chip with this one not bypassed",
            ["place", "bypassed for", "in use:\naccuracy", "images\ngained", "\nlost", "margin\ngained"],
            [
                (
                    f"PE {cost.row},{cost.col}",
                    cost.reason,
                    *cells(cost.in_use),
                    None if cost.margin is None else f"{cost.margin:+.3g}",
                )
                for cost in self.ranked
            ],
            left=2,
            most=MOST_SHOWN,
        )
        if self.releases:
            yield Table(
                "The first of them in use together",
                ["PEs in use", "accuracy", "images\ngained", "\nlost"],
                [(release.pes, *cells(release.in_use)) for release in self.releases],
            )
        yield Verdict(self._verdict)

    @property
    def _verdict(self) -> str:
        worst, best = self.ranked[0], self.best
        if best is None:
            return "No bypass costs images: none of the PEs tried does better in use."
        found = best.in_use
        before = (found.accuracy.correct - found.gained + found.lost) / found.accuracy.images
        which = f"the first {best.pes:,} PEs" if best.pes > 1 else f"PE {worst.row},{worst.col}"
        return (
            f"With {which} in use instead of bypassed, {found.accuracy.value:.1%} of {found.accuracy.images:,} images "
            f"are right instead of {before:.1%}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything found, as JSON takes it."""
        return {
            "pes": [{**vars(cost), "in_use": cost.in_use.as_dict()} for cost in self.ranked],
            "releases": [{"pes": release.pes, "in_use": release.in_use.as_dict()} for release in self.releases],
        }

    def _reason(self, pe: tuple[int, int]) -> Reason:
        fused = self._chip.bypass is not None and bool(self._chip.bypass[pe])
        if self._chip.faults.required_bypass()[pe]:
            return "faults and fuses" if fused else "faults"
        return "fuses" if fused else "weights"

    def _scores(self, in_use: Sequence[tuple[int, int]], progress: Progress | None) -> Tensor:
        return self._subsets.scores_with(in_use, self._images, self._batch, progress)

    def _compared(self, found: Tensor, on_chip: Tensor) -> Comparison:
        return Comparison.of(found.argmax(1), on_chip.argmax(1), self._labels)

    def _margins(self, scores: Tensor) -> Tensor:
        """Score of the right class above the highest of the others, float64 [n]."""
        right = self._labels[:, None]
        others = scores.double().scatter(1, right, -inf)
        return scores.double().gather(1, right)[:, 0] - others.max(1).values


def cells(found: Comparison) -> tuple[str, int, int]:
    """Its accuracy, images gained and images lost, for a table."""
    return f"{found.accuracy.value:.1%}", found.gained, found.lost


def _doubling(most: int) -> list[int]:
    """1, 2, 4 and so on up to `most`, which is the last.

    >>> _doubling(6)
    [1, 2, 4, 6]
    """
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), *([most] if most else [])]
