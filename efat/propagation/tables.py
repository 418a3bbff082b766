"""What a propagation campaign found: every fault's outcome and its way through the network, and the HDF5 file of it.

All columns are flat numbers of little-endian types, so `pandas.DataFrame(table)` takes each table as it is;
docs/formats.md says the same column by column. Nothing in a file is trusted: format, version, shapes, types, sizes,
every index and a digest of all of it are checked.
"""

from __future__ import annotations

import enum
import hashlib
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
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError, first_line
from simulator.files import replaced
from simulator.hdf5 import own_dataset, text_attribute

OUTCOMES = ("inactive", "masked", "benign", "top1", "top5")
"""What a fault does to one image, exactly one of them, the mildest first.

`inactive`: no accumulator of any layer ever changed; `masked`: some did, and the scores are bit for bit the same;
`benign`: scores differ, and the best class is the same; `top1`: the best class is another one, which is among the five
best without the fault; `top5`: it is not. Of two classes with the same score the one with the lower number is better.
`top1` and `top5` together are SDC-1, and `top5` is SDC-5, of Li et al., "Understanding error propagation in deep
learning neural network (DNN) accelerators and applications", SC 2017.
"""

PATTERNS = ("single", "column", "row", "block", "all")
"""Where the accumulators [M, N] of one layer differ on one image, the GEMMs of all groups side by side.

`single`: one of them; `column`: more than one, all of one output channel; `row`: more than one, all of one row of X;
`all`: every one; `block`: anything else. What is two of them at once counts as the first of `single`, `all`, `column`
and `row` that it is.
"""

OPERATION_KINDS = ("quantise", "multiply", "relu", "pooling", "other")
"""Operations of a network: a quantised layer is two, `quantise` of its input and `multiply`, its GEMMs with bias."""


class Rule(enum.IntEnum):
    """How the outcome of a fault is known. Values are codes in files and never change."""

    SIMULATED = 0
    """It was injected."""
    UNUSED = 1
    """Nothing that is used can be reached from its net."""
    SAME_VALUE = 2
    """It changes no product and no sum that occurs: mostly the bit has that value anyway."""
    EQUIVALENT = 3
    """It does the same as another fault, which was injected in its place."""


FAULTS_DTYPE = np.dtype(
    [
        ("index", "<i8"),
        ("row", "<u2"),
        ("col", "<u2"),
        ("site", "u1"),
        ("bit", "<u2"),
        ("kind", "u1"),
        ("layer", "<i2"),
        ("group", "<i2"),
        ("cycle", "<i8"),
        ("image", "<i4"),
        ("rule", "u1"),
        ("same_as", "<i8"),
        ("images", "<u4"),
        ("inactive", "<u4"),
        ("masked", "<u4"),
        ("benign", "<u4"),
        ("top1", "<u4"),
        ("top5", "<u4"),
        ("correct_lost", "<u4"),
        ("correct_gained", "<u4"),
        ("first_layer", "<i2"),
        ("last_layer", "<i2"),
    ]
)
"""A row for each fault of the sample, by `index`, strictly ascending.

`index` is its place in the population. `layer`, `group`, `cycle` and `image` say when a FLIP happens, and are -1 for
permanent faults. `rule` is a `Rule`; `same_as` the `index` of the fault that was injected in its place, -1 if there is
none or it is not in the population. `images` is their number, and those of `OUTCOMES` add up to it. `correct_lost` and
`correct_gained` are images that are right only without, and only with the fault. `first_layer` and `last_layer` are the
first and the last layer of which an accumulator changed on any image, -1 if none did.
"""

LAYERS_DTYPE = np.dtype(
    [
        ("fault", "<u4"),
        ("layer", "<u2"),
        ("images_in", "<u4"),
        ("images_acted", "<u4"),
        ("images_out", "<u4"),
        ("outputs_changed", "<u8"),
        ("single", "<u4"),
        ("column", "<u4"),
        ("row", "<u4"),
        ("block", "<u4"),
        ("all", "<u4"),
        ("largest_error", "<i8"),
        ("error_sum", "<f8"),
    ]
)
"""A row for each fault and each layer that anything arrived at or happened in, by `fault` and `layer`, ascending.

Faults of rule EQUIVALENT have those of the fault that stands for them. `fault` is a row of the table of faults.
`images_in`: images in which the quantised input of the layer differs; `images_acted`: in which the fault itself
changes accumulators of the layer; `images_out`: in which the accumulators differ from those without the fault, which
those of `PATTERNS` add up to. `outputs_changed`: accumulators that differ, over all images; `largest_error` and
`error_sum`: the greatest and the sum of their absolute differences, in steps of the accumulator.
"""

