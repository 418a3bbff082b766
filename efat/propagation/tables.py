"""What a propagation campaign found: every fault's outcome and its way through the network, and the HDF5 file of it.

`efat.propagation.columns` says what is in each table and docs/formats.md describes the file. Nothing in one is
trusted: format, version, shapes, types, sizes, every index and whether the numbers fit each other are checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from efat.hdf5_fields import (
    HDF5_VERSION,
    as_json,
    canonical_json,
    check_not_compressed,
    damage_reported,
    integer_attribute,
    json_attribute,
)
from efat.propagation.columns import (
    FAULTS_DTYPE,
    LAYERS_DTYPE,
    OPERATION_KINDS,
    OPERATIONS_DTYPE,
    OUTCOMES,
    PATTERNS,
    STRATA_DTYPE,
    LayerShape,
    Operation,
    Rule,
)
from efat.propagation.table_checks import LONGEST_NAME_BYTES, check_tables
from simulator.errors import InputError
from simulator.files import replaced
from simulator.lots.array import own_dataset, text_attribute

__all__ = [
    "FAULTS_DTYPE",
    "FILE_NAME",
    "LAYERS_DTYPE",
    "OPERATIONS_DTYPE",
    "OPERATION_KINDS",
    "OUTCOMES",
    "PATTERNS",
    "STRATA_DTYPE",
    "LayerShape",
    "Operation",
    "Propagation",
    "Rule",
    "joined",
    "read_propagation",
    "same",
    "write_propagation",
]

FILE_NAME = "propagation.h5"
"""In the folder of `efat propagate`."""

FORMAT = "efat-propagation"
VERSION = 1

MOST_FAULTS = 1 << 22
"""Faults in a table."""
MOST_LAYER_ROWS = 1 << 25
MOST_NAMES = 1 << 14
"""Layers, and operations, of a network."""


_CHUNK_ROWS = 1 << 14

_LAYER_SHAPES_DTYPE = np.dtype(
    [("name", f"S{LONGEST_NAME_BYTES}"), ("groups", "<i8"), ("m", "<i8"), ("k", "<i8"), ("n", "<i8")]
)
_GRAPH_DTYPE = np.dtype([("name", f"S{LONGEST_NAME_BYTES}"), ("kind", "S16"), ("layer", "<i2")])

_TABLES = {
    "faults": (FAULTS_DTYPE, MOST_FAULTS),
    "layers": (LAYERS_DTYPE, MOST_LAYER_ROWS),
    "operations": (OPERATIONS_DTYPE, MOST_LAYER_ROWS),
    "strata": (STRATA_DTYPE, MOST_FAULTS),
}
"""Types, and the most rows."""
_NAMED = {"layer_shapes": (_LAYER_SHAPES_DTYPE, MOST_NAMES), "graph": (_GRAPH_DTYPE, MOST_NAMES)}
_COUNTS = ("images", "fault_free_correct")
_TEXTS = ("array", "subject", "population", "request", "versions")


@dataclass(frozen=True, eq=False)
class Propagation:
    """Faults that were sampled from a population, and what each does to a network's inference on the same images.

    Args:
        faults: `FAULTS_DTYPE` [faults].
        layers: `LAYERS_DTYPE` [rows].
        operations: `OPERATIONS_DTYPE` [rows].
        strata: `STRATA_DTYPE` [strata]: all of the population, whether or not any of their faults were sampled.
        layer_shapes: the quantised layers in the order in which they run; `layer` everywhere is a place in it.
        graph: the operations of the network in the order in which they run; `operation` is a place in it.
        images: how many there are.
        fault_free_correct: those of them that the quantised network gets right on an array without faults.
        array: `ArrayConfig.as_dict()`.
        subject: what was run on what, as JSON takes it: what `Subject.as_dict()` gives, and its `identity()` under that
            name.
        population: `size` (faults), and how many of them each `Rule` is for, under its name in lower case; either all
            four or none. Exact integers.
        request: what was asked for, as JSON takes it: what `Request.as_dict()` gives.
        versions: of programs and libraries, texts by name.

    Raises:
        InputError: a value that cannot be, or that others contradict.
    """

    faults: npt.NDArray[np.void]
    layers: npt.NDArray[np.void]
    operations: npt.NDArray[np.void]
    strata: npt.NDArray[np.void]
    layer_shapes: Sequence[LayerShape]
    graph: Sequence[Operation]
    images: int
    fault_free_correct: int
    array: Mapping[str, Any]
    subject: Mapping[str, Any]
    population: Mapping[str, int]
    request: Mapping[str, Any]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise InputError(f"{name} is {value!r}: expected an integer")
            object.__setattr__(self, name, int(value))
        for name in _TEXTS:
            object.__setattr__(self, name, as_json(name, getattr(self, name)))
        object.__setattr__(self, "layer_shapes", tuple(self.layer_shapes))
        object.__setattr__(self, "graph", tuple(self.graph))
        for name, (dtype, most) in _TABLES.items():
            object.__setattr__(self, name, _table(name, getattr(self, name), dtype, most))
        check_tables(self)

    @property
    def stratified(self) -> bool:
        """Whether each stratum had its part of the sample, as `stratify` in the request says; chance decided if not."""
        return self.request.get("stratify") is True


def same(one: Propagation, other: Propagation) -> bool:
    """Whether two say exactly the same."""
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        if field.name in _TABLES
        else getattr(one, field.name) == getattr(other, field.name)
        for field in fields(Propagation)
    )


def joined(
    parts: Sequence[tuple[npt.NDArray[np.void], npt.NDArray[np.void]]],
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Put the tables of several units of work together.

    Args:
        parts: of each unit its faults, `FAULTS_DTYPE` [faults], and its layers, `LAYERS_DTYPE` [rows], whose `fault`
            is a row of the former; both in any order.

    Returns:
        All faults by `index`, and all layers by `fault` and `layer`, where `fault` is a row of all faults.
    """
    faults = np.concatenate([np.empty(0, FAULTS_DTYPE), *(part[0] for part in parts)])
    layers = np.concatenate([np.empty(0, LAYERS_DTYPE), *(part[1] for part in parts)])
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])[:-1]
    row = layers["fault"].astype(np.int64) + np.repeat(starts, [len(part[1]) for part in parts]).astype(np.int64)
    order = np.argsort(faults["index"], kind="stable")
    place = np.empty(len(faults), np.int64)
    place[order] = np.arange(len(faults))
    layers["fault"] = place[row]
    return faults[order], layers[np.lexsort((layers["layer"], layers["fault"]))]


