"""The plan for a lot: which chips share a retraining, how long each is, and what that costs; kept as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from efat.campaigns.campaign import digest_of
from efat.confidence import at_least
from efat.json_fields import LARGEST_COUNT, Fields, read_json
from efat.planning.selection import Constraint, Statistic
from efat.resilience.table import PREDICTORS
from efat.retraining.manifest import AS_IS
from simulator.errors import InputError
from simulator.files import replaced

__all__ = ["AS_IS", "MOST_TOP_UPS", "Plan", "PlannedGroup", "StrategyCost", "TriedChip", "read_plan", "write_plan"]

FORMAT = "efat-plan"
VERSION = 2
SOURCE = "efat plan"
"""The command that writes it."""

MOST_TOP_UPS = 10_000
"""Steps that fit into the budget: accuracy is measured after each."""

_NAME = re.compile(rf"{AS_IS}|group-\d{{4,8}}")
_STRATEGY = re.compile(r"fixed|select|efat|merge-[1-9]\d{0,6}")
_STRATEGY_EXPECTED = "fixed, select, efat, or merge-K with a number of chips for K"


@dataclass(frozen=True)
class PlannedGroup:
    """Chips that share one retraining.

    Args:
        name: of the group in its plan; `AS_IS` for chips that each are left alone.
        chips: ids, in the order in which they joined.
        severity: of what they lose together, by the predictor of the plan, 0..1.
        amount: iterations of retraining; 0 for none.
        out_of_reach: whether no amount that was measured is enough; `amount` is then the most that was measured.
    """

    name: str
    chips: tuple[str, ...]
    severity: float
    amount: int
    out_of_reach: bool = False


@dataclass(frozen=True)
class TriedChip:
    """What a chip does without retraining.

    Args:
        id: of the chip.
        correct: tuning images that it classifies correctly, on the exact emulation.
        at_least: the one-sided 95 % lower bound (Clopper and Pearson) of its accuracy that follows from that, 0..1.
    """

    id: str
    correct: int
    at_least: float


@dataclass(frozen=True)
class StrategyCost:
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

    strategy: str
    aligned: bool
    groups: int
    retrained_groups: int
    iterations: int
    largest_amount: int
    out_of_reach: int

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


@dataclass(frozen=True, eq=False)
class Plan:
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
        setup: `efat.setup.TrainingSetup.as_dict()`.
        identity: digests of what the setup loads, by name.
        array: `ArrayConfig.as_dict()`.
        resilience: `path` and `sha256` of the table.
        lot: `path`, `sha256` and number of `chips` of the lot.
        resilience_iterations: that the resilience analysis took, without hardening.
        harden_iterations: that hardening took.
        fault_free_correct: tuning images that the original network classifies correctly, quantised, without faults.
        tried: what each chip of the lot does without retraining, in its order; empty if none was tried.
        comparison: what all strategies are predicted to cost.
    """

    strategy: str
    aligned: bool
    groups: tuple[PlannedGroup, ...]
    step: int
    budget: int
    required: int
    images: int
    constraint: Mapping[str, Any]
    statistic: str
    predictor: str
    setup: Mapping[str, Any]
    identity: Mapping[str, str]
    array: Mapping[str, Any]
    resilience: Mapping[str, Any]
    lot: Mapping[str, Any]
    resilience_iterations: int
    harden_iterations: int
    fault_free_correct: int
    tried: tuple[TriedChip, ...]
    comparison: tuple[StrategyCost, ...]

    @property
    def cost(self) -> StrategyCost:
        """What this plan is predicted to cost."""
        return StrategyCost.of(self.strategy, self.aligned, self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @property
    def digest_without_paths(self) -> str:
        """SHA-256 (hex) of everything but where files are, which are known by their own digests."""
        content = self.as_dict()
        for part in ("lot", "resilience"):
            del content[part]["path"]
        # Which images judge decides nothing, and which decide is in the identity.
        for part in ("weights", "data", "hardened", "split"):
            content["setup"].pop(part, None)
        return digest_of(content)


def write_plan(path: Path, plan: Plan) -> None:
    """Write it in one piece; the same plan gives the same bytes.

    Raises:
        InputError: `read_plan` would refuse it.
        OSError: it cannot be written.
    """
    text = json.dumps(plan.as_dict(), indent=1, allow_nan=False)
    content = json.loads(text)
    del content["format"], content["version"]
    _plan(Fields(content, str(path)))
    with replaced(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` wrote. What `setup` says is looked at when it is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is something else, of another version, or damaged.
    """
    return _plan(read_json(path, FORMAT, VERSION, SOURCE))


def _plan(content: Fields) -> Plan:
    """Take a plan from what JSON gave.

    Raises:
        InputError: a field is missing or wrong, or they do not fit together.
    """
    found = Fields(content.values, content.where, _names(Plan))
    groups = tuple(_group(group) for group in found.objects("groups", _names(PlannedGroup)))
    chips = [chip for group in groups for chip in group.chips]
    comparison = tuple(_cost(cost) for cost in found.objects("comparison", _names(StrategyCost)))
    _refuse_twice(found, "group", (group.name for group in groups))
    _refuse_twice(found, "chip", chips)
    _refuse_twice(found, "comparison of", ((cost.strategy, cost.aligned) for cost in comparison))
    lot = found.inner("lot", ["path", "sha256", "chips"])
    resilience = found.inner("resilience", ["path", "sha256"])
    for source in (lot, resilience):
        source.text("path"), source.sha256("sha256")
    if lot.count("chips", 1) != len(chips):
        lot.refuse("chips", f"{len(chips)}, which are in groups")
    images = found.count("images", 1)
    step = found.count("step", 1)
    budget = found.count("budget", max((group.amount for group in groups), default=0))
    if budget > step * MOST_TOP_UPS:
        found.refuse("budget", f"at most {MOST_TOP_UPS} steps of {step} iterations")
    predictor = found.text("predictor")
    if predictor not in PREDICTORS:
        found.refuse("predictor", f"one of {', '.join(PREDICTORS)}")
    required = found.count("required", 0, images)
    tried = tuple(_tried(chip, images) for chip in found.objects("tried", _names(TriedChip)))
    if tried and sorted(chip.id for chip in tried) != sorted(chips):
        found.refuse("tried", "each chip of the groups once, or none")
    fault_free_correct = found.count("fault_free_correct", 0, images)
    constraint = Constraint.from_fields(found.inner("constraint", _names(Constraint)))
    least = constraint.required_to_end(images, fault_free_correct)
    if required != least:
        found.refuse("required", f"{least}, which the constraint takes of {images} images")
    statistic = found.text("statistic")
    try:
        Statistic.parse(statistic)
    except InputError as error:
        raise InputError(f"{found.where}: {error}") from None
    identity = found.inner("identity")
    return Plan(
        strategy=found.text("strategy", _STRATEGY, _STRATEGY_EXPECTED),
        aligned=found.flag("aligned"),
        groups=groups,
        step=step,
        budget=budget,
        required=required,
        images=images,
        constraint=constraint.as_dict(),
        statistic=statistic,
        predictor=predictor,
        setup=found.inner("setup").values,
        identity={name: identity.text(name) for name in identity.values},
        array=found.inner("array").values,
        resilience=resilience.values,
        lot=lot.values,
        resilience_iterations=found.count("resilience_iterations"),
        harden_iterations=found.count("harden_iterations"),
        fault_free_correct=fault_free_correct,
        tried=tried,
        comparison=comparison,
    )


def _tried(found: Fields, images: int) -> TriedChip:
    correct, bound = found.count("correct", 0, images), found.number("at_least", 0, 1)
    if abs(bound - at_least(correct, images)) > 1e-9:
        found.refuse("at_least", f"{at_least(correct, images)}, as {correct} of {images} images are correct")
    return TriedChip(found.text("id"), correct, bound)


def _group(found: Fields) -> PlannedGroup:
    chips = found.texts("chips")
    if not chips:
        found.refuse("chips", "the id of one chip at least")
    name = found.text("name", _NAME, f"{AS_IS}, or group- and a number of four digits or more")
    return PlannedGroup(
        name=name,
        chips=chips,
        severity=found.number("severity", 0, 1),
        amount=found.count("amount", 0, 0 if name == AS_IS else LARGEST_COUNT),
        out_of_reach=found.flag("out_of_reach"),
    )


def _cost(found: Fields) -> StrategyCost:
    groups, iterations = found.count("groups"), found.count("iterations")
    return StrategyCost(
        strategy=found.text("strategy", _STRATEGY, _STRATEGY_EXPECTED),
        aligned=found.flag("aligned"),
        groups=groups,
        retrained_groups=found.count("retrained_groups", 0, groups),
        iterations=iterations,
        largest_amount=found.count("largest_amount", 0, iterations),
        out_of_reach=found.count("out_of_reach"),
    )


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _refuse_twice(found: Fields, what: str, names: Iterable[object]) -> None:
    known: set[object] = set()
    for name in names:
        if name in known:
            raise InputError(f"{found.where}: {what} {name!r} is there twice: make the plan again")
        known.add(name)