OPERATIONS_DTYPE = np.dtype(
    [
        ("stratum", "<u4"),
        ("operation", "<u2"),
        ("images_in", "<u8"),
        ("images_masked", "<u8"),
        ("images_out", "<u8"),
        ("elements_in", "<u8"),
        ("elements_out", "<u8"),
        ("rounded", "<u8"),
        ("saturated", "<u8"),
    ]
)
"""Sums over the faults of a stratum, by `stratum` and `operation`, ascending; rows of zeros may be left out.

`images_in`: how often (fault and image) an input of the operation differs; `images_masked`: how often of these its
output does not; `images_out`: how often its output does, which for `multiply` may be with the same input, where the
fault itself acts. `elements_in` and `elements_out`: values that differ. `rounded` and `saturated`: values of a
quantised input that no longer differ as both are rounded, or clamped, to the same integer; 0 for other operations.
"""

STRATA_DTYPE = np.dtype([("site", "u1"), ("bit", "<u2"), ("kind", "u1"), ("population", "<i8"), ("sampled", "<u4")])
"""A row for each stratum of the population: how many faults it has, and how many of them are in the table of faults."""


@dataclass(frozen=True)
class LayerShape:
    """A quantised layer, by the GEMMs that one image makes.

    Args:
        name: in the network.
        groups: GEMMs, 1 or more.
        m: rows of X.
        k: length of a dot product.
        n: output channels of each group.
    """

    name: str
    groups: int
    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Operation:
    """A step of the network's graph.

    Args:
        name: of the node in the network's graph, or of the layer; both operations of a layer have its name.
        kind: one of `OPERATION_KINDS`.
        layer: place of the last quantised layer whose `multiply` ran when it is done, -1 for none: that of a `multiply`
            is its own, and that of a `quantise` the layer before.
    """

    name: str
    kind: str
    layer: int


FILE_NAME = "propagation.h5"
"""In the folder of `efat propagate`."""

FORMAT = "efat-propagation"
VERSION = 2
_UNDIGESTED = 1
"""The version before, which is read, too: its files have no digest."""

MOST_IMAGES = 10_000_000
MOST_SIZE = (1 << 31) - 1
"""Of each size of a GEMM."""
MOST_POPULATION = (1 << 63) - 1
"""Faults; places in the population are int64."""
LONGEST_NAME_BYTES = 256
"""Of a layer or an operation, in UTF-8."""
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
        InputError: a value that cannot be.
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
    datasets = {name: getattr(propagation, name) for name in _TABLES}
    datasets["layer_shapes"] = np.array([_encoded(shape) for shape in propagation.layer_shapes], _LAYER_SHAPES_DTYPE)
    datasets["graph"] = np.array([_encoded(operation) for operation in propagation.graph], _GRAPH_DTYPE)
    attributes = {name: getattr(propagation, name) for name in (*_COUNTS, *_TEXTS)}
    with replaced(path) as beside, h5py.File(beside, "w", libver=HDF5_VERSION) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = VERSION
        for name in _COUNTS:
            file.attrs[name] = np.int64(getattr(propagation, name))
        for name in _TEXTS:
            file.attrs[name] = np.bytes_(canonical_json(getattr(propagation, name)).encode())
        file.attrs["digest"] = np.bytes_(_digest(attributes, datasets))
        for name, array in datasets.items():
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
        if version not in (VERSION, _UNDIGESTED):
            raise InputError(f"it has format version {version}: this program reads {VERSION}; update it")
        attributes: dict[str, Any] = {name: integer_attribute(file, name) for name in _COUNTS}
        attributes |= {name: json_attribute(file, name) for name in _TEXTS}
        datasets = {name: _dataset(file, name, *expected) for name, expected in (_TABLES | _NAMED).items()}
        if version != _UNDIGESTED and text_attribute(file, "digest") != _digest(attributes, datasets):
            raise InputError("its digest is another one than that of what it holds: make it anew with `efat propagate`")
        values = attributes | datasets
        values["layer_shapes"] = [LayerShape(name.decode(), *sizes) for name, *sizes in values["layer_shapes"].tolist()]
        values["graph"] = [
            Operation(name.decode(), kind.decode(), layer) for name, kind, layer in values["graph"].tolist()
        ]
        return Propagation(**values)


def _digest(attributes: Mapping[str, Any], datasets: Mapping[str, npt.NDArray[np.void]]) -> str:
    """SHA-256 (hex) of everything that a file holds."""
    found = hashlib.sha256(canonical_json(attributes).encode())
    for name, array in datasets.items():
        found.update(f"\n{name} {len(array)}\n".encode() + array.tobytes())
    return found.hexdigest()


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


