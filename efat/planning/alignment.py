"""Chips that share weights though their broken PEs lie elsewhere: each gets places of its own that suit the group.

A chip may have the outputs and reduction indices of each layer on other columns and rows than in
order (FAM, see `training.learning.mitigations.assignment`). So what a group of chips loses together
need not be the union of their masks: each chip is placed so that its bypassed PEs hold weights that
the group has lost already, and beyond that as little as possible of what is left. Weights that are
lost are zero for all of them, so that all give the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from efat.planning.fusion import AmountMap
from efat.resilience.severity import bypass_of, pruned_severity
from efat.setup import Loaded
from simulator import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.layers.convert import convert
from training.layers.placement import Placement
from training.layers.trainable import trainable, trainable_layers
from training.learning.mitigations.assignment import assign_positions
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.permutation import Permutation
from training.learning.retrain import Pruned

Placements = dict[str, Placement]
"""Where a chip's operands sit, by the layer's name."""

Progress = Callable[[int, int], None]
"""Called with the number of steps that are done, and how many there are at most."""

PREDICTORS = ("pruned", "saliency")
"""What says how much a group has lost: see `efat.resilience.severity.PrunedSeverity`."""

MOST_TRIED = 8
"""Groups that a chip is tried in, the latest first: the older a group, the less room it has."""


@dataclass(frozen=True, eq=False)
class AlignedGroup:
    """Chips that share weights.

    Attributes:
        members: positions of the chips in the list they are from, in the order in which they joined.
        placements: where the operands of each member sit.
        severity: of what they lose together, 0..1.
        amount: the amount of retraining that takes; infinite if none is enough.
    """

    members: tuple[int, ...]
    placements: tuple[Placements, ...]
    severity: float
    amount: float


class Aligner:
    """A network on an array, to place chips.

    A chip that is placed alone sits as `training.learning.mitigations.permutation.Permutation` has it.

    Args:
        model: from `training.layers.trainable`, with the weights that retraining starts from; it is not changed.
        config: the array.
        mitigations: say whether outputs and reduction indices may be permuted.
        predictor: `pruned` or `saliency`.

    Raises:
        InputError: they permute nothing, another predictor, or PEs that do not multiply exactly: what a weight
            of zero gives there depends on which PEs are bypassed.
    """

    def __init__(self, model: nn.Module, config: ArrayConfig, mitigations: Mitigations, predictor: str) -> None:
        permutations = [found for found in mitigations.in_turn if isinstance(found, Permutation)]
        if not permutations:
            raise InputError(
                "the mitigation permutes nothing, so chips cannot be aligned: measure resilience with fam+t, or use no "
                "alignment"
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
        layers = trainable_layers(model)
        self._shapes = {name: layer.gemm_shape for name, layer in layers.items()}
        self._weights = {name: layer.weight.detach().flatten(1).cpu().numpy() for name, layer in layers.items()}

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
            saliency = np.abs(self._weights[name]).astype(np.float64)
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

    def place_together(self, chips: Iterable[Chip]) -> tuple[list[Placements], dict[str, BoolArray]]:
        """Place chips of one group, in the order given; beside their places gives the weights that any of them loses.

        Raises:
            InputError: none of a chip's columns can be used.
        """
        lost = {name: np.zeros(weights.shape, np.bool_) for name, weights in self._weights.items()}
        placements = []
        for chip in chips:
            placements.append(self.place(chip, lost))
            lost = _either(lost, self.lost(chip, placements[-1]))
        return placements, lost

    def lost(self, chip: Chip, placements: Placements) -> dict[str, BoolArray]:
        """The weights that a chip has at bypassed PEs, bool [outputs, weights of an output] by the layer's name."""
        bypass = bypass_of(chip)
        return {name: placement.at_weights(bypass, self.config) for name, placement in placements.items()}

    def severity(self, lost: Pruned) -> float:
        """How much it is to lose some weights, 0..1."""
        found = pruned_severity(list(self._weights.values()), [lost[name] for name in self._weights])
        return float(getattr(found, self._predictor))

    def alone(self, chips: Sequence[Chip], member: int, amounts: AmountMap) -> AlignedGroup:
        """A group of one chip.

        Raises:
            InputError: none of its columns can be used.
        """
        placements = self.place(chips[member])
        severity = self.severity(self.lost(chips[member], placements))
        return AlignedGroup((member,), (placements,), severity, float(amounts.amount(severity)))

    def joined(
        self, group: AlignedGroup, lost: Pruned, chips: Sequence[Chip], member: int, amounts: AmountMap
    ) -> tuple[AlignedGroup, dict[str, BoolArray]]:
        """A group with one more chip, and what that has lost.

        Args:
            group: the group.
            lost: what it has lost.
            chips: the lot.
            member: position of the chip in it.
            amounts: the amount of retraining by severity.

        Raises:
            InputError: none of its columns can be used.
        """
        placements = self.place(chips[member], lost)
        together = _either(lost, self.lost(chips[member], placements))
        severity = self.severity(together)
        amount = float(amounts.amount(severity))
        found = AlignedGroup((*group.members, member), (*group.placements, placements), severity, amount)
        return found, together


