"""Making the plan for a lot: how bad its chips are, who shares a retraining, and what each strategy may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from efat import records
from efat.campaigns.campaign import Executor, Notes, warned
from efat.campaigns.workers import executor_of, in_line
from efat.command_lines import kept_in, running
from efat.confidence import at_least
from efat.planning.alignment import PREDICTORS as ALIGNED_PREDICTORS
from efat.planning.alignment import AlignedGroup, Aligner, align, model_of
from efat.planning.fusion import AmountMap, Group, fuse, fuse_in_order, singles
from efat.planning.plan import (
    AS_IS,
    MOST_TOP_UPS,
    FileOf,
    LotOf,
    Plan,
    PlannedGroup,
    PlanRequest,
    StrategyCost,
    TriedChip,
)
from efat.planning.selection import (
    Constraint,
    ResilienceMap,
    Statistic,
    best_predictor,
    predictor_errors,
)
from efat.planning.trial import FOLDER as TRIALS
from efat.planning.trial import Trials, Tried, try_chips
from efat.resilience.severity import MASK_PREDICTORS, counts_of, mask_of, weights_per_pe
from efat.resilience.table import FILE_NAME as TABLE
from efat.resilience.table import ResilienceTable, read_table, worsening
from efat.setup import Setup, check_network_named
from simulator.config import ArrayRecord
from simulator.dtypes import UInt8Array
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, ChipLot
from training.layers.trainable import trainable_layers
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.permutation import Permutation

MOST_ALIGNED = 1000
"""Chips that are aligned without being asked to: each is placed several times, in a fraction of a second."""

DEFAULT_SIZE = 5
"""Of the groups of `merge-K`, if the strategy that is asked for is another."""

OF_GROUPS = "saliency"
"""The predictor of aligned groups, unless another is asked for. Many chips lose many weights together, but small ones:
how many are pruned on single chips does not foretell that, their squares do (docs/results.md)."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the number of steps that are done, and how many there are at most."""

Packed = UInt8Array


class HasPath(Protocol):
    """A lot of chips in a file."""

    @property
    def path(self) -> Path:
        """The file."""


class _Sharing(NamedTuple):
    """Positions of the chips that share a retraining, their severity together, and what it takes."""

    members: Sequence[int]
    severity: float
    amount: float


