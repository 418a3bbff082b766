"""What a propagation campaign found: every fault's outcome and its way through the network, and the HDF5 file of it.

Columns are flat numbers of little-endian types; docs/formats.md says what each is. Nothing in a file is trusted:
format, version, shapes, types, sizes, every index and a digest of all of it are checked.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import h5py
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from efat.hdf5_fields import (
    HDF5_VERSION,
    canonical_json,
    check_not_compressed,
    damage_reported,
    integer_attribute,
    json_attribute,
)
from efat.propagation.population import LayerShape, stratum_codes
from efat.propagation.request import MOST_FAULTS, PropagationRequest, Subject
from efat.records import Record, as_json, typed
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError, first_line
from simulator.files import replaced
from simulator.hdf5 import own_dataset, text_attribute
from training.injection.network_graph import GraphOperation
from training.injection.network_graph import Kind as OperationKind
from training.injection.replay import OPERATION_COUNTS, OUTCOMES

OPERATION_KINDS: tuple[OperationKind, ...] = get_args(OperationKind)
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


FILE_NAME = "propagation.h5"
SUMMARY = "summary.json"
PICTURES = ("array.png", "bits.png", "layers.png")
"""What the folder of `efat propagate` has beside the campaign's files."""

FORMAT = "efat-propagation"
VERSION = 2
_UNDIGESTED = 1
"""The version before, which is read, too: its files have no digest, and some no normalisation."""

MOST_IMAGES = 10_000_000
MOST_SIZE = (1 << 31) - 1
"""Of each size of a GEMM."""
MOST_POPULATION = (1 << 63) - 1
"""Faults; places in the population are int64."""
LONGEST_NAME_BYTES = 256
"""Of a layer or an operation, in UTF-8."""
MOST_LAYER_ROWS = 1 << 25
MOST_NAMES = 1 << 14
"""Layers, and operations, of a network."""

_CHUNK_ROWS = 1 << 14

_NAME = f"S{LONGEST_NAME_BYTES}"
_LAYER_SHAPES_DTYPE = np.dtype([("name", _NAME), ("groups", "<i8"), ("m", "<i8"), ("k", "<i8"), ("n", "<i8")])
_GRAPH_DTYPE = np.dtype([("name", _NAME), ("kind", "S16"), ("layer", "<i2")])

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

Rows = npt.NDArray[np.void]
"""Of a table: a structured array."""
_Faults = Annotated[int, Meta(ge=0, le=MOST_POPULATION)]
_Tables = TypeVar("_Tables", bound="FaultTables")


class PopulationCounts(Record, frozen=True):
    """How many faults a population has, and how many of them each `Rule` is for."""

    size: _Faults
    simulated: _Faults
    unused: _Faults
    same_value: _Faults
    equivalent: _Faults

    @property
    def of_rules(self) -> list[int]:
        """By `Rule`."""
        return [self.simulated, self.unused, self.same_value, self.equivalent]


