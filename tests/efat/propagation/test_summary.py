"""What is summed up of a propagation campaign, and what the command shows of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from efat import records
from efat.propagation.statistics import wilson
from efat.propagation.summary import Propagation, summary
from efat.propagation.tables import FaultTables, PopulationCounts
from simulator.errors import InputError
from tests.support.propagation import REQUEST, propagations, small_propagation
from training.injection.replay import OUTCOMES, PATTERNS


def of_file(found: FaultTables, confidence: float = 0.95) -> Any:
    """The summary as the file has it."""
    return json.loads(json.dumps(summary(found, confidence).as_dict(), allow_nan=False))


SMALL = of_file(small_propagation())
INTERVALS = ("active", "critical", "scores_changed", "avf", "sdc5")
LISTS = ("by_site", "by_kind", "by_site_and_kind", "by_bit")


def test_effects_of_stuck_weights_worked_by_hand() -> None:
    """Two of twelve were tried: one changes the class of one image of four, the other one nothing."""
    (weight,) = [entry for entry in SMALL["by_site"] if entry["site"] == "WEIGHT"]
    assert (weight["faults"], weight["population"]) == (2, 12)
    assert weight["outcomes"] == {"inactive": 5, "masked": 1, "benign": 1, "top1": 1, "top5": 0}
    assert weight["shares"] == {"inactive": 0.625, "masked": 0.125, "benign": 0.125, "top1": 0.125, "top5": 0}
    # Without replacement, two of twelve are worth 2 * 11 / 10.
    assert weight["critical"] == as_json(wilson(0.5, 2.2, 0.95))
    assert weight["active"] == weight["critical"]
    assert (weight["avf"]["value"], weight["scores_changed"]["value"]) == (0.125, 0.25)
    assert weight["sdc5"] == as_json(wilson(0, 2.2, 0.95))
    lost = weight["accuracy_lost"]
    assert (lost["value"], lost["worst"]) == (0.125, 0.25)
    assert lost["low"] < 0.125 < lost["high"]


def as_json(interval: Any) -> Any:
    return pytest.approx(interval.as_dict(), abs=1e-9)


def test_strata_count_by_their_sizes() -> None:
    """Each of the weights stands for 6 faults, and the upset for 9600."""
    overall = SMALL["overall"]
    assert (overall["faults"], overall["population"]) == (3, 9615)
    assert overall["avf"]["value"] == pytest.approx((6 * 0.25 + 9600) / 9612)
    assert overall["critical"]["value"] == pytest.approx((6 + 9600) / 9612)
    assert overall["shares"]["inactive"] == pytest.approx((6 * 0.25 + 6) / 9612)
    # Only of what stays.
    assert overall["accuracy_lost"]["value"] == 0.125
    simple = of_file(small_propagation(request=records.replace(REQUEST, stratify=False)), 0.95)
    assert simple["overall"]["avf"]["value"] == pytest.approx((0.25 + 1) / 3)


def test_a_stratum_of_which_nothing_was_tried_is_unknown() -> None:
    (untried,) = [entry for entry in SMALL["by_bit"] if entry["site"] == "ACCUMULATOR"]
    assert (untried["bit"], untried["faults"], untried["population"]) == (0, 0, 3)
    assert all(untried[name] is None for name in (*INTERVALS, "accuracy_lost"))
    assert untried["shares"] == dict.fromkeys(OUTCOMES)
    (upset,) = [entry for entry in SMALL["by_kind"] if entry["kind"] == "FLIP"]
    assert upset["accuracy_lost"] is None


def test_layers_worked_by_hand() -> None:
    first, second = SMALL["layers"]
    assert (first["layer"], first["groups"], first["m"], first["k"], first["n"]) == ("conv", 1, 4, 3, 2)
    counts = {name: first[name] for name in ("images_in", "images_acted", "images_out", "outputs_changed")}
    assert counts == {"images_in": 0, "images_acted": 3, "images_out": 3, "outputs_changed": 6}
    assert first["patterns"] == {"single": 1, "column": 2, "row": 0, "block": 0, "all": 0}
    assert first["pattern_shares"] == {**dict.fromkeys(PATTERNS, 0), "single": 1 / 3, "column": 2 / 3}
    # 6 of 3 times 8 accumulators, by 2 each; on 3 of 4 images of the first of the weights.
    assert (first["outputs_share"], first["mean_error"], first["largest_error"]) == (0.25, 2, 4)
    assert first["reached"]["value"] == pytest.approx(6 * 0.75 / 9612)
    assert second["patterns"] == {"single": 1, "column": 0, "row": 1, "block": 0, "all": 1}
    assert second["pattern_shares"]["row"] == pytest.approx(9600 / 9612)
    assert second["mean_error"] == pytest.approx((6 * 20 + 9600 * 64) / (6 * 4 + 9600 * 2))
    assert second["outputs_share"] == pytest.approx((6 * 4 + 9600 * 2) / (3 * 9612))
    assert second["largest_error"] == 32


def test_masking_worked_by_hand() -> None:
    kinds = {entry["kind"]: entry for entry in SMALL["masking"]["by_kind"]}
    assert list(kinds) == ["quantise", "multiply", "relu"]
    assert (kinds["relu"]["images_in"], kinds["relu"]["images_masked"]) == (3, 1)
    assert kinds["relu"]["masked_share"] == pytest.approx(1 / 3)
    assert (kinds["quantise"]["masked_share"], kinds["quantise"]["rounded_share"]) == (0, 0.25)
    # The upset acts where no difference arrived.
    assert (kinds["multiply"]["images_in"], kinds["multiply"]["images_out"]) == (2, 6)
    assert kinds["multiply"]["masked_share"] == 0.5
    layers = [(entry["layer"], entry["kind"], entry["images_in"]) for entry in SMALL["masking"]["by_layer"]]
    assert layers[:2] == [(None, "quantise", 0), ("conv", "quantise", 2)]
    assert layers[2:] == [("conv", "multiply", 0), ("conv", "relu", 3), ("fc", "multiply", 2)]
    first = SMALL["masking"]["by_operation"][0]
    assert (first["operation"], first["layer"], first["masked_share"]) == ("conv", None, None)


def test_what_is_known_of_the_population() -> None:
    assert SMALL["population"]["faults"] == 9615
    assert SMALL["population"]["strata"] == 3
    assert SMALL["population"]["rules"]["unused"] == {"faults": 600, "share": 600 / 9615}
    assert SMALL["sample"]["rules"]["unused"] == {"faults": 1, "share": 1 / 3}
    assert SMALL["fault_free"] == {"correct": 3, "accuracy": 0.75}


@settings(max_examples=15)
@given(propagations())
def test_numbers_fit_each_other(found: Propagation) -> None:
    of_all = of_file(found, 0.9)
    overall = of_all["overall"]
    for name in LISTS:
        assert sum(entry["faults"] for entry in of_all[name]) == overall["faults"] == len(found.faults)
        assert sum(entry["population"] for entry in of_all[name]) == overall["population"]
        for outcome in OUTCOMES:
            assert sum(entry["outcomes"][outcome] for entry in of_all[name]) == overall["outcomes"][outcome]
    for entry in [overall, *(entry for name in LISTS for entry in of_all[name])]:
        if not entry["faults"]:
            assert entry["avf"] is None
            continue
        assert sum(entry["shares"].values()) == pytest.approx(1)
        for interval in [entry[name] for name in INTERVALS]:
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        assert entry["sdc5"]["value"] <= entry["avf"]["value"] <= entry["scores_changed"]["value"] + 1e-9
        assert entry["avf"]["value"] <= entry["critical"]["value"] + 1e-9 <= entry["active"]["value"] + 2e-9
        if entry["accuracy_lost"] is not None:
            lost = entry["accuracy_lost"]
            assert -1 <= lost["low"] <= lost["value"] <= lost["high"] <= 1
            assert lost["value"] <= lost["worst"] + 1e-9
    for layer in of_all["layers"]:
        assert sum(layer["patterns"].values()) == layer["images_out"]
        assert not layer["images_out"] or sum(layer["pattern_shares"].values()) == pytest.approx(1)


@settings(max_examples=15)
@given(propagations())
def test_of_all_faults_everything_is_known(found: Propagation) -> None:
    """A population that is all in the sample, whichever way it was drawn."""
    strata = found.strata.copy()
    strata["population"] = strata["sampled"]
    faults = found.faults.copy()
    faults["index"], faults["same_as"] = np.arange(len(faults)), -1
    whole = replace(found, faults=faults, strata=strata, population=PopulationCounts(len(faults), len(faults), 0, 0, 0))
    simple = replace(whole, request=records.replace(REQUEST, stratify=False))
    of_all, of_simple = of_file(whole, 0.95), of_file(simple, 0.95)
    for name in LISTS:
        for entry, other in zip(of_all[name], of_simple[name], strict=True):
            for interval in [entry[name] for name in INTERVALS if entry["faults"]]:
                assert interval["low"] == interval["value"] == interval["high"]
            assert other == entry
    if len(faults):
        expected = (faults["top1"].astype(float) + faults["top5"]) / faults["images"]
        assert of_all["overall"]["avf"]["value"] == pytest.approx(expected.mean())


def test_a_confidence_that_cannot_be() -> None:
    with pytest.raises(InputError, match="confidence is 95"):
        of_file(small_propagation(), 95)


def test_what_is_shown() -> None:
    text = str(small_propagation())
    assert "digits-cnn on 4x3 PEs, 4 images: 3 of 9,615 faults tried" in text
    lines = [line.split() for line in text.splitlines()]
    (weight,) = [line for line in lines if line[:1] == ["weight"]]
    low, high = (f"{100 * SMALL['by_site'][0]['critical'][end]:.1f}" for end in ("low", "high"))
    assert weight[:4] == ["weight", "2", "50.0", f"({low}-{high})"]
    assert (weight[4], weight[6], weight[-1]) == ("12.5", "25.0", "12.50")
    # Nothing of the accumulator was tried.
    assert ["accumulator", "0"] in lines
    assert ["relu", "3", "33.3"] in lines
    (layer,) = [line for line in lines if line[:1] == ["conv"]]
    assert layer[-5:] == ["33.3", "66.7", "0.0", "0.0", "0.0"]
    assert "600 (6.2%)" in text
    assert text == repr(small_propagation())
    assert "<caption>What they do, in % (with 95 % intervals)</caption>" in small_propagation()._repr_html_()


@settings(max_examples=15)
@given(propagations())
def test_anything_can_be_shown(found: Propagation) -> None:
    text = str(found)
    assert f"{len(found.faults):,} of {found.population.size:,} faults" in text
