"""What is to be measured of how a network stands broken PEs: random chips of rising fault rates, and how they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from efat.resilience.table import MOST_CHIPS, MOST_ITERATIONS, MOST_VALUES
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel, Kind, sample_faults
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.layers.convert import convert
from training.learning.mitigations.hardening import Hardening

IMAGES = "tuning images"
"""What of a setup's identity says which images accuracy is measured on."""


@dataclass(frozen=True)
class HardeningPlan:
    """How much the network learns to do without any PEs, before it is known which: see `Hardening`.

    Args:
        iterations: mini-batches, 1 or more.
        lowest: least fault rate of the random chips.
        highest: greatest fault rate.

    Raises:
        InputError: no iterations, or rates that are no range within 0..1.
    """

    iterations: int
    lowest: float = 0.0
    highest: float = 0.2

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= MOST_ITERATIONS:
            raise InputError(f"hardening takes {self.iterations} iterations: expected 1..{MOST_ITERATIONS}")
        Hardening(self.lowest, self.highest)


@dataclass(frozen=True, eq=False)
class Resilience:
    """What is to be measured.

    Args:
        setup: network, data, mitigation and recipe.
        config: the array.
        model: what the faults of the random chips look like; its rate does not count.
        rates: fractions of PEs that are faulty, 0..1, strictly ascending.
        repeats: random chips of each rate, 1 or more.
        levels: iterations after which accuracy is measured, strictly ascending; the first is 0.
        seed: of the random chips, from 0.
        hardening: how the network is hardened first; None for not at all.

    Raises:
        InputError: a value that cannot be.
    """

    setup: Setup
    config: ArrayConfig
    model: FaultModel
    rates: Sequence[float]
    repeats: int
    levels: Sequence[int]
    seed: int = 0
    hardening: HardeningPlan | None = None

    def __post_init__(self) -> None:
        _check_ascending("rates", self.rates, 0, 1)
        _check_ascending("levels", self.levels, 0, MOST_ITERATIONS)
        if self.levels[0] != 0:
            raise InputError(f"the first level is {self.levels[0]} iterations: expected 0, without retraining")
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats}: expected 1 or more chips of each rate")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: expected 0 or more")
        chips = len(self.rates) * self.repeats
        if chips > MOST_CHIPS or chips * len(self.levels) > MOST_VALUES:
            raise InputError(
                f"{len(self.rates)} rates, {self.repeats} repeats and {len(self.levels)} levels: expected at most "
                f"{MOST_CHIPS} chips and {MOST_VALUES} accuracies"
            )
        # In an order of their own: random draws depend on it.
        sites = {site: weight for site, weight in sorted(self.model.sites.items()) if weight > 0}
        kinds = {kind: weight for kind, weight in sorted(self.model.kinds.items()) if weight > 0}
        if Kind.FLIP in kinds:
            raise InputError("the random chips have flips: retraining needs permanent faults only, stuck-at-0 or -1")
        object.__setattr__(self, "rates", tuple(float(rate) + 0.0 for rate in self.rates))
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        object.__setattr__(self, "model", replace(self.model, rate=0.0, sites=sites, kinds=kinds))

    @property
    def places(self) -> list[tuple[int, int]]:
        """The random chips, each by the numbers of its rate and of its repeat."""
        return [(rate, repeat) for rate in range(len(self.rates)) for repeat in range(self.repeats)]

    @property
    def unit_count(self) -> int:
        """Units of work in all."""
        return 1 + (self.hardening is not None) + len(self.places)

    def chip_id(self, rate: int, repeat: int) -> str:
        """Name of a random chip, by its rate and the number of its repeat, such as `rate-0.05-chip-002`."""
        return f"rate-{self.rates[rate]!r}-chip-{repeat:03d}"

    def chip(self, rate: int, repeat: int) -> Chip:
        """A random chip, the same whatever other ones there are; see `places`."""
        seed = np.random.SeedSequence(self.seed, spawn_key=self._key(rate, repeat))
        faults = sample_faults(self.config, replace(self.model, rate=self.rates[rate]), seed)
        return Chip(self.chip_id(rate, repeat), faults)

    def recipe_seed(self, rate: int, repeat: int) -> int:
        """Of the retraining for that chip, 0..2**32 - 1."""
        key = (*self._key(rate, repeat), 1)
        return int(np.random.SeedSequence(self.setup.recipe.seed, spawn_key=key).generate_state(1)[0])

    def inputs(self) -> dict[str, Any]:
        """What decides the results beside rates, repeats, levels and images, by a name that says what it is."""
        identity = self.setup.identity()
        del identity[IMAGES]
        return {
            "array": self.config.as_dict(),
            "fault model": fault_model_dict(self.model),
            "seed": self.seed,
            "hardening": None if self.hardening is None else asdict(self.hardening),
            # Whichever of them are measured on.
            "test images": self.setup.load().test.digest,
            **identity,
        }

    def _key(self, rate: int, repeat: int) -> tuple[int, int, int]:
        """Of random numbers: by the rate itself, so that other rates between do not change them."""
        bits = int(np.float64(self.rates[rate]).view(np.uint64))
        return bits >> 32, bits & 0xFFFFFFFF, repeat

    def check(self) -> None:
        """Load everything, and refuse what cannot be measured before anything is written.

        Raises:
            FileNotFoundError: a file is not there.
            InputError: something does not fit, cannot learn, or chips that no network runs on.
        """
        network, data, *_ = self.setup.load()
        self.setup.try_a_step()
        convert(network, self.config, data.calibration, method=self.setup.calibration)
        for place in self.places:
            rate = self.rates[place[0]]
            try:
                faults = self.chip(*place).faults
            except ValueError as error:
                raise InputError(str(error)) from None
            if rate and not faults:
                raise InputError(f"rate {rate:g} of {self.config.pe_count} PEs is not one PE: give a higher rate")
            if len(faults.unusable_columns()) == self.config.cols:
                raise InputError(
                    f"at rate {rate:g} none of the {self.config.cols} columns of the array can be used: "
                    "give lower rates, or other sites than accumulator"
                )


def fault_model_dict(model: FaultModel) -> dict[str, Any]:
    """What the faults of random chips look like, as JSON takes it; without their rate."""
    return {
        "sites": {site.name: weight for site, weight in model.sites.items()},
        "kinds": {kind.name: weight for kind, weight in model.kinds.items()},
        "bits": {site.name: list(weights) for site, weights in model.bits.items()},
        "pattern": model.pattern,
        "cluster_alpha": model.cluster_alpha,
        "cluster_side": model.cluster_side,
    }


def _check_ascending(name: str, values: Sequence[float], least: float, most: float) -> None:
    if not values:
        raise InputError(f"{name} are none: expected one or more")
    for value in values:
        if not least <= value <= most:
            raise InputError(f"{name} have {value:g}: expected {least:g}..{most:g}")
    for one, other in pairwise(values):
        if one >= other:
            raise InputError(f"{name} have {one:g} before {other:g}: expected them in ascending order")
