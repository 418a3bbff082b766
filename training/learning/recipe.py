"""How a network is trained: mini-batches, optimiser, schedule. Checked before anything runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from simulator.errors import InputError, did_you_mean, first_line
from training.data.batches import Augmentation

DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}
"""Options of an optimiser where a recipe gives none."""

_LENGTHS = {
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "OneCycleLR": "total_steps",
}
"""Options of schedules that are the length of the training, unless a recipe gives them."""

_NOT_OPTIMIZERS = ("Optimizer", "LBFGS", "Muon", "SparseAdam")
"""The base class, and those that want a closure, matrices only, or sparse gradients."""

_NOT_SCHEDULES = (
    "LRScheduler",
    "ChainedScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "ReduceLROnPlateau",
    "SequentialLR",
)
"""The base class, and those that want more than numbers: other schedules, functions, a loss."""


Options = Mapping[str, bool | int | float | tuple[bool | int | float, ...]]
"""Of an optimiser or a schedule: numbers, true or false, or several of them, by name."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    With a constant learning rate, which is the default, a training of fewer iterations is the beginning of a longer
    one: accuracies on the way are those of shorter trainings.

    Args:
        batch: images in a mini-batch.
        optimizer: name of a class in `torch.optim` that takes steps with dense gradients and without a closure.
        learning_rate: its `lr`.
        options: its other options; None for `DEFAULT_OPTIONS`.
        schedule: name of a class in `torch.optim.lr_scheduler` that wants numbers only, stepped after each mini-batch;
            None for a constant learning rate. What is the length of the training in its options may be left out.
        schedule_options: its options.
        label_smoothing: of the cross entropy, 0..1.
        augmentation: what is done to training images.
        seed: of the order of images, augmentation, random chips, and whatever the network draws in training.

    Raises:
        InputError: a value is out of range, or PyTorch has no such optimiser or schedule. Whether the options go
            together shows `try_options`, or whoever trains.
    """

    batch: int = 128
    optimizer: str = "SGD"
    learning_rate: float = 0.01
    options: Options | None = None
    schedule: str | None = None
    schedule_options: Options = field(default_factory=dict)
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}: expected 1 or more images")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: expected 0 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise InputError(f"learning rate is {self.learning_rate}: expected a finite number of 0 or more")
        if not 0 <= self.label_smoothing <= 1:
            raise InputError(f"label smoothing is {self.label_smoothing}: expected 0..1")
        self._optimizer_class()
        self._schedule_class()

    def try_options(self) -> None:
        """Take a step to see that the options go together: PyTorch looks at some of them only then.

        The first optimiser of a process takes PyTorch seconds to make.

        Raises:
            InputError: PyTorch refuses them.
        """
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        optimizer = self.make_optimizer([parameter])
        schedule = self.make_schedule(optimizer, 1)
        try:
            optimizer.step()
        except Exception as error:
            raise _refusal("optimiser", self.optimizer, self.options, error) from None
        try:
            if schedule is not None:
                schedule.step()
        except Exception as error:
            raise _refusal("schedule", self.schedule, self.schedule_options, error) from None

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of parameters."""
        found = self._optimizer_class()
        options = DEFAULT_OPTIONS.get(self.optimizer, {}) if self.options is None else self.options
        try:
            optimizer: torch.optim.Optimizer = found(list(parameters), lr=self.learning_rate, **options)
        except Exception as error:
            raise _refusal("optimiser", self.optimizer, options, error) from None
        return optimizer

    def make_schedule(
        self, optimizer: torch.optim.Optimizer, iterations: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The schedule of an optimiser over a number of iterations; None for a constant learning rate.

        Raises:
            InputError: its options do not allow for so many iterations.
        """
        found = self._schedule_class()
        if self.schedule is None or found is None:
            return None
        options = dict(self.schedule_options)
        length = _LENGTHS.get(self.schedule)
        if length is not None:
            options.setdefault(length, max(1, iterations))
        if self.schedule == "OneCycleLR":
            options.setdefault("max_lr", self.learning_rate)
        try:
            schedule: torch.optim.lr_scheduler.LRScheduler = found(optimizer, **options)
        except Exception as error:
            raise _refusal("schedule", self.schedule, options, error) from None
        longest = getattr(schedule, "total_steps", iterations)
        if longest < iterations:
            raise InputError(
                f"schedule {self.schedule} is over after {longest} of {iterations} iterations: leave it out"
            )
        return schedule

    def _optimizer_class(self) -> Any:
        known = _classes(torch.optim, torch.optim.Optimizer, without=_NOT_OPTIMIZERS)
        if self.optimizer not in known:
            raise InputError(
                f"optimiser {self.optimizer!r} is unknown: expected one of "
                f"{', '.join(known)}{did_you_mean(self.optimizer, known)}"
            )
        return known[self.optimizer]

    def _schedule_class(self) -> Any:
        schedulers = torch.optim.lr_scheduler
        known = _classes(schedulers, schedulers.LRScheduler, without=_NOT_SCHEDULES)
        if self.schedule is not None and self.schedule not in known:
            raise InputError(
                f"schedule {self.schedule!r} is unknown: expected one of "
                f"{', '.join(known)}{did_you_mean(self.schedule, known)}"
            )
        return None if self.schedule is None else known[self.schedule]

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides a training, as JSON takes it."""
        return asdict(self)


def _refusal(what: str, name: str | None, options: Mapping[str, Any] | None, error: Exception) -> InputError:
    """PyTorch raises nearly anything on options that it does not want, and nothing but the options can be wrong."""
    return InputError(f"{what} {name} refuses its options {dict(options or {})}: {first_line(error)}")


def _classes(module: Any, base: type, without: tuple[str, ...]) -> dict[str, Any]:
    """The classes of a module that are of a kind, by name, without some."""
    return {
        name: kind
        for name, kind in sorted(vars(module).items())
        if inspect.isclass(kind) and issubclass(kind, base) and name[0] != "_" and name not in without
    }
