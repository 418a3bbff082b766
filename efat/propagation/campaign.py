"""How faults travel through a network: a campaign (`efat.campaigns.campaign`) that injects a sample of them, in rounds.

Which faults are injected is decided in the process that drives it, and whether there are enough of them only between
rounds: so results depend neither on the number of workers nor on where it was interrupted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Campaign, Executor, Notes, Progress, Unit, warned
from efat.propagation.collapsing.collapse import Collapse, LayerUse
from efat.propagation.columns import OPERATIONS_DTYPE, STRATA_DTYPE, LayerShape, Operation, Rule
from efat.propagation.injection import COUNTED, Found, Round
from efat.propagation.population import Population
from efat.propagation.request import Request
from efat.propagation.rounds import draw_rounds
from efat.propagation.summary import summary
from efat.propagation.tables import FILE_NAME, Propagation, joined, read_propagation, same, write_propagation
from efat.propagation.units import SEEN, fault_free, inject
from efat.records import typed
from simulator import ArrayConfig
from simulator.errors import InputError
from simulator.files import replaced
from training.injection.replay import Replay

KIND = "propagation"
FAULT_FREE = "fault-free"
"""Name of the unit that is no round's."""

SUMMARY = "summary.json"
"""What the folder has beside the campaign's files and the tables."""

_PACKAGES = ("efat", "torch", "numpy", "numba")


class _Network(NamedTuple):
    """What the campaign has to know of the network."""

    shapes: list[LayerShape]
    graph: list[Operation]
    weights: list[npt.NDArray[np.int8]]


def run_propagation(
    folder: Path,
    request: Request,
    executor: Executor,
    progress: Progress | None = None,
    estimated: Callable[[Mapping[str, Any]], None] | None = None,
    notes: Notes = warned,
) -> Propagation:
    """Inject what is not injected yet, and write the tables and their summary.

    Args:
        folder: of the campaign; made if it is not there.
        request: which faults there are, and how many of them are tried.
        executor: where; results do not depend on it, bit for bit.
        progress: called at the beginning and after each unit with those that are done and those of all rounds so far.
        estimated: called after each round with the summary of what was found so far.
        notes: told of what is in the folder and does not fit; it is done again.

    Returns:
        What is in the folder's tables.

    Raises:
        FileNotFoundError: as `Subject.load`.
        InputError: network and data do not fit, the network cannot be followed, there are not so many faults, the
            folder is another campaign's, or something in it changes meanwhile.
    """
    request = replace(request, subject=request.subject.located())
    network = _network(request)
    images = len(request.subject.load().labels)
    population = Population(request.subject.config, network.shapes, request.strata, images)
    rounds = draw_rounds(population, request)
    campaign = Campaign(folder, KIND, request.inputs(), notes)
    shared = {"subject": request.subject, "identity": request.subject.identity()}
    campaign.run([Unit(FAULT_FREE, shared)], fault_free, executor, progress)
    done = 1
    collapse = Collapse(request.subject.config, _uses(campaign, network, request.subject.config), request.strata)
    tables = _Tables(campaign, request, network, population, collapse)
    found: list[Found] = []
    for number, indices in enumerate(rounds):
        drawn = Round.of(number, indices, population, collapse)
        units = drawn.units(shared, images)
        campaign.run(units, inject, executor, _after(progress, done, done + len(units)))
        done += len(units)
        found.append(drawn.found(campaign, images, len(population.sizes), len(network.graph)))
        propagation = tables.propagation(found)
        of_all = summary(propagation, request.confidence)
        if estimated is not None:
            estimated(of_all)
        if request.margin is not None and _error(of_all) <= request.margin:
            break
    _keep(folder, propagation, of_all)
    return propagation


