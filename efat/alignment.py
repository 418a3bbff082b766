"""Chips that share weights though their broken PEs lie elsewhere: each gets places of its own that suit the group.

A chip may have the outputs and reduction indices of each layer on other columns and rows than in order (FAM, see
`training.mitigations.assignment`). So what a group of chips loses together need not be the union of their masks: each
chip is placed so that its bypassed PEs hold weights that the group has lost already, and beyond that as little as
possible of what is left. Weights that are lost are zero for all of them, so that all give the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import nn

from efat.fusion import AmountMap
from efat.severity import pruned_severity
from simulator import ArrayConfig
from simulator.chips import Chip
from simulator.faults import BoolArray
from training.convert import quantized_layers
from training.errors import InputError
from training.mitigations.assignment import assign_positions
from training.mitigations.permutation import Permutation
from training.mitigations.strategy import Strategy
from training.on_chip import Pruned
from training.placement import Placement

Placements = dict[str, Placement]
"""Where a chip's operands sit, by the layer's name."""

Progress = Callable[[int, int], None]
"""Called with the number of chips that are placed, and how many there are to place at most."""

PREDICTORS = ("pruned", "saliency")
"""What says how much a group has lost: see `efat.severity.PrunedSeverity`."""

MOST_TRIED = 8
"""Groups that a chip is tried in, the latest first: the older a group, the less room it has."""


@dataclass
class AlignedGroup:
    """Chips that share weights.

    Attributes:
        members: positions of the chips in the list they are from, in the order in which they joined.
        placements: where the operands of each member sit.
        lost: the weights that any of them has at bypassed PEs.
        severity: of what is lost, 0..1.
        amount: the amount of retraining that takes; infinite if none is enough.
    """

    members: list[int]
    placements: list[Placements]
    lost: Pruned
    severity: float
    amount: float


class Aligner:
    """A network on an array, to place chips.

    Args:
        network: converted for the array; it is not changed.
        weights: of each layer before they were quantised, by the layer's name: float [outputs, ...].
        config: the array.
        strategy: says whether outputs and reduction indices may be permuted.
        predictor: `pruned` or `saliency`.

    Raises:
        InputError: the strategy permutes nothing, another predictor, or PEs that do not multiply exactly: what a weight
            of zero gives there depends on which PEs are bypassed.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, npt.NDArray[np.floating]],
        config: ArrayConfig,
        strategy: Strategy,
        predictor: str,
    ) -> None:
        permutations = [found for found in strategy.mitigations if isinstance(found, Permutation)]
        if not permutations:
            raise InputError(
                "the mitigation permutes nothing, so chips cannot be aligned: choose fam+t, or no alignment"
            )
        if predictor not in PREDICTORS:
            raise InputError(
                f"predictor {predictor!r} is of masks, and chips that are aligned have no common one: "
                f"expected one of {', '.join(PREDICTORS)}"
            )
        if not config.multiplies_exactly:
            raise InputError(
                "PEs that do not multiply exactly may make something of a weight of zero, so chips that are aligned "
                "could differ: use no alignment"
            )
        self.config = config
        self._permutation = permutations[0]
        self._predictor = predictor
        self._shapes = {name: layer.gemm_shape for name, layer in quantized_layers(network).items()}
        self._weights = {
            name: np.asarray(weights[name], np.float64).reshape(n * g, k) for name, (g, k, n) in self._shapes.items()
        }

    def place(self, chip: Chip, lost: Pruned | None = None) -> Placements:
        """Find places at which a chip loses little beside what is lost already.

        Args:
            chip: the chip.
            lost: weights that do not count; None for none.

        Raises:
            InputError: none of its columns can be used.
        """
        bypass, unusable = bypass_of(chip), chip.faults.unusable_columns()
        placements = {}
        for name, (groups, k, n) in self._shapes.items():
            saliency = np.square(self._weights[name])
            if lost is not None:
                saliency[lost[name]] = 0
            placements[name] = assign_positions(
                saliency.reshape(groups, n, k),
                bypass,
                unusable,
                self.config,
                columns=self._permutation.columns,
                rows=self._permutation.rows,
            )
        return placements

    def lost(self, chip: Chip, placements: Placements) -> dict[str, BoolArray]:
        """The weights that a chip has at bypassed PEs, bool [outputs, weights of an output] by the layer's name."""
        bypass = bypass_of(chip)
        return {name: placement.at_weights(bypass, self.config) for name, placement in placements.items()}

    def severity(self, lost: Pruned) -> float:
        """How much it is to lose some weights, 0..1."""
        found = pruned_severity(list(self._weights.values()), [lost[name] for name in self._weights])
        return float(getattr(found, self._predictor))

    def alone(self, chips: Sequence[Chip], member: int, amounts: AmountMap) -> AlignedGroup:
        """A group of one chip."""
        placements = self.place(chips[member])
        lost = self.lost(chips[member], placements)
        severity = self.severity(lost)
        return AlignedGroup([member], [placements], lost, severity, float(amounts.amount(severity)))

    def joined(self, group: AlignedGroup, chips: Sequence[Chip], member: int, amounts: AmountMap) -> AlignedGroup:
        """The group with one more chip."""
        placements = self.place(chips[member], group.lost)
        own = self.lost(chips[member], placements)
        lost = {name: group.lost[name] | own[name] for name in own}
        severity = self.severity(lost)
        return AlignedGroup(
            [*group.members, member], [*group.placements, placements], lost, severity, float(amounts.amount(severity))
        )


