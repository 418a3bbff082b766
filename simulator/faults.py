"""Faults of one array: what is broken, where, and what that does to the hardware's structure."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.config import DEFAULT_MULTIPLIER, ArrayConfig
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError


class Site(enum.IntEnum):
    """The net a fault sits on. Values are codes in files and never change."""

    WEIGHT = 0
    """Output of the stationary weight register: this PE."""
    WEIGHT_LOAD = 1
    """Weight operand where it enters the PE: every weight loaded through it (rows >= r of the column)."""
    ACTIVATION = 2
    """Activation operand where it enters the PE: PEs (r, >= c)."""
    PRODUCT = 3
    """Multiplier output: this PE."""
    PSUM = 4
    """Adder output: the column's running sum from row r down."""
    MULTIPLIER = 5
    """One gate output or input pin inside the multiplier, whose `bit` is a location of it: this PE."""
    ACCUMULATOR = 6
    """Write data of the column accumulator below the last row; `row` must be 0."""

    def bits(self, config: ArrayConfig) -> int:
        """Width of this net in `config`, in bits; for MULTIPLIER the number of locations in the multiplier."""
        if self is Site.MULTIPLIER:
            return config.pe_multiplier.locations
        if self in (Site.WEIGHT, Site.WEIGHT_LOAD):
            return config.weight_bits
        if self is Site.ACTIVATION:
            return config.act_bits
        return config.product_bits if self is Site.PRODUCT else config.acc_bits


class Kind(enum.IntEnum):
    """How a fault behaves. Values are codes in files and never change."""

    STUCK_AT_0 = 0
    STUCK_AT_1 = 1
    FLIP = 2
    """An upset: the bit is inverted in one clock cycle."""


PERMANENT = -1
"""The value of `cycle` in a fault table for faults that are there in every cycle."""

FAULT_DTYPE = np.dtype(
    [("row", "<u2"), ("col", "<u2"), ("site", "u1"), ("bit", "<u2"), ("kind", "u1"), ("cycle", "<i8")]
)
"""One row of a fault table; the order of the fields is also the canonical sort order."""


@dataclass(frozen=True)
class Fault:
    """One fault of one net.

    Args:
        row: PE row, from 0 in the north (0 for `Site.ACCUMULATOR`).
        col: PE column, from 0 in the west.
        site: the net.
        bit: bit of that net, 0 is least significant; for `Site.MULTIPLIER` a location in the multiplier, see
            `simulator.multipliers.multiplier.Multiplier`.
        kind: stuck-at-0, stuck-at-1 or flip.
        cycle: clock cycle of a `FLIP`, counted from 0 over one GEMM in serial timing; None otherwise.
    """

    row: int
    col: int
    site: Site
    bit: int
    kind: Kind
    cycle: int | None = None


