"""The training loop against one written out, and that neither breaks nor divergence change what comes of it."""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from simulator.errors import InputError, NotFiniteError
from tests.support.networks import tiny_images
from training.data.batches import Augmentation, Batches
from training.data.classification import count_correct
from training.data.datasets import Dataset
from training.learning import fit as fit_module
from training.learning.fit import (
    VERSION,
    DivergedError,
    Evaluation,
    Hooks,
    Trained,
    TrainingProgress,
    TrainingState,
    fit,
    read_state,
    write_state,
)
from training.learning.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, HELD_OUT = tiny_images(30, 1), tiny_images(20, 2)


def network(seed: int) -> nn.Sequential:
    """With what behaves otherwise in training: batch normalisation and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def run(model: nn.Module, iterations: int, recipe: Recipe, **arguments: Any) -> Trained:
    """Train on the data above."""
    return fit(model, Batches(TRAIN, recipe.batch, recipe.seed), HELD_OUT, iterations, recipe, **arguments)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy."""
    return copy.deepcopy(model.state_dict())


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert set(found) == set(expected)
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def test_training_is_what_pytorch_does_written_out(seed: int) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    by_hand = copy.deepcopy(model)
    recipe = Recipe(
        batch=7,
        optimizer="Adam",
        learning_rate=0.02,
        schedule="StepLR",
        schedule_options={"step_size": 3},
        label_smoothing=0.1,
        seed=seed,
    )
    trained = run(model, 8, recipe, evaluate_at=[5, 3, 3, 8, 99])

    batches = Batches(TRAIN, 7, seed)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    losses, evaluations = [], [Evaluation(0, count_correct(by_hand, HELD_OUT), 20)]
    for iteration in range(8):
        images, labels = batches.at(iteration)
        loss = functional.cross_entropy(by_hand.train()(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if iteration + 1 in (3, 5, 8):
            evaluations.append(Evaluation(iteration + 1, count_correct(by_hand, HELD_OUT), 20))
    assert_equal(model.state_dict(), by_hand.state_dict())
    assert trained.losses == losses
    assert trained.evaluations == evaluations
    assert trained.iterations == 8
    assert not trained.reached_target
    assert not model.training
    assert trained.evaluations[-1].accuracy == count_correct(model, HELD_OUT) / 20


def test_what_the_network_draws_belongs_to_the_seed_and_the_iteration(seed: int) -> None:
    drawn: dict[int, list[Tensor]] = {}

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                drawn.setdefault(chosen, []).append(torch.rand(4))
            logits: Tensor = self.linear(x.mean((2, 3)))
            return logits

    for chosen in (seed, seed + 1):
        torch.manual_seed(0)
        run(Draws(), 3, Recipe(seed=chosen))
        before = torch.get_rng_state()
        run(Draws(), 2, Recipe(seed=chosen))
        # Nobody else's random numbers depend on it.
        torch.set_rng_state(before)
        expected = torch.rand(1)
        torch.set_rng_state(before)
        model = Draws()
        torch.set_rng_state(before)
        run(model, 2, Recipe(seed=chosen))
        assert torch.equal(torch.rand(1), expected)
        first, second, third = drawn[chosen][:3]
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
        assert torch.equal(drawn[chosen][3], first)
        assert torch.equal(drawn[chosen][4], second)
    assert not torch.equal(drawn[seed][0], drawn[seed + 1][0])


def test_nothing_to_do() -> None:
    model = network(0)
    before = state_of(model)
    trained = run(model.train(), 0, Recipe())
    assert_equal(model.state_dict(), before)
    assert trained.losses == []
    assert trained.evaluations == [Evaluation(0, count_correct(model, HELD_OUT), 20)]
    assert not model.training


def test_progress_is_told_after_each_iteration(seed: int) -> None:
    told: list[TrainingProgress] = []
    trained = run(network(seed), 5, Recipe(batch=4, seed=seed), evaluate_at=[2, 4], progress=told.append)
    assert [moment.iteration for moment in told] == [1, 2, 3, 4, 5]
    assert {moment.iterations for moment in told} == {5}
    assert [moment.loss for moment in told] == trained.losses
    last = [0, 1, 1, 2, 3]
    assert [moment.evaluation for moment in told] == [trained.evaluations[index] for index in last]


def test_a_target_that_is_reached_ends_the_training(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    recipe = Recipe(batch=10, learning_rate=0.1, seed=seed)
    model = network(seed)
    whole = run(model, 30, recipe, evaluate_at=range(0, 30, 3))
    best = max(whole.evaluations, key=lambda found: found.correct)
    first = next(found for found in whole.evaluations if found.correct == best.correct)
    for _ in range(2):  # from the start, and from a checkpoint of the end
        model = network(seed)
        trained = run(
            model,
            30,
            recipe,
            evaluate_at=range(0, 30, 3),
            target_accuracy=first.accuracy,
            checkpoint=tmp_path / "checkpoint.pt",
        )
        assert trained.reached_target
        assert trained.evaluations == whole.evaluations[: whole.evaluations.index(first) + 1]
        assert trained.losses == whole.losses[: first.iteration]
        assert count_correct(model, HELD_OUT) == first.correct
    never = run(network(seed), 6, recipe, target_accuracy=1.0 if first.accuracy < 1 else 2.0)
    assert never.iterations == 6
    assert not never.reached_target
    at_once = run(network(seed), 30, recipe, target_accuracy=0.0)
    assert (at_once.iterations, len(at_once.evaluations), at_once.reached_target) == (0, 1, True)
    later = run(network(seed), 30, recipe, evaluate_at=range(0, 30, 3), target_accuracy=0.0, least_iterations=4)
    assert (later.iterations, later.reached_target) == (6, True)


class Recorder(Hooks):
    """Writes down what is called, and whether the last layer is then as it should be."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.calls: list[str] = []
        self.weight = self.present()

    def present(self) -> Tensor:
        """The weights as they are."""
        return self.layer.weight.detach().clone()

    def before_step(self, iteration: int) -> None:
        """Weights are those after the last step."""
        self.calls.append(f"step {iteration}")
        assert torch.equal(self.present(), self.weight)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Weights have changed."""
        self.calls.append("stepped")
        assert any(parameter is self.layer.weight for parameter in optimizer.param_groups[0]["params"])
        assert not torch.equal(self.present(), self.weight)
        self.weight = self.present()

    def before_evaluation(self) -> None:
        """Makes all classes equal."""
        self.calls.append("evaluate")
        self.layer.weight.data.zero_()

    def after_evaluation(self) -> None:
        """Makes them differ again."""
        self.calls.append("evaluated")
        self.layer.weight.data.copy_(self.weight)


def test_hooks_are_called_around_steps_and_evaluations() -> None:
    model = network(0)
    model[-1].bias = None
    hooks = Recorder(model[-1])
    trained = run(model, 3, Recipe(learning_rate=0.1), evaluate_at=[2], hooks=hooks)
    assert hooks.calls == [
        *("evaluate", "evaluated", "step 0", "stepped", "step 1", "stepped"),
        *("evaluate", "evaluated", "step 2", "stepped", "evaluate", "evaluated"),
    ]
    # Without weights everything is class 0.
    assert {found.correct for found in trained.evaluations} == {int((HELD_OUT.labels == 0).sum())}


class Interrupted(Exception):  # noqa: N818
    """Stands for everything that can end a program."""


def interrupt_after(iterations: int) -> Callable[[TrainingProgress], None]:
    """Progress that ends the training."""

    def progress(moment: TrainingProgress) -> None:
        if moment.iteration == iterations:
            raise Interrupted

    return progress


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(batch=7, learning_rate=0.1),
        Recipe(batch=7, optimizer="Adam", schedule="OneCycleLR"),
        Recipe(batch=7, optimizer="AdamW", schedule="MultiStepLR", schedule_options={"milestones": [3, 6]}),
        Recipe(batch=7, optimizer="RMSprop", options={"centered": True}, schedule="CosineAnnealingLR"),
        Recipe(batch=7, optimizer="Rprop", schedule="StepLR", schedule_options={"step_size": 2}),
        Recipe(batch=7, optimizer="NAdam", schedule="LinearLR"),
        Recipe(batch=7, optimizer="Adafactor", schedule="ExponentialLR", schedule_options={"gamma": 0.9}),
        Recipe(batch=7, schedule="CyclicLR", schedule_options={"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2}),
    ],
    ids=lambda recipe: f"{recipe.optimizer}-{recipe.schedule}",
)
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    undisturbed = network(3)
    expected = run(undisturbed, 9, recipe, evaluate_at=[4, 6])
    checkpoint = tmp_path / "checkpoint.pt"
    # What is kept when iteration 5 ends early is what there was after the fourth, an evaluation among it; and so on.
    for stop in (1, 5, 8):
        with pytest.raises(Interrupted):
            run(network(3), 9, recipe, evaluate_at=[4, 6], checkpoint=checkpoint, progress=interrupt_after(stop))
    told: list[TrainingProgress] = []
    model = network(3)
    trained = run(model, 9, recipe, evaluate_at=[4, 6], checkpoint=checkpoint, progress=told.append)
    assert [moment.iteration for moment in told] == [8, 9]
    assert trained == expected
    assert_equal(model.state_dict(), undisturbed.state_dict())
    # Nothing is left to do.
    again = network(4)
    assert run(again, 9, recipe, evaluate_at=[4, 6], checkpoint=checkpoint, progress=interrupt_after(9)) == expected
    assert_equal(again.state_dict(), undisturbed.state_dict())


def test_checkpoints_are_written_every_few_seconds_and_not_at_all_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    run(network(0), 4, Recipe(), checkpoint=checkpoint)
    assert not checkpoint.exists()
    now, kept = [0.0], []
    monkeypatch.setattr(fit_module.time, "monotonic", lambda: now[0])

    def ticking(moment: TrainingProgress) -> None:
        now[0] += 6
        if checkpoint.exists():
            kept.append(moment.iteration)
            checkpoint.unlink()

    run(network(0), 9, Recipe(), checkpoint=checkpoint, progress=ticking)
    # 18, 36 and 54 seconds: seen with the iteration that follows.
    assert kept == [4, 7]
    assert checkpoint.exists()
    checkpoint.unlink()
    run(network(0), 9, Recipe(), progress=ticking)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"efat-checkpoint 1 0\n"])
def test_a_checkpoint_that_is_none_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="delete it to start over"):
        run(network(0), 4, Recipe(), checkpoint=checkpoint)
    assert checkpoint.read_bytes() == content


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    checkpoint = tmp_path / "checkpoint.pt"
    run(network(0), 4, Recipe(), checkpoint=checkpoint, identity={"data": "a"})
    with pytest.raises(InputError, match="is a checkpoint of a retraining with another data"):
        run(network(0), 4, Recipe(), checkpoint=checkpoint, identity={"data": "b"})
    # If it claims to be the same, and yet does not fit.
    with pytest.raises(InputError, match=r"does not fit .*: delete it to start over") as caught:
        run(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), 4, Recipe(), checkpoint=checkpoint, identity={"data": "a"})
    assert "\n" not in str(caught.value)


