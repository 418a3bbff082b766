"""Plans are read as they were written, add up, and are refused in one line when they are damaged."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.confidence import at_least
from efat.planning.plan import AS_IS, MOST_TOP_UPS, FileOf, LotOf, Plan, PlannedGroup, StrategyCost, TriedChip
from efat.planning.selection import Constraint
from efat.records import LARGEST_COUNT, replace
from efat.resilience.severity import PREDICTORS
from efat.setup import Setup
from simulator import ArrayConfig
from simulator.errors import InputError
from tests.support.damaged_json import (
    NO_INTEGERS,
    Damage,
    assert_every_field_is_needed,
    assert_read_or_refused,
    assert_refused,
    changed,
)
from tests.support.resilience import constraints
from tests.support.strategies import configs
from training.learning.recipe import Recipe

COUNTS = st.integers(0, 10**12)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=10)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
STRATEGIES = st.sampled_from(["fixed", "select", "efat", "merge-1", "merge-12"])


def small() -> Plan:
    """Three groups of five chips."""
    groups = (
        PlannedGroup("group-0001", ("one", "three"), 0.25, 12),
        PlannedGroup("group-0002", ("four",), 0.5, 40, True),
        PlannedGroup(AS_IS, ("two", "five"), 0.125, 0),
    )
    return Plan(
        strategy="merge-2",
        aligned=False,
        groups=groups,
        step=4,
        budget=50,
        required=8,
        images=10,
        constraint=Constraint(0.8),
        statistic="quantile:0.9",
        predictor="weights",
        setup=Setup("digits-cnn", data=Path("here"), recipe=Recipe(batch=3)),
        identity={"network": 64 * "d", "calibration": "max"},
        array=ArrayConfig(4, 3).record,
        resilience=FileOf("res/resilience.h5", 64 * "a"),
        lot=LotOf("lot.h5", 64 * "b", 5),
        resilience_iterations=960,
        harden_iterations=100,
        fault_free_correct=9,
        tried=tuple(TriedChip(chip, 7, at_least(7, 10)) for chip in ("one", "two", "three", "four", "five")),
        comparison=(StrategyCost.of("merge-2", False, groups), StrategyCost("efat", True, 3, 2, 50, 40, 1)),
    )


def setups() -> st.SearchStrategy[Setup]:
    """Any network and mitigation, with or without files."""
    paths = st.none() | st.sampled_from([Path("a/b"), Path("c")])
    recipes = st.builds(Recipe, batch=st.integers(1, 9), options=st.none() | st.just({"betas": (0.5, 0.25)}))
    mitigations = st.sampled_from(["fap+t", "fam+bn+t"])
    return st.builds(Setup, TEXTS, paths, paths, mitigations, recipes, learn_scales=st.booleans())


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any groups of any chips."""
    ids = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=8, unique=True))
    numbers = draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
    groups = []
    for number in sorted(set(numbers)):
        chips = tuple(chip for chip, of in zip(ids, numbers, strict=True) if of == number)
        name, amount = (f"group-{number:04d}", draw(COUNTS)) if number else (AS_IS, 0)
        groups.append(PlannedGroup(name, chips, draw(st.floats(0, 1)), amount, bool(number and draw(st.booleans()))))
    names = draw(st.lists(st.tuples(STRATEGIES, st.booleans()), max_size=4, unique=True))
    step = draw(st.integers(10**9, 10**12))
    images = draw(st.integers(1, 10**6))
    constraint = draw(constraints())
    fault_free_correct = draw(st.integers(0, images))
    return Plan(
        strategy=draw(STRATEGIES),
        aligned=draw(st.booleans()),
        groups=tuple(groups),
        step=step,
        budget=draw(st.integers(max(group.amount for group in groups), min(step * MOST_TOP_UPS, LARGEST_COUNT))),
        required=constraint.required_to_end(images, fault_free_correct),
        images=images,
        constraint=constraint,
        statistic=draw(st.sampled_from(["max", "mean", "quantile:0.25"])),
        predictor=draw(st.sampled_from(PREDICTORS)),
        setup=draw(setups()),
        identity=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        array=draw(configs()).record,
        resilience=FileOf(draw(TEXTS), 64 * "a"),
        lot=LotOf(draw(TEXTS), 64 * "b", len(ids)),
        resilience_iterations=draw(COUNTS),
        harden_iterations=draw(COUNTS),
        fault_free_correct=fault_free_correct,
        tried=draw(st.sampled_from([(), tuple(TriedChip(chip, images, at_least(images, images)) for chip in ids)])),
        comparison=tuple(StrategyCost.of(*name, tuple(groups)) for name in names),
    )


