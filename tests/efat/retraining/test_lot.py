"""Plans carried out: groups are topped up and split as they should be, and every chip does what the files say."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from efat import records
from efat.confidence import at_least
from efat.planning.plan import AS_IS, Plan
from efat.planning.selection import Constraint
from efat.retraining.lot import measure_fault_free
from efat.retraining.lot import retrain as retrain_lot
from efat.retraining.manifest import Manifest, ManifestTuning, ManifestWork, check_files
from efat.setup import Setup
from simulator import ArrayConfig, FaultMap
from simulator.errors import InputError
from simulator.lots.chips import Chip
from tests.support.networks import ARRAY, with_broken_accumulators
from tests.support.resilience import (
    HELD_OUT,
    RECIPE,
    TRAIN,
    UNSEEN,
    small_network,
    small_setup,
    trained_weights,
)
from tests.support.retrained_lots import LOT, OUT, TABLE, carried_out, chips_of, logits, planned, random_chips
from training.data.classification import count_correct
from training.layers.convert import convert
from training.learning.retrain import retrain


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def unit(folder: Path, name: str) -> dict[str, Any]:
    """What a unit gave."""
    found: dict[str, Any] = json.loads((folder / OUT / "units" / f"{name}.json").read_text())["values"]
    return found


@dataclass(frozen=True)
class Expected:
    """What should become of a group."""

    name: str
    chips: tuple[str, ...]
    planned: int
    iterations: int
    top_ups: int
    split_from: str | None
    correct: int


class Policy:
    """The rules of execution, for FAP: what is retrained for how long, and what is split."""

    def __init__(self, setup: Setup, chips: Sequence[Chip], required: int, step: int, budget: int) -> None:
        self.network, self.data, *_ = setup.load()
        self.chips = {chip.id: chip for chip in chips}
        self.required, self.step, self.budget = required, step, budget
        self.kept: list[Expected] = []
        self.split: list[Expected] = []

    def carry_out(self, name: str, chips: Sequence[str], planned: int, split_from: str | None = None) -> None:
        """Retrain a group for the amounts that it may come to, and see after which it meets what is required."""
        bypass = np.logical_or.reduce([self.chips[chip].faults.required_bypass() for chip in chips])
        union = Chip("union", FaultMap(ARRAY), bypass)
        stops = [*range(planned, self.budget, self.step), self.budget]
        found = retrain(self.network, union, self.data, self.budget, recipe=RECIPE, evaluate_at=stops).evaluations
        correct = {evaluation.iteration: evaluation.correct for evaluation in found}
        stop = next((stop for stop in stops if correct[stop] >= self.required), self.budget)
        expected = Expected(
            name, tuple(chips), planned, stop, stops.index(stop) if stop > planned else 0, split_from, correct[stop]
        )
        if correct[stop] >= self.required or len(chips) == 1:
            self.kept.append(expected)
            return
        self.split.append(expected)
        by_faults = sorted(chips, key=lambda chip: -len(np.argwhere(self.chips[chip].faults.required_bypass())))
        middle = len(chips) // 2
        for letter, part in (("a", by_faults[:middle]), ("b", by_faults[middle:])):
            self.carry_out(f"{name}-{letter}", part, 0, name)


@pytest.mark.parametrize("required", [23, 27, 30])
def test_groups_are_topped_up_and_split_until_they_do(folder: Path, seed: int, required: int) -> None:
    random = np.random.default_rng(seed)
    setup = small_setup(folder)
    chips = random_chips(seed, random.uniform(0.0, 0.35, 5).tolist())
    step, budget = int(random.integers(1, 4)), int(random.integers(4, 8))
    groups = {"group-0001": ([3, 0, 2], int(random.integers(0, 5))), "group-0002": ([4], 4), AS_IS: ([1], 0)}
    # The margin is 3 of 30 tuning images, and none of the others.
    constraint = Constraint((required - 3.5) / 30, margin=0.1)
    plan = planned(
        folder, chips, groups, setup=setup, required=required, step=step, budget=budget, constraint=constraint
    )
    manifest = carried_out(folder, plan)
    policy = Policy(setup, chips, required, step, budget)
    for name, (members, amount) in groups.items():
        if name != AS_IS:
            policy.carry_out(name, [chips[member].id for member in members], amount)
    as_is = [group for group in manifest.groups if group.name == AS_IS]
    if not as_is:
        policy.carry_out("as-is-00001", ["chip-1"], 0, AS_IS)
    found = {
        group.name: Expected(
            group.name,
            group.chips,
            group.planned,
            group.iterations,
            group.top_ups,
            group.split_from,
            group.tuning_correct,
        )
        for group in manifest.groups
        if group.name != AS_IS
    }
    assert found == {expected.name: expected for expected in policy.kept}
    everything = [*policy.kept, *policy.split]
    totals = manifest.totals
    assert totals.iterations == sum(expected.iterations for expected in everything)
    assert totals.top_up_iterations == sum(max(0, one.iterations - one.planned) for one in everything)
    assert totals.split_groups == len(policy.split)
    assert (manifest.images, manifest.required) == (len(UNSEEN), -(-(2 * required - 7) * len(UNSEEN) // 60))
    assert manifest.tuning == ManifestTuning(30, required, 29)
    for chip in manifest.chips:
        assert chip.passes == (chip.correct >= manifest.required)
        tuned = chip.tuning_correct
        assert tuned >= required if chip.group == AS_IS else tuned == found[chip.group].correct
    # By hand: 6x6 outputs of 1x9x4, 3x3 of two groups 8x3, and 54x3.
    assert manifest.work == ManifestWork(36 * 36 + 9 * 2 * 24 + 162, 0)
    assert unit(folder, AS_IS)["iterations"] == 0
    assert Manifest.load(folder / OUT / "manifest.json") == manifest
    assert Plan.load(folder / OUT / "plan.json").as_dict() == plan.as_dict()


@pytest.mark.parametrize(
    ("mitigation", "aligned", "predictor"),
    [("fap+t", False, "faulty_pes"), ("fam+t", False, "weights"), ("fam+bn+t", True, "pruned")],
)
def test_every_chip_runs_from_the_files_alone(
    folder: Path, seed: int, mitigation: str, aligned: bool, predictor: str
) -> None:
    setup = small_setup(folder, mitigation=mitigation, learn_scales=True)
    random = np.random.default_rng(seed)
    chips = random_chips(seed, [0.1, 0.3, 0.2, 0.1, 0.05])
    chips[1] = with_broken_accumulators(chips[1], int(random.integers(4)))
    chips[2] = replace(chips[2], bypass=random.random((5, 4)) < 0.1)
    groups = {"group-0001": ([2, 0, 1], 2), "group-0002": ([3], 1), AS_IS: ([4], 0)}
    plan = planned(folder, chips, groups, setup=setup, aligned=aligned, predictor=predictor)
    manifest = carried_out(folder, plan)
    check_files(manifest, folder / OUT)
    outputs = {}
    for found in manifest.chips:
        chip = chips_of(folder)[found.id]
        assert found.digest == chip.digest()
        assert found.faulty_pes == chip.faults.faulty_pes().sum()
        on_emulation = logits(folder / OUT, manifest, found, chip, "emulation", HELD_OUT.images)
        stepped = logits(folder / OUT, manifest, found, chip, "cycle", HELD_OUT.images[:3])
        assert torch.equal(stepped, on_emulation[:3])
        assert found.tuning_correct == int((on_emulation.argmax(1) == HELD_OUT.labels).sum())
        on_unseen = logits(folder / OUT, manifest, found, chip, "emulation", UNSEEN.images)
        assert found.correct == int((on_unseen.argmax(1) == UNSEEN.labels).sum())
        assert found.at_least == at_least(found.correct, len(UNSEEN))
        assert (found.cycle_images, found.cycle_same) == (2, True)
        outputs[found.id] = on_emulation
        own = chip.faults.required_bypass() | (False if chip.bypass is None else chip.bypass)
        assert found.bypassed_pes == own.sum() or (not aligned and found.bypassed_pes > own.sum())
    assert torch.equal(outputs["chip-0"], outputs["chip-1"])
    assert torch.equal(outputs["chip-0"], outputs["chip-2"])
    by_name = manifest.group_named
    assert {chip.id: chip.tuning_correct for chip in manifest.chips if chip.group != AS_IS} == {
        chip: group.tuning_correct for group in manifest.groups for chip in group.chips if group.name != AS_IS
    }
    assert [by_name[name].iterations for name in ("group-0001", "group-0002", AS_IS)] == [2, 1, 0]


def test_what_just_meets_it_on_tuning_images_is_kept_and_others_judge(folder: Path) -> None:
    """With a drop of 0: chips that do just as well as is asked for on tuning images, and worse than that on others."""
    chips = random_chips(1, [0.3, 0.2, 0.25])
    groups = {"group-0001": ([0, 1], 1), AS_IS: ([2], 0)}
    drop: dict[str, Any] = {"constraint": Constraint(max_drop=0.0), "budget": 1}
    first = carried_out(folder, planned(folder, chips, groups), "first")
    for name in ("group-0001", AS_IS):
        tuned = next(chip.tuning_correct for chip in first.chips if chip.group == name)
        plan = planned(folder, chips, groups, required=tuned, **drop)
        manifest = carried_out(folder, records.replace(plan, fault_free_correct=tuned), name)
        assert name in manifest.group_named
        # The original network gets 36 of the 40 right.
        assert (manifest.required, manifest.fault_free_correct) == (36, 36)
        assert {chip.passes for chip in manifest.chips if chip.group == name} == {False}


def test_a_drop_is_from_the_original_network_on_verification_images(folder: Path) -> None:
    setup = records.replace(small_setup(folder, calibration="mse"), hardened=folder / "hardened.safetensors")
    torch.manual_seed(1)
    save_file(small_network().state_dict(), folder / "hardened.safetensors")
    plan = SimpleNamespace(setup=setup, identity=setup.identity())
    config = ArrayConfig(5, 4, weight_bits=2, act_bits=2)
    found = measure_fault_free((plan, config)).values  # type: ignore[arg-type]
    original = setup.original.load()
    quantised = convert(original.network, config, original.data.calibration, method="mse")
    assert found["correct"] == count_correct(quantised, UNSEEN)
    assert found["images"] == UNSEEN.digest


def test_retraining_that_diverges_is_counted_and_fails(folder: Path) -> None:
    setup = small_setup(folder, recipe=replace(RECIPE, learning_rate=1e38))
    plan = planned(folder, random_chips(1, [0.2, 0.2]), {"group-0001": ([0, 1], 6)}, setup=setup, required=30)
    manifest = carried_out(folder, plan)
    assert [(group.name, group.iterations) for group in manifest.groups] == [("group-0001-a", 0), ("group-0001-b", 0)]
    assert not manifest.passing
    spent = [unit(folder, name)["spent"] for name in ("group-0001", "group-0001-a", "group-0001-b")]
    assert all(1 <= count < 6 for count in spent)
    assert (manifest.totals.iterations, manifest.totals.split_groups) == (sum(spent), 1)
    assert manifest.totals.top_up_iterations == sum(spent[1:])


def test_chips_without_a_column_in_common_are_split_at_once(folder: Path) -> None:
    chips = random_chips(2, [0.1, 0.1, 0.1])
    chips[:2] = [with_broken_accumulators(chips[0], 0, 1), with_broken_accumulators(chips[1], 2, 3)]
    plan = planned(folder, chips, {"group-0001": ([0, 1, 2], 2)})
    manifest = carried_out(folder, plan)
    assert [(group.name, group.iterations) for group in manifest.groups] == [("group-0001-a", 0), ("group-0001-b", 0)]
    assert (manifest.totals.iterations, manifest.totals.split_groups, manifest.passing) == (0, 1, 3)
    setup = small_setup(folder, mitigation="fam+t")
    aligned = planned(
        folder, chips, {"group-0001": ([0, 1], 2), AS_IS: ([2], 0)}, setup=setup, aligned=True, predictor="pruned"
    )
    assert [group.name for group in carried_out(folder, aligned, "aligned").groups] == [AS_IS, "group-0001"]


@pytest.mark.parametrize("config", [ARRAY, ArrayConfig(80, 70)])
def test_chips_without_faults_and_a_lot_of_one(folder: Path, config: ArrayConfig) -> None:
    chips = [Chip("only one", FaultMap(config))]
    as_is = carried_out(folder, planned(folder, chips, {AS_IS: ([0], 0)}, required=1))
    retrained = carried_out(folder, planned(folder, chips, {"group-0001": ([0], 3)}), "retrained")
    assert [(group.name, group.severity, group.iterations) for group in as_is.groups] == [(AS_IS, 0, 0)]
    assert [(group.name, group.iterations) for group in retrained.groups] == [("group-0001", 3)]
    for manifest in (as_is, retrained):
        assert [(chip.id, chip.bypassed_pes, chip.tuning_correct) for chip in manifest.chips] == [
            ("only one", 0, manifest.groups[0].tuning_correct)
        ]


def test_progress_tells_of_each_unit(folder: Path) -> None:
    plan = planned(folder, random_chips(5, [0.1, 0.2]), {"group-0001": ([0], 1), AS_IS: ([1], 0)})
    seen: list[tuple[str, int, int]] = []
    carried_out(folder, plan, progress=lambda *told: seen.append(told))
    assert seen[:2] == [("reading chips", done, 2) for done in (1, 2)]
    assert seen[2:] == [
        (what, done, 1)
        for what in (
            "the network without faults",
            "weights as they are",
            "chips as they are",
            "groups",
            "chips verified",
        )
        for done in (0, 1)
    ]


def test_a_network_and_data_that_are_objects_give_the_same(folder: Path) -> None:
    chips, groups = random_chips(1, [0.2, 0.1]), {"group-0001": ([0], 2), AS_IS: ([1], 0)}
    files = small_setup(folder)
    network = small_network()
    network.load_state_dict(trained_weights())
    objects = Setup(network, data=(TRAIN, HELD_OUT), mitigation="fap+t", recipe=RECIPE, split=files.split)
    in_files, in_objects = (planned(folder, chips, groups, setup=setup) for setup in (files, objects))
    expected = carried_out(folder, in_files)
    found = retrain_lot(in_objects, folder / "objects", lot=str(folder / LOT), resilience=str(folder / TABLE))
    assert [chip.correct for chip in found.chips] == [chip.correct for chip in expected.chips]
    assert str(found).splitlines()[2].split()[:4] == ["as-is", "1", "0", "0"]
    assert found._repr_html_().count("<tr>") == 1 + len(found.groups)
    again = Manifest.load(folder / "objects" / "manifest.json")
    assert again.table() == found.table()
    with pytest.raises(InputError, match="was given as an object in Python, which no file holds"):
        retrain_lot(folder / "objects" / "plan.json", folder / "objects", lot=folder / LOT, resilience=folder / TABLE)