@dataclass(frozen=True)
class FaultCounts:
    """Counts of a fault map.

    Attributes:
        faults: how many there are.
        faulty_pes: PEs with one or more of them.
        fault_rate: the same as a fraction of all PEs, 0..1.
        required_bypass: PEs that must be bypassed.
        required_bypass_rate: the same as a fraction of all PEs, 0..1.
        unusable_columns: columns whose accumulator has a permanent fault.
        by_site: faults by the name of their site.
        by_kind: faults by the name of their kind.
    """

    faults: int
    faulty_pes: int
    fault_rate: float
    required_bypass: int
    required_bypass_rate: float
    unusable_columns: int
    by_site: Mapping[str, int]
    by_kind: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON takes them."""
        return asdict(self)


class FaultMap:
    """The faults of one array. Immutable; equal faults are one fault; faults are kept in canonical order.

    Build one with `FaultMap(config)` (no faults), `from_faults`, `from_arrays` or `simulator.sampling.sample_faults`.
    """

    __slots__ = ("_config", "_table")

    def __init__(self, config: ArrayConfig, table: npt.NDArray[np.void] | None = None) -> None:
        """Check and adopt a fault table.

        Args:
            config: the array.
            table: structured array [faults] of `FAULT_DTYPE`, in any order; None for no faults.

        Raises:
            InputError: a fault lies outside the array or its net, or contradicts another.
        """
        rows = np.empty(0, FAULT_DTYPE) if table is None else np.asarray(table)
        if rows.dtype != FAULT_DTYPE or rows.ndim != 1:
            raise InputError(f"fault table has dtype {rows.dtype}: expected one dimension of {FAULT_DTYPE}")
        _check(config, rows)
        rows = _canonical(rows)
        _check_no_contradiction(rows)
        rows.flags.writeable = False
        self._config = config
        self._table = rows

    @classmethod
    def from_faults(cls, config: ArrayConfig, faults: Iterable[Fault]) -> FaultMap:
        """Build a map from single faults.

        Raises:
            InputError: a field is no integer, a fault lies outside the array or its net, has a cycle it must not have
                (or lacks one), or contradicts another.
        """
        listed = list(faults)
        for fault in listed:
            if (fault.kind == Kind.FLIP) != (fault.cycle is not None):
                needs = "FLIP needs the clock cycle it happens in" if fault.cycle is None else "only FLIP has a cycle"
                raise InputError(f"{fault}: {needs}")
        columns: dict[str, Any] = {name: [getattr(fault, name) for fault in listed] for name in FAULT_DTYPE.names or ()}
        columns["cycle"] = [PERMANENT if cycle is None else cycle for cycle in columns["cycle"]]
        return cls.from_arrays(config, **columns)

    @classmethod
    def from_arrays(
        cls,
        config: ArrayConfig,
        *,
        row: npt.ArrayLike,
        col: npt.ArrayLike,
        site: npt.ArrayLike,
        bit: npt.ArrayLike,
        kind: npt.ArrayLike,
        cycle: npt.ArrayLike | None = None,
    ) -> FaultMap:
        """Build a map from one integer array [faults] per field; `cycle` is -1 (or left out) for permanent faults.

        Raises:
            InputError: no integers, arrays of unequal length, or values as in `FaultMap`.
        """
        columns = {"row": row, "col": col, "site": site, "bit": bit, "kind": kind}
        count = len(np.atleast_1d(np.asarray(row)))
        columns["cycle"] = np.full(count, PERMANENT) if cycle is None else cycle
        table = np.empty(count, FAULT_DTYPE)
        for name, values in columns.items():
            array = np.asarray(values)
            if array.size and not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"fault field {name!r} holds {array.dtype}: expected integers")
            if array.shape != (count,):
                raise InputError(f"fault field {name!r} has shape {array.shape}: expected ({count},) like 'row'")
            limits = np.iinfo(FAULT_DTYPE[name])
            outside = (array < limits.min) | (array > limits.max)
            if outside.any():
                raise InputError(f"fault field {name!r} holds {array[outside][0]}: expected {limits.min}..{limits.max}")
            table[name] = array
        return cls(config, table)

    @property
    def config(self) -> ArrayConfig:
        """The array these faults are of."""
        return self._config

    @property
    def table(self) -> npt.NDArray[np.void]:
        """The faults in canonical order: a read-only structured array [faults] of `FAULT_DTYPE`."""
        return self._table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Fault]:
        for row, col, site, bit, kind, cycle in self._table.tolist():
            yield Fault(row, col, Site(site), bit, Kind(kind), None if cycle == PERMANENT else cycle)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FaultMap):
            return NotImplemented
        return self._config == other._config and np.array_equal(self._table, other._table)

    def __hash__(self) -> int:
        return hash((self._config, self._table.tobytes()))

    def __repr__(self) -> str:
        return f"FaultMap({self._config.rows}x{self._config.cols}, {len(self)} faults, {self.digest()[:12]})"

    def __or__(self, other: FaultMap) -> FaultMap:
        """Fuse: all faults of both maps.

        Raises:
            InputError: the maps are of different arrays, or one has a bit stuck at 0 that the other has stuck at 1.
        """
        if not isinstance(other, FaultMap):
            return NotImplemented
        if self._config != other._config:
            raise InputError(f"cannot fuse fault maps of different arrays: {self._config} and {other._config}")
        return FaultMap(self._config, np.concatenate([self._table, other._table]))

    def permute_rows(self, order: Sequence[int] | npt.NDArray[np.integer]) -> FaultMap:
        """The map whose row i is row `order[i]` of this one; column accumulators stay where they are."""
        table = self._table.copy()
        in_array = table["site"] != Site.ACCUMULATOR
        table["row"][in_array] = _new_positions(order, self._config.rows, "row")[table["row"][in_array]]
        return FaultMap(self._config, table)

    def permute_columns(self, order: Sequence[int] | npt.NDArray[np.integer]) -> FaultMap:
        """The map whose column i is column `order[i]` of this one."""
        table = self._table.copy()
        table["col"] = _new_positions(order, self._config.cols, "column")[table["col"]]
        return FaultMap(self._config, table)

    @property
    def has_flips(self) -> bool:
        """Whether any fault is transient."""
        return bool((self._table["kind"] == Kind.FLIP).any())

    def faulty_pes(self) -> BoolArray:
        """Mark the PEs with any fault of their own, bool [rows, cols]; column accumulators are not PEs."""
        return self._marked(self._table["site"] != Site.ACCUMULATOR)

    def required_bypass(self) -> BoolArray:
        """The smallest bypass mask with which the array computes exact sums of the products that are left.

        Bypass (FAP, Zhang et al. 2018, arXiv 1802.04657) hides WEIGHT, MULTIPLIER, PRODUCT and PSUM faults of a PE.
        An ACTIVATION fault spoils the rest of its row and a WEIGHT_LOAD fault the rest of its column, so all of those
        are bypassed. Nothing hides an ACCUMULATOR fault: see `unusable_columns`. Looks at permanent faults only.

        Returns:
            bool [rows, cols].
        """
        site = self._table["site"]
        permanent = self._table["kind"] != Kind.FLIP
        own = np.isin(site, (Site.WEIGHT, Site.MULTIPLIER, Site.PRODUCT, Site.PSUM))
        rest_of_row = self._marked(permanent & (site == Site.ACTIVATION))
        rest_of_column = self._marked(permanent & (site == Site.WEIGHT_LOAD))
        return (
            self._marked(permanent & own)
            | np.logical_or.accumulate(rest_of_row, axis=1)
            | np.logical_or.accumulate(rest_of_column, axis=0)
        )

    def unusable_columns(self) -> Int64Array:
        """List the columns, int64 [columns], whose accumulator has a permanent fault; no output may be mapped there."""
        broken = (self._table["site"] == Site.ACCUMULATOR) & (self._table["kind"] != Kind.FLIP)
        return np.unique(self._table["col"][broken]).astype(np.int64)

    def summary(self) -> FaultCounts:
        """Counts for a person or a report."""
        faulty = int(self.faulty_pes().sum())
        bypass = int(self.required_bypass().sum())
        pes = self._config.pe_count
        return FaultCounts(
            faults=len(self),
            faulty_pes=faulty,
            fault_rate=faulty / pes,
            required_bypass=bypass,
            required_bypass_rate=bypass / pes,
            unusable_columns=len(self.unusable_columns()),
            by_site={site.name: int((self._table["site"] == site).sum()) for site in Site},
            by_kind={kind.name: int((self._table["kind"] == kind).sum()) for kind in Kind},
        )

    def digest(self) -> str:
        """SHA-256 (hex) of the array's configuration and the faults: equal exactly for equal maps."""
        fields = self._config.as_dict()
        if fields["multiplier"] == DEFAULT_MULTIPLIER:
            # As it was before there was a choice: digests of old lots stay what they are.
            del fields["multiplier"]
        header = repr(sorted(fields.items())).encode()
        return hashlib.sha256(header + b"\n" + self._table.tobytes()).hexdigest()

    def _marked(self, chosen: BoolArray) -> BoolArray:
        mask = np.zeros((self._config.rows, self._config.cols), np.bool_)
        mask[self._table["row"][chosen], self._table["col"][chosen]] = True
        return mask


