"""Retraining for a chip: what it promises of the weights, of the accuracy, and of what it is given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simulator import Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip
from tests.support.networks import ARRAY, faulty_chip, tiny_images, with_broken_accumulators
from tests.support.retraining_runs import (
    DATA,
    HARDENED,
    HELD_OUT,
    RECIPE,
    TRAIN,
    assert_equal,
    deep_network,
    interrupt_after,
    named,
    network,
    pruned,
    rebuilt,
    run,
)
from training.data.classification import count_correct
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.deployment import read_deployed, write_deployed
from training.layers.placement import Placement
from training.layers.trainable import TrainableLayer, trainable_layers
from training.learning.fit import Evaluation
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.gradual import Gradual
from training.learning.mitigations.mitigation import TrainingStep
from training.learning.recipe import Recipe
from training.learning.retrain import ChipHooks, retrain

pytestmark = pytest.mark.usefixtures("one_thread")

STRATEGIES = ["none", "none+t", "none+t+gradual", "fap", "fap+t", "fam", "fam+t", "fam+t+gradual", "fap+bn+t", HARDENED]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
@pytest.mark.parametrize("broken", [(), (2,)])
def test_the_accuracy_is_that_of_the_cycle_engine_with_the_weights_on_the_chip(
    strategy: Mitigations | str, broken: tuple[int, ...], seed: int, tmp_path: Path
) -> None:
    chip = with_broken_accumulators(faulty_chip(seed), *broken)
    base, deep = (network(), False) if seed % 2 else (deep_network(), True)
    result = run(chip, 3, strategy, network=base, evaluate_at=[1], recipe=replace(RECIPE, seed=seed % 99))
    retrains = isinstance(strategy, Mitigations) or "+t" in strategy
    assert [found.iteration for found in result.evaluations] == ([0, 1, 3] if retrains else [0])
    assert len(result.losses) == (3 if retrains else 0)
    assert not result.network.training
    assert result.accuracy == count_correct(result.network, HELD_OUT) / 30
    logits = result.network(HELD_OUT.images)
    for engine in ("emulation", "cycle"):
        assert torch.equal(rebuilt(result, chip, engine, base if deep else None)(HELD_OUT.images), logits)
    # So it does from a file.
    write_deployed(tmp_path / "weights", result.weights, result.deployment, {})
    weights, deployment = read_deployed(tmp_path / "weights")
    assert deployment is not None
    read = replace(result, weights=weights, deployment=deployment)
    assert torch.equal(rebuilt(read, chip, base=base if deep else None)(HELD_OUT.images), logits)
    # What is lost is zero in the float network, too, which then has the same products without any bypass.
    if result.deployment.bypass.any():
        assert not any(weights.any() for weights in pruned(result, result.weights))
        unbypassed = rebuilt(result, chip, base=base if deep else None)
        result.deployment.put(unbypassed, Accelerator(ARRAY))
        if not broken and not chip.faults.unusable_columns().size:
            assert torch.equal(unbypassed(HELD_OUT.images), logits)


@pytest.mark.parametrize("strategy", ["fap+t", "fam+t+gradual", HARDENED], ids=named)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        ("Adam", {"weight_decay": 0.1, "amsgrad": True}),
        ("AdamW", {"weight_decay": 0.1}),
        ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
        ("Adagrad", {"initial_accumulator_value": 0.5}),
        ("Rprop", {}),
        ("Adadelta", {}),
        ("Adafactor", {"weight_decay": 0.1}),
        ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
        ("ASGD", {"weight_decay": 0.1}),
    ],
)
def test_weights_at_bypassed_pes_are_zero_after_every_step_and_so_is_what_would_move_them(
    strategy: Mitigations | str, optimizer: str, options: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = faulty_chip(seed)
    recipe = Recipe(batch=10, optimizer=optimizer, options=options, learning_rate=0.01, seed=seed % 99)
    steps: list[int] = []
    acting = set()
    before_step, after_step = ChipHooks.before_step, ChipHooks.after_step

    def kept_weights(model: nn.Module, iteration: int) -> Iterator[tuple[TrainableLayer, Tensor]]:
        bypass: BoolArray | None = chip.faults.required_bypass()
        if "gradual" in named(strategy):
            whole = Accelerator(ARRAY, chip.faults, bypass)
            bypass = Gradual().chip_for(TrainingStep(iteration, 6, recipe.seed), whole).bypass
        assert bypass is not None
        for layer in trainable_layers(model).values():
            kept = layer.acting(bypass)
            assert kept is not None
            yield layer, kept

    def checked_before(self: Any, iteration: int) -> None:
        before_step(self, iteration)
        for layer, kept in kept_weights(self._model, iteration):
            assert not layer.weight[~kept].any()

    def checked(self: Any, stepped: torch.optim.Optimizer) -> None:
        after_step(self, stepped)
        steps.append(len(steps))
        for layer, kept in kept_weights(self._model, steps[-1]):
            assert not layer.weight[~kept].any()
            assert layer.weight[kept].all()
            for name, value in stepped.state[layer.weight].items():
                # Step sizes move nothing where the gradient is zero.
                if value.shape == layer.weight.shape and name != "step_size":
                    assert not value[~kept].any()
                    acting.add(name)

    monkeypatch.setattr(ChipHooks, "before_step", checked_before)
    monkeypatch.setattr(ChipHooks, "after_step", checked)
    result = run(chip, 6, strategy, recipe=recipe, evaluate_at=[2])
    assert steps == list(range(6))
    assert acting or optimizer == "Adafactor"
    assert not any(weights.any() for weights in pruned(result, result.weights))
    before = network().state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in result.weights.items())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adafactor"])
@pytest.mark.parametrize("strategy", ["fap+t", "fam+bn+t"])
def test_pruned_weights_are_those_of_a_chip_that_bypasses_their_pes(strategy: str, optimizer: str, seed: int) -> None:
    chip, recipe = faulty_chip(seed), Recipe(batch=10, optimizer=optimizer, seed=seed % 99)
    base = deep_network() if seed % 2 else network()
    on_chip = run(chip, 5, strategy, network=base, recipe=recipe, evaluate_at=[2])
    layers = quantized_layers(on_chip.network)
    zeros = {
        name: (on_chip.deployment.placements.get(name) or Placement.in_order(*layer.gemm_shape)).at_weights(
            on_chip.deployment.bypass, ARRAY
        )
        for name, layer in layers.items()
    }
    nothing_broken = Chip("group", FaultMap.from_faults(ARRAY, []))
    without = "none+bn+t" if "bn" in strategy else "none+t"
    shared = run(nothing_broken, 5, without, network=base, recipe=recipe, evaluate_at=[2], pruned=zeros)
    assert_equal(shared.weights, on_chip.weights)
    assert shared.losses == on_chip.losses
    assert shared.evaluations == on_chip.evaluations


def test_retraining_wins_back_what_the_chip_lost() -> None:
    """Always on the same chip, with a wide margin: on some, nothing can be won."""
    chip, held_out = faulty_chip(1, rate=0.7), tiny_images(200, 9)
    assert count_correct(network(), held_out) > 180
    results = {
        strategy: retrain(network(), chip, replace(DATA, held_out=held_out), 100, mitigations=strategy, recipe=RECIPE)
        for strategy in ("fap+t", "fam+t")
    }
    fap, fam = results["fap+t"], results["fam+t"]
    assert fap.evaluations[0].correct < 100
    assert fap.evaluations[-1].correct > 130
    # Less is lost to begin with where weights may choose their places.
    assert 100 < fam.evaluations[0].correct < fam.evaluations[-1].correct
    for result in results.values():
        assert np.mean(result.losses[-20:]) < np.mean(result.losses[:10])


@pytest.mark.parametrize("strategy", ["none+t", "none"])
def test_an_unmitigated_chip_is_emulated_exactly(strategy: str, seed: int) -> None:
    faults = sample_faults(ARRAY, FaultModel(0.3, sites=dict.fromkeys(Site, 1.0)), seed)
    own = np.random.default_rng(seed).random((ARRAY.rows, ARRAY.cols)) < 0.1
    for chip in (Chip("chip-7", faults), Chip("chip-8", faults, own)):
        result = run(chip, 2, strategy)
        converted = convert(network(), ARRAY, DATA.calibration)
        if chip.bypass is not None:
            # The chip's own fuses prune, too: scales are those of what is left.
            pruned_network = network()
            for name, layer in quantized_layers(converted).items():
                kept = layer.acting(chip.bypass)
                if kept is not None:
                    pruned_network.get_submodule(name).weight.data.mul_(kept)
            scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(converted).items()}
            converted = convert(pruned_network, ARRAY, [], activation_scales=scales)
        put_on_chip(converted, Accelerator(ARRAY, chip.faults, chip.bypass, engine="cycle"))
        assert result.evaluations[0] == Evaluation(0, count_correct(converted, HELD_OUT), 30)
        assert np.array_equal(result.deployment.bypass, np.zeros((5, 4), bool) if chip.bypass is None else own)


def test_the_network_that_is_given_stays_as_it_is(seed: int) -> None:
    given = deep_network().train()
    given[0].weight.requires_grad_(False)
    before = copy.deepcopy(given.state_dict())
    images = TRAIN.images.clone()
    run(faulty_chip(seed), 3, "fam+bn+t", network=given, learn_scales=True)
    assert_equal(given.state_dict(), before)
    assert given.training
    assert not given[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in given.parameters())
    assert [type(module) for module in given] == [type(module) for module in deep_network()]
    assert torch.equal(TRAIN.images, images)


def test_learned_steps_move_and_are_deployed(seed: int) -> None:
    chip = faulty_chip(seed)
    fixed, learned = run(chip, 4), run(chip, 4, learn_scales=True)
    assert learned.evaluations[0] == fixed.evaluations[0]
    for name, scale in learned.deployment.activation_scales.items():
        assert scale != fixed.deployment.activation_scales[name]
        assert scale == float(quantized_layers(learned.network)[name].activation_scale)
    assert list(learned.weights) == list(fixed.weights) == list(network().state_dict())
    assert count_correct(rebuilt(learned, chip, "cycle"), HELD_OUT) == learned.evaluations[-1].correct


def test_chips_with_upsets_are_refused() -> None:
    faults = FaultMap.from_faults(ARRAY, [Fault(0, 0, Site.PSUM, 3, Kind.FLIP, 7)])
    with pytest.raises(InputError, match=r"chip chip-7 has FLIP faults, .*: retraining needs permanent faults only"):
        run(Chip("chip-7", faults), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": -1}, "iterations is -1: expected 0 or more"),
        ({"evaluate_at": [3, -2]}, "evaluations are asked for after -2 iterations: expected 0 or more"),
        ({"target_accuracy": 1.5}, "target accuracy is 1.5: expected a fraction, 0..1"),
        ({"target_accuracy": float("nan")}, "target accuracy is nan"),
        ({"strategy": "fap+"}, "mitigation 'fap\\+' is unknown"),
        (
            {"pruned": {"9": np.zeros((3, 24), np.bool_)}},
            "weights of a layer '9' are to be pruned",
        ),
        (
            {"pruned": {"5": np.zeros((3, 23), np.bool_)}},
            r"are bool \(3, 23\): expected bool \(3, 24\)",
        ),
        ({"pruned": {"5": np.zeros((3, 24), np.int8)}}, r"to be pruned are int8 \(3, 24\): expected bool \(3, 24\)"),
        ({"calibration": "median"}, "calibration method 'median' is unknown"),
        ({"recipe": Recipe(schedule="OneCycleLR", schedule_options={"total_steps": 2})}, "is over after 2 of 4"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    iterations = arguments.pop("iterations", 4)
    with pytest.raises(InputError, match=message) as caught:
        run(faulty_chip(1), iterations, arguments.pop("strategy", "fap+t"), **arguments, progress=interrupt_after(1))
    assert "\n" not in str(caught.value)
