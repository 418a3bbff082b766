"""Chips of a lot tried without retraining (level 0): those that meet the constraint as they are deployed need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from efat.campaigns.campaign import Campaign, Executor, Notes, Outcome, Unit, warned
from efat.records import Count, Record, Sha256, digest_of, typed
from efat.resilience.severity import PREDICTORS, Predictors, predictors_of
from efat.setup import Setup
from simulator.dtypes import Float64Array, Int64Array
from simulator.errors import InputError, check_unchanged
from simulator.lots.chips import Chip
from training.data.classification import count_correct
from training.layers.accelerator import Engine
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.layers.trainable import trainable
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.combination import Mitigations
from training.learning.retrain import PreparedRetraining, deploy

KIND = "trial of a lot"
FOLDER = "trials"
"""In the folder of `efat resilience`: a folder for each lot and each set of tuning images."""


@dataclass(frozen=True)
class Trials:
    """Where chips are tried.

    Args:
        folder: of the trials of all lots; made if it is not there, its parent is.
        executor: does the units.
        notes: told of chips that were tried before and whose files do not fit: they are tried again.
    """

    folder: Path
    executor: Executor
    notes: Notes = warned


class Trial(Record, frozen=True):
    """What a chip's unit found: its digest, the tuning images that it classifies correctly, and how bad it is."""

    chip: Sha256
    correct: Count
    predictors: Predictors


@dataclass(frozen=True, eq=False)
class Tried:
    """What was found.

    Attributes:
        correct: int64 [chips], tuning images that each chip of the lot classifies correctly without retraining.
        predictors: float64 [chips] by a name in `PREDICTORS`: how bad each chip is.
    """

    correct: Int64Array
    predictors: Mapping[str, Float64Array]


def try_chips(
    trials: Trials,
    setup: Setup,
    lot_digest: str,
    chips: Sequence[Chip],
    progress: Callable[[int, int], None] | None = None,
) -> Tried:
    """Deploy the network on each chip as its mitigation does, and measure it there; what was measured before is kept.

    On the exact emulation, on all tuning images, with the very weights that it would run: those that everything starts
    from, quantised whole, or where the mitigation measures something on each chip, that chip's own.

    Args:
        trials: where.
        setup: what is deployed how.
        lot_digest: SHA-256 (hex) of the lot's file.
        chips: all chips of the lot, in its order.
        progress: called at the beginning and after each chip.

    Raises:
        InputError: network or data changed on the way, or the folder is damaged.
        OSError: it cannot be written.
    """
    identity = setup.identity()
    inputs = {"lot": lot_digest, **identity}
    folder = trials.folder / digest_of(inputs)[:16]
    try:
        trials.folder.mkdir(exist_ok=True)
        campaign = Campaign(folder, KIND, inputs, trials.notes)
    except (InputError, FileExistsError) as error:
        raise InputError(f"{error}; or delete {trials.folder}: the chips are then tried again") from None
    units = [
        Unit(f"chip-{position:05d}", {"setup": setup, "identity": identity, "chip": chip})
        for position, chip in enumerate(chips)
    ]
    campaign.run(units, try_chip, trials.executor, progress)
    images = len(setup.load().data.held_out)
    correct = np.empty(len(chips), np.int64)
    predictors = {name: np.empty(len(chips)) for name in PREDICTORS}
    for position, unit in enumerate(units):
        where = str(campaign.path(unit.name, "json"))
        found = typed(Trial, campaign.values(unit.name), where)
        if found.correct > images:
            raise InputError(f"{where}: correct is {found.correct}: expected an integer of 0..{images}")
        correct[position] = found.correct
        for name, values in predictors.items():
            values[position] = getattr(found.predictors, name)
    return Tried(correct, predictors)


def try_chip(arguments: Mapping[str, Any]) -> Outcome:
    """Measure one chip without retraining, in whatever process."""
    setup: Setup = arguments["setup"]
    chip: Chip = arguments["chip"]
    check_unchanged(setup.identity(), arguments["identity"])
    loaded = setup.load()
    network, mitigations = loaded.network, setup.mitigations
    if BatchNormStatistics() in mitigations.in_turn:
        # The network is another one on each chip.
        prepared = PreparedRetraining(
            network, chip, loaded.data, 0, mitigations=mitigations, recipe=setup.recipe, calibration=setup.calibration
        )
        deployment, correct = prepared.deployment, prepared.run().evaluations[0].correct
    else:
        converted = convert(network, chip.faults.config, loaded.data.calibration, method=setup.calibration)
        scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(converted).items()}
        deployment = deployed_as_is(network, scales, chip, mitigations)
        correct = count_correct(network_on_chip(network, deployment, chip, "emulation"), loaded.data.held_out)
    return Outcome(Trial(chip.digest(), correct, predictors_of(network, deployment, chip)).as_dict())


def deployed_as_is(network: nn.Module, scales: Mapping[str, float], chip: Chip, mitigations: Mitigations) -> Deployment:
    """How weights that are nobody's in particular sit on a chip. They are quantised whole, whatever is bypassed.

    Args:
        network: float32, with those weights.
        scales: of activations, by the layer's name.
        chip: the chip.
        mitigations: what is done about its broken PEs.

    Raises:
        InputError: none of its columns can be used.
    """
    converted = convert(network, chip.faults.config, (), activation_scales=scales)
    return deploy(trainable(network, converted), chip, mitigations)


def network_on_chip(network: nn.Module, deployment: Deployment, chip: Chip, engine: Engine) -> nn.Module:
    """A network as it runs on a chip, quantised."""
    config = chip.faults.config
    converted = convert(network, config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults, engine))
    return converted
