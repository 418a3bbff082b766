"""The units of work that the retraining of a lot is made of: a group retrained, and a chip verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from efat.campaigns.campaign import Outcome, UnitFile
from efat.planning.alignment import Aligner, Placements, model_of
from efat.resilience.severity import (
    MASK_PREDICTORS,
    bypass_of,
    counts_of,
    mask_of,
    pruned_severity,
    severity,
    weights_per_pe,
)
from efat.setup import Loaded, Setup
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.faults import BoolArray
from simulator.lots.chips import Chip
from training.data.classification import classify, count_correct
from training.layers.accelerator import Accelerator, Engine
from training.layers.array_share import array_share
from training.layers.convert import convert
from training.layers.deployment import Deployment, deployed_bytes, deployed_from
from training.layers.placement import Placement
from training.layers.trainable import trainable, trainable_layers
from training.layers.user_code import copied
from training.layers.weights import put_weights
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Strategy
from training.learning.mitigations.permutation import Permutation
from training.learning.on_chip import Pruned
from training.learning.retrain import PreparedRetraining, RetrainDivergedError, RetrainResult, deploy

WEIGHTS = "weights.safetensors"
"""A file of a group: its weights."""

DEPLOYMENT = "deployment.safetensors"
"""A file of a chip that has no other: how the weights sit on it."""

BATCH = 256
"""Images in one GEMM where accuracy is measured."""


@dataclass(frozen=True, eq=False)
class GroupTask:
    """A group to retrain.

    Args:
        name: of the group.
        setup: what learns from what, and how.
        identity: of the setup.
        config: the array.
        chips: its chips, in the order in which they joined; none for the weights that everything starts from.
        aligned: whether each of them has places of its own.
        predictor: what severity is, for aligned chips.
        amount: least iterations.
        step: iterations by which it is topped up if it misses what is required.
        budget: most iterations.
        required: tuning images to classify correctly.
    """

    name: str
    setup: Setup
    identity: Mapping[str, str]
    config: ArrayConfig
    chips: tuple[Chip, ...]
    aligned: bool
    predictor: str
    amount: int
    step: int
    budget: int
    required: int


@dataclass(frozen=True, eq=False)
class ChipTask:
    """A chip to verify.

    Args:
        setup: what learns from what, and how.
        identity: of the setup.
        config: the array.
        chip: the chip.
        weights: file of its group's weights.
        deployment: file that says how they sit on it; None to put them there as the setup's mitigation does.
        cycle_images: verification images that the cycle engine classifies, too.
    """

    setup: Setup
    identity: Mapping[str, str]
    config: ArrayConfig
    chip: Chip
    weights: UnitFile
    deployment: UnitFile | None
    cycle_images: int


def member_file(position: int) -> str:
    """The file of a group that says how its weights sit on a chip, by the chip's place among its chips."""
    return f"chip-{position:05d}.safetensors"


def retrain_group(arguments: Mapping[str, Any]) -> Outcome:
    """Retrain a group: the amount that was planned, and more in steps for as long as it misses what is required.

    Args:
        arguments: `task`, a `GroupTask`.

    Returns:
        Evaluations on the way, iterations, and the files of its weights and of its chips.
    """
    task: GroupTask = arguments["task"]
    loaded = _load(task.setup, task.identity)
    prepared, placements, lost = _prepared(task, loaded)
    diverged_at = None
    try:
        result = prepared.run()
    except RetrainDivergedError as error:
        result, diverged_at = error.result, error.iteration
    scales = result.deployment.activation_scales
    nothing = np.zeros((task.config.rows, task.config.cols), np.bool_)
    # What is bypassed, and where operands sit, is each chip's; the weights are those of all.
    bare = Deployment(task.config.as_dict(), nothing, scales, {})
    files = {WEIGHTS: deployed_bytes(result.weights, bare, _about(task, result))}
    for position, chip in enumerate(task.chips):
        if placements is None:
            deployment = replace(result.deployment, placements=dict(sorted(result.deployment.placements.items())))
        else:
            moved = {name: found for name, found in sorted(placements[position].items()) if not found.is_in_order}
            deployment = Deployment(task.config.as_dict(), bypass_of(chip), scales, moved)
        files[member_file(position)] = deployed_bytes({}, deployment, _about_chip(task, chip))
    iterations = len(result.losses)
    return Outcome(
        {
            "chips": [chip.id for chip in task.chips],
            "evaluations": [[found.iteration, found.correct] for found in result.evaluations],
            "iterations": iterations,
            "spent": iterations if diverged_at is None else diverged_at,
            "severity": _severity(task, loaded, prepared.deployment, lost),
            "top_ups": sum(found.iteration > task.amount for found in result.evaluations),
            "correct": result.evaluations[-1].correct,
            "met": result.evaluations[-1].correct >= task.required,
            "diverged_at": diverged_at,
        },
        files,
    )


