"""Units of work: what they count is what whole runs of the network show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from efat import records
from efat.campaigns.campaign import Outcome
from efat.propagation import injection
from efat.propagation.population import POPULATION_DTYPE
from efat.propagation.request import Subject
from efat.propagation.tables import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing
from simulator.errors import InputError
from training.injection import replay
from training.layers.accelerator import Accelerator
from training.layers.convert import put_on_chip

CONFIG = ArrayConfig(20, 12)
IMAGES = 7


def subject(images: int = IMAGES) -> Subject:
    return Subject("digits-cnn", images=images).identified(CONFIG)


def arguments(faults: npt.NDArray[np.void], strata: npt.NDArray[np.int64] | None = None) -> dict[str, Any]:
    return {
        "subject": subject(),
        "array": CONFIG,
        "faults": faults,
        "strata": np.zeros(len(faults), np.int64) if strata is None else strata,
    }


def table(outcome: Outcome, name: str) -> npt.NDArray[np.void]:
    found: npt.NDArray[np.void] = np.load(io.BytesIO(outcome.files[name]), allow_pickle=False)
    return found


def random_faults(count: int, random: np.random.Generator, layers: list[dict[str, Any]]) -> npt.NDArray[np.void]:
    """Permanent ones and upsets by turns."""
    faults = np.zeros(count, POPULATION_DTYPE)
    for number in range(count):
        site = Site(int(random.integers(len(Site))))
        row = 0 if site is Site.ACCUMULATOR else int(random.integers(CONFIG.rows))
        where = row, int(random.integers(CONFIG.cols)), int(site), int(random.integers(site.bits(CONFIG)))
        if number % 2:
            layer = int(random.integers(len(layers)))
            shape = layers[layer]
            cycles = gemm_timing(CONFIG, shape["m"], shape["k"], shape["n"]).serial
            when = layer, 0, int(random.integers(cycles)), int(random.integers(IMAGES))
            faults[number] = (*where, int(Kind.FLIP), *when)
        else:
            faults[number] = (*where, int(random.integers(2)), -1, -1, -1, -1)
    return faults


def test_words_are_the_same_everywhere() -> None:
    assert set(replay.LAYER_COUNTS) == set(LAYERS_DTYPE.names or ()) - {"fault", "layer"}
    assert set(replay.OPERATION_COUNTS) == set(OPERATIONS_DTYPE.names or ()) - {"stratum", "operation"}


def test_the_run_without_faults() -> None:
    outcome = injection.fault_free(arguments(np.empty(0, POPULATION_DTYPE)))
    loaded = subject().load(CONFIG)
    with torch.no_grad():
        predicted = loaded.network(loaded.images).argmax(1)
    assert outcome.values["images"] == IMAGES
    assert outcome.values["correct"] == int((predicted == loaded.labels).sum())
    sizes = [(layer["groups"], layer["m"], layer["k"], layer["n"]) for layer in outcome.values["layers"]]
    assert sizes == [(1, 64, 9, 16), (1, 64, 144, 24), (1, 16, 216, 48), (1, 1, 192, 48), (1, 1, 48, 10)]
    kinds = [operation["kind"] for operation in outcome.values["operations"]]
    assert (kinds.count("quantise"), kinds.count("multiply"), kinds.count("relu"), kinds.count("pooling")) == (
        5,
        5,
        4,
        2,
    )
    with np.load(io.BytesIO(outcome.files[injection.SEEN]), allow_pickle=False) as stored:
        assert [stored[name].shape for name in stored] == [(1, k, 32) for _, _, k, _ in sizes]
        first = np.unpackbits(stored["layer_0"], axis=-1)
    # Pixels of digits are 0..16, and zeros are padded.
    assert first[:, :, 0].all()
    assert first.sum() <= 9 * 17


def test_permanent_faults_are_counted(seed: int) -> None:
    random = np.random.default_rng(seed)
    faults = random_faults(16, random, [{"m": 1, "k": 1, "n": 1}])[::2]
    outcome = injection.inject(arguments(faults))
    rows = table(outcome, injection.FAULTS)
    loaded = subject().load(CONFIG)
    labels = loaded.labels.numpy()
    with torch.no_grad():
        clean = loaded.network(loaded.images)
    for fault, row in zip(faults, rows, strict=True):
        broken = Fault(
            int(fault["row"]), int(fault["col"]), Site(fault["site"]), int(fault["bit"]), Kind(fault["kind"])
        )
        put_on_chip(loaded.network, Accelerator(CONFIG, FaultMap.from_faults(CONFIG, [broken])))
        with torch.no_grad():
            scores = loaded.network(loaded.images)
        put_on_chip(loaded.network, Accelerator.fault_free(CONFIG))
        before, after = clean.argmax(1).numpy(), scores.argmax(1).numpy()
        assert row["images"] == IMAGES
        assert row["inactive"] + row["masked"] == int((clean == scores).all(1).sum())
        assert row["top1"] + row["top5"] == (before != after).sum()
        assert row["correct_lost"] == ((before == labels) & (after != labels)).sum()
        assert row["correct_gained"] == ((before != labels) & (after == labels)).sum()
        assert (row["first_layer"] == -1) == (row["inactive"] == IMAGES)


def test_how_images_are_shared_out_does_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images at a time, or few, and faults in any order, give the same rows."""
    random = np.random.default_rng(seed)
    layers = injection.fault_free(arguments(np.empty(0, POPULATION_DTYPE))).values["layers"]
    faults = random_faults(40, random, layers)
    strata = random.integers(0, 4, len(faults))
    whole = injection.inject(arguments(faults, strata))
    monkeypatch.setattr(injection, "_MOST_IMAGES", 2)
    monkeypatch.setattr(injection, "MOST_ENTRIES", 5)
    order = random.permutation(len(faults))
    parts = injection.inject(arguments(faults[order], strata[order]))
    rows = table(parts, injection.FAULTS)
    back = np.argsort(order)
    assert np.array_equal(table(whole, injection.FAULTS), rows[back])
    assert np.array_equal(table(whole, injection.OPERATIONS), table(parts, injection.OPERATIONS))
    layer_rows = table(parts, injection.LAYERS)
    layer_rows["fault"] = order[layer_rows["fault"]]
    layer_rows = layer_rows[np.lexsort((layer_rows["layer"], layer_rows["fault"]))]
    assert np.array_equal(table(whole, injection.LAYERS), layer_rows)


