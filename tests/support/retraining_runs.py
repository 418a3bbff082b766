"""Retraining of tiny networks, and what of two results must be equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simulator.lots.chips import Chip
from tests.support.networks import tiny_images, tiny_network
from training.data.batches import Batches
from training.layers.accelerator import Engine
from training.layers.convert import convert, quantized_layers
from training.learning.fit import TrainingProgress, fit
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.hardening import Hardening
from training.learning.recipe import Recipe
from training.learning.retrain import RetrainResult, TrainingData, retrain

TRAIN, HELD_OUT = tiny_images(90, 1), tiny_images(30, 2)
DATA = TrainingData(TRAIN, HELD_OUT, TRAIN.images[:20])
RECIPE = Recipe(batch=10, learning_rate=0.05)
HARDENED = Mitigations((Bypass(), Hardening(0.0, 0.4)), retrains=True)


@cache
def trained_once() -> nn.Sequential:
    """The tiny network, trained."""
    torch.manual_seed(5)
    network = tiny_network()
    fit(network, Batches(TRAIN, 10, 0), HELD_OUT, 120, RECIPE)
    return network


def network() -> nn.Sequential:
    """One to work with."""
    return copy.deepcopy(trained_once())


def deep_network() -> nn.Sequential:
    """With batch normalisation, dropout, and a layer that is used twice."""
    torch.manual_seed(6)
    twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        twice,
        nn.Dropout2d(0.2),
        twice,
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def run(chip: Chip, iterations: int, strategy: Mitigations | str = "fap+t", **arguments: Any) -> RetrainResult:
    """Retrain the tiny network, if no other is named, with the recipe above, if no other is given."""
    model = arguments.pop("network", None)
    arguments = {"recipe": RECIPE, **arguments}
    return retrain(network() if model is None else model, chip, DATA, iterations, mitigations=strategy, **arguments)


def rebuilt(
    result: RetrainResult, chip: Chip, engine: Engine = "emulation", base: nn.Module | None = None
) -> nn.Module:
    """The network anew from the weights and the deployment, as one reads them from a file."""
    model = network() if base is None else base
    model.load_state_dict(result.weights)
    scales = result.deployment.activation_scales
    converted = convert(model, chip.faults.config, [], activation_scales=scales)
    result.deployment.put(converted, result.deployment.accelerator(chip.faults.config, chip.faults, engine))
    return converted


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert list(found) == list(expected)
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def assert_same_result(found: RetrainResult, expected: RetrainResult) -> None:
    """All of it."""
    assert_equal(found.weights, expected.weights)
    assert found.losses == expected.losses
    assert found.evaluations == expected.evaluations
    assert found.reached_target == expected.reached_target
    assert found.deployment.activation_scales == expected.deployment.activation_scales
    assert np.array_equal(found.deployment.bypass, expected.deployment.bypass)
    assert torch.equal(found.network(HELD_OUT.images), expected.network(HELD_OUT.images))


def pruned(result: RetrainResult, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights of each layer that sit at bypassed PEs."""
    found = []
    for name, layer in quantized_layers(result.network).items():
        kept = layer.acting(result.deployment.bypass)
        assert kept is not None
        found.append(weights[f"{name}.weight"][~kept])
    return found


def named(strategy: Mitigations | str) -> str:
    """For reports."""
    return strategy if isinstance(strategy, str) else "hardened"


class Interrupted(Exception):  # noqa: N818
    """Stands for everything that can end a program."""


def interrupt_after(iterations: int) -> Callable[[TrainingProgress], None]:
    """Progress that ends the retraining."""

    def progress(moment: TrainingProgress) -> None:
        if moment.iteration == iterations:
            raise Interrupted

    return progress
