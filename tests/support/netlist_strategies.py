"""Random netlists of all gates, and random faults in them; they shrink towards few gates without faults."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from simulator import Kind
from simulator.gates.cells import MOST_PINS, Gate
from simulator.gates.netlist import Netlist
from tests.support.netlist_oracle import Faults


@st.composite
def netlists(draw: st.DrawFn, *, least_bits: int = 1, most_bits: int = 4, most_gates: int = 24) -> Netlist:
    """Gates of random kinds on random nets; they multiply nothing."""
    weight_bits, act_bits = draw(st.integers(least_bits, most_bits)), draw(st.integers(least_bits, most_bits))
    gates = draw(st.lists(st.sampled_from(Gate), max_size=most_gates))
    operands = weight_bits + act_bits
    inputs = np.full((len(gates), MOST_PINS), -1, np.int32)
    for number, gate in enumerate(gates):
        for pin in range(gate.pins):
            inputs[number, pin] = draw(st.integers(0, operands + number - 1))
    # Late gates see most of the faults, so most outputs are among them.
    nets = operands + len(gates)
    outputs = draw(st.lists(st.integers(1, min(nets, operands + 4)), min_size=operands, max_size=operands))
    return Netlist(
        gates=np.array(gates, np.uint8),
        inputs=inputs,
        outputs=nets - np.array(outputs, np.int32),
        weight_bits=weight_bits,
        act_bits=act_bits,
        weight_signed=draw(st.booleans()),
        act_signed=draw(st.booleans()),
    )


@st.composite
def faults_of(draw: st.DrawFn, netlist: Netlist, *, most: int = 5) -> Faults:
    """Up to `most` faulty locations, with one or more kinds of fault each."""
    if not netlist.locations:
        return {}
    places = draw(st.lists(st.integers(0, netlist.locations - 1), max_size=most, unique=True))
    return {place: draw(st.frozensets(st.sampled_from(Kind), min_size=1)) for place in places}