def model_of(loaded: Loaded, config: ArrayConfig) -> nn.Module:
    """The network ready to learn, to see where its weights sit; it has not the steps of its activations."""
    # Weights sit where they do whatever the steps of activations are, and one image makes do for any.
    return trainable(loaded.network, convert(loaded.network, config, loaded.data.train.images[:1]))


def align(
    aligner: Aligner, chips: Sequence[Chip], amounts: AmountMap, progress: Progress | None = None
) -> list[AlignedGroup]:
    """Group chips so that little retraining is needed in total, each chip placed to suit its group.

    For each amount that some chip may take, groups are filled up to it: chips come by descending severity, and join the
    latest of `MOST_TRIED` groups that takes no more with them, if that is no more than they take apart; the amount with
    the least total wins, and of those that are equal the smallest. It is never more than chips take one by one. Chips
    that need no retraining stay alone, and so do chips that no amount is enough for. The result depends on nothing but
    the arguments.

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
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    single = []
    for member in range(len(chips)):
        single.append(aligner.alone(chips, member, amounts))
        step()
    fixed = [group for group in single if not 0 < group.amount < np.inf]
    others = [group for group in single if 0 < group.amount < np.inf]
    others.sort(key=lambda group: (-group.severity, group.members))
    best = others
    tried: dict[tuple[tuple[int, ...], int], float] = {}
    for cap in caps:
        found = _filled(aligner, chips, others, cap, amounts, tried, step)
        if _total(found) < _total(best):
            best = found
    if progress is not None:
        progress(steps, steps)
    return sorted([*fixed, *best], key=lambda group: min(group.members))


def _filled(
    aligner: Aligner,
    chips: Sequence[Chip],
    single: Sequence[AlignedGroup],
    cap: float,
    amounts: AmountMap,
    tried: dict[tuple[tuple[int, ...], int], float],
    step: Callable[[], None],
) -> list[AlignedGroup]:
    """Groups that take no more than `cap` each, but for chips that do so alone.

    Args:
        aligner: places chips.
        chips: the lot.
        single: a group of each chip, in the order in which they come.
        cap: the amount.
        amounts: the amount of retraining by severity.
        tried: what groups take with one more chip, as far as it is known; it grows.
        step: called after each chip.
    """
    groups: list[AlignedGroup] = []
    # Of the latest groups alone: of all of them together it would be many times the network.
    lost: dict[int, Pruned] = {}
    for chip in single:
        step()
        member = chip.members[0]
        for place in range(len(groups) - 1, max(-1, len(groups) - 1 - MOST_TRIED), -1):
            group = groups[place]
            key, apart = (group.members, member), group.amount + chip.amount
            if group.amount > cap or not _fits(tried.get(key, 0), cap, apart):
                continue
            joined, together = aligner.joined(group, lost[place], chips, member, amounts)
            tried[key] = joined.amount
            if _fits(joined.amount, cap, apart):
                groups[place], lost[place] = joined, together
                break
        else:
            lost.pop(len(groups) - MOST_TRIED, None)
            lost[len(groups)] = aligner.lost(chips[member], chip.placements[0])
            groups.append(chip)
    return groups


def _fits(amount: float, cap: float, apart: float) -> bool:
    # Where it is no less than apart, nothing is saved yet, and there is room for further chips.
    return amount <= cap and amount <= apart


def _total(groups: Iterable[AlignedGroup]) -> float:
    return sum(group.amount for group in groups)


def _either(one: Pruned, other: Pruned) -> dict[str, BoolArray]:
    return {name: one[name] | other[name] for name in one}
