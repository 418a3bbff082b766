"""A table comes back as it was written; any other file is refused in one line that names it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.resilience.table import ResilienceTable, read_table, write_table
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.hdf5 import MOST_TEXT_BYTES
from tests.support.resilience import ALL, table_of, tables

TABLE = table_of(
    [[[90, 92, 93], [80, 91, -1]], [[60, 80, 85], [50, -1, -1]]],
    {"weights": [[0.1, 0.2], [0.3, 0.4]], "faulty_pes": [[0.01, 0.01], [0.02, 0.03]]},
    harden_iterations=7,
)
SETUP = json.dumps(TABLE.setup.as_dict())
BROADCAST = np.broadcast_to(np.int64(0), (1000, 11, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with `TABLE`."""
    write_table(tmp_path / "resilience.h5", TABLE)
    return tmp_path / "resilience.h5"


def check_same(one: ResilienceTable, other: ResilienceTable) -> None:
    """All fields are equal, types included."""
    for field in fields(ResilienceTable):
        expected, found = getattr(one, field.name), getattr(other, field.name)
        if field.name == "path":
            continue
        if field.name == "predictors":
            assert list(found) == list(expected)
            pairs = [(expected[name], found[name]) for name in expected]
        else:
            pairs = [(expected, found)]
        for left, right in pairs:
            assert type(left) is type(right)
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype
            assert np.array_equal(left, right)


@settings(max_examples=10)
@given(ALL.flatmap(tables), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_a_table_comes_back_as_it_was_written(table: ResilienceTable, identity: dict[str, str]) -> None:
    table = replace(table, setup_identity=identity)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.h5", Path(folder) / "second.h5"
        write_table(first, table)
        check_same(table, read_table(first))
        write_table(second, read_table(first))
        assert first.read_bytes() == second.read_bytes()
        assert digest_of_file(first) == hashlib.sha256(second.read_bytes()).hexdigest()


def test_what_a_table_says() -> None:
    np.testing.assert_array_equal(
        TABLE.accuracy, [[[0.9, 0.92, 0.93], [0.8, 0.91, np.nan]], [[0.6, 0.8, 0.85], [0.5, np.nan, np.nan]]]
    )
    assert TABLE.repeats == 2
    assert TABLE.iterations_spent == 7 + 4 * 20
    assert list(TABLE.predictors) == ["faulty_pes", "weights"]


def test_a_table_is_nobodys_to_change() -> None:
    given_rates = np.array([0.1])
    table = table_of([[[1]]], {"weights": [[0.5]]}, rates=given_rates)
    given_rates[0] = 9
    assert table.rates.tolist() == [0.1]
    for array in (table.rates, table.levels, table.correct, table.predictors["weights"]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.01]}, r"correct has shape \(2, 2, 3\): expected \[1 rates, repeats, 3 levels\]"),
        ({"rates": [0.02, 0.01]}, "a rate is 0.01: expected more than the rate before"),
        ({"rates": [0.01, np.nan]}, r"a rate is nan: expected 0\.\.1"),
        ({"rates": [0.01, 1.5]}, r"a rate is 1.5: expected 0\.\.1"),
        ({"rates": ["a", "b"]}, "rates is <U1"),
        ({"levels": [0, 5, 5]}, "a level is 5: expected more than the level before"),
        ({"levels": [1, 2, 3]}, "the first level is 1 iterations: expected 0"),
        ({"levels": [0, 1, 1 << 41]}, "a level is 2199023255552"),
        ({"levels": [0.0, 1.5, 2.0]}, r"levels is float64 \(3,\): expected int64"),
        ({"levels": [False, True, True]}, "levels is bool"),
        ({"correct": np.zeros((2, 0, 3), np.int64)}, r"correct is int64 \(2, 0, 3\): expected .* not empty"),
        ({"correct": np.full((2, 2, 3), 101)}, r"correct images is 101: expected -1\.\.100"),
        ({"correct": np.full((2, 2, 3), -2)}, "correct images is -2"),
        ({"correct": np.array([[[-1, 5, 5]] * 2] * 2)}, "correct is -1, diverged, before a level at which it is not"),
        ({"correct": BROADCAST, "rates": np.arange(1000) / 1000, "levels": [0]}, "at most 10000 chips"),
        ({"images": 0}, r"images is 0: expected 1\.\.10000000"),
        ({"images": 2.0}, "images is 2.0: expected an integer"),
        ({"images": True}, "images is True: expected an integer"),
        ({"start_correct": 101}, r"start_correct is 101: expected 0\.\.100"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 70}, "seed is 1180591620717411303424"),
        ({"harden_iterations": -1}, "harden_iterations is -1"),
        ({"predictors": {}}, "there are no predictors: expected at least one of faulty_pes, weights"),
        ({"predictors": {"luck": np.zeros((2, 2))}}, "predictor is 'luck': expected one of faulty_pes, weights"),
        ({"predictors": {"pruned": np.zeros((2, 1))}}, r"predictor pruned has shape \(2, 1\): expected \(2, 2\)"),
        ({"predictors": {"pruned": np.full((2, 2), np.nan)}}, "predictor pruned is nan"),
        ({"setup_identity": {"of": float("nan")}}, "setup_identity is not what JSON"),
        ({"setup_identity": ["weights"]}, r'setup_identity is \["weights"\]: expected an object'),
        ({"setup_identity": {"of": "x" * MOST_TEXT_BYTES}}, "setup_identity takes 60009 bytes: expected at most 60000"),
        ({"setup_identity": {"weights": 1}}, "setup_identity has a value that is not a text"),
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        replace(TABLE, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rates", "levels", "correct", "predictor_weights"])
def test_a_number_that_changed_is_noticed(path: Path, name: str) -> None:
    with h5py.File(path) as file:
        start = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"resilience\.h5 is not an HDF5 file or is damaged"):
        read_table(path)