def _new_positions(order: Sequence[int] | npt.NDArray[np.integer], size: int, axis: str) -> Int64Array:
    """Where each old position went, int64 [size]."""
    array = np.asarray(order)
    if array.shape != (size,) or not np.array_equal(np.sort(array), np.arange(size)):
        raise InputError(f"{axis} order is not a permutation: expected each of 0..{size - 1} exactly once")
    positions = np.empty(size, np.int64)
    positions[array] = np.arange(size)
    return positions


def _describe(fault: npt.NDArray[np.void] | np.void) -> str:
    names = {"site": {int(site): site.name for site in Site}, "kind": {int(kind): kind.name for kind in Kind}}
    values = {name: int(fault[name]) for name in FAULT_DTYPE.names or ()}
    return ", ".join(f"{name}={names.get(name, {}).get(value, value)}" for name, value in values.items())


def _reject(table: npt.NDArray[np.void], wrong: BoolArray, expected: str) -> None:
    if wrong.any():
        position = int(np.argmax(wrong))
        raise InputError(f"fault {position} ({_describe(table[position])}): {expected}")


def _check(config: ArrayConfig, table: npt.NDArray[np.void]) -> None:
    site_codes = [int(site) for site in Site]
    known = ", ".join(f"{int(site)} {site.name}" for site in Site)
    _reject(table, ~np.isin(table["site"], site_codes), f"unknown site: expected one of {known}")
    kinds = ", ".join(f"{int(kind)} {kind.name}" for kind in Kind)
    _reject(table, table["kind"] > max(Kind), f"unknown kind: expected one of {kinds}")
    _reject(table, table["row"] >= config.rows, f"expected row 0..{config.rows - 1}")
    _reject(table, table["col"] >= config.cols, f"expected col 0..{config.cols - 1}")
    _reject(
        table,
        (table["site"] == Site.ACCUMULATOR) & (table["row"] != 0),
        "an ACCUMULATOR fault is of a column, not of a PE: expected row 0",
    )
    widths = np.zeros(max(Site) + 1, np.int64)
    # Building a multiplier takes milliseconds: only where it is faulty.
    for site in np.unique(table["site"]).tolist():
        widths[site] = Site(site).bits(config)
    of_multiplier = table["site"] == Site.MULTIPLIER
    beyond = table["bit"] >= widths[table["site"]]
    _reject(table, beyond & of_multiplier, f"bit is beyond the {widths[Site.MULTIPLIER]} locations of the multiplier")
    _reject(table, beyond, "bit is beyond the width of its net")
    flip = table["kind"] == Kind.FLIP
    _reject(table, flip & (table["cycle"] < 0), "a FLIP needs the clock cycle it happens in, 0 or later")
    _reject(table, ~flip & (table["cycle"] != PERMANENT), f"only a FLIP has a cycle: expected {PERMANENT}")


