"""Propagation campaigns: what is found, the same wherever and however often it is interrupted, and what is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efat
from efat.campaigns.campaign import Executor
from efat.campaigns.workers import in_line, processes
from efat.propagation import campaign, injection
from efat.propagation.campaign import draw_rounds, run_propagation
from efat.propagation.population import Population
from efat.propagation.statistics import mean_interval
from efat.propagation.summary import Propagation, PropagationSummary
from efat.propagation.tables import Rule
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.errors import InputError
from tests.support import propagation
from tests.support.campaigns import WAYS, damage
from tests.support.programs import children, contents
from tests.support.propagation import ARRAY, Asked, same, small_request, small_subject
from tests.support.resilience import HELD_OUT, OUT, TRAIN, small_network, trained_weights
from training.injection.replay import OUTCOMES
from training.layers.accelerator import Accelerator
from training.layers.convert import put_on_chip

PROGRAM = Path(propagation.__file__)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As units have; and networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(folder: Path, request: Asked, executor: Executor = in_line, out: str = OUT) -> Propagation:
    propagation = run_propagation(folder / out, *request, executor)
    assert same(Propagation.load(folder / out), propagation)
    assert PropagationSummary.load(folder / out / "summary.json") == propagation.summary
    return propagation


def on_faulty_chip(request: Asked, row: np.void) -> list[tuple[bool, int]]:
    """The whole network on a chip with one fault: for each image whether scores change, and the class."""
    loaded = request.load()
    fault = Fault(row["row"], row["col"], Site(row["site"]), row["bit"], Kind(row["kind"]))
    config = request.array
    before = loaded.network(loaded.images)
    try:
        put_on_chip(loaded.network, Accelerator(config, FaultMap.from_faults(config, [fault])))
        after = loaded.network(loaded.images)
    finally:
        put_on_chip(loaded.network, Accelerator.fault_free(config))
    return list(zip((before != after).any(1).tolist(), after.argmax(1).tolist(), strict=True))


def test_outcomes_are_those_of_whole_networks_on_faulty_chips(folder: Path, seed: int) -> None:
    # With columns that no layer uses, and multipliers that are not too large for a test.
    array = ArrayConfig(7, 6, 5, 4, acc_bits=16)
    request = small_request(
        folder, array=array, sites=[site.name for site in Site], seed=seed, samples=300, stratify=False
    )
    propagation = found(folder, request)
    loaded = request.load()
    labels, clean = loaded.labels.numpy(), loaded.network(loaded.images).argmax(1).numpy()
    assert propagation.images == len(labels) == 6
    assert propagation.fault_free_correct == (labels == clean).sum()
    faults = propagation.faults
    assert len(faults) == 300
    # Some of each rule, as a whole run takes some milliseconds.
    chance = np.random.default_rng(seed)
    chosen = np.concatenate([chance.permutation(np.nonzero(faults["rule"] == rule)[0])[:15] for rule in Rule])
    assert set(faults["rule"][chosen].tolist()) == set(Rule)
    for row in faults[chosen]:
        scores, classes = (np.array(part) for part in zip(*on_faulty_chip(request, row), strict=True))
        same_class = classes == clean
        # With three classes, the new one is always among the five best.
        outcomes = (~scores).sum(), (scores & same_class).sum(), (~same_class).sum(), 0
        assert (row["inactive"] + row["masked"], row["benign"], row["top1"], row["top5"]) == outcomes
        assert row["correct_lost"] == ((clean == labels) & (classes != labels)).sum()
        assert row["correct_gained"] == ((clean != labels) & (classes == labels)).sum()
    # What stands for another fault, and is in the sample, has the same outcomes.
    places = {index: place for place, index in enumerate(faults["index"].tolist())}
    for row in faults[faults["rule"] == Rule.EQUIVALENT]:
        if row["same_as"] in places:
            other = faults[places[int(row["same_as"])]]
            assert row[list(OUTCOMES)] == other[list(OUTCOMES)]


def test_a_network_and_data_of_ones_own_are_as_those_in_files(folder: Path) -> None:
    network = small_network()
    network.load_state_dict(trained_weights())
    options: dict[str, Any] = {"images": 6, "sites": ["psum"], "samples": 40, "seed": 3}
    named = efat.propagate("named", small_subject(folder).network, ARRAY, **files(folder), **options)
    own = efat.propagate("own", network, ARRAY, data=(TRAIN, HELD_OUT), **options)
    of_setup = efat.propagate("setup", efat.Setup(network, data=(TRAIN, HELD_OUT)), ARRAY, **options)
    assert np.array_equal(own.faults, named.faults)
    assert same(of_setup, own)
    assert str(own).splitlines()[0].startswith("Sequential on ")
    again = efat.Propagation.load("own")
    assert same(again, own)
    assert PropagationSummary.load("own/summary.json") == again.summary
    with pytest.raises(InputError, match="data is given beside a setup, which says it: leave it out"):
        efat.propagate("other", efat.Setup(network, data=(TRAIN, HELD_OUT)), ARRAY, data=(TRAIN, HELD_OUT))
    with pytest.raises(InputError, match="was given as an object in Python, which no file holds"):
        again.subject.load(ARRAY)


def files(folder: Path) -> dict[str, Any]:
    subject = small_subject(folder)
    return {"weights": subject.weights, "data": subject.data}


def test_upsets_are_of_one_image_each(folder: Path, seed: int) -> None:
    request = small_request(folder, sites=["PSUM", "ACTIVATION"], kinds=["FLIP"], seed=seed)
    faults = found(folder, request).faults
    assert len(faults) == 150
    assert set(faults["images"].tolist()) == {1}
    assert set(faults["image"].tolist()) == set(range(6))
    assert set(faults["layer"].tolist()) == {0, 1, 2}


def test_interrupted_anywhere_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    request = small_request(folder, seed=seed)
    undisturbed = found(folder, request, out="undisturbed")
    total = len(list((folder / "undisturbed/units").glob("*.json")))
    stop = random.Random(seed).randrange(total + 1)

    def interrupt(done: int, _: int) -> None:
        if done == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_propagation(folder / OUT, *request, in_line, interrupt)
    assert len(list((folder / OUT / "units").glob("*.json"))) == stop
    seen: list[tuple[int, int]] = []
    again = run_propagation(folder / OUT, *request, in_line, lambda *progress: seen.append(progress))
    assert seen[-1] == (total, total)
    assert len(seen) == 2 + total - stop
    assert same(again, undisturbed)
    assert contents(folder / OUT) == contents(folder / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
def test_interrupted_and_with_workers_killed_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    request = small_request(folder, seed=seed)
    undisturbed = run_propagation(folder / "undisturbed", *request, in_line)
    before, kills = set(children()), []

    def disturb(done: int, of: int) -> None:
        if done == 3 and not kills:
            time.sleep(random.Random(seed).uniform(0, 0.1))
            kills.extend(set(children()) - before)
            os.kill(max(kills), signal.SIGKILL)
        if done == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_propagation(folder / "disturbed", *request, processes(1), disturb)
    assert kills
    assert len(list((folder / "disturbed/units").glob("*.json"))) == 6
    seen: list[tuple[int, int]] = []
    again = run_propagation(folder / "disturbed", *request, in_line, lambda *progress: seen.append(progress))
    assert seen == [(1, 1), (6, 9), (7, 9), (8, 9), (9, 9)]
    assert same(again, undisturbed)
    assert contents(folder / "disturbed") == contents(folder / "undisturbed")


@pytest.mark.slow
def test_drivers_killed_at_random_moments_lose_nothing(folder: Path, seed: int) -> None:
    run_propagation(folder / "undisturbed", *small_request(folder, samples=600), in_line)
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    units = folder / OUT / "units"
    for kill in (True, True, False):
        there = len(contents(units))
        driver = subprocess.Popen([sys.executable, str(PROGRAM), str(folder), "2"], env=environment)
        while kill and driver.poll() is None and len(contents(units)) <= there:
            time.sleep(0.01)
        if kill:
            time.sleep(chance.uniform(0, 0.5))
            driver.kill()
        assert driver.wait(300) in ((0, -signal.SIGKILL) if kill else (0,))
    assert contents(folder / OUT) == contents(folder / "undisturbed")


def test_the_number_of_units_does_not_matter(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    request = small_request(folder, samples=60, seed=seed, stratify=False)
    expected = found(folder, request)
    monkeypatch.setattr(injection, "LEAST_UNITS", 1)
    monkeypatch.setattr(injection, "MOST_FAULT_IMAGES", 6 * 17)
    again = found(folder, request, out="again")
    assert len(list((folder / "again/units").glob("*.json"))) != len(list((folder / OUT / "units").glob("*.json")))
    assert same(again, expected)


def test_with_a_margin_it_ends_as_soon_as_the_interval_is_narrow_enough(
    folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "FIRST_ROUND", 10)
    bits = {"WEIGHT": [4], "PSUM": [4, 12]}
    request = small_request(folder, bits=bits, margin=0.1, confidence=0.9, seed=seed)
    propagation = found(folder, request)
    network = list(propagation.layer_shapes)
    population = Population(ARRAY, network, request.request.strata(ARRAY), 6)
    drawn = draw_rounds(population, request.request)
    assert len(drawn) > 1
    critical = dict(zip(propagation.faults["index"].tolist(), propagation.faults["top1"] > 0, strict=True))
    tried: list[int] = []
    for indices in drawn:
        tried += indices.tolist()
        strata = population.stratum_of(np.array(tried))
        weights = (np.array(population.sizes) / np.bincount(strata))[strata]
        values = [critical[index] for index in tried]
        interval = mean_interval(values, 0.9, weights=weights, population=population.size)
        if max(interval.high - interval.value, interval.value - interval.low) <= 0.1:
            break
    assert propagation.faults["index"].tolist() == sorted(tried)
    overall = propagation.summary.overall.critical
    assert overall is not None
    assert (overall.low, overall.high) == pytest.approx((interval.low, interval.high))
    after: list[int] = []
    run_propagation(folder / OUT, *request, in_line, None, lambda so_far: after.append(so_far.overall.faults))
    assert after == np.cumsum([len(indices) for indices in drawn]).tolist()[: len(after)]
    assert after[-1] == len(tried)


def test_all_faults_leave_nothing_to_chance(folder: Path) -> None:
    propagation = found(folder, small_request(folder, sites=["PSUM"], bits={"PSUM": [13]}, exhaustive=True))
    assert propagation.faults["index"].tolist() == list(range(2 * ARRAY.pe_count))
    critical = propagation.summary.overall.critical
    assert critical is not None
    assert critical.low == critical.value == critical.high
    assert critical.value == pytest.approx((propagation.faults["top1"] > 0).mean())


def test_what_is_done_is_not_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = small_request(folder)
    propagation = found(folder, request)
    before = contents(folder / OUT)
    for name in ("inject", "fault_free"):
        monkeypatch.setattr(f"efat.propagation.campaign.{name}", None)
    assert same(found(folder, small_request(folder)), propagation)
    # Tables that are damaged or gone are put together anew from the units.
    for name in ("propagation.h5", "summary.json"):
        path = folder / OUT / name
        for spoil in (lambda path=path: path.write_bytes(b"precious"), path.unlink):
            spoil()
            found(folder, request)
            assert contents(folder / OUT) == before


def test_other_inputs_are_refused_by_name(folder: Path) -> None:
    found(folder, small_request(folder, samples=40, stratify=False))
    before = contents(folder / OUT)
    for changes, what in (
        ({"samples": 41, "stratify": False}, "number of faults"),
        ({"seed": 4, "samples": 42}, "number of faults, seed"),
        ({"sites": ["PSUM"], "samples": 40, "stratify": False}, "sites"),
        ({"samples": 40, "stratify": False, "kinds": ["FLIP"]}, "kinds"),
        ({"samples": 40, "stratify": False, "bits": {"PSUM": [1]}}, "bits"),
        ({"samples": 40, "stratify": False, "array": replace(ARRAY, rows=6)}, "array"),
        ({"samples": 40, "stratify": False, "subject": small_subject(folder, images=5)}, "images"),
    ):
        with pytest.raises(InputError, match=f"was begun with another {what}: choose another folder"):
            run_propagation(folder / OUT, *small_request(folder, **changes), in_line)
    assert contents(folder / OUT) == before


def test_what_cannot_be_tried_is_refused_before_anything_is_written(folder: Path) -> None:
    for changes, message in (
        ({"samples": 10_000}, "samples is 10000: the population has 840 faults"),
        ({"samples": 9}, "samples is 9: the population has 42 strata"),
        ({"subject": small_subject(folder, images=31)}, "images is 31"),
    ):
        with pytest.raises(InputError, match=message):
            run_propagation(folder / OUT, *small_request(folder, **changes), in_line)
        assert not (folder / OUT).exists()


def test_units_that_are_damaged_are_done_again(folder: Path, seed: int) -> None:
    request = small_request(folder, samples=40, stratify=False)
    found(folder, request)
    before = contents(folder / OUT)
    chance, notes = random.Random(seed), []
    for way in WAYS:
        done = damage(folder / OUT / "units", chance, way)
        (folder / OUT / "propagation.h5").unlink()
        run_propagation(folder / OUT, *request, in_line, None, None, notes.append)
        assert contents(folder / OUT) == before, done
        assert notes, done
        notes.clear()


def test_weights_that_change_on_the_way_are_noticed(folder: Path) -> None:
    request = small_request(folder)
    weights = folder / "inputs" / "weights.safetensors"

    def change(done: int, _: int) -> None:
        if done == 2:
            # Weights of other bits, as somebody else's training might write them at any time.
            content = weights.read_bytes()
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(InputError, match="network or data are not those that this was begun with"):
        run_propagation(folder / OUT, *request, in_line, change)


class Interrupted(Exception):  # noqa: N818
    """Stands for everything that can end a program."""
