"""What a PE multiplies with: exact products, tables, gates, and the errors of tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import InputError
from simulator.gates.designs import build_netlist
from simulator.gates.netlist import MOST_LOCATIONS, netlist_products
from simulator.multipliers.multiplier import (
    DESIGNS,
    Multiplier,
    TableErrors,
    built_in,
    exact_products,
    table_errors,
)
from tests.support import netlist_cases
from tests.support.netlist_cases import netlists


def exact_by_python(weight_bits: int, act_bits: int, *, act_signed: bool) -> list[list[int]]:
    weights = [w - (1 << weight_bits) * (w >> (weight_bits - 1)) for w in range(1 << weight_bits)]
    acts = [a - (1 << act_bits) * (a >> (act_bits - 1)) * act_signed for a in range(1 << act_bits)]
    return [[weight * act for act in acts] for weight in weights]


def test_exact_products_are_exact() -> None:
    for weight_bits, act_bits, act_signed in product(range(2, 9), range(2, 9), (False, True)):
        found = exact_products(weight_bits, act_bits, act_signed=act_signed)
        assert found.dtype == np.int16
        assert found.tolist() == exact_by_python(weight_bits, act_bits, act_signed=act_signed)
    # The largest product of signed operands, and the ends of the range with unsigned activations.
    assert exact_products(8, 8)[0x80, 0x80] == 128 * 128
    assert exact_products(8, 8, act_signed=False)[0x80, 0xFF] == -128 * 255


@given(netlists())
def test_products_of_gates_are_those_of_the_oracle(netlist: netlist_cases.Netlist) -> None:
    found = netlist_products(netlist)
    assert found.shape == (1 << netlist.weight_bits, 1 << netlist.act_bits)
    assert found.ravel().tolist() == netlist_cases.products(netlist)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


def test_unsigned_products_of_gates_use_all_their_bits() -> None:
    netlist = build_netlist("wallace", 8, 8, weight_signed=False, act_signed=False)
    assert netlist_products(netlist)[255, 255] == 255 * 255


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("act_signed", [False, True])
def test_built_in_multipliers_are_exact_while_nothing_is_broken(design: str, act_signed: bool) -> None:
    multiplier = built_in(design, 7, 4, act_signed=act_signed)
    assert multiplier.exact
    assert (multiplier.weight_bits, multiplier.act_bits, multiplier.act_signed) == (7, 4, act_signed)
    assert multiplier.netlist is not None
    assert multiplier.locations == multiplier.netlist.locations
    assert multiplier.location_name(0) == multiplier.netlist.location_name(0) == "gate 0 AND output"
    assert multiplier.products.dtype == np.int16
    assert repr(multiplier) == f"Multiplier('{design}', 7x4 bits, {multiplier.locations} locations)"


def test_a_table_stands_for_all_pes_or_for_the_faulty_ones() -> None:
    exact = exact_products(4, 3, act_signed=False)
    truncated = exact & ~3
    for_all = Multiplier.from_tables("truncated", truncated, [], act_signed=False)
    assert (for_all.weight_bits, for_all.act_bits, for_all.locations, for_all.exact) == (4, 3, 0, False)
    assert np.array_equal(for_all.products, truncated)
    for_faulty = Multiplier.from_tables("truncated", None, [truncated, exact + 1], act_signed=False)
    assert (for_faulty.locations, for_faulty.exact) == (2, True)
    assert for_faulty.tables is not None
    assert np.array_equal(for_faulty.tables, np.stack([exact, truncated, exact + 1]))
    assert for_faulty.location_name(1) == "table 2"
    with pytest.raises(ValueError, match="location 2: multiplier truncated has 2"):
        for_faulty.location_name(2)


def test_tables_cannot_be_changed_from_outside() -> None:
    table = exact_products(3, 3)
    multiplier = Multiplier.from_tables("exact", table, [])
    table[0, 0] = 5
    assert multiplier.exact
    with pytest.raises(ValueError, match="read-only"):
        multiplier.products[0, 0] = 1


def test_equal_multipliers_are_equal_whatever_their_names() -> None:
    exact = exact_products(4, 4)
    one = Multiplier.from_tables("one", exact, [])
    assert one == Multiplier.from_tables("two", exact, [])
    assert hash(one) == hash(Multiplier.from_tables("two", exact, []))
    assert one != "one"
    gates = built_in("array", 4, 4)
    assert gates == Multiplier("mine", build_netlist("array", 4, 4))
    # A table says where faults can sit, too: it is not the gates that give it.
    others = [
        Multiplier.from_tables("one", exact, [exact]),
        Multiplier.from_tables("one", exact.reshape(8, 32), []),
        Multiplier.from_tables("one", exact, [], act_signed=False),
        Multiplier.from_tables("one", exact ^ 1, []),
        gates,
        built_in("dadda", 4, 4),
    ]
    assert len({one, *others}) == 7


def test_what_is_no_multiplier_is_refused() -> None:
    exact = exact_products(4, 4)
    netlist = build_netlist("array", 4, 4)
    with pytest.raises(ValueError, match="multiplier m: expected either gates or tables"):
        Multiplier("m")
    with pytest.raises(ValueError, match="multiplier m: expected either gates or tables"):
        Multiplier("m", netlist, exact[None])
    with pytest.raises(ValueError, match="activations signed=True: expected signed weights and act_signed=False"):
        Multiplier("m", netlist, act_signed=False)
    with pytest.raises(ValueError, match=r"weights signed=False .*expected signed weights"):
        Multiplier("m", build_netlist("array", 4, 4, weight_signed=False))
    with pytest.raises(InputError, match="no table is given"):
        Multiplier.from_tables("m", None, [])
    with pytest.raises(InputError, match=r"tables are \[\(4, 4\), \(16, 16\)\]: expected the same two sides for all"):
        Multiplier.from_tables("m", exact, [exact_products(2, 2)])
    with pytest.raises(InputError, match=r"tables are \[\(4, 0\)\]: expected the same two sides"):
        Multiplier.from_tables("m", None, [np.zeros((4, 0), np.int16)])
    with pytest.raises(InputError, match="multiplier m: tables: setting an array element with a sequence"):
        Multiplier("m", tables=[exact[0], exact])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tables",
    [
        np.zeros((1, 16, 16), np.int32),
        np.zeros((16, 16), np.int16),
        np.zeros((0, 16, 16), np.int16),
        np.zeros((1, 12, 16), np.int16),
        np.zeros((1, 2, 16), np.int16),
        np.zeros((1, 16, 512), np.int16),
        np.zeros((1, 0, 16), np.int16),
        np.zeros((MOST_LOCATIONS + 1, 4, 4), np.int16),
    ],
    ids=lambda tables: f"{tables.dtype}{tables.shape}",
)
def test_tables_of_wrong_shapes_are_refused(tables: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected int16 \[tables, 2\*\*weight_bits, 2\*\*act_bits\]"):
        Multiplier("m", tables=tables)


@pytest.mark.parametrize("outside", [-129, 128])
def test_products_that_do_not_fit_are_refused(outside: int) -> None:
    table = exact_products(4, 4)
    table[3, 5] = outside
    with pytest.raises(ValueError, match=rf"multiplier m: a table holds {outside}: expected -128\.\.127"):
        Multiplier.from_tables("m", table, [])


@given(st.lists(st.tuples(st.integers(-2000, 2000), st.integers(-2000, 2000)), min_size=4, max_size=4))
def test_errors_are_those_of_their_definition(pairs: list[tuple[int, int]]) -> None:
    table = np.array([given for given, _ in pairs], np.int16).reshape(2, 2)
    exact = np.array([expected for _, expected in pairs], np.int16).reshape(2, 2)
    distances = [abs(given - expected) for given, expected in pairs]
    assert table_errors(table, exact) == TableErrors(
        mean_absolute=sum(distances) / 4,
        worst_case=max(distances),
        probability=sum(distance > 0 for distance in distances) / 4,
        mean=sum(given - expected for given, expected in pairs) / 4,
    )


def test_errors_of_the_extremes_do_not_wrap() -> None:
    table = np.full((256, 256), -(1 << 15), np.int16)
    errors = table_errors(table, np.full((256, 256), (1 << 15) - 1, np.int16))
    assert errors == TableErrors(65535.0, 65535, 1.0, -65535.0)
