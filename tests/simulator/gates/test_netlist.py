"""Netlists: what is refused, what locations are called, and gates with faults against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import InputError, Kind
from simulator.gates.cells import MOST_PINS, Gate, NetlistError
from simulator.gates.designs import build_netlist
from simulator.gates.netlist import Netlist, circuit_of, netlist_products
from simulator.gates.netlist_kernel import CLEAR, INVERT, SET, evaluate, product_rows, read_products, set_operands
from tests.support import netlist_cases
from tests.support.netlist_cases import Faults, faults_of, netlists

# The output for every combination of the pins a, b, c, d, counted in binary with pin a in the highest place. Written
# down from the cell types of Yosys (its manual, "Gate-level cells" of the internal cell library).
TRUTH_TABLES = {
    Gate.CONST_0: "0",
    Gate.CONST_1: "1",
    Gate.BUF: "01",
    Gate.NOT: "10",
    Gate.AND: "0001",
    Gate.OR: "0111",
    Gate.NAND: "1110",
    Gate.NOR: "1000",
    Gate.XOR: "0110",
    Gate.XNOR: "1001",
    Gate.ANDNOT: "0010",
    Gate.ORNOT: "1011",
    Gate.MUX: "00011011",
    Gate.NMUX: "11100100",
    Gate.AOI3: "10101000",
    Gate.OAI3: "11101010",
    Gate.AOI4: "1110111011100000",
    Gate.OAI4: "1111100010001000",
}

CODES = {Kind.FLIP: INVERT, Kind.STUCK_AT_0: CLEAR, Kind.STUCK_AT_1: SET}


def one_gate(gate: Gate) -> Netlist:
    """One gate on the operands' bits: pins a, b are the weight's two bits, c, d the activation's."""
    inputs = [pin if pin < gate.pins else -1 for pin in range(MOST_PINS)]
    return Netlist(
        np.array([gate], np.uint8), np.array([inputs], np.int32), np.full(4, 4, np.int32), weight_bits=2, act_bits=2
    )


def fault_codes(netlist: Netlist, faults: Faults) -> np.ndarray:
    codes = np.zeros(netlist.locations, np.uint8)
    for location, kinds in faults.items():
        codes[location] = sum(CODES[kind] for kind in kinds)
    return codes


def kernel_products(netlist: Netlist, faults: Faults) -> list[int]:
    """All products by the bit-parallel kernels, as the oracle gives them."""
    circuit = circuit_of(netlist)
    pairs = 1 << netlist.product_bits
    nets = np.empty((netlist.product_bits + len(netlist.gates), -(-pairs // 64)), np.uint64)
    set_operands(circuit, 0, nets)
    evaluate(circuit, fault_codes(netlist, faults), nets)
    found = np.empty(pairs, np.int16)
    read_products(circuit, nets, found)
    return (found if netlist.product_signed else found.astype(np.int64) & (pairs - 1)).tolist()


@pytest.mark.parametrize("gate", Gate)
def test_a_gate_keeps_its_truth_table(gate: Gate) -> None:
    netlist = one_gate(gate)
    assert len(TRUTH_TABLES[gate]) == 2**gate.pins
    for pins in product((0, 1), repeat=gate.pins):
        a, b, c, d = [*pins, *[0] * (MOST_PINS - gate.pins)]
        expected = -1 if TRUTH_TABLES[gate][int("0" + "".join(map(str, pins)), 2)] == "1" else 0
        weight, act = a | b << 1, c | d << 1
        assert netlist_products(netlist)[weight, act] == expected
        assert kernel_products(netlist, {})[weight << 2 | act] == expected
        assert netlist_cases.products(netlist)[weight << 2 | act] == expected


@given(st.data())
def test_gates_with_faults_are_those_of_the_oracle(data: st.DataObject) -> None:
    netlist = data.draw(netlists())
    faults = data.draw(faults_of(netlist))
    assert kernel_products(netlist, faults) == netlist_cases.products(netlist, faults)


@given(st.data())
def test_rows_of_fixed_weights_are_those_of_the_oracle(data: st.DataObject) -> None:
    netlist = data.draw(netlists(least_bits=2, most_bits=8).filter(lambda one: one.product_signed))
    behaviours = data.draw(st.lists(faults_of(netlist), min_size=1, max_size=3))
    codes = [fault_codes(netlist, faults) for faults in behaviours]
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(0, len(behaviours) - 1), st.integers(0, 2**netlist.weight_bits - 1)),
            min_size=1,
            max_size=5,
        )
    )
    found = np.empty((len(rows), 2**netlist.act_bits), np.int16)
    product_rows(
        circuit_of(netlist),
        np.cumsum([0, *[len(faults) for faults in behaviours]], dtype=np.int32),
        np.array([place for faults in behaviours for place in faults], np.int32),
        np.array([code[place] for code, faults in zip(codes, behaviours, strict=True) for place in faults], np.uint8),
        np.array([behaviour for behaviour, _ in rows], np.int32),
        np.array([weight for _, weight in rows], np.int32),
        found,
    )
    tables = [netlist_cases.products(netlist, faults) for faults in behaviours]
    for row, (behaviour, weight) in zip(found.tolist(), rows, strict=True):
        assert row == tables[behaviour][weight << netlist.act_bits :][: 2**netlist.act_bits]


