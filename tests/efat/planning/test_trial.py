"""Chips tried without retraining: those that meet the constraint need none, whatever retraining would do to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efat import records
from efat.campaigns.campaign import Outcome, Unit, Work
from efat.campaigns.workers import in_line
from efat.confidence import at_least
from efat.planning import planner
from efat.planning.plan import AS_IS, Plan, TriedChip
from efat.planning.selection import Constraint
from efat.planning.trial import Trials, try_chips
from efat.resilience.measurement import run_resilience
from efat.resilience.table import write_table
from simulator.errors import InputError
from simulator.lots.chips import Chip, write_lot
from tests.support.networks import ARRAY
from tests.support.resilience import RECIPE, small_network, small_resilience, small_setup, trained_weights
from tests.support.retrained_lots import LOT, NETWORK, TABLE, carried_out, planned, random_chips, write_measured
from training.calibration import Method
from training.data.classification import count_correct
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def plan_for(folder: Path, chips: Sequence[Chip], strategy: str = "efat", **others: Any) -> Plan:
    """A plan for a lot of these chips, each tried first, from the table that is in the folder."""
    write_lot(folder / LOT, ARRAY, chips)
    required, workers = others.pop("constraint").as_dict(), others.pop("executor", 0)
    given = {"strategy": strategy, "network": NETWORK, "workers": workers, **required, **others}
    return planner.plan(folder / TABLE, folder / LOT, **given)


def untouched(folder: Path, chip: Chip) -> int:
    """Tuning images that a chip classifies correctly without retraining, the PEs bypassed that its faults require."""
    data = small_setup(folder).load().data
    network = small_network()
    network.load_state_dict(trained_weights())
    quantised = convert(network.eval(), ARRAY, data.calibration)
    put_on_chip(quantised, Accelerator(ARRAY, chip.faults, chip.faults.required_bypass(), engine="cycle"))
    return count_correct(quantised, data.held_out)


def tried_chip(chip: Chip, correct: int) -> TriedChip:
    """As a plan has it."""
    return TriedChip(chip.id, correct, at_least(correct, 30))


def amounts(plan: Plan) -> dict[str, int]:
    """Iterations by chip."""
    return {chip: group.amount for group in plan.groups for chip in group.chips}


def test_retraining_that_hurts_is_not_planned_for_chips_that_need_none(folder: Path) -> None:
    """With this learning rate all later levels are worse, and no level but 0 is enough."""
    setup = small_setup(folder, recipe=replace(RECIPE, learning_rate=5.0))
    table = run_resilience(folder / "out", small_resilience(folder, setup=setup, rates=(0.05, 0.1)), in_line)
    assert table.correct[..., 1:].max() < table.correct[..., 0].min()
    (folder / "out" / "resilience.h5").rename(folder / TABLE)
    chips = random_chips(3, [0.0, 0.05, 0.05, 0.1])
    least = min(untouched(folder, chip) for chip in chips)
    for strategy in ("fixed", "select", "merge-2", "efat"):
        planned = plan_for(folder, chips, strategy, constraint=Constraint(accuracy=(least - 0.5) / 30))
        assert [(group.name, group.amount) for group in planned.groups] == [(AS_IS, 0)]
        assert {cost.iterations for cost in planned.comparison} == {0}
        assert any("retraining makes chips worse from 2 iterations on" in note for note in planned.notes)
        assert any("lower --learning-rate" in note for note in planned.notes)
    manifest = carried_out(folder, planned, "lot", cycle_images=8)
    assert manifest.totals.iterations == 0
    assert all(chip.tuning_correct >= least for chip in manifest.chips)


def test_all_strategies_leave_out_the_same_chips(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    write_measured(folder, small_setup(folder))
    chips = random_chips(seed, random.uniform(0, 0.5, 7).tolist())
    correct = {chip.id: untouched(folder, chip) for chip in chips}
    required = sorted(correct.values())[3]
    given: dict[str, Any] = {"constraint": Constraint(accuracy=(required - 0.5) / 30), "predictor": "faulty_pes"}
    for strategy in ("fixed", "select", "merge-2", "efat"):
        plan = plan_for(folder, chips, strategy, **given)
        assert plan.required == required
        assert {chip.id: chip.correct for chip in plan.tried} == correct
        assert sorted(chip for group in plan.groups for chip in group.chips) == sorted(correct)
        # All of them together are as bad as the worst of them.
        bad = {chip.id: chip.faults.faulty_pes().mean() for chip in chips if correct[chip.id] >= required}
        (as_is,) = [group for group in plan.groups if group.name == AS_IS]
        assert as_is.severity == max(bad.values())
        assert all(chip.at_least == at_least(chip.correct, 30) for chip in plan.tried)
        found = amounts(plan)
        # What misses without retraining needs the least level above 0 at least, whatever the table says of level 0.
        assert {chip for chip, amount in found.items() if not amount} == {
            chip for chip, right in correct.items() if right >= required
        }
        assert min(amount for amount in found.values() if amount) >= 2
        (fixed,) = [cost for cost in plan.comparison if cost.strategy == "fixed"]
        assert fixed.groups <= 1 + sum(right < required for right in correct.values())


@pytest.mark.parametrize("mitigation", ["fap+t", "fam+t"])
def test_chips_do_as_they_did_in_the_trial(folder: Path, seed: int, mitigation: str) -> None:
    """Many weights are lost here, the largest of an output among them, which its scale is from."""
    calibration: Method = "mse" if mitigation == "fap+t" else "max"
    setup = small_setup(folder, mitigation=mitigation, calibration=calibration)
    chips = random_chips(seed, [0.1, 0.3, 0.5, 0.6, 0.7])
    tried = try_chips(Trials(folder / "trials", in_line), setup, "0" * 64, chips)
    plan = planned(folder, chips, {AS_IS: (range(5), 0)}, setup=setup)
    told = [tried_chip(chip, right) for chip, right in zip(chips, tried.correct.tolist(), strict=True)]
    manifest = carried_out(folder, records.replace(plan, tried=tuple(told)))
    assert [chip.tuning_correct for chip in manifest.chips] == tried.correct.tolist()
    other = tried_chip(chips[2], (told[2].correct + 1) % 31)
    with pytest.raises(InputError, match=r"chip-2 classifies \d+ tuning .* and the plan says \d+: delete trials/"):
        carried_out(folder, records.replace(plan, tried=(*told[:2], other, *told[3:])), "other")


def test_where_each_chip_has_its_own_network_it_does_as_in_the_trial(folder: Path) -> None:
    setup = small_setup(folder, mitigation="fam+bn+t")
    setup = records.replace(setup, network="tests.support.resilience:normalised_network", weights=None)
    measured = small_resilience(folder, setup=setup, rates=(0.2,), levels=(0, 1))
    table = run_resilience(folder / "measured", measured, in_line)
    chips = [measured.chip(*place) for place in measured.places]
    plan = planned(folder, chips, {"group-0001": ([0], 0), "group-0002": ([1], 0)}, setup=setup)
    network = "tests.support.resilience:normalised_network"
    done = carried_out(folder, plan, "lot", cycle_images=8, network=network)
    assert [group.iterations for group in done.groups] == [0, 0]
    ran: list[str] = []

    def executor(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        ran.extend(unit.name for unit in units)
        return in_line(work, units)

    for expected in (["chip-00000", "chip-00001"], []):
        ran.clear()
        tried = try_chips(Trials(folder / "trials", executor), setup, "0" * 64, chips)
        assert ran == expected
        assert tried.correct.tolist() == [chip.tuning_correct for chip in done.chips]
        for name, values in table.predictors.items():
            assert tried.predictors[name].tolist() == values[0].tolist()


def test_chips_that_miss_what_no_level_reaches_are_out_of_reach(folder: Path) -> None:
    """The table has level 0 alone; one chip meets the constraint, so that the lot is planned all the same."""
    setup = small_setup(folder)
    table = write_measured(folder, setup)
    at_once = {"levels": table.levels[:1], "correct": table.correct[..., :1] - 9}
    write_table(folder / TABLE, replace(table, **at_once))
    chips = random_chips(1, [0.0, 0.6])
    plan = plan_for(folder, chips, constraint=Constraint(accuracy=0.8))
    assert [(group.chips, group.amount, group.out_of_reach) for group in plan.groups] == [
        (("chip-1",), 0, True),
        (("chip-0",), 0, False),
    ]
    # If all measured chips did without retraining, one that was tried and misses takes the first level all the same.
    write_table(folder / TABLE, replace(table, correct=np.full_like(table.correct, 29)))
    chips = random_chips(1, [0.0, 0.4])
    least, less = (untouched(folder, chip) for chip in chips)
    assert less < least
    plan = plan_for(folder, chips, constraint=Constraint(accuracy=(least - 0.5) / 30))
    assert amounts(plan) == {"chip-0": 0, "chip-1": 2}
    write_table(folder / TABLE, replace(table, images=31))
    with pytest.raises(InputError, match="the table is of 31 tuning images, and there are 30: measure it again"):
        plan_for(folder, chips, constraint=Constraint(accuracy=0.8))


def test_chips_that_are_left_out_are_not_placed(folder: Path) -> None:
    write_measured(folder, small_setup(folder, mitigation="fam+t"))
    chips = random_chips(1, [0.45, 0.0, 0.4])
    constraint = Constraint(accuracy=(untouched(folder, chips[1]) - 0.5) / 30)
    for strategy in ("select", "efat"):
        plan = plan_for(folder, chips, strategy, constraint=constraint, predictor="saliency")
        assert {chip for chip, amount in amounts(plan).items() if not amount} == {"chip-1"}
        assert sorted(chip for group in plan.groups for chip in group.chips) == ["chip-0", "chip-1", "chip-2"]


def test_trials_that_are_damaged_are_refused_in_a_line_that_says_what_to_delete(folder: Path) -> None:
    setup = small_setup(folder)
    trials = Trials(folder / "trials", in_line)
    trials.folder.write_text("not a folder")
    with pytest.raises(InputError, match=r"trials'?; or delete .*trials: the chips are then tried again"):
        try_chips(trials, setup, "0" * 64, [])
    trials.folder.unlink()
    for given in ((setup, "0" * 64), (setup, "1" * 64), (small_setup(folder, mitigation="fam+t"), "0" * 64)):
        try_chips(trials, *given, [])
    assert len(list(trials.folder.iterdir())) == 3
    for written in trials.folder.glob("*/campaign.json"):
        written.write_text("null")
    with pytest.raises(InputError, match=r"is no efat-campaign file: .*; or delete .*trials: the chips are then"):
        try_chips(trials, setup, "0" * 64, [])


def test_what_was_tried_serves_other_constraints(folder: Path) -> None:
    write_measured(folder, small_setup(folder))
    chips = random_chips(1, [0.0, 0.3])
    first = plan_for(folder, chips, constraint=Constraint(accuracy=0.5))

    def nothing(_work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        assert not units
        return iter(())

    second = plan_for(folder, chips, constraint=Constraint(max_drop=0), executor=nothing)
    assert first.tried == second.tried
