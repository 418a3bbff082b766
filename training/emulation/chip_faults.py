"""What a chip's permanent faults do to the algebra of a GEMM, whatever its weights: worked out once for each chip.

Stuck bits along a chain of PEs compose to one pair of masks: after `keep1, force1` and then `keep2, force2` a value v
is `(v & keep1 & keep2) | ((force1 & keep2) | force2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator import ArrayConfig, FaultMap, Kind, Site
from simulator.faults import BoolArray

if TYPE_CHECKING:
    from simulator.multipliers.pe_behaviour_kernel import PeProducts

Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class Masks(NamedTuple):
    """A value v of a net becomes `(v & keep) | force`; both are numbers of the net, sign-extended."""

    keep: Int32Array
    force: Int32Array

    @property
    def any(self) -> BoolArray:
        """Where a bit is stuck."""
        stuck: BoolArray = (self.keep != -1) | (self.force != 0)
        return stuck

    def of(self, values: npt.NDArray[np.integer]) -> Int32Array:
        """Values with their stuck bits."""
        stuck: Int32Array = (values & self.keep) | self.force
        return stuck


@dataclass(frozen=True, eq=False)
class ChipFaults:
    """Permanent faults and bypass of one chip, as masks [rows, cols] that already include what comes before on a chain.

    Attributes:
        faults: all faults, FLIPs included.
        bypass: bool [rows, cols].
        weight: from the weight that is fed to what the multiplier gets: load chain from row 0, then the register.
        activation: from what the feeder gives to what the multiplier gets: the operand nets of columns 0 to this one.
        activation_here: those of this PE's operand net alone.
        product: multiplier outputs.
        psum: adder outputs.
        accumulator: [cols], write data of the column accumulators.
    """

    faults: FaultMap
    bypass: BoolArray
    weight: Masks
    activation: Masks
    activation_here: Masks
    product: Masks
    psum: Masks
    accumulator: Masks

    @property
    def config(self) -> ArrayConfig:
        """The array."""
        return self.faults.config

    @cached_property
    def multipliers(self) -> PeProducts:
        """Which PEs do not multiply exactly."""
        # Numba takes 0.4 s to import.
        from simulator.multipliers.pe_behaviour import pe_products

        return pe_products(self.faults)

    @property
    def tabled(self) -> BoolArray:
        """PEs [rows, cols] that do not multiply exactly: their products are looked up."""
        looked_up: BoolArray = self.multipliers.behaviour >= 0
        return looked_up

    @cached_property
    def apart(self) -> BoolArray:
        """PEs [rows, cols] whose product or sum is more than `a * w`: they are evaluated one by one."""
        faulty: BoolArray = (self.tabled | self.product.any | self.psum.any) & ~self.bypass
        return faulty

    @cached_property
    def has_flips(self) -> bool:
        """Whether any fault is transient."""
        return self.faults.has_flips

    @cached_property
    def apart_when_unused(self) -> BoolArray:
        """The same for rows without weights, where everything is 0 but what stuck bits make of it."""
        from simulator.multipliers.pe_behaviour import rows_of_products

        activation, weight = self.activation.force, self.weight.force
        product = activation * weight
        if self.tabled.any():
            config, place = self.config, np.nonzero(self.tabled)
            rows, row_of = rows_of_products(
                self.multipliers,
                self.multipliers.behaviour[place],
                weight[place],
                config.weight_bits,
                config.act_bits,
            )
            product[place] = rows[row_of, activation[place] & (rows.shape[1] - 1)]
        apart: BoolArray = (self.psum.any | (self.product.of(product) != 0)) & ~self.bypass
        return apart


def chip_faults(faults: FaultMap, bypass: BoolArray) -> ChipFaults:
    """Work out a chip's masks; the last few chips are remembered.

    Args:
        faults: of one array.
        bypass: bool [rows, cols].
    """
    return _chip_faults(faults, np.packbits(bypass).tobytes())


@lru_cache(maxsize=8)
def _chip_faults(faults: FaultMap, packed_bypass: bytes) -> ChipFaults:
    config = faults.config
    count = config.pe_count
    bits = np.unpackbits(np.frombuffer(packed_bypass, np.uint8), count=count)
    bypass = bits.astype(np.bool_).reshape(config.rows, config.cols)
    stationary = _stuck(faults, Site.WEIGHT)
    chain = _along(_stuck(faults, Site.WEIGHT_LOAD), axis=0)
    here = _stuck(faults, Site.ACTIVATION)
    column_end = _stuck(faults, Site.ACCUMULATOR)
    return ChipFaults(
        faults=faults,
        bypass=bypass,
        weight=_then(chain, stationary),
        activation=_along(here, axis=1),
        activation_here=here,
        product=_stuck(faults, Site.PRODUCT),
        psum=_stuck(faults, Site.PSUM),
        accumulator=Masks(column_end.keep[0], column_end.force[0]),
    )


def _stuck(faults: FaultMap, site: Site) -> Masks:
    """The masks of each net of one site by itself, int32 [rows, cols]."""
    config = faults.config
    signed = config.act_signed if site is Site.ACTIVATION else True
    stuck = {kind: np.zeros((config.rows, config.cols), np.int64) for kind in (Kind.STUCK_AT_0, Kind.STUCK_AT_1)}
    table = faults.table[faults.table["site"] == site]
    for kind, pattern in stuck.items():
        chosen = table[table["kind"] == kind]
        bit = chosen["bit"].astype(np.int64)
        # The sign bit of a net stands for all bits above it.
        sign = signed & (bit == site.bits(config) - 1)
        np.bitwise_or.at(pattern, (chosen["row"], chosen["col"]), np.where(sign, -1 << bit, 1 << bit))
    return Masks((~stuck[Kind.STUCK_AT_0]).astype(np.int32), stuck[Kind.STUCK_AT_1].astype(np.int32))


def _then(first: Masks, second: Masks) -> Masks:
    return Masks(first.keep & second.keep, (first.force & second.keep) | second.force)


def _along(masks: Masks, axis: int) -> Masks:
    """Compose each net's masks with all before it on an axis, in steps that double."""
    keep, force = (np.moveaxis(mask, axis, 0).copy() for mask in masks)
    step = 1
    while step < len(keep):
        after = _then(Masks(keep[:-step], force[:-step]), Masks(keep[step:], force[step:]))
        keep[step:], force[step:] = after.keep, after.force
        step *= 2
    return Masks(*(np.ascontiguousarray(np.moveaxis(mask, 0, axis)) for mask in (keep, force)))
