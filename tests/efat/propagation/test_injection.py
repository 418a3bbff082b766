"""Rounds of faults: what is injected, by however many units, and what is said of the faults that were not."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from efat.campaigns.campaign import Campaign, Outcome
from efat.campaigns.workers import in_line
from efat.propagation import injection
from efat.propagation.injection import WHERE, Found, Round
from efat.propagation.population import LayerShape, Population
from efat.propagation.tables import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE, Rule
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError
from training.injection.replay import LAYER_COUNTS, OPERATION_COUNTS, OUTCOMES

CONFIG = ArrayConfig(6, 5, acc_bits=16)
SHAPES = [LayerShape("one", 2, 3, 7, 4), LayerShape("two", 1, 1, 8, 3)]
IMAGES, OPERATIONS = 9, 5


class EveryThird:
    """Rules that prove nothing, in place of the exact ones: each for some faults."""

    def rules(self, faults: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """As `Collapse.rules`."""
        number = sum(faults[name].astype(np.int64) * factor for name, factor in (("row", 3), ("col", 5), ("bit", 7)))
        rule = np.array([Rule.SIMULATED, Rule.UNUSED, Rule.EQUIVALENT, Rule.SAME_VALUE, Rule.EQUIVALENT], np.uint8)
        rule = rule[number % 5]
        representative = faults.copy()
        representative["row"] = 0
        # Of another stratum; for every second one of one that nothing is drawn from.
        representative["bit"] = number % 2
        representative["site"] = np.where(number % 2, Site.WEIGHT_LOAD, Site.WEIGHT)
        return rule, representative


def gave(fault: np.void) -> tuple[dict[str, int], dict[int, list[int]], npt.NDArray[np.int64]]:
    """Outcomes, counts of layers and counts of operations: any, but always the same of a fault."""
    chance = np.random.default_rng([int(fault[name]) + 1 for name in WHERE])
    images = 1 if fault["image"] >= 0 else IMAGES
    outcomes = chance.multinomial(images, np.ones(5) / 5).tolist()
    columns = {"images": images, **dict(zip(OUTCOMES, outcomes, strict=True))}
    for name in ("correct_lost", "correct_gained", "first_layer", "last_layer"):
        columns[name] = int(chance.integers(0, 4))
    layers = {
        int(layer): chance.integers(1, 99, len(LAYER_COUNTS)).tolist() for layer in range(2) if chance.random() < 0.7
    }
    counts = chance.integers(0, 50, (OPERATIONS, len(OPERATION_COUNTS))) * (chance.random((OPERATIONS, 1)) < 0.6)
    return columns, layers, counts


def work(arguments: Mapping[str, Any]) -> Outcome:
    """Stands for `efat.propagation.injection.inject`."""
    faults, strata = arguments["faults"], arguments["strata"]
    rows = np.zeros(len(faults), FAULTS_DTYPE)
    layers, operations = [], np.zeros((strata.max() + 1, OPERATIONS, len(OPERATION_COUNTS)), np.int64)
    for place, fault in enumerate(faults):
        columns, of_layers, counts = gave(fault)
        for name in WHERE:
            rows[name][place] = fault[name]
        rows["index"][place] = rows["same_as"][place] = -1
        for name, value in columns.items():
            rows[name][place] = value
        layers += [(place, layer, *values) for layer, values in of_layers.items()]
        operations[strata[place]] += counts
    sums = [
        (stratum, operation, *operations[stratum, operation])
        for stratum, operation in zip(*np.nonzero(operations.any(2)), strict=True)
    ]
    tables = {
        "faults.npy": rows,
        "layers.npy": np.array(layers, LAYERS_DTYPE),
        "operations.npy": np.array(sums, OPERATIONS_DTYPE),
    }
    return Outcome({"faults": len(faults)}, {name: as_file(table) for name, table in tables.items()})


def as_file(table: npt.NDArray[Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, table)
    return written.getvalue()


def drawn(seed: int, kind: Kind = Kind.STUCK_AT_1, count: int = 120) -> tuple[Population, Round]:
    sites = (Site.WEIGHT, Site.PSUM, Site.ACCUMULATOR)
    strata = [(site, bit, kind) for site in sites for bit in range(site.bits(CONFIG))]
    population = Population(CONFIG, SHAPES, strata, IMAGES)
    indices = population.sample(count, seed)
    return population, Round.of(3, indices, population, EveryThird())  # type: ignore[arg-type]


def put_together(folder: Path, found: Round, population: Population) -> Found:
    campaign = Campaign(folder, "rounds", {})
    campaign.run(found.units({}, IMAGES), work, in_line)
    return found.found(campaign, IMAGES, len(population.sizes), OPERATIONS)


@pytest.mark.parametrize("kind", [Kind.STUCK_AT_1, Kind.FLIP])
def test_each_fault_has_what_was_found_of_it_or_of_the_one_that_stands_for_it(
    folder: Path, seed: int, kind: Kind
) -> None:
    population, found = drawn(seed, kind)
    together = put_together(folder / "one", found, population)
    faults = population.faults(found.indices)
    rules, representative = EveryThird().rules(faults)
    assert set(rules.tolist()) == set(Rule)
    assert together.faults["index"].tolist() == found.indices.tolist()
    assert np.array_equal(together.faults["rule"], rules)
    expected_layers = []
    expected_operations = np.zeros((len(population.sizes), OPERATIONS, len(OPERATION_COUNTS)), np.int64)
    for place, (fault, rule) in enumerate(zip(faults, rules.tolist(), strict=True)):
        row = together.faults[place]
        assert row[list(WHERE)].tolist() == fault.tolist()
        if rule in (Rule.UNUSED, Rule.SAME_VALUE):
            images = 1 if kind == Kind.FLIP else IMAGES
            assert (row["images"], row["inactive"], row["same_as"]) == (images, images, -1)
            assert row[["masked", "benign", "top1", "top5", "correct_lost", "correct_gained"]].tolist() == (0,) * 6
            assert (row["first_layer"], row["last_layer"]) == (-1, -1)
            continue
        instead = representative[place] if rule == Rule.EQUIVALENT else fault
        columns, layers, counts = gave(instead)
        assert {name: row[name] for name in columns} == columns
        expected_layers += [(place, layer, *values) for layer, values in layers.items()]
        expected_operations[found.strata[place]] += counts
        same_as = population.indices(representative[place : place + 1])[0] if rule == Rule.EQUIVALENT else -1
        assert row["same_as"] == same_as
        assert rule == Rule.SIMULATED or (same_as == -1) == (instead["site"] == Site.WEIGHT_LOAD)
    assert together.layers.tolist() == np.array(expected_layers, LAYERS_DTYPE).tolist()
    assert np.array_equal(together.operations, expected_operations)
    # Each once, and nothing that is not needed.
    wanted = {fault.tolist() for fault in faults[rules == Rule.SIMULATED]}
    wanted |= {fault.tolist() for fault in representative[rules == Rule.EQUIVALENT]}
    assert sorted(found.injected.tolist()) == sorted(wanted)


def test_the_number_of_units_does_not_matter(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    population, found = drawn(seed)
    expected = put_together(folder / "eight", found, population)
    assert len(found.units({}, IMAGES)) == injection.LEAST_UNITS
    count = len(found.injected)
    for number, (least, images, units) in enumerate(
        ((1, 10**9, 1), (10**9, 10**9, count), (1, 5 * IMAGES, -(-count // 5)))
    ):
        monkeypatch.setattr(injection, "LEAST_UNITS", least)
        monkeypatch.setattr(injection, "MOST_FAULT_IMAGES", images)
        cut = found.units({"subject": 1}, IMAGES)
        assert len(cut) == units
        assert all(unit.arguments["subject"] == 1 for unit in cut)
        again = put_together(folder / str(number), found, population)
        assert all(np.array_equal(one, other) for one, other in zip(again, expected, strict=True))
    population, flips = drawn(seed, Kind.FLIP)
    monkeypatch.setattr(injection, "MOST_UPSETS", 7)
    sizes = [len(unit.arguments["faults"]) for unit in flips.units({}, IMAGES)]
    assert (len(sizes), sum(sizes)) == (-(-len(flips.injected) // 7), len(flips.injected))
    assert max(sizes) <= 7


def test_a_round_in_which_nothing_acts_has_no_units(folder: Path, seed: int) -> None:
    population, found = drawn(seed)
    never = np.isin(found.rules, (Rule.UNUSED, Rule.SAME_VALUE))

    class Chosen(EveryThird):
        pass

    quiet = Round.of(0, found.indices[never], population, Chosen())  # type: ignore[arg-type]
    assert quiet.units({}, IMAGES) == []
    together = put_together(folder / "quiet", quiet, population)
    assert len(together.faults) == never.sum()
    assert len(together.layers) == together.operations.sum() == 0


def test_files_that_changed_since_are_refused(folder: Path, seed: int) -> None:
    population, found = drawn(seed)
    campaign = Campaign(folder / "out", "rounds", {})
    units = found.units({}, IMAGES)
    campaign.run(units, work, in_line)
    for file in ("faults.npy", "layers.npy", "operations.npy"):
        path = campaign.path(units[1].name, file)
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(InputError, match=f"{path} changed while this ran: run the same command again"):
            found.found(campaign, IMAGES, len(population.sizes), OPERATIONS)
        path.write_bytes(before)


def test_units_of_other_faults_are_done_again(folder: Path, seed: int) -> None:
    notes: list[str] = []
    for other in (seed, seed + 1):
        population, found = drawn(other)
        units = found.units({}, IMAGES)
        campaign = Campaign(folder / "out", "rounds", {}, notes.append)
        campaign.run(units, work, in_line)
        again = found.found(campaign, IMAGES, len(population.sizes), OPERATIONS)
        expected = put_together(folder / str(other), found, population)
        assert all(np.array_equal(one, other) for one, other in zip(again, expected, strict=True))
    assert len(notes) == len(units)
    assert all("was made from other faults" in note for note in notes)
