"""Plans for lots: each strategy shares retrainings as it should, and what does not fit together is refused."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efat import records
from efat.planning import planner
from efat.planning.fusion import AmountMap
from efat.planning.plan import AS_IS, Plan, StrategyCost
from efat.planning.planner import table_of
from efat.planning.selection import Constraint, ResilienceMap
from efat.resilience.severity import severity, weights_per_pe
from efat.resilience.table import write_table
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip, write_lot
from tests.support.networks import ARRAY, with_broken_accumulators
from tests.support.resilience import small_setup
from tests.support.retrained_lots import LOT, NETWORK, OUT, TABLE, carried_out, random_chips, write_measured

REQUIRED = Constraint(max_drop=0.0)
GEMMS = [(1, 9, 4), (2, 8, 3), (1, 54, 3)]
"""Groups, K and N of the small network's layers."""


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def plan_for(folder: Path, chips: Sequence[Chip], strategy: str = "efat", **others: Any) -> Plan:
    """A plan for a lot of these chips from the table that is in the folder."""
    write_lot(folder / LOT, chips[0].faults.config if chips else ARRAY, chips)
    given = {"constraint": REQUIRED, "network": NETWORK, "tried": False, **others}
    required = given.pop("constraint").as_dict()
    return planner.plan(folder / TABLE, folder / LOT, strategy=strategy, **required, **given)


def mask(chip: Chip, predictor: str) -> BoolArray:
    """What counts of a chip."""
    found = chip.faults.required_bypass() if predictor == "weights" else chip.faults.faulty_pes()
    return found if chip.bypass is None else found | chip.bypass


def together(chips: Sequence[Chip], predictor: str) -> float:
    """Severity of the union of some chips."""
    weights = weights_per_pe(GEMMS, ARRAY) if predictor == "weights" else np.ones((5, 4), np.int64)
    return float(severity(np.logical_or.reduce([mask(chip, predictor) for chip in chips]), weights))


def by_chip(plan: Plan) -> dict[str, tuple[tuple[str, ...], int, bool]]:
    """The chips that share with each, the iterations, and whether it is out of reach."""
    return {
        chip: ((chip,) if group.name == AS_IS else group.chips, group.amount, group.out_of_reach)
        for group in plan.groups
        for chip in group.chips
    }


def expected(groups: Sequence[Sequence[Chip]], amounts: AmountMap, predictor: str, worst: bool = False) -> Any:
    """What `by_chip` should give."""
    needed = [float(amounts.amount(together(group, predictor))) for group in groups]
    if worst:
        largest = max((amount for amount in needed if math.isfinite(amount)), default=math.inf)
        needed = [max(amount, largest) for amount in needed]
    return {
        chip.id: (
            tuple(member.id for member in group) if amount else (chip.id,),
            8 if math.isinf(amount) else round(amount),
            math.isinf(amount),
        )
        for group, amount in zip(groups, needed, strict=True)
        for chip in group
    }


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["weights", "faulty_pes"]), st.integers(1, 4))
def test_strategies_are_what_they_say(seed: int, predictor: str, size: int) -> None:
    random = np.random.default_rng(seed)
    chips = random_chips(seed, random.uniform(0, 0.6, int(random.integers(1, 9))).tolist())
    chips = [replace(chip, bypass=random.random((5, 4)) < 0.05) if random.integers(2) else chip for chip in chips]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_measured(folder, small_setup(folder))
        plans = {
            strategy: plan_for(folder, chips, strategy, predictor=predictor)
            for strategy in ("fixed", "select", f"merge-{size}", "efat")
        }
    amounts = ResilienceMap(table, REQUIRED, predictor=predictor).amounts
    alone = [[chip] for chip in chips]
    merged = [chips[start : start + size] for start in range(0, len(chips), size)]
    assert by_chip(plans["select"]) == expected(alone, amounts, predictor)
    assert by_chip(plans["fixed"]) == expected(alone, amounts, predictor, worst=True)
    assert by_chip(plans[f"merge-{size}"]) == expected(merged, amounts, predictor)
    fused = [[chips[int(chip[5:])] for chip in group.chips] for group in plans["efat"].groups if group.name != AS_IS]
    left = [[chip] for chip in chips if not any(chip in group for group in fused)]
    assert by_chip(plans["efat"]) == expected([*fused, *left], amounts, predictor)
    # Chips that are out of reach are so alone or together, and cost the same.
    assert plans["efat"].cost.iterations <= plans["select"].cost.iterations <= plans["fixed"].cost.iterations
    for strategy, plan in plans.items():
        assert [cost for cost in plan.comparison if cost.strategy == strategy] == [plan.cost]
        assert sorted(chip for group in plan.groups for chip in group.chips) == sorted(chip.id for chip in chips)
        assert (plan.predictor, plan.required, plan.images, plan.step, plan.budget) == (predictor, 29, 30, 1, 16)
    costs = {cost.strategy: cost for plan in plans.values() for cost in plan.comparison}
    assert all(cost in [costs[cost.strategy]] for plan in plans.values() for cost in plan.comparison)


