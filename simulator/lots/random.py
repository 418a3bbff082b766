"""Lots of random chips: each chip has its own random stream, so a lot does not depend on the order it is made in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from simulator import ArrayConfig, FaultModel, sample_faults
from simulator.lots.chips import Chip


def generate_chips(config: ArrayConfig, model: FaultModel, count: int, seed: int) -> Iterator[Chip]:
    """Make chips with random faults, named chip-0000 and so on.

    Args:
        config: the array.
        model: what their faults look like.
        count: number of chips.
        seed: of the lot; chip i derives its own stream from it and i.

    Yields:
        The chips, one by one.
    """
    low, high = model.rates
    for number in range(count):
        rate_seed, fault_seed = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(2)
        share = np.random.default_rng(rate_seed).random()
        if low == high:
            rate = low
        elif low == 0:
            rate = high * share
        else:
            rate = min(high, math.exp(math.log(low) + share * math.log(high / low)))
        yield Chip(f"chip-{number:04d}", sample_faults(config, replace(model, rate=rate), fault_seed))


def provenance(source: str, seed: int | None = None) -> dict[str, str]:
    """Where a lot comes from, to be written into its file."""
    described = {"source": source, "program": f"efat {version('efat')}"}
    if seed is not None:
        described["seed"] = str(seed)
    return described