class Spoils(Hooks):
    """Makes one weight NaN after a step."""

    def __init__(self, layer: nn.Linear, step: int) -> None:
        self.layer = layer
        self.step = step
        self.iteration = -1

    def before_step(self, iteration: int) -> None:
        """Remembers where training stands."""
        self.iteration = iteration

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Strikes."""
        if self.iteration == self.step:
            self.layer.weight.data[1, 2] = float("nan")


@pytest.mark.parametrize(("step", "good", "noticed"), [(0, 0, 1), (1, 0, 2), (2, 2, 3), (5, 4, 6), (6, 4, 7)])
def test_a_training_that_diverges_ends_with_the_last_good_state(
    step: int, good: int, noticed: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed with the next loss, or when accuracy is measured before that."""
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    recipe = Recipe(batch=7, seed=seed)
    until_then = network(seed)
    expected = run(until_then, good, recipe, evaluate_at=[2, 4])
    for _ in range(2):  # from the start, and from the checkpoint
        model = network(seed)
        with pytest.raises(DivergedError, match="use a smaller learning rate") as caught:
            run(
                model,
                7,
                recipe,
                evaluate_at=[2, 4],
                hooks=Spoils(model[-1], step),
                checkpoint=tmp_path / "checkpoint.pt",
            )
        error = caught.value
        assert error.trained.evaluations == expected.evaluations
        assert error.trained.losses == expected.losses
        assert error.good == expected.evaluations[-1]
        assert error.iteration == noticed
        assert f"iteration {noticed}; the last good state is that of iteration {good} with" in str(error)
        assert_equal(model.state_dict(), until_then.state_dict())
        assert not model.training


