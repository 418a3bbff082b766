"""A multiplier as gates: plain arrays, and the places in them where a fault can sit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.dtypes import Int32Array, UInt8Array
from simulator.errors import InputError, checked_integer
from simulator.gates.cells import MOST_PINS, Gate, NetlistError
from simulator.gates.signs import Signs

if TYPE_CHECKING:
    from simulator.gates.netlist_kernel import Circuit

LARGEST_OPERAND_BITS = 8
MOST_LOCATIONS = 1 << 16
"""A fault table keeps a location in 16 bits."""

_PIN_COUNTS = np.array([gate.pins for gate in Gate], np.int32)


@dataclass(frozen=True, eq=False)
class Netlist:
    """A combinational multiplier of gates, each listed after the gates that drive it.

    Nets are numbered: first the weight's bits and then the activation's, least significant first; then gate g drives
    net `weight_bits + act_bits + g`.

    Faults sit at *locations*, numbered from 0: location g < `len(gates)` is the output of gate g, which all its readers
    see; the locations after them are the input pins, gate by gate, and a fault there is seen by that pin alone.

    Args:
        gates: uint8 [gates], codes of `Gate`.
        inputs: int32 [gates, 4], the net on each pin; -1 where a gate has no such pin.
        outputs: int32 [weight_bits + act_bits], the nets of the product's bits, least significant first.
        weight_bits: width of the weight, 1..8.
        act_bits: width of the activation, 1..8.
        weight_signed: whether weights are two's complement.
        act_signed: whether activations are two's complement.

    Raises:
        InputError: a width out of range, arrays of something else or that do not fit together, a gate that reads a
            net listed after it, or too many gates.
    """

    gates: UInt8Array
    inputs: Int32Array
    outputs: Int32Array
    weight_bits: int
    act_bits: int
    weight_signed: bool = True
    act_signed: bool = True

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1, LARGEST_OPERAND_BITS))
        for name, dtype in (("gates", np.uint8), ("inputs", np.int32), ("outputs", np.int32)):
            object.__setattr__(self, name, _integers(name, getattr(self, name), dtype))
        count, operands = self.gates.size, self.weight_bits + self.act_bits
        if self.gates.ndim != 1 or self.inputs.shape != (count, MOST_PINS) or self.outputs.shape != (operands,):
            raise NetlistError(
                f"arrays are gates {self.gates.shape}, inputs {self.inputs.shape}, outputs {self.outputs.shape}: "
                f"expected (gates,), (gates, {MOST_PINS}), ({operands},)"
            )
        if count and self.gates.max() > max(Gate):
            raise NetlistError(f"gate code {self.gates.max()}: expected 0..{int(max(Gate))}")
        used = np.arange(MOST_PINS) < _PIN_COUNTS[self.gates][:, None]
        known = (self.inputs >= 0) & (self.inputs < operands + np.arange(count)[:, None])
        wrong = (used & ~known) | (~used & (self.inputs != -1))
        if wrong.any():
            gate, pin = (int(index) for index in np.argwhere(wrong)[0])
            raise NetlistError(
                f"gate {gate} ({Gate(self.gates[gate]).name}) has net {self.inputs[gate, pin]} on pin {pin}: expected "
                f"{f'a net in 0..{operands + gate - 1}, driven before it' if used[gate, pin] else 'no net, -1'}"
            )
        if ((self.outputs < 0) | (self.outputs >= operands + count)).any():
            raise NetlistError(f"product bits are on nets {self.outputs.tolist()}: expected 0..{operands + count - 1}")
        if self.locations > MOST_LOCATIONS:
            raise NetlistError(f"{self.locations} gate outputs and pins: expected at most {MOST_LOCATIONS}")

    @property
    def product_bits(self) -> int:
        """Width of the product."""
        return self.weight_bits + self.act_bits

    @property
    def signs(self) -> Signs:
        """Whether the operands are two's complement."""
        return Signs(self.weight_signed, self.act_signed)

    @property
    def product_signed(self) -> bool:
        """Whether the product is two's complement: it is if an operand is."""
        return self.weight_signed or self.act_signed

    @cached_property
    def first_pin(self) -> Int32Array:
        """int32 [gates + 1]: the pins of gate g are the locations `first_pin[g]:first_pin[g + 1]`."""
        ends = np.concatenate([[0], np.cumsum(_PIN_COUNTS[self.gates])]) + len(self.gates)
        return ends.astype(np.int32)

    @property
    def locations(self) -> int:
        """Number of fault locations: gate outputs and input pins."""
        return int(self.first_pin[-1])

    @cached_property
    def depth(self) -> int:
        """Gates on the longest way from an operand to the product."""
        depth: list[int] = [0] * self.product_bits
        for gate, inputs in zip(self.gates.tolist(), self.inputs.tolist(), strict=True):
            depth.append(1 + max((depth[net] for net in inputs[: Gate(gate).pins]), default=-1))
        deepest: int = max(depth[net] for net in self.outputs.tolist())
        return deepest

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything: equal exactly for equal netlists."""
        header = repr((self.weight_bits, self.act_bits, self.weight_signed, self.act_signed)).encode()
        arrays = (self.gates.tobytes(), self.inputs.tobytes(), self.outputs.tobytes())
        return hashlib.sha256(b"\n".join((header, *arrays))).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Netlist):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def net_name(self, net: int) -> str:
        """The name of a net: `w[0]`, `a[3]` for the operands' bits, `n17` for what gate 17 drives."""
        if net < self.weight_bits:
            return f"w[{net}]"
        gate = net - self.weight_bits - self.act_bits
        return f"a[{net - self.weight_bits}]" if gate < 0 else f"n{gate}"

    def location_name(self, location: int) -> str:
        """A location for people: `gate 17 XOR output`, or `gate 17 XOR pin 0 (w[0])`.

        Raises:
            InputError: there is no such location.
        """
        if not 0 <= location < self.locations:
            raise InputError(f"location {location}: expected 0..{self.locations - 1}")
        gate = location
        if location >= len(self.gates):
            gate = int(np.searchsorted(self.first_pin, location, side="right")) - 1
        text = f"gate {gate} {Gate(self.gates[gate]).name}"
        if location < len(self.gates):
            return f"{text} output"
        pin = location - int(self.first_pin[gate])
        return f"{text} pin {pin} ({self.net_name(int(self.inputs[gate, pin]))})"


def _integers(name: str, given: npt.ArrayLike, dtype: type[np.integer]) -> npt.NDArray[Any]:
    """A read-only copy."""
    try:
        numbers = np.asarray(given)
    except ValueError as error:
        raise NetlistError(f"{name}: {error}") from None
    array = np.array(numbers, dtype if numbers.dtype.kind in "iu" or not numbers.size else None, order="C")
    if array.dtype != dtype or not np.array_equal(array, numbers):
        raise NetlistError(f"{name} are {numbers.dtype}: expected integers that {np.dtype(dtype)} holds")
    array.flags.writeable = False
    return array


def circuit_of(netlist: Netlist) -> Circuit:
    """The arrays of a netlist, as kernels take them."""
    from simulator.gates.netlist_kernel import Circuit

    # Copies: Numba compiles anew for arrays that are read-only.
    return Circuit(
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