def test_the_longest_descriptions_are_written_and_read(tmp_path: Path) -> None:
    longest = {"x": "y" * (MOST_TEXT_BYTES - 8)}
    table = replace(TABLE, setup_identity=longest)
    write_table(tmp_path / "long.h5", table)
    check_same(table, read_table(tmp_path / "long.h5"))


def test_an_interrupted_write_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.File, "create_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, replace(TABLE, seed=1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; make it with `efat resilience`"):
        read_table(tmp_path / "nothing.h5")
    with pytest.raises(InputError, match="is a folder: expected the table"):
        read_table(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        read_table(tmp_path / "pipe")
    for content in (b"", b"text", b"\x89HDF\r\n\x1a\n", bytes(4096)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(InputError, match=r"expected the table that `efat resilience` writes|is damaged"):
            read_table(tmp_path / "other")


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"resilience\.h5"):
            read_table(path)


def test_damaged_bytes_never_get_past_the_reader(path: Path, seed: int) -> None:
    """Nearly all is under checksums; what is read all the same is a table, as that checks itself."""
    random = np.random.default_rng(seed)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused: list[str] = []
    for _ in range(200):
        damaged = whole.copy()
        places = random.integers(0, len(whole), random.integers(1, 30))
        damaged[places] = random.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            read_table(path)
        except InputError as error:
            refused.append(str(error))
    assert all(message.startswith(str(path)) and "\n" not in message for message in refused)
    assert len(refused) > 150


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def dataset(name: str, values: npt.ArrayLike | None = None, **how: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if values is not None or how:
            file.create_dataset(name, data=values, **how)

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = target

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), np.float64)
    layout[:] = h5py.VirtualSource("other.h5", "rates", (2,), np.float64)
    del file["rates"]
    file.create_virtual_dataset("rates", layout)


def text(name: str, content: str) -> Callable[[h5py.File], None]:
    return attribute(name, np.bytes_(content.encode()))


