"""What is asked of faults: the strata there are, what identifies a request, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efat.propagation.request import DEFAULT_KINDS, DEFAULT_SITES, Request, Subject
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError
from simulator.multipliers.multiplier import Multiplier, exact_products
from tests.support.propagation_runs import ARRAY, small_request, small_subject

SUBJECT = Subject("digits-cnn", None, None, None, ArrayConfig(6, 5, 4, 7, acc_bits=20))
OF_TABLE = ArrayConfig(6, 5, multiplier=Multiplier.from_tables("halved", exact_products(8, 8) // 2, []))


@given(st.data())
def test_strata_are_all_bits_of_all_sites_and_kinds_in_order(data: st.DataObject) -> None:
    config = SUBJECT.config
    sites = data.draw(st.lists(st.sampled_from(Site), min_size=1, max_size=9))
    kinds = data.draw(st.sampled_from([[Kind.FLIP], [Kind.STUCK_AT_1], [Kind.STUCK_AT_1, Kind.STUCK_AT_0] * 2]))
    named = data.draw(st.lists(st.sampled_from(sites), unique=True))
    bits = {site: data.draw(st.lists(st.integers(0, site.bits(config) - 1), min_size=1)) for site in named}
    request = Request(SUBJECT, sites, kinds, bits, samples=9)
    expected = {
        (site, bit, kind)
        for site in sites
        for bit in range(site.bits(config))
        for kind in kinds
        if bit in bits.get(site, [bit])
    }
    assert request.strata == sorted(expected)
    assert request.transient == (Kind.FLIP in kinds)
    # In whatever order they are given.
    other = Request(SUBJECT, sites[::-1], sorted(kinds), dict(reversed(bits.items())), samples=9)
    assert (other.as_dict(), other.strata) == (request.as_dict(), request.strata)
    assert json.loads(json.dumps(request.as_dict())) == request.as_dict()


def test_multipliers_are_not_among_the_defaults() -> None:
    request = Request(SUBJECT, exhaustive=True)
    assert {site for site, _, _ in request.strata} == set(Site) - {Site.MULTIPLIER} == set(DEFAULT_SITES)
    assert {kind for _, _, kind in request.strata} == set(DEFAULT_KINDS) == set(Kind) - {Kind.FLIP}
    assert len(request.strata) == 2 * (4 + 4 + 7 + 11 + 20 + 20)


def test_inputs_name_what_is_different(folder: Path) -> None:
    def inputs(**changes: Any) -> dict[str, Any]:
        found = small_request(folder, **changes).inputs()
        assert json.loads(json.dumps(found)) == found
        return found

    before = inputs()
    for changes, different in (
        ({}, []),
        ({"sites": [Site.PSUM]}, ["sites"]),
        ({"kinds": [Kind.FLIP]}, ["kinds"]),
        ({"bits": {Site.PSUM: [3]}}, ["bits"]),
        ({"seed": 4}, ["seed"]),
        ({"samples": 151}, ["number of faults"]),
        ({"exhaustive": True}, ["number of faults"]),
        ({"margin": 0.1}, ["number of faults"]),
        ({"confidence": 0.9}, ["number of faults"]),
        ({"stratify": False}, ["number of faults"]),
        ({"subject": small_subject(folder, images=5)}, ["images"]),
        ({"subject": small_subject(folder, config=replace(ARRAY, cols=5))}, ["array"]),
    ):
        found = inputs(**changes)
        assert set(found) == set(before)
        assert [name for name in before if found[name] != before[name]] == different


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": []}, "sites are none: expected one or more"),
        ({"kinds": []}, "kinds are none: expected one or more"),
        ({"kinds": [Kind.FLIP, Kind.STUCK_AT_0]}, "kinds are flip and stuck-at: .* one after the other"),
        ({"sites": [Site.PSUM], "bits": {Site.PSUM: [20]}}, r"bits of psum have 20: expected 0\.\.19, as it has 20"),
        ({"sites": [Site.PSUM], "bits": {Site.PSUM: [-1, 3]}}, r"bits of psum have -1: expected 0\.\.19"),
        ({"sites": [Site.WEIGHT], "bits": {Site.WEIGHT: [4]}}, r"bits of weight have 4: expected 0\.\.3"),
        ({"sites": [Site.ACTIVATION], "bits": {Site.ACTIVATION: []}}, r"bits of activation are none: .* 0\.\.6"),
        ({"sites": [Site.PSUM], "bits": {Site.WEIGHT: [0]}}, "bits are given of weight, which is not among the sites"),
        ({"samples": None}, "expected just one of .*: none is given"),
        ({"exhaustive": True}, "expected just one of .*: several are given"),
        ({"margin": 0.1}, "expected just one of .*: several are given"),
        ({"samples": 0}, r"samples is 0: expected 1\.\."),
        ({"samples": 10**9}, r"samples is 1000000000: expected 1\.\."),
        *(({"samples": None, "margin": margin}, rf"margin is {margin}: expected a share") for margin in (0.0, 1.0)),
        *(({"confidence": value}, "confidence is .*: expected a share") for value in (-0.5, 0.0, 1.0, float("nan"))),
        ({"seed": -1}, r"seed is -1: expected 0\.\."),
        ({"seed": 2**63}, "seed is 9223372036854775808: expected"),
        (
            {"subject": replace(SUBJECT, config=OF_TABLE), "sites": [Site.MULTIPLIER]},
            "multiplier halved is a table for all PEs and has no place for faults: leave out site multiplier",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Request(**{"subject": SUBJECT, "samples": 9, **changes})
    assert "\n" not in str(caught.value)
