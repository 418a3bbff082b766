"""Recipes: PyTorch's optimisers and schedules by name, and what is refused before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from simulator.errors import InputError
from training.data.batches import Augmentation
from training.learning.recipe import Recipe


def parameters() -> list[nn.Parameter]:
    """A convolution's weights, a linear layer's, and a bias, with gradients."""
    made = [nn.Parameter(torch.randn(shape)) for shape in ((3, 2, 2, 2), (4, 5), (4,))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape)
    return made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", None),
        ("SGD", {}),
        ("SGD", {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        ("Adam", {"betas": (0.8, 0.9), "amsgrad": True}),
        ("AdamW", {"weight_decay": 0.1}),
        ("RMSprop", {"centered": True, "momentum": 0.9}),
        ("Rprop", {"etas": (0.4, 1.3)}),
        *((name, None) for name in ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adamax", "NAdam", "RAdam")),
    ],
)
def test_optimisers_are_those_of_pytorch(name: str, options: dict[str, Any] | None) -> None:
    recipe = Recipe(optimizer=name, learning_rate=0.05, options=options)
    found, expected = parameters(), parameters()
    for mine, other in zip(found, expected, strict=True):
        mine.data.copy_(other.data)
        assert mine.grad is not None
        other.grad = mine.grad.clone()
    given = {"momentum": 0.9} if (name, options) == ("SGD", None) else options or {}
    reference = getattr(torch.optim, name)(expected, lr=0.05, **given)
    optimizer = recipe.make_optimizer(found)
    assert type(optimizer) is getattr(torch.optim, name)
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in found]
        optimizer.step()
        reference.step()
        assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
        assert not any(torch.equal(mine, old) for mine, old in zip(found, before, strict=True))


def rates(recipe: Recipe, iterations: int) -> list[float]:
    """The learning rate of each mini-batch."""
    optimizer = recipe.make_optimizer(parameters())
    schedule = recipe.make_schedule(optimizer, iterations)
    used = []
    for _ in range(iterations):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return used


N = 8


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (None, {}, [0.4] * N),
        ("StepLR", {"step_size": 3}, [0.4 * 0.1 ** (step // 3) for step in range(N)]),
        ("MultiStepLR", {"milestones": [2, 5], "gamma": 0.5}, [0.4] * 2 + [0.2] * 3 + [0.1] * 3),
        ("ExponentialLR", {"gamma": 0.5}, [0.4 * 0.5**step for step in range(N)]),
        ("CosineAnnealingLR", {}, [0.2 * (1 + math.cos(math.pi * step / N)) for step in range(N)]),
        ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.4}, [0.4] * N),
        ("LinearLR", {"start_factor": 1.0, "end_factor": 0.5}, [0.4 * (1 - 0.5 * step / N) for step in range(N)]),
        ("PolynomialLR", {"power": 2.0}, [0.4 * (1 - step / N) ** 2 for step in range(N)]),
    ],
)
def test_schedules_are_as_long_as_the_training(
    schedule: str | None, options: dict[str, Any], expected: list[float]
) -> None:
    recipe = Recipe(learning_rate=0.4, schedule=schedule, schedule_options=options)
    assert rates(recipe, N) == pytest.approx(expected)


def test_one_cycle_goes_up_to_the_learning_rate_and_down_to_nothing() -> None:
    recipe = Recipe(learning_rate=0.4, schedule="OneCycleLR", schedule_options={"pct_start": 0.5})
    used = rates(recipe, 20)
    assert used[0] == pytest.approx(0.4 / 25)
    assert max(used) == pytest.approx(0.4)
    assert used.index(max(used)) == 9
    assert used[-1] == pytest.approx(0.4 / 25 / 1e4, rel=1e-3)
    higher = Recipe(schedule="OneCycleLR", schedule_options={"max_lr": 3.0})
    assert max(rates(higher, 20)) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("schedule", ["CosineAnnealingLR", "LinearLR", "OneCycleLR", "PolynomialLR"])
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_schedules_of_the_shortest_trainings(schedule: str, iterations: int) -> None:
    assert all(math.isfinite(rate) for rate in rates(Recipe(schedule=schedule), iterations))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch is 0: expected 1 or more images"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        ({"learning_rate": -0.1}, "learning rate is -0.1: expected a finite number"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"learning_rate": math.inf}, "learning rate is inf"),
        ({"label_smoothing": 1.01}, "label smoothing is 1.01: expected 0..1"),
        ({"label_smoothing": math.nan}, "label smoothing is nan"),
        ({"optimizer": "sgd"}, "optimiser 'sgd' is unknown: expected one of ASGD, Adadelta, .*, SGD; did you mean SGD"),
        ({"optimizer": "Optimizer"}, "optimiser 'Optimizer' is unknown"),
        ({"optimizer": "LBFGS"}, "optimiser 'LBFGS' is unknown"),
        ({"optimizer": "SparseAdam"}, "optimiser 'SparseAdam' is unknown"),
        ({"options": {"momentum": -1}}, "optimiser SGD refuses its options {'momentum': -1}: Invalid momentum value"),
        ({"options": {"momentum": "much"}}, "optimiser SGD refuses its options {'momentum': 'much'}"),
        ({"options": {"beta": 0.9}}, "optimiser SGD refuses its options {'beta': 0.9}: .*unexpected keyword"),
        ({"options": {"lr": 0.9}}, "optimiser SGD refuses its options {'lr': 0.9}"),
        ({"options": {"params": []}}, "optimiser SGD refuses its options {'params': "),
        ({"optimizer": "Adam", "options": {"betas": 0.9}}, "optimiser Adam refuses its options"),
        ({"optimizer": "Adam", "options": {"differentiable": True}}, "optimiser Adam refuses its options"),
        (
            {"schedule": "StepLr"},
            "schedule 'StepLr' is unknown: expected one of ConstantLR, .*, StepLR; did you mean S",
        ),
        ({"schedule": "ReduceLROnPlateau"}, "schedule 'ReduceLROnPlateau' is unknown"),
        ({"schedule": "LambdaLR"}, "schedule 'LambdaLR' is unknown"),
        ({"schedule": "StepLR"}, "schedule StepLR refuses its options {}: .*step_size"),
        ({"schedule": "StepLR", "schedule_options": {"step_size": 0}}, "StepLR refuses its options {'step_size': 0}"),
        ({"schedule": "StepLR", "schedule_options": {"step_size": 3, "gama": 1}}, "StepLR refuses its options"),
        ({"schedule": "StepLR", "schedule_options": {"step_size": 3, "last_epoch": 7}}, "StepLR refuses its options"),
        ({"schedule": "CosineAnnealingLR", "schedule_options": {"T_max": 0}}, "CosineAnnealingLR refuses its options"),
        ({"schedule": "CosineAnnealingLR", "schedule_options": {"T_max": "x"}}, "CosineAnnealingLR refuses its opti"),
        ({"schedule": "OneCycleLR", "schedule_options": {"total_steps": -1}}, "OneCycleLR refuses its options"),
        ({"schedule": "OneCycleLR", "optimizer": "Adagrad"}, "OneCycleLR refuses its options .*momentum"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe(**fields).try_options()
    assert "\n" not in str(caught.value)


def test_a_schedule_that_ends_before_the_training_does() -> None:
    recipe = Recipe(schedule="OneCycleLR", schedule_options={"total_steps": 5})
    assert len(rates(recipe, 5)) == 5
    with pytest.raises(InputError, match="schedule OneCycleLR is over after 5 of 6 iterations: leave it out"):
        rates(recipe, 6)


def test_everything_that_decides_is_said() -> None:
    recipe = Recipe(
        64,
        "Adam",
        0.1,
        {"betas": (0.9, 0.99)},
        "StepLR",
        {"step_size": 2},
        0.1,
        Augmentation(flip=True, crop_padding=2),
        seed=7,
    )
    assert json.loads(json.dumps(recipe.as_dict())) == {
        "batch": 64,
        "optimizer": "Adam",
        "learning_rate": 0.1,
        "options": {"betas": [0.9, 0.99]},
        "schedule": "StepLR",
        "schedule_options": {"step_size": 2},
        "label_smoothing": 0.1,
        "augmentation": {"flip": True, "crop_padding": 2},
        "seed": 7,
    }
