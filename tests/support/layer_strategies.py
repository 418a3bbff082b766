"""Random layers with inputs, on random chips: for what must compute as a chip does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.dtypes import BoolArray
from tests.support.strategies import configs, fault_maps
from training.layers.accelerator import Accelerator, Engine
from training.layers.placement import Placement
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.learning.mitigations.assignment import in_order_on_usable_columns

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
