"""What a propagation campaign found: every fault's outcome and its way through the network, and the HDF5 file of it.

Columns are flat numbers of little-endian types; docs/formats.md says what each is. Nothing in a file is trusted:
`simulator.hdf5` checks what it holds by itself, and here is checked what depends on several of its values.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from efat.propagation.population import LayerShape, stratum_codes
from efat.propagation.request import MOST_FAULTS, PropagationRequest, Subject
from efat.records import Record, as_json, typed
from simulator import Kind, Site
from simulator.config import ArrayRecord
from simulator.dtypes import Int64Array
from simulator.errors import InputError
from simulator.hdf5 import Dataset, Format, check_range, refuse, texts
from training.injection.network_graph import GraphOperation
from training.injection.network_graph import Kind as OperationKind
from training.injection.replay import OPERATION_COUNTS, OUTCOMES

OPERATION_KINDS: tuple[OperationKind, ...] = get_args(OperationKind)
"""Operations of a network: a quantised layer is two, `quantise` of its input and `multiply`, its GEMMs with bias."""

FILE_NAME = "propagation.h5"
SUMMARY = "summary.json"
PICTURES = ("array.png", "bits.png", "layers.png")
"""What the folder of `efat propagate` has beside the campaign's files."""

MOST_IMAGES = 10_000_000
MOST_POPULATION = (1 << 63) - 1
"""Faults; places in the population are int64."""
_MOST_SIZE = (1 << 31) - 1
"""Of each size of a GEMM."""
_MOST_NAMES = 1 << 14
"""Layers, and operations, of a network."""
_MOST_ROWS = 1 << 25
_NAME = "S256"
"""Of a layer or an operation, in UTF-8."""


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


_FAULTS = Dataset.table(
    "faults",
    MOST_FAULTS,
    {
        "index": "<i8",
        "row": "<u2",
        "col": "<u2",
        "site": ("u1", 0, max(Site)),
        "bit": "<u2",
        "kind": ("u1", 0, max(Kind)),
        "layer": "<i2",
        "group": "<i2",
        "cycle": "<i8",
        "image": "<i4",
        "rule": ("u1", 0, max(Rule)),
        "same_as": "<i8",
        "images": "<u4",
        "inactive": "<u4",
        "masked": "<u4",
        "benign": "<u4",
        "top1": "<u4",
        "top5": "<u4",
        "correct_lost": "<u4",
        "correct_gained": "<u4",
        "first_layer": "<i2",
        "last_layer": "<i2",
    },
)
FAULTS_DTYPE = _FAULTS.dtype
"""A row for each fault of the sample, by `index`, strictly ascending.

`index` is its place in the population. `layer`, `group`, `cycle` and `image` say when a FLIP happens, and are -1 for
permanent faults. `rule` is a `Rule`; `same_as` the `index` of the fault that was injected in its place, -1 if there is
none or it is not in the population. `images` is their number, and those of `OUTCOMES` add up to it. `correct_lost` and
`correct_gained` are images that are right only without, and only with the fault. `first_layer` and `last_layer` are the
first and the last layer of which an accumulator changed on any image, -1 if none did.
"""

_LAYERS = Dataset.table(
    "layers",
    _MOST_ROWS,
    {
        "fault": "<u4",
        "layer": "<u2",
        "images_in": "<u4",
        "images_acted": "<u4",
        "images_out": "<u4",
        "outputs_changed": "<u8",
        "single": "<u4",
        "column": "<u4",
        "row": "<u4",
        "block": "<u4",
        "all": "<u4",
        "largest_error": ("<i8", 0, (1 << 32) - 1),
        "error_sum": ("<f8", 0, float(1 << 120)),
    },
)
LAYERS_DTYPE = _LAYERS.dtype
"""A row for each fault and each layer that anything arrived at or happened in, by `fault` and `layer`, ascending.

Faults of rule EQUIVALENT have those of the fault that stands for them. `fault` is a row of the table of faults.
`images_in`: images in which the quantised input of the layer differs; `images_acted`: in which the fault itself
changes accumulators of the layer; `images_out`: in which the accumulators differ from those without the fault, which
those of `PATTERNS` add up to. `outputs_changed`: accumulators that differ, over all images; `largest_error` and
`error_sum`: the greatest and the sum of their absolute differences, in steps of the accumulator.
"""

