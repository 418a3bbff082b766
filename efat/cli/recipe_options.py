"""The options that say how a network learns."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import Fraction, NamedValue, fail

if TYPE_CHECKING:
    from training.calibration import Method
    from training.data.batches import Augmentation
    from training.learning.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_BATCH = 128
DEFAULT_OPTIMIZER = "SGD"
DEFAULT_OPTIMIZER_OPTIONS = {"SGD": {"momentum": 0.9}}
DEFAULT_LEARNING_RATE = 0.01
DEFAULT_LABEL_SMOOTHING = 0.0
"""Those of `training.learning.recipe.Recipe`, without importing torch for them; a test keeps them equal."""


OF_NETWORK = "network"
"""What `--augment` without a value stands for: as the network's images are augmented."""


class AugmentationText(click.ParamType):  # type: ignore[type-arg]
    """What is done to training images: flip, crop=PIXELS or both with a comma; or `OF_NETWORK`."""

    name = "FLIP,CROP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | tuple[bool, int]:
        """Parse it: whether images are flipped, and the pixels of padding before a crop; True for `OF_NETWORK`."""
        if not isinstance(value, str) or value == OF_NETWORK:
            return value if isinstance(value, tuple) else True
        words = [word.strip().lower() for word in value.split(",")]
        crops = [found for word in words if (found := re.fullmatch(r"crop=([1-9]\d{0,3})", word))]
        if sorted(words) != sorted([*["flip"] * ("flip" in words), *(found[0] for found in crops[:1])]):
            self.fail(f"{value!r}: expected flip, crop=PIXELS or both, such as flip,crop=4", param, ctx)
        return "flip" in words, int(crops[0][1]) if crops else 0


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
        augment: whether training images are augmented, or whether they are flipped and by how many pixels padded; None
            if the network's are.
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
    augment: bool | tuple[bool, int] | None
    calibration: Method
    learn_scales: bool

    @property
    def augmentation(self) -> Augmentation | bool | None:
        """What is done to training images, if the user says it; otherwise whether anything is, or None.

        Raises:
            InputError: padding out of range.
        """
        from training.data.batches import Augmentation

        return Augmentation(*self.augment) if isinstance(self.augment, tuple) else self.augment

    def recipe(self, seed: int, augmentation: Augmentation | None = None) -> Recipe:
        """The recipe.

        Args:
            seed: of orders and augmentation.
            augmentation: what is done to training images; None for nothing.

        Raises:
            InputError: a value is out of range, or PyTorch has no such optimiser or schedule.
        """
        from training.data.batches import NO_AUGMENTATION
        from training.learning.recipe import Recipe

        own_options = _named("--option", self.options)
        recipe = Recipe(
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
        recipe.try_options()
        return recipe


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
            "--augment",
            is_flag=False,
            flag_value=OF_NETWORK,
            type=AugmentationText(),
            metavar="[HOW]",
            help="Augment training images: flip, crop=PIXELS or both, such as flip,crop=4; or as the network's are.  "
            "[default: if the network's are]",
        ),
        click.option("--no-augment", is_flag=True, help="Do not augment training images."),
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
        if values.pop("no_augment"):
            if values["augment"] is not None:
                fail("--augment and --no-augment are both given: choose one")
            values["augment"] = False
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