@pytest.mark.parametrize("predictor", ["pruned", "saliency", None])
def test_aligned_chips_take_no_more_than_apart(folder: Path, seed: int, predictor: str | None) -> None:
    random = np.random.default_rng(seed)
    chips = random_chips(seed, random.uniform(0.05, 0.7, int(random.integers(2, 7))).tolist())
    write_measured(folder, small_setup(folder, mitigation="fam+t"))
    plan = plan_for(folder, chips, predictor=predictor)
    forced = plan_for(folder, chips, predictor=predictor, aligned=True)
    select = plan_for(folder, chips, "select", predictor=forced.predictor)
    assert (forced.aligned, forced.predictor) == (True, predictor or "saliency")
    assert forced.cost.iterations <= select.cost.iterations
    assert forced.cost.out_of_reach == select.cost.out_of_reach
    assert sorted(chip for group in forced.groups for chip in group.chips) == [chip.id for chip in chips]
    costs = {(cost.strategy, cost.aligned): cost for cost in plan.comparison}
    assert costs["efat", True] == forced.cost
    if predictor is not None:
        assert costs["select", False] == select.cost
        assert plan.as_dict() == forced.as_dict()
        return
    # What costs less is taken, and alignment only if it does.
    unaligned = plan_for(folder, chips, aligned=False)
    assert costs["efat", False] == unaligned.cost
    with_places, without = ((one.cost.out_of_reach, one.cost.iterations) for one in (forced, unaligned))
    assert plan.groups == (forced.groups if with_places < without else unaligned.groups)
    assert plan.aligned == (with_places < without)


@pytest.mark.parametrize(
    ("mitigation", "strategy", "others"),
    [
        ("fap+t", "efat", {"predictor": "weights"}),
        ("fap+t", "merge-2", {"predictor": "faulty_pes"}),
        ("fam+t", "efat", {"aligned": True}),
        ("fam-columns+t", "select", {"predictor": "saliency"}),
    ],
)
def test_what_is_planned_is_what_is_carried_out(
    folder: Path, seed: int, mitigation: str, strategy: str, others: dict[str, Any]
) -> None:
    write_measured(folder, small_setup(folder, mitigation=mitigation))
    chips = random_chips(seed, [0.3, 0.35, 0.25, 0.1])
    chips[1] = with_broken_accumulators(chips[1], seed % 4)
    nothing = Constraint(0.0)
    plan = records.replace(plan_for(folder, chips, strategy, **others), required=0, constraint=nothing)
    manifest = carried_out(folder, plan, cycle_images=0)
    assert {group.name: (group.chips, group.iterations) for group in manifest.groups} == {
        group.name: (group.chips, group.amount) for group in plan.groups
    }
    for group in plan.groups:
        if group.name != AS_IS:
            unit = (folder / OUT / "units" / f"{group.name}.json").read_text()
            assert f'"severity":{group.severity!r},' in unit


def test_chips_out_of_reach_and_chips_that_need_nothing(folder: Path) -> None:
    write_measured(folder, small_setup(folder))
    whole, broken = Chip("whole", FaultMap(ARRAY)), Chip("broken", FaultMap(ARRAY), np.ones((5, 4), np.bool_))
    found = plan_for(folder, [broken, whole, *random_chips(1, [0.1, 0.05])], predictor="faulty_pes")
    plan = found
    assert [(group.name, group.chips, group.amount, group.out_of_reach) for group in plan.groups] == [
        ("group-0001", ("broken",), 8, True),
        (AS_IS, ("whole", "chip-0", "chip-1"), 0, False),
    ]
    assert plan.groups[1].severity == 0.1
    assert plan.cost == StrategyCost("efat", False, 2, 1, 8, 8, 1)
    assert any(note.startswith("1 chip is out of reach as far as was measured") for note in found.notes)
    fixed = plan_for(folder, [broken, whole], "fixed", predictor="faulty_pes")
    assert [(group.chips, group.amount) for group in fixed.groups] == [(("broken",), 8), (("whole",), 0)]
    two = plan_for(folder, [broken, replace(broken, id="other")], "fixed")
    assert [(group.amount, group.out_of_reach) for group in two.groups] == [(8, True)] * 2
    assert any(note.startswith("2 chips are out of reach") for note in two.notes)


