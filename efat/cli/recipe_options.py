"""The options that say how a network learns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import Fraction, NamedValue, fail

if TYPE_CHECKING:
    from training.batches import Augmentation
    from training.calibration import Method
    from training.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_BATCH = 128
DEFAULT_OPTIMIZER = "SGD"
DEFAULT_OPTIMIZER_OPTIONS = {"SGD": {"momentum": 0.9}}
DEFAULT_LEARNING_RATE = 0.01
DEFAULT_LABEL_SMOOTHING = 0.0
"""Those of `training.recipe.Recipe`, without importing torch for them; a test keeps them equal."""


@dataclass(frozen=True)
class RecipeRequest:
    """How a user wants a network to learn.

    Attributes:
        batch: images in a mini-batch.
        optimizer: name of a class in `torch.optim`.
        learning_rate: its step size.
        options: its other options.
        schedule: name of a class in `torch.optim.lr_scheduler`; None for a constant learning rate.
        schedule_options: its options.
        label_smoothing: of the cross entropy.
        augment: whether training images are augmented; None if the network's are.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
    """

    batch: int
    optimizer: str
    learning_rate: float
    options: tuple[tuple[str, Any], ...]
    schedule: str | None
    schedule_options: tuple[tuple[str, Any], ...]
    label_smoothing: float
    augment: bool | None
    calibration: Method
    learn_scales: bool

    def recipe(self, seed: int, augmentation: Augmentation | None = None) -> Recipe:
        """The recipe.

        Args:
            seed: of orders and augmentation.
            augmentation: what is done to training images; None for nothing.

        Raises:
            InputError: a value is out of range, or PyTorch has no such optimiser or schedule.
        """
        from training.batches import NO_AUGMENTATION
        from training.recipe import Recipe

        own_options = _named("--option", self.options)
        return Recipe(
            batch=self.batch,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            options={**DEFAULT_OPTIMIZER_OPTIONS.get(self.optimizer, {}), **own_options} or None,
            schedule=self.schedule,
            schedule_options=_named("--schedule-option", self.schedule_options),
            label_smoothing=self.label_smoothing,
            augmentation=NO_AUGMENTATION if augmentation is None else augmentation,
            seed=seed,
        )


def recipe_options(command: _Command) -> _Command:
    """Options for how a network learns; the command gets them as one argument `learning`, a `RecipeRequest`."""
    options = (
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            metavar="N",
            default=DEFAULT_BATCH,
            show_default=True,
            help="Images in a mini-batch.",
        ),
        click.option(
            "--optimizer",
            metavar="NAME",
            default=DEFAULT_OPTIMIZER,
            show_default=True,
            help="Class in torch.optim.",
        ),
        click.option(
            "--learning-rate",
            type=float,
            metavar="X",
            default=DEFAULT_LEARNING_RATE,
            show_default=True,
            help="Its step size.",
        ),
        click.option(
            "--option",
            "options",
            multiple=True,
            type=NamedValue(),
            help="Option of the optimiser; repeatable.  [default: momentum=0.9 for SGD]",
        ),
        click.option(
            "--schedule",
            metavar="NAME",
            help="Class in torch.optim.lr_scheduler.  [default: a constant learning rate]",
        ),
        click.option(
            "--schedule-option",
            "schedule_options",
            multiple=True,
            type=NamedValue(),
            help="Option of the schedule; repeatable.",
        ),
        click.option(
            "--label-smoothing",
            type=Fraction(),
            metavar="X",
            default=DEFAULT_LABEL_SMOOTHING,
            show_default=True,
            help="Of the cross entropy, 0 to 1.",
        ),
        click.option(
            "--augment/--no-augment",
            default=None,
            help="Augment training images.  [default: if the network's are augmented]",
        ),
        click.option(
            "--calibration",
            type=click.Choice(["max", "percentile", "mse"]),
            default="max",
            show_default=True,
            help="How the activations' scales are chosen.",
        ),
        click.option("--learn-scales", is_flag=True, help="Learn the activations' scales from there."),
    )

    @functools.wraps(command)
    def with_request(**values: Any) -> Any:
        request = RecipeRequest(**{field.name: values.pop(field.name) for field in fields(RecipeRequest)})
        if request.schedule_options and request.schedule is None:
            fail("--schedule-option is of no schedule: name one with --schedule")
        _named("--option", request.options)
        _named("--schedule-option", request.schedule_options)
        return command(learning=request, **values)

    decorated: Any = with_request
    for option in reversed(options):
        decorated = option(decorated)
    result: _Command = decorated
    return result


def _named(option: str, given: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given:
        if name in found:
            fail(f"{option} {name} is given twice: leave one of them out")
        found[name] = value
    return found
