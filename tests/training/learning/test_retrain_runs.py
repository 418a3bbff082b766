"""Runs of a retraining that repeat, break off, end early or diverge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simulator.errors import InputError
from tests.support.networks import faulty_chip, tiny_images, with_broken_accumulators
from tests.support.retraining_runs import (
    DATA,
    HARDENED,
    HELD_OUT,
    RECIPE,
    TRAIN,
    Interrupted,
    assert_equal,
    assert_same_result,
    deep_network,
    interrupt_after,
    named,
    network,
    pruned,
    rebuilt,
    run,
)
from training.data.classification import count_correct
from training.layers.trainable import trainable_layers
from training.learning import fit as fit_module
from training.learning.fit import TrainingProgress
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.gradual import Gradual
from training.learning.recipe import Recipe
from training.learning.retrain import ChipHooks, RetrainDivergedError, RetrainResult, TrainingData, retrain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("strategy", "recipe", "learn_scales"),
    [
        ("fap+t", Recipe(batch=10), False),
        ("fam+t", Recipe(batch=10, optimizer="Adam", schedule="OneCycleLR"), True),
        ("fap+t+gradual", Recipe(batch=10, optimizer="RMSprop", schedule="CosineAnnealingLR"), False),
        ("fam+t+gradual", Recipe(batch=40, schedule="StepLR", schedule_options={"step_size": 2}, seed=8), True),
        ("fap+bn+t", Recipe(batch=10, label_smoothing=0.2), True),
        (HARDENED, Recipe(batch=10, optimizer="AdamW", schedule="LinearLR"), False),
        ("none+t+gradual", Recipe(batch=10, optimizer="Rprop"), False),
    ],
)
def test_runs_repeat_and_go_on_from_a_checkpoint_bit_for_bit(
    strategy: Mitigations | str,
    recipe: Recipe,
    learn_scales: bool,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    chip = faulty_chip(seed)

    def again(**arguments: Any) -> RetrainResult:
        torch.manual_seed(int(np.random.default_rng().integers(1 << 32)))  # what others draw does not matter
        return run(
            chip,
            6,
            strategy,
            network=base(),
            recipe=recipe,
            learn_scales=learn_scales,
            evaluate_at=[2, 3],
            **arguments,
        )

    def base() -> nn.Sequential:
        model = deep_network()
        model(TRAIN.images)
        return model

    undisturbed = again()
    assert_same_result(again(), undisturbed)
    checkpoint = tmp_path / "checkpoint.pt"
    first, second = sorted(np.random.default_rng(seed).choice(np.arange(1, 7), 2, replace=False).tolist())
    for stop in (first, second):
        with pytest.raises(Interrupted):
            again(checkpoint=checkpoint, progress=interrupt_after(stop))
    told: list[TrainingProgress] = []
    assert_same_result(again(checkpoint=checkpoint, progress=told.append), undisturbed)
    # The last iteration that was kept is the one before the one that was interrupted.
    assert told[0].iteration == second
    assert_same_result(again(checkpoint=checkpoint), undisturbed)


def test_the_checkpoint_of_another_retraining_is_refused(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", -1.0)
    checkpoint = tmp_path / "checkpoint.pt"
    chip = faulty_chip(seed)
    given: dict[str, Any] = {
        "network": network(),
        "chip": chip,
        "data": DATA,
        "iterations": 4,
        "mitigations": "fap+t",
        "recipe": RECIPE,
        "evaluate_at": [2],
    }
    expected = retrain(**given, checkpoint=checkpoint)
    other_network, narrow = network(), TrainingData(TRAIN, HELD_OUT, TRAIN.images[:20] / 2)
    other_network[0].bias.data[0] += 1e-6
    with_dropout = nn.Sequential(*network(), nn.Dropout(0.1))
    for other, differing in (
        ({"network": other_network}, "network, activation scales|network"),
        ({"network": with_dropout}, "network"),
        ({"chip": with_broken_accumulators(chip, 0)}, "chip"),
        ({"chip": replace(chip, bypass=np.zeros((5, 4), np.bool_))}, "chip"),
        ({"data": replace(DATA, train=tiny_images(89, 1))}, "training images"),
        ({"data": replace(DATA, held_out=tiny_images(30, 3))}, "held-out images"),
        ({"data": narrow}, "activation scales"),
        ({"mitigations": "fap+t+gradual"}, "strategy"),
        ({"mitigations": Mitigations((Bypass(), Gradual(stages=3)))}, "strategy"),
        ({"recipe": replace(RECIPE, seed=1)}, "recipe"),
        ({"recipe": replace(RECIPE, schedule="LinearLR")}, "recipe"),
        ({"learn_scales": True}, "recipe"),
        ({"iterations": 5}, "budget"),
        ({"evaluate_at": [1, 2]}, "budget"),
        ({"target_accuracy": 0.99}, "budget"),
        ({"least_iterations": 1}, "budget"),
        ({"pruned": {"0": np.zeros((4, 18), np.bool_)}}, "pruned weights"),
        ({"recipe": replace(RECIPE, batch=9), "chip": faulty_chip(seed + 1)}, "chip, recipe"),
    ):
        with pytest.raises(
            InputError, match=f"is a checkpoint of a retraining with another ({differing}): go on"
        ) as caught:
            retrain(**{**given, **other}, checkpoint=checkpoint)
        assert "\n" not in str(caught.value)
    # The name of a chip and repeated stops decide nothing.
    same = {**given, "chip": replace(chip, id="other"), "evaluate_at": (2, 2, 0, 4, 9)}
    assert_same_result(retrain(**same, checkpoint=checkpoint), expected)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(InputError, match="is a checkpoint that is damaged: delete it to start over"):
        retrain(**given, checkpoint=checkpoint)


@pytest.mark.parametrize("strategy", ["fap+t", "fam+t", "none+t", HARDENED], ids=named)
def test_a_shorter_run_is_the_beginning_of_a_longer_one(strategy: Mitigations | str, seed: int) -> None:
    chip = faulty_chip(seed)
    longer = run(chip, 7, strategy, evaluate_at=[2, 4])
    for iterations in (2, 4):
        shorter = run(chip, iterations, strategy)
        assert shorter.losses == longer.losses[:iterations]
        assert shorter.evaluations[-1] == longer.evaluations[iterations // 2]
    assert longer.evaluations[0] == run(chip, 0, strategy).evaluations[0]


def test_a_target_that_is_reached_ends_the_retraining(seed: int) -> None:
    chip = faulty_chip(seed)
    whole = run(chip, 12, "fam+t+gradual", evaluate_at=range(12))
    best = max(found.accuracy for found in whole.evaluations)
    first = next(found for found in whole.evaluations if found.accuracy == best)
    stopped = run(chip, 12, "fam+t+gradual", evaluate_at=range(12), target_accuracy=best)
    assert stopped.reached_target
    assert stopped.evaluations == whole.evaluations[: first.iteration + 1]
    assert stopped.losses == whole.losses[: first.iteration]
    assert stopped.accuracy == count_correct(rebuilt(stopped, chip), HELD_OUT) / 30
    # Wherever injection had come to by then, the chip is whole.
    assert not any(weights.any() for weights in pruned(stopped, stopped.weights))


@pytest.mark.parametrize("strategy", ["fap+t", "fam+bn+t", "none+bn+t"])
def test_injecting_the_faults_gradually_starts_from_the_same_accuracy(strategy: str, seed: int) -> None:
    """It is measured on the whole chip, and so are the statistics of batch normalisation."""
    chip, base = faulty_chip(seed, rate=0.5), deep_network()
    gradual, at_once = (run(chip, 4, name, network=base) for name in (f"{strategy}+gradual", strategy))
    assert gradual.evaluations[0] == at_once.evaluations[0]
    assert gradual.losses != at_once.losses
    gradual, at_once = (run(chip, 0, name, network=base) for name in (f"{strategy}+gradual", strategy))
    assert_equal(gradual.weights, at_once.weights)


@pytest.mark.parametrize("strategy", ["fap+t", "fap+t+gradual", "none+t"])
def test_a_run_that_diverges_ends_with_the_last_good_state(
    strategy: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip, steps = faulty_chip(seed), list[int]()
    after_step = ChipHooks.after_step

    def spoiled(self: Any, stepped: torch.optim.Optimizer) -> None:
        after_step(self, stepped)
        steps.append(len(steps))
        if steps[-1] == 2:
            trainable_layers(self._model)["5"].weight.data.mul_(float("inf"))

    with monkeypatch.context() as patched:
        patched.setattr(ChipHooks, "after_step", spoiled)
        with pytest.raises(RetrainDivergedError, match="the last good state is that of iteration 2 with") as caught:
            run(chip, 8, strategy, evaluate_at=[2])
    result = caught.value.result
    assert caught.value.iteration == 3
    assert [found.iteration for found in result.evaluations] == [0, 2]
    assert len(result.losses) == 2
    for engine in ("emulation", "cycle"):
        assert count_correct(rebuilt(result, chip, engine), HELD_OUT) == result.evaluations[-1].correct
    assert count_correct(result.network, HELD_OUT) == result.evaluations[-1].correct
    if strategy != "none+t":
        assert not any(weights.any() for weights in pruned(result, result.weights))
    if strategy == "fap+t":
        assert_equal(result.weights, run(chip, 2, strategy).weights)


def test_a_huge_learning_rate_diverges() -> None:
    chip = faulty_chip(1)
    with pytest.raises(RetrainDivergedError, match=r"training diverged: .*; use a smaller learning rate") as caught:
        run(chip, 8, recipe=replace(RECIPE, learning_rate=1e37))
    result = caught.value.result
    assert result.losses == []
    assert result.evaluations == run(chip, 0).evaluations
    assert count_correct(rebuilt(result, chip, "cycle"), HELD_OUT) == result.evaluations[0].correct
