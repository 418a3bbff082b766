"""The options that say how a network learns, which images decide, and where the work runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efat.cli.options import calibration_option, fail, gathered
from efat.cli.parameters import INPUT_FILE, OF_NETWORK, AugmentationText, FractionText, NamedValue, PlaceRange

if TYPE_CHECKING:
    from efat import SplitRequest
    from training import Augmentation, Recipe
    from training.calibration import Method

DEFAULT_BATCH = 128
DEFAULT_OPTIMIZER = "SGD"
DEFAULT_OPTIMIZER_OPTIONS = {"SGD": {"momentum": 0.9}}
DEFAULT_LEARNING_RATE = 0.01
DEFAULT_LABEL_SMOOTHING = 0.0
"""Those of `training.learning.recipe.Recipe`, without importing torch for them; a test keeps them equal."""


@dataclass(frozen=True)
class RecipeRequest:
    """How a user wants a network to learn; the fields are the values of `recipe_options`."""

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
        """What is done to training images, if the user says it; otherwise whether anything is, or None."""
        from training import Augmentation

        return Augmentation(*self.augment) if isinstance(self.augment, tuple) else self.augment

    def recipe(self, seed: int, augmentation: Augmentation | None = None) -> Recipe:
        """The recipe, tried with the user's version of PyTorch."""
        from training import Augmentation, Recipe

        own_options = _named("--option", self.options)
        recipe = Recipe(
            batch=self.batch,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            options={**DEFAULT_OPTIMIZER_OPTIONS.get(self.optimizer, {}), **own_options} or None,
            schedule=self.schedule,
            schedule_options=_named("--schedule-option", self.schedule_options),
            label_smoothing=self.label_smoothing,
            augmentation=Augmentation() if augmentation is None else augmentation,
            seed=seed,
        )
        recipe.try_options()
        return recipe


def _recipe_request(*, no_augment: bool, augment: bool | tuple[bool, int] | None, **values: Any) -> RecipeRequest:
    if no_augment and augment is not None:
        fail("--augment and --no-augment are both given: choose one")
    request = RecipeRequest(augment=False if no_augment else augment, **values)
    if request.schedule_options and request.schedule is None:
        fail("--schedule-option is of no schedule: name one with --schedule")
    _named("--option", request.options)
    _named("--schedule-option", request.schedule_options)
    return request


recipe_options = gathered(
    "learning",
    _recipe_request,
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
        type=FractionText(),
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
    calibration_option(),
    click.option("--learn-scales", is_flag=True, help="Learn the activations' scales from there."),
)
"""Options for how a network learns; the command gets them as one argument `learning`, a `RecipeRequest`."""


def _named(option: str, given: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given:
        if name in found:
            fail(f"{option} {name} is given twice: leave one of them out")
        found[name] = value
    return found


@dataclass(frozen=True)
class SplitOptions:
    """Which images decide and which judge, as a user says it; see `efat.SplitRequest`."""

    tune_images: int | None
    verify_images: tuple[int, int] | None
    verify_data: Path | None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return _given(
            {
                "--tune-images": self.tune_images,
                "--verify-images": self.verify_images,
                "--verify-data": self.verify_data,
            }
        )

    def request(self) -> SplitRequest:
        """The same for the library."""
        from efat import SplitRequest

        return SplitRequest(self.tune_images, self.verify_images, self.verify_data)


split_options = gathered(
    "split",
    SplitOptions,
    click.option(
        "--tune-images",
        type=click.IntRange(min=1),
        metavar="N",
        help="Test images that decide, chosen by their content; the others only judge.  [default: half of them]",
    ),
    click.option(
        "--verify-images",
        type=PlaceRange(),
        help="Places of the test images that judge, from 0, without B; all others decide.  [default: the rest]",
    ),
    click.option(
        "--verify-data", type=INPUT_FILE, metavar="PATH", help="Other images that judge; all test images decide."
    ),
)
"""Options for which images decide and which judge; the command gets them as `split`, a `SplitOptions`."""


@dataclass(frozen=True)
class WorkerRequest:
    """Where a user wants work to run: in so many processes, or on the Ray cluster at an address."""

    workers: int | None
    ray: str | None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return _given({"--workers": self.workers, "--ray": self.ray})

    @property
    def where(self) -> int | str | None:
        """What functions take as `workers`."""
        if self.ray is not None and self.workers is not None:
            fail("--workers and --ray are both given: choose one")
        return self.workers if self.ray is None else self.ray


worker_options = gathered(
    "workers",
    WorkerRequest,
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Worker processes; 0 for none but this one.  [default: one per core]",
    ),
    click.option(
        "--ray",
        metavar="ADDRESS",
        help="Address of a Ray cluster to run on, whose machines see the same files at the same paths.",
    ),
)
"""Options for where work runs; the command gets them as one argument `workers`, a `WorkerRequest`."""


def _given(values: dict[str, object]) -> list[str]:
    return [name for name, value in values.items() if value is not None]
