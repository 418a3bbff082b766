"""The PEs of a chip that networks must do without, and those that a predictor of how bad it is counts."""

from __future__ import annotations

import numpy as np

from efat.planning.severity import Int64Array
from simulator.faults import BoolArray
from simulator.lots.chips import Chip

MASK_PREDICTORS = ("faulty_pes", "weights")
"""Predictors of `efat.resilience.table` that count PEs: known of the union of some chips without placing anything."""


def bypass_of(chip: Chip) -> BoolArray:
    """What is bypassed on a chip: what its faults require and what its fuses bypass, bool [R, C]."""
    return _with_fuses(chip, chip.faults.required_bypass())


def mask_of(chip: Chip, predictor: str) -> BoolArray:
    """The PEs that one of `MASK_PREDICTORS` counts, bool [R, C]; what fuses bypass is as good as faulty."""
    return bypass_of(chip) if predictor == "weights" else _with_fuses(chip, chip.faults.faulty_pes())


def counts_of(predictor: str, weights: Int64Array) -> Int64Array:
    """What one of `MASK_PREDICTORS` counts each PE as, int64 [R, C].

    Args:
        predictor: its name.
        weights: int64 [R, C], what each PE holds, see `efat.planning.severity.weights_per_pe`.
    """
    return weights if predictor == "weights" else np.ones_like(weights)


def _with_fuses(chip: Chip, mask: BoolArray) -> BoolArray:
    return mask if chip.bypass is None else mask | chip.bypass