def write_propagation(path: Path, propagation: Propagation) -> None:
    """Write everything. The file appears, or replaces an older one, only when it is complete.

    Args:
        path: the file; its folder is there.
        propagation: what to write; the same gives the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    named = {
        "layer_shapes": np.array([_encoded(shape) for shape in propagation.layer_shapes], _LAYER_SHAPES_DTYPE),
        "graph": np.array([_encoded(operation) for operation in propagation.graph], _GRAPH_DTYPE),
    }
    with replaced(path) as beside, h5py.File(beside, "w", libver=HDF5_VERSION) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = VERSION
        for name in _COUNTS:
            file.attrs[name] = np.int64(getattr(propagation, name))
        for name in _TEXTS:
            file.attrs[name] = np.bytes_(canonical_json(getattr(propagation, name)).encode())
        for name in (*_TABLES, *_NAMED):
            array = named[name] if name in named else getattr(propagation, name)
            chunk = (min(max(len(array), 1), _CHUNK_ROWS),)
            file.create_dataset(name, data=array, chunks=chunk, maxshape=(None,), fletcher32=True)


def read_propagation(path: Path) -> Propagation:
    """Read what `write_propagation` wrote, checking all of it.

    Args:
        path: the file, or the folder of `efat propagate` that it is in.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is something else, damaged, or of a newer version.
    """
    path = path / FILE_NAME if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; make it with `efat propagate`")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file: expected what `efat propagate` writes")
    with path.open("rb"):
        pass
    with damage_reported(path, "efat propagate"), h5py.File(path, "r") as file:
        if text_attribute(file, "format") != FORMAT:
            raise InputError(f"it is of another kind: expected attribute format={FORMAT!r}, as `efat propagate` writes")
        version = integer_attribute(file, "version")
        if version != VERSION:
            raise InputError(f"it has format version {version}: this program reads {VERSION}; update it")
        values: dict[str, Any] = {name: integer_attribute(file, name) for name in _COUNTS}
        values |= {name: json_attribute(file, name) for name in _TEXTS}
        values |= {name: _dataset(file, name, *expected) for name, expected in (_TABLES | _NAMED).items()}
        values["layer_shapes"] = [LayerShape(name.decode(), *sizes) for name, *sizes in values["layer_shapes"].tolist()]
        values["graph"] = [
            Operation(name.decode(), kind.decode(), layer) for name, kind, layer in values["graph"].tolist()
        ]
        return Propagation(**values)


def _dataset(file: h5py.File, name: str, dtype: np.dtype[Any], most: int) -> npt.NDArray[Any]:
    dataset = own_dataset(file, name)
    shape = None if dataset is None else dataset.shape
    if dataset is None or shape is None or dataset.dtype != dtype or len(shape) != 1:
        what = "missing" if dataset is None else f"{str(dataset.dtype)[:120]} {shape}"
        raise InputError(f"dataset {name!r} is {what}: expected one dimension of its columns, as docs/formats.md says")
    largest = max(math.prod(shape), math.prod(dataset.chunks or ()))
    if largest > most:
        raise InputError(f"dataset {name!r} takes {largest} rows: expected at most {most}")
    check_not_compressed(dataset, name, "efat propagate")
    array: npt.NDArray[Any] = dataset[:]
    return array


def _table(name: str, values: npt.NDArray[np.void], dtype: np.dtype[Any], most: int) -> npt.NDArray[np.void]:
    """A copy that nobody changes."""
    given = np.asarray(values)
    if given.dtype != dtype or given.ndim != 1:
        what = f"{str(given.dtype)[:120]} {given.shape}"
        raise InputError(f"{name} is {what}: expected one dimension of {name.upper()}_DTYPE")
    if len(given) > most:
        raise InputError(f"{name} has {len(given)} rows: expected at most {most}")
    array: npt.NDArray[np.void] = given.copy()
    array.flags.writeable = False
    return array


def _encoded(named: LayerShape | Operation) -> tuple[Any, ...]:
    return tuple(value.encode() if isinstance(value, str) else value for value in astuple(named))