_OPERATIONS = Dataset.table(
    "operations",
    _MOST_ROWS,
    {"stratum": "<u4", "operation": "<u2", **dict.fromkeys(OPERATION_COUNTS, ("<u8", 0, MOST_POPULATION))},
)
OPERATIONS_DTYPE = _OPERATIONS.dtype
"""Sums over the faults of a stratum, by `stratum` and `operation`, ascending; rows of zeros may be left out.

`images_in`: how often (fault and image) an input of the operation differs; `images_masked`: how often of these its
output does not; `images_out`: how often its output does, which for `multiply` may be with the same input, where the
fault itself acts. `elements_in` and `elements_out`: values that differ. `rounded` and `saturated`: values of a
quantised input that no longer differ as both are rounded, or clamped, to the same integer; 0 for other operations.
"""

_STRATA = Dataset.table(
    "strata",
    MOST_FAULTS,
    {
        "site": ("u1", 0, max(Site)),
        "bit": "<u2",
        "kind": ("u1", 0, max(Kind)),
        "population": ("<i8", 0, MOST_POPULATION),
        "sampled": "<u4",
    },
)
STRATA_DTYPE = _STRATA.dtype
"""A row for each stratum of the population: how many faults it has, and how many of them are in the table of faults."""

_SIZES = dict.fromkeys(("groups", "m", "k", "n"), ("<i8", 1, _MOST_SIZE))
_LAYER_SHAPES = Dataset.table("layer_shapes", _MOST_NAMES, {"name": _NAME, **_SIZES})
_GRAPH = Dataset.table("graph", _MOST_NAMES, {"name": _NAME, "kind": "S16", "layer": "<i2"})

FORMAT = Format(
    "efat-propagation",
    2,
    "efat propagate",
    "what `efat propagate` writes",
    digested=2,
    integers={"images": (1, MOST_IMAGES), "fault_free_correct": (0, MOST_IMAGES)},
    objects=("array", "subject", "population", "request", "versions"),
    datasets=(_FAULTS, _LAYERS, _OPERATIONS, _STRATA, _LAYER_SHAPES, _GRAPH),
)

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
        array: where the faults are.
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
    array: ArrayRecord
    subject: Subject
    population: PopulationCounts
    request: PropagationRequest
    versions: Mapping[str, str]
    classes: int | None = None

    def __post_init__(self) -> None:
        found = FORMAT.checked(self._content())
        for name in ("faults", "layers", "operations", "strata"):
            object.__setattr__(self, name, found[name])
        _check(self)

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

        def made(values: dict[str, Any]) -> _Tables:
            shapes, graph = values["layer_shapes"], values["graph"]
            kinds: Any = texts("kind in graph", graph["kind"])
            refuse("kind in graph", graph["kind"], ~np.isin(kinds, OPERATION_KINDS), ", ".join(OPERATION_KINDS))
            names, steps = texts("name in layer_shapes", shapes["name"]), texts("name in graph", graph["name"])
            sizes = (shapes[name].tolist() for name in ("groups", "m", "k", "n"))
            values["layer_shapes"] = list(map(LayerShape, names, *sizes))
            values["graph"] = list(map(GraphOperation, steps, kinds, graph["layer"].tolist()))
            # Files of the first version may have no normalisation.
            subject = {"normalization": None, **values["subject"]}
            values["subject"] = typed(Subject, subject, "subject")
            values["population"] = typed(PopulationCounts, values["population"], "population")
            values["request"] = typed(PropagationRequest, values["request"], "request")
            values["array"] = typed(ArrayRecord, values["array"], "array")
            values["versions"] = typed(dict[str, str], values["versions"], "versions")
            return cls(**values)

        return FORMAT.read(path / FILE_NAME if path.is_dir() else path, made)

    def save(self, path: str | Path) -> None:
        """Write everything. The file appears, or replaces an older one, only when it is complete.

        Args:
            path: the file; its folder is there.

        Raises:
            OSError: the file cannot be written.
        """
        FORMAT.write(Path(path), FORMAT.checked(self._content()))

    def _content(self) -> dict[str, Any]:
        """What a file holds."""
        content = {name: getattr(self, name) for name in (*FORMAT.integers, "faults", "layers", "operations", "strata")}
        content |= {name: as_json(getattr(self, name)) for name in FORMAT.objects}
        for dataset in (_LAYER_SHAPES, _GRAPH):
            named = getattr(self, dataset.name)
            for name in (one.name for one in named):
                if not name.isprintable() or len(name.encode()) > np.dtype(_NAME).itemsize:
                    raise InputError(f"{name!r:.80} in {dataset.name}: expected a printable name of at most 256 bytes")
            rows = [(one.name.encode(), *astuple(one)[1:]) for one in named]
            content[dataset.name] = np.array(rows, dataset.dtype)
        return content


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