HUGE: dict[str, Any] = {"shape": (1 << 40,), "dtype": np.float64, "chunks": (1 << 10,)}
LARGE_CHUNK: dict[str, Any] = {"shape": (2,), "maxshape": (None,), "dtype": np.float64, "chunks": (1 << 28,)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text("format", "efat-chips"), "it is of another kind: expected attribute format='efat-resilience'"),
        (attribute("format", None), "it is of another kind"),
        (attribute("version", None), "attribute version is missing"),
        (
            attribute("version", 1),
            "it has format version 1: this program reads 2 to 3; make the file anew with",
        ),
        (attribute("version", 4), "it has format version 4: this program reads 2 to 3; update it"),
        (attribute("version", "1"), "attribute version is object"),
        (attribute("images", np.array([100])), r"attribute images is int64 \(1,\): expected one integer"),
        (attribute("images", 100.0), "attribute images is float64"),
        (attribute("images", 0), "images is 0"),
        (attribute("images", 50), r"float_correct is 97: expected 0\.\.50"),
        (attribute("setup", None), "attribute setup is missing"),
        (attribute("setup", "{}"), "attribute setup is missing, too long or no text"),
        (attribute("setup", 5), "attribute setup is missing, too long or no text"),
        (text("setup", "x" * 60_001), "attribute setup is missing, too long or no text"),
        (text("setup", '{"a":'), "attribute setup is not JSON"),
        (text("setup", "[" * 50_000), "attribute setup is not JSON"),
        (text("setup", "[1]"), r"attribute setup is \[1\]: expected an object"),
        (text("fault_model", '{"a": NaN}'), "fault_model is not what JSON takes"),
        (text("setup", '{"a": 1}'), "setup has no 'network': is it complete"),
        (text("setup", SETUP.replace("0.01", "NaN")), "setup is not what JSON takes"),
        (text("setup", '{"a": 1' + "0" * 5000 + "}"), "attribute setup is not JSON"),
        (attribute("setup", np.bytes_(b"\xff{}")), "is damaged .*decode"),
        (text("setup_identity", '{"a": 1}'), "setup_identity has a value that is not a text"),
        (text("array", json.dumps({**asdict(TABLE.array), "rows": 5000})), "array: rows is 5000"),
        (text("array", '{"rows": 8}'), "array has no 'cols': is it complete"),
        (text("fault_model", '{"sites": []}'), "fault_model has no 'kinds': is it complete"),
        (dataset("rates"), "dataset 'rates' is missing"),
        (dataset("rates", [0.1, 0.2, 0.3]), "expected .3 rates"),
        (dataset("rates", np.zeros(2, np.float32)), r"'rates' is float32 \(2,\): expected float64 with 1 dimension"),
        (dataset("rates", np.zeros((2, 1))), r"'rates' is float64 \(2, 1\): expected float64 with 1 dimension"),
        (dataset("rates", np.array([], np.float64)), "rates is float64 .0,.: .* not empty"),
        (dataset("rates", h5py.Empty("f8")), "'rates' is float64 None"),
        (dataset("rates", **HUGE), "'rates' takes 1099511627776 values: expected at most 4194304"),
        (dataset("rates", **LARGE_CHUNK), "'rates' has parts of 2147483648 bytes: expected at most"),
        (dataset("rates", [0.1, 0.2], compression=9), "'rates' is compressed: expected checksums only"),
        (dataset("correct", np.full((2, 2, 3), 101)), "correct images is 101"),
        (dataset("predictor_pruned", [[0.1, 0.2]]), "predictor pruned has shape"),
        (dataset("predictor_pruned", [[0, 0], [0, 0]]), "'predictor_pruned' is int64"),
        (link("predictor_pruned", h5py.SoftLink("/nowhere")), "'predictor_pruned' is missing"),
        (link("rates", h5py.SoftLink("/predictor_weights")), "'rates' is missing"),
        (link("rates", h5py.ExternalLink("other.h5", "rates")), "'rates' is missing"),
        (virtual, "'rates' is missing"),
        (dataset("predictor_weights"), None),
    ],
)
def test_tampered_files_are_refused(path: Path, change: Callable[[h5py.File], None], message: str | None) -> None:
    with h5py.File(path, "r+") as file:
        # Files of version 2 are read, too: they have no digest, which would notice any change.
        del file.attrs["digest"]
        file.attrs["version"] = 2
        change(file)
    if message is None:
        assert list(read_table(path).predictors) == ["faulty_pes"]
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_groups_are_no_datasets(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["rates"]
        file.create_group("rates")
    with pytest.raises(InputError, match="'rates' is missing"):
        read_table(path)


def test_whatever_else_is_written_into_a_file_is_noticed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["correct"][0, 0, 0] = 91
    with pytest.raises(InputError, match="its digest is another one than that of what it holds"):
        read_table(path)
