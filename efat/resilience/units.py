"""The units of work that a resilience table is made from: the network without faults, hardened, and on random chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import nn

from efat.campaigns.campaign import Outcome, Unit, UnitFile
from efat.planning.severity import pruned_severity, severity, weights_per_pe
from efat.resilience.inputs import IMAGES, Resilience
from efat.resilience.table import PREDICTORS
from efat.setup import Setup
from simulator import ArrayConfig, FaultMap
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.calibration import Method
from training.data.classification import count_correct
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.layers.user_code import copied
from training.learning.checkpoint import TrainingState, state_bytes, state_from
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Strategy
from training.learning.mitigations.hardening import OWN_PE_SITES, Hardening
from training.learning.retrain import PreparedRetraining, RetrainDivergedError, TrainingData, digest_of_network, retrain

BASELINE, HARDENED = "baseline", "hardened"
"""Names of the units that are no random chip's; those are named as their chips are."""

WEIGHTS = "safetensors"
"""The file of the unit `HARDENED` with its weights."""

STATE = "state"
"""The file of a random chip's unit from which its retraining can go on; there is none if it diverged."""


def hardened_unit(resilience: Resilience) -> Unit:
    """The network hardened, whatever it is measured on."""
    identity = resilience.setup.identity()
    return Unit(HARDENED, {"what": HARDENED, "resilience": resilience, "identity": identity})


def baseline_unit(resilience: Resilience, original: Setup) -> Unit:
    """The network without faults.

    Args:
        resilience: with the weights that retraining starts from.
        original: with those of the original network.
    """
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
    """A retraining for a random chip.

    Args:
        resilience: with the weights that retraining starts from.
        identity: of its setup.
        place: of the chip, see `Resilience.places`.
        levels: to measure at.
        state: of the same retraining with fewer levels, to go on from; None to begin.
    """
    located = None if state is None else state.located()
    arguments = {"what": place, "resilience": resilience, "identity": identity, "levels": levels, "state": located}
    inputs = {"network": identity["network"], IMAGES: identity[IMAGES], "levels": list(levels)}
    return Unit(resilience.chip_id(*place), arguments, inputs)


def predictors_of(network: nn.Module, deployment: Deployment, chip: Chip) -> dict[str, float]:
    """How bad a chip is for a network: see `ResilienceTable.predictors`.

    Args:
        network: float32, before retraining.
        deployment: how it sits on the chip.
        chip: the chip.

    Returns:
        0..1 by a name in `PREDICTORS`.
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
    by_name = {
        "faulty_pes": float(chip.faults.faulty_pes().mean()),
        "weights": float(severity(required, weights_per_pe([layer.gemm_shape for layer in layers], config))),
        "pruned": found.pruned,
        "saliency": found.saliency,
    }
    return {name: by_name[name] for name in PREDICTORS}


def work(arguments: Mapping[str, Any]) -> Outcome:
    """Do a unit, in whatever process."""
    resilience: Resilience = arguments["resilience"]
    _check_same(resilience.setup, arguments["identity"])
    what = arguments["what"]
    if what == HARDENED:
        return _hardened(resilience)
    if what == BASELINE:
        _check_same(arguments["original"], arguments["original identity"])
        return _baseline(resilience, arguments["original"])
    return _on_chip(resilience, what, arguments["levels"], arguments["state"])


def _check_same(setup: Setup, identity: Mapping[str, str]) -> None:
    # What a process has loaded may have changed since the campaign was begun.
    if setup.identity() != identity:
        raise InputError("network or data are not those that this was begun with: they changed while it ran")


def _baseline(resilience: Resilience, original: Setup) -> Outcome:
    config, calibration = resilience.config, original.calibration
    network, data, *_ = original.load()
    fault_free = start = _fault_free_correct(network, data, config, calibration)
    in_float = count_correct(network, data.held_out)
    if original != resilience.setup:
        start = _fault_free_correct(*resilience.setup.load()[:2], config, calibration)
    return Outcome(
        {
            "images": len(data.held_out),
            "float_correct": in_float,
            "fault_free_correct": fault_free,
            "start_correct": start,
        }
    )


def _hardened(resilience: Resilience) -> Outcome:
    plan, config, setup, model = resilience.hardening, resilience.config, resilience.setup, resilience.model
    assert plan is not None
    network, data, *_ = setup.load()
    # Broken PEs lie as on the chips to come, and each costs itself alone: what more it costs differs from chip to chip.
    own_pe = replace(model, sites=dict.fromkeys(OWN_PE_SITES, 1.0), bits={})
    strategy = Strategy((Bypass(), Hardening(plan.lowest, plan.highest, own_pe)), retrains=True)
    try:
        result = retrain(
            network,
            Chip("fault-free", FaultMap(config)),
            data,
            plan.iterations,
            strategy=strategy,
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
        strategy=setup.strategy,
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
    return Outcome(
        {
            "chip": chip.digest(),
            "images": len(data.held_out),
            "levels": list(levels),
            "correct": [correct.get(level, -1) for level in levels],
            "diverged_at": diverged_at,
            "predictors": predictors,
        },
        files,
    )


def _fault_free_correct(network: nn.Module, data: TrainingData, config: ArrayConfig, calibration: Method) -> int:
    accelerator = Accelerator.fault_free(config)
    quantised = convert(network, config, data.calibration, method=calibration, accelerator=accelerator)
    return count_correct(quantised, data.held_out)
