"""Making the plan for a lot: how bad each chip is, the groups of each strategy, and what they are predicted to cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efat.alignment import PREDICTORS as ALIGNED_PREDICTORS
from efat.alignment import Aligner, align, bypass_of
from efat.fusion import AmountMap, Group, fuse, fuse_in_order, singles
from efat.plan import AS_IS, Plan, PlannedGroup, StrategyCost
from efat.resilience_table import ResilienceTable, digest_of_file, read_table
from efat.selection import Constraint, ResilienceMap
from efat.severity import Int64Array, weights_per_pe
from efat.training_setup import TrainingSetup, check_network_named
from simulator import ArrayConfig
from simulator.chips import Chip, ChipLot
from training.convert import convert, quantized_layers
from training.errors import InputError
from training.mitigations.batch_norm import BatchNormStatistics
from training.mitigations.permutation import Permutation

MASK_PREDICTORS = ("faulty_pes", "weights")
"""What can be known of the union of some masks without placing anything."""

MOST_ALIGNED = 1000
"""Chips that are aligned without being asked to: each is placed several times, in a fraction of a second."""

DEFAULT_SIZE = 5
"""Of the groups of `merge-K`, if the strategy that is asked for is another."""

TABLE = "resilience.h5"
"""The table in the folder of `efat resilience`."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the number of steps that are done, and how many there are at most."""

