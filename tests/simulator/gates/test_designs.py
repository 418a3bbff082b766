"""Built-in multipliers: every design, width and signedness, on every pair of operands."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from simulator import InputError
from simulator.gates.cells import Gate
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.netlist import Netlist, netlist_products
from tests.support import netlist_cases


def number(pattern: int, bits: int, *, signed: bool) -> int:
    return pattern - (1 << bits) if signed and pattern >> (bits - 1) else pattern


def multiplied(netlist: Netlist) -> list[int]:
    """Products of all pairs, by Python."""
    weights = [number(w, netlist.weight_bits, signed=netlist.weight_signed) for w in range(1 << netlist.weight_bits)]
    acts = [number(a, netlist.act_bits, signed=netlist.act_signed) for a in range(1 << netlist.act_bits)]
    return [weight * act for weight in weights for act in acts]


@pytest.mark.parametrize("design", DESIGNS)
def test_every_width_multiplies_every_pair(design: str) -> None:
    for weight_bits, act_bits in product(range(1, 9), repeat=2):
        for weight_signed, act_signed in product((False, True), repeat=2):
            netlist = build_netlist(design, weight_bits, act_bits, weight_signed=weight_signed, act_signed=act_signed)
            found = netlist_products(netlist)
            assert found.shape == (1 << weight_bits, 1 << act_bits)
            assert found.ravel().tolist() == multiplied(netlist), (design, weight_bits, act_bits)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("act_signed", [False, True])
def test_the_oracle_multiplies_too(design: str, act_signed: bool) -> None:
    netlist = build_netlist(design, 5, 4, act_signed=act_signed)
    assert netlist_cases.products(netlist) == multiplied(netlist)


@pytest.mark.parametrize("design", DESIGNS)
def test_no_gate_is_idle_or_constant(design: str) -> None:
    for weight_bits, act_bits in product((2, 5, 8), repeat=2):
        netlist = build_netlist(design, weight_bits, act_bits)
        assert set(range(netlist.product_bits + len(netlist.gates))) == {
            *netlist.inputs[netlist.inputs >= 0].tolist(),
            *netlist.outputs.tolist(),
        }
        assert not np.isin(netlist.gates, [Gate.CONST_0, Gate.CONST_1]).any()


def test_unsigned_arrays_have_an_adder_for_each_cell() -> None:
    # n rows of n partial products are added up by n - 1 rows of n adders. Of these n * (n - 1) adders n have only two
    # bits to add: all but one of the first row, the first of the last row, and the one whose column is new.
    for bits in range(2, 9):
        netlist = build_netlist("array", bits, bits, weight_signed=False, act_signed=False)
        assert len(netlist.gates) == bits**2 + 2 * bits + 5 * bits * (bits - 2)


def test_dadda_trees_have_the_adders_of_the_paper() -> None:
    # N**2 - 4 * N + 3 full adders and N - 1 half adders reduce an unsigned N x N matrix to two rows, which an adder of
    # 2 * N - 2 bits adds up: Townsend, Swartzlander and Abraham, A Comparison of Dadda and Wallace Multiplier Delays
    # (SPIE 5205, 2003), section 2. Such an adder by ripple carry is one half adder and 2 * N - 3 full adders.
    for bits in range(3, 9):
        netlist = build_netlist("dadda", bits, bits, weight_signed=False, act_signed=False)
        adders = 5 * (bits**2 - 4 * bits + 3) + 2 * (bits - 1) + 2 + 5 * (2 * bits - 3)
        assert len(netlist.gates) == bits**2 + adders


def test_trees_are_less_deep_than_arrays() -> None:
    depth = {design: build_netlist(design, 8, 8).depth for design in DESIGNS}
    assert depth["wallace"] < depth["array"]
    assert depth["dadda"] < depth["array"]


def test_designs_differ_in_their_gates() -> None:
    assert len({build_netlist(design, 8, 8) for design in DESIGNS}) == len(DESIGNS)


def test_unknown_designs_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="multiplier 'booth' is unknown: expected one of array, wallace, dadda"):
        build_netlist("booth", 8, 8)
    with pytest.raises(InputError, match=r"weight_bits is 0: expected 1\.\.8"):
        build_netlist("array", 0, 8)
    with pytest.raises(InputError, match=r"act_bits is 2\.5: expected an integer"):
        build_netlist("array", 8, 2.5)  # type: ignore[arg-type]