def planned_groups(
    ids: Sequence[str], groups: Sequence[_Sharing], most: int, *, settles: bool
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


class Planner:
    """The groups of all strategies, each worked out when it is asked for.

    Args:
        table: how resilient the network is.
        lot: the chips.
        request: what the plan is to be like.
        progress: called from time to time.

    Attributes:
        ids: of the chips.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something does not fit, the lot is no lot, or no network can run on one of its chips.
    """

    def __init__(self, table: ResilienceTable, lot: Path, request: PlanRequest, progress: Progress | None) -> None:
        self._table, self._setup, self._request, self._progress = table, table.setup, request, progress
        setup = table.setup
        self._chips: list[Chip] = []
        self._masks: dict[str, list[Packed]] = {name: [] for name in MASK_PREDICTORS}
        with ChipLot(lot) as opened:
            self._config = config = opened.config
            self.ids = list(opened.chip_ids)
            _check_array(config.record, table)
            if not self.ids:
                raise InputError(f"{lot} has no chips: generate or import some first")
            setup.check_identity(table.setup_identity)
            self._few = len(self.ids) <= MOST_ALIGNED
            self._read(opened)
        loaded = setup.load()
        images = len(loaded.data.held_out)
        if images != table.images:
            raise InputError(f"the table is of {table.images} tuning images, and there are {images}: measure it again")
        self._model = model_of(loaded, config)
        layers = trainable_layers(self._model).values()
        self._per_pe = weights_per_pe([layer.gemm_shape for layer in layers], config)
        self._permutes = any(isinstance(found, Permutation) for found in setup.mitigations.in_turn)
        self._settles = BatchNormStatistics() in setup.mitigations.in_turn
        self._errors: dict[str, float | None] = {}
        self._maps: dict[str, ResilienceMap] = {}
        self._alone: dict[str, list[_Sharing]] = {}
        self._found: dict[tuple[str, bool], tuple[PlannedGroup, ...]] = {}
        self._tried: Tried | None = None
        self._required = request.constraint.required(table)
        # Positions of the chips that may need retraining.
        self._others = list(range(len(self.ids)))

    def _read(self, lot: ChipLot) -> None:
        for done, chip in enumerate(lot, 1):
            if chip.faults.has_flips:
                raise InputError(
                    f"chip {chip.id} has FLIP faults, whose cycle counts within one GEMM: "
                    "retraining needs permanent faults only (STUCK_AT_0, STUCK_AT_1)"
                )
            if len(chip.faults.unusable_columns()) == self._config.cols:
                raise InputError(
                    f"chip {chip.id} has no column that can be used, all their accumulators are broken: "
                    "leave it out of the lot"
                )
            # Masks take little memory, and the faults of many chips much.
            if self._few or self._request.aligned:
                self._chips.append(chip)
            for predictor, masks in self._masks.items():
                masks.append(np.packbits(mask_of(chip, predictor)))
            self._tell("reading chips", done, len(self.ids))

    def leave_out(self, tried: Tried) -> None:
        """Leave out chips that meet the constraint without retraining: they need none, whatever the strategy.

        The others need as much as the table says, at least its first level above 0. To be called before anything is
        worked out.
        """
        self._tried = tried
        self._others = np.flatnonzero(tried.correct < self._required).tolist()

    def check_request(self) -> None:
        """Refuse what cannot be had, before any chip is tried.

        Raises:
            InputError: an unknown statistic, alignment where nothing is permuted, a predictor that the strategy cannot
                use.
        """
        Statistic.parse(self._request.statistic)
        if self._request.strategy != "efat" or self._request.aligned is not None or not self._aligns:
            self._check_predictor(bool(self._request.aligned))
        if self._request.aligned:
            self._aligner(OF_GROUPS)

    def chosen(self) -> tuple[tuple[PlannedGroup, ...], bool, ResilienceMap]:
        """The groups that were asked for, whether they are aligned, and the map they are from.

        Raises:
            InputError: they cannot be had, or no amount of retraining is enough.
        """
        request = self._request
        aligned = request.aligned
        if request.strategy == "efat" and aligned is None:
            aligned = self._aligns and request.predictor not in MASK_PREDICTORS
            if aligned and request.predictor is None:
                with_places, with_masks = (self._cost("efat", choice) for choice in (True, False))
                aligned = (with_places.out_of_reach, with_places.iterations) < (
                    with_masks.out_of_reach,
                    with_masks.iterations,
                )
        aligned = bool(aligned)
        self._check_predictor(aligned)
        found = self._map(request.strategy, aligned)
        if found.unmeetable is not None and len(self._others) == len(self.ids):
            raise InputError(found.unmeetable)
        return self._groups(request.strategy, aligned), aligned, found

    def comparison(self) -> list[StrategyCost]:
        """What all strategies cost that can be compared."""
        size = self._request.merged or DEFAULT_SIZE
        strategies = [("fixed", False), ("select", False), (f"merge-{size}", False), ("efat", False)]
        if self._aligns or self._request.aligned:
            strategies.append(("efat", True))
        return [self._cost(strategy, aligned) for strategy, aligned in strategies]

    def notes(self, plan: Plan, chosen: ResilienceMap) -> list[str]:
        """What users should know about a plan."""
        notes = []
        if self._others:
            notes += [text for text in (chosen.unmeetable, chosen.limited) if text is not None]
        if worse := worsening(self._table):
            notes.append(worse)
        if self._tried is None:
            notes.append("no chip was tried: which of them need no retraining is predicted from the table alone")
        chips = plan.cost.out_of_reach
        if chips:
            notes.append(
                f"{chips} {'chip is' if chips == 1 else 'chips are'} out of reach as far as was measured: there are "
                f"{self._table.levels[-1]} iterations for each such group and what is left of the budget of "
                f"{plan.budget}, and they may fail"
            )
        if self._permutes and self._config.multiplies_exactly and not self._few and self._request.aligned is None:
            notes.append(f"more than {MOST_ALIGNED:,} chips are not aligned unless asked for with --align")
        return notes

    def _check_predictor(self, aligned: bool) -> None:
        request = self._request
        candidates = self._candidates(request.strategy, aligned)
        if request.predictor not in (None, *candidates):
            what = "aligned chips" if aligned else f"strategy {request.strategy}"
            raise InputError(
                f"predictor {request.predictor!r} cannot be had for {what} here: expected one of "
                f"{', '.join(candidates)}; {' and '.join(ALIGNED_PREDICTORS)} are those of chips that are placed, "
                "alone or aligned, by a mitigation that permutes"
            )

    @property
    def _aligns(self) -> bool:
        """Whether chips are placed to find out what they lose, without being asked to."""
        known = any(name in self._table.predictors for name in ALIGNED_PREDICTORS)
        return self._permutes and self._config.multiplies_exactly and self._few and known

    def _cost(self, strategy: str, aligned: bool) -> StrategyCost:
        return StrategyCost.of(strategy, aligned, self._groups(strategy, aligned))

    def _groups(self, strategy: str, aligned: bool) -> tuple[PlannedGroup, ...]:
        if (strategy, aligned) not in self._found:
            groups = self._work_out(strategy, aligned) if self._others else []
            of_lot = [group._replace(members=[self._others[member] for member in group.members]) for group in groups]
            self._found[strategy, aligned] = planned_groups(
                self.ids,
                [*of_lot, *self._untouched(str(self._map(strategy, aligned).predictor))],
                int(self._table.levels[-1]),
                settles=self._settles,
            )
        return self._found[strategy, aligned]

    def _untouched(self, predictor: str) -> list[_Sharing]:
        """The chips that are left out, each by itself."""
        if self._tried is None:
            return []
        left_out = sorted(set(range(len(self.ids))).difference(self._others))
        return [_Sharing([chip], float(self._tried.predictors[predictor][chip]), 0.0) for chip in left_out]

    def _amounts(self, found: ResilienceMap) -> AmountMap:
        """What chips need that may need something: those that were tried and missed need the first level at least."""
        if self._tried is None:
            return found.amounts
        levels = self._table.levels
        least = float(levels[1]) if len(levels) > 1 else math.inf
        return AmountMap(found.amounts.severities, np.maximum(found.amounts.amounts, least))

    def _work_out(self, strategy: str, aligned: bool) -> list[_Sharing]:
        """Groups of the chips that are not left out, by their places among them."""
        found = self._map(strategy, aligned)
        predictor, amounts = str(found.predictor), self._amounts(found)
        if aligned:
            return _of(align(self._aligner(predictor), self._placed, amounts, self._telling("aligning chips")))
        if strategy == "select":
            return self._each_alone(predictor, amounts)
        if strategy == "fixed":
            return _with_the_worst(self._each_alone(predictor, amounts))
        weights = counts_of(predictor, self._per_pe)
        if strategy == "efat":
            masks = self._told(predictor, "weights of each chip")
            return _of(fuse(masks, weights, amounts, self._telling("fusing chips")))
        masks = self._told(predictor, "merging chips")
        return _of(fuse_in_order(masks, weights, amounts, self._request.merged or DEFAULT_SIZE))

    def _each_alone(self, predictor: str, amounts: AmountMap) -> list[_Sharing]:
        """Chips alone, in order or as they are placed."""
        if predictor in self._alone:
            return self._alone[predictor]
        if predictor in MASK_PREDICTORS:
            masks = self._told(predictor, "chips alone")
            alone = _of(singles(masks, counts_of(predictor, self._per_pe), amounts))
        else:
            aligner, alone, chips = self._aligner(predictor), [], self._placed
            for member in range(len(chips)):
                alone += _of([aligner.alone(chips, member, amounts)])
                self._tell("chips alone", member + 1, len(chips))
        self._alone[predictor] = alone
        return alone

    def _map(self, strategy: str, aligned: bool) -> ResilienceMap:
        """How much retraining which severity takes, by the predictor that was asked for if a strategy can use it."""
        candidates, predictor = self._candidates(strategy, aligned), self._request.predictor
        if predictor not in candidates and aligned and OF_GROUPS in candidates:
            predictor = OF_GROUPS
        elif predictor not in candidates:
            for name in candidates:
                if name not in self._errors:
                    self._errors |= predictor_errors(self._table, [name])
            predictor = best_predictor({name: self._errors[name] for name in candidates})
        if predictor not in self._maps:
            self._maps[predictor] = ResilienceMap(
                self._table, self._request.constraint, self._request.statistic, predictor
            )
        return self._maps[predictor]

    def _candidates(self, strategy: str, aligned: bool) -> tuple[str, ...]:
        """Predictors that a strategy can use and that were measured."""
        if aligned:
            names = ALIGNED_PREDICTORS
        elif strategy not in ("fixed", "select") or not self._aligns or self._request.predictor in MASK_PREDICTORS:
            names = MASK_PREDICTORS
        else:
            # What is placed otherwise than in order is better known when it is placed.
            names = ALIGNED_PREDICTORS
        known = tuple(name for name in names if name in self._table.predictors)
        if not known:
            raise InputError(
                f"the table has no predictor that strategy {strategy} can use: expected {' or '.join(names)}; measure "
                "resilience again"
            )
        return known

    def _aligner(self, predictor: str) -> Aligner:
        return Aligner(self._model, self._config, self._setup.mitigations, predictor)

    @property
    def _placed(self) -> list[Chip]:
        """The chips that are not left out."""
        return [self._chips[position] for position in self._others]

    def _told(self, predictor: str, what: str) -> Iterator[Packed]:
        """The masks that a predictor counts, with progress as they are taken."""
        masks = self._masks[predictor]
        for done, position in enumerate(self._others, 1):
            yield masks[position]
            self._tell(what, done, len(self._others))

    def _tell(self, what: str, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(what, done, of)

    def _telling(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self._tell(what, done, of)


def _of(groups: Sequence[Group] | Sequence[AlignedGroup]) -> list[_Sharing]:
    return [_Sharing(group.members, group.severity, group.amount) for group in groups]


def _with_the_worst(alone: Sequence[_Sharing]) -> list[_Sharing]:
    """The same chips, each with the largest finite amount of all."""
    largest = max((chip.amount for chip in alone if math.isfinite(chip.amount)), default=math.inf)
    return [chip._replace(amount=max(chip.amount, largest)) for chip in alone]


def _check_array(array: ArrayRecord, table: ResilienceTable) -> None:
    different = array.difference(table.array)
    if different is not None:
        name, value, measured = different
        raise InputError(
            f"the lot's array has {name}={value}, and resilience was measured with {measured}: measure it for the "
            "array of the lot"
        )


def plan(
    resilience: ResilienceTable | str | Path,
    lot: str | Path | HasPath,
    *,
    accuracy: float | None = None,
    max_drop: float | None = None,
    margin: float = 0.0,
    strategy: str = "efat",
    statistic: str = "max",
    predictor: str | None = None,
    aligned: bool | None = None,
    step: int | None = None,
    budget: int | None = None,
    setup: Setup | None = None,
    network: str | None = None,
    tried: bool = True,
    workers: int | str | Executor | None = 0,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> Plan:
    """Plan the retraining of a lot: try its chips as they are, and give those that miss the constraint what they need.

    Args:
        resilience: the table that `measure_resilience` gave, or its file or folder.
        lot: the chips.
        accuracy: the fraction of images that each chip must classify correctly; this or `max_drop`.
        max_drop: how far below the fault-free quantised network that fraction may be.
        margin: how much more is asked for on tuning images.
        strategy: who shares a retraining: `fixed`, `select`, `merge-K` with a number for K, or `efat`.
        statistic: over the repeats of the resilience analysis: see `efat.planning.selection.Statistic`.
        predictor: what severity is; None for what foretells accuracy best of what the strategy can use.
        aligned: whether `efat` aligns chips; None for what is predicted to cost less.
        step: iterations by which a group that misses the constraint is topped up; None for a sixteenth of the largest
            level that was measured.
        budget: most iterations for a group; None for twice the largest level.
        setup: what the table was measured with, where a file cannot say it: a network or data that are objects.
        network: the network that a file names; None to take it from there, which a network of the user's own is not.
        tried: whether each chip is tried without retraining first; what was tried before is kept beside the table.
        workers: where chips are tried; see `efat.campaigns.workers.executor_of`.
        progress: called from time to time.
        notes: told of chips that were tried before and are tried again, as their files do not fit.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something does not fit, is unknown, or cannot be met by any amount of retraining.
    """
    request = PlanRequest(
        Constraint(accuracy, max_drop, margin), strategy.lower(), statistic, predictor, aligned, step, budget
    )
    table = resilience if isinstance(resilience, ResilienceTable) else read_table(table_of(Path(resilience)))
    path = table.path
    if path is None:
        raise InputError("the table is in no file, which a plan names: write it first, or measure it into a folder")
    if setup is not None:
        table = replace(table, setup=setup)
    elif not isinstance(resilience, ResilienceTable):
        check_network_named(path, table.setup.network, network)
    chips = Path(lot if isinstance(lot, str | Path) else lot.path)
    step, budget = _top_ups(request, int(table.levels[-1]))
    planner = Planner(table, chips, request, progress)
    planner.check_request()
    found, lot_digest = None, digest_of_file(chips)
    if tried:
        if workers not in (0, in_line):
            table.setup.check_travels()
        trials = Trials(path.parent / TRIALS, executor_of(workers), notes)
        telling = None if progress is None else lambda done, of: progress("trying chips without retraining", done, of)
        with ChipLot(chips) as opened:
            found = try_chips(trials, table.setup.located(), lot_digest, list(opened), telling)
        planner.leave_out(found)
    groups, align_chips, chosen = planner.chosen()
    most = max(group.amount for group in groups)
    if most > budget:
        raise InputError(f"budget is {budget} iterations, and a group needs {most}: give as many or more")
    correct = [] if found is None else zip(planner.ids, found.correct.tolist(), strict=True)
    made = Plan(
        strategy=request.strategy,
        aligned=align_chips,
        groups=groups,
        step=step,
        budget=budget,
        required=chosen.required,
        images=table.images,
        constraint=request.constraint,
        statistic=str(chosen.statistic),
        predictor=str(chosen.predictor),
        setup=table.setup,
        identity=dict(table.setup_identity),
        array=table.array,
        resilience=FileOf(str(path), digest_of_file(path)),
        lot=LotOf(str(chips), lot_digest, len(planner.ids)),
        tried=tuple(TriedChip(chip, right, at_least(right, table.images)) for chip, right in correct),
        resilience_iterations=table.iterations_spent - table.harden_iterations,
        harden_iterations=table.harden_iterations,
        fault_free_correct=table.fault_free_correct,
        comparison=tuple(planner.comparison()),
        commands=(*kept_in(path.parent), *(() if (words := running.get()) is None else (words,))),
    )
    return records.replace(made, notes=tuple(planner.notes(made, chosen)))


def table_of(path: Path) -> Path:
    """The table in a folder of `efat resilience`; a path to anything else is that of a table."""
    return path / TABLE if path.is_dir() else path


def _top_ups(request: PlanRequest, largest: int) -> tuple[int, int]:
    """Steps and budget."""
    step = max(1, largest // 16) if request.step is None else request.step
    budget = 2 * largest if request.budget is None else request.budget
    if budget > step * MOST_TOP_UPS:
        raise InputError(
            f"budget is {budget} iterations and steps are of {step}: expected at most {MOST_TOP_UPS:,} steps; give a "
            "smaller budget or larger steps"
        )
    return step, budget
