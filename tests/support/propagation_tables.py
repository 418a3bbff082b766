"""Random outcomes of propagation campaigns whose numbers fit each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from efat.propagation.population import LayerShape
from efat.propagation.request import PropagationRequest, Subject
from efat.propagation.summary import Propagation
from efat.propagation.tables import (
    FAULTS_DTYPE,
    LAYERS_DTYPE,
    OPERATIONS_DTYPE,
    STRATA_DTYPE,
    PopulationCounts,
    Rule,
)
from efat.records import digest_of
from simulator import ArrayConfig, Kind, Site
from training.injection.network_graph import GraphOperation
from training.injection.replay import OUTCOMES, PATTERNS

Table = npt.NDArray[np.void]

CONFIG = ArrayConfig(4, 3, weight_bits=3, act_bits=4, acc_bits=12)
SUBJECT = Subject("digits-cnn", images=4, identity={"network": "d" * 64})
REQUEST = PropagationRequest(samples=3, seed=1)


def small_propagation(**changes: Any) -> Propagation:
    """Two stuck weights and an upset of a partial sum in a network of two layers and four images, worked by hand.

    One of the weights is never used. The other one changes three images, one of which is then wrong. The upset changes
    the last image, which is wrong already. The faults of the third stratum were not tried.
    """
    return Propagation(**{**_small_fields(), **changes})


def table_of(dtype: np.dtype[Any], *rows: tuple[float, ...]) -> Table:
    """A table of some rows."""
    return np.array(list(rows), dtype)


def _small_fields() -> dict[str, Any]:
    return {
        "faults": table_of(
            FAULTS_DTYPE,
            (3, 1, 2, Site.WEIGHT, 2, Kind.STUCK_AT_1, -1, -1, -1, -1, 0, -1, 4, 1, 1, 1, 1, 0, 1, 0, 0, 1),
            (7, 2, 0, Site.WEIGHT, 2, Kind.STUCK_AT_1, -1, -1, -1, -1, 1, -1, 4, 4, 0, 0, 0, 0, 0, 0, -1, -1),
            (500, 0, 1, Site.PSUM, 5, Kind.FLIP, 1, 0, 20, 3, 0, -1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1),
        ),
        "layers": table_of(
            LAYERS_DTYPE,
            (0, 0, 0, 3, 3, 6, 1, 2, 0, 0, 0, 4, 12.0),
            (0, 1, 2, 1, 2, 4, 1, 0, 0, 0, 1, 9, 20.0),
            (2, 1, 0, 1, 1, 2, 0, 0, 1, 0, 0, 32, 64.0),
        ),
        "operations": table_of(
            OPERATIONS_DTYPE,
            (0, 1, 0, 0, 3, 0, 6, 0, 0),
            (0, 2, 3, 1, 2, 6, 4, 0, 0),
            (0, 3, 2, 0, 2, 4, 3, 1, 0),
            (0, 4, 2, 1, 2, 3, 4, 0, 0),
            (1, 4, 0, 0, 1, 0, 2, 0, 0),
        ),
        "strata": table_of(
            STRATA_DTYPE,
            (Site.WEIGHT, 2, Kind.STUCK_AT_1, 12, 2),
            (Site.PSUM, 5, Kind.FLIP, 9600, 1),
            (Site.ACCUMULATOR, 0, Kind.STUCK_AT_0, 3, 0),
        ),
        "layer_shapes": [LayerShape("conv", 1, 4, 3, 2), LayerShape("fc", 1, 1, 8, 3)],
        "graph": [
            GraphOperation("conv", "quantise", -1),
            GraphOperation("conv", "multiply", 0),
            GraphOperation("relu", "relu", 0),
            GraphOperation("fc", "quantise", 0),
            GraphOperation("fc", "multiply", 1),
        ],
        "images": 4,
        "fault_free_correct": 3,
        "array": CONFIG.as_dict(),
        "subject": SUBJECT,
        "population": PopulationCounts(9615, 9000, 600, 10, 5),
        "request": REQUEST,
        "versions": {"efat": "0.1.0"},
    }


@st.composite
def propagations(draw: st.DrawFn) -> Propagation:
    """All kinds of faults, or some, or none that were sampled; with images that each, some or no fault changes."""
    return Propagation(**fields_of(np.random.default_rng(draw(st.integers(0, 2**32 - 1)))))


def fields_of(random: np.random.Generator) -> dict[str, Any]:
    """The fields of what can be."""
    images = int(random.choice([1, 2, 40, 1000]))
    correct = int(random.integers(0, images + 1))
    shapes = [
        LayerShape(f"layer {place}", *(int(size) for size in random.integers(1, (3, 6, 9, 5))))
        for place in range(random.integers(1, 4))
    ]
    graph = []
    for place, shape in enumerate(shapes):
        graph += [
            GraphOperation(shape.name, "quantise", place - 1),
            GraphOperation(shape.name, "multiply", place),
            GraphOperation(f"after_{place}", str(random.choice(["relu", "pooling", "other"])), place),
        ]
    strata = _strata(random, images)
    faults, stratum = _faults(random, strata, shapes, images, correct)
    strata["sampled"] = np.bincount(stratum, minlength=len(strata))
    size = int(strata["population"].sum())
    counted = random.multinomial(size, [0.4, 0.3, 0.2, 0.1]).tolist()
    return {
        "faults": faults,
        "layers": _layers(random, faults, shapes),
        "operations": _operations(random, graph, np.bincount(stratum, faults["images"], len(strata)).astype(np.int64)),
        "strata": strata,
        "layer_shapes": shapes,
        "graph": graph,
        "images": images,
        "fault_free_correct": correct,
        "array": CONFIG.as_dict(),
        "subject": SUBJECT,
        "population": PopulationCounts(size, *counted),
        "request": REQUEST,
        "versions": {"efat": "0.1.0"},
    }


def _strata(random: np.random.Generator, images: int) -> Table:
    """Some strata, in canonical order, of as many faults as a network of few cycles would have."""
    every = [(site, bit, kind) for site in Site for bit in range(min(site.bits(CONFIG), 6)) for kind in Kind]
    chosen = np.sort(random.choice(len(every), random.integers(1, 25), replace=False))
    strata = np.zeros(len(chosen), STRATA_DTYPE)
    for stratum, number in zip(strata, chosen, strict=True):
        site, bit, kind = every[number]
        positions = CONFIG.cols if site == Site.ACCUMULATOR else CONFIG.pe_count
        stratum["site"], stratum["bit"], stratum["kind"] = site, bit, kind
        stratum["population"] = positions * (50 * images if kind == Kind.FLIP else 1)
    return strata


def _faults(
    random: np.random.Generator, strata: Table, shapes: list[LayerShape], images: int, correct: int
) -> tuple[Table, npt.NDArray[np.int64]]:
    """Faults at random, and the stratum of each."""
    size = int(strata["population"].sum())
    index = np.sort(random.choice(size, min(size, int(random.choice([0, 1, 5, 60]))), replace=False))
    stratum = np.searchsorted(np.cumsum(strata["population"]), index, side="right")
    faults = np.zeros(len(index), FAULTS_DTYPE)
    faults["index"] = index
    for name in ("site", "bit", "kind"):
        faults[name] = strata[name][stratum]
    for name in ("layer", "group", "cycle", "image", "same_as", "first_layer", "last_layer"):
        faults[name] = -1
    mildness = random.dirichlet([1, 0.5, 0.5, 0.3, 0.2])
    for fault in faults:
        fault["row"] = 0 if fault["site"] == Site.ACCUMULATOR else random.integers(CONFIG.rows)
        fault["col"] = random.integers(CONFIG.cols)
        fault["images"] = images
        if fault["kind"] == Kind.FLIP:
            fault["layer"] = random.integers(len(shapes))
            fault["group"] = random.integers(shapes[fault["layer"]].groups)
            fault["cycle"], fault["image"], fault["images"] = random.integers(50), random.integers(images), 1
        fault["rule"] = random.choice(len(Rule), p=[0.7, 0.1, 0.1, 0.1])
        acts = random.random() < 0.7 and fault["rule"] in (Rule.SIMULATED, Rule.EQUIVALENT)
        counts = random.multinomial(fault["images"], mildness) if acts else [fault["images"], 0, 0, 0, 0]
        for name, count in zip(OUTCOMES, counts, strict=True):
            fault[name] = count
        changed = int(fault["top1"]) + int(fault["top5"])
        fault["correct_lost"] = random.integers(min(correct, changed) + 1)
        fault["correct_gained"] = random.integers(min(images - correct, changed - int(fault["correct_lost"])) + 1)
        if fault["rule"] == Rule.EQUIVALENT and size > 1 and random.random() < 0.5:
            fault["same_as"] = (fault["index"] + random.integers(1, size)) % size
        if fault["inactive"] < fault["images"]:
            fault["first_layer"] = random.integers(max(0, fault["layer"]), len(shapes))
            fault["last_layer"] = random.integers(fault["first_layer"], len(shapes))
    return faults, stratum


def _layers(random: np.random.Generator, faults: Table, shapes: list[LayerShape]) -> Table:
    rows = []
    for number, fault in enumerate(faults):
        active = int(fault["images"] - fault["inactive"])
        for place, shape in enumerate(shapes):
            reached = active and fault["first_layer"] <= place <= fault["last_layer"]
            ends = place in (fault["first_layer"], fault["last_layer"])
            if not reached or (not ends and random.random() < 0.3):
                continue
            out = int(random.integers(ends, active + 1))
            there = int(random.integers(out, active + 1))
            acted = int(random.integers(active + 1))
            changed = out and int(random.integers(out, out * shape.groups * shape.n * shape.m + 1))
            largest = int(random.integers(1, 1 << CONFIG.acc_bits)) if out else 0
            total = 0.0 if not out else random.integers(max(largest, changed), largest * changed + 1)
            patterns = random.multinomial(out, np.full(len(PATTERNS), 1 / len(PATTERNS)))
            if there + acted:
                rows.append((number, place, there, acted, out, changed, *patterns, largest, total))
    return np.array(rows, LAYERS_DTYPE)


def _operations(random: np.random.Generator, graph: list[GraphOperation], pairs: npt.NDArray[np.int64]) -> Table:
    """`pairs`: of a fault and an image, in each stratum."""
    rows = []
    for stratum, most in enumerate(pairs):
        for place, operation in enumerate(graph):
            there = int(random.integers(most + 1))
            masked = int(random.integers(there + 1))
            acted = int(random.integers(masked + most - there + 1)) if operation.kind == "multiply" else 0
            out = there - masked + acted
            left = out and int(random.integers(out, 20 * out))
            elements = there and max(there, left) + int(random.integers(50))
            if operation.kind == "quantise":
                rounded = int(random.integers(elements - left + 1))
                stopped = (rounded, elements - left - rounded)
            else:
                stopped = (0, 0)
            rows.append((stratum, place, there, masked, out, elements, left, *stopped))
    return np.array(rows, OPERATIONS_DTYPE)


def changed(table: str, place: int, /, **values: float) -> npt.NDArray[np.void]:
    """A table of `small_propagation()` with other values in one row."""
    found: npt.NDArray[np.void] = getattr(small_propagation(), table).copy()
    for name, value in values.items():
        found[name][place] = value
    return found


def same(one: Propagation, other: Propagation) -> bool:
    """Whether two say exactly the same."""
    names = ("faults", "layers", "operations", "strata", "images", "fault_free_correct", "array", "versions")
    alike = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    records = ("subject", "population", "request", "layer_shapes", "graph")
    return alike and all(digest_of(getattr(one, name)) == digest_of(getattr(other, name)) for name in records)
