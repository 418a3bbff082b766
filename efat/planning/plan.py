"""The plan for a lot: which chips share a retraining, how long each is, and what that costs; kept as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from efat.command_lines import Command
from efat.confidence import at_least, bound_text
from efat.display import Shown, Table, Verdict
from efat.planning.selection import Constraint, Statistic
from efat.records import Count, Document, Positive, Record, Sha256, Share, check, check_different, digest_of
from efat.resilience.severity import PREDICTORS
from efat.setup import Setup
from simulator.config import ArrayRecord
from simulator.errors import InputError, did_you_mean

__all__ = [
    "AS_IS",
    "MOST_TOP_UPS",
    "FileOf",
    "LotOf",
    "Plan",
    "PlannedGroup",
    "StrategyCost",
    "TriedChip",
]

AS_IS = "as-is"
"""Name of the group of chips that run the weights that everything starts from, without retraining."""

MOST_TOP_UPS = 10_000
"""Steps that fit into the budget: accuracy is measured after each."""

Strategy = Annotated[
    str,
    Meta(
        pattern=r"^(fixed|select|efat|merge-[1-9]\d{0,6})$",
        description="fixed, select, efat, or merge-K with a number of chips for K",
    ),
]
"""Who shares a retraining."""


class PlannedGroup(Record, frozen=True):
    """Chips that share one retraining.

    Args:
        name: of the group in its plan; `AS_IS` for chips that each are left alone.
        chips: ids, in the order in which they joined.
        severity: of what they lose together, by the predictor of the plan, 0..1.
        amount: iterations of retraining; 0 for none.
        out_of_reach: whether no amount that was measured is enough; `amount` is then the most that was measured.
    """

    name: Annotated[
        str,
        Meta(pattern=rf"^({AS_IS}|group-\d{{4,8}})$", description=f"{AS_IS}, or group- and a number of 4 digits up"),
    ]
    chips: Annotated[tuple[str, ...], Meta(min_length=1, description="the id of one chip at least")]
    severity: Share
    amount: Count
    out_of_reach: bool = False

    def __post_init__(self) -> None:
        check(self.name != AS_IS or self.amount == 0, "amount", self.amount, f"0, as {AS_IS} is without retraining")


class TriedChip(Record, frozen=True):
    """What a chip does without retraining.

    Args:
        id: of the chip.
        correct: tuning images that it classifies correctly, on the exact emulation.
        at_least: the one-sided 95 % lower bound (Clopper and Pearson) of its accuracy that follows from that, 0..1.
    """

    id: str
    correct: Count
    at_least: Share


class StrategyCost(Record, frozen=True):
    """What a strategy is predicted to cost.

    Args:
        strategy: its name: `fixed`, `select`, `merge-K` or `efat`.
        aligned: whether chips were aligned with their groups.
        groups: number of groups.
        retrained_groups: those that are retrained.
        iterations: of all of them.
        largest_amount: of one of them.
        out_of_reach: chips in groups for which no measured amount is enough.
    """

    strategy: Strategy
    aligned: bool
    groups: Count
    retrained_groups: Count
    iterations: Count
    largest_amount: Count
    out_of_reach: Count

    def __post_init__(self) -> None:
        retrained, largest = self.retrained_groups, self.largest_amount
        check(retrained <= self.groups, "retrained_groups", retrained, f"an integer of 0..{self.groups}")
        check(largest <= self.iterations, "largest_amount", largest, f"an integer of 0..{self.iterations}")

    @property
    def name(self) -> str:
        """The strategy as it is shown."""
        return f"{self.strategy}, aligned" if self.aligned else self.strategy

    @classmethod
    def of(cls, strategy: str, aligned: bool, groups: tuple[PlannedGroup, ...]) -> StrategyCost:
        """Add up groups."""
        amounts = [group.amount for group in groups]
        return cls(
            strategy=strategy,
            aligned=aligned,
            groups=len(groups),
            retrained_groups=sum(amount > 0 for amount in amounts),
            iterations=sum(amounts),
            largest_amount=max(amounts, default=0),
            out_of_reach=sum(len(group.chips) for group in groups if group.out_of_reach),
        )


class FileOf(Record, frozen=True):
    """A file that something was made from.

    Args:
        path: as it was given, for people.
        sha256: of its content, hexadecimal.
    """

    path: str
    sha256: Sha256


class LotOf(Record, frozen=True):
    """A lot, and how many chips it has; see `FileOf`."""

    path: str
    sha256: Sha256
    chips: Positive


class Plan(Shown, Document, frozen=True, eq=False):
    """Everything that `efat retrain` needs to know, beside the files that are named.

    Args:
        strategy: `fixed`, `select`, `merge-K` or `efat`.
        aligned: whether each chip of a group has places of its own for the weights, chosen to suit the group.
        groups: all chips of the lot, each in one group.
        step: iterations by which a group that misses the constraint is topped up.
        budget: most iterations for a group, top-ups included.
        required: tuning images that each chip must classify correctly, the margin included.
        images: tuning images.
        constraint: what the user asked for: `accuracy` or `max_drop`, and the `margin`, as JSON takes it.
        statistic: over repeats of the resilience analysis.
        predictor: what severity is.
        setup: what learns from what, and how.
        identity: digests of what the setup loads, by name.
        array: of the lot.
        resilience: `path` and `sha256` of the table.
        lot: `path`, `sha256` and number of `chips` of the lot.
        resilience_iterations: that the resilience analysis took, without hardening.
        harden_iterations: that hardening took.
        fault_free_correct: tuning images that the original network classifies correctly, quantised, without faults.
        tried: what each chip of the lot does without retraining, in its order; empty if none was tried.
        comparison: what all strategies are predicted to cost.
        commands: the command lines that the table and the plan were made with; without those that Python called.
        notes: what users should know: constraints that cannot be met, chips out of reach, what was not compared or
            tried, and whether retraining makes chips worse.
    """

    FORMAT = "efat-plan"
    VERSION = 3
    OLDER: ClassVar[Mapping[int, Mapping[str, Any]]] = {2: {"commands": (), "notes": ()}}
    SOURCE = "efat plan"

    strategy: Strategy
    aligned: bool
    groups: tuple[PlannedGroup, ...]
    step: Positive
    budget: Count
    required: Count
    images: Positive
    constraint: Constraint
    statistic: str
    predictor: Annotated[
        str, Meta(pattern=rf"^({'|'.join(PREDICTORS)})$", description=f"one of {', '.join(PREDICTORS)}")
    ]
    setup: Setup
    identity: Mapping[str, str]
    array: ArrayRecord
    resilience: FileOf
    lot: LotOf
    resilience_iterations: Count
    harden_iterations: Count
    fault_free_correct: Count
    tried: tuple[TriedChip, ...]
    comparison: tuple[StrategyCost, ...]
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """See `Document.check`."""
        chips = [chip for group in self.groups for chip in group.chips]
        again = "make the plan again"
        check_different("group", (group.name for group in self.groups), again)
        check_different("chip", chips, again)
        check_different("comparison of", ((cost.strategy, cost.aligned) for cost in self.comparison), again)
        check(self.lot.chips == len(chips), "lot: chips", self.lot.chips, f"{len(chips)}, which are in groups")
        largest = max((group.amount for group in self.groups), default=0)
        check(self.budget >= largest, "budget", self.budget, f"an integer from {largest}")
        most = self.step * MOST_TOP_UPS
        check(self.budget <= most, "budget", self.budget, f"at most {MOST_TOP_UPS} steps of {self.step} iterations")
        for name in ("required", "fault_free_correct"):
            check(getattr(self, name) <= self.images, name, getattr(self, name), f"an integer of 0..{self.images}")
        least = self.constraint.required_to_end(self.images, self.fault_free_correct)
        expected = f"{least}, which the constraint takes of {self.images} images"
        check(self.required == least, "required", self.required, expected)
        Statistic.parse(self.statistic)
        each = not self.tried or sorted(chip.id for chip in self.tried) == sorted(chips)
        check(each, "tried", self.tried, "each chip of the groups once, or none")
        for place, chip in enumerate(self.tried):
            where = f"tried[{place}]: "
            check(chip.correct <= self.images, f"{where}correct", chip.correct, f"an integer of 0..{self.images}")
            bound = at_least(chip.correct, self.images)
            expected = f"{bound}, as {chip.correct} of {self.images} images are correct"
            check(abs(chip.at_least - bound) <= 1e-9, f"{where}at_least", chip.at_least, expected)

    @property
    def cost(self) -> StrategyCost:
        """What this plan is predicted to cost."""
        return StrategyCost.of(self.strategy, self.aligned, self.groups)

    def table(self) -> Table:
        """A row for each strategy that was compared: what it is predicted to cost."""
        fixed = next((cost.iterations for cost in self.comparison if cost.strategy == "fixed"), 0)
        rows = [
            [
                f"{cost.name} *" if self._chosen(cost) else cost.name,
                cost.retrained_groups,
                cost.iterations,
                cost.largest_amount,
                cost.out_of_reach,
                f"{cost.iterations / fixed:.1%}" if fixed else "",
            ]
            for cost in self.comparison
        ]
        return Table(
            f"{self.lot.chips} chips, {self.required / self.images:.2%} of {self.images} tuning images required; "
            f"severity: {self.predictor}, statistic: {self.statistic}",
            ["strategy", "retrainings", "iterations", "largest", "chips out\nof reach", "of fixed"],
            rows,
        )

    def parts(self) -> Iterator[Table | str]:
        """The strategies, the plan in a few sentences, and what should be known of it."""
        yield self.table()
        yield Verdict(self.summary)
        yield from (f"Note: {text}." for text in self.notes)

    @property
    def summary(self) -> str:
        """The plan in a few sentences."""
        cost = self.cost
        alone = sum(len(group.chips) for group in self.groups if group.amount == 0)
        how = f"as tried on {self.images:,} tuning images" if self.tried else "as predicted"
        text = f"{alone} of {self.lot.chips} chips need no retraining, {how}"
        if cost.retrained_groups:
            text += (
                f"; the others share {cost.retrained_groups} retraining{'s' * (cost.retrained_groups > 1)} of "
                f"{cost.iterations:,} iterations in total"
            )
        sure = bound_text(at_least(self.required, self.images))
        return (
            f"{text}. A chip that just meets what is required gets at least {sure} right with 95 % confidence; the "
            f"verdict is on other images. The resilience analysis took "
            f"{self.resilience_iterations + self.harden_iterations:,} iterations."
        )

    def _chosen(self, cost: StrategyCost) -> bool:
        return (cost.strategy, cost.aligned) == (self.strategy, self.aligned)

    @property
    def digest_without_paths(self) -> str:
        """SHA-256 (hex) of everything but where files are, which are known by their own digests."""
        content = self.as_dict()
        # As version 2 had it, which is gone on with.
        content["version"] = 2
        del content["commands"], content["notes"]
        for part in ("lot", "resilience"):
            del content[part]["path"]
        # Which images judge decides nothing, and which decide is in the identity.
        for part in ("weights", "data", "hardened", "split"):
            content["setup"].pop(part, None)
        return digest_of(content)


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is to be like.

    Args:
        constraint: what each chip must do.
        strategy: `fixed`, `select`, `merge-K` with a number for K, or `efat`.
        statistic: over the repeats of the resilience analysis: see `efat.planning.selection.Statistic`.
        predictor: what severity is; None for what foretells accuracy best of what the strategy can use.
        aligned: whether `efat` aligns chips; None for what is predicted to cost less.
        step: iterations by which a group that misses the constraint is topped up; None for a sixteenth of the largest
            level that was measured.
        budget: most iterations for a group; None for twice the largest level.

    Raises:
        InputError: another strategy, steps or a budget that cannot be.
    """

    constraint: Constraint
    strategy: str = "efat"
    statistic: str = "max"
    predictor: str | None = None
    aligned: bool | None = None
    step: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.strategy not in ("fixed", "select", "efat") and self.merged is None:
            raise InputError(
                f"strategy {self.strategy!r} is unknown: expected fixed, select, efat, or merge-K with a number of "
                f"chips for K, such as merge-5{did_you_mean(self.strategy, ('fixed', 'select', 'efat', 'merge-5'))}"
            )
        if self.aligned and self.strategy != "efat":
            raise InputError(f"strategy {self.strategy} does not align chips: only efat does")
        if self.step is not None and self.step < 1:
            raise InputError(f"steps are of {self.step} iterations: expected 1 or more")
        if self.budget is not None and self.budget < 0:
            raise InputError(f"budget is {self.budget} iterations: expected 0 or more")

    @property
    def merged(self) -> int | None:
        """How many chips `merge-K` merges; None for other strategies."""
        match = re.fullmatch(r"merge-([1-9]\d{0,6})", self.strategy)
        return None if match is None else int(match[1])
