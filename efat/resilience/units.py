"""The units of work that a resilience table is made from, and what of a folder serves for other requests.

The network without faults, hardened, and on random chips. A chip and its retraining are the same whatever else is
measured, so what is there of other rates and repeats just stays. Higher levels go on from the state at the last one.
Levels between, and other images, are measured on the way, so for those the retraining runs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import nn

from efat.campaigns.campaign import Campaign, Outcome, Unit, UnitFile
from efat.records import Count, Positive, Record, Sha256, check, typed
from efat.resilience.severity import Predictors, predictors_of
from efat.resilience.table import MOST_CHIPS, MOST_ITERATIONS, MOST_VALUES, RandomFaults
from efat.setup import Setup
from simulator import ArrayConfig, FaultMap, FaultModel, Kind, sample_faults
from simulator.errors import InputError, check_unchanged
from simulator.lots.chips import Chip
from training.calibration import Method
from training.data.classification import count_correct
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.user_code import copied
from training.learning.fit import TrainingState, state_bytes, state_from
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.hardening import OWN_PE_SITES, Hardening
from training.learning.retrain import PreparedRetraining, RetrainDivergedError, TrainingData, digest_of_network, retrain

IMAGES = "tuning images"
"""What of a setup's identity says which images accuracy is measured on."""


class HardeningPlan(Record, frozen=True):
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
            "fault model": RandomFaults.of(self.model).as_dict(),
            "seed": self.seed,
            "hardening": None if self.hardening is None else self.hardening.as_dict(),
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


def _check_ascending(name: str, values: Sequence[float], least: float, most: float) -> None:
    if not values:
        raise InputError(f"{name} are none: expected one or more")
    for value in values:
        if not least <= value <= most:
            raise InputError(f"{name} have {value:g}: expected {least:g}..{most:g}")
    for one, other in pairwise(values):
        if one >= other:
            raise InputError(f"{name} have {one:g} before {other:g}: expected them in ascending order")


BASELINE, HARDENED = "baseline", "hardened"
"""Names of the units that are no random chip's; those are named as their chips are."""

WEIGHTS = "safetensors"
"""The file of the unit `HARDENED` with its weights."""

STATE = "state"
"""The file of a random chip's unit from which its retraining can go on; there is none if it diverged."""


class Baseline(Record, frozen=True):
    """What the network without faults does; see `ResilienceTable`."""

    images: Positive
    float_correct: Count
    fault_free_correct: Count
    start_correct: Count

    def __post_init__(self) -> None:
        for name in ("float_correct", "fault_free_correct", "start_correct"):
            check(getattr(self, name) <= self.images, name, getattr(self, name), f"an integer of 0..{self.images}")


class Measured(Record, frozen=True):
    """What a random chip's unit measured.

    Args:
        chip: its digest.
        images: how many were classified.
        levels: after how many iterations.
        correct: images at each; -1 where retraining had diverged.
        diverged_at: mini-batches after which it diverged; None if it did not.
        predictors: how bad the chip is.
    """

    chip: Sha256
    images: Positive
    levels: tuple[Count, ...]
    correct: tuple[int, ...]
    diverged_at: Count | None
    predictors: Predictors

    def __post_init__(self) -> None:
        fits = len(self.levels) == len(self.correct) and all(-1 <= count <= self.images for count in self.correct)
        check(fits, "correct", self.correct, f"as many integers of -1..{self.images} as there are levels")

    @property
    def by_level(self) -> dict[int, int]:
        """Images by level."""
        return dict(zip(self.levels, self.correct, strict=True))

    def at(self, level: int) -> int:
        """Images at a level that it covers."""
        return self.by_level[level] if self.diverged_at is None else self.by_level.get(level, -1)

    def missing(self, levels: Sequence[int]) -> list[int]:
        """Levels at which it is not known what a retraining that measures at just `levels` gives."""
        if self.diverged_at is None:
            return [level for level in levels if level not in self.by_level]
        end = self.diverged_at
        missing = [level for level in levels if level <= end and level not in self.by_level]
        # Noticed when it was measured there, it may be noticed later by one that does not.
        noticed_there = self.by_level.get(end, 0) < 0 and end not in levels
        return missing or ([end] if noticed_there and levels[-1] > end else [])


