"""The units of work that a resilience table is made from: the network without faults, hardened, and on random chips."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import nn

from efat.campaign import Outcome, Unit
from efat.resilience_inputs import Resilience, chip_id
from efat.resilience_table import PREDICTORS
from efat.severity import pruned_severity, severity, weights_per_pe
from simulator import ArrayConfig, FaultMap
from simulator.chips import Chip
from training.accelerator import Accelerator
from training.calibration import Method
from training.classification import count_correct
from training.convert import convert, quantized_layers
from training.deployment import Deployment
from training.errors import InputError
from training.mitigations.bypass import Bypass
from training.mitigations.hardening import OWN_PE_SITES, Hardening
from training.mitigations.strategy import Strategy
from training.retrain import PreparedRetraining, RetrainDivergedError, TrainingData, digest_of_network, retrain

BASELINE, HARDENED = "baseline", "hardened"
"""Names of the units that are no random chip's; those are named as their chips are."""

WEIGHTS = "safetensors"
"""The file of the unit `HARDENED` with its weights."""


def units_without_faults(resilience: Resilience) -> list[Unit]:
    """The network as it is, and hardened if that is asked for."""
    names = [BASELINE] if resilience.hardening is None else [BASELINE, HARDENED]
    identity = resilience.setup.identity()
    return [Unit(name, {"what": name, "resilience": resilience, "identity": identity}) for name in names]


def units_on_chips(resilience: Resilience) -> list[Unit]:
    """A retraining for each random chip; where the network is hardened, from the weights of that."""
    identity = resilience.setup.identity()
    return [
        Unit(
            chip_id(*place),
            {"what": place, "resilience": resilience, "identity": identity},
            {"network": identity["network"]},
        )
        for place in resilience.places
    ]


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
    # What a process has loaded may have changed since the campaign was begun.
    if resilience.setup.identity() != arguments["identity"]:
        raise InputError("network or data are not those that this was begun with: they changed while it ran")
    what = arguments["what"]
    if isinstance(what, tuple):
        return _on_chip(resilience, *what)
    return _hardened(resilience) if what == HARDENED else _baseline(resilience)


def _baseline(resilience: Resilience) -> Outcome:
    network, data, _ = resilience.setup.load()
    return Outcome(
        {
            "float_correct": count_correct(network, data.held_out),
            "fault_free_correct": _fault_free_correct(network, data, resilience.config, resilience.setup.calibration),
        }
    )


def _hardened(resilience: Resilience) -> Outcome:
    plan, config, setup, model = resilience.hardening, resilience.config, resilience.setup, resilience.model
    assert plan is not None
    network, data, _ = setup.load()
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
    hardened = copy.deepcopy(network)
    hardened.load_state_dict(result.weights)
    correct = _fault_free_correct(hardened, data, config, setup.calibration)
    # Each in memory of its own: a layer that is used under two names would be refused as a tensor written twice.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in result.weights.items()}
    return Outcome({"start_correct": correct, "network": digest_of_network(hardened)}, {WEIGHTS: save(weights)})


def _on_chip(resilience: Resilience, rate: int, repeat: int) -> Outcome:
    setup = resilience.setup
    network, data, _ = setup.load()
    chip = resilience.chip(rate, repeat)
    prepared = PreparedRetraining(
        network,
        chip,
        data,
        resilience.levels[-1],
        strategy=setup.strategy,
        recipe=replace(setup.recipe, seed=resilience.recipe_seed(rate, repeat)),
        evaluate_at=resilience.levels,
        calibration=setup.calibration,
        learn_scales=setup.learn_scales,
    )
    predictors = predictors_of(network, prepared.deployment, chip)
    try:
        evaluations = prepared.run().evaluations
    except RetrainDivergedError as error:
        evaluations = error.result.evaluations
    correct = {evaluation.iteration: evaluation.correct for evaluation in evaluations}
    return Outcome(
        {
            "chip": chip.digest(),
            "correct": [correct.get(level, -1) for level in resilience.levels],
            "predictors": predictors,
        }
    )


def _fault_free_correct(network: nn.Module, data: TrainingData, config: ArrayConfig, calibration: Method) -> int:
    accelerator = Accelerator.fault_free(config)
    quantised = convert(network, config, data.calibration, method=calibration, accelerator=accelerator)
    return count_correct(quantised, data.held_out)