def test_a_lot_without_faults_needs_nothing(folder: Path) -> None:
    for mitigation, strategies in (("fap+t", ("fixed", "select", "merge-2", "efat")), ("fam+t", ("efat", "select"))):
        write_measured(folder, small_setup(folder, mitigation=mitigation))
        for strategy, count in zip(strategies, (3, 1, 3, 1), strict=False):
            chips = [Chip(f"chip {number}", FaultMap(ARRAY)) for number in range(count)]
            plan = plan_for(folder, chips, strategy)
            assert [(group.name, len(group.chips), group.severity) for group in plan.groups] == [(AS_IS, count, 0)]
            assert {cost.iterations for cost in plan.comparison} == {0}


def test_what_is_measured_on_each_chip_keeps_them_apart(folder: Path) -> None:
    write_measured(folder, small_setup(folder, mitigation="fap+bn+t"))
    for strategy in ("merge-3", "efat"):
        plan = plan_for(folder, random_chips(1, [0.0, 0.05, 0.0]), strategy)
        assert [(group.chips, group.amount) for group in plan.groups] == [((f"chip-{n}",), 0) for n in range(3)]
        assert plan.groups[0].name == "group-0001"


def test_many_chips_are_aligned_only_if_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_measured(folder, small_setup(folder, mitigation="fam+t"))
    chips = random_chips(1, [0.3, 0.3, 0.4])
    few = {aligned: plan_for(folder, chips, aligned=aligned) for aligned in (True, False)}
    monkeypatch.setattr(planner, "MOST_ALIGNED", 2)
    found = plan_for(folder, chips)
    assert found.groups == few[False].groups
    assert {cost.aligned for cost in found.comparison} == {False}
    assert "more than 2 chips are not aligned unless asked for with --align" in found.notes
    asked = plan_for(folder, chips, aligned=True)
    assert asked.groups == few[True].groups
    assert not any("--align" in note for note in asked.notes)
    with pytest.raises(InputError, match="predictor 'saliency' cannot be had for strategy efat here"):
        plan_for(folder, chips, predictor="saliency")
    assert plan_for(folder, chips, "select").predictor == "faulty_pes"


def test_the_predictor_that_foretells_best_is_taken(folder: Path, seed: int) -> None:
    table = write_measured(folder, small_setup(folder))
    noise = np.random.default_rng(seed).permutation(table.predictors["weights"].ravel())[:, None]
    for good in ("weights", "faulty_pes"):
        predictors = {name: table.predictors[name] if name == good else noise for name in ("weights", "faulty_pes")}
        write_table(folder / TABLE, replace(table, predictors=predictors))
        assert plan_for(folder, random_chips(1, [0.2])).predictor == good


def test_a_table_with_few_predictors(folder: Path) -> None:
    write_measured(folder, small_setup(folder, mitigation="fam+t"), names=["weights"])
    chips = random_chips(1, [0.2, 0.3])
    plan = plan_for(folder, chips)
    assert (plan.predictor, plan.aligned) == ("weights", False)
    assert {cost.aligned for cost in plan.comparison} == {False}
    with pytest.raises(
        InputError, match="the table has no predictor that strategy efat can use: expected pruned or sal"
    ):
        plan_for(folder, chips, aligned=True)
    write_measured(folder, small_setup(folder), names=["pruned"])
    with pytest.raises(InputError, match="expected faulty_pes or weights; measure resilience again"):
        plan_for(folder, chips)


def test_other_lots_and_networks_are_refused(folder: Path) -> None:
    setup = small_setup(folder)
    table = write_measured(folder, setup)
    chips = random_chips(1, [0.2, 0.3])
    flip = FaultMap.from_faults(ARRAY, [Fault(0, 0, Site.PSUM, 0, Kind.FLIP, 3)])
    dead = with_broken_accumulators(Chip("dead", FaultMap(ARRAY)), 0, 1, 2, 3)
    for lot, message in (
        ([], r"lot.h5 has no chips: generate or import some first"),
        ([*chips, Chip("upset", flip)], "chip upset has FLIP faults, .*: retraining needs permanent faults only"),
        ([chips[0], dead], "chip dead has no column that can be used, all their accumulators are broken: leave it out"),
        (random_chips(1, [0.2], ArrayConfig(5, 6)), "array has cols=6, and resilience was measured with 4: measure it"),
    ):
        with pytest.raises(InputError, match=message):
            plan_for(folder, lot)
    with pytest.raises(
        InputError, match=r"which is none of .* say so with --network tests.support.resilience:small_network"
    ):
        plan_for(folder, chips, network=None)
    write_table(folder / TABLE, replace(table, setup_identity={**setup.identity(), "network": "0" * 64}))
    with pytest.raises(InputError, match="another network than resilience was measured with: measure it again"):
        plan_for(folder, chips)
    with pytest.raises(FileNotFoundError, match="no such file; make it with `efat resilience`"):
        planner.plan(folder / "none.h5", folder / LOT, max_drop=0)
    write_table(folder / TABLE, table)
    with pytest.raises(FileNotFoundError, match=r"none.h5: no such file; make it with"):
        planner.plan(folder / TABLE, folder / "none.h5", max_drop=0, network=NETWORK)


