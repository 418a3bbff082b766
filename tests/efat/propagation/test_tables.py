"""Tables of a propagation campaign come back as they were written; what cannot be is refused in one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from efat import records
from efat.propagation.population import LayerShape
from efat.propagation.summary import Propagation
from efat.propagation.tables import FAULTS_DTYPE, FILE_NAME, LAYERS_DTYPE, OPERATIONS_DTYPE, STRATA_DTYPE, joined
from simulator.errors import InputError
from tests.support.propagation import changed, propagations, same, small_propagation
from training.injection.network_graph import GraphOperation

SMALL = small_propagation()
TABLES = {"faults": FAULTS_DTYPE, "layers": LAYERS_DTYPE, "operations": OPERATIONS_DTYPE, "strata": STRATA_DTYPE}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with `SMALL`."""
    SMALL.save(tmp_path / FILE_NAME)
    return tmp_path / FILE_NAME


@settings(max_examples=10)
@given(propagations())
def test_tables_come_back_as_they_were_written(found: Propagation) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / FILE_NAME, Path(folder) / "second.h5"
        found.save(first)
        again = Propagation.load(first)
        assert same(found, again)
        for name in ("subject", "population", "request", "layer_shapes", "graph"):
            assert type(getattr(again, name)) is type(getattr(found, name))
        Propagation.load(folder).save(second)
        assert first.read_bytes() == second.read_bytes()


def test_what_differs_anywhere_is_not_the_same() -> None:
    assert same(SMALL, small_propagation())
    changes: list[dict[str, Any]] = [
        {"faults": changed("faults", 0, col=1)},
        {"layers": changed("layers", 0, images_acted=4)},
        {"operations": changed("operations", 0, elements_out=7)},
        {"strata": changed("strata", 2, bit=1)},
        {"graph": [*SMALL.graph[:-1], GraphOperation("last", "multiply", 1)]},
        {"layer_shapes": [SMALL.layer_shapes[0], LayerShape("fc", 1, 1, 9, 3)]},
        {"subject": records.replace(SMALL.subject, images=5)},
    ]
    for change in changes:
        assert not same(SMALL, replace(SMALL, **change))


def test_tables_are_what_data_frames_are_made_of(path: Path) -> None:
    with h5py.File(path) as file:
        for name, dtype in TABLES.items():
            table = file[name][:]
            assert table.dtype == dtype
            assert table.dtype.names
            # pandas takes structured arrays of plain numbers, column by column.
            assert all(table[column].ndim == 1 and table[column].dtype.kind in "iuf" for column in table.dtype.names)


def test_tables_are_nobodys_to_change() -> None:
    for name in TABLES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(SMALL, name)[:] = 0


@settings(max_examples=10)
@given(propagations())
def test_parts_are_joined_in_any_order(found: Propagation) -> None:
    random = np.random.default_rng(len(found.layers))
    part_of = random.integers(0, 3, len(found.faults))
    parts = []
    for number in range(3):
        chosen = random.permutation(np.nonzero(part_of == number)[0])
        rows = random.permutation(np.nonzero(np.isin(found.layers["fault"], chosen))[0])
        layers = found.layers[rows].copy()
        layers["fault"] = [chosen.tolist().index(fault) for fault in layers["fault"].tolist()]
        parts.append((found.faults[chosen], layers))
    random.shuffle(parts)
    faults, layers = joined(parts)
    assert np.array_equal(faults, found.faults)
    assert np.array_equal(layers, found.layers)


def test_nothing_is_joined_to_nothing() -> None:
    faults, layers = joined([])
    assert (len(faults), faults.dtype, len(layers), layers.dtype) == (0, FAULTS_DTYPE, 0, LAYERS_DTYPE)


def test_damaged_bytes_never_get_past_the_reader(path: Path, seed: int) -> None:
    """Nearly all is under checksums; what is read all the same is checked like anything else."""
    random = np.random.default_rng(seed)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused: list[str] = []
    for _ in range(60):
        damaged = whole.copy()
        places = random.integers(0, len(whole), random.integers(1, 30))
        damaged[places] = random.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            Propagation.load(path)
        except InputError as error:
            refused.append(str(error))
    assert all(message.startswith(str(path)) and "\n" not in message for message in refused)
    assert len(refused) > 30


Change = Callable[[h5py.File], None]


def attribute(name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def text(name: str, content: str) -> Change:
    return attribute(name, np.bytes_(content.encode()))


def dataset(name: str, values: npt.ArrayLike | None = None, **how: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None or how:
            file.create_dataset(name, data=values, **how)

    return change


def undigested(file: h5py.File) -> None:
    """As the version before wrote it."""
    file.attrs["version"] = 1
    del file.attrs["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("version", 3), "it has format version 3: this program reads 1 to 2; update it"),
        (attribute("images", 0), r"images is 0: expected 1\.\."),
        (attribute("fault_free_correct", 9), r"fault_free_correct is 9: expected 0\.\.4"),
        (text("request", '{"a": 1}'), "request has no 'sites': is it complete"),
        (text("subject", '{"network": 3}'), "subject has no 'weights'"),
        (text("versions", '{"efat": 1}'), "versions: efat is 1: expected printable text"),
        (text("population", '{"size": -1}'), "population has no 'simulated'"),
        (text("array", json.dumps({**asdict(SMALL.array), "rows": 5000})), "array: rows is 5000"),
        (dataset("faults"), "dataset 'faults' is missing"),
        (
            dataset("graph", np.zeros(1, np.dtype([("name", "S256"), ("kind", "S16"), ("layer", "<i2")]))),
            "kind in graph",
        ),
        (dataset("graph", np.zeros(1, np.dtype([("name", "S9"), ("kind", "S16"), ("layer", "<i2")]))), "'graph' is"),
    ],
)
def test_tampered_files_are_refused(path: Path, change: Change, message: str) -> None:
    with h5py.File(path, "r+") as file:
        undigested(file)
        change(file)
    with pytest.raises(InputError, match=message) as caught:
        Propagation.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        dataset("faults", changed("faults", 0, col=1)),
        dataset("layers", changed("layers", 0, images_acted=4)),
        text("request", "{}"),
        attribute("fault_free_correct", 2),
        attribute("digest", None),
    ],
)
def test_what_is_not_what_was_written_is_refused(path: Path, change: Change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match="its digest is another one than that of what it holds: make it anew with"):
        Propagation.load(path)


def test_files_of_the_version_before_are_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        undigested(file)
    assert same(Propagation.load(path), SMALL)