@pytest.mark.parametrize("lr", [1e36, 3e38])
def test_divergence_is_noticed_when_accuracy_is_measured(lr: float, seed: int) -> None:
    """The loss was computed before the step that spoils the weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    before = state_of(model)
    with pytest.raises(DivergedError, match="NaN or infinity in iteration 1") as caught:
        run(model, 1, Recipe(learning_rate=lr))
    assert caught.value.good.iteration == 0
    assert caught.value.trained.losses == []
    assert_equal(model.state_dict(), before)


def test_a_network_that_is_broken_to_begin_with_is_the_inputs_fault() -> None:
    model = network(0)
    model[1].weight.data[2] = float("nan")
    with pytest.raises(NotFiniteError, match=r"parameter '1\.weight' of the network has NaN or infinity"):
        run(model, 4, Recipe())
    broken = Dataset("broken", HELD_OUT.images / 0, HELD_OUT.labels, 3)
    with pytest.raises(NotFiniteError, match="NaN or infinity among the logits"):
        fit(network(0), Batches(TRAIN, 4, 0), broken, 4, Recipe())


def test_augmented_batches_are_those_that_are_learned_from(seed: int) -> None:
    augmentation = Augmentation(flip=True, crop_padding=1)
    recipe = Recipe(batch=30, learning_rate=0.0, seed=seed, augmentation=augmentation)
    batches = Batches(TRAIN, 30, seed, augmentation)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    losses = [
        float(functional.cross_entropy(model(images), labels).detach()) for images, labels in map(batches.at, range(3))
    ]
    assert fit(model, batches, HELD_OUT, 3, recipe).losses == losses
    assert len(set(losses)) == 3


IDENTITY = {"network": "1f", "chip": "2e", "recipe": "{}"}


def state() -> TrainingState:
    """After a step of Adam with a schedule."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 4])
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    good = {name: value * 2 for name, value in network.state_dict().items()}
    parts = network.state_dict(), optimizer.state_dict(), schedule.state_dict()
    return TrainingState(IDENTITY, *parts, [(0, 3, 9), (7, 5, 9)], [0.1, float(np.nextafter(0.2, 1))], good)