@dataclass(frozen=True, eq=False, repr=False)
class FaultTables:
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
        subject: what was run on what.
        population: how many faults there are.
        request: what was asked for.
        versions: of programs and libraries, texts by name.
        classes: of the data; None in what was read from a file.

    Raises:
        InputError: a value that cannot be.
    """

    faults: Rows
    layers: Rows
    operations: Rows
    strata: Rows
    layer_shapes: Sequence[LayerShape]
    graph: Sequence[GraphOperation]
    images: int
    fault_free_correct: int
    array: Mapping[str, Any]
    subject: Subject
    population: PopulationCounts
    request: PropagationRequest
    versions: Mapping[str, str]
    classes: int | None = None

    def __post_init__(self) -> None:
        for name, (dtype, most) in _TABLES.items():
            object.__setattr__(self, name, _table(name, getattr(self, name), dtype, most))
        _check(self)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that a file holds."""
        return _digest(*_content(self))

    @classmethod
    def load(cls: type[_Tables], path: str | Path) -> _Tables:
        """Read what `save` wrote, checking all of it.

        Args:
            path: the file, or the folder of `efat propagate` that it is in.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, damaged, or of a newer version.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; make it with `efat propagate`")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file: expected what `efat propagate` writes")
        with path.open("rb"):
            pass
        with damage_reported(path, "efat propagate"), h5py.File(path, "r") as file:
            if text_attribute(file, "format") != FORMAT:
                raise InputError(
                    f"it is of another kind: expected attribute format={FORMAT!r}, as `efat propagate` writes"
                )
            version = integer_attribute(file, "version")
            if version not in (VERSION, _UNDIGESTED):
                raise InputError(f"it has format version {version}: this program reads {VERSION}; update it")
            attributes: dict[str, Any] = {name: integer_attribute(file, name) for name in _COUNTS}
            attributes |= {name: json_attribute(file, name) for name in _TEXTS}
            expected = _TABLES | _NAMED
            datasets: dict[str, Any] = {name: _dataset(file, name, *expected[name]) for name in expected}
            if version != _UNDIGESTED and text_attribute(file, "digest") != _digest(attributes, datasets):
                raise InputError(
                    "its digest is another one than that of what it holds: make it anew with `efat propagate`"
                )
        where = str(path)
        shapes, graph = (datasets.pop(name).tolist() for name in _NAMED)
        attributes |= {
            "subject": typed(Subject, {"normalization": None, **attributes["subject"]}, f"{where}: subject"),
            "population": typed(PopulationCounts, attributes["population"], f"{where}: population"),
            "request": typed(PropagationRequest, attributes["request"], f"{where}: request"),
            "versions": typed(dict[str, str], attributes["versions"], f"{where}: versions"),
        }
        with damage_reported(path, "efat propagate"):
            return cls(
                **datasets,
                layer_shapes=[LayerShape(name.decode(), *sizes) for name, *sizes in shapes],
                graph=[GraphOperation(name.decode(), kind.decode(), layer) for name, kind, layer in graph],
                **attributes,
            )

    def save(self, path: str | Path) -> None:
        """Write everything. The file appears, or replaces an older one, only when it is complete.

        Args:
            path: the file; its folder is there.

        Raises:
            OSError: the file cannot be written.
        """
        attributes, datasets = _content(self)
        with replaced(Path(path)) as beside, h5py.File(beside, "w", libver=HDF5_VERSION) as file:
            file.attrs["format"] = np.bytes_(FORMAT)
            file.attrs["version"] = VERSION
            for name in _COUNTS:
                file.attrs[name] = np.int64(attributes[name])
            for name in _TEXTS:
                file.attrs[name] = np.bytes_(canonical_json(attributes[name]).encode())
            file.attrs["digest"] = np.bytes_(_digest(attributes, datasets))
            for name, array in datasets.items():
                chunk = (min(max(len(array), 1), _CHUNK_ROWS),)
                file.create_dataset(name, data=array, chunks=chunk, maxshape=(None,), fletcher32=True)


def joined(parts: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
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


def stratum_places(strata: Rows, faults: Rows) -> Int64Array:
    """In which stratum (one or more, each once) each fault is, int64 [faults], -1 for none."""
    keys, wanted = (stratum_codes(*(table[name] for name in ("site", "bit", "kind"))) for table in (strata, faults))
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], wanted), len(strata) - 1)]
    found: Int64Array = np.where(keys[place] == wanted, place, -1).astype(np.int64)
    return found


def _content(found: FaultTables) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What a file holds: attributes, and datasets."""
    named = {
        name: np.array([_encoded(row) for row in getattr(found, name)], dtype) for name, (dtype, _) in _NAMED.items()
    }
    attributes = {name: as_json(getattr(found, name)) for name in (*_COUNTS, *_TEXTS)}
    return attributes, {name: getattr(found, name) for name in _TABLES} | named


def _digest(attributes: Mapping[str, Any], datasets: Mapping[str, Rows]) -> str:
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


def _table(name: str, values: Rows, dtype: np.dtype[Any], most: int) -> Rows:
    """A copy that nobody changes."""
    given = np.asarray(values)
    if given.dtype != dtype or given.ndim != 1 or len(given) > most:
        what = f"{str(given.dtype)[:120]} {given.shape}"
        raise InputError(f"{name} is {what}: expected one dimension of {name.upper()}_DTYPE, and at most {most} rows")
    array: Rows = given.copy()
    array.flags.writeable = False
    return array


def _encoded(named: LayerShape | GraphOperation) -> tuple[Any, ...]:
    return tuple(value.encode() if isinstance(value, str) else value for value in astuple(named))


