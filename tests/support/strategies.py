"""Random arrays, faults, GEMMs and layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing
from simulator.dtypes import BoolArray
from simulator.gates.designs import DESIGNS
from simulator.multipliers.multiplier import Multiplier
from training.layers.accelerator import Accelerator, Engine
from training.layers.placement import Placement
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.learning.mitigations.assignment import in_order_on_usable_columns

LARGEST_SIDE = 5
LONGEST = 11
LARGEST_POOLED = 400

Configs = Callable[..., st.SearchStrategy[ArrayConfig]]


@dataclass(frozen=True)
class GemmCase:
    """Everything one GEMM takes."""

    config: ArrayConfig
    x: npt.NDArray[np.int64]
    w: npt.NDArray[np.int64]
    faults: FaultMap
    bypass: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        faults = "\n    ".join(str(fault) for fault in self.faults)
        return (
            f"{self.config}\nx={self.x.tolist()} {self.x.shape}\nw={self.w.tolist()} {self.w.shape}\n"
            f"bypass={self.bypass.astype(int).tolist()}\nfaults:\n    {faults}"
        )


@st.composite
def configs(draw: st.DrawFn, *, tables: bool = True) -> ArrayConfig:
    """Every legal width, signed and unsigned activations, small arrays down to one PE, all multipliers."""
    weight_bits, act_bits = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    act_signed = draw(st.booleans())
    least_acc_bits = weight_bits + act_bits
    multiplier: str | Multiplier = draw(st.sampled_from(DESIGNS))
    if tables and draw(st.integers(0, 3)) == 3:
        multiplier = draw(table_multipliers(weight_bits, act_bits, act_signed=act_signed))
    return ArrayConfig(
        rows=draw(st.integers(1, LARGEST_SIDE)),
        cols=draw(st.integers(1, LARGEST_SIDE)),
        weight_bits=weight_bits,
        act_bits=act_bits,
        act_signed=act_signed,
        # Sums wrap often only in the narrowest accumulators.
        acc_bits=draw(st.sampled_from([least_acc_bits, 32]) | st.integers(least_acc_bits, 32)),
        multiplier=multiplier,
    )


def pooled_configs(seed: int) -> Configs:
    """Like `configs`, but always one of the same few small arrays: for what compiles each array anew."""
    random = np.random.default_rng(seed)
    pool = []
    for place in range(5):
        weight_bits, act_bits = (int(bits) for bits in random.integers(2, 9, 2))
        if place == 0:
            weight_bits = act_bits = 8
        rows, cols = (int(side) for side in random.integers(1, LARGEST_SIDE + 1, 2))
        # Gates are slow to compile and to simulate.
        while rows * cols * weight_bits * act_bits > LARGEST_POOLED:
            rows, cols = (rows - 1, cols) if rows > cols else (rows, cols - 1)
        least = weight_bits + act_bits
        acc_bits = (32, least, int(random.integers(least, 33)))[place % 3]
        signed = bool(random.integers(2))
        multiplier: str | Multiplier = DESIGNS[place % len(DESIGNS)]
        if place == 4:
            multiplier = random_tables(random, weight_bits, act_bits, act_signed=signed)
        pool.append(ArrayConfig(rows, cols, weight_bits, act_bits, signed, acc_bits, multiplier))

    def choose(*, tables: bool = True) -> st.SearchStrategy[ArrayConfig]:
        return st.sampled_from(pool if tables else pool[:4])

    return choose


@st.composite
def table_multipliers(draw: st.DrawFn, weight_bits: int, act_bits: int, *, act_signed: bool) -> Multiplier:
    """Random product tables: exact without faults, or not."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random_tables(random, weight_bits, act_bits, act_signed=act_signed)


def random_tables(random: np.random.Generator, weight_bits: int, act_bits: int, *, act_signed: bool) -> Multiplier:
    """A multiplier of one to three tables of any numbers, and of exact products or others without faults."""
    half = 1 << (weight_bits + act_bits - 1)
    count = int(random.integers(2, 5))
    tables = random.integers(-half, half, (count, 1 << weight_bits, 1 << act_bits)).astype(np.int16)
    normal = None if random.integers(2) else tables[0]
    return Multiplier.from_tables("random tables", normal, list(tables[1:]), act_signed=act_signed)


