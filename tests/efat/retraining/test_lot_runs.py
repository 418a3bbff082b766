"""Carrying out a plan: interrupted anywhere it ends as if undisturbed; what is done stays, what changed is refused."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efat import records
from efat.campaigns.campaign import Elapsed, Outcome
from efat.image_split import SplitRequest
from efat.planning.plan import AS_IS, Plan
from efat.retraining import lot as retraining
from efat.retraining.lot import ChipTask, VerificationError
from efat.retraining.manifest import Manifest
from simulator.errors import InputError
from simulator.lots.chips import write_lot
from tests.support import retrained_lots
from tests.support.campaigns import WAYS, damage
from tests.support.networks import ARRAY
from tests.support.programs import children, contents, started
from tests.support.resilience import RECIPE, UNSEEN, small_setup
from tests.support.retrained_lots import LOT, OUT, PLAN, TABLE, carried_out, planned, random_chips

PROGRAM = Path(retrained_lots.__file__)
RESULTS = ("units", "weights", "chips", "plan.json", "resilience.h5", "campaign.json")


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def lot_plan(folder: Path, seed: int, count: int = 3, **changes: Any) -> Plan:
    """A group of two bad chips, most likely split in the end, and a chip that is left as it is; or more chips."""
    chips = random_chips(seed, [0.3, 0.25, 0.02, 0.2, 0.3, 0.1][:count])
    groups = {"group-0001": ([0, 1], 2), AS_IS: ([2], 0)}
    if count > 3:
        groups["group-0002"] = (list(range(3, count)), 3)
    return planned(folder, chips, groups, **{"required": 27, **changes})


def results(out: Path) -> dict[str, bytes]:
    """All files but those with the time that it took."""
    return {name: content for name, content in contents(out).items() if name.startswith(RESULTS)}


def timeless(manifest: Manifest) -> Manifest:
    """The manifest but for the time that it took."""
    return records.replace(manifest, totals=records.replace(manifest.totals, seconds=0.0))


class Interrupted(Exception):  # noqa: N818
    """Stands for everything that can end a program."""


def test_interrupted_after_any_unit_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    plan = lot_plan(folder, seed)
    undisturbed = carried_out(folder, plan, "undisturbed")
    units = sum(name.endswith(".json") for name in contents(folder / "undisturbed/units"))
    stop = random.Random(seed).randrange(1, units + 1)
    done = 0

    def interrupt(what: str, finished: int, _of: int) -> None:
        nonlocal done
        done += what != "reading chips" and finished > 0
        if done == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        carried_out(folder, plan, progress=interrupt)
    assert not (folder / OUT / "manifest.json").exists()
    spent = Elapsed.load(folder / OUT / "elapsed.json").seconds
    manifest = carried_out(folder, plan)
    assert timeless(manifest) == timeless(undisturbed)
    assert results(folder / OUT) == results(folder / "undisturbed")
    assert manifest.totals.seconds >= spent > 0


@pytest.mark.integration
def test_killed_at_a_random_moment_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    plan = lot_plan(folder, seed)
    plan.save(folder / PLAN)
    undisturbed = carried_out(folder, plan, "undisturbed")
    driver = started(PROGRAM, folder, 0)
    while driver.poll() is None and not (folder / OUT / "campaign.json").exists():
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 1.5 * undisturbed.totals.seconds))
    driver.kill()
    assert driver.wait(60) in (0, -signal.SIGKILL)
    assert timeless(carried_out(folder, plan)) == timeless(undisturbed)
    assert results(folder / OUT) == results(folder / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
def test_with_drivers_and_workers_killed_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    plan = lot_plan(folder, seed, 6)
    plan.save(folder / PLAN)
    undisturbed = carried_out(folder, plan, "undisturbed")
    chance = random.Random(seed)
    for kill in (*["driver"] * 4, *["worker"] * 2, None):
        driver = started(PROGRAM, folder, 2)
        # Two workers, and the process with which Python looks after what they share.
        while kill is not None and driver.poll() is None and len(children(driver.pid)) < 3:
            time.sleep(0.01)
        if kill is not None:
            time.sleep(chance.uniform(0, 6))
            for victim in [driver.pid] if kill == "driver" else children(driver.pid)[-1:]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        assert driver.wait(300) in ((0, -signal.SIGKILL) if kill == "driver" else (0,))
    assert timeless(Manifest.load(folder / OUT / "manifest.json")) == timeless(undisturbed)
    assert results(folder / OUT) == results(folder / "undisturbed")


def test_what_is_done_is_not_done_again(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = lot_plan(folder, seed)
    manifest = carried_out(folder, plan)
    before = contents(folder / OUT)
    for work in ("retrain_group", "verify_chip"):
        monkeypatch.setattr(f"efat.retraining.lot.{work}", None)
    seen: list[tuple[str, int, int]] = []
    assert carried_out(folder, plan, progress=lambda *told: seen.append(told)) == manifest
    assert {what for what, _, _ in seen} >= {"reading chips", "groups", "chips verified"}
    assert all(done == of for what, done, of in seen if what != "reading chips")
    assert contents(folder / OUT) == before
    # What is put together from units is put together anew; the folder is enough for that, wherever it is.
    exported = folder / OUT / "chips/00001.safetensors"
    for path in (exported, folder / OUT / "manifest.json", folder / OUT / TABLE.replace("table", "resilience")):
        path.write_bytes(b"damaged")
        (folder / OUT / "elapsed.json").write_text("{")
        notes: list[str] = []
        assert timeless(carried_out(folder, plan, notes=notes.append)) == timeless(manifest)
        again = path.name.endswith(".safetensors")
        assert notes == [f"{path} is damaged, or another one: written again"] * again
        assert results(folder / OUT) == {name: content for name, content in before.items() if name.startswith(RESULTS)}
    again = carried_out(folder, plan, resilience=folder / OUT / "resilience.h5")
    assert timeless(again) == timeless(manifest)


def test_units_that_are_damaged_are_done_again(folder: Path, seed: int) -> None:
    plan = lot_plan(folder, seed)
    manifest = carried_out(folder, plan)
    before = results(folder / OUT)
    chance, notes = random.Random(seed), []
    for way in WAYS:
        done = damage(folder / OUT / "units", chance, way)
        (folder / OUT / "manifest.json").unlink()
        assert timeless(carried_out(folder, plan, notes=notes.append)) == timeless(manifest), done
        assert results(folder / OUT) == before, done
        assert notes, done
        notes.clear()


def test_chips_of_weights_that_were_made_again_are_verified_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder, random_chips(1, [0.1]), {"group-0001": ([0], 1)})
    carried_out(folder, plan)
    units = folder / OUT / "units"
    weights = units / "group-0001.weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-40] + bytes(40))
    other = replace(RECIPE, seed=9)
    genuine = retraining.PreparedRetraining
    monkeypatch.setattr(
        retraining, "PreparedRetraining", lambda *found, **given: genuine(*found, **{**given, "recipe": other})
    )
    notes: list[str] = []
    carried_out(folder, plan, notes=notes.append)
    assert notes == [
        f"{units}/group-0001.json does not fit its files: done again",
        f"{units}/chip-00000-verified.json was made from other weights: done again",
        f"{folder / OUT}/weights/group-0001.safetensors is damaged, or another one: written again",
    ]
    assert weights.read_bytes() != content


def test_chips_that_do_otherwise_than_their_group_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(folder, random_chips(1, [0.1]), {"group-0001": ([0], 1)})
    genuine = retraining.verify_chip
    for name, value, message in (
        ("cycle_same", False, "the cycle engine predicts otherwise"),
        ("tuning_correct", 0, "and group-0001, which"),
        ("correct", -1, r"chip-00000-verified.json: correct is -1: expected an integer from 0"),
    ):

        def verified(task: ChipTask, name: str = name, value: object = value) -> Outcome:
            found = genuine(task)
            return replace(found, values={**found.values, name: value})

        monkeypatch.setattr("efat.retraining.lot.verify_chip", verified)
        with pytest.raises((VerificationError, InputError), match=message):
            carried_out(folder, plan, f"{name}-{value}")


@pytest.mark.parametrize("cycle_images", [0, 2, 99])
def test_some_verification_images_run_on_the_cycle_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cycle_images: int
) -> None:
    plan = planned(folder, random_chips(1, [0.2]), {"group-0001": ([0], 1)})
    engines: list[str] = []
    genuine = retraining.network_on_chip

    def noted(network: Any, deployment: Any, chip: Any, engine: Any) -> Any:
        engines.append(engine)
        return genuine(network, deployment, chip, engine)

    monkeypatch.setattr(retraining, "network_on_chip", noted)
    (chip,) = carried_out(folder, plan, cycle_images=cycle_images).chips
    assert engines == ["emulation", "cycle"][: 1 + bool(cycle_images)]
    assert (chip.cycle_images, chip.cycle_same) == (min(cycle_images, len(UNSEEN)), True)


def test_files_that_change_on_the_way_are_not_used(folder: Path) -> None:
    plan = planned(folder, random_chips(1, [0.1]), {"group-0001": ([0], 1)})
    weights = folder / OUT / "units/group-0001.weights.safetensors"

    def change(stage: tuple[str, int]) -> Callable[[str, int, int], None]:
        def progress(what: str, done: int, _: int) -> None:
            if (what, done) == stage:
                weights.write_bytes(weights.read_bytes()[:-40] + bytes(40))

        return progress

    for stage in (("groups", 1), ("chips verified", 1)):
        with pytest.raises(InputError, match=r"group-0001.weights.safetensors changed while this ran: run the same"):
            carried_out(folder, plan, progress=change(stage))
        assert not (folder / OUT / "manifest.json").exists()
        assert not list((folder / OUT).glob("weights/*"))
        with pytest.warns(UserWarning, match=r"group-0001.json does not fit its files: done again"):
            assert carried_out(folder, plan).passing == 1
        shutil.rmtree(folder / OUT)


def test_another_plan_lot_or_folder_is_refused(folder: Path) -> None:
    plan = planned(folder, random_chips(1, [0.1, 0.0]), {"group-0001": ([0], 1), AS_IS: ([1], 0)})
    carried_out(folder, plan)
    np.savez(folder / "inputs" / "others.npz", images=UNSEEN.images[1:].numpy(), labels=UNSEEN.labels[1:].numpy())
    judges = small_setup(folder, split=SplitRequest(verify_data=folder / "inputs" / "others.npz"))
    for other, cycle_images, what in (
        (records.replace(plan, setup=judges), 2, "verification images"),
        (records.replace(plan, required=1), 2, "plan"),
        (records.replace(plan, step=3), 2, "plan"),
        (plan, 3, "cycle images"),
    ):
        with pytest.raises(InputError, match=f"out was begun with another {what}: choose another folder"):
            carried_out(folder, other, cycle_images=cycle_images)
    # Where files are is no matter.
    elsewhere = records.replace(
        plan, lot=records.replace(plan.lot, path="elsewhere"), resilience=records.replace(plan.resilience, path="there")
    )
    assert carried_out(folder, elsewhere).passing == 2
    (folder / "full").mkdir()
    (folder / "full/other.txt").write_text("precious")
    with pytest.raises(InputError, match="full has files in it and is no campaign: choose another folder"):
        carried_out(folder, plan, "full")
    # A run that was killed at its first file leaves a part of it.
    (folder / "begun").mkdir()
    (folder / "begun/.campaign.json.x1y2.json").write_text("{")
    assert carried_out(folder, plan, "begun").passing == 2
    (folder / TABLE).write_bytes(b"another table")
    with pytest.raises(InputError, match=r"table.h5 is not the table that the plan was made from: make the plan again"):
        carried_out(folder, plan)
    (folder / TABLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"table.h5: no such file; it is the table that the plan was made from"):
        carried_out(folder, plan)
    write_lot(folder / LOT, ARRAY, random_chips(2, [0.1, 0.0]))
    with pytest.raises(InputError, match=r"lot.h5 is not the lot that the plan was made from: make the plan again"):
        carried_out(folder, plan)


def test_plans_that_do_not_fit_are_refused(folder: Path) -> None:
    plan = planned(folder, random_chips(1, [0.1, 0.0]), {"group-0001": ([0], 1), AS_IS: ([1], 0)})
    group, as_is = plan.groups
    other_chips = records.replace(group, chips=("chip-0", "chip-2"))
    for other, message in (
        (records.replace(plan, groups=(group,)), "chip 'chip-1' is not in both .*lot.h5 and the plan"),
        (
            records.replace(plan, groups=(other_chips, as_is)),
            "chip 'chip-2' is not in both",
        ),
        (
            records.replace(plan, array=dataclasses.replace(plan.array, rows=6)),
            "the array of .*lot.h5 is not that of the plan",
        ),
        (records.replace(plan, aligned=True), "the plan aligns chips by predictor 'weights': make the plan again"),
    ):
        with pytest.raises(InputError, match=message):
            carried_out(folder, other)
    with pytest.raises(InputError, match="cycle images are -1: expected 0 or more"):
        carried_out(folder, plan, cycle_images=-1)
    with pytest.raises(InputError, match=r"for network '\S+:small_network', which is none of .* --network"):
        carried_out(folder, plan, network=None)
    with pytest.raises(InputError, match="the plan is for 29 tuning images, and there are 30"):
        carried_out(folder, records.replace(plan, images=29))
    assert not (folder / OUT).exists()


def test_weights_and_data_that_change_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(folder, random_chips(1, [0.1, 0.0]), {"group-0001": ([0], 1), AS_IS: ([1], 0)})
    weights = folder / "inputs/weights.safetensors"
    content = weights.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])

    def change(what: str, done: int, _: int) -> None:
        if (what, done) == ("chips as they are", 1):
            weights.write_bytes(changed)

    with pytest.raises(InputError, match=r"not those that this was begun with: they changed while it ran .network"):
        carried_out(folder, plan, progress=change)
    with pytest.raises(InputError, match="another network than resilience was measured with"):
        carried_out(folder, plan, "other")
    weights.write_bytes(content)
    assert carried_out(folder, plan).passing == 2


def test_chips_that_do_otherwise_than_their_group_are_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = small_setup(folder, mitigation="fam+t")
    chips = random_chips(4, [0.3, 0.3])
    plan = planned(folder, chips, {"group-0001": ([0, 1], 1)}, setup=setup, aligned=True, predictor="pruned")
    # As if places were mixed up on the way.
    genuine = retraining.bypass_of
    monkeypatch.setattr(retraining, "bypass_of", lambda chip: genuine(chips[0]))
    with pytest.raises(VerificationError, match=r"chip chip-1(: the cycle engine| classifies)"):
        carried_out(folder, plan)