Packed = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """What a plan is to be like.

    Args:
        constraint: what each chip must do.
        strategy: `fixed`, `select`, `merge-K` with a number for K, or `efat`.
        statistic: over the repeats of the resilience analysis: see `efat.selection.Statistic`.
        predictor: what severity is; None for what foretells accuracy best of what the strategy can use.
        aligned: whether `efat` aligns chips; None for what is predicted to cost less.
        step: iterations by which a group that misses the constraint is topped up; None for a sixteenth of the largest
            level that was measured.
        budget: most iterations for a group; None for twice the largest level.
        network: the network that the table names; None to take it from there, which a network of the user's own is not.

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
    network: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in ("fixed", "select", "efat") and self.merged is None:
            raise InputError(
                f"strategy {self.strategy!r} is unknown: expected fixed, select, efat, or merge-K with a number of "
                "chips for K, such as merge-5"
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


@dataclass(frozen=True)
class Planned:
    """A plan, and what is to be said about it.

    Attributes:
        plan: the plan.
        map: how much retraining which severity takes, for the strategy that was asked for.
        notes: what users should know: constraints that cannot be met, chips out of reach, what was not compared.
    """

    plan: Plan
    map: ResilienceMap
    notes: tuple[str, ...]


def make_plan(resilience: Path, lot: Path, request: Request, progress: Progress | None = None) -> Planned:
    """Plan the retraining of a lot.

    Args:
        resilience: the table that `efat resilience` measured.
        lot: the chips.
        request: what the plan is to be like.
        progress: called from time to time.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something does not fit, is unknown, or cannot be met by any amount of retraining.
        LotError: the lot is no lot.
    """
    measured = read_table(resilience)
    check_network_named(resilience, str(measured.setup["network"]), request.network)
    planner = _Planner(measured, lot, request, progress)
    groups, aligned, chosen = planner.chosen()
    table = planner.table
    budget = 2 * int(table.levels[-1]) if request.budget is None else request.budget
    most = max((group.amount for group in groups), default=0)
    if most > budget:
        raise InputError(f"budget is {budget} iterations, and a group needs {most}: give as many or more")
    plan = Plan(
        strategy=request.strategy,
        aligned=aligned,
        groups=groups,
        step=max(1, int(table.levels[-1]) // 16) if request.step is None else request.step,
        budget=budget,
        required=chosen.required,
        images=table.images,
        constraint=request.constraint.as_dict(),
        statistic=str(chosen.statistic),
        predictor=str(chosen.predictor),
        setup=dict(table.setup),
        identity=dict(table.setup_identity),
        array=dict(table.array),
        resilience={"path": str(resilience), "sha256": digest_of_file(resilience)},
        lot={"path": str(lot), "sha256": digest_of_file(lot), "chips": len(planner.ids)},
        resilience_iterations=table.iterations_spent - table.harden_iterations,
        harden_iterations=table.harden_iterations,
        fault_free_correct=table.fault_free_correct,
        comparison=tuple(planner.comparison()),
    )
    return Planned(plan, chosen, tuple(planner.notes(plan, chosen)))


def table_of(path: Path) -> Path:
    """The table in a folder of `efat resilience`; a path to anything else is that of a table."""
    return path / TABLE if path.is_dir() else path


def planned_groups(
    ids: Sequence[str], groups: Sequence[tuple[Sequence[int], float, float]], most: int, *, settles: bool
) -> tuple[PlannedGroup, ...]:
    """Name groups, and put chips that need no retraining into one of their own.

    Args:
        ids: of the chips of the lot.
        groups: positions of the members, severity and amount of each.
        most: iterations for those that no amount is enough for.
        settles: whether something is measured on each chip without retraining, so that none runs the weights as they
            are.
    """
    found: list[PlannedGroup] = []
    alone: list[int] = []
    worst = 0.0
    for members, severity, amount in groups:
        if amount == 0 and not settles:
            alone += members
            worst = max(worst, severity)
            continue
        out_of_reach = math.isinf(amount)
        for sharing in [members] if amount else [[member] for member in members]:
            found.append(
                PlannedGroup(
                    name=f"group-{len(found) + 1:04d}",
                    chips=tuple(ids[member] for member in sharing),
                    severity=severity,
                    amount=most if out_of_reach else round(amount),
                    out_of_reach=out_of_reach,
                )
            )
    if alone:
        found.append(PlannedGroup(AS_IS, tuple(ids[member] for member in sorted(alone)), worst, 0))
    return tuple(found)


class _Planner:
    """The groups of all strategies, each worked out when it is asked for."""

    def __init__(self, table: ResilienceTable, lot: Path, request: Request, progress: Progress | None) -> None:
        self.table = table
        self._request = request
        self._progress = progress
        self._setup = TrainingSetup.from_dict(table.setup)
        self._setup.check_identity(table.setup_identity)
        self._few = True
        self._chips: list[Chip] = []
        self._masks: dict[str, list[Packed]] = {name: [] for name in MASK_PREDICTORS}
        with ChipLot(lot) as opened:
            self._config = opened.config
            self.ids = list(opened.chip_ids)
            self._read(opened)
        network, data, _ = self._setup.load()
        config = self._config
        self._converted = convert(network, config, data.calibration, method=self._setup.calibration)
        layers = quantized_layers(self._converted)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self._weights = {name: parameters[f"{name}.weight"].detach().cpu().numpy() for name in layers}
        self._per_pe = weights_per_pe([layer.gemm_shape for layer in layers.values()], config)
        permutes = any(isinstance(found, Permutation) for found in self._setup.strategy.mitigations)
        self._settles = BatchNormStatistics() in self._setup.strategy.mitigations
        self._can_align = permutes and config.multiplies_exactly
        self._maps: dict[tuple[str, ...], ResilienceMap] = {}
        self._found: dict[tuple[str, bool], tuple[PlannedGroup, ...]] = {}

    def _read(self, lot: ChipLot) -> None:
        _check_array(lot.config, self.table)
        if not self.ids:
            raise InputError(f"{lot.path} has no chips: generate or import some first")
        self._few = len(self.ids) <= MOST_ALIGNED
        for chip in lot:
            if chip.faults.has_flips:
                raise InputError(
                    f"chip {chip.id} has FLIP faults, whose cycle counts within one GEMM: "
                    "retraining needs permanent faults only (STUCK_AT_0, STUCK_AT_1)"
                )
            # Masks take little memory, and the faults of many chips much.
            if self._few or self._request.aligned:
                self._chips.append(chip)
            self._masks["weights"].append(np.packbits(bypass_of(chip)))
            self._masks["faulty_pes"].append(np.packbits(chip.faults.faulty_pes()))
            self._tell("reading chips", len(self._masks["weights"]), len(self.ids))

    def chosen(self) -> tuple[tuple[PlannedGroup, ...], bool, ResilienceMap]:
        """The groups that were asked for, whether they are aligned, and the map they are from."""
        request = self._request
        aligned = request.aligned
        if request.strategy == "efat" and aligned is None:
            aligned = self._can_align and self._few and request.predictor not in MASK_PREDICTORS
            if aligned and request.predictor is None:
                costs = [self._cost("efat", choice) for choice in (True, False)]
                aligned = (costs[0].out_of_reach, costs[0].iterations) < (costs[1].out_of_reach, costs[1].iterations)
        aligned = bool(aligned)
        found = self._map(request.strategy, aligned)
        if found.unmeetable is not None:
            raise InputError(found.unmeetable)
        return self._groups(request.strategy, aligned), aligned, found

    def comparison(self) -> list[StrategyCost]:
        """What all strategies cost that can be compared."""
        size = self._request.merged or DEFAULT_SIZE
        strategies = [("fixed", False), ("select", False), (f"merge-{size}", False), ("efat", False)]
        if self._can_align and (self._few or self._request.aligned):
            strategies.append(("efat", True))
        return [self._cost(strategy, aligned) for strategy, aligned in strategies]

    def notes(self, plan: Plan, chosen: ResilienceMap) -> list[str]:
        """What users should know about a plan."""
        notes = [] if chosen.limited is None else [chosen.limited]
        out_of_reach = plan.cost.out_of_reach
        if out_of_reach:
            notes.append(
                f"{out_of_reach} chips are out of reach as far as was measured: they get {self.table.levels[-1]} "
                f"iterations and what is left of the budget of {plan.budget}, and may fail"
            )
        if self._can_align and not self._few and self._request.aligned is None:
            notes.append(f"more than {MOST_ALIGNED} chips are not aligned unless asked for with --align")
        return notes

    def _cost(self, strategy: str, aligned: bool) -> StrategyCost:
        return StrategyCost.of(strategy, aligned, self._groups(strategy, aligned))

    def _groups(self, strategy: str, aligned: bool) -> tuple[PlannedGroup, ...]:
        if (strategy, aligned) not in self._found:
            self._found[strategy, aligned] = planned_groups(
                self.ids, self._work_out(strategy, aligned), int(self.table.levels[-1]), settles=self._settles
            )
        return self._found[strategy, aligned]

    def _work_out(self, strategy: str, aligned: bool) -> list[tuple[Sequence[int], float, float]]:
        found = self._map(strategy, aligned)
        predictor = str(found.predictor)
        if aligned:
            groups = align(self._aligner(predictor), self._chips, found.amounts, self._telling("aligning chips"))
            return [(group.members, group.severity, group.amount) for group in groups]
        if predictor in ALIGNED_PREDICTORS:
            return self._each_placed(strategy, predictor, found.amounts)
        masks, weights = self._masks_of(predictor)
        if strategy == "efat":
            return _of_groups(fuse(masks, weights, found.amounts, self._telling("fusing chips")))
        if strategy in ("fixed", "select"):
            alone = _of_groups(singles(masks, weights, found.amounts))
            return _with_the_worst(alone) if strategy == "fixed" else alone
        size = self._request.merged or DEFAULT_SIZE
        return _of_groups(fuse_in_order(masks, weights, found.amounts, size))

    def _each_placed(
        self, strategy: str, predictor: str, amounts: AmountMap
    ) -> list[tuple[Sequence[int], float, float]]:
        """Chips alone, as they are placed."""
        aligner = self._aligner(predictor)
        alone: list[tuple[Sequence[int], float, float]] = []
        for member in range(len(self._chips)):
            group = aligner.alone(self._chips, member, amounts)
            alone.append((group.members, group.severity, group.amount))
            self._tell("placing chips", member + 1, len(self._chips))
        return _with_the_worst(alone) if strategy == "fixed" else alone

    def _map(self, strategy: str, aligned: bool) -> ResilienceMap:
        candidates = self._candidates(strategy, aligned)
        asked = self._request.predictor
        if asked is not None and strategy == self._request.strategy and asked not in candidates:
            what = "aligned chips" if aligned else f"strategy {strategy}"
            raise InputError(f"predictor {asked!r} cannot be had for {what}: expected one of {', '.join(candidates)}")
        if asked in candidates:
            candidates = (str(asked),)
        if candidates not in self._maps:
            self._maps[candidates] = ResilienceMap(
                self.table, self._request.constraint, self._request.statistic, candidates=candidates
            )
        return self._maps[candidates]

    def _candidates(self, strategy: str, aligned: bool) -> tuple[str, ...]:
        if aligned:
            return ALIGNED_PREDICTORS
        # What is placed otherwise than in order is better known when it is placed.
        if self._can_align and self._few and strategy in ("fixed", "select"):
            return (*MASK_PREDICTORS, *ALIGNED_PREDICTORS)
        return MASK_PREDICTORS

    def _aligner(self, predictor: str) -> Aligner:
        return Aligner(self._converted, self._weights, self._config, self._setup.strategy, predictor)

    def _masks_of(self, predictor: str) -> tuple[list[Packed], Int64Array]:
        """The mask of each chip that a predictor counts, packed, and what each PE counts."""
        weights = self._per_pe if predictor == "weights" else np.ones_like(self._per_pe)
        return self._masks[predictor], weights

    def _tell(self, what: str, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(what, done, of)

    def _telling(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self._tell(what, done, of)


def _of_groups(groups: Sequence[Group]) -> list[tuple[Sequence[int], float, float]]:
    return [(group.members, group.severity, group.amount) for group in groups]


def _with_the_worst(alone: Sequence[tuple[Sequence[int], float, float]]) -> list[tuple[Sequence[int], float, float]]:
    """The same chips, each with the largest finite amount of all."""
    largest = max((amount for _, _, amount in alone if math.isfinite(amount)), default=math.inf)
    return [(members, severity, max(amount, largest)) for members, severity, amount in alone]


def _check_array(config: ArrayConfig, table: ResilienceTable) -> None:
    found = config.as_dict()
    for name, value in found.items():
        if table.array.get(name) != value:
            raise InputError(
                f"the lot's array has {name}={value}, and resilience was measured with {table.array.get(name)}: "
                "measure it for the array of the lot"
            )