_Table = npt.NDArray[np.void]


def check_tables(found: Propagation) -> None:
    """Check what others rely on when they compute with it: sizes, places in other tables, and shares within 0..1.

    Raises:
        InputError: a value that cannot be.
    """
    _check_range("images", np.array(found.images), 1, MOST_IMAGES)
    _check_range("fault_free_correct", np.array(found.fault_free_correct), 0, found.images)
    if not all(isinstance(value, str) for value in found.versions.values()):
        raise InputError("versions has a value that is not a text: expected texts by name")
    config = _config(found.array)
    _check_network(found)
    _check_strata(found, config)
    _check_population(found.population, int(found.strata["population"].sum()))
    _check_faults(found, config)
    layers, operations, last = found.layers, found.operations, len(found.layer_shapes) - 1
    _check_range("fault in layers", layers["fault"], 0, len(found.faults) - 1)
    _check_range("layer in layers", layers["layer"], 0, last)
    most = _wide(found.faults, "images")[layers["fault"]]
    out = _wide(layers, "images_out")
    _refuse("images_out in layers", out, out > most, "at most the images of the fault")
    _refuse("images_out in layers", out, _sum(layers, PATTERNS) != out, f"the sum of {', '.join(PATTERNS)}")
    _check_range("largest_error in layers", layers["largest_error"], 0, (1 << 32) - 1)
    _check_range("error_sum in layers", layers["error_sum"], 0, float(1 << 120))
    _check_range("outputs_changed in layers", layers["outputs_changed"], 0, MOST_POPULATION)
    _check_range("stratum in operations", operations["stratum"], 0, len(found.strata) - 1)
    _check_range("operation in operations", operations["operation"], 0, len(found.graph) - 1)
    for name in (OPERATIONS_DTYPE.names or ())[2:]:
        _check_range(f"{name} in operations", operations[name], 0, MOST_POPULATION)


def _config(array: Mapping[str, Any]) -> ArrayConfig:
    sizes = ("rows", "cols", "weight_bits", "act_bits", "act_signed", "acc_bits")
    missing = [name for name in sizes if name not in array]
    if missing:
        raise InputError(f"array has no {missing[0]}: expected what ArrayConfig.as_dict() gives")
    try:
        return ArrayConfig(**{name: array[name] for name in sizes})
    except (TypeError, ValueError) as error:
        raise InputError(f"array: {first_line(error)}") from None


def _check_network(found: Propagation) -> None:
    for what, names in (("layer", [x.name for x in found.layer_shapes]), ("operation", [x.name for x in found.graph])):
        if not names:
            raise InputError(f"there are no {what}s: expected those of a network")
        for name in names:
            if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name.encode()) <= LONGEST_NAME_BYTES:
                raise InputError(
                    f"{what} is {name!r:.80}: expected a printable name of at most {LONGEST_NAME_BYTES} bytes"
                )
    for shape in found.layer_shapes:
        for name in ("groups", "m", "k", "n"):
            value = getattr(shape, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SIZE:
                raise InputError(f"{name} of layer {shape.name!r} is {value!r}: expected an integer of 1..{MOST_SIZE}")
    last = len(found.layer_shapes) - 1
    for operation in found.graph:
        if operation.kind not in OPERATION_KINDS:
            raise InputError(
                f"kind of operation {operation.name!r} is {operation.kind!r:.80}: expected {', '.join(OPERATION_KINDS)}"
            )
        if not isinstance(operation.layer, int) or not -1 <= operation.layer <= last:
            raise InputError(f"layer of operation {operation.name!r} is {operation.layer!r}: expected -1..{last}")


def _check_strata(found: Propagation, config: ArrayConfig) -> None:
    strata = found.strata
    if not len(strata):
        raise InputError("strata is empty: expected all strata of the population")
    for name, table in (("strata", strata), ("faults", found.faults)):
        _check_range(f"site in {name}", table["site"], 0, max(Site))
        _check_range(f"kind in {name}", table["kind"], 0, max(Kind))
        for site in set(Site) - {Site.MULTIPLIER}:
            of_site = table["bit"][table["site"] == site]
            _check_range(f"bit of {site.name} in {name}", of_site, 0, site.bits(config) - 1)
    _check_range("population in strata", strata["population"], 0, MOST_POPULATION)
    if sum(strata["population"].tolist()) > MOST_POPULATION:
        raise InputError(f"strata have more than {MOST_POPULATION} faults: expected a population that int64 counts")
    if len(np.unique(_stratum_key(strata))) < len(strata):
        raise InputError("strata has one of site, bit and kind twice: expected each of them once")
    place = stratum_places(strata, found.faults)
    if (place < 0).any():
        fault = found.faults[place < 0][0]
        raise InputError(
            f"faults has site {fault['site']}, bit {fault['bit']}, kind {fault['kind']}: expected those of a stratum"
        )
    counts = np.bincount(place, minlength=len(strata))
    sampled = strata["sampled"].astype(np.int64)
    _refuse("sampled in strata", sampled, sampled != counts, "the number of its rows in faults")
    _refuse("sampled in strata", sampled, sampled > strata["population"], "at most its population")


def stratum_places(strata: _Table, faults: _Table) -> Int64Array:
    """In which stratum each fault is, int64 [faults], -1 for none.

    Args:
        strata: `STRATA_DTYPE` [strata], one or more, each once.
        faults: `FAULTS_DTYPE` [faults].
    """
    keys, wanted = _stratum_key(strata), _stratum_key(faults)
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], wanted), len(strata) - 1)]
    found: Int64Array = np.where(keys[place] == wanted, place, -1).astype(np.int64)
    return found