def measure_fault_free(arguments: Mapping[str, Any]) -> Outcome:
    """Classify the verification images with the original network, quantised and without faults: what a drop is from.

    And count its multiply-accumulates for one image, on the array and in float.

    Args:
        arguments: `setup`, its `identity`, and the array `config`.
    """
    setup: Setup = arguments["setup"]
    config: ArrayConfig = arguments["config"]
    _load(setup, arguments["identity"])
    loaded = setup.original.load()
    accelerator = Accelerator.fault_free(config)
    quantised = convert(
        loaded.network, config, loaded.data.calibration, method=setup.calibration, accelerator=accelerator
    )
    work = array_share(quantised, loaded.verification.images[:1])
    return Outcome(
        {
            "images": loaded.verification.digest,
            "correct": count_correct(quantised, loaded.verification, BATCH),
            "on_array": work.on_array,
            "in_float": sum(work.in_float.values()),
        }
    )


def verify_chip(arguments: Mapping[str, Any]) -> Outcome:
    """Classify tuning and verification images on a chip with its own faults, some of these on the cycle engine, too.

    Args:
        arguments: `task`, a `ChipTask`.

    Returns:
        How many were correct, and whether the engines agreed; and the chip's file if it has none yet.
    """
    task: ChipTask = arguments["task"]
    loaded = _load(task.setup, task.identity)
    weights, group = deployed_from(task.weights.read(), task.weights.path)
    network = copied(loaded.network)
    put_weights(network, weights, task.weights.path, f"network {task.setup.network}")
    deployment = None if task.deployment is None else deployed_from(task.deployment.read(), task.deployment.path)[1]
    files = {}
    if deployment is None:
        assert group is not None
        deployment = deployed_as_is(network, group.activation_scales, task.chip, task.setup.strategy)
        files[DEPLOYMENT] = deployed_bytes({}, deployment, {"chip": task.chip.id})
    on_chip = network_on_chip(network, deployment, task.chip, "emulation")
    tuning, verification = loaded.data.held_out, loaded.verification
    tuned, predicted = (classify(on_chip, part.images, BATCH) for part in (tuning, verification))
    expected = predicted[: task.cycle_images]
    stepped = expected
    if task.cycle_images:
        by_cycles = network_on_chip(network, deployment, task.chip, "cycle")
        stepped = classify(by_cycles, verification.images[: task.cycle_images], BATCH)
    return Outcome(
        {
            "chip": task.chip.id,
            "digest": task.chip.digest(),
            "tuning_correct": int((tuned == tuning.labels).sum()),
            "correct": int((predicted == verification.labels).sum()),
            "bypassed_pes": int(deployment.bypass.sum()),
            "faulty_pes": int(task.chip.faults.faulty_pes().sum()),
            "cycle_images": task.cycle_images,
            "cycle_same": bool(torch.equal(stepped, expected)),
        },
        files,
    )


def deployed_as_is(network: nn.Module, scales: Mapping[str, float], chip: Chip, strategy: Strategy) -> Deployment:
    """How weights that are nobody's in particular sit on a chip. They are quantised whole, whatever is bypassed.

    Args:
        network: float32, with those weights.
        scales: of activations, by the layer's name.
        chip: the chip.
        strategy: what is done about its broken PEs.

    Raises:
        InputError: none of its columns can be used.
    """
    converted = convert(network, chip.faults.config, (), activation_scales=scales)
    return deploy(trainable(network, converted), chip, strategy)


def network_on_chip(network: nn.Module, deployment: Deployment, chip: Chip, engine: Engine) -> nn.Module:
    """A network as it runs on a chip, quantised.

    Args:
        network: float32.
        deployment: how its weights sit on the chip.
        chip: the chip.
        engine: computes what it would.
    """
    config = chip.faults.config
    converted = convert(network, config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults, engine))
    return converted