class _Tables:
    """The tables of what was found so far."""

    def __init__(
        self, campaign: Campaign, request: Request, network: _Network, population: Population, collapse: Collapse
    ) -> None:
        loaded = request.subject.load()
        self._images = len(loaded.labels)
        self._network = network
        self._strata = np.zeros(len(population.sizes), STRATA_DTYPE)
        for name, values in zip(("site", "bit", "kind"), zip(*request.strata, strict=True), strict=True):
            self._strata[name] = values
        self._strata["population"] = population.sizes
        self._fault_free_correct = _fault_free(campaign, self._images)
        self._population = population
        self._counts = {
            "size": population.size,
            **{Rule(rule).name.lower(): int(count) for rule, count in collapse.counts(population).items()},
        }
        self._texts: dict[str, Any] = {
            "array": request.subject.config.as_dict(),
            "subject": {**request.subject.as_dict(), "identity": request.subject.identity()},
            "population": self._counts,
            "request": request.as_dict(),
            "versions": {name: version(name) for name in _PACKAGES},
        }

    def propagation(self, found: Sequence[Found]) -> Propagation:
        """Put rounds together.

        Raises:
            InputError: they do not fit each other.
        """
        faults, layers = joined([(part.faults, part.layers) for part in found])
        strata = self._strata.copy()
        strata["sampled"] = np.bincount(self._population.stratum_of(faults["index"]), minlength=len(strata))
        return Propagation(
            faults=faults,
            layers=layers,
            operations=_rows(np.sum([part.operations for part in found], axis=0)),
            strata=strata,
            layer_shapes=self._network.shapes,
            graph=self._network.graph,
            images=self._images,
            fault_free_correct=self._fault_free_correct,
            **self._texts,
        )


def _network(request: Request) -> _Network:
    """Refuses a network that cannot be followed before anything is written."""
    loaded = request.subject.load()
    replay = Replay(loaded.network, loaded.images[:1])
    gemms = [kept.gemm for kept in replay.layers]
    return _Network(
        [LayerShape(gemm.layer.name, gemm.groups, gemm.m, gemm.k, gemm.n) for gemm in gemms],
        [Operation(step.name, step.kind, step.layer) for step in replay.operations],
        [gemm.weights for gemm in gemms],
    )


def _uses(campaign: Campaign, network: _Network, config: ArrayConfig) -> list[LayerUse]:
    """What the layers do with the array, from the run without faults."""
    patterns = 1 << config.act_bits
    packed = np.load(io.BytesIO(campaign.file(FAULT_FREE, SEEN).read()), allow_pickle=False)
    return [
        LayerUse(
            shape.name,
            shape.m,
            weights,
            np.unpackbits(packed[f"layer_{number}"], axis=-1, count=patterns).astype(np.bool_),
        )
        for number, (shape, weights) in enumerate(zip(network.shapes, network.weights, strict=True))
    ]


def _fault_free(campaign: Campaign, images: int) -> int:
    """Images that are classified correctly without faults."""
    where = f"{campaign.path(FAULT_FREE, 'json')}: correct"
    correct = typed(int, campaign.values(FAULT_FREE).get("correct"), where)
    if not 0 <= correct <= images:
        raise InputError(f"{where} is {correct}: expected an integer of 0..{images}")
    return correct


def _rows(operations: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """From int64 [strata, operations, counts] the rows that are not all zeros."""
    stratum, operation = np.nonzero(operations.any(axis=2))
    rows = np.zeros(len(stratum), OPERATIONS_DTYPE)
    rows["stratum"], rows["operation"] = stratum, operation
    for place, name in enumerate(COUNTED):
        rows[name] = operations[stratum, operation, place]
    return rows


def _keep(folder: Path, propagation: Propagation, of_all: dict[str, Any]) -> None:
    """Write what is not there yet, damaged, or from when files were elsewhere."""
    try:
        there = same(read_propagation(folder / FILE_NAME), propagation)
    except (FileNotFoundError, InputError):
        there = False
    if not there:
        write_propagation(folder / FILE_NAME, propagation)
    with replaced(folder / SUMMARY) as beside:
        beside.write_text(json.dumps(of_all, indent=2, allow_nan=False) + "\n")


def _error(of_all: Mapping[str, Any]) -> float:
    """How far the share of critical faults may be from what was found: intervals are no more symmetric than shares."""
    critical = of_all["overall"]["critical"]
    error: float = max(critical["high"] - critical["value"], critical["value"] - critical["low"])
    return error


def _after(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of a round as that of all so far."""
    return None if progress is None else lambda done, _: progress(before + done, total)
