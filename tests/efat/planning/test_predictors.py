"""The predictor that foretells accuracy best is found, as worked by hand; of equally good ones it is the simplest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from efat.planning import selection
from efat.planning.selection import Constraint, ResilienceMap, best_predictor, predictor_errors
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import ResilienceTable
from simulator.errors import InputError
from tests.support.resilience import ALL, table_of, tables

ONE = table_of([[[90]], [[80]], [[60]]], {"weights": [[0.1], [0.2], [0.4]]})


def test_errors_of_predictors_are_those_of_chips_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two others it is foretold by a line, beyond them as the nearest one."""
    assert predictor_errors(ONE)["weights"] == pytest.approx(math.sqrt((10**2 + 0 + 20**2) / 3))
    table = table_of([[[90]], [[80]], [[70]], [[60]]], {"weights": [[0.1], [0.2], [0.3], [0.4]]})
    monkeypatch.setattr(selection, "MOST_PARTS", 2)
    assert predictor_errors(table)["weights"] == pytest.approx(math.sqrt((10**2 + 0 + 0 + 10**2) / 4))


def test_the_predictor_that_accuracy_follows_is_chosen(seed: int) -> None:
    random = np.random.default_rng(seed)
    pruned = random.uniform(0, 0.3, (6, 3))
    correct = np.rint(10_000 * (0.95 - pruned[..., None] * [1, 0.5, 0.3])).astype(np.int64)
    others = {name: random.uniform(0, 0.3, (6, 3)) for name in ("faulty_pes", "weights", "saliency")}
    counts = {"images": 10_000, "fault_free_correct": 9500, "start_correct": 9500}
    table = table_of(correct, {**others, "pruned": pruned}, **counts)
    errors = predictor_errors(table)
    assert list(errors) == list(PREDICTORS)
    assert all(error is not None and error > 2 * (errors["pruned"] or 0) for error in map(errors.get, others))
    found = ResilienceMap(table, Constraint(max_drop=0.05))
    assert found.predictor == "pruned"
    some = predictor_errors(table, ["saliency", "weights"])
    assert list(some.items()) == [(name, errors[name]) for name in ("weights", "saliency")]
    assert best_predictor(some) != "pruned"


@settings(max_examples=8)
@given(tables(), ALL)
def test_of_equally_good_predictors_the_simplest_is_chosen(table: ResilienceTable, names: tuple[str, ...]) -> None:
    same = dict.fromkeys(names, table.predictors["weights"])
    others = {"images": table.images, "float_correct": 0, "fault_free_correct": 0, "start_correct": 0}
    again = table_of(table.correct, same, rates=table.rates, levels=table.levels, **others)
    compared = predictor_errors(again)
    assert best_predictor(compared) == min(names, key=PREDICTORS.index)
    assert len(set(compared.values())) == 1
    chips_left = (table.correct >= 0).sum(axis=(0, 1))
    assert (next(iter(compared.values())) is None) == bool((chips_left < 2).all())


def test_unknown_predictors_are_refused() -> None:
    with pytest.raises(InputError, match="predictor 'pruned' is not in the table: expected one of weights"):
        ResilienceMap(ONE, Constraint(max_drop=0.05), predictor="pruned")
    with pytest.raises(InputError, match="predictor 'pruned' is not in the table"):
        predictor_errors(ONE, ["weights", "pruned"])
    with pytest.raises(InputError, match="no predictors to choose from: expected some of weights"):
        predictor_errors(ONE, [])
