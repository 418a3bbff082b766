"""Every stuck-at fault of a multiplier's gates: classes of equivalent faults, and what each does to the products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from simulator import Kind
from simulator.gates.cells import MOST_PINS, Gate
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.netlist import Netlist
from simulator.multipliers.fault_classes import FaultClass, GateFault, compare, fault_classes
from simulator.multipliers.multiplier import TableErrors
from tests.support import netlist_cases
from tests.support.netlist_cases import netlists


def faulty_products(netlist: Netlist, fault: GateFault) -> list[int]:
    return netlist_cases.products(netlist, {fault.location: frozenset([Kind(fault.stuck)])})


def product_bits(netlist: Netlist, fault: GateFault) -> list[int]:
    return netlist_cases.product_bits(netlist, {fault.location: frozenset([Kind(fault.stuck)])})


def check_partition(netlist: Netlist, classes: list[FaultClass]) -> None:
    """Each fault is in one class; faults of a class have equal tables, and classes different ones."""
    listed = [fault for one in classes for fault in one.faults]
    assert sorted(listed) == [GateFault(location, stuck) for location in range(netlist.locations) for stuck in (0, 1)]
    assert all(one.faults == sorted(one.faults) for one in classes)
    assert [one.faults[0] for one in classes] == sorted(one.faults[0] for one in classes)
    found = []
    for one in classes:
        bits = [product_bits(netlist, fault) for fault in one.faults]
        assert all(other == bits[0] for other in bits)
        found.append(tuple(bits[0]))
    assert len(set(found)) == len(found)


def check_nearest(one: FaultClass, bad: list[int], good: list[int]) -> None:
    """No stuck bit of the product gives the faulty products more often than the one that is named."""
    differing = {}
    for bit in range(len(one.bits)):
        for stuck in (0, 1):
            products = [number | 1 << bit if stuck else number & ~(1 << bit) for number in good]
            differing[bit, stuck] = sum(a != b for a, b in zip(bad, products, strict=True)) / len(good)
    nearest = min(differing, key=differing.__getitem__)
    assert one.nearest == (*nearest, pytest.approx(differing[nearest], abs=1e-12))


def check_effects(netlist: Netlist, classes: list[FaultClass]) -> None:
    """The numbers of each class are those of its table."""
    good = netlist_cases.products(netlist)
    size = 1 << netlist.product_bits
    for one in classes:
        bad = faulty_products(netlist, one.faults[-1])
        inverted = [(a % size) ^ (b % size) for a, b in zip(bad, good, strict=True)]
        pairs = len(inverted)
        assert one.disturbed == sum(pattern != 0 for pattern in inverted) / pairs
        assert one.detectable == any(inverted)
        assert one.patterns == len(set(inverted) - {0})
        assert one.bits.tolist() == [
            sum(pattern >> place & 1 for pattern in inverted) / pairs for place in range(netlist.product_bits)
        ]
        assert one.single_bit == all(pattern & (pattern - 1) == 0 for pattern in inverted)
        assert one.bits_touched == sum(any(pattern >> place & 1 for pattern in inverted) for place in range(16))
        check_nearest(one, [number % size for number in bad], [number % size for number in good])
        distances = [abs(a - b) for a, b in zip(bad, good, strict=True)]
        assert one.errors.mean_absolute == pytest.approx(sum(distances) / pairs, rel=1e-12)
        assert one.errors.worst_case == max(distances)
        assert one.errors.probability == one.disturbed
        assert one.errors.mean == pytest.approx(sum(bad) / pairs - sum(good) / pairs, rel=1e-12, abs=1e-9)


@settings(max_examples=60)
@given(netlists(most_bits=3, most_gates=16))
def test_classes_of_random_gates_are_those_of_the_oracle(netlist: Netlist) -> None:
    classes = fault_classes(netlist)
    check_partition(netlist, classes)
    check_effects(netlist, classes)


@pytest.mark.parametrize("design", DESIGNS)
def test_classes_of_small_multipliers_are_those_of_the_oracle(design: str) -> None:
    for weight_bits, act_bits, act_signed in ((2, 2, True), (5, 3, False), (4, 5, True)):
        netlist = build_netlist(design, weight_bits, act_bits, act_signed=act_signed)
        classes = fault_classes(netlist)
        check_partition(netlist, classes)
        check_effects(netlist, classes)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_every_fault_of_a_whole_multiplier_is_in_the_class_of_its_table(design: str) -> None:
    netlist = build_netlist(design, 8, 8)
    classes = fault_classes(netlist)
    check_partition(netlist, classes)


# A 2x2 unsigned multiplier, drawn by hand (w: weight, a: activation):
#   g0 = w0 & a0   g1 = w0 & a1   g2 = w1 & a0   g3 = w1 & a1
#   p0 = g0        p1 = g4 = g1 ^ g2             g5 = g1 & g2
#   p2 = g6 = g3 ^ g5                            p3 = g7 = g3 & g5
# 8 gates and 16 pins have 48 stuck-at faults. Worked by hand, these 35 classes remain; "3a/1" is pin a of gate 3 stuck
# at 1, and "3/1" its output. Each AND with both inputs stuck at 0 is its output stuck at 0. Since g5 implies g3, g7
# is g5: its pin a stuck at 1 changes nothing, and g3 stuck at 1 is only seen through p2, as pin a of g6 is.
WORKED_BY_HAND = """
0/0 0a/0 0b/0
0/1
0a/1
0b/1
1/0 1a/0 1b/0
1/1
1a/1
1b/1
2/0 2a/0 2b/0
2/1
2a/1
2b/1
3/0 3a/0 3b/0
3/1 6a/1
3a/1
3b/1
4/0
4/1
4a/0
4a/1
4b/0
4b/1
5/0 5a/0 5b/0
5/1
5a/1
5b/1
6/0
6/1
6a/0
6b/0
6b/1
7/0 7a/0 7b/0
7/1
7a/1
7b/1
"""

TWO_BY_TWO = Netlist(
    gates=np.array([Gate.AND] * 4 + [Gate.XOR, Gate.AND] * 2, np.uint8),
    inputs=np.array([[*pins, -1, -1] for pins in ((0, 2), (0, 3), (1, 2), (1, 3), (5, 6), (5, 6), (7, 9), (7, 9))]),
    outputs=np.array([4, 8, 10, 11]),
    weight_bits=2,
    act_bits=2,
    weight_signed=False,
    act_signed=False,
)


def named(fault: GateFault, gates: int) -> str:
    """A fault of two-input gates in the notation above."""
    place = str(fault.location)
    if fault.location >= gates:
        pin = fault.location - gates
        place = f"{pin // 2}{'ab'[pin % 2]}"
    return f"{place}/{fault.stuck}"


def hand_worked() -> set[frozenset[str]]:
    return {frozenset(line.split()) for line in WORKED_BY_HAND.split("\n") if line}


def test_a_two_by_two_multiplier_worked_by_hand() -> None:
    classes = fault_classes(TWO_BY_TWO)
    assert sum(len(one.faults) for one in classes) == 48
    assert {frozenset(named(fault, 8) for fault in one.faults) for one in classes} == hand_worked()
    assert len(classes) == len(hand_worked()) == 35
    by_name = {named(fault, 8): one for one in classes for fault in one.faults}
    # Only w = 1 or 3 and a = 1 or 3 make p0 1: a quarter of all pairs, each wrong by 1.
    assert by_name["0/0"].disturbed == 1 / 4
    assert by_name["0/0"].errors == TableErrors(1 / 4, 1, 1 / 4, -1 / 4)
    assert by_name["0/0"].bits.tolist() == [1 / 4, 0, 0, 0]
    assert [name for name, one in by_name.items() if not one.detectable] == ["7a/1"]
    # p3 is 1 for 3 * 3 only, so stuck at 1 it is wrong for 15 of 16 pairs, each by 8.
    assert by_name["7/1"].errors == TableErrors(7.5, 8, 15 / 16, 7.5)
    # g5 stuck at 0 turns 3 * 3 = 0b1001 into 0b0101: two bits of one pair.
    assert by_name["5/0"].bits.tolist() == [0, 0, 1 / 16, 1 / 16]
    assert by_name["5/0"].patterns == 1
    assert by_name["5/0"].errors.mean == -4 / 16


def test_the_product_bit_model_worked_by_hand() -> None:
    classes = fault_classes(TWO_BY_TWO)
    by_name = {named(fault, 8): one for one in classes for fault in one.faults}
    equal = {name: (one.nearest.bit, one.nearest.stuck) for name, one in by_name.items() if one.nearest.differs == 0}
    # p0 is g0, p1 is g4, p2 is g6 and p3 is g7; AND gates with a pin stuck at 0 give 0.
    assert equal == {
        **dict.fromkeys(("0/0", "0a/0", "0b/0"), (0, 0)),
        "0/1": (0, 1),
        "4/0": (1, 0),
        "4/1": (1, 1),
        "6/0": (2, 0),
        "6/1": (2, 1),
        **dict.fromkeys(("7/0", "7a/0", "7b/0"), (3, 0)),
        "7/1": (3, 1),
    }
    summary = compare(classes)
    assert (summary.faults, summary.classes, summary.undetectable) == (48, 35, 1)
    assert (summary.equal_classes, summary.equal_faults) == (8, 12)
    assert compare([]).disturbed == (0, 0, 0)


def test_progress_counts_every_fault() -> None:
    netlist = build_netlist("dadda", 4, 4)
    steps: list[int] = []
    fault_classes(netlist, steps.append)
    assert sum(steps) == 2 * netlist.locations
    assert len(steps) > 1


def test_the_built_in_array_is_that_multiplier() -> None:
    assert len(fault_classes(build_netlist("array", 2, 2, weight_signed=False, act_signed=False))) == 35


def test_c17_collapses_to_its_published_number_of_faults() -> None:
    # ISCAS-85 c17 (Brglez and Fujiwara, ISCAS 1985): six NAND gates, with 34 stuck-at faults on its 17 lines, which
    # collapse to 22, all detectable. A buffer stands for input 3, the only one with two readers, whose stem is a line
    # of its own; the pins are all the other lines there are but once.
    g1, g2, g3, g6, g7, stem, g10, g11, g16, g19, g22, g23 = range(12)
    gates = [(Gate.BUF, g3)]
    gates += [(Gate.NAND, *pins) for pins in ((g1, stem), (stem, g6), (g2, g11), (g11, g7), (g10, g16), (g16, g19))]
    netlist = Netlist(
        gates=np.array([gate[0] for gate in gates], np.uint8),
        inputs=np.array([[*gate[1:], *[-1] * (MOST_PINS + 1 - len(gate))] for gate in gates]),
        # Inputs carry no faults: the other three product bits see none.
        outputs=np.array([g22, g23, g1, g2, g3]),
        weight_bits=2,
        act_bits=3,
    )
    classes = fault_classes(netlist)
    assert len(classes) == 22
    assert all(one.detectable for one in classes)


def test_gates_that_reach_no_product_bit_cannot_be_detected() -> None:
    netlist = Netlist(
        gates=np.array([Gate.AND, Gate.NOT], np.uint8),
        inputs=np.array([[0, 1, -1, -1], [2, -1, -1, -1]], np.int32),
        outputs=np.array([2, 2], np.int32),
        weight_bits=1,
        act_bits=1,
    )
    undetectable = [one for one in fault_classes(netlist) if not one.detectable]
    assert [fault.location for one in undetectable for fault in one.faults] == [1, 1, 4, 4]
    (only,) = undetectable
    assert only.patterns == 0
    assert only.errors == TableErrors(0.0, 0, 0.0, 0.0)


def test_no_gates_have_no_faults() -> None:
    netlist = Netlist(np.empty(0, np.uint8), np.empty((0, MOST_PINS), np.int32), np.array([0, 1]), 1, 1)
    assert fault_classes(netlist) == []
