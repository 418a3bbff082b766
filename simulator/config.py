"""The parameters of one systolic array: its size and the widths of its nets."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any

from simulator.errors import InputError
from simulator.gates.designs import DESIGNS
from simulator.multipliers.multiplier import Multiplier, built_in
from simulator.suggestions import did_you_mean

LARGEST_SIDE = 1024
SMALLEST_OPERAND_BITS = 2
LARGEST_OPERAND_BITS = 8
LARGEST_ACCUMULATOR_BITS = 32
DEFAULT_MULTIPLIER = "array"


@dataclass(frozen=True)
class ArrayConfig:
    """A weight-stationary systolic array of `rows` x `cols` processing elements (PEs).

    Row 0 is north and column 0 is west: activations flow west to east, partial sums north to south.

    Args:
        rows: number of PE rows, 1..1024; the reduction dimension of a GEMM lies along them.
        cols: number of PE columns, 1..1024; the output dimension of a GEMM lies along them.
        weight_bits: width of a weight (signed two's complement), 2..8.
        act_bits: width of an activation, 2..8.
        act_signed: whether activations are signed two's complement or unsigned.
        acc_bits: width of a partial sum (signed, wrapping), `weight_bits + act_bits`..32.
        multiplier: what every PE multiplies with: one of `DESIGNS`, which all multiply exactly and differ in where
            their gates can be faulty, or a `simulator.multipliers.multiplier.Multiplier`.

    Raises:
        InputError: a field is of another type or out of its range, or a multiplier of other widths.
    """

    rows: int
    cols: int
    weight_bits: int = 8
    act_bits: int = 8
    act_signed: bool = True
    acc_bits: int = 32
    multiplier: str | Multiplier = DEFAULT_MULTIPLIER

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "multiplier":
                continue
            if field.name == "act_signed":
                if not isinstance(value, bool):
                    raise InputError(f"act_signed is {value!r}: expected True or False")
                continue
            try:
                object.__setattr__(self, field.name, operator.index(value))
            except TypeError:
                raise InputError(f"{field.name} is {value!r}: expected an integer") from None
        self._check_range("rows", 1, LARGEST_SIDE)
        self._check_range("cols", 1, LARGEST_SIDE)
        self._check_range("weight_bits", SMALLEST_OPERAND_BITS, LARGEST_OPERAND_BITS)
        self._check_range("act_bits", SMALLEST_OPERAND_BITS, LARGEST_OPERAND_BITS)
        self._check_range("acc_bits", self.product_bits, LARGEST_ACCUMULATOR_BITS)
        self._check_multiplier()

    def _check_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            because = " (weight_bits + act_bits is the least)" if name == "acc_bits" else ""
            raise InputError(f"{name} is {value}: expected {low}..{high}{because}")

    def _check_multiplier(self) -> None:
        multiplier = self.multiplier
        if isinstance(multiplier, str):
            if multiplier not in DESIGNS:
                hint = did_you_mean(multiplier, DESIGNS)
                raise InputError(f"multiplier {multiplier!r} is unknown: expected one of {', '.join(DESIGNS)}{hint}")
            return
        if not isinstance(multiplier, Multiplier):
            raise InputError(f"multiplier is {multiplier!r}: expected the name of a design or a Multiplier")
        found = (multiplier.weight_bits, multiplier.act_bits, multiplier.act_signed)
        expected = (self.weight_bits, self.act_bits, self.act_signed)
        if found != expected:
            raise InputError(
                f"multiplier {multiplier.name} has (weight_bits, act_bits, act_signed) = {found}: expected {expected}, "
                "those of the array"
            )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; a multiplier that is not built in by its name and digest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.multiplier, str):
            values["multiplier"] = f"{self.multiplier.name} {self.multiplier.digest}"
        return values

    @property
    def pe_multiplier(self) -> Multiplier:
        """What every PE multiplies with; built-in designs are made when they are asked for."""
        if isinstance(self.multiplier, str):
            return built_in(self.multiplier, self.weight_bits, self.act_bits, act_signed=self.act_signed)
        return self.multiplier

    @property
    def multiplies_exactly(self) -> bool:
        """Whether PEs without faults multiply exactly."""
        return isinstance(self.multiplier, str) or self.multiplier.exact

    @property
    def product_bits(self) -> int:
        """Width of the multiplier's output, in bits."""
        return self.weight_bits + self.act_bits

    @property
    def pe_count(self) -> int:
        """Number of PEs in the array."""
        return self.rows * self.cols

    @property
    def weight_range(self) -> tuple[int, int]:
        """The least and the greatest weight, both included."""
        half = 1 << (self.weight_bits - 1)
        return -half, half - 1

    @property
    def act_range(self) -> tuple[int, int]:
        """The least and the greatest activation, both included."""
        if not self.act_signed:
            return 0, (1 << self.act_bits) - 1
        half = 1 << (self.act_bits - 1)
        return -half, half - 1