def _stratum_key(table: _Table) -> Int64Array:
    return _wide(table, "site") << 32 | _wide(table, "bit") << 8 | _wide(table, "kind")


def _check_population(population: Mapping[str, Any], in_strata: int) -> None:
    rules = [rule.name.lower() for rule in Rule]
    unknown = [name for name in population if name not in ("size", *rules)]
    if unknown or set(population) not in ({"size"}, {"size", *rules}):
        raise InputError(
            f"population has {', '.join(population) or 'nothing'!s:.80}: expected size, and either all or none of "
            f"{', '.join(rules)}"
        )
    for name, value in population.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_POPULATION:
            raise InputError(f"{name} of the population is {value!r:.80}: expected an integer of 0..{MOST_POPULATION}")
    if population["size"] != in_strata:
        raise InputError(f"size of the population is {population['size']}: expected {in_strata}, as its strata have")


def _check_faults(found: Propagation, config: ArrayConfig) -> None:
    faults, last = found.faults, len(found.layer_shapes) - 1
    _check_range("index in faults", faults["index"], 0, found.population["size"] - 1)
    _check_range("row in faults", faults["row"], 0, config.rows - 1)
    _check_range("col in faults", faults["col"], 0, config.cols - 1)
    flips = faults[faults["kind"] == Kind.FLIP]
    _check_range("layer of flips", flips["layer"], 0, last)
    groups = np.array([shape.groups for shape in found.layer_shapes])[flips["layer"]]
    _refuse("group of flips", flips["group"], (flips["group"] < 0) | (flips["group"] >= groups), "one of the layer")
    _check_range("cycle of flips", flips["cycle"], 0, MOST_POPULATION)
    _check_range("image of flips", flips["image"], 0, found.images - 1)
    _check_range("rule in faults", faults["rule"], 0, max(Rule))
    _check_range("same_as in faults", faults["same_as"], -1, found.population["size"] - 1)
    _check_range("first_layer in faults", faults["first_layer"], -1, last)
    _check_range("last_layer in faults", faults["last_layer"], -1, last)
    images = _wide(faults, "images")
    _check_range("images in faults", images, 1, found.images)
    _refuse("images in faults", images, _sum(faults, OUTCOMES) != images, f"the sum of {', '.join(OUTCOMES)}")
    lost, gained = _wide(faults, "correct_lost"), _wide(faults, "correct_gained")
    changed = _sum(faults, ("top1", "top5"))
    _refuse("correct_lost in faults", lost, lost + gained > changed, "with correct_gained at most top1 + top5")


def _wide(table: _Table, name: str) -> Int64Array:
    """A column whose differences and sums do not wrap."""
    column: Int64Array = table[name].astype(np.int64)
    return column


def _sum(table: _Table, names: tuple[str, ...]) -> Int64Array:
    total: Int64Array = np.sum([_wide(table, name) for name in names], axis=0, dtype=np.int64)
    return total


def _check_range(name: str, values: npt.NDArray[Any], least: float, most: float) -> None:
    expected = f"{least}" if least == most else f"{least}..{most}"
    _refuse(name, values, ~((values >= least) & (values <= most)), expected)


def _refuse(name: str, values: npt.NDArray[Any], wrong: BoolArray, expected: str) -> None:
    if wrong.any():
        raise InputError(f"{name} is {values[wrong].flat[0]}: expected {expected}")