def bypass_of(chip: Chip) -> BoolArray:
    """What is bypassed on a chip: what its faults require and what its fuses bypass, bool [R, C]."""
    required = chip.faults.required_bypass()
    return required if chip.bypass is None else required | chip.bypass


def together(aligner: Aligner, chips: Sequence[Chip], members: Iterable[int], amounts: AmountMap) -> AlignedGroup:
    """Align chips that are to be one group, in the order given.

    Args:
        aligner: places them.
        chips: the lot.
        members: positions in it, at least one.
        amounts: the amount of retraining by severity.

    Raises:
        InputError: none of a chip's columns can be used.
    """
    first, *others = members
    group = aligner.alone(chips, first, amounts)
    for member in others:
        group = aligner.joined(group, chips, member, amounts)
    return group


def align(
    aligner: Aligner, chips: Sequence[Chip], amounts: AmountMap, progress: Progress | None = None
) -> list[AlignedGroup]:
    """Group chips so that little retraining is needed in total, each chip placed to suit its group.

    For each amount that some chip may take, groups are filled up to it: chips come by descending severity, and join the
    first group that takes no more with them; the amount with the least total wins, and of those that are equal the
    smallest. Chips that need no retraining stay alone, and so do chips that no amount is enough for. The result depends
    on nothing but the arguments.

    Args:
        aligner: places them.
        chips: the lot.
        amounts: the amount of retraining by severity.
        progress: called after each chip.

    Returns:
        The groups, by their first chips in the lot.

    Raises:
        InputError: none of a chip's columns can be used.
    """
    caps = sorted({amount for amount in amounts.amounts.tolist() if 0 < amount < np.inf})
    steps = len(chips) * (len(caps) + 1)
    counter = _Counter(progress, steps)
    single = []
    for member in range(len(chips)):
        single.append(aligner.alone(chips, member, amounts))
        counter.add()
    fixed = [group for group in single if not 0 < group.amount < np.inf]
    others = [group for group in single if 0 < group.amount < np.inf]
    others.sort(key=lambda group: (-group.severity, group.members))
    best = others
    for cap in caps:
        found = _filled(aligner, chips, others, cap, amounts, counter)
        if _total(found) < _total(best):
            best = found
    counter.end()
    return sorted([*fixed, *best], key=lambda group: min(group.members))


def _filled(
    aligner: Aligner,
    chips: Sequence[Chip],
    single: Sequence[AlignedGroup],
    cap: float,
    amounts: AmountMap,
    counter: _Counter,
) -> list[AlignedGroup]:
    """Groups that take no more than `cap` each, but for chips that do so alone."""
    groups: list[AlignedGroup] = []
    for chip in single:
        counter.add()
        for place in range(len(groups) - 1, max(-1, len(groups) - 1 - MOST_TRIED), -1):
            group = groups[place]
            if group.amount > cap:
                continue
            joined = aligner.joined(group, chips, chip.members[0], amounts)
            if joined.amount <= cap and joined.amount < group.amount + chip.amount:
                groups[place] = joined
                break
        else:
            groups.append(chip)
    return groups


def _total(groups: Iterable[AlignedGroup]) -> float:
    return sum(group.amount for group in groups)


@dataclass
class _Counter:
    progress: Progress | None
    steps: int
    done: int = field(default=0)

    def add(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)

    def end(self) -> None:
        if self.progress is not None:
            self.progress(self.steps, self.steps)