def _check(found: FaultTables) -> None:
    """Check what others rely on when they compute with it: sizes, places in other tables, and shares within 0..1."""
    array, faults, flips = found.array.sizes, found.faults, found.faults["kind"] == Kind.FLIP
    last_layer, last_fault = len(found.layer_shapes) - 1, found.population.size - 1
    for what, rows in (("layers", found.layer_shapes), ("operations", found.graph), ("strata", found.strata)):
        if not len(rows):
            raise InputError(f"there are no {what}: expected those of a network and a population")
    limits: dict[str, tuple[npt.ArrayLike, int, int]] = {
        "fault_free_correct": (found.fault_free_correct, 0, found.images),
        "index in faults": (faults["index"], 0, last_fault),
        "row in faults": (faults["row"], 0, array.rows - 1),
        "col in faults": (faults["col"], 0, array.cols - 1),
        "same_as in faults": (faults["same_as"], -1, last_fault),
        "first_layer in faults": (faults["first_layer"], -1, last_layer),
        "last_layer in faults": (faults["last_layer"], -1, last_layer),
        "images in faults": (faults["images"], 1, found.images),
        "layer of flips": (faults["layer"][flips], 0, last_layer),
        "cycle of flips": (faults["cycle"][flips], 0, MOST_POPULATION),
        "image of flips": (faults["image"][flips], 0, found.images - 1),
        "fault in layers": (found.layers["fault"], 0, len(faults) - 1),
        "layer in layers": (found.layers["layer"], 0, last_layer),
        "stratum in operations": (found.operations["stratum"], 0, len(found.strata) - 1),
        "operation in operations": (found.operations["operation"], 0, len(found.graph) - 1),
        "layer in graph": ([step.layer for step in found.graph], -1, last_layer),
    }
    for what, (values, least, most) in limits.items():
        check_range(what, values, least, most)
    groups = np.array([shape.groups for shape in found.layer_shapes])[faults["layer"][flips]]
    group = faults["group"][flips]
    refuse("group of flips", group, (group < 0) | (group >= groups), "one of the layer")
    total = np.sum([faults[name].astype(np.int64) for name in OUTCOMES], axis=0)
    refuse("images in faults", faults["images"], total != faults["images"], f"the sum of {', '.join(OUTCOMES)}")
    for name, table in (("strata", found.strata), ("faults", faults)):
        for site in set(Site) - {Site.MULTIPLIER}:
            of_site = table["bit"][table["site"] == site]
            check_range(f"bit of {site.name} in {name}", of_site, 0, site.bits(array) - 1)
    place = stratum_places(found.strata, faults)
    refuse("faults", faults[["site", "bit", "kind"]], place < 0, "site, bit and kind of a stratum")
    sampled = found.strata["sampled"].astype(np.int64)
    counts = np.bincount(place, minlength=len(sampled))
    refuse("sampled in strata", sampled, sampled != counts, "the number of its rows in faults")
    refuse("sampled in strata", sampled, sampled > found.strata["population"], "at most its population")