@st.composite
def operands(draw: st.DrawFn, shape: tuple[int, int], limits: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Random, extreme, alternating or sparse integers."""
    low, high = limits
    rows, cols = shape
    style = draw(st.sampled_from(["random", "lowest", "highest", "alternating", "sparse"]))
    if style == "lowest":
        return np.full(shape, low)
    if style == "highest":
        return np.full(shape, high)
    if style == "alternating":
        return np.where(np.add.outer(np.arange(rows), np.arange(cols)) % 2 == 0, low, high)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.integers(low, high + 1, shape)
    return np.where(random.random(shape) < 0.15, values, 0) if style == "sparse" else values


@st.composite
def fault_maps(
    draw: st.DrawFn, config: ArrayConfig, cycles: int, kinds: tuple[Kind, ...] = tuple(Kind), most: int = 12
) -> FaultMap:
    """A few faults anywhere, or many on one row, column, PE, net or bit; never both stuck values on one bit."""
    site_choice, bit_choices = st.sampled_from(Site), {site: st.integers(0, site.bits(config) - 1) for site in Site}
    row_choice = st.integers(0, config.rows - 1)
    col_choice = st.integers(0, config.cols - 1)
    crowd = draw(st.sampled_from(["anywhere", "one row", "one column", "one PE", "one net", "one bit"]))
    if crowd not in ("anywhere", "one column"):
        row_choice = st.just(draw(row_choice))
    if crowd not in ("anywhere", "one row"):
        col_choice = st.just(draw(col_choice))
    if crowd in ("one net", "one bit"):
        site_choice = st.just(draw(site_choice))
    if crowd == "one bit":
        bit_choices = {site: st.just(draw(choice)) for site, choice in bit_choices.items()}
    if cycles == 0:
        kinds = tuple(kind for kind in kinds if kind != Kind.FLIP)
    first_flip = draw(st.integers(0, max(0, cycles - 1)))
    last_flip = draw(st.sampled_from([cycles - 1, min(first_flip + 5, cycles - 1)]))
    chosen: dict[tuple[int, ...], Fault] = {}
    for _ in range(draw(st.integers(0, most)) if kinds else 0):
        site = draw(site_choice)
        row = 0 if site == Site.ACCUMULATOR else draw(row_choice)
        col = draw(col_choice)
        bit = draw(bit_choices[site])
        kind = draw(st.sampled_from(kinds))
        cycle = draw(st.integers(first_flip, last_flip)) if kind == Kind.FLIP else None
        # One key for both stuck values of a bit, one for each flip.
        key = (row, col, site, bit, -1 if cycle is None else cycle)
        chosen[key] = Fault(row, col, site, bit, kind, cycle)
    return FaultMap.from_faults(config, chosen.values())


@st.composite
def gemm_cases(
    draw: st.DrawFn,
    kinds: tuple[Kind, ...] = tuple(Kind),
    *,
    bypassing: bool = True,
    least_rows_of_x: int = 0,
    tables: bool = True,
    arrays: Configs = configs,
) -> GemmCase:
    """A whole GEMM on a faulty array: empty, single-row and several-fold shapes, with and without bypass."""
    config = draw(arrays(tables=tables))
    m, k, n = draw(st.integers(least_rows_of_x, 7)), draw(st.integers(1, LONGEST)), draw(st.integers(1, LONGEST))
    faults = draw(fault_maps(config, gemm_timing(config, m, k, n).serial, kinds))
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    if bypassing:
        style = draw(st.sampled_from(["none", "random", "required"]))
        if style == "random":
            bypass = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(bypass.shape) < 0.3
        elif style == "required":
            bypass = faults.required_bypass()
    return GemmCase(
        config,
        draw(operands((m, k), config.act_range)),
        draw(operands((k, n), config.weight_range)),
        faults,
        bypass,
    )


ChipKind = Literal["fault-free", "bypass", "hidden", "visible", "unusable columns"]
CHIP_KINDS: tuple[ChipKind, ...] = get_args(ChipKind)
PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


@dataclass(frozen=True)
class LayerCase:
    """A float layer, an input, and a chip to put it on."""

    layer: nn.Conv2d | nn.Linear
    x: Tensor
    activation_scale: float
    kind: ChipKind
    chip: Accelerator
    placement: Placement | None

    def __repr__(self) -> str:
        bypass = None if self.chip.bypass is None else self.chip.bypass.astype(int).tolist()
        placement = None if self.placement is None else (self.placement.rows.tolist(), self.placement.columns.tolist())
        return (
            f"{self.layer} of {list(self.x.shape)} on {self.kind} {self.chip.config}\nfaults={list(self.faults)}\n"
            f"bypass={bypass}\nplacement={placement}\nstep={self.activation_scale}"
        )

    @property
    def faults(self) -> FaultMap:
        """What is broken."""
        return self.chip.faults if self.chip.faults is not None else FaultMap(self.chip.config)

    @property
    def bypass(self) -> BoolArray:
        """Bool [R, C]."""
        nothing = np.zeros((self.chip.config.rows, self.chip.config.cols), np.bool_)
        return nothing if self.chip.bypass is None else self.chip.bypass

    def quantized(self, engine: Engine = "emulation") -> QuantizedLayer:
        """The layer on its chip."""
        chip = replace(self.chip, engine=engine)
        quantized: QuantizedLayer
        if isinstance(self.layer, nn.Conv2d):
            quantized = QuantizedConv2d(self.layer, self.activation_scale, chip, "layer")
        else:
            quantized = QuantizedLinear(self.layer, self.activation_scale, chip, "layer")
        quantized.placement = self.placement
        return quantized


def random_placement(random: np.random.Generator, groups: int, k: int, n: int, largest: int) -> Placement:
    """Positions anywhere, up to `largest` of them left free."""
    rows = [random.permutation(k + random.integers(largest + 1))[:k] for _ in range(groups)]
    columns = [random.permutation(n + random.integers(largest + 1))[:n] for _ in range(groups)]
    return Placement(np.stack(rows), np.stack(columns))


@st.composite
def linear_layers(draw: st.DrawFn) -> tuple[nn.Linear, Tensor]:
    """A linear layer, and vectors in up to two dimensions."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    layer = nn.Linear(draw(st.integers(1, 11)), draw(st.integers(1, 7)), bias=draw(st.booleans()))
    return layer, torch.randn(*draw(st.lists(st.integers(0, 3), max_size=2)), layer.in_features)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution with strides, dilation, groups and all kinds of padding, and images, maybe without a batch."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.integers(1, 2))
    padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 2), st.integers(0, 2)))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=1 if padding == "same" else draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=padding,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    )
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return layer, torch.randn(*batch, layer.in_channels, draw(st.integers(5, 7)), draw(st.integers(5, 7)))


