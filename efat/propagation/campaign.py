"""How faults travel through a network: a campaign (`efat.campaigns.campaign`) that injects a sample of them, in rounds.

Which faults are injected is decided in the process that drives it, and whether there are enough of them only between
rounds: so results depend neither on the number of workers nor on where it was interrupted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Campaign, Executor, Notes, Outcome, Progress, Unit, Work, warned
from efat.campaigns.workers import executor_of
from efat.propagation.collapsing.collapse import Collapse, LayerUse
from efat.propagation.injection import COUNTED, SEEN, Found, Round, fault_free, inject
from efat.propagation.population import Population
from efat.propagation.request import DEFAULT_CONFIDENCE, DEFAULT_KINDS, DEFAULT_MARGIN, DEFAULT_SITES, Request, Subject
from efat.propagation.statistics import allocate, sample_size
from efat.propagation.summary import summary
from efat.propagation.tables import (
    FILE_NAME,
    MOST_FAULTS,
    OPERATIONS_DTYPE,
    STRATA_DTYPE,
    LayerShape,
    Operation,
    Propagation,
    Rule,
    joined,
    read_propagation,
    same,
    write_propagation,
)
from efat.records import typed
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import Int64Array
from simulator.errors import InputError
from simulator.files import replaced
from training.calibration import Method
from training.data.datasets import Normalization
from training.injection.replay import Replay

FIRST_ROUND = 200
"""Faults of the first round, if a margin decides how many there are; each further round doubles their number."""


def draw_rounds(population: Population, request: Request) -> list[Int64Array]:
    """Draw all faults that may have to be tried.

    The faults up to the end of any round are a sample by themselves: one from each stratum in proportion to its size,
    if it is stratified, and a simple one otherwise.

    Args:
        population: the faults there are.
        request: how many of them are tried.

    Returns:
        For each round the places in the population of the faults that are new in it, int64 [faults], ascending. There
        is one round unless a margin is asked for.

    Raises:
        InputError: more faults than there are or than can be tried, or fewer than strata.
    """
    if request.exhaustive:
        _check_most(population.size, "the population has {} faults: give a number of samples, or a margin")
        return [np.arange(population.size, dtype=np.int64)]
    before, rounds = np.empty(0, np.int64), []
    for total in _totals(population, request):
        # More of them take none away.
        drawn = population.sample(allocate(population.sizes, total) if request.stratify else total, request.seed)
        rounds.append(np.setdiff1d(drawn, before, assume_unique=True))
        before = drawn
    return rounds


def _totals(population: Population, request: Request) -> list[int]:
    """Faults tried at the end of each round, ascending."""
    strata = len(population.sizes) if request.stratify else 1
    if request.samples is not None:
        if request.samples > population.size:
            raise InputError(
                f"samples is {request.samples}: the population has {population.size} faults: give fewer, or try all"
            )
        if request.samples < strata:
            raise InputError(
                f"samples is {request.samples}: the population has {strata} strata, bits of nets and kinds, and each "
                f"has its part of the sample: give {strata} or more, fewer bits or nets, or --no-stratify"
            )
        return [request.samples]
    assert request.margin is not None
    most = max(sample_size(population.size, request.margin, request.confidence), strata)
    _check_most(most, f"margin is {request.margin:g}, which may take {{}} faults: give a wider one")
    totals = [min(most, max(FIRST_ROUND, 2 * strata))]
    while totals[-1] < most:
        totals.append(min(most, 2 * totals[-1]))
    return totals


def _check_most(faults: int, message: str) -> None:
    if faults > MOST_FAULTS:
        raise InputError(f"{message.format(faults)}; at most {MOST_FAULTS} are tried")


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


def propagate(
    folder: str | Path,
    network: str,
    array: ArrayConfig,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    normalization: Normalization | None = None,
    images: int | None = None,
    calibration: Method = "max",
    sites: Sequence[Site] = DEFAULT_SITES,
    kinds: Sequence[Kind] = DEFAULT_KINDS,
    bits: Mapping[Site, Sequence[int]] | None = None,
    samples: int | None = None,
    exhaustive: bool = False,
    margin: float | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    stratify: bool = True,
    seed: int = 0,
    workers: int | str | Executor | None = 0,
    progress: Progress | None = None,
    estimated: Callable[[Mapping[str, Any]], None] | None = None,
    notes: Notes = warned,
) -> Propagation:
    """Inject single faults into an array, and follow what they do to a network.

    A folder goes on where it was interrupted; results do not depend on the workers, bit for bit.

    Args:
        folder: where tables, summary and pictures are kept, and a file for each unit of work; made if it is not there.
        network: a name in `training.data.workloads.WORKLOADS`, or `package.module:function`.
        array: the array.
        weights: file of weights; None for those that come with the network.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network.
        normalization: as for `training.data.workloads.load_workload`.
        images: test images, the first ones; None for `DEFAULT_IMAGES`, or all if there are fewer.
        calibration: how the activations' steps are chosen; weights that were retrained for a chip bring theirs.
        sites: nets that can be faulty.
        kinds: how; FLIP only by itself.
        bits: of some of the nets those that can be faulty; None for all bits of all nets.
        samples: faults to try, drawn at random.
        exhaustive: try all faults.
        margin: try as many as it takes to know the share of critical ones to within it. Of these three at most one;
            without any the margin is `DEFAULT_MARGIN`.
        confidence: of intervals.
        stratify: whether each stratum has its part of the sample; otherwise chance decides.
        seed: of the sample, from 0.
        workers: see `efat.campaigns.workers.executor_of`.
        progress: called at the beginning and after each unit with those that are done and those of all rounds so far.
        estimated: called after each round with the summary of what was found so far.
        notes: told of what is in the folder and does not fit; it is done again.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: network and data do not fit, the network cannot be followed, there are not so many faults, the
            folder is another campaign's, or something in it changes meanwhile.
    """
    from efat.figures.propagation import PICTURES, draw_pictures

    if samples is None and not exhaustive and margin is None:
        margin = DEFAULT_MARGIN
    request = Request(
        Subject(network, weights, data, images, array, calibration, normalization),
        sites=sites,
        kinds=kinds,
        bits={} if bits is None else bits,
        samples=samples,
        exhaustive=exhaustive,
        margin=margin,
        confidence=confidence,
        stratify=stratify,
        seed=seed,
    )
    folder, executor, ran = Path(folder), executor_of(workers), False

    def watched(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        nonlocal ran
        for done in executor(work, units):
            ran = True
            yield done

    propagation = run_propagation(folder, request, watched, progress, estimated, notes)
    if ran or not all((folder / name).exists() for name in PICTURES):
        draw_pictures(folder, propagation, confidence)
    return propagation


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


def _rows(operations: Int64Array) -> npt.NDArray[np.void]:
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