def test_rows_fit_each_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = injection.fault_free(arguments(np.empty(0, POPULATION_DTYPE))).values["layers"]
    faults = random_faults(30, random, layers)
    outcome = injection.inject(arguments(faults))
    rows, of_layers = table(outcome, injection.FAULTS), table(outcome, injection.LAYERS)
    assert (rows.dtype, of_layers.dtype, table(outcome, injection.OPERATIONS).dtype) == (
        FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE,
    )  # fmt: skip
    for name in POPULATION_DTYPE.names or ():
        assert np.array_equal(rows[name], faults[name])
    assert (sum(rows[name].astype(np.int64) for name in replay.OUTCOMES) == rows["images"]).all()
    assert np.array_equal(rows["images"], np.where(faults["image"] < 0, IMAGES, 1))
    for number, row in enumerate(rows):
        changed = of_layers[(of_layers["fault"] == number) & (of_layers["images_out"] > 0)]["layer"]
        expected = (changed.min(), changed.max()) if len(changed) else (-1, -1)
        assert (row["first_layer"], row["last_layer"]) == expected
    assert (rows["index"] == -1).all()


def test_nothing_to_inject() -> None:
    outcome = injection.inject(arguments(np.empty(0, POPULATION_DTYPE)))
    assert outcome.values == {"faults": 0}
    assert [len(table(outcome, name)) for name in (injection.FAULTS, injection.LAYERS, injection.OPERATIONS)] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("unit", [injection.fault_free, injection.inject])
def test_data_that_changed_meanwhile_are_refused(unit: Any) -> None:
    given = arguments(np.empty(0, POPULATION_DTYPE))
    given["subject"] = records.replace(subject(), identity={**subject().identity, "images": "other"})
    with pytest.raises(InputError, match="they changed while it ran"):
        unit(given)
