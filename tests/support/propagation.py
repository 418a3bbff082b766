"""Fault propagation of tests: tables, runs, campaigns, and cases for the rules of collapsing."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from efat.campaigns.workers import in_line, processes
from efat.cli import main
from efat.propagation.campaign import run_propagation
from efat.propagation.collapsing.collapse import Collapse
from efat.propagation.population import LayerShape, LayerUse, Population
from efat.propagation.request import LoadedSubject, PropagationRequest, Stratum, Subject
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
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, simulate_gemm
from simulator.dtypes import BoolArray, Int64Array
from tests.support.resilience import INPUTS, OUT, small_setup
from tests.support.strategies import configs
from training.emulation.gemm import faulty_gemm
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
        "array": CONFIG.record,
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
        "array": CONFIG.record,
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


ALL_STUCK = PropagationRequest(
    sites=("WEIGHT", "PSUM"),
    kinds=("STUCK_AT_0",),
    bits={"PSUM": (0, 1, 2, 7)},
    margin=0.01,
    confidence=0.9,
    seed=12,
)


def asked(found: Propagation) -> Propagation:
    """The same with everything that a request has."""
    return replace(found, request=ALL_STUCK)


def campaign(seed: int, least: int = 5) -> Propagation:
    """A campaign of stuck values that tried some faults, and one or more of them changed the class of an image."""
    random = np.random.default_rng(seed)
    while True:
        found = _without_flips(fields_of(random))
        changed = found.faults["top1"].astype(int) + found.faults["top5"]
        if len(found.faults) >= least and changed.any():
            return found


def _without_flips(fields: dict[str, Any]) -> Propagation:
    """What remains of the fields without the strata of upsets."""

    def kept(table: str, chosen: BoolArray, column: str) -> None:
        """Rows of a table whose column is a row of another, of which some are kept."""
        rows = fields[table]
        rows = rows[chosen[rows[column]]]
        rows[column] = (np.cumsum(chosen) - 1)[rows[column]]
        fields[table] = rows

    stays = fields["strata"]["kind"] != Kind.FLIP
    if not stays.any():
        return asked(Propagation(**fields_of(np.random.default_rng(0))))
    kept("operations", stays, "stratum")
    of_fault = fields["faults"]["kind"] != Kind.FLIP
    kept("layers", of_fault, "fault")
    fields["faults"], fields["strata"] = fields["faults"][of_fault], fields["strata"][stays]
    size = int(fields["strata"]["population"].sum())
    fields["faults"]["index"] = np.arange(len(fields["faults"]))
    fields["faults"]["same_as"] = -1
    return asked(Propagation(**{**fields, "population": PopulationCounts(size, size, 0, 0, 0)}))


def parsed(line: str) -> dict[str, Any]:
    """What a command of a report would be run with."""
    program, name, *arguments = shlex.split(line.replace("\\\n", " "))
    assert program == "efat"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.make_context(name, arguments).params


STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


@dataclass(frozen=True)
class Layer:
    """Operands of a layer on some images: x int64 [images, groups, m, K], weights int8 [groups, N, K]."""

    x: Int64Array
    weights: npt.NDArray[np.int8]

    def use(self, config: ArrayConfig) -> LayerUse:
        """What is told of it."""
        _, groups, m, k = self.x.shape
        patterns = self.x & ((1 << config.act_bits) - 1)
        seen = np.zeros((groups, k, 1 << config.act_bits), np.bool_)
        for group in range(groups):
            for place in range(k):
                seen[group, place, patterns[:, group, :, place].reshape(-1)] = True
        return LayerUse("layer", m, self.weights, seen)


@dataclass(frozen=True)
class Case:
    """An array, what runs on it, and faults."""

    config: ArrayConfig
    layers: tuple[Layer, ...]
    strata: tuple[Stratum, ...]

    def __repr__(self) -> str:
        layers = "\n".join(f"x={layer.x.tolist()}\nw={layer.weights.tolist()}" for layer in self.layers)
        locations = sorted({bit for site, bit, _ in self.strata if site is Site.MULTIPLIER})
        return f"{self.config}\n{layers}\nlocations={locations}"

    def collapse(self) -> Collapse:
        """What says the rules."""
        return Collapse(self.config, self.uses(), self.strata)

    def uses(self) -> list[LayerUse]:
        """What is told of the layers."""
        return [layer.use(self.config) for layer in self.layers]

    def population(self, kinds: tuple[Kind, ...] = tuple(Kind)) -> Population:
        """All faults of some kinds."""
        strata = [stratum for stratum in self.strata if stratum[2] in kinds]
        return Population(self.config, [use.shape for use in self.uses()], strata, len(self.layers[0].x))


def some_numbers(random: np.random.Generator, shape: tuple[int, ...], limits: tuple[int, int]) -> Int64Array:
    """Integers within limits, among which rules find something: few different ones, zeros, even ones, of one sign."""
    low, high = limits
    style = random.integers(7)
    values = random.integers(low, high + 1, shape)
    if style == 0:
        return np.where(random.random(shape) < 0.3, values, 0)
    if style == 1:
        return random.choice(random.integers(low, high + 1, 2), shape)
    if style == 2:
        return np.maximum(values, 0)
    if style == 3:
        return values & ~int(random.integers(0, high + 1))
    if style == 4:
        # The same for each row of the array, or rather for the last index.
        return np.broadcast_to(
            random.integers(low, high + 1, shape[-1]) * random.integers(0, 2, shape[-1]), shape
        ).copy()
    if style == 5:
        return np.clip(values, -1, 1)
    return values


@st.composite
def cases(draw: st.DrawFn, *, one_fold: bool = False, locations: int = 6) -> Case:
    """One to three layers on an array of at most 6 x 6 PEs, and all strata of some sites, but few of a multiplier."""
    config = draw(configs())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    config = replace(config, rows=int(random.integers(1, 7)), cols=int(random.integers(1, 7)))
    images, layers = int(random.integers(1, 4)), []
    for _ in range(random.integers(1, 4)):
        groups, m, n = (int(random.integers(1, most)) for most in (3, 4, 9))
        k = int(random.integers(1, 1 + (config.rows if one_fold else 13)))
        layers.append(
            Layer(
                some_numbers(random, (images, groups, m, k), config.act_range),
                some_numbers(random, (groups, n, k), config.weight_range).astype(np.int8),
            )
        )
    strata = []
    left_out = random.permutation([*Site])[: random.choice([0, 0, 2, 4])].tolist()
    within_pe = Site(random.choice([Site.WEIGHT, Site.PRODUCT]))
    for site in sorted({*Site} - {*left_out} | {within_pe}):
        bits = np.arange(site.bits(config))
        if site is Site.MULTIPLIER:
            bits = np.sort(random.permutation(bits)[:locations])
        strata += [(site, bit, kind) for bit in bits.tolist() for kind in Kind]
    return Case(config, tuple(layers), tuple(strata))


def fault_of(row: np.void) -> Fault:
    """A row of a population's table as a fault of one array."""
    kind = Kind(int(row["kind"]))
    cycle = int(row["cycle"]) if kind is Kind.FLIP else None
    return Fault(int(row["row"]), int(row["col"]), Site(int(row["site"])), int(row["bit"]), kind, cycle)


