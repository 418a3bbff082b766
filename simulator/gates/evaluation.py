"""What a netlist computes, without faults, for every pair of operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.dtypes import Int32Array
from simulator.gates.netlist import Netlist

if TYPE_CHECKING:
    from simulator.gates.netlist_kernel import Circuit


def circuit_of(netlist: Netlist) -> Circuit:
    """The arrays of a netlist, as kernels take them."""
    from simulator.gates.netlist_kernel import Circuit

    return Circuit(
        # Copies: Numba compiles anew for arrays that are read-only.
        netlist.gates.copy(),
        netlist.inputs.copy(),
        netlist.first_pin.copy(),
        netlist.outputs.copy(),
        netlist.weight_bits,
        netlist.act_bits,
    )


def netlist_products(netlist: Netlist) -> Int32Array:
    """What the gates give for every pair of operands, int32 [2**weight_bits, 2**act_bits] by their bit patterns."""
    from simulator.gates.netlist_kernel import evaluate, read_products, set_operands

    circuit = circuit_of(netlist)
    pairs = 1 << netlist.product_bits
    nets = np.empty((netlist.product_bits + len(netlist.gates), -(-pairs // 64)), np.uint64)
    set_operands(circuit, 0, nets)
    evaluate(circuit, np.empty(0, np.uint8), nets)
    signed = np.empty(pairs, np.int16)
    read_products(circuit, nets, signed)
    products = signed.astype(np.int32)
    if not netlist.product_signed:
        products &= pairs - 1
    products.flags.writeable = False
    return products.reshape(1 << netlist.weight_bits, 1 << netlist.act_bits)