def hardened_unit(resilience: Resilience) -> Unit:
    """The network hardened, whatever it is measured on."""
    identity = resilience.setup.identity()
    return Unit(HARDENED, {"what": HARDENED, "resilience": resilience, "identity": identity})


def baseline_unit(resilience: Resilience, original: Setup) -> Unit:
    """The network without faults: that retraining starts from, and the `original` one, which it was hardened from."""
    identity, of_original = resilience.setup.identity(), original.identity()
    arguments = {
        "what": BASELINE,
        "resilience": resilience,
        "identity": identity,
        "original": original,
        "original identity": of_original,
    }
    return Unit(BASELINE, arguments, {"network": identity["network"], IMAGES: identity[IMAGES]})


def chip_unit(
    resilience: Resilience,
    identity: Mapping[str, str],
    place: tuple[int, int],
    levels: Sequence[int],
    state: UnitFile | None = None,
) -> Unit:
    """A retraining for a random chip, which goes on from the `state` of one with fewer levels if that is given."""
    located = None if state is None else state.located()
    arguments = {"what": place, "resilience": resilience, "identity": identity, "levels": levels, "state": located}
    inputs = {"network": identity["network"], IMAGES: identity[IMAGES], "levels": list(levels)}
    return Unit(resilience.chip_id(*place), arguments, inputs)


def work(arguments: Mapping[str, Any]) -> Outcome:
    """Do a unit, in whatever process."""
    resilience: Resilience = arguments["resilience"]
    check_unchanged(resilience.setup.identity(), arguments["identity"])
    what = arguments["what"]
    if what == HARDENED:
        return _hardened(resilience)
    if what == BASELINE:
        check_unchanged(arguments["original"].identity(), arguments["original identity"])
        return _baseline(resilience, arguments["original"])
    return _on_chip(resilience, what, arguments["levels"], arguments["state"])


def _baseline(resilience: Resilience, original: Setup) -> Outcome:
    config, calibration = resilience.config, original.calibration
    network, data, *_ = original.load()
    fault_free = start = _fault_free_correct(network, data, config, calibration)
    in_float = count_correct(network, data.held_out)
    if original != resilience.setup:
        start = _fault_free_correct(*resilience.setup.load()[:2], config, calibration)
    return Outcome(Baseline(len(data.held_out), in_float, fault_free, start).as_dict())


def _hardened(resilience: Resilience) -> Outcome:
    plan, config, setup, model = resilience.hardening, resilience.config, resilience.setup, resilience.model
    assert plan is not None
    network, data, *_ = setup.load()
    # Broken PEs lie as on the chips to come, and each costs itself alone: what more it costs differs from chip to chip.
    own_pe = replace(model, sites=dict.fromkeys(OWN_PE_SITES, 1.0), bits={})
    mitigations = Mitigations((Bypass(), Hardening(plan.lowest, plan.highest, own_pe)), retrains=True)
    try:
        result = retrain(
            network,
            Chip("fault-free", FaultMap(config)),
            data,
            plan.iterations,
            mitigations=mitigations,
            recipe=setup.recipe,
            calibration=setup.calibration,
        )
    except RetrainDivergedError as error:
        raise InputError(
            f"hardening diverged in iteration {error.iteration}: use a smaller learning rate, or lower rates to harden"
        ) from None
    hardened = copied(network)
    hardened.load_state_dict(result.weights)
    # Each in memory of its own: a layer that is used under two names would be refused as a tensor written twice.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in result.weights.items()}
    return Outcome({"network": digest_of_network(hardened)}, {WEIGHTS: save(weights)})