def outputs(case: Case, row: np.void | None, layers: tuple[Layer, ...]) -> list[Int64Array]:
    """What both engines make of all GEMMs that a fault can act in, or of all."""
    found = []
    faults = FaultMap.from_faults(case.config, [] if row is None else [fault_of(row)])
    for number, layer in enumerate(layers):
        groups, k = layer.x.shape[1], layer.x.shape[3]
        for group in range(groups):
            x, w = layer.x[:, group].reshape(-1, k), layer.weights[group].T.astype(np.int64)
            if row is not None and row["kind"] == Kind.FLIP:
                if (row["layer"], row["group"]) != (number, group):
                    continue
                x = layer.x[row["image"], group]
            simulated = simulate_gemm(x, w, case.config, faults).outputs
            emulated = faulty_gemm(torch.from_numpy(x), torch.from_numpy(w), case.config, faults).numpy()
            np.testing.assert_array_equal(emulated, simulated)
            found.append(simulated.astype(np.int64))
    return found


def changes(case: Case, row: np.void, clean: list[Int64Array]) -> bool:
    """Whether a fault changes any output, in the images that it is there for."""
    if row["kind"] == Kind.FLIP:
        before = sum(layer.x.shape[1] for layer in case.layers[: row["layer"]])
        m = case.layers[row["layer"]].x.shape[2]
        clean = [clean[before + row["group"]][m * row["image"] : m * (row["image"] + 1)]]
    return not same_outputs(outputs(case, row, case.layers), clean)


def with_other_inputs(case: Case, random: np.random.Generator) -> tuple[Layer, ...]:
    """The layers with inputs that faults further up may have made."""
    low, high = case.config.act_range
    return tuple(Layer(random.integers(low, high + 1, layer.x.shape), layer.weights) for layer in case.layers)


def pick(random: np.random.Generator, table: npt.NDArray[np.void], rule: npt.NDArray[np.uint8]) -> Int64Array:
    """The place of one fault for each site, rule, and being a FLIP."""
    keys = np.stack([table["site"], rule, table["kind"] == Kind.FLIP])
    _, group = np.unique(keys, axis=1, return_inverse=True)
    order = random.permutation(len(table))
    _, first = np.unique(group.reshape(-1)[order], return_index=True)
    chosen: Int64Array = random.permutation(order[first])
    return chosen


def same_outputs(one: list[Int64Array], other: list[Int64Array]) -> bool:
    """Whether outputs are equal; there are some."""
    return len(one) == len(other) > 0 and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


ARRAY = ArrayConfig(5, 4, 5, 6, acc_bits=16)
"""With narrow operands, so that all products of all faults are soon known."""

SITES = ("WEIGHT", "PSUM")


def small_subject(folder: Path, **changes: Any) -> Subject:
    """The small network of `resilience_runs` on a small array, its weights and its data in files."""
    small_setup(folder)
    inputs = folder / INPUTS
    given: dict[str, Any] = {"weights": inputs / "weights.safetensors", "data": inputs, "images": 6}
    return Subject(**{"network": "tests.support.resilience:small_network", **given, **changes})


class Asked(NamedTuple):
    """What a campaign is of."""

    subject: Subject
    array: ArrayConfig
    request: PropagationRequest

    def load(self) -> LoadedSubject:
        """The network and its images."""
        return self.subject.load(self.array)


def small_request(folder: Path, **changes: Any) -> Asked:
    """Some of the faults of two kinds of nets."""
    subject, array = changes.pop("subject", None), changes.pop("array", ARRAY)
    given: dict[str, Any] = {"sites": SITES, "seed": 3, **changes}
    if not {"samples", "exhaustive", "margin"} & set(given):
        given["samples"] = 150
    return Asked(small_subject(folder) if subject is None else subject, array, PropagationRequest(**given))


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    run_propagation(Path(sys.argv[1]) / OUT, *small_request(Path(sys.argv[1]), samples=600), executor)