def fused_chip(name: str, config: ArrayConfig, chips: Sequence[Chip]) -> Chip:
    """A chip that stands for several: what any of them bypasses is bypassed, and what any cannot use is broken.

    Weights that work on it work on each of them, as nothing that is broken in one of them acts.

    Args:
        name: its id.
        config: the array.
        chips: which; for none of them it is a chip without faults.
    """
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    for chip in chips:
        bypass |= bypass_of(chip)
    columns = sorted({int(column) for chip in chips for column in chip.faults.unusable_columns()})
    broken = [Fault(0, column, Site.ACCUMULATOR, 0, Kind.STUCK_AT_0) for column in columns]
    return Chip(name, FaultMap.from_faults(config, broken), bypass)


def aligner_of(setup: Setup, loaded: Loaded, config: ArrayConfig, predictor: str) -> Aligner:
    """What places chips of an array for a network.

    Args:
        setup: says what may be permuted.
        loaded: what it loaded.
        config: the array.
        predictor: what severity is.

    Raises:
        InputError: chips cannot be aligned; see `Aligner`.
    """
    return Aligner(model_of(loaded, config), config, setup.strategy, predictor)


def _load(setup: Setup, identity: Mapping[str, str]) -> Loaded:
    # What a process has loaded may have changed since the work was begun.
    setup.check_identity(identity)
    return setup.load()


def _prepared(
    task: GroupTask, loaded: Loaded
) -> tuple[PreparedRetraining, list[Placements] | None, dict[str, BoolArray] | None]:
    """The retraining, and if chips are aligned the places of each and what they lose together."""
    setup, config = task.setup, task.config
    strategy = setup.strategy
    placements: list[Placements] | None = None
    lost: dict[str, BoolArray] | None = None
    chip = fused_chip(task.name, config, task.chips)
    if task.aligned and task.chips:
        placements, lost = aligner_of(setup, loaded, config, task.predictor).place_together(task.chips)
        others = tuple(part for part in strategy.mitigations if not isinstance(part, Bypass | Permutation))
        chip, strategy = Chip(task.name, FaultMap(config)), Strategy(others)
    images = len(loaded.data.held_out)
    prepared = PreparedRetraining(
        loaded.network,
        chip,
        loaded.data,
        task.budget,
        strategy=strategy,
        recipe=setup.recipe,
        evaluate_at=range(task.amount, task.budget, task.step),
        target_accuracy=task.required / images,
        least_iterations=task.amount,
        calibration=setup.calibration,
        learn_scales=setup.learn_scales,
        pruned=lost,
    )
    return prepared, placements, lost


def _severity(task: GroupTask, loaded: Loaded, deployment: Deployment, lost: Pruned | None) -> float:
    """How bad a group is, 0..1.

    Args:
        task: the group.
        loaded: what it retrains.
        deployment: how it sits on the chip that stands for all of them, if they are not aligned.
        lost: what they lose together if they are aligned, otherwise None.
    """
    config = task.config
    layers = trainable_layers(model_of(loaded, config))
    if task.predictor in MASK_PREDICTORS:
        masks = [mask_of(chip, task.predictor) for chip in task.chips]
        together = np.logical_or.reduce(masks) if masks else np.zeros((config.rows, config.cols), np.bool_)
        held = weights_per_pe([layer.gemm_shape for layer in layers.values()], config)
        return float(severity(together, counts_of(task.predictor, held)))
    if lost is None:
        places = {name: Placement.in_order(*layer.gemm_shape) for name, layer in layers.items()}
        places |= deployment.placements
        lost = {name: placement.at_weights(deployment.bypass, config) for name, placement in places.items()}
    weights = [layer.weight.detach().flatten(1).cpu().numpy() for layer in layers.values()]
    return float(getattr(pruned_severity(weights, [lost[name] for name in layers]), task.predictor))


def _about(task: GroupTask, result: RetrainResult) -> dict[str, str]:
    return {
        "network": str(task.setup.network),
        "mitigation": task.setup.mitigation,
        "group": task.name,
        "chips": str(len(task.chips)),
        "iterations": str(len(result.losses)),
    }


def _about_chip(task: GroupTask, chip: Chip) -> dict[str, str]:
    return {"chip": chip.id, "chip_digest": chip.faults.digest(), "group": task.name}