@settings(max_examples=40)
@given(plans())
def test_plans_are_read_as_they_were_written(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "plan.json", Path(folder) / "again.json"
        plan.save(path)
        found = Plan.load(path)
        assert found.as_dict() == plan.as_dict()
        assert (found.groups, found.comparison) == (plan.groups, plan.comparison)
        found.save(again)
        assert again.read_bytes() == path.read_bytes()


def test_groups_add_up() -> None:
    assert small().cost == StrategyCost("merge-2", False, 3, 2, 52, 40, 1)
    assert StrategyCost.of("efat", True, ()) == StrategyCost("efat", True, 0, 0, 0, 0, 0)


def test_the_digest_is_of_everything_but_places() -> None:
    plan = small()
    moved = replace(
        plan,
        lot=replace(plan.lot, path="other"),
        resilience=replace(plan.resilience, path="other"),
        setup=replace(plan.setup, weights=Path("w"), data=None),
    )
    assert moved.digest_without_paths == plan.digest_without_paths
    group, *others = plan.groups
    for changes in (
        {"step": 5},
        {"groups": (replace(group, amount=13), *others)},
        {"groups": (replace(group, chips=("three", "one")), *others)},
        {"lot": replace(plan.lot, sha256=64 * "c")},
        {"setup": replace(plan.setup, network="other")},
    ):
        assert replace(plan, **changes).digest_without_paths != plan.digest_without_paths


TRIED = ("one", "two", "three", "four", "five")
DAMAGES: list[tuple[Damage, str]] = [
    *((changed("groups", 0, "amount", to=value), r"groups\[0\]: amount is ") for value in NO_INTEGERS),
    *((changed(name, to=value), f"{name} is ") for value in NO_INTEGERS for name in ("step", "budget", "required")),
    *((changed("harden_iterations", to=value), "harden_iterations is ") for value in NO_INTEGERS),
    (changed("images", to=0), "images is 0: expected an integer from 1"),
    (changed("images", to=7), r"required is 8: expected an integer of 0\.\.7"),
    (changed("fault_free_correct", to=11), r"fault_free_correct is 11: expected an integer of 0\.\.10"),
    (changed("required", to=7), "required is 7: expected 8, which the constraint takes of 10 images"),
    (changed("constraint", "margin", to=0.1), "required is 8: expected 9, which the constraint takes"),
    (changed("budget", to=39), "budget is 39: expected an integer from 40"),
    (changed("budget", to=40_001), "budget is 40001: expected at most 10000 steps of 4 iterations"),
    (changed("groups", 0, "severity", to=1.5), r"severity is 1\.5: expected a number within 0\.\.1"),
    (changed("groups", 0, "severity", to=10**400), "severity is an integer of more than 30 digits"),
    (changed("groups", 0, "chips", to=[]), r"groups\[0\]: chips is a list of 0: expected the id of one chip at least"),
    (changed("groups", 0, "chips", to=["one", "one"]), "chip 'one' is there twice: make the plan again"),
    (changed("groups", 0, "chips", to=["two"]), "chip 'two' is there twice"),
    (changed("groups", 0, "chips", to=["a\nb", "c"]), "chips.0. is .*: expected printable text"),
    (changed("groups", 0, "chips", to=["one"]), "lot: chips is 5: expected 4, which are in groups"),
    (changed("groups", 1, "name", to="group-0001"), "group 'group-0001' is there twice"),
    (changed("groups", 1, "name", to="../first"), "name is '../first': expected as-is, or group- and a number"),
    (changed("groups", 1, "name", to="chip-00000-verified"), "name is 'chip-00000-verified': expected as-is"),
    (changed("groups", 2, "amount", to=1), r"groups\[2\]: amount is 1: expected 0, as as-is is without"),
    (changed("groups", 2, "more", to=1), "groups.2. has a field 'more'"),
    (changed("groups", to={}), "groups is an object of 0: expected a list"),
    (changed("groups", to=[]), "lot: chips is 5: expected 0, which are in groups"),
    (changed("lot", "chips", to=6), "lot: chips is 6: expected 5, which are in groups"),
    (changed("lot", "sha256", to="e"), "lot: sha256 is 'e'"),
    (changed("resilience", "sha256", to=64 * "G"), "expected 64 hexadecimal digits"),
    (changed("resilience", "path", to="a\nb"), "resilience: path is "),
    (changed("strategy", to="the best"), "strategy is 'the best': expected fixed, select, efat, or merge-K"),
    (changed("strategy", to="merge-0"), "strategy is 'merge-0'"),
    (changed("predictor", to="luck"), "predictor is 'luck': expected one of faulty_pes, weights, pruned, saliency"),
    (changed("statistic", to="median"), "statistic 'median' is unknown"),
    (
        changed("constraint", to={"accuracy": 0.5, "max_drop": 0.5, "margin": 0}),
        "expected one of them as the constraint",
    ),
    (
        changed("constraint", to={"accuracy": None, "max_drop": None, "margin": 0}),
        "expected one of them as the constraint",
    ),
    (
        changed("constraint", to={"accuracy": "0.5", "max_drop": None, "margin": 0}),
        "constraint: accuracy is '0.5': expected a",
    ),
    (changed("constraint", to={"accuracy": 2, "max_drop": None, "margin": 0}), "accuracy is 2.0: expected a fraction"),
    (changed("constraint", to={"accuracy": 0.5}), "constraint has no 'max_drop'"),
    (
        changed("constraint", to={"accuracy": 0.5, "max_drop": None, "margin": None}),
        "margin is null: expected a finite number",
    ),
    (changed("tried", 0, "correct", to=8), r"tried\[0\]: at_least is 0.39.*: expected 0.49.*, as 8 of 10 images"),
    (
        changed("tried", to=[{"id": chip, "correct": 0, "at_least": 0} for chip in ("one", *TRIED)]),
        "tried is a list of 6: expected each chip of the groups once, or none",
    ),
    (changed("tried", 0, "id", to="six"), "tried is a list of 5: expected each chip of the groups once, or none"),
    (changed("comparison", 1, to=StrategyCost("merge-2", False, 3, 2, 50, 40, 1).as_dict()), "comparison of .* twice"),
    (changed("comparison", 1, "retrained_groups", to=4), r"retrained_groups is 4: expected an integer of 0\.\.3"),
    (changed("comparison", 1, "largest_amount", to=51), r"largest_amount is 51: expected an integer of 0\.\.50"),
    (changed("aligned", to=0), "aligned is 0: expected true or false"),
    (changed("setup", to=[]), "setup is a list of 0: expected an object"),
    (changed("array", to=[]), "array is a list of 0: expected an object"),
    (changed("identity", to={"network": 3}), "identity: network is 3"),
    (changed("format", to="efat-manifest"), "is no efat-plan file: expected one that efat plan wrote"),
    (changed("version", to=1), "is of version 1, and this program reads 3: write it anew with efat plan"),
    (changed("unknown", to=1), "has a field 'unknown'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[str(number) for number in range(len(DAMAGES))])
def test_a_damaged_plan_is_refused_in_a_line_that_names_it(tmp_path: Path, damage: Damage, message: str) -> None:
    assert_refused(Plan.load, tmp_path / "plan.json", small().as_dict(), damage, message)


def test_the_version_before_had_no_commands(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = replace(small(), commands=(("efat", "plan", "-o", "plan.json"),))
    plan.save(path)
    assert Plan.load(path).as_dict() == plan.as_dict()
    content = {**plan.as_dict(), "version": 2}
    del content["commands"]
    path.write_text(json.dumps(content))
    assert Plan.load(path).as_dict() == small().as_dict()
    # A folder that was begun with it goes on.
    assert Plan.load(path).digest_without_paths == plan.digest_without_paths


def test_every_field_is_needed(tmp_path: Path) -> None:
    places: list[tuple[str | int, ...]] = [
        (),
        ("groups", 0),
        ("comparison", 1),
        ("lot",),
        ("resilience",),
        ("constraint",),
    ]
    assert_every_field_is_needed(Plan.load, tmp_path / "plan.json", small().as_dict(), places)


@given(st.data())
def test_a_plan_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    assert_read_or_refused(Plan.load, small().as_dict(), data)


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for wrong in (replace(small(), required=11), replace(small(), groups=small().groups[:2])):
        with pytest.raises(InputError, match=re.escape(str(path))):
            wrong.save(path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="efat plan writes it"):
        Plan.load(path)
    path.write_text('{"format": "efat-plan", "version": 1, "step": NaN}')
    with pytest.raises(InputError, match=r"is no JSON .NaN is no finite number"):
        Plan.load(path)
