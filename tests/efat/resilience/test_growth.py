"""Folders of `efat resilience` that go on with other rates, repeats, levels and images: only what is missing runs."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from efat import records
from efat.campaigns.campaign import Outcome, Unit, Work
from efat.campaigns.workers import in_line
from efat.image_split import SplitRequest
from efat.resilience.measurement import run_resilience
from efat.resilience.severity import Predictors
from efat.resilience.units import HardeningPlan, Measured, Resilience
from simulator.errors import InputError
from tests.support.programs import contents
from tests.support.resilience import HELD_OUT, OUT, RECIPE, small_resilience, small_setup
from training.learning import fit


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As units have; and networks of one's own are looked for in the current folder, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table_bytes(folder: Path, found: Resilience, notes: list[str] | None = None) -> bytes:
    """The table that a run writes."""
    run_resilience(folder, found, in_line, None, ([] if notes is None else notes).append)
    return (folder / "resilience.h5").read_bytes()


def test_a_folder_that_goes_on_has_the_table_of_a_new_one(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    recipe = chance.choice((RECIPE, replace(RECIPE, optimizer="AdamW", learning_rate=0.01)))
    given = {"mitigation": "fam+t", "recipe": recipe, "learn_scales": chance.random() < 0.5}
    setups = {None: small_setup(folder, **given), 20: small_setup(folder, split=SplitRequest(20), **given)}
    for step in range(5):
        found = small_resilience(
            folder,
            setup=setups[chance.choice((None, None, 20))],
            rates=sorted(chance.sample((0.05, 0.1, 0.15, 0.3), chance.randrange(1, 3))),
            repeats=chance.randrange(1, 3),
            levels=[0, *sorted(chance.sample(range(1, 9), chance.randrange(1, 4)))],
        )
        assert table_bytes(folder / OUT, found) == table_bytes(folder / str(step), found)


def test_only_what_is_missing_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    steps = 0
    genuine = fit._step

    def step(*arguments: Any) -> float:
        nonlocal steps
        steps += 1
        return genuine(*arguments)

    def executor(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        ran.extend(unit.name for unit in units)
        return in_line(work, units)

    monkeypatch.setattr(fit, "_step", step)
    four = [f"rate-{rate}-chip-{repeat:03d}" for rate in (0.1, 0.3) for repeat in (0, 1)]
    fewer = small_setup(folder, split=SplitRequest(29))
    for changes, units, iterations, expected in (
        ({}, ["baseline", *four], 20, []),
        ({"rates": (0.1, 0.2, 0.3)}, ["rate-0.2-chip-000", "rate-0.2-chip-001"], 10, []),
        ({"repeats": 3}, ["rate-0.1-chip-002", "rate-0.3-chip-002"], 10, []),
        ({"levels": (0, 2, 5, 8)}, four, 12, ["levels up to 8 instead of 5: 4 retrainings go on"]),
        ({"levels": (0, 3, 8)}, four, 32, ["level 3 lies between measured ones: 4 retrainings run again"]),
        (
            {"levels": (0, 4, 7, 9), "rates": (0.3,), "repeats": 1},
            ["rate-0.3-chip-000"],
            9,
            ["levels 4, 7 lie between measured ones: 1 retraining runs again"],
        ),
        ({"levels": (0, 3), "rates": (0.3,)}, [], 0, []),
        ({"levels": (0, 2, 5)}, [], 0, []),
        ({"levels": (0,), "repeats": 1}, [], 0, []),
        ({"setup": fewer}, ["baseline", *four], 20, ["29 tuning images instead of 30: 4 retrainings run again"]),
        ({"setup": fewer, "rates": (0.1,)}, [], 0, []),
    ):
        notes: list[str] = []
        ran.clear()
        steps = 0
        run_resilience(folder / OUT, small_resilience(folder, **changes), executor, None, notes.append)  # type: ignore[arg-type]
        assert (ran, steps, notes) == (units, iterations, expected), changes


def test_a_network_is_hardened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = HardeningPlan(2)
    notes: list[str] = []
    table_bytes(folder / OUT, small_resilience(folder, repeats=1, hardening=plan))
    monkeypatch.setattr("efat.resilience.units._hardened", None)
    changed = {"setup": small_setup(folder, split=SplitRequest(20)), "rates": (0.2, 0.3), "repeats": 1}
    table = run_resilience(
        folder / OUT, small_resilience(folder, hardening=plan, **changed), in_line, None, notes.append
    )
    assert notes == ["20 tuning images instead of 30: 1 retraining runs again"]
    assert (table.images, table.rates.tolist(), table.harden_iterations) == (20, [0.2, 0.3], 2)


def test_what_else_differs_is_refused(folder: Path) -> None:
    table_bytes(folder / OUT, small_resilience(folder, repeats=1))
    before = contents(folder / OUT)
    for changes, what in (
        ({"seed": 4, "repeats": 3}, "seed"),
        ({"hardening": HardeningPlan(1), "levels": (0, 9)}, "hardening"),
        ({"setup": small_setup(folder, mitigation="fam+t", split=SplitRequest(20))}, "strategy"),
        ({"setup": small_setup(folder, recipe=replace(RECIPE, batch=9))}, "recipe"),
    ):
        with pytest.raises(InputError, match=f"was begun with another {what}: choose another folder"):
            table_bytes(folder / OUT, small_resilience(folder, **changes))  # type: ignore[arg-type]
    shutil.copytree(folder / "inputs", folder / "other")
    np.savez(folder / "other" / "test.npz", images=-HELD_OUT.images.numpy(), labels=HELD_OUT.labels.numpy())
    setup = records.replace(small_setup(folder), data=folder / "other")
    with pytest.raises(InputError, match="was begun with another test images: choose another folder"):
        table_bytes(folder / OUT, small_resilience(folder, setup=setup))
    assert contents(folder / OUT) == before


def test_retraining_that_diverges_goes_on_to_the_same_table(folder: Path) -> None:
    setup = small_setup(folder, recipe=replace(RECIPE, learning_rate=1e38))
    for step, levels in enumerate(((0, 5), (0, 5, 9), (0, 1, 9), (0, 3), (0, 9))):
        found = small_resilience(folder, setup=setup, levels=levels, repeats=1, rates=(0.1,))
        assert table_bytes(folder / OUT, found) == table_bytes(folder / str(step), found)


@given(
    st.integers(0, 9), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9), min_size=1)
)
@example(8, {5}, {5}, {7})
def test_levels_are_known_only_if_a_retraining_of_just_them_gives_the_same(
    failing_step: int, failing_levels: set[int], measured: set[int], wanted: set[int]
) -> None:
    def run(levels: set[int]) -> tuple[dict[int, int], int | None]:
        """As `fit` notices that it diverged: by the loss of a step, or where accuracy is measured."""
        correct = dict.fromkeys(sorted({0, *levels}), -1)
        correct[0] = 0
        for step in range(max(levels, default=0)):
            if step == failing_step:
                return correct, step
            if step + 1 in levels:
                if step + 1 in failing_levels:
                    return correct, step + 1
                correct[step + 1] = step + 1
        return correct, None

    correct, diverged_at = run(measured)
    found = Measured("0" * 64, 10, tuple(correct), tuple(correct.values()), diverged_at, Predictors(0, 0, 0, 0))
    if not found.missing([0, *sorted(wanted)]):
        assert {level: found.at(level) for level in sorted({0, *wanted})} == run(wanted)[0]
    # What was measured, and less of it as long as it did not diverge, is known.
    assert not found.missing([0, *sorted(measured)])
    assert found.diverged_at is not None or not found.missing([0, *sorted(measured & wanted)])
