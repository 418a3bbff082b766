"""Mitigations by name: which there are, what each deploys, and which chip each step runs on."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import InputError
from tests.support.networks import (
    accelerator,
    deploy,
    faulty_chip,
    on_fault_free,
    tiny_network,
    with_broken_accumulators,
)
from training.layers.trainable import trainable_layers
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import DEPLOYMENTS, Mitigations
from training.learning.mitigations.gradual import Gradual
from training.learning.mitigations.mitigation import Mitigation, TrainingStep
from training.learning.mitigations.permutation import Permutation

pytestmark = pytest.mark.usefixtures("one_thread")

FAM, BY_COLUMNS, BY_ROWS = Permutation(), Permutation(rows=False), Permutation(columns=False)


@pytest.mark.parametrize(
    ("name", "mitigations", "retrains"),
    [
        ("none", (), False),
        ("none+t", (), True),
        ("none+t+gradual", (Gradual(),), True),
        ("fap", (Bypass(),), False),
        ("fap+t", (Bypass(),), True),
        ("FAP+T", (Bypass(),), True),
        ("fap+t+gradual", (Bypass(), Gradual()), True),
        ("fap+gradual+t", (Bypass(), Gradual()), True),
        ("fap+bn", (Bypass(), BatchNormStatistics()), False),
        ("none+bn+t", (BatchNormStatistics(),), True),
        ("fam+gradual+t+bn", (Bypass(), FAM, BatchNormStatistics(), Gradual()), True),
        ("fam", (Bypass(), FAM), False),
        ("fam+t", (Bypass(), FAM), True),
        ("fam+t+gradual", (Bypass(), FAM, Gradual()), True),
        ("fam-columns", (Bypass(), BY_COLUMNS), False),
        ("fam-rows+t", (Bypass(), BY_ROWS), True),
        ("fam-rows+t+gradual", (Bypass(), BY_ROWS, Gradual()), True),
    ],
)
def test_names(name: str, mitigations: tuple[Mitigation, ...], retrains: bool) -> None:
    assert Mitigations.named(name) == Mitigations(mitigations, retrains)


@pytest.mark.parametrize(
    "name", ["", "fap+", "+t", "t", "fap+gradual", "fap+bn+gradual", "fap+t+t", "fap+bn+bn", "t+fap", "fap t", "sap+t"]
)
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=r"is unknown: expected one of none, fap, fam, .*, then \+t to") as caught:
        Mitigations.named(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_what_each_deploys(name: str, seed: int) -> None:
    chip = with_broken_accumulators(faulty_chip(seed), 1)
    model = on_fault_free(tiny_network())
    deployment = deploy(model, chip, *Mitigations.named(name).in_turn)
    if name == "none":
        assert not deployment.bypass.any()
        assert not deployment.placements
        return
    assert np.array_equal(deployment.bypass, chip.faults.required_bypass())
    assert list(deployment.placements) == list(trainable_layers(model))
    for layer, placement in deployment.placements.items():
        groups, k, n = trainable_layers(model)[layer].gemm_shape
        assert (placement.groups, placement.rows.shape[1], placement.columns.shape[1]) == (groups, k, n)
        assert 1 not in placement.used_columns(chip.faults.config)
        if name in ("fap", "fam-columns"):
            assert placement.rows.tolist() == [list(range(k))] * groups
        if name in ("fap", "fam-rows"):
            # Columns 0, 2, 3 of each fold.
            assert placement.columns.tolist() == [[n // 3 * 4 + (0, 2, 3)[n % 3] for n in range(n)]] * groups


@pytest.mark.parametrize("name", [f"{name}+t" for name in DEPLOYMENTS])
def test_each_step_runs_on_the_chip_itself(name: str, seed: int) -> None:
    chip = accelerator(faulty_chip(seed), bypass=True)
    for iteration in (0, 3, 9):
        for mitigation in Mitigations.named(name).in_turn:
            assert mitigation.chip_for(TrainingStep(iteration, 10, seed), chip) is chip