def assert_same(found: object, expected: object) -> None:
    """Tensors bit for bit, and what holds them."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    else:
        assert found == expected


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint."""
    path = tmp_path / "checkpoint.pt"
    write_state(path, state())
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for _ in range(2):  # the second takes the first one's place
        expected = state()
        write_state(path, expected)
        assert_same(vars(read_state(path, IDENTITY)), vars(expected))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    # No schedule, no momentum, no step.
    write_state(path, TrainingState({}, {}, {}, {}, [(0, 3, 9)], [], {}))
    assert read_state(path, {}).losses == []


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({**IDENTITY, "chip": "3d"}, "another chip:"),
        ({**IDENTITY, "recipe": "{...}", "network": "0"}, "another network, recipe:"),
        ({"network": "1f", "recipe": "{}"}, "another chip:"),
        ({**IDENTITY, "data": "4c"}, "another data:"),
        ({}, "another network, chip, recipe:"),
    ],
)
def test_the_state_of_another_training_says_what_differs(written: Path, identity: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read_state(written, identity)
    assert str(caught.value).startswith(f"{written} is a checkpoint of a retraining with {named}")
    assert "delete it to start over" in str(caught.value)


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """One bit is another, anywhere."""
    damaged = bytearray(content)
    damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def flipped_at_the_start(content: bytes, random: np.random.Generator) -> bytes:
    """One of the first line."""
    return flipped(content[:90], random) + content[90:]


def cut_short(content: bytes, random: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: random.integers(len(content))]


def with_more(content: bytes, random: np.random.Generator) -> bytes:
    """Something is inserted."""
    place = int(random.integers(len(content) + 1))
    return content[:place] + random.bytes(int(random.integers(1, 20))) + content[place:]


@pytest.mark.parametrize("damage", [flipped, flipped_at_the_start, cut_short, with_more])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_damage_is_noticed(written: Path, damage: Callable[[bytes, np.random.Generator], bytes], seed: int) -> None:
    path = written.with_name("damaged.pt")
    path.write_bytes(damage(written.read_bytes(), np.random.default_rng(seed)))
    with pytest.raises(InputError, match=r"is no checkpoint|of version|is damaged") as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert "delete it" in str(caught.value)


def forged(content: object, version: int = VERSION) -> bytes:
    """A file whose digest is right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return f"efat-checkpoint {version} {digest}\n".encode() + buffer.getvalue()


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "it-ran", tmp_path / "checkpoint.pt"
    content = {**vars(state()), "network": Runs(f"touch {proof}")}
    path.write_bytes(forged(content))
    with pytest.raises(InputError, match="is no checkpoint") as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=False)
    assert proof.exists(), "the file would have done no harm: this test shows nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no checkpoint: delete it to start over"),
        (b"hello\n", "is no checkpoint: delete it to start over"),
        (b"efat-checkpoint 1\n", "is no checkpoint: delete it to start over"),
        (b"efat-checkpoint 2 ab\n", "is a checkpoint of version '2', and this program reads 1: delete it"),
        (b"efat-checkpoint \xff\xfe ab\n", "is a checkpoint of version"),
        (b"efat-checkpoint 1 ab\n", "is a checkpoint that is damaged: delete it to start over"),
        (forged(vars(state()), version=7), "of version '7'"),
        (forged([1, 2]), "is no checkpoint"),
        (forged({"identity": {}}), "is no checkpoint"),
        (forged({**vars(state()), "identity": [1]}), "is no checkpoint"),
    ],
)
def test_what_is_no_state(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_failed_write_leaves_what_was_there(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_state(written, replace(state(), schedule={"a": lambda: None}))
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]