def _check(found: FaultTables) -> None:
    """Check what others rely on when they compute with it: sizes, places in other tables, and shares within 0..1."""
    _check_range("images", found.images, 1, MOST_IMAGES)
    _check_range("fault_free_correct", found.fault_free_correct, 0, found.images)
    array = _config(found.array)
    _check_network(found)
    last_layer, last_fault = len(found.layer_shapes) - 1, found.population.size - 1
    _check_columns(
        "faults",
        found.faults,
        index=(0, last_fault),
        row=(0, array.rows - 1),
        col=(0, array.cols - 1),
        rule=(0, max(Rule)),
        same_as=(-1, last_fault),
        first_layer=(-1, last_layer),
        last_layer=(-1, last_layer),
        images=(1, found.images),
    )
    flips = found.faults[found.faults["kind"] == Kind.FLIP]
    _check_columns("flips", flips, layer=(0, last_layer), cycle=(0, MOST_POPULATION), image=(0, found.images - 1))
    groups = np.array([shape.groups for shape in found.layer_shapes])[flips["layer"]]
    _refuse("group in flips", flips["group"], (flips["group"] < 0) | (flips["group"] >= groups), "one of the layer")
    images = found.faults["images"]
    total = np.sum([found.faults[name].astype(np.int64) for name in OUTCOMES], axis=0)
    _refuse("images in faults", images, total != images, f"the sum of {', '.join(OUTCOMES)}")
    _check_strata(found, array)
    _check_columns(
        "layers",
        found.layers,
        fault=(0, len(found.faults) - 1),
        layer=(0, last_layer),
        largest_error=(0, (1 << 32) - 1),
        error_sum=(0, float(1 << 120)),
    )
    counts = dict.fromkeys(OPERATION_COUNTS, (0, MOST_POPULATION))
    places = {"stratum": (0, len(found.strata) - 1), "operation": (0, len(found.graph) - 1)}
    _check_columns("operations", found.operations, **places, **counts)


def _config(array: Mapping[str, Any]) -> ArrayConfig:
    sizes = ("rows", "cols", "weight_bits", "act_bits", "act_signed", "acc_bits")
    missing = [name for name in sizes if name not in array]
    if missing:
        raise InputError(f"array has no {missing[0]}: expected what ArrayConfig.as_dict() gives")
    try:
        return ArrayConfig(**{name: array[name] for name in sizes})
    except (TypeError, ValueError) as error:
        raise InputError(f"array: {first_line(error)}") from None


def _check_network(found: FaultTables) -> None:
    for what, named in (("layer", found.layer_shapes), ("operation", found.graph)):
        if not named:
            raise InputError(f"there are no {what}s: expected those of a network")
        for one in named:
            if not one.name.isprintable() or not 1 <= len(one.name.encode()) <= LONGEST_NAME_BYTES:
                raise InputError(
                    f"{what} is {one.name!r:.80}: expected a printable name of at most {LONGEST_NAME_BYTES} bytes"
                )
    for shape in found.layer_shapes:
        for name in ("groups", "m", "k", "n"):
            _check_range(f"{name} of layer {shape.name!r}", getattr(shape, name), 1, MOST_SIZE)
    for operation in found.graph:
        if operation.kind not in OPERATION_KINDS:
            raise InputError(
                f"kind of operation {operation.name!r} is {operation.kind!r:.80}: expected {', '.join(OPERATION_KINDS)}"
            )
        _check_range(f"layer of operation {operation.name!r}", operation.layer, -1, len(found.layer_shapes) - 1)


def _check_strata(found: FaultTables, array: ArrayConfig) -> None:
    strata = found.strata
    if not len(strata):
        raise InputError("strata is empty: expected all strata of the population")
    for name, table in (("strata", strata), ("faults", found.faults)):
        _check_columns(name, table, site=(0, max(Site)), kind=(0, max(Kind)))
        for site in set(Site) - {Site.MULTIPLIER}:
            of_site = table["bit"][table["site"] == site]
            _check_range(f"bit of {site.name} in {name}", of_site, 0, site.bits(array) - 1)
    _check_columns("strata", strata, population=(0, MOST_POPULATION))
    place = stratum_places(strata, found.faults)
    if (place < 0).any():
        fault = found.faults[place < 0][0]
        raise InputError(
            f"faults has site {fault['site']}, bit {fault['bit']}, kind {fault['kind']}: expected those of a stratum"
        )
    sampled = strata["sampled"].astype(np.int64)
    counts = np.bincount(place, minlength=len(strata))
    _refuse("sampled in strata", sampled, sampled != counts, "the number of its rows in faults")
    _refuse("sampled in strata", sampled, sampled > strata["population"], "at most its population")


def _check_columns(table_name: str, table: Rows, **limits: tuple[float, float]) -> None:
    for name, (least, most) in limits.items():
        _check_range(f"{name} in {table_name}", table[name], least, most)


def _check_range(name: str, values: npt.ArrayLike, least: float, most: float) -> None:
    found = np.asarray(values)
    _refuse(name, found, ~((found >= least) & (found <= most)), f"{least}..{most}")


def _refuse(name: str, values: npt.NDArray[Any], wrong: BoolArray, expected: str) -> None:
    if wrong.any():
        raise InputError(f"{name} is {values[wrong].flat[0]}: expected {expected}")
