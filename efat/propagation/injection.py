"""Rounds of faults that are injected: units of work for the drawn faults that need it, and what they say of all."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Campaign, Outcome, Unit, UnitFile
from efat.propagation.population import Population
from efat.propagation.request import Subject
from efat.propagation.tables import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE, OUTCOMES, Rule
from simulator import Fault, Kind, Site
from simulator.dtypes import BoolArray, Int64Array, UInt8Array
from simulator.errors import check_unchanged
from training.injection.replay import LAYER_COUNTS, OPERATION_COUNTS, Injected, Propagated, Replay

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


def fault_free(arguments: Mapping[str, Any]) -> Outcome:
    """Run the network without faults.

    Args:
        arguments: `subject`, a `Subject`, and `identity`, what it was when the campaign was begun.

    Returns:
        `images`; `correct`, those of them that are classified correctly; `layers`, objects with the fields of
        `LayerShape`; `operations`, objects with those of `Operation`. In the file `seen.npz` for layer n under
        `layer_n` which activations occur: bool [groups, K, 2**act_bits], packed along the last axis.

    Raises:
        InputError: network or data have changed, or the network cannot be followed.
    """
    subject = _subject(arguments)
    labels = subject.load().labels.numpy()
    correct = 0
    seen: list[BoolArray] = []
    for first, stop in _blocks(subject):
        replay = _replay(subject, first, stop)
        correct += int((replay.predicted == labels[first:stop]).sum())
        found = [replay.seen(layer) for layer in range(len(replay.layers))]
        seen = found if not seen else [one | other for one, other in zip(seen, found, strict=True)]
    layers = [
        {"name": gemm.layer.name, "groups": gemm.groups, "m": gemm.m, "k": gemm.k, "n": gemm.n}
        for gemm in (kept.gemm for kept in replay.layers)
    ]
    operations = [
        {"name": operation.name, "kind": operation.kind, "layer": operation.layer} for operation in replay.operations
    ]
    values = {"images": len(labels), "correct": correct, "layers": layers, "operations": operations}
    packed = io.BytesIO()
    marks: dict[str, Any] = {f"layer_{number}": np.packbits(of_layer, axis=-1) for number, of_layer in enumerate(seen)}
    np.savez(packed, **marks)
    return Outcome(values, {SEEN: packed.getvalue()})


def inject(arguments: Mapping[str, Any]) -> Outcome:
    """Inject faults, one at a time.

    Args:
        arguments: `subject` and `identity` as for `fault_free`; `faults`, a structured array [faults] with the fields
            row, col, site, bit, kind, layer, group, cycle and image of `FAULTS_DTYPE`; and `strata`, int64 [faults],
            the stratum of each.

    Returns:
        `faults`, how many there were. The files have the tables of `efat.propagation.tables`, with rows of faults in
        the order given, and -1 for `index` and `same_as`.

    Raises:
        InputError: network or data have changed.
    """
    subject = _subject(arguments)
    found = _Tally(arguments["faults"], arguments["strata"])
    labels = subject.load().labels.numpy()
    for first, stop in _blocks(subject):
        here = found.acting_on(first, stop)
        if not len(here):
            continue
        replay = _replay(subject, first, stop)
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

    def __init__(self, faults: npt.NDArray[np.void], strata: Int64Array) -> None:
        self.faults = faults
        self.strata = strata
        self.rows = np.zeros(len(faults), FAULTS_DTYPE)
        for name in ("row", "col", "site", "bit", "kind", "layer", "group", "cycle", "image"):
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
        """Inject some of the faults into the images that a replay is of.

        Args:
            replay: of some images.
            numbers: of the faults.
            first: the first of the images among all.
            labels: int64 [images of the replay].
        """
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

    def layer_rows(self) -> npt.NDArray[np.void]:
        """`LAYERS_DTYPE` [rows]."""
        if self._layers is None:
            return np.empty(0, LAYERS_DTYPE)
        fault, layer = np.nonzero(self._layers.any(axis=2))
        rows = np.zeros(len(fault), LAYERS_DTYPE)
        rows["fault"], rows["layer"] = fault, layer
        for place, name in enumerate(LAYER_COUNTS):
            rows[name] = self._layers[fault, layer, place]
        return rows

    def operation_rows(self) -> npt.NDArray[np.void]:
        """`OPERATIONS_DTYPE` [rows]."""
        parts = [np.empty(0, OPERATIONS_DTYPE)]
        for stratum, totals in sorted(self._operations.items()):
            operation = np.nonzero(totals.any(axis=1))[0]
            rows = np.zeros(len(operation), OPERATIONS_DTYPE)
            rows["stratum"], rows["operation"] = stratum, operation
            for place, name in enumerate(OPERATION_COUNTS):
                rows[name] = totals[operation, place]
            parts.append(rows)
        return np.concatenate(parts)

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


def trial_of(fault: npt.NDArray[np.void], first: int, images: int) -> Injected:
    """A fault on some of the images.

    Args:
        fault: of the fields of `inject`.
        first: the first of the images among all.
        images: how many they are; an upset is of one of them.
    """
    kind = Kind(int(fault["kind"]))
    transient = kind is Kind.FLIP
    return Injected(
        Fault(
            int(fault["row"]),
            int(fault["col"]),
            Site(int(fault["site"])),
            int(fault["bit"]),
            kind,
            int(fault["cycle"]) if transient else None,
        ),
        np.array([int(fault["image"]) - first]) if transient else np.arange(images),
        int(fault["layer"]) if transient else None,
        int(fault["group"]) if transient else None,
    )


def _subject(arguments: Mapping[str, Any]) -> Subject:
    subject: Subject = arguments["subject"]
    check_unchanged(subject.identity(), arguments["identity"])
    return subject


def _blocks(subject: Subject) -> list[tuple[int, int]]:
    """Images that are taken at a time: the first, and the one after the last."""
    images = len(subject.load().labels)
    each = _replay(subject, 0, 1).kept_bytes
    size = max(1, min(_MOST_IMAGES, _BLOCK_BYTES // max(1, each)))
    return [(first, min(images, first + size)) for first in range(0, images, size)]


def _replay(subject: Subject, first: int, stop: int) -> Replay:
    """The run of some images without faults; a process keeps the last ones."""
    return _kept_replay(subject, tuple(sorted(subject.identity().items())), first, stop)


@lru_cache(maxsize=2)
def _kept_replay(subject: Subject, _identity: object, first: int, stop: int) -> Replay:
    loaded = subject.load()
    return Replay(loaded.network, loaded.images[first:stop])


def _add_at(totals: npt.NDArray[Any], places: Int64Array, number: int) -> None:
    np.add.at(totals, places, np.array(number, totals.dtype))


def _bytes(table: npt.NDArray[np.void]) -> bytes:
    written = io.BytesIO()
    np.save(written, table, allow_pickle=False)
    return written.getvalue()


MOST_FAULT_IMAGES = 20_000
"""Of a unit, faults times images: some seconds."""
MOST_UPSETS = 2_000
"""Of a unit: an upset is of one image, but each needs its own way through the layers."""
LEAST_UNITS = 8
"""A round is cut into as many if it has as many faults, so that there is something to do for several workers."""

WHERE = ("row", "col", "site", "bit", "kind", "layer", "group", "cycle", "image")
"""Columns that say which fault it is."""

_OUTCOME_COLUMNS = ("images", *OUTCOMES, "correct_lost", "correct_gained", "first_layer", "last_layer")
COUNTED = tuple(name for name in OPERATIONS_DTYPE.names or () if name not in ("stratum", "operation"))
"""Columns of operations that are sums."""

Table = npt.NDArray[np.void]


class Found(NamedTuple):
    """What became of the faults of a round.

    Attributes:
        faults: `FAULTS_DTYPE` [faults], by `index`.
        layers: `LAYERS_DTYPE` [rows]; `fault` is a row of `faults`.
        operations: int64 [strata, operations, counts], counts as in `OPERATIONS_DTYPE`.
    """

    faults: Table
    layers: Table
    operations: Int64Array


@dataclass(frozen=True, eq=False)
class Round:
    """Faults of a sample, and those that are injected for them.

    Attributes:
        number: of the round, from 0.
        indices: int64 [faults], places in the population, ascending.
        faults: `POPULATION_DTYPE` [faults].
        strata: int64 [faults].
        rules: uint8 [faults], each a `Rule`.
        same_as: int64 [faults], the place in the population of the fault that is injected in its place, -1 for none.
        injected: `POPULATION_DTYPE` [injected], each once.
        place: int64 [faults], the row of `injected` that says what a fault does, -1 for faults that never act.
    """

    number: int
    indices: Int64Array
    faults: Table
    strata: Int64Array
    rules: UInt8Array
    same_as: Int64Array
    injected: Table
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
        """The work that is to be done, the same whoever does it.

        Args:
            shared: arguments of all units.
            images: of the network; an upset is of one of them.
        """
        groups = self._groups()[0]
        units = []
        for name, part in self._parts(images):
            arguments = {"faults": self.injected[part], "strata": groups[part]}
            inputs = {what: hashlib.sha256(values.tobytes()).hexdigest() for what, values in arguments.items()}
            units.append(Unit(name, {**shared, **arguments}, inputs))
        return units

    def found(self, campaign: Campaign, images: int, strata: int, operations: int) -> Found:
        """What the units gave, put together for the faults of the sample.

        Args:
            campaign: has the units.
            images: as for `units`.
            strata: how many there are.
            operations: of the network.

        Raises:
            InputError: a file of a unit changed since it was done.
        """
        patterns = self._groups()[1]
        rows = np.zeros(len(self.injected), FAULTS_DTYPE)
        layers = [np.empty(0, LAYERS_DTYPE)]
        totals = np.zeros((strata, operations, len(COUNTED)), np.int64)
        for name, part in self._parts(images):
            rows[part] = _table(campaign.file(name, FAULTS))
            of_layers = _table(campaign.file(name, LAYERS))
            of_layers["fault"] += part.start
            layers.append(of_layers)
            counted = _table(campaign.file(name, OPERATIONS))
            counts = np.stack([counted[name].astype(np.int64) for name in COUNTED], axis=1)
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

        Returns:
            Numbers of groups int64 [injected]; and for each group the strata, and how often each.
        """
        stands_for: list[Counter[int]] = [Counter() for _ in self.injected]
        for place, stratum in zip(self.place.tolist(), self.strata.tolist(), strict=True):
            if place >= 0:
                stands_for[place][stratum] += 1
        patterns: dict[tuple[tuple[int, int], ...], int] = {}
        numbers = [patterns.setdefault(tuple(sorted(found.items())), len(patterns)) for found in stands_for]
        return np.array(numbers, np.int64), list(patterns)

    def _faults(self, injected: Table, images: int) -> Table:
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

    def _layers(self, injected: Table) -> Table:
        """Rows of the injected faults, once for each fault that they stand for."""
        injected = injected[np.argsort(injected["fault"], kind="stable")]
        fault = np.nonzero(self.place >= 0)[0]
        begin, end = (np.searchsorted(injected["fault"], self.place[fault], side) for side in ("left", "right"))
        times = end - begin
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        rows: Table = injected[np.repeat(begin, times) + within]
        rows["fault"] = np.repeat(fault, times)
        return rows


def _table(file: UnitFile) -> Table:
    """What a unit wrote."""
    found: Table = np.load(io.BytesIO(file.read()), allow_pickle=False)
    return found
