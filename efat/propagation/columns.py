"""The columns of the tables that a propagation campaign fills, and the codes and names in them.

All columns are flat numbers of little-endian types, so `pandas.DataFrame(table)` takes each table as it is.
docs/formats.md says the same column by column.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

OUTCOMES = ("inactive", "masked", "benign", "top1", "top5")
"""What a fault does to one image, exactly one of them, the mildest first.

`inactive`: no accumulator of any layer ever changed; `masked`: some did, and the scores are bit for bit the same;
`benign`: scores differ, and the best class is the same; `top1`: the best class is another one, which is among the five
best without the fault; `top5`: it is not. Of two classes with the same score the one with the lower number is better.
`top1` and `top5` together are SDC-1, and `top5` is SDC-5, of Li et al., "Understanding error propagation in deep
learning neural network (DNN) accelerators and applications", SC 2017.
"""

PATTERNS = ("single", "column", "row", "block", "all")
"""Where the accumulators [M, N] of one layer differ on one image, the GEMMs of all groups side by side.

`single`: one of them; `column`: more than one, all of one output channel; `row`: more than one, all of one row of X;
`all`: every one; `block`: anything else. What is two of them at once counts as the first of `single`, `all`, `column`
and `row` that it is.
"""

OPERATION_KINDS = ("quantise", "multiply", "relu", "pooling", "other")
"""Operations of a network: a quantised layer is two, `quantise` of its input and `multiply`, its GEMMs with bias."""


class Rule(enum.IntEnum):
    """How the outcome of a fault is known. Values are codes in files and never change."""

    SIMULATED = 0
    """It was injected."""
    UNUSED = 1
    """Nothing that is used can be reached from its net."""
    SAME_VALUE = 2
    """It changes no product and no sum that occurs: mostly the bit has that value anyway."""
    EQUIVALENT = 3
    """It does the same as another fault, which was injected in its place."""


FAULTS_DTYPE = np.dtype(
    [
        ("index", "<i8"),
        ("row", "<u2"),
        ("col", "<u2"),
        ("site", "u1"),
        ("bit", "<u2"),
        ("kind", "u1"),
        ("layer", "<i2"),
        ("group", "<i2"),
        ("cycle", "<i8"),
        ("image", "<i4"),
        ("rule", "u1"),
        ("same_as", "<i8"),
        ("images", "<u4"),
        ("inactive", "<u4"),
        ("masked", "<u4"),
        ("benign", "<u4"),
        ("top1", "<u4"),
        ("top5", "<u4"),
        ("correct_lost", "<u4"),
        ("correct_gained", "<u4"),
        ("first_layer", "<i2"),
        ("last_layer", "<i2"),
    ]
)
"""A row for each fault of the sample, by `index`, strictly ascending.

`index` is its place in the population. `layer`, `group`, `cycle` and `image` say when a FLIP happens, and are -1 for
permanent faults. `rule` is a `Rule`; `same_as` the `index` of the fault that was injected in its place, -1 if there is
none or it is not in the population. `images` is their number, and those of `OUTCOMES` add up to it. `correct_lost` and
`correct_gained` are images that are right only without, and only with the fault. `first_layer` and `last_layer` are the
first and the last layer of which an accumulator changed on any image, -1 if none did.
"""

LAYERS_DTYPE = np.dtype(
    [
        ("fault", "<u4"),
        ("layer", "<u2"),
        ("images_in", "<u4"),
        ("images_acted", "<u4"),
        ("images_out", "<u4"),
        ("outputs_changed", "<u8"),
        ("single", "<u4"),
        ("column", "<u4"),
        ("row", "<u4"),
        ("block", "<u4"),
        ("all", "<u4"),
        ("largest_error", "<i8"),
        ("error_sum", "<f8"),
    ]
)
"""A row for each fault and each layer that anything arrived at or happened in, by `fault` and `layer`, ascending.

Faults of rule EQUIVALENT have those of the fault that stands for them. `fault` is a row of the table of faults.
`images_in`: images in which the quantised input of the layer differs; `images_acted`: in which the fault itself
changes accumulators of the layer; `images_out`: in which the accumulators differ from those without the fault, which
those of `PATTERNS` add up to. `outputs_changed`: accumulators that differ, over all images; `largest_error` and
`error_sum`: the greatest and the sum of their absolute differences, in steps of the accumulator.
"""

OPERATIONS_DTYPE = np.dtype(
    [
        ("stratum", "<u4"),
        ("operation", "<u2"),
        ("images_in", "<u8"),
        ("images_masked", "<u8"),
        ("images_out", "<u8"),
        ("elements_in", "<u8"),
        ("elements_out", "<u8"),
        ("rounded", "<u8"),
        ("saturated", "<u8"),
    ]
)
"""Sums over the faults of a stratum, by `stratum` and `operation`, ascending; rows of zeros may be left out.

`images_in`: how often (fault and image) an input of the operation differs; `images_masked`: how often of these its
output does not; `images_out`: how often its output does, which for `multiply` may be with the same input, where the
fault itself acts. `elements_in` and `elements_out`: values that differ. `rounded` and `saturated`: values of a
quantised input that no longer differ as both are rounded, or clamped, to the same integer; 0 for other operations.
"""

STRATA_DTYPE = np.dtype([("site", "u1"), ("bit", "<u2"), ("kind", "u1"), ("population", "<i8"), ("sampled", "<u4")])
"""A row for each stratum of the population: how many faults it has, and how many of them are in the table of faults."""


@dataclass(frozen=True)
class LayerShape:
    """A quantised layer, by the GEMMs that one image makes.

    Args:
        name: in the network.
        groups: GEMMs, 1 or more.
        m: rows of X.
        k: length of a dot product.
        n: output channels of each group.
    """

    name: str
    groups: int
    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Operation:
    """A step of the network's graph.

    Args:
        name: of the node in the network's graph, or of the layer; both operations of a layer have its name.
        kind: one of `OPERATION_KINDS`.
        layer: place of the last quantised layer whose `multiply` ran when it is done, -1 for none: that of a `multiply`
            is its own, and that of a `quantise` the layer before.
    """

    name: str
    kind: str
    layer: int
