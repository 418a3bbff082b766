"""How bad a chip is for a network: the PEs that it must do without, and how much of the network sits on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from efat.records import Record, Share
from simulator import ArrayConfig
from simulator.dtypes import BoolArray, Float64Array, Int64Array
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment


class Predictors(Record, frozen=True):
    """What is known of a chip before a network is retrained for it, the simplest first.

    Attributes:
        faulty_pes: fraction of the PEs that are faulty.
        weights: fraction of the weights that sit on PEs that must be bypassed if operands sit in order.
        pruned: fraction of the weights that are pruned as deployed.
        saliency: mean over layers of the fraction of the sum of squared weights that these have.
    """

    faulty_pes: Share
    weights: Share
    pruned: Share
    saliency: Share


PREDICTORS = Predictors.__struct_fields__
"""Their names."""

MASK_PREDICTORS = ("faulty_pes", "weights")
"""Those that count PEs: known of the union of some chips without placing anything."""

MOST_WEIGHTS = 1 << 53
"""Up to here float64 tells apart the shares of any two numbers of weights."""


class PrunedSeverity(NamedTuple):
    """How much of a network is pruned.

    Attributes:
        pruned: the fraction of its weights that is, 0..1.
        saliency: the fraction of the sum of the squares of a layer's weights that is, 0..1; the mean over the layers.
    """

    pruned: float
    saliency: float


def weights_per_pe(gemms: Sequence[tuple[int, int, int]], config: ArrayConfig) -> Int64Array:
    """Count the weights of a network that each PE holds, over all folds of all layers.

    With the default placement reduction index k sits on row k mod R and output n on column n mod C.

    Args:
        gemms: (groups, K, N) of each layer, at least one; all groups of a grouped convolution have the same K and N.
        config: the array.

    Returns:
        int64 [R, C].

    Raises:
        InputError: there are no layers, a number below 1, or more weights than `MOST_WEIGHTS`.
    """
    if not gemms:
        raise InputError("network has no layers: expected (groups, K, N) of at least one")
    for gemm in gemms:
        if min(gemm) < 1:
            groups, k, n = gemm
            raise InputError(f"layer has groups={groups}, K={k}, N={n}: expected 1 or more of each")
    total = sum(groups * k * n for groups, k, n in gemms)
    if total > MOST_WEIGHTS:
        raise InputError(f"network has {total} weights: expected at most {MOST_WEIGHTS}")
    weights = np.zeros((config.rows, config.cols), np.int64)
    for groups, k, n in gemms:
        weights += groups * np.outer(_times_used(k, config.rows), _times_used(n, config.cols))
    return weights


def severity(bypass: BoolArray, weights: Int64Array) -> Float64Array:
    """Find the fraction of a network's weights that bypassed PEs remove; PEs that hold none of them do not count.

    Args:
        bypass: bool [..., R, C].
        weights: int64 [R, C], what each PE holds, see `weights_per_pe`.

    Returns:
        float64 [...], 0..1.

    Raises:
        InputError: masks that are not bool or of another shape, or weights that are refused by `total_weights`.
    """
    total = total_weights(weights)
    if bypass.dtype != np.bool_ or bypass.shape[-2:] != weights.shape:
        raise InputError(
            f"bypass is {bypass.dtype} {bypass.shape}: expected bool with {weights.shape[0]}x{weights.shape[1]} PEs "
            "last, as the weights have"
        )
    removed = np.sum(np.broadcast_to(weights, bypass.shape), axis=(-2, -1), where=bypass)
    return np.asarray(removed / total, np.float64)


def pruned_severity(weights: Sequence[npt.NDArray[np.floating]], pruned: Sequence[BoolArray]) -> PrunedSeverity:
    """Find how much of a network is gone when weights are pruned, wherever operands sit.

    Args:
        weights: of each layer before they are pruned, float, finite; at least one layer, and none without weights.
        pruned: which of them are, bool of the same shapes. A layer of zeros loses nothing that counts as saliency.

    Raises:
        InputError: layers or shapes that do not fit each other, masks that are not bool, or nothing to count.
    """
    if not weights or len(weights) != len(pruned):
        raise InputError(f"weights of {len(weights)} layers, masks of {len(pruned)}: expected as many, at least one")
    gone = total = 0
    shares = []
    for layer, mask in zip(weights, pruned, strict=True):
        if mask.dtype != np.bool_ or mask.shape != layer.shape or not layer.size:
            raise InputError(
                f"mask of a layer is {mask.dtype} {mask.shape}: expected bool {layer.shape} of one weight or more"
            )
        gone, total = gone + int(mask.sum()), total + layer.size
        squares = np.square(layer, dtype=np.float64)
        whole = float(squares.sum())
        shares.append(float(squares.sum(where=mask)) / whole if whole else 0.0)
    return PrunedSeverity(gone / total, min(1.0, sum(shares) / len(shares)))


def predictors_of(network: nn.Module, deployment: Deployment, chip: Chip) -> Predictors:
    """How bad a chip is for a network.

    Args:
        network: float32, before retraining.
        deployment: how it sits on the chip.
        chip: the chip.

    """
    config = chip.faults.config
    required = chip.faults.required_bypass()
    converted = convert(network, config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults))
    layers = quantized_layers(converted).values()
    weights = [(layer.weight_int.flatten(1) * layer.weight_scale[:, None]).cpu().numpy() for layer in layers]
    gone = []
    for layer, values in zip(layers, weights, strict=True):
        kept = layer.acting(deployment.bypass)
        gone.append(np.zeros(values.shape, np.bool_) if kept is None else ~kept.flatten(1).cpu().numpy())
    found = pruned_severity(weights, gone)
    return Predictors(
        faulty_pes=float(chip.faults.faulty_pes().mean()),
        weights=float(severity(required, weights_per_pe([layer.gemm_shape for layer in layers], config))),
        pruned=found.pruned,
        saliency=found.saliency,
    )


def total_weights(weights: Int64Array) -> int:
    """Count all weights of a network.

    Args:
        weights: int64 [R, C], what each PE holds.

    Returns:
        1..`MOST_WEIGHTS`.

    Raises:
        InputError: the array is not of integers or has no two dimensions, a number is negative, all are 0, or together
            they are too many.
    """
    if not np.issubdtype(weights.dtype, np.integer) or weights.ndim != 2:
        raise InputError(f"weights of the PEs are {weights.dtype} {weights.shape}: expected integers [R, C]")
    if weights.size and weights.min() < 0:
        raise InputError(f"weights of a PE are {weights.min()}: expected 0 or more")
    # In float64, which does not wrap.
    total = float(weights.sum(dtype=np.float64))
    if not 1 <= total <= MOST_WEIGHTS:
        raise InputError(f"the PEs hold {total:.0f} weights in total: expected 1..{MOST_WEIGHTS}")
    return int(weights.sum())


def _times_used(length: int, side: int) -> Int64Array:
    """How often each row or column is used when `length` indices are laid around `side` of them: int64 [side]."""
    return length // side + (np.arange(side) < length % side)


def bypass_of(chip: Chip) -> BoolArray:
    """What is bypassed on a chip: what its faults require and what its fuses bypass, bool [R, C]."""
    return _with_fuses(chip, chip.faults.required_bypass())


def mask_of(chip: Chip, predictor: str) -> BoolArray:
    """The PEs that one of `MASK_PREDICTORS` counts, bool [R, C]; what fuses bypass is as good as faulty."""
    return bypass_of(chip) if predictor == "weights" else _with_fuses(chip, chip.faults.faulty_pes())


def counts_of(predictor: str, weights: Int64Array) -> Int64Array:
    """What one of `MASK_PREDICTORS` counts each PE as, int64 [R, C]."""
    return weights if predictor == "weights" else np.ones_like(weights)


def _with_fuses(chip: Chip, mask: BoolArray) -> BoolArray:
    return mask if chip.bypass is None else mask | chip.bypass
