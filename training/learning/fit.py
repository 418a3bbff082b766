"""The training loop: mini-batches, accuracy on the way, checkpoints, and what happens when it diverges."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.errors import InputError, NotFiniteError, different_names, first_line
from simulator.files import replaced
from training.data.batches import Batches
from training.data.classification import count_correct
from training.data.datasets import Dataset
from training.learning.recipe import Recipe

VERSION = 1

_BEGINNING = b"efat-checkpoint"


class DamagedStateError(InputError):
    """A file was a state, and is not whole any more."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that decides how a training goes on.

    Args:
        identity: digests of what the training is made from, by name.
        network: state dict of the network.
        optimizer: state dict of the optimiser.
        schedule: state dict of the schedule; empty without.
        evaluations: iteration, correct and images of each evaluation so far.
        losses: of the mini-batches so far.
        good: state dict of the network at the last evaluation.
    """

    identity: Mapping[str, str]
    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    evaluations: Sequence[tuple[int, int, int]]
    losses: Sequence[float]
    good: Mapping[str, Tensor]


def write_state(path: Path, state: TrainingState) -> None:
    """Write a state in place of the one that is there, in one piece."""
    content = state_bytes(state)
    with replaced(path) as beside:
        beside.write_bytes(content)


def state_bytes(state: TrainingState) -> bytes:
    """What `write_state` writes."""
    buffer = io.BytesIO()
    torch.save({field.name: getattr(state, field.name) for field in fields(state)}, buffer)
    content = buffer.getvalue()
    return b"%s %d %s\n" % (_BEGINNING, VERSION, hashlib.sha256(content).hexdigest().encode()) + content


def read_state(path: Path, identity: Mapping[str, str]) -> TrainingState:
    """Read a state from a file: see `state_from`."""
    return state_from(path.read_bytes(), path, identity)


def state_from(written: bytes, path: Path, identity: Mapping[str, str]) -> TrainingState:
    """Read a state. Nothing in it is run: `torch.load(weights_only=True)`.

    Args:
        written: what `state_bytes` gave.
        path: where it is from, for messages.
        identity: what the training to go on with is made from.

    Raises:
        DamagedStateError: it is damaged.
        InputError: it is no state, or is of another training; the message says what differs.
    """
    content = _checked_content(written, path)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state = TrainingState(**{field.name: found[field.name] for field in fields(TrainingState)})
        known = dict(state.identity)
    except Exception:
        # torch.load raises nearly anything on what is none of its own, and nothing but the file can be wrong.
        raise InputError(f"{path} is no checkpoint: delete it to start over") from None
    different = different_names(known, identity)
    if different:
        raise InputError(
            f"{path} is a checkpoint of a retraining with another {', '.join(different)}: go on with what it was "
            "started with, or delete it to start over"
        )
    return state


def _checked_content(written: bytes, path: Path) -> bytes:
    """What follows the first line."""
    beginning, _, content = written.partition(b"\n")
    words = beginning.split(b" ")
    if len(words) != 3 or words[0] != _BEGINNING:
        raise InputError(f"{path} is no checkpoint: delete it to start over")
    if words[1] != b"%d" % VERSION:
        version = words[1][:20].decode(errors="replace")
        raise InputError(f"{path} is a checkpoint of version {version!r}, and this program reads {VERSION}: delete it")
    if words[2] != hashlib.sha256(content).hexdigest().encode():
        raise DamagedStateError(f"{path} is a checkpoint that is damaged: delete it to start over")
    return content


CHECKPOINT_SECONDS = 15.0

_OF_NETWORK = 4
"""First word of the spawn key of what the network draws; batches, hardening and gradual injection have others."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on held-out images after a number of iterations.

    Args:
        iteration: mini-batches learned from.
        correct: images classified correctly.
        images: images classified.
    """

    iteration: int
    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        """Fraction of images classified correctly."""
        return self.correct / self.images


@dataclass(frozen=True)
class TrainingProgress:
    """What a running training reports.

    Args:
        iteration: mini-batches done.
        iterations: how many there will be, at most.
        loss: of the last mini-batch; NaN before the first.
        evaluation: the last one.
    """

    iteration: int
    iterations: int
    loss: float
    evaluation: Evaluation | None


class DivergedError(ArithmeticError):
    """Training ended in NaN or infinity. The network is as it was at the last evaluation.

    Attributes:
        iteration: the mini-batch in which it was noticed.
        good: the last evaluation.
        trained: what there was by then.
    """

    def __init__(self, iteration: int, good: Evaluation, trained: Trained) -> None:
        super().__init__(
            f"training diverged: NaN or infinity in iteration {iteration}; the last good state is that of iteration "
            f"{good.iteration} with an accuracy of {good.accuracy:.2%}; use a smaller learning rate"
        )
        self.iteration = iteration
        self.good = good
        self.trained = trained


@dataclass
class Trained:
    """What a training measured.

    Attributes:
        evaluations: in order; the first is before the first mini-batch, the last at the end.
        losses: of the mini-batches.
        reached_target: whether it ended early because the target accuracy was reached.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reached_target: bool = False

    @property
    def iterations(self) -> int:
        """Mini-batches learned from."""
        return len(self.losses)


