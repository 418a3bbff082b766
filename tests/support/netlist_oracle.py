"""A slow oracle of gates with faults: plain Python integers, one for each net, and no arrays.

Bit i of a net's integer is the value of the net for pair i of operands, which is `weight << act_bits | activation` in
bit patterns. Written from the definitions of `Gate` and of the locations, independently of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulator import Kind
from simulator.gates.cells import Gate
from simulator.gates.netlist import Netlist

Faults = Mapping[int, frozenset[Kind]]
"""What is wrong at each location; nothing at those that are not listed."""

NO_FAULTS: Faults = {}

FUNCTIONS: dict[Gate, Callable[[int, int, int, int, int], int]] = {
    Gate.CONST_0: lambda ones, a, b, c, d: 0,
    Gate.CONST_1: lambda ones, a, b, c, d: ones,
    Gate.BUF: lambda ones, a, b, c, d: a,
    Gate.NOT: lambda ones, a, b, c, d: ones ^ a,
    Gate.AND: lambda ones, a, b, c, d: a & b,
    Gate.OR: lambda ones, a, b, c, d: a | b,
    Gate.NAND: lambda ones, a, b, c, d: ones ^ (a & b),
    Gate.NOR: lambda ones, a, b, c, d: ones ^ (a | b),
    Gate.XOR: lambda ones, a, b, c, d: a ^ b,
    Gate.XNOR: lambda ones, a, b, c, d: ones ^ a ^ b,
    Gate.ANDNOT: lambda ones, a, b, c, d: a & (ones ^ b),
    Gate.ORNOT: lambda ones, a, b, c, d: a | (ones ^ b),
    Gate.MUX: lambda ones, a, b, c, d: (c & b) | ((ones ^ c) & a),
    Gate.NMUX: lambda ones, a, b, c, d: ones ^ ((c & b) | ((ones ^ c) & a)),
    Gate.AOI3: lambda ones, a, b, c, d: ones ^ ((a & b) | c),
    Gate.OAI3: lambda ones, a, b, c, d: ones ^ ((a | b) & c),
    Gate.AOI4: lambda ones, a, b, c, d: ones ^ ((a & b) | (c & d)),
    Gate.OAI4: lambda ones, a, b, c, d: ones ^ ((a | b) & (c | d)),
}
"""What each gate makes of its pins, for all pairs at once; `ones` is true for every pair."""


def _disturbed(value: int, ones: int, kinds: frozenset[Kind]) -> int:
    if Kind.FLIP in kinds:
        value ^= ones
    if Kind.STUCK_AT_0 in kinds:
        value = 0
    if Kind.STUCK_AT_1 in kinds:
        value = ones
    return value


def product_bits(netlist: Netlist, faults: Faults = NO_FAULTS) -> list[int]:
    """The product's bits, least significant first, each for all pairs."""
    pairs = 2 ** (netlist.weight_bits + netlist.act_bits)
    ones = 2**pairs - 1
    places = [*range(netlist.act_bits, netlist.act_bits + netlist.weight_bits), *range(netlist.act_bits)]
    # In the order of the pairs an operand's bit is 0 for 2**place of them, then 1 for as many, and so on.
    nets = [ones // (2 ** (2**place) + 1) * 2 ** (2**place) for place in places]
    location = len(netlist.gates)
    for number, (code, inputs) in enumerate(zip(netlist.gates.tolist(), netlist.inputs.tolist(), strict=True)):
        pins = [0, 0, 0, 0]
        for pin, net in enumerate(inputs):
            if net != -1:
                pins[pin] = _disturbed(nets[net], ones, faults.get(location, frozenset()))
                location += 1
        nets.append(_disturbed(FUNCTIONS[Gate(code)](ones, *pins), ones, faults.get(number, frozenset())))
    return [nets[net] for net in netlist.outputs.tolist()]


def products(netlist: Netlist, faults: Faults = NO_FAULTS) -> list[int]:
    """The products of all pairs, as numbers."""
    size = netlist.weight_bits + netlist.act_bits
    columns = [format(bits, f"0{2**size}b")[::-1] for bits in reversed(product_bits(netlist, faults))]
    found = [int("".join(digits), 2) for digits in zip(*columns, strict=True)]
    if netlist.weight_signed or netlist.act_signed:
        return [number - 2**size if number >= 2 ** (size - 1) else number for number in found]
    return found
