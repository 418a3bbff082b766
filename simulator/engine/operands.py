"""What a GEMM on an array takes, checked alike for every engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.faults import FaultMap


class CheckedGemm(NamedTuple):
    """The operands and the chip of one GEMM."""

    x: npt.NDArray[np.integer]
    """[M, K], within `config.act_range`."""
    w: npt.NDArray[np.integer]
    """[K, N], within `config.weight_range`."""
    faults: FaultMap
    bypass: BoolArray
    """bool [rows, cols]"""


def check_gemm(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    config: ArrayConfig,
    faults: FaultMap | None,
    bypass: npt.ArrayLike | None,
) -> CheckedGemm:
    """The operands and the chip of a GEMM; an `InputError` where something cannot be or does not fit."""
    acts = check_operand("x", x, config.act_range, "M, K")
    weights = check_operand("w", w, config.weight_range, "K, N")
    if acts.shape[1] != weights.shape[0]:
        raise InputError(f"x is {acts.shape} and w is {weights.shape}: expected x [M, K] and w [K, N] with the same K")
    return CheckedGemm(acts, weights, *check_chip(config, faults, bypass))


def check_operand(name: str, values: npt.ArrayLike, limits: tuple[int, int], axes: str) -> npt.NDArray[np.integer]:
    """One operand of a GEMM, integers of two dimensions (`axes`, in messages) within limits, as an array."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise InputError(f"{name} has shape {array.shape}: expected two dimensions [{axes}]")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} holds {array.dtype}: expected integers; quantise it first")
    low, high = limits
    if array.size and not (array.min() >= low and array.max() <= high):
        outside = array[(array < low) | (array > high)][0]
        raise InputError(f"{name} holds {outside}: expected {low}..{high} for this array's widths")
    return array


def check_chip(
    config: ArrayConfig, faults: FaultMap | None, bypass: npt.ArrayLike | None
) -> tuple[FaultMap, BoolArray]:
    """What is broken in an array and bool [rows, cols] which PEs it bypasses, None for nothing; both must be its."""
    faults = FaultMap(config) if faults is None else faults
    if faults.config != config:
        raise InputError(f"faults are of another array: they are of {faults.config}, expected {config}")
    shape = (config.rows, config.cols)
    mask = np.zeros(shape, np.bool_) if bypass is None else np.asarray(bypass)
    if mask.dtype != np.bool_:
        raise InputError(f"bypass holds {mask.dtype}: expected bool")
    if mask.shape != shape:
        raise InputError(f"bypass has shape {mask.shape}: expected {shape}, one entry per PE")
    return faults, mask
