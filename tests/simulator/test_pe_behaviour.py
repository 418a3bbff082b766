"""PEs that do not multiply exactly: which they are, and what they make of every activation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.multipliers.multiplier import Multiplier, built_in, exact_products
from simulator.pe_behaviour import pe_products, rows_of_products
from simulator.pe_behaviour_kernel import EXACT, single_product
from tests.support.oracle import FaultyMultiplier
from tests.support.strategies import configs, fault_maps, table_multipliers

PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


def signed(pattern: int, bits: int) -> int:
    return pattern - (1 << bits) if pattern >> (bits - 1) else pattern


@st.composite
def chips(draw: st.DrawFn) -> FaultMap:
    return draw(fault_maps(draw(configs()), 50))


@settings(max_examples=80)
@given(faults=chips(), data=st.data())
def test_rows_are_those_of_the_oracle(faults: FaultMap, data: st.DataObject) -> None:
    config = faults.config
    products = pe_products(faults)
    of_pe = {
        place: [fault for fault in faults if fault.site == Site.MULTIPLIER and (fault.row, fault.col) == place]
        for place in np.ndindex(config.rows, config.cols)
    }
    rows, cols = np.nonzero(products.behaviour != EXACT)
    permanent = {place for place, listed in of_pe.items() if any(fault.kind in PERMANENT for fault in listed)}
    found = set(zip(rows.tolist(), cols.tolist(), strict=True))
    assert found == (permanent if config.multiplies_exactly else set(of_pe))
    assert products.any == bool(found)
    if not found:
        return
    weight = np.array([data.draw(st.integers(*config.weight_range)) for _ in found])
    table, row_of = rows_of_products(
        products, products.behaviour[rows, cols], weight, config.weight_bits, config.act_bits
    )
    assert table.dtype == np.int16
    assert table.shape[1] == 1 << config.act_bits
    codes = np.zeros(products.circuit.first_pin[-1], np.uint8)
    for place, w, row in zip(zip(rows.tolist(), cols.tolist(), strict=True), weight.tolist(), row_of, strict=True):
        stuck = [fault for fault in of_pe[place] if fault.kind in PERMANENT]
        flips = [fault for fault in of_pe[place] if fault.kind == Kind.FLIP]
        oracle, upset = FaultyMultiplier(config, stuck), FaultyMultiplier(config, of_pe[place])
        for pattern in {0, (1 << config.act_bits) - 1, data.draw(st.integers(0, (1 << config.act_bits) - 1))}:
            act = signed(pattern, config.act_bits) if config.act_signed else pattern
            assert table[row, pattern] == oracle.product(w, act, cycle=99)
            cycle = flips[0].cycle if flips else 99
            assert cycle is not None
            inverted = np.array([fault.bit for fault in flips if fault.cycle == cycle], np.int32)
            found_product = single_product(products, products.behaviour[place], inverted, w, act, codes)
            assert found_product == upset.product(w, act, cycle)
            assert not codes.any()


def test_pes_alike_share_a_row() -> None:
    config = ArrayConfig(4, 4)
    faults = [Fault(row, col, Site.MULTIPLIER, 100, Kind.STUCK_AT_1) for row in range(4) for col in range(3)]
    products = pe_products(FaultMap.from_faults(config, faults))
    assert len(products.first) == 2
    weight = np.array([5, 7] * 6)
    table, row_of = rows_of_products(products, products.behaviour[:, :3].ravel(), weight, 8, 8)
    assert len(table) == 2
    assert len(set(row_of.tolist())) == 2


def test_a_chip_without_such_faults_needs_no_multiplier() -> None:
    config = ArrayConfig(3, 3)
    products = pe_products(FaultMap.from_faults(config, [Fault(0, 0, Site.PRODUCT, 3, Kind.STUCK_AT_1)]))
    assert not products.any
    assert not len(products.circuit.gates)
    # An upset gate needs the gates, though no PE is faulty for good.
    upset = pe_products(FaultMap.from_faults(config, [Fault(0, 0, Site.MULTIPLIER, 3, Kind.FLIP, cycle=4)]))
    assert not upset.any
    assert len(upset.circuit.gates) == len(build_netlist("array", 8, 8).gates)


def test_of_several_tables_the_highest_location_s_holds() -> None:
    exact = exact_products(8, 8)
    tables = [np.full_like(exact, value) for value in (10, 20, 30)]
    config = ArrayConfig(2, 2, multiplier=Multiplier.from_tables("three", None, tables))
    places = [Fault(0, 0, Site.MULTIPLIER, location, Kind.STUCK_AT_1) for location in (2, 0)]
    places.append(Fault(1, 1, Site.MULTIPLIER, 1, Kind.STUCK_AT_0))
    products = pe_products(FaultMap.from_faults(config, places))
    assert products.behaviour[0, 1] == products.behaviour[1, 0] == EXACT
    table, row_of = rows_of_products(products, products.behaviour[[0, 1], [0, 1]], np.array([3, 3]), 8, 8)
    assert table[row_of, 77].tolist() == [30, 20]


@settings(max_examples=30)
@given(table_multipliers(4, 5, act_signed=False))
def test_a_multiplier_that_is_not_exact_makes_every_pe_look_its_products_up(multiplier: Multiplier) -> None:
    config = ArrayConfig(2, 3, 4, 5, act_signed=False, multiplier=multiplier)
    assert config.multiplies_exactly == multiplier.exact
    products = pe_products(FaultMap(config))
    assert (products.behaviour == (EXACT if multiplier.exact else 0)).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_arrays_know_their_multiplier(design: str) -> None:
    config = ArrayConfig(2, 2, 5, 6, act_signed=False, multiplier=design)
    assert config.pe_multiplier == built_in(design, 5, 6, act_signed=False)
    assert config.multiplies_exactly
    assert Site.MULTIPLIER.bits(config) == config.pe_multiplier.locations
    assert config.as_dict()["multiplier"] == design