def _canonical(table: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Sorted by the fields in order, equal faults once, always a fresh array."""
    if not len(table):
        return np.empty(0, FAULT_DTYPE)
    ordered = table[_sort_order(table)]
    repeats = np.zeros(len(ordered), np.bool_)
    repeats[1:] = ordered[1:] == ordered[:-1]
    return ordered[~repeats]


def _sort_order(table: npt.NDArray[np.void]) -> Int64Array:
    """Stable order by the fields; one 64-bit key does for all but the cycle, which sorts far faster than a lexsort."""
    key = table["row"].astype(np.uint64)
    for name, bits in (("col", 10), ("site", 3), ("bit", 16), ("kind", 2)):
        key = (key << np.uint64(bits)) | table[name]
    if (table["cycle"] == PERMANENT).all():
        return np.argsort(key, kind="stable")
    return np.lexsort((table["cycle"], key))


def _check_no_contradiction(table: npt.NDArray[np.void]) -> None:
    """A bit of a net cannot be stuck at both values."""
    stuck = table[table["kind"] != Kind.FLIP]
    same = np.ones(max(len(stuck) - 1, 0), np.bool_)
    for name in ("row", "col", "site", "bit"):
        same &= stuck[name][1:] == stuck[name][:-1]
    if same.any():
        fault = stuck[int(np.argmax(same))]
        raise InputError(f"fault ({_describe(fault)}): the same bit is stuck at 0 and at 1; keep one of the two")