@st.composite
def layer_cases(draw: st.DrawFn, kind: ChipKind | None = None, *, narrow: bool = False) -> LayerCase:
    """A layer on a chip with permanent faults, its operands in order or elsewhere; some inputs are clipped.

    Args:
        draw: of hypothesis.
        kind: what is wrong with the chip; None for any of them.
        narrow: whether accumulators are the narrowest there are, in which sums of even a few products wrap.
    """
    kind = draw(st.sampled_from(CHIP_KINDS)) if kind is None else kind
    config = draw(configs(tables=kind == "visible"))
    if narrow:
        config = replace(config, acc_bits=config.product_bits)
    layer, x = draw(linear_layers() | convolutions())
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    n, k = len(layer.weight) // groups, layer.weight[0].numel()
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    faults = FaultMap(config) if kind in ("fault-free", "bypass") else draw(_faults(config, kind))
    bypass = random.random((config.rows, config.cols)) < 0.3
    if kind in ("hidden", "unusable columns"):
        bypass |= faults.required_bypass()
    placement = random_placement(random, groups, k, n, 6) if draw(st.booleans()) else None
    if kind == "unusable columns":
        placement = in_order_on_usable_columns(groups, k, n, faults.unusable_columns(), config)
    chip = Accelerator(config, faults or None, None if kind == "fault-free" else bypass)
    # Normal numbers beyond 2.5 are clipped.
    levels = (1 << config.act_bits) - 1 if not config.act_signed else (1 << (config.act_bits - 1)) - 1
    return LayerCase(layer, x, 2.5 / levels, kind, chip, placement)


@st.composite
def _faults(draw: st.DrawFn, config: ArrayConfig, kind: ChipKind) -> FaultMap:
    faults = draw(fault_maps(config, 0, PERMANENT))
    in_pes = [fault for fault in faults if fault.site != Site.ACCUMULATOR]
    if kind == "visible":
        return faults
    if kind == "hidden" or config.cols == 1:
        return FaultMap.from_faults(config, in_pes)
    columns = draw(st.sets(st.integers(0, config.cols - 1), min_size=1, max_size=config.cols - 1))
    broken = [Fault(0, column, Site.ACCUMULATOR, 1, Kind.STUCK_AT_1) for column in columns]
    return FaultMap.from_faults(config, [*in_pes, *broken])
