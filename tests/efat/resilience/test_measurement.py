"""Resilience tables: what is measured, the same wherever and however often it is interrupted, and what is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from efat.campaigns.campaign import Executor, Outcome, Unit, Work
from efat.campaigns.workers import in_line, processes
from efat.resilience.measurement import draw_picture, run_resilience
from efat.resilience.table import ResilienceTable, read_table, telling_levels
from efat.resilience.units import HardeningPlan, Resilience
from simulator import ArrayConfig, FaultMap, FaultModel, Kind, Site
from simulator.errors import InputError
from simulator.lots.chips import Chip
from tests.support import resilience
from tests.support.campaigns import WAYS, damage
from tests.support.networks import ARRAY
from tests.support.programs import children, contents
from tests.support.resilience import (
    HELD_OUT,
    LEVELS,
    OUT,
    RECIPE,
    small_network,
    small_resilience,
    small_setup,
)
from training.data.classification import count_correct
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.hardening import Hardening
from training.learning.retrain import retrain

PROGRAM = Path(resilience.__file__)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As units have; and networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(folder: Path, found: Resilience, executor: Executor = in_line) -> ResilienceTable:
    table = run_resilience(folder / OUT, found, executor)
    assert same(read_table(folder / OUT / "resilience.h5"), table)
    return table


def same(one: ResilienceTable, other: ResilienceTable) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rates", "levels", "correct"))
    predictors = all(np.array_equal(values, other.predictors[name]) for name, values in one.predictors.items())
    texts = all(getattr(one, name) == getattr(other, name) for name in ("array", "fault_model", "setup", "images"))
    return arrays and predictors and texts


def of_chips(found: Resilience, network: nn.Module, strategy: str) -> list[list[list[int]]]:
    """The same measured in another way: a retraining of its own for each level, which is its last."""
    data = found.setup.load().data
    return [
        [
            [
                retrain(
                    network,
                    found.chip(rate, repeat),
                    data,
                    level,
                    mitigations=strategy,
                    recipe=replace(RECIPE, seed=found.recipe_seed(rate, repeat)),
                )
                .evaluations[-1]
                .correct
                for level in found.levels
            ]
            for repeat in range(found.repeats)
        ]
        for rate in range(len(found.rates))
    ]


@pytest.mark.parametrize("mitigation", ["fap+t", "fam+t"])
def test_levels_are_those_of_shorter_retrainings(folder: Path, seed: int, mitigation: str) -> None:
    broken = {Site.WEIGHT: 2.0, Site.ACTIVATION: 0.2, Site.PSUM: 1.0}
    model = FaultModel(0.0, sites=broken, pattern="clustered")
    found = small_resilience(folder, setup=small_setup(folder, mitigation=mitigation), model=model, seed=seed)
    table = measured(folder, found)
    network, data, *_ = found.setup.load()
    assert table.correct.tolist() == of_chips(found, network, mitigation)
    fault_free = convert(network, ARRAY, data.calibration, accelerator=Accelerator.fault_free(ARRAY))
    assert table.float_correct == count_correct(network, HELD_OUT)
    assert table.fault_free_correct == table.start_correct == count_correct(fault_free, HELD_OUT)
    assert (table.images, table.seed, table.harden_iterations) == (len(HELD_OUT), seed, 0)
    assert table.iterations_spent == 4 * LEVELS[-1]
    assert table.setup.identity() == table.setup_identity == found.setup.identity()


def test_predictors_say_how_bad_a_chip_is(folder: Path, seed: int) -> None:
    sites = {Site.PRODUCT: 1.0, Site.WEIGHT_LOAD: 0.3}
    found = small_resilience(folder, model=FaultModel(0.0, sites=sites), seed=seed, levels=(0,))
    predictors = measured(folder, found).predictors
    network = found.setup.load().network
    layers = [module.weight.detach() for module in network if isinstance(module, nn.Conv2d | nn.Linear)]
    for place in found.places:
        faults = found.chip(*place).faults
        lost, gone, shares = faults.required_bypass(), 0, []
        for layer, groups in zip(layers, (1, 2, 1), strict=True):
            outputs, inputs = np.indices((len(layer), layer[0].numel()))
            mask = torch.from_numpy(lost[inputs % ARRAY.rows, outputs % (len(layer) // groups) % ARRAY.cols])
            squares = layer.flatten(1).double() ** 2
            gone += int(mask.sum())
            shares.append(float(squares[mask].sum() / squares.sum()))
        # In order, what is pruned is what sits on bypassed PEs.
        share = gone / sum(layer.numel() for layer in layers)
        assert predictors["weights"][place] == predictors["pruned"][place] == pytest.approx(share)
        assert predictors["saliency"][place] == pytest.approx(np.mean(shares), abs=0.01)
        assert predictors["faulty_pes"][place] == len(faults) / 20 == round(20 * found.rates[place[0]]) / 20


def test_where_less_is_lost_less_is_pruned(folder: Path) -> None:
    tables = []
    for mitigation in ("fap+t", "fam+t"):
        setup = small_setup(folder, mitigation=mitigation)
        tables.append(run_resilience(folder / mitigation[:3], small_resilience(folder, setup=setup), in_line))
    in_order, mapped = (table.predictors for table in tables)
    assert (mapped["weights"] == in_order["weights"]).all()
    assert (mapped["saliency"] < in_order["saliency"]).all()


def test_a_hardened_network_is_where_retraining_starts(folder: Path) -> None:
    found = small_resilience(folder, hardening=HardeningPlan(4, 0.1, 0.3))
    table = measured(folder, found)
    weights = folder / OUT / "units" / "hardened.safetensors"
    network, data, *_ = found.setup.load()
    mitigations = Mitigations((Bypass(), Hardening(0.1, 0.3)), retrains=True)
    expected = retrain(network, Chip("none", FaultMap(ARRAY)), data, 4, mitigations=mitigations, recipe=RECIPE).weights
    hardened = load_file(weights)
    assert list(hardened) == sorted(network.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in hardened.items())
    assert not torch.equal(hardened["0.weight"], network.state_dict()["0.weight"])
    start = small_network()
    start.load_state_dict(hardened)
    assert table.setup.hardened == weights
    assert table.setup_identity["network"] != found.setup.identity()["network"]
    fault_free = convert(start, ARRAY, data.calibration, accelerator=Accelerator.fault_free(ARRAY))
    assert table.start_correct == count_correct(fault_free, HELD_OUT)
    original = convert(network, ARRAY, data.calibration, accelerator=Accelerator.fault_free(ARRAY))
    assert table.fault_free_correct == count_correct(original, HELD_OUT)
    assert table.correct.tolist() == of_chips(found, start, "fap+t")
    assert (table.harden_iterations, table.iterations_spent) == (4, 4 + 4 * LEVELS[-1])
    # Elsewhere it is found again.
    (folder / OUT).rename(folder / "moved")
    assert run_resilience(folder / "moved", found, in_line).setup.hardened == (folder / "moved/units" / weights.name)
    # Weights that are gone are made again, and others are not used.
    hardened_again = folder / "moved/units" / weights.name
    content = hardened_again.read_bytes()
    hardened_again.unlink()
    notes: list[str] = []
    run_resilience(folder / "moved", found, in_line, None, notes.append)
    assert notes == [f"{folder}/moved/units/hardened.json does not fit its files: done again"]
    assert hardened_again.read_bytes() == content

    def change(work: Work, units: Sequence[Unit]) -> Iterable[tuple[Unit, Outcome]]:
        hardened_again.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return in_line(work, units)

    with pytest.raises(InputError, match=r"hardened.safetensors changed while this ran: run the same command again"):
        run_resilience(folder / "moved", found, change)


def test_retraining_that_diverges_is_marked(folder: Path) -> None:
    found = small_resilience(folder, setup=small_setup(folder, recipe=replace(RECIPE, learning_rate=1e38)))
    table = measured(folder, found)
    assert (table.correct[..., 0] >= 0).all()
    assert (table.correct[..., -1] == -1).all()
    assert np.isnan(table.accuracy[..., -1]).all()
    with pytest.raises(InputError, match=r"hardening diverged in iteration .*: use a smaller learning rate"):
        run_resilience(folder / "hard", replace(found, hardening=HardeningPlan(3)), in_line)


class Interrupted(Exception):  # noqa: N818
    """Stands for everything that can end a program."""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
@pytest.mark.slow
def test_interrupted_and_with_workers_killed_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    found = small_resilience(folder, seed=seed)
    undisturbed = run_resilience(folder / "undisturbed", found, in_line)
    before, kills = set(children()), []

    def disturb(done: int, of: int) -> None:
        assert of == found.unit_count == 5
        if done == 2 and not kills:
            time.sleep(random.Random(seed).uniform(0, 0.3))
            kills.extend(set(children()) - before)
            os.kill(max(kills), signal.SIGKILL)
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_resilience(folder / "disturbed", found, processes(1), disturb)
    assert kills
    assert sorted(contents(folder / "disturbed/units")) == sorted(contents(folder / "undisturbed/units"))[:7]
    seen: list[tuple[int, int]] = []
    again = run_resilience(folder / "disturbed", found, in_line, lambda *progress: seen.append(progress))
    assert seen == [(4, 5), (5, 5)]
    assert same(again, undisturbed)
    assert contents(folder / "disturbed") == contents(folder / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
def test_drivers_killed_at_random_moments_lose_nothing(folder: Path, seed: int) -> None:
    found = small_resilience(folder, repeats=6)
    run_resilience(folder / "undisturbed", found, in_line)
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    units = folder / OUT / "units"
    for kill in (True, True, False):
        there = len(contents(units))
        driver = subprocess.Popen([sys.executable, str(PROGRAM), str(folder), "2"], env=environment)
        while kill and driver.poll() is None and len(contents(units)) <= there:
            time.sleep(0.01)
        if kill:
            time.sleep(chance.uniform(0, 0.3))
            driver.kill()
        assert driver.wait(300) in ((0, -signal.SIGKILL) if kill else (0,))
    assert contents(folder / OUT) == contents(folder / "undisturbed")


def test_what_is_done_is_not_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small_resilience(folder)
    table = measured(folder, found)
    before = contents(folder / OUT)
    monkeypatch.setattr("efat.resilience.units.PreparedRetraining", None)
    assert same(measured(folder, small_resilience(folder)), table)
    # A table that is damaged or gone is put together anew from the units.
    path = folder / OUT / "resilience.h5"
    for spoil in (lambda: path.write_bytes(b"precious"), path.unlink):
        spoil()
        measured(folder, found)
        assert contents(folder / OUT) == before
    for changes, what in (({"model": FaultModel(0.0)}, "fault model"), ({"config": ArrayConfig(6, 4)}, "array")):
        with pytest.raises(InputError, match=f"was begun with another {what}: choose another folder"):
            run_resilience(folder / OUT, small_resilience(folder, **changes), in_line)  # type: ignore[arg-type]


@pytest.mark.parametrize("hardening", [None, HardeningPlan(2)])
def test_progress_is_told_up_to_the_end_and_each_unit_once(folder: Path, hardening: HardeningPlan | None) -> None:
    found, seen = small_resilience(folder, repeats=1, hardening=hardening), []
    run_resilience(folder / OUT, found, in_line, lambda *progress: seen.append(progress))
    assert seen == [(done, found.unit_count) for done in range(found.unit_count + 1)]


def test_a_table_of_the_version_before_stays_if_it_says_the_same(folder: Path) -> None:
    measured(folder, small_resilience(folder))
    path = folder / OUT / "resilience.h5"
    with h5py.File(path, "r+") as file:
        del file.attrs["digest"]
        file.attrs["version"] = 2
    older = path.read_bytes()
    measured(folder, small_resilience(folder))
    assert path.read_bytes() == older
    with h5py.File(path, "r+") as file:
        file.attrs["float_correct"] = file.attrs["float_correct"] - 1
    measured(folder, small_resilience(folder))
    with h5py.File(path) as file:
        assert file.attrs["version"] == 3


def test_units_that_are_damaged_are_done_again(folder: Path, seed: int) -> None:
    found = small_resilience(folder, repeats=1, hardening=HardeningPlan(2))
    measured(folder, found)
    before = contents(folder / OUT)
    chance, notes = random.Random(seed), []
    for way in WAYS:
        done = damage(folder / OUT / "units", chance, way)
        (folder / OUT / "resilience.h5").unlink()
        run_resilience(folder / OUT, found, in_line, None, notes.append)
        assert contents(folder / OUT) == before, done
        assert notes, done
        notes.clear()


def test_weights_that_change_on_the_way_are_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small_resilience(folder)
    weights = folder / "inputs" / "weights.safetensors"

    def change(done: int, _: int) -> None:
        if done == 1:
            # Weights of other bits, as somebody else's training might write them at any time.
            content = weights.read_bytes()
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(InputError, match="network or data are not those that this was begun with"):
        run_resilience(folder / OUT, found, in_line, change)


def test_chips_are_the_same_whatever_else_is_measured(folder: Path, seed: int) -> None:
    setup = small_setup(folder)
    sites = {Site.PSUM: 1.0, Site.WEIGHT: 2.0, Site.PRODUCT: 0.0}
    kinds = {Kind.STUCK_AT_1: 1.0, Kind.STUCK_AT_0: 3.0}
    one = small_resilience(folder, setup=setup, model=FaultModel(0.3, sites=sites, kinds=kinds), seed=seed)
    backwards = FaultModel(0.0, sites=dict(reversed(sites.items())), kinds=dict(reversed(kinds.items())))
    other = small_resilience(folder, setup=setup, model=backwards, seed=seed, rates=(0.0, 0.1, 0.2, 0.3), repeats=3)

    def drawn(found: Resilience) -> dict[str, tuple[str, int]]:
        return {
            found.chip_id(*place): (found.chip(*place).faults.digest(), found.recipe_seed(*place))
            for place in found.places
        }

    assert len(set(drawn(one).values())) == 4
    assert drawn(one).items() <= drawn(other).items()
    assert len({other.recipe_seed(*place) for place in other.places}) == 12
    assert one.inputs()["fault model"] == other.inputs()["fault model"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": ()}, "rates are none: expected one or more"),
        ({"rates": (0.1, 0.1)}, "rates have 0.1 before 0.1: expected them in ascending order"),
        ({"rates": (0.1, 1.1)}, r"rates have 1.1: expected 0\.\.1"),
        ({"rates": (float("nan"),)}, "rates have nan"),
        ({"levels": (5, 10)}, "the first level is 5 iterations: expected 0"),
        ({"levels": (0, 10, 5)}, "levels have 10 before 5"),
        ({"repeats": 0}, "repeats is 0: expected 1 or more"),
        ({"repeats": 5001}, "2 rates, 5001 repeats and 3 levels: expected at most 10000 chips"),
        ({"seed": -1}, "seed is -1"),
        ({"model": FaultModel(0.0, kinds={Kind.FLIP: 1.0}, cycles=9)}, "the random chips have flips"),
        ({"rates": (0.02, 0.1)}, "rate 0.02 of 20 PEs is not one PE: give a higher rate"),
        ({"model": FaultModel(0.0, sites={Site.ACCUMULATOR: 1.0}), "rates": (1.0,)}, "none of the 4 columns"),
        ({"model": FaultModel(0.0, bits={Site.WEIGHT: [1.0] * 9})}, "9 bit weights for WEIGHT: its net has 8 bits"),
        ({"config": ArrayConfig(5, 4, act_signed=False)}, "activations are unsigned"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small_resilience(folder, **changes).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [(0,), (5, 0.3, 0.1), (5, -0.1, 0.1), (5, 0.0, 1.5)])
def test_hardening_that_cannot_be_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        HardeningPlan(*arguments)


def test_a_picture_is_drawn_of_any_table(folder: Path, seed: int) -> None:
    table = measured(folder, small_resilience(folder, levels=(0,), rates=(0.1,), repeats=1))
    draw_picture(folder / OUT, table)
    plain = (folder / OUT / "resilience.png").read_bytes()
    assert plain.startswith(b"\x89PNG")
    chance = np.random.default_rng(seed)
    correct = chance.integers(0, 30, (3, 2, 12))
    correct[1, :, 3:] = -1
    correct[2, 0, 5:] = -1
    wide = replace(
        table,
        rates=np.array([0.001, 0.01, 0.1]),
        levels=np.arange(12) ** 2,
        correct=correct,
        predictors={"weights": chance.random((3, 2))},
        harden_iterations=9,
    )
    draw_picture(folder / OUT, wide)
    assert (folder / OUT / "resilience.png").read_bytes() != plain


@given(st.sets(st.integers(1, 10**6), max_size=40), st.integers(2, 12))
def test_a_few_levels_stand_for_all(positive: set[int], most: int) -> None:
    levels = [0, *sorted(positive)]
    chosen = telling_levels(levels, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(most, len(levels))
    assert (chosen[0], chosen[-1]) == (0, len(levels) - 1)
