"""The parameters of one systolic array: its size and the widths of its nets."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields

LARGEST_SIDE = 1024
SMALLEST_OPERAND_BITS = 2
LARGEST_OPERAND_BITS = 8
LARGEST_ACCUMULATOR_BITS = 32


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

    Raises:
        TypeError: a size or width is not an integer, or `act_signed` is not a bool.
        ValueError: a size or width is out of its range.
    """

    rows: int
    cols: int
    weight_bits: int = 8
    act_bits: int = 8
    act_signed: bool = True
    acc_bits: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "act_signed":
                if not isinstance(value, bool):
                    raise TypeError(f"act_signed is {value!r}: expected True or False")
                continue
            try:
                object.__setattr__(self, field.name, operator.index(value))
            except TypeError:
                raise TypeError(f"{field.name} is {value!r}: expected an integer") from None
        self._check_range("rows", 1, LARGEST_SIDE)
        self._check_range("cols", 1, LARGEST_SIDE)
        self._check_range("weight_bits", SMALLEST_OPERAND_BITS, LARGEST_OPERAND_BITS)
        self._check_range("act_bits", SMALLEST_OPERAND_BITS, LARGEST_OPERAND_BITS)
        self._check_range("acc_bits", self.product_bits, LARGEST_ACCUMULATOR_BITS)

    def _check_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            because = " (weight_bits + act_bits is the least)" if name == "acc_bits" else ""
            raise ValueError(f"{name} is {value}: expected {low}..{high}{because}")

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
