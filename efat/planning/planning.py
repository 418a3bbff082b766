"""Making the plan for a lot from how resilient its network is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efat.campaigns.command import kept_in, running
from efat.confidence import at_least
from efat.planning.plan import MOST_TOP_UPS, FileOf, LotOf, Plan, TriedChip
from efat.planning.planner import Planner, Progress
from efat.planning.request import Request
from efat.planning.selection import ResilienceMap
from efat.planning.trial import Trials, try_chips
from efat.resilience.table import FILE_NAME as TABLE
from efat.resilience.table import read_table
from efat.setup import check_network_named
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.lots.chips import ChipLot

__all__ = ["TABLE", "Planned", "Request", "make_plan", "table_of"]

"""The table in the folder of `efat resilience`."""


@dataclass(frozen=True)
class Planned:
    """A plan, and what is to be said about it.

    Attributes:
        plan: the plan.
        map: how much retraining which severity takes, for the strategy that was asked for.
        notes: what users should know: constraints that cannot be met, chips out of reach, what was not compared or
            tried, and whether retraining makes chips worse.
    """

    plan: Plan
    map: ResilienceMap
    notes: tuple[str, ...]


def make_plan(
    resilience: Path, lot: Path, request: Request, progress: Progress | None = None, trials: Trials | None = None
) -> Planned:
    """Plan the retraining of a lot: try its chips as they are, and plan what those need that miss the constraint.

    Args:
        resilience: the table that `efat resilience` measured.
        lot: the chips.
        request: what the plan is to be like.
        progress: called from time to time.
        trials: where its chips are tried without retraining; None to predict from the table which of them need none.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something does not fit, is unknown, or cannot be met by any amount of retraining.
        LotError: the lot is no lot.
    """
    table = read_table(resilience)
    setup = table.setup
    check_network_named(resilience, str(setup.network), request.network)
    largest = int(table.levels[-1])
    step = max(1, largest // 16) if request.step is None else request.step
    budget = 2 * largest if request.budget is None else request.budget
    if budget > step * MOST_TOP_UPS:
        raise InputError(
            f"budget is {budget} iterations and steps are of {step}: expected at most {MOST_TOP_UPS:,} steps; give a "
            "smaller budget or larger steps"
        )
    planner = Planner(table, setup, lot, request, progress)
    planner.check_request()
    lot_digest = digest_of_file(lot)
    tried = None
    if trials is not None:
        telling = None if progress is None else lambda done, of: progress("trying chips without retraining", done, of)
        with ChipLot(lot) as opened:
            tried = try_chips(trials, setup.located(), lot_digest, list(opened), telling)
        planner.leave_out(tried)
    groups, aligned, chosen = planner.chosen()
    most = max(group.amount for group in groups)
    if most > budget:
        raise InputError(f"budget is {budget} iterations, and a group needs {most}: give as many or more")
    plan = Plan(
        strategy=request.strategy,
        aligned=aligned,
        groups=groups,
        step=step,
        budget=budget,
        required=chosen.required,
        images=table.images,
        constraint=request.constraint,
        statistic=str(chosen.statistic),
        predictor=str(chosen.predictor),
        setup=setup,
        identity=dict(table.setup_identity),
        array=dict(table.array),
        resilience=FileOf(str(resilience), digest_of_file(resilience)),
        lot=LotOf(str(lot), lot_digest, len(planner.ids)),
        tried=()
        if tried is None
        else tuple(
            TriedChip(chip, correct, at_least(correct, table.images))
            for chip, correct in zip(planner.ids, tried.correct.tolist(), strict=True)
        ),
        resilience_iterations=table.iterations_spent - table.harden_iterations,
        harden_iterations=table.harden_iterations,
        fault_free_correct=table.fault_free_correct,
        comparison=tuple(planner.comparison()),
        commands=(*kept_in(resilience.parent), *(() if (words := running.get()) is None else (words,))),
    )
    return Planned(plan, chosen, tuple(planner.notes(plan, chosen)))


def table_of(path: Path) -> Path:
    """The table in a folder of `efat resilience`; a path to anything else is that of a table."""
    return path / TABLE if path.is_dir() else path
