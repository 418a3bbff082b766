"""The parameters of one systolic array, its size and the widths of its nets; and sizes of arrays known by name."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from simulator.errors import InputError, checked_integer, did_you_mean
from simulator.gates.designs import DESIGNS
from simulator.multipliers.multiplier import Multiplier, built_in

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
        InputError: a size or width that is no integer or out of its range, `act_signed` that is no bool, an unknown
            design, or a multiplier of other widths.
    """

    rows: int
    cols: int
    weight_bits: int = 8
    act_bits: int = 8
    act_signed: bool = True
    acc_bits: int = 32
    multiplier: str | Multiplier = DEFAULT_MULTIPLIER

    def __post_init__(self) -> None:
        if not isinstance(self.act_signed, bool):
            raise InputError(f"act_signed is {self.act_signed!r}: expected True or False")
        operand_bits = SMALLEST_OPERAND_BITS, LARGEST_OPERAND_BITS
        self._check_integer("rows", 1, LARGEST_SIDE)
        self._check_integer("cols", 1, LARGEST_SIDE)
        self._check_integer("weight_bits", *operand_bits)
        self._check_integer("act_bits", *operand_bits)
        note = " (weight_bits + act_bits is the least)"
        self._check_integer("acc_bits", self.product_bits, LARGEST_ACCUMULATOR_BITS, note)
        self._check_multiplier()

    def _check_integer(self, name: str, least: int, most: int, note: str = "") -> None:
        object.__setattr__(self, name, checked_integer(name, getattr(self, name), least, most, note))

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

    @property
    def record(self) -> ArrayRecord:
        """The array as files have it."""
        multiplier = self.multiplier
        name = multiplier if isinstance(multiplier, str) else f"{multiplier.name} {multiplier.digest}"
        widths = self.weight_bits, self.act_bits, self.act_signed, self.acc_bits
        return ArrayRecord(self.rows, self.cols, *widths, name)

    def as_dict(self) -> dict[str, Any]:
        """The fields of `record` by name."""
        return asdict(self.record)

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


@dataclass(frozen=True)
class ArrayRecord:
    """An array as files have it: the fields of an `ArrayConfig`, a multiplier of one's own by its name and digest.

    Raises:
        InputError: what no array can be.
    """

    rows: int
    cols: int
    weight_bits: int
    act_bits: int
    act_signed: bool
    acc_bits: int
    multiplier: str

    def __post_init__(self) -> None:
        if not isinstance(self.multiplier, str):
            raise InputError(f"multiplier is {self.multiplier!r}: expected its name")
        _ = self.sizes

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def sizes(self) -> ArrayConfig:
        """The array with the default multiplier: a multiplier of one's own is not known by its name."""
        return ArrayConfig(*astuple(self)[:-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.cols

    def difference(self, other: ArrayRecord) -> tuple[str, object, object] | None:
        """The first field that differs, its value here and its value in another array; None if there is none."""
        for field in fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                return field.name, here, there
        return None


@dataclass(frozen=True)
class ArrayPreset:
    """The size of a known array.

    Widths are options of their own, and all arrays here are simulated as weight stationary and with integers, whatever
    the original is. `what` says what it is, `source` where its size stands.
    """

    name: str
    rows: int
    cols: int
    what: str
    source: str


_TPU_V2_V3 = "Jouppi et al., CACM 63(7) 2020, doi 10.1145/3360307"
PRESETS = {
    preset.name: preset
    for preset in (
        ArrayPreset("tpu-v1", 256, 256, "Google TPU v1", "Jouppi et al., ISCA 2017, arXiv 1704.04760"),
        ArrayPreset("tpu-v2", 128, 128, "one array of Google TPU v2", _TPU_V2_V3),
        ArrayPreset("tpu-v3", 128, 128, "one array of Google TPU v3", _TPU_V2_V3),
        ArrayPreset("tpu-v4", 128, 128, "one array of Google TPU v4", "Jouppi et al., ISCA 2023, arXiv 2304.01433"),
        ArrayPreset("gemmini", 16, 16, "Gemmini's default configuration", "Genc et al., DAC 2021, arXiv 1911.09925"),
        ArrayPreset("scale-sim", 32, 32, "SCALE-Sim 3.0.0's scale.cfg", "Samajdar et al. 2018, arXiv 1811.02883"),
    )
}
"""The arrays by name."""
