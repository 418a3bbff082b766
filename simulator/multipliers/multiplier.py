"""What a PE multiplies with: gates that may be faulty, or tables of products."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.dtypes import Int16Array
from simulator.errors import InputError
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.netlist import MOST_LOCATIONS, Netlist, netlist_products
from simulator.gates.signs import Signs, signed_products

__all__ = ["DESIGNS", "Multiplier", "TableErrors", "built_in", "exact_products", "table_errors"]


def exact_products(weight_bits: int, act_bits: int, *, act_signed: bool = True) -> Int16Array:
    """Every product of signed weights: int16 [2**weight_bits, 2**act_bits], indexed by the operands' bit patterns."""
    return signed_products((1 << weight_bits, 1 << act_bits), Signs(True, act_signed)).astype(np.int16)


@dataclass(frozen=True, eq=False)
class Multiplier:
    """The multiplier of a PE and what may be wrong with it. Immutable; equal ones behave alike at every location.

    Either gates, whose outputs and pins are the locations of faults; or product tables, of which the first holds
    without faults and table i + 1 stands for location i: any fault there makes the PE multiply by that table (for a
    FLIP in its one cycle; with several faults in a PE, the highest location's). So an approximate multiplier is a
    table for all PEs, and one that stands for some faulty PEs is the table of a location.

    Args:
        name: for people: the name of a built-in design or of a file.
        netlist: gates; None for tables.
        tables: int16 [1 + locations, 2**weight_bits, 2**act_bits], products by the operands' bit patterns; None for
            gates.
        act_signed: whether activations are two's complement.

    Raises:
        InputError: both or neither of gates and tables, tables of a wrong shape or type, products that
            `weight_bits + act_bits` bits do not hold, or gates of other operands than signed weights.
    """

    name: str
    netlist: Netlist | None = None
    tables: Int16Array | None = None
    act_signed: bool = True

    def __post_init__(self) -> None:
        if (self.netlist is None) == (self.tables is None):
            raise InputError(f"multiplier {self.name}: expected either gates or tables")
        if self.netlist is not None:
            if not self.netlist.weight_signed or self.netlist.act_signed != self.act_signed:
                raise InputError(
                    f"multiplier {self.name} is for weights signed={self.netlist.weight_signed} and activations "
                    f"signed={self.netlist.act_signed}: expected signed weights and act_signed={self.act_signed}"
                )
            return
        try:
            tables = np.array(self.tables, order="C")
        except ValueError as error:
            raise InputError(f"multiplier {self.name}: tables: {error}") from None
        sides = [side.bit_length() - 1 for side in tables.shape[1:]]
        if (
            tables.dtype != np.int16
            or tables.ndim != 3
            or not 1 <= len(tables) <= MOST_LOCATIONS
            or not all(2 <= side <= 8 for side in sides)
            or tables.shape[1:] != tuple(1 << side for side in sides)
        ):
            raise InputError(
                f"multiplier {self.name}: tables are {tables.dtype} {tables.shape}: "
                "expected int16 [tables, 2**weight_bits, 2**act_bits], with 2 to 8 bits each"
            )
        half = 1 << (sum(sides) - 1)
        if tables.min() < -half or tables.max() >= half:
            outside = tables[(tables < -half) | (tables >= half)][0]
            raise InputError(
                f"multiplier {self.name}: a table holds {outside}: expected {-half}..{half - 1}, "
                f"the numbers of {sum(sides)} bits"
            )
        tables.flags.writeable = False
        object.__setattr__(self, "tables", tables)

    @classmethod
    def from_tables(
        cls, name: str, normal: npt.ArrayLike | None, faulty: list[Int16Array], *, act_signed: bool = True
    ) -> Multiplier:
        """A multiplier of tables.

        Args:
            name: for people.
            normal: int16 [2**weight_bits, 2**act_bits], products without faults; None for exact ones.
            faulty: tables of the same shape, one for each location.
            act_signed: whether activations are two's complement.

        Raises:
            InputError: as for the class, or there is no table at all.
        """
        tables = [np.asarray(table) for table in faulty]
        if normal is not None:
            tables.insert(0, np.asarray(normal))
        shapes = {table.shape for table in tables}
        if not tables:
            raise InputError(f"multiplier {name}: no table is given: expected the normal one or faulty ones")
        if len(shapes) > 1 or tables[0].ndim != 2 or not tables[0].size:
            raise InputError(f"multiplier {name}: tables are {sorted(shapes)}: expected the same two sides for all")
        if normal is None:
            weight_bits, act_bits = (side.bit_length() - 1 for side in tables[0].shape)
            tables.insert(0, exact_products(weight_bits, act_bits, act_signed=act_signed))
        return cls(name, tables=np.stack(tables), act_signed=act_signed)

    @property
    def weight_bits(self) -> int:
        """Width of the weight."""
        return self.netlist.weight_bits if self.netlist is not None else self._table_bits(1)

    @property
    def act_bits(self) -> int:
        """Width of the activation."""
        return self.netlist.act_bits if self.netlist is not None else self._table_bits(2)

    def _table_bits(self, axis: int) -> int:
        assert self.tables is not None
        return int(self.tables.shape[axis]).bit_length() - 1

    @property
    def locations(self) -> int:
        """Number of places where a fault can sit."""
        if self.netlist is not None:
            return self.netlist.locations
        assert self.tables is not None
        return len(self.tables) - 1

    @cached_property
    def products(self) -> Int16Array:
        """int16 [2**weight_bits, 2**act_bits]: products without faults, by the operands' bit patterns."""
        if self.netlist is not None:
            return netlist_products(self.netlist).astype(np.int16)
        assert self.tables is not None
        normal: Int16Array = self.tables[0]
        return normal

    @cached_property
    def exact(self) -> bool:
        """Whether it multiplies exactly while nothing is broken."""
        expected = exact_products(self.weight_bits, self.act_bits, act_signed=self.act_signed)
        return np.array_equal(self.products, expected)

    def location_name(self, location: int) -> str:
        """A location for people.

        Raises:
            InputError: there is no such location.
        """
        if self.netlist is not None:
            return self.netlist.location_name(location)
        if not 0 <= location < self.locations:
            raise InputError(f"location {location}: multiplier {self.name} has {self.locations}")
        return f"table {location + 1}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything but the name: equal exactly for equal multipliers."""
        if self.netlist is not None:
            return self.netlist.digest
        assert self.tables is not None
        header = repr((self.tables.shape, self.act_signed)).encode()
        return hashlib.sha256(header + b"\n" + self.tables.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Multiplier):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Multiplier({self.name!r}, {self.weight_bits}x{self.act_bits} bits, {self.locations} locations)"


@lru_cache(maxsize=512)
def built_in(design: str, weight_bits: int, act_bits: int, *, act_signed: bool = True) -> Multiplier:
    """A multiplier of one of `DESIGNS`, with signed weights.

    Raises:
        InputError: an unknown design, or a width that is not 1..8.
    """
    netlist = build_netlist(design, weight_bits, act_bits, act_signed=act_signed)
    return Multiplier(design, netlist, act_signed=act_signed)


class TableErrors(NamedTuple):
    """How far a product table is from the exact products, over all pairs of operands."""

    mean_absolute: float
    worst_case: int
    """Largest |table - exact|."""
    probability: float
    """Fraction of pairs that differ."""
    mean: float
    """Of table - exact: the bias."""


def table_errors(products: npt.NDArray[np.integer], exact: npt.NDArray[np.integer]) -> TableErrors:
    """Compare a product table with the exact one, [2**weight_bits, 2**act_bits] both."""
    difference = products.astype(np.int64) - exact
    distance = np.abs(difference)
    return TableErrors(
        mean_absolute=float(distance.mean()),
        worst_case=int(distance.max()),
        probability=float((distance > 0).mean()),
        mean=float(difference.mean()),
    )