def test_constraints_that_cannot_be_met_are_refused_with_what_can(folder: Path) -> None:
    write_measured(folder, small_setup(folder))
    chips = random_chips(1, [0.2, 0.3])
    for strategy in ("efat", "select"):
        with pytest.raises(InputError, match=r"cannot be met: 30 of 30 images .* the most that is reached is 29 of 30"):
            plan_for(folder, chips, strategy, constraint=Constraint(accuracy=1.0))
    limited = plan_for(folder, chips, constraint=REQUIRED)
    assert any(
        note.startswith("29 of 30 images") and "are reached only up to a severity" in note for note in limited.notes
    )
    assert plan_for(folder, chips, constraint=Constraint(accuracy=0.1)).cost.iterations == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "best"}, "strategy 'best' is unknown: expected fixed, select, efat, or merge-K"),
        ({"strategy": "merge-0"}, "strategy 'merge-0' is unknown"),
        ({"strategy": "merge-"}, "strategy 'merge-' is unknown"),
        ({"strategy": "select", "aligned": True}, "strategy select does not align chips: only efat does"),
        ({"step": 0}, "steps are of 0 iterations: expected 1 or more"),
        ({"budget": -1}, "budget is -1 iterations: expected 0 or more"),
        ({"budget": 3}, "budget is 3 iterations, and a group needs 8: give as many or more"),
        ({"budget": 10**12}, "budget is 1000000000000 iterations and steps are of 1: expected at most 10,000 steps"),
        ({"statistic": "median"}, "statistic 'median' is unknown"),
        ({"aligned": True}, "the mitigation permutes nothing, so chips cannot be aligned"),
        (
            {"predictor": "pruned"},
            "predictor 'pruned' cannot be had for strategy efat here: expected one of faulty_pes",
        ),
        ({"predictor": "weights", "aligned": True}, "predictor 'weights' cannot be had for aligned chips here"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_measured(folder, small_setup(folder))
    with pytest.raises(InputError, match=message):
        plan_for(folder, random_chips(1, [0.2, 0.45]), **changes)


def test_the_table_in_a_folder_is_found(folder: Path) -> None:
    assert table_of(folder) == folder / "resilience.h5"
    assert table_of(folder / "any.h5") == folder / "any.h5"


@pytest.mark.slow
def test_ten_thousand_chips(folder: Path, seed: int) -> None:
    config = ArrayConfig(256, 256)
    write_measured(folder, small_setup(folder), config)
    random = np.random.default_rng(seed)

    def chips() -> Iterator[Chip]:
        """Faults in the corner that the network uses, and in all of the array."""
        for number in range(10_000):
            inside, count = int(random.integers(0, 80)), int(random.integers(80, 1300))
            places = random.permutation(256 * 256)[:count]
            places[:inside] = 256 * random.integers(0, 54, inside) + random.integers(0, 4, inside)
            row, col = np.divmod(np.unique(places), 256)
            all_alike = {"site": Site.PSUM, "bit": 3, "kind": Kind.STUCK_AT_1}
            fields = {name: np.full(len(row), value) for name, value in all_alike.items()}
            yield Chip(f"chip-{number}", FaultMap.from_arrays(config, row=row, col=col, **fields))

    write_lot(folder / LOT, config, chips())
    seen: set[str] = set()
    given = {"predictor": "weights", "network": NETWORK, "tried": False}
    made = planner.plan(
        folder / TABLE, folder / LOT, **REQUIRED.as_dict(), **given, progress=lambda what, *_: seen.add(what)
    )
    assert sorted(chip for group in made.groups for chip in group.chips) == sorted(f"chip-{n}" for n in range(10_000))
    assert seen == {"reading chips", "weights of each chip", "fusing chips", "chips alone", "merging chips"}
    costs = {cost.strategy: cost.iterations for cost in made.comparison}
    assert 0 < costs["efat"] < costs["select"] <= costs["fixed"]