class Hooks:
    """What may be done around the steps of a training; this does nothing."""

    def before_step(self, iteration: int) -> None:
        """Called before a mini-batch, from 0."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the optimiser's step."""

    def before_evaluation(self) -> None:
        """Called before accuracy is measured."""

    def after_evaluation(self) -> None:
        """Called when accuracy was measured and the network kept as the last good one; undoes `before_evaluation`."""


def fit(
    network: nn.Module,
    batches: Batches,
    held_out: Dataset,
    iterations: int,
    recipe: Recipe,
    *,
    evaluate_at: Sequence[int] = (),
    target_accuracy: float | None = None,
    least_iterations: int = 0,
    hooks: Hooks | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, str] | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    start: TrainingState | None = None,
    on_end: Callable[[TrainingState], None] | None = None,
) -> Trained:
    """Train a network in place.

    Args:
        network: any module that maps images to logits; left in evaluation mode.
        batches: mini-batches to learn from.
        held_out: images to measure accuracy on.
        iterations: mini-batches, >= 0.
        recipe: optimiser, schedule and seed; its batch and augmentation are those of `batches`.
        evaluate_at: iterations after which accuracy is measured, beside before the first and after the last.
        target_accuracy: training ends at the first evaluation that reaches it; None for never.
        least_iterations: evaluations after fewer do not end it.
        hooks: what is done around the steps.
        checkpoint: file that the state is kept in every few seconds; if it is there, training goes on from it, and the
            result is that of one without a break, bit for bit.
        identity: what must be the same for a checkpoint to go on from, by name.
        progress: called after each iteration.
        start: of the same training with fewer iterations, to go on from; it takes the place of `checkpoint`.
        on_end: called with the state when all iterations are done, from which one with more can go on.

    Raises:
        DivergedError: the loss, a parameter or a logit was NaN or infinite.
        InputError: they are before the first mini-batch; `checkpoint` belongs to another training, or is no checkpoint.
    """
    hooks = Hooks() if hooks is None else hooks
    optimizer = recipe.make_optimizer(network.parameters())
    schedule = recipe.make_schedule(optimizer, iterations)
    trained = Trained()
    good: dict[str, Tensor] = {}
    stops = {0, iterations, *(stop for stop in evaluate_at if stop < iterations)}

    def state() -> TrainingState:
        weights = network.state_dict()
        # At an evaluation the two are most often the same, and are then kept once.
        alike = all(torch.equal(value, good[name]) for name, value in weights.items())
        parts = (weights, optimizer.state_dict(), schedule.state_dict() if schedule else {})
        evaluations = [(found.iteration, found.correct, found.images) for found in trained.evaluations]
        return TrainingState(identity or {}, *parts, evaluations, trained.losses, weights if alike else good)

    def evaluate() -> None:
        nonlocal good
        hooks.before_evaluation()
        try:
            correct = _count_correct(network, held_out)
        except NotFiniteError:
            if trained.iterations:
                raise _Diverged from None
            raise
        trained.evaluations.append(Evaluation(trained.iterations, correct, len(held_out)))
        trained.reached_target = reaches_target()
        good = copy.deepcopy(network.state_dict())
        hooks.after_evaluation()

    def reaches_target() -> bool:
        last = trained.evaluations[-1]
        return target_accuracy is not None and last.iteration >= least_iterations and last.accuracy >= target_accuracy

    if checkpoint is not None and checkpoint.exists():
        kept = read_state(checkpoint, identity or {})
        try:
            trained, good = _go_on(kept, network, optimizer, schedule)
        except Exception as error:
            # PyTorch raises nearly anything on the state of something else, and nothing but the file can be wrong.
            raise InputError(f"{checkpoint} does not fit ({first_line(error)}): delete it to start over") from None
        trained.reached_target = reaches_target()
    elif start is not None:
        trained, good = _go_on(start, network, optimizer, schedule)
    saved = time.monotonic()
    try:
        if not trained.evaluations:
            evaluate()
        while trained.iterations < iterations and not trained.reached_target:
            network.train()
            hooks.before_step(trained.iterations)
            loss = _step(network, batches, trained.iterations, recipe, optimizer)
            hooks.after_step(optimizer)
            if schedule is not None:
                schedule.step()
            trained.losses.append(loss)
            if trained.iterations in stops:
                evaluate()
            if progress is not None:
                progress(TrainingProgress(trained.iterations, iterations, loss, trained.evaluations[-1]))
            if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                write_state(checkpoint, state())
                saved = time.monotonic()
    except _Diverged:
        network.load_state_dict(good)
        network.eval()
        iteration = trained.iterations
        trained.losses = trained.losses[: trained.evaluations[-1].iteration]
        raise DivergedError(iteration, trained.evaluations[-1], trained) from None
    if on_end is not None:
        on_end(state())
    network.eval()
    return trained


