"""Rounds of faults that are injected: units of work for the drawn faults that need it, and what they say of all."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Campaign, Outcome, Unit, UnitFile
from efat.propagation.population import POPULATION_DTYPE, LayerShape, Population
from efat.propagation.request import LoadedSubject
from efat.propagation.tables import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE, Rows, Rule
from simulator import Fault, Kind, Site
from simulator.dtypes import BoolArray, Int64Array, UInt8Array
from training.injection.replay import LAYER_COUNTS, OPERATION_COUNTS, OUTCOMES, Injected, Propagated, Replay

if TYPE_CHECKING:
    from efat.propagation.collapsing.collapse import Collapse


SEEN = "seen.npz"
FAULTS, LAYERS, OPERATIONS = "faults.npy", "layers.npy", "operations.npy"
"""Files of the units, beside what JSON takes."""

_BLOCK_BYTES = 1 << 28
"""Of values that are kept at a time of the run without faults."""
_MOST_IMAGES = 64
"""Kept at a time: more make nothing quicker."""
MOST_ENTRIES = 256
"""Faults times images that are followed at a time."""

MOST_FAULT_IMAGES = 20_000
"""Of a unit, faults times images: some seconds."""
MOST_UPSETS = 2_000
"""Of a unit: an upset is of one image, but each needs its own way through the layers."""
LEAST_UNITS = 8
"""A round is cut into as many if it has as many faults, so that there is something to do for several workers."""

WHERE = POPULATION_DTYPE.names or ()
"""Columns that say which fault it is."""

_OUTCOME_COLUMNS = ("images", *OUTCOMES, "correct_lost", "correct_gained", "first_layer", "last_layer")


def layer_shapes(replay: Replay) -> list[LayerShape]:
    """The GEMMs that one image makes of each layer, in the order in which they run."""
    gemms = [kept.gemm for kept in replay.layers]
    return [LayerShape(gemm.layer.name, gemm.groups, gemm.m, gemm.k, gemm.n) for gemm in gemms]


def fault_free(arguments: Mapping[str, Any]) -> Outcome:
    """Run the network without faults.

    Args:
        arguments: `subject`, a `Subject` as it was when the campaign was begun, and `array`, an `ArrayConfig`.

    Returns:
        `images`; `correct`, those of them that are classified correctly; `layers`, objects with the fields of
        `LayerShape`; `operations`, objects with those of `GraphOperation`. In the file `seen.npz` for layer n under
        `layer_n` which activations occur: bool [groups, K, 2**act_bits], packed along the last axis.

    Raises:
        InputError: network or data have changed, or the network cannot be followed.
    """
    loaded: LoadedSubject = arguments["subject"].load(arguments["array"])
    labels = loaded.labels.numpy()
    correct = 0
    seen: list[BoolArray] = []
    for first, stop in _blocks(loaded):
        replay = _replay(loaded, first, stop)
        correct += int((replay.predicted == labels[first:stop]).sum())
        found = [replay.seen(layer) for layer in range(len(replay.layers))]
        seen = found if not seen else [one | other for one, other in zip(seen, found, strict=True)]
    packed = io.BytesIO()
    marks: dict[str, Any] = {f"layer_{number}": np.packbits(of_layer, axis=-1) for number, of_layer in enumerate(seen)}
    np.savez(packed, **marks)
    layers, operations = ([asdict(one) for one in each] for each in (layer_shapes(replay), replay.operations))
    values = {"images": len(labels), "correct": correct, "layers": layers, "operations": operations}
    return Outcome(values, {SEEN: packed.getvalue()})


def inject(arguments: Mapping[str, Any]) -> Outcome:
    """Inject faults, one at a time.

    Args:
        arguments: as for `fault_free`, with `faults`, `POPULATION_DTYPE` [faults], and `strata`, int64 [faults], by
            which operations are summed up.

    Returns:
        `faults`, how many. In the files what `FAULTS_DTYPE`, `LAYERS_DTYPE` and `OPERATIONS_DTYPE` say: faults in the
        order given, and -1 for `index` and `same_as`.

    Raises:
        InputError: network or data have changed.
    """
    loaded: LoadedSubject = arguments["subject"].load(arguments["array"])
    found = _Tally(arguments["faults"], arguments["strata"])
    labels = loaded.labels.numpy()
    for first, stop in _blocks(loaded):
        here = found.acting_on(first, stop)
        if not len(here):
            continue
        replay = _replay(loaded, first, stop)
        together: list[int] = []
        entries = 0
        for number in here.tolist():
            images = 1 if found.faults["image"][number] >= 0 else stop - first
            if together and entries + images > MOST_ENTRIES:
                found.add(replay, together, first, labels[first:stop])
                together, entries = [], 0
            together.append(number)
            entries += images
        found.add(replay, together, first, labels[first:stop])
    files = {FAULTS: found.rows, LAYERS: found.layer_rows(), OPERATIONS: found.operation_rows()}
    return Outcome({"faults": len(found.rows)}, {name: _bytes(table) for name, table in files.items()})


class _Tally:
    """What is counted of the faults of a unit."""

    def __init__(self, faults: Rows, strata: Int64Array) -> None:
        self.faults = faults
        self.strata = strata
        self.rows = np.zeros(len(faults), FAULTS_DTYPE)
        for name in WHERE:
            self.rows[name] = faults[name]
        for name in ("index", "same_as", "first_layer", "last_layer"):
            self.rows[name] = -1
        self._layers: Int64Array | None = None
        self._operations: dict[int, Int64Array] = {}

    def acting_on(self, first: int, stop: int) -> Int64Array:
        """Faults that are there for any of the images `first` to `stop`; upsets in the order of their layers."""
        image = self.faults["image"]
        here = np.nonzero((image < 0) | ((image >= first) & (image < stop)))[0]
        found: Int64Array = here[np.argsort(self.faults["layer"][here], kind="stable")]
        return found

    def add(self, replay: Replay, numbers: list[int], first: int, labels: Int64Array) -> None:
        """Inject faults of some numbers into the images of a replay, which has their labels and begins with `first`."""
        carried = replay.propagate([trial_of(self.faults[number], first, len(replay)) for number in numbers])
        fault = np.array(numbers)[carried.trial]
        _add_at(self.rows["images"], fault, 1)
        for code, name in enumerate(OUTCOMES):
            _add_at(self.rows[name], fault[carried.outcome == code], 1)
        before, after = replay.predicted[carried.image] == labels[carried.image], carried.predicted
        right = after == labels[carried.image]
        _add_at(self.rows["correct_lost"], fault[before & ~right], 1)
        _add_at(self.rows["correct_gained"], fault[~before & right], 1)
        self._add_layers(np.array(numbers), carried)
        for number, of_trial in zip(numbers, carried.operations, strict=True):
            stratum = int(self.strata[number])
            self._operations[stratum] = self._operations.get(stratum, 0) + of_trial

    def layer_rows(self) -> Rows:
        """`LAYERS_DTYPE` [rows]."""
        if self._layers is None:
            return np.empty(0, LAYERS_DTYPE)
        fault, layer = np.nonzero(self._layers.any(axis=2))
        rows = np.zeros(len(fault), LAYERS_DTYPE)
        rows["fault"], rows["layer"] = fault, layer
        for place, name in enumerate(LAYER_COUNTS):
            rows[name] = self._layers[fault, layer, place]
        return rows

    def operation_rows(self) -> Rows:
        """`OPERATIONS_DTYPE` [rows]."""
        strata = sorted(self._operations)
        if not strata:
            return np.empty(0, OPERATIONS_DTYPE)
        rows = operation_rows(np.stack([self._operations[stratum] for stratum in strata]))
        rows["stratum"] = np.array(strata)[rows["stratum"]]
        return rows

    def _add_layers(self, numbers: Int64Array, carried: Propagated) -> None:
        if self._layers is None:
            self._layers = np.zeros((len(self.faults), *carried.layers.shape[1:]), np.int64)
        largest = LAYER_COUNTS.index("largest_error")
        greatest = np.maximum(self._layers[numbers, :, largest], carried.layers[:, :, largest])
        self._layers[numbers] += carried.layers
        self._layers[numbers, :, largest] = greatest
        changed = self._layers[numbers, :, LAYER_COUNTS.index("images_out")] > 0
        any_layer = changed.any(axis=1)
        last = changed.shape[1] - 1 - changed[:, ::-1].argmax(axis=1)
        self.rows["first_layer"][numbers] = np.where(any_layer, changed.argmax(axis=1), -1)
        self.rows["last_layer"][numbers] = np.where(any_layer, last, -1)


def operation_rows(totals: Int64Array) -> Rows:
    """From int64 [strata, operations, counts], as in `OPERATION_COUNTS`, the rows that are not all zeros."""
    stratum, operation = np.nonzero(totals.any(axis=2))
    rows = np.zeros(len(stratum), OPERATIONS_DTYPE)
    rows["stratum"], rows["operation"] = stratum, operation
    for place, name in enumerate(OPERATION_COUNTS):
        rows[name] = totals[stratum, operation, place]
    return rows


def trial_of(fault: np.void, first: int, images: int) -> Injected:
    """A fault of `POPULATION_DTYPE` on some images, of which `first` is the first; an upset is of one of them."""
    row, col, site, bit, code, layer, group, cycle, image = fault.item()
    kind = Kind(code)
    if kind is not Kind.FLIP:
        return Injected(Fault(row, col, Site(site), bit, kind), np.arange(images))
    return Injected(Fault(row, col, Site(site), bit, kind, cycle), np.array([image - first]), layer, group)


def _blocks(loaded: LoadedSubject) -> Iterator[tuple[int, int]]:
    """Images that are taken at a time: the first, and the one after the last."""
    images = len(loaded.labels)
    size = max(1, min(_MOST_IMAGES, _BLOCK_BYTES // max(1, _replay(loaded, 0, 1).kept_bytes)))
    for first in range(0, images, size):
        yield first, min(images, first + size)


@lru_cache(maxsize=2)
def _replay(loaded: LoadedSubject, first: int, stop: int) -> Replay:
    """The run of some images without faults; a process keeps the last ones."""
    return Replay(loaded.network, loaded.images[first:stop])


def _add_at(totals: npt.NDArray[Any], places: Int64Array, number: int) -> None:
    np.add.at(totals, places, np.array(number, totals.dtype))


def _bytes(table: Rows) -> bytes:
    written = io.BytesIO()
    np.save(written, table, allow_pickle=False)
    return written.getvalue()


class Found(NamedTuple):
    """What became of the faults of a round: by `index`, by layer, and int64 [strata, operations, counts]."""

    faults: Rows
    layers: Rows
    operations: Int64Array


@dataclass(frozen=True, eq=False)
class Round:
    """Faults of a sample, ascending by their `indices` in the population, and those that are injected for them.

    Attributes:
        same_as: int64 [faults], the place in the population of the fault that is injected in its place, -1 for none.
        injected: `POPULATION_DTYPE` [injected], each once.
        place: int64 [faults], the row of `injected` that says what a fault does, -1 for faults that never act.
    """

    number: int
    indices: Int64Array
    faults: Rows
    strata: Int64Array
    rules: UInt8Array
    same_as: Int64Array
    injected: Rows
    place: Int64Array

    @classmethod
    def of(cls, number: int, indices: Int64Array, population: Population, collapse: Collapse) -> Round:
        """See what has to be injected for some faults, by exact rules."""
        faults = population.faults(indices)
        rules, representative = collapse.rules(faults)
        equivalent, injects = rules == Rule.EQUIVALENT, np.isin(rules, (Rule.SIMULATED, Rule.EQUIVALENT))
        same_as = np.full(len(faults), -1, np.int64)
        same_as[equivalent] = population.indices(representative[equivalent])
        acting = faults.copy()
        acting[equivalent] = representative[equivalent]
        place = np.full(len(faults), -1, np.int64)
        injected, place[injects] = np.unique(acting[injects], return_inverse=True)
        strata = population.stratum_of(indices)
        return cls(number, indices, faults, strata, rules, same_as, injected, place)

    def units(self, shared: Mapping[str, Any], images: int) -> list[Unit]:
        """The work that is to be done, with some arguments that all units share; the same whoever does it."""
        groups = self._groups()[0]
        units = []
        for name, part in self._parts(images):
            arguments = {"faults": self.injected[part], "strata": groups[part]}
            inputs = {what: hashlib.sha256(values.tobytes()).hexdigest() for what, values in arguments.items()}
            units.append(Unit(name, {**shared, **arguments}, inputs))
        return units

    def found(self, campaign: Campaign, images: int, strata: int, operations: int) -> Found:
        """What the units gave, put together for the faults of the sample; with numbers of all strata and operations.

        Raises:
            InputError: a file of a unit changed since it was done.
        """
        patterns = self._groups()[1]
        rows = np.zeros(len(self.injected), FAULTS_DTYPE)
        layers = [np.empty(0, LAYERS_DTYPE)]
        totals = np.zeros((strata, operations, len(OPERATION_COUNTS)), np.int64)
        for name, part in self._parts(images):
            rows[part] = _table(campaign.file(name, FAULTS))
            of_layers = _table(campaign.file(name, LAYERS))
            of_layers["fault"] += part.start
            layers.append(of_layers)
            counted = _table(campaign.file(name, OPERATIONS))
            counts = np.stack([counted[name].astype(np.int64) for name in OPERATION_COUNTS], axis=1)
            for group, operation, of_row in zip(
                counted["stratum"].tolist(), counted["operation"].tolist(), counts, strict=True
            ):
                for stratum, times in patterns[group]:
                    totals[stratum, operation] += times * of_row
        return Found(self._faults(rows, images), self._layers(np.concatenate(layers)), totals)

    def _parts(self, images: int) -> list[tuple[str, slice]]:
        """Names of the units, and which of the injected faults they have."""
        count = len(self.injected)
        upsets = bool((self.injected["image"] >= 0).any())
        most = MOST_UPSETS if upsets else max(1, MOST_FAULT_IMAGES // images)
        units = max(-(-count // most), min(count, LEAST_UNITS))
        return [
            (f"round-{self.number:02d}-{place:06d}", slice(place * count // units, (place + 1) * count // units))
            for place in range(units)
        ]

    def _groups(self) -> tuple[Int64Array, list[tuple[tuple[int, int], ...]]]:
        """Injected faults that stand for faults of the same strata, as often, are counted together by the units.

        Numbers of groups int64 [injected]; and for each group the strata, and how often each.
        """
        stands_for: list[Counter[int]] = [Counter() for _ in self.injected]
        for place, stratum in zip(self.place.tolist(), self.strata.tolist(), strict=True):
            if place >= 0:
                stands_for[place][stratum] += 1
        patterns: dict[tuple[tuple[int, int], ...], int] = {}
        numbers = [patterns.setdefault(tuple(sorted(found.items())), len(patterns)) for found in stands_for]
        return np.array(numbers, np.int64), list(patterns)

    def _faults(self, injected: Rows, images: int) -> Rows:
        rows = np.zeros(len(self.faults), FAULTS_DTYPE)
        rows["index"], rows["rule"], rows["same_as"] = self.indices, self.rules, self.same_as
        for name in WHERE:
            rows[name] = self.faults[name]
        acts = self.place >= 0
        for name in _OUTCOME_COLUMNS:
            rows[name][acts] = injected[name][self.place[acts]]
        never = np.where(self.faults["image"] >= 0, 1, images)
        rows["images"][~acts] = rows["inactive"][~acts] = never[~acts]
        rows["first_layer"][~acts] = rows["last_layer"][~acts] = -1
        return rows

    def _layers(self, injected: Rows) -> Rows:
        """Rows of the injected faults, once for each fault that they stand for."""
        injected = injected[np.argsort(injected["fault"], kind="stable")]
        fault = np.nonzero(self.place >= 0)[0]
        begin, end = (np.searchsorted(injected["fault"], self.place[fault], side) for side in ("left", "right"))
        times = end - begin
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        rows: Rows = injected[np.repeat(begin, times) + within]
        rows["fault"] = np.repeat(fault, times)
        return rows


def _table(file: UnitFile) -> Rows:
    """What a unit wrote."""
    found: Rows = np.load(io.BytesIO(file.read()), allow_pickle=False)
    return found
