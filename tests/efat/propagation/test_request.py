"""What is asked of faults: the strata there are, what identifies a request, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efat.propagation.request import DEFAULT_KINDS, DEFAULT_SITES, PropagationRequest
from efat.records import typed
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError
from simulator.multipliers.multiplier import Multiplier, exact_products
from tests.support.propagation import ARRAY, small_request, small_subject

OTHER = ArrayConfig(6, 5, 4, 7, acc_bits=20)
OF_TABLE = ArrayConfig(6, 5, multiplier=Multiplier.from_tables("halved", exact_products(8, 8) // 2, []))


@given(st.data())
def test_strata_are_all_bits_of_all_sites_and_kinds_in_order(data: st.DataObject) -> None:
    sites = data.draw(st.lists(st.sampled_from(Site), min_size=1, max_size=9))
    kinds = data.draw(st.sampled_from([[Kind.FLIP], [Kind.STUCK_AT_1], [Kind.STUCK_AT_1, Kind.STUCK_AT_0] * 2]))
    named = data.draw(st.lists(st.sampled_from(sites), unique=True))
    bits = {site: data.draw(st.lists(st.integers(0, site.bits(OTHER) - 1), min_size=1)) for site in named}

    def request(sites: list[Site], kinds: list[Kind], order: int) -> PropagationRequest:
        return PropagationRequest(
            tuple(site.name for site in sites),
            tuple(kind.name.lower() for kind in kinds),
            {site.name: tuple(bits[site]) for site in list(bits)[::order]},
            samples=9,
        )

    found, other = request(sites, kinds, 1), request(sites[::-1], sorted(kinds), -1)
    expected = {
        (site, bit, kind)
        for site in sites
        for bit in range(site.bits(OTHER))
        for kind in kinds
        if bit in bits.get(site, [bit])
    }
    assert found.strata(OTHER) == sorted(expected)
    # In whatever order they are given.
    assert (other, other.strata(OTHER)) == (found, found.strata(OTHER))
    assert typed(PropagationRequest, json.loads(json.dumps(found.as_dict())), "here") == found


def test_multipliers_are_not_among_the_defaults() -> None:
    strata = PropagationRequest(exhaustive=True).strata(OTHER)
    assert {site for site, _, _ in strata} == set(Site) - {Site.MULTIPLIER} == set(DEFAULT_SITES)
    assert {kind for _, _, kind in strata} == set(DEFAULT_KINDS) == set(Kind) - {Kind.FLIP}
    assert len(strata) == 2 * (4 + 4 + 7 + 11 + 20 + 20)


def test_inputs_name_what_is_different(folder: Path) -> None:
    def inputs(**changes: Any) -> dict[str, Any]:
        subject, array, request = small_request(folder, **changes)
        return request.inputs(subject.identified(array), array)

    before = inputs()
    for changes, different in (
        ({}, []),
        ({"sites": ["PSUM"]}, ["sites"]),
        ({"kinds": ["FLIP"]}, ["kinds"]),
        ({"bits": {"PSUM": [3]}}, ["bits"]),
        ({"seed": 4}, ["seed"]),
        ({"samples": 151}, ["number of faults"]),
        ({"exhaustive": True}, ["number of faults"]),
        ({"margin": 0.1}, ["number of faults"]),
        ({"confidence": 0.9}, ["number of faults"]),
        ({"stratify": False}, ["number of faults"]),
        ({"subject": small_subject(folder, images=5)}, ["images"]),
        ({"array": replace(ARRAY, cols=5)}, ["array"]),
    ):
        found = inputs(**changes)
        assert set(found) == set(before)
        assert [name for name in before if found[name] != before[name]] == different


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": []}, "sites are none: expected one or more"),
        ({"sites": ["alu"]}, "'alu' is no site: expected one of weight, weight_load, activation, product, psum"),
        ({"kinds": ["stuck"]}, "'stuck' is no kind: expected one of stuck_at_0, stuck_at_1, flip"),
        ({"bits": {"WEIGHT": [0], "ALU": [0]}}, "'ALU' is no site"),
        ({"kinds": []}, "kinds are none: expected one or more"),
        ({"kinds": ["FLIP", "STUCK_AT_0"]}, "kinds are flip and stuck-at: .* one after the other"),
        ({"sites": ["PSUM"], "bits": {"PSUM": [20]}}, r"bits of psum have 20: expected 0\.\.19, as it has 20"),
        ({"sites": ["PSUM"], "bits": {"PSUM": [-1, 3]}}, r"bits of psum have -1: expected 0\.\.19"),
        ({"sites": ["WEIGHT"], "bits": {"WEIGHT": [4]}}, r"bits of weight have 4: expected 0\.\.3"),
        ({"sites": ["ACTIVATION"], "bits": {"ACTIVATION": []}}, r"bits of activation are none: .* 0\.\.6"),
        ({"sites": ["PSUM"], "bits": {"WEIGHT": [0]}}, "bits are given of weight, which is not among the sites"),
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
            {"array": OF_TABLE, "sites": ["MULTIPLIER"]},
            "multiplier halved is a table for all PEs and has no place for faults: leave out site multiplier",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    others = {name: value for name, value in changes.items() if name != "array"}
    with pytest.raises(InputError, match=message) as caught:
        PropagationRequest(**{"samples": 9, **others}).strata(changes.get("array", OTHER))
    assert "\n" not in str(caught.value)