@pytest.mark.parametrize("design", ["array", "wallace", "dadda"])
def test_faults_of_a_whole_multiplier_are_those_of_the_oracle(design: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    netlist = build_netlist(design, 8, 8)
    for count in (1, 1, 2, 8):
        places = generator.choice(netlist.locations, count, replace=False).tolist()
        faults = {place: frozenset([Kind(int(generator.integers(3)))]) for place in places}
        assert kernel_products(netlist, faults) == netlist_cases.products(netlist, faults)


def test_locations_are_outputs_and_then_pins() -> None:
    netlist = Netlist(
        gates=np.array([Gate.AND, Gate.CONST_1, Gate.MUX], np.uint8),
        inputs=np.array([[0, 2, -1, -1], [-1] * 4, [1, 4, 3, -1]], np.int32),
        outputs=np.array([6, 5, 4, 0], np.int32),
        weight_bits=2,
        act_bits=2,
    )
    assert netlist.first_pin.tolist() == [3, 5, 5, 8]
    assert [netlist.location_name(location) for location in range(netlist.locations)] == [
        "gate 0 AND output",
        "gate 1 CONST_1 output",
        "gate 2 MUX output",
        "gate 0 AND pin 0 (w[0])",
        "gate 0 AND pin 1 (a[0])",
        "gate 2 MUX pin 0 (w[1])",
        "gate 2 MUX pin 1 (n0)",
        "gate 2 MUX pin 2 (a[1])",
    ]
    for outside in (-1, 8):
        with pytest.raises(ValueError, match=f"location {outside}: expected 0..7"):
            netlist.location_name(outside)


def test_depth_is_that_of_the_longest_way() -> None:
    # w0 & a0 is one gate deep, and a half adder of it two; a third reads only operands, a constant none.
    netlist = Netlist(
        gates=np.array([Gate.AND, Gate.CONST_1, Gate.XOR, Gate.NOT], np.uint8),
        inputs=np.array([[0, 2, -1, -1], [-1] * 4, [4, 5, -1, -1], [3, -1, -1, -1]], np.int32),
        outputs=np.array([5, 7, 0, 5], np.int32),
        weight_bits=2,
        act_bits=2,
    )
    assert netlist.depth == 1
    assert replace(netlist, outputs=np.array([6, 7, 0, 5])).depth == 2
    assert replace(netlist, outputs=np.array([0, 1, 2, 3])).depth == 0


def test_equal_netlists_are_equal_and_others_are_not() -> None:
    one = build_netlist("dadda", 4, 3)
    again = Netlist(one.gates, one.inputs, one.outputs, 4, 3)
    assert one == again
    assert hash(one) == hash(again)
    assert one != "dadda"
    gates = one.gates.copy()
    gates[0] = Gate.NOR
    swapped = one.inputs.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    others = [
        replace(one, gates=gates),
        replace(one, inputs=swapped),
        replace(one, outputs=one.outputs[::-1]),
        replace(one, weight_bits=3, act_bits=4),
        replace(one, weight_signed=False),
        replace(one, act_signed=False),
    ]
    assert len({one, *others}) == 7


def test_arrays_cannot_be_changed_from_outside() -> None:
    gates = np.array([Gate.AND], np.uint8)
    netlist = Netlist(gates, np.array([[0, 1, -1, -1]], np.int32), np.array([2, 2], np.int32), 1, 1)
    gates[0] = Gate.OR
    assert netlist.gates.tolist() == [Gate.AND]
    with pytest.raises(ValueError, match="read-only"):
        netlist.gates[0] = Gate.OR


def changed(array: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    copy = array.copy()
    copy[place] = value
    return copy


# The 2x2 netlist has the nets 0..3 of the operands and 4..11 of its gates.
REFUSED: list[tuple[Callable[[Netlist], dict[str, object]], str]] = [
    (lambda netlist: {"weight_bits": 0}, r"weight_bits is 0: expected 1\.\.8"),
    (lambda netlist: {"act_bits": 9}, r"act_bits is 9: expected 1\.\.8"),
    (lambda netlist: {"act_bits": "2"}, "act_bits is '2': expected an integer"),
    (lambda netlist: {"gates": 4}, r"arrays are gates \(\),"),
    (lambda netlist: {"gates": netlist.gates + 0.5}, "gates are float64: expected integers that uint8 holds"),
    (lambda netlist: {"gates": netlist.gates + np.int64(256)}, "gates are int64: expected integers that uint8 holds"),
    (lambda netlist: {"inputs": [[0], [0, 1]]}, "inputs: setting an array element"),
    (lambda netlist: {"weight_bits": 3}, r"outputs \(4,\): expected .*\(5,\)"),
    (lambda netlist: {"inputs": netlist.inputs[:, :3]}, r"inputs \(8, 3\).*expected .*\(gates, 4\)"),
    (lambda netlist: {"gates": netlist.gates[:-1]}, r"gates \(7,\), inputs \(8, 4\)"),
    (lambda netlist: {"gates": changed(netlist.gates, (2,), 18)}, r"gate code 18: expected 0\.\.17"),
    (
        lambda netlist: {"inputs": changed(netlist.inputs, (4, 1), 8)},
        r"gate 4 \(XOR\) has net 8 on pin 1: expected a net in 0\.\.7, driven before it",
    ),
    (
        lambda netlist: {"inputs": changed(netlist.inputs, (0, 0), -1)},
        r"gate 0 \(AND\) has net -1 on pin 0: expected a net in 0\.\.3",
    ),
    (
        lambda netlist: {"inputs": changed(netlist.inputs, (0, 2), 1)},
        r"gate 0 \(AND\) has net 1 on pin 2: expected no net, -1",
    ),
    (lambda netlist: {"outputs": changed(netlist.outputs, (3,), 12)}, r"product bits are on nets .*expected 0\.\.11"),
    (lambda netlist: {"outputs": changed(netlist.outputs, (0,), -1)}, r"product bits are on nets \[-1, .*expected 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_arrays_that_are_no_netlist_are_refused(change: Callable[[Netlist], dict[str, object]], message: str) -> None:
    netlist = build_netlist("array", 2, 2, weight_signed=False, act_signed=False)
    with pytest.raises(InputError, match=message):
        replace(netlist, **change(netlist))  # type: ignore[arg-type]


def test_too_many_locations_are_refused() -> None:
    # An inverter has two locations.
    count = (1 << 15) + 1
    inputs = np.full((count, MOST_PINS), -1, np.int32)
    inputs[:, 0] = 0
    with pytest.raises(NetlistError, match="65538 gate outputs and pins: expected at most 65536"):
        Netlist(np.full(count, Gate.NOT), inputs, np.zeros(2, np.int32), 1, 1)