def _on_chip(resilience: Resilience, place: tuple[int, int], levels: Sequence[int], state: UnitFile | None) -> Outcome:
    setup = resilience.setup
    network, data, *_ = setup.load()
    chip = resilience.chip(*place)
    prepared = PreparedRetraining(
        network,
        chip,
        data,
        levels[-1],
        mitigations=setup.mitigations,
        recipe=replace(setup.recipe, seed=resilience.recipe_seed(*place)),
        evaluate_at=levels,
        calibration=setup.calibration,
        learn_scales=setup.learn_scales,
    )
    start = None
    if state is not None:
        start = state_from(state.read(), state.path, prepared.identity_of_any_length)
    predictors = predictors_of(network, prepared.deployment, chip)
    files: dict[str, bytes] = {}

    def keep(reached: TrainingState) -> None:
        files[STATE] = state_bytes(reached)

    diverged_at = None
    try:
        evaluations = prepared.run(start=start, on_end=keep).evaluations
    except RetrainDivergedError as error:
        evaluations, diverged_at = error.result.evaluations, error.iteration
    correct = {evaluation.iteration: evaluation.correct for evaluation in evaluations}
    measured = Measured(
        chip=chip.digest(),
        images=len(data.held_out),
        levels=tuple(levels),
        correct=tuple(correct.get(level, -1) for level in levels),
        diverged_at=diverged_at,
        predictors=predictors,
    )
    return Outcome(measured.as_dict(), files)


def _fault_free_correct(network: nn.Module, data: TrainingData, config: ArrayConfig, calibration: Method) -> int:
    accelerator = Accelerator.fault_free(config)
    quantised = convert(network, config, data.calibration, method=calibration, accelerator=accelerator)
    return count_correct(quantised, data.held_out)


_RUN_AGAIN = "retraining runs again", "retrainings run again"
_GO_ON = "retraining goes on", "retrainings go on"


@dataclass
class Growth:
    """The units that a table is made from.

    Attributes:
        units: all of them.
        again: names of those that are there, and are not enough.
        reasons: why they are not, and what happens to one and to several of them, counted.
    """

    units: list[Unit] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    reasons: Counter[tuple[str, tuple[str, str]]] = field(default_factory=Counter)

    @classmethod
    def of(cls, campaign: Campaign, resilience: Resilience, original: Setup) -> Growth:
        """See what is there.

        Args:
            campaign: has the units.
            resilience: what is to be measured, with the weights that retraining starts from.
            original: the setup with those of the original network.
        """
        growth = cls()
        baseline = baseline_unit(resilience, original)
        growth.units.append(baseline)
        there = campaign.there(baseline.name)
        if there is not None and there.inputs[IMAGES] != baseline.inputs[IMAGES]:
            growth.again.add(baseline.name)
        identity = resilience.setup.identity()
        growth.units += [growth._chip_unit(campaign, resilience, identity, place) for place in resilience.places]
        return growth

    @property
    def notes(self) -> list[str]:
        """What runs again or goes on, and why, each in a line."""
        return [f"{why}: {count} {what[count > 1]}" for (why, what), count in self.reasons.items()]

    def _chip_unit(
        self, campaign: Campaign, resilience: Resilience, identity: Mapping[str, str], place: tuple[int, int]
    ) -> Unit:
        fresh = chip_unit(resilience, identity, place, resilience.levels)
        there = campaign.there(fresh.name)
        if there is None or there.inputs["network"] != fresh.inputs["network"]:
            return fresh
        measured = typed(Measured, there.values, str(campaign.path(fresh.name, "json")))
        if there.inputs[IMAGES] != fresh.inputs[IMAGES]:
            images = len(resilience.setup.load().data.held_out)
            other = f" instead of {measured.images}" if images != measured.images else ", others than before"
            self._again(fresh, f"{images} tuning images{other}", _RUN_AGAIN)
            return fresh
        levels, missing = sorted(measured.levels), measured.missing(resilience.levels)
        if not missing:
            return chip_unit(resilience, identity, place, levels)
        together = sorted({*levels, *resilience.levels})
        if missing[0] > levels[-1]:
            self._again(fresh, f"levels up to {missing[-1]} instead of {levels[-1]}", _GO_ON)
            return chip_unit(resilience, identity, place, together, campaign.file(fresh.name, STATE))
        between = ", ".join(str(level) for level in missing if level <= levels[-1])
        are = "levels {} lie" if "," in between else "level {} lies"
        self._again(fresh, f"{are.format(between)} between measured ones", _RUN_AGAIN)
        # Where retraining diverged, levels that are not asked for could hide it.
        return fresh if measured.diverged_at is not None else chip_unit(resilience, identity, place, together)

    def _again(self, unit: Unit, why: str, what: tuple[str, str]) -> None:
        self.again.add(unit.name)
        self.reasons[why, what] += 1