class _Diverged(Exception):  # noqa: N818
    """NaN or infinity was met."""


def _go_on(
    state: TrainingState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
) -> tuple[Trained, dict[str, Tensor]]:
    """Restore a state; gives what was measured by then, and the last good state of the network."""
    network.load_state_dict(state.network)
    optimizer.load_state_dict(dict(state.optimizer))
    if schedule is not None:
        schedule.load_state_dict(dict(state.schedule))
    evaluations = [Evaluation(*counts) for counts in state.evaluations]
    return Trained(evaluations, list(state.losses)), dict(state.good)


def _count_correct(network: nn.Module, held_out: Dataset) -> int:
    for name, value in network.named_parameters():
        # Quantised, it would be some integer.
        if not bool(torch.isfinite(value).all()):
            raise NotFiniteError(f"parameter {name!r} of the network has NaN or infinity: use other weights")
    return count_correct(network, held_out)


def _step(
    network: nn.Module, batches: Batches, iteration: int, recipe: Recipe, optimizer: torch.optim.Optimizer
) -> float:
    device = next(network.parameters()).device
    images, labels = (part.to(device) for part in batches.at(iteration))
    # What the network itself draws (dropout, say) depends on the iteration alone, so that training can go on anywhere.
    own = np.random.SeedSequence(recipe.seed, spawn_key=(_OF_NETWORK, iteration)).generate_state(1)
    with torch.random.fork_rng(devices=[]):
        # PyTorch makes use of no more than 32 bits of it.
        torch.manual_seed(int(own[0]))
        loss = functional.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _Diverged
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value
