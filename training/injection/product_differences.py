"""What one fault of an operand, of a product or inside the multiplier adds to the products of a PE, as tables."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator import ArrayConfig, Kind, Site
from simulator.gates.evaluation import circuit_of
from simulator.gates.netlist import Netlist
from simulator.gates.netlist_kernel import CLEAR, INVERT, SET, Circuit, product_rows
from simulator.multipliers.multiplier import exact_products

Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

UNKNOWN, WANTED, NOTHING, SOMETHING = 0, 1, 2, 3
"""What is known of a weight's products: nothing; nothing, and it is asked for; the fault changes none; or some."""

_CODES = {Kind.STUCK_AT_0: CLEAR, Kind.STUCK_AT_1: SET, Kind.FLIP: INVERT}


class Change(NamedTuple):
    """What a fault makes of a net's value v: `((v ^ flip) & keep) | force`, as numbers of the net."""

    flip: int
    keep: int
    force: int

    def of(self, values: npt.NDArray[np.integer]) -> Int64Array:
        """Values with the fault."""
        return ((values.astype(np.int64) ^ self.flip) & self.keep) | self.force


UNCHANGED = Change(0, -1, 0)


class Differences:
    """What a fault adds to each product, worked out for a weight when it is first asked for.

    Attributes:
        state: uint8 [2**weight_bits]: what is known of each weight, by its bit pattern. Whoever needs a weight that is
            `UNKNOWN` makes it `WANTED` and calls `fill`.
        lines: int32 [2**weight_bits, 2**act_bits], by the operands' bit patterns.
    """

    def __init__(self, config: ArrayConfig, site: Site, bit: int, kind: Kind) -> None:
        """Begin with nothing known.

        Args:
            config: the array.
            site: WEIGHT, WEIGHT_LOAD, ACTIVATION, PRODUCT or MULTIPLIER.
            bit: of the net, or location.
            kind: of the fault.
        """
        self._before = _products(config)
        self.state = np.full(len(self._before), UNKNOWN, np.uint8)
        self.lines: Int32Array = np.empty(self._before.shape, np.int32)
        self._fault = (np.array([bit], np.int32), np.array([_CODES[kind]], np.uint8))
        self._after: Int16Array | Circuit = self._before
        if site == Site.MULTIPLIER:
            multiplier = config.pe_multiplier
            if multiplier.tables is not None:
                self._after = multiplier.tables[bit + 1]
            elif multiplier.netlist is not None:
                self._after = _circuit(multiplier.netlist)
        of_weight, of_activation, of_product = (
            change_of_net(config, site, bit, kind) if site in sites else UNCHANGED
            for sites in ((Site.WEIGHT, Site.WEIGHT_LOAD), (Site.ACTIVATION,), (Site.PRODUCT,))
        )
        weights, activations = 1 << config.weight_bits, 1 << config.act_bits
        self._weight = of_weight.of(_numbers(weights, signed=True)) & (weights - 1)
        self._activation = of_activation.of(_numbers(activations, signed=config.act_signed)) & (activations - 1)
        self._product = of_product

    def fill(self) -> None:
        """Work out all weights that are wanted."""
        wanted = np.flatnonzero(self.state == WANTED)
        weights = self._weight[wanted]
        if isinstance(self._after, Circuit):
            rows = np.empty((len(wanted), len(self._activation)), np.int16)
            alone = np.zeros(len(wanted), np.int32)
            product_rows(self._after, _ONE, *self._fault, alone, weights.astype(np.int32), rows)
        else:
            rows = self._after[weights]
        lines = self._product.of(rows[:, self._activation]) - self._before[wanted]
        self.lines[wanted] = lines
        self.state[wanted] = np.where(lines.any(1), SOMETHING, NOTHING)


_ONE = np.array([0, 1], np.int32)


@lru_cache(maxsize=32)
def differences(config: ArrayConfig, site: Site, bit: int, kind: Kind) -> Differences:
    """The differences of a fault; the last ones are remembered, with what was worked out."""
    return Differences(config, site, bit, kind)


@lru_cache(maxsize=4096)
def change_of_net(config: ArrayConfig, site: Site, bit: int, kind: Kind) -> Change:
    """What a fault makes of numbers on its net; of a MULTIPLIER's, which is inside, nothing.

    Raises:
        ValueError: the net has no such bit.
    """
    bits = site.bits(config)
    if not 0 <= bit < bits:
        raise ValueError(f"bit {bit} of {site.name}: expected 0..{bits - 1}")
    if site == Site.MULTIPLIER:
        return UNCHANGED
    # The sign bit of a net stands for all bits above it.
    signed = config.act_signed if site == Site.ACTIVATION else True
    value = -1 << bit if signed and bit == bits - 1 else 1 << bit
    if kind == Kind.FLIP:
        return Change(value, -1, 0)
    return Change(0, ~value, value if kind == Kind.STUCK_AT_1 else 0)


@lru_cache(maxsize=8)
def _products(config: ArrayConfig) -> Int16Array:
    """int16 [2**weight_bits, 2**act_bits]: products without faults."""
    if config.multiplies_exactly:
        return exact_products(config.weight_bits, config.act_bits, act_signed=config.act_signed)
    return config.pe_multiplier.products


@lru_cache(maxsize=8)
def _circuit(netlist: Netlist) -> Circuit:
    return circuit_of(netlist)


def _numbers(patterns: int, *, signed: bool) -> Int64Array:
    """The numbers of all bit patterns."""
    pattern = np.arange(patterns)
    return np.where(signed & (pattern >= patterns // 2), pattern - patterns, pattern)
