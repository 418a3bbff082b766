"""The units of work of a propagation campaign: the run without faults, and faults that are injected."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Outcome
from efat.propagation.columns import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE
from efat.propagation.subject import Subject
from simulator import Fault, Kind, Site
from simulator.errors import check_unchanged
from training.injection.replay import LAYER_COUNTS, OPERATION_COUNTS, OUTCOMES, Injected, Propagated, Replay

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
    seen: list[npt.NDArray[np.bool_]] = []
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
        `faults`, how many there were. The files have the tables of `efat.propagation.columns`, with rows of faults in
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

    def __init__(self, faults: npt.NDArray[np.void], strata: npt.NDArray[np.int64]) -> None:
        self.faults = faults
        self.strata = strata
        self.rows = np.zeros(len(faults), FAULTS_DTYPE)
        for name in ("row", "col", "site", "bit", "kind", "layer", "group", "cycle", "image"):
            self.rows[name] = faults[name]
        for name in ("index", "same_as", "first_layer", "last_layer"):
            self.rows[name] = -1
        self._layers: npt.NDArray[np.int64] | None = None
        self._operations: dict[int, npt.NDArray[np.int64]] = {}

    def acting_on(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Faults that are there for any of the images `first` to `stop`; upsets in the order of their layers."""
        image = self.faults["image"]
        here = np.nonzero((image < 0) | ((image >= first) & (image < stop)))[0]
        found: npt.NDArray[np.int64] = here[np.argsort(self.faults["layer"][here], kind="stable")]
        return found

    def add(self, replay: Replay, numbers: list[int], first: int, labels: npt.NDArray[np.int64]) -> None:
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

    def _add_layers(self, numbers: npt.NDArray[np.int64], carried: Propagated) -> None:
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


def _add_at(totals: npt.NDArray[Any], places: npt.NDArray[np.int64], number: int) -> None:
    np.add.at(totals, places, np.array(number, totals.dtype))


def _bytes(table: npt.NDArray[np.void]) -> bytes:
    written = io.BytesIO()
    np.save(written, table, allow_pickle=False)
    return written.getvalue()
