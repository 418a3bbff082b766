"""How faults travel through a network: a campaign (`efat.campaigns.campaign`) that injects a sample of them, in rounds.

Which faults are injected is decided in the process that drives it, and whether there are enough of them only between
rounds: so results depend neither on the number of workers nor on where it was interrupted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from efat.campaigns.campaign import Campaign, Executor, Notes, Progress, Unit, warned
from efat.campaigns.workers import executor_of, in_line
from efat.lot import Lot
from efat.propagation.collapsing.collapse import Collapse
from efat.propagation.injection import SEEN, Found, Round, fault_free, inject, layer_shapes, operation_rows
from efat.propagation.population import LayerUse, Population
from efat.propagation.request import (
    DEFAULT_CONFIDENCE,
    DEFAULT_KINDS,
    DEFAULT_MARGIN,
    DEFAULT_SITES,
    MOST_FAULTS,
    PropagationRequest,
    Subject,
)
from efat.propagation.statistics import allocate, sample_size
from efat.propagation.summary import Propagation, PropagationSummary
from efat.propagation.tables import (
    FILE_NAME,
    PICTURES,
    STRATA_DTYPE,
    SUMMARY,
    PopulationCounts,
    joined,
)
from efat.records import typed
from efat.setup import Setup, check_travels
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import Int64Array
from simulator.errors import InputError
from simulator.files import replaced
from training.calibration import Method
from training.data.datasets import Normalization
from training.injection.replay import Replay

FIRST_ROUND = 200
"""Faults of the first round, if a margin decides how many there are; each further round doubles their number."""

KIND = "propagation"
FAULT_FREE = "fault-free"
"""Name of the unit that is no round's."""

_PACKAGES = ("efat", "torch", "numpy", "numba")


def draw_rounds(population: Population, request: PropagationRequest) -> list[Int64Array]:
    """Draw all faults that may have to be tried.

    The faults up to the end of any round are a sample by themselves: one from each stratum in proportion to its size,
    if it is stratified, and a simple one otherwise.

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


def _totals(population: Population, request: PropagationRequest) -> list[int]:
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


def propagate(
    folder: str | Path,
    network: Setup | str | nn.Module,
    array: ArrayConfig | str | Path | Lot,
    *,
    weights: str | Path | None = None,
    data: str | Path | tuple[object, object] | None = None,
    normalization: str | Normalization | None = None,
    images: int | None = None,
    calibration: Method | None = None,
    sites: Sequence[Site | str] = DEFAULT_SITES,
    kinds: Sequence[Kind | str] = DEFAULT_KINDS,
    bits: Mapping[Site, Sequence[int]] | Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    exhaustive: bool = False,
    margin: float | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    stratify: bool = True,
    seed: int = 0,
    workers: int | str | Executor | None = 0,
    progress: Progress | None = None,
    estimated: Callable[[PropagationSummary], None] | None = None,
    notes: Notes = warned,
) -> Propagation:
    """Inject single faults into an array, and follow what they do to a network.

    A folder goes on where it was interrupted; results do not depend on the workers, bit for bit.

    Args:
        folder: where tables, summary and pictures are kept, and a file for each unit of work; made if it is not there.
        network: a name in `training.data.workloads.WORKLOADS`, `package.module:function`, or a float
            `torch.nn.Module`. Of a setup its network, weights, data and calibration, before any retraining.
        array: the array, or a lot of chips that has it.
        weights: file of weights; None for those that come with the network.
        data: what `training.data.datasets.load_data` reads, or a pair of training and test images as for
            `efat.Setup`; None for what comes with the network.
        normalization: as for `efat.Setup`.
        images: test images, the first ones; None for `DEFAULT_IMAGES`, or all if there are fewer.
        calibration: how the activations' steps are chosen, None for `max`; weights that were retrained for a chip
            bring theirs.
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
    from efat.figures.propagation import draw_pictures

    subject = _subject(
        network, images, weights=weights, data=data, normalization=normalization, calibration=calibration
    )
    if samples is None and not exhaustive and margin is None:
        margin = DEFAULT_MARGIN
    request = PropagationRequest(
        tuple(map(_name, sites)),
        tuple(map(_name, kinds)),
        {_name(site): tuple(chosen) for site, chosen in (bits or {}).items()},
        samples,
        exhaustive,
        margin,
        confidence,
        stratify,
        seed,
    )
    if workers not in (0, in_line):
        check_travels(subject.network, subject.data)
    config = array if isinstance(array, ArrayConfig) else (array if isinstance(array, Lot) else Lot(array)).config
    folder, ran = Path(folder), False

    def counted(done: int, of: int) -> None:
        nonlocal ran
        ran |= done < of
        if progress is not None:
            progress(done, of)

    found = run_propagation(folder, subject, config, request, executor_of(workers), counted, estimated, notes)
    if ran or not all((folder / name).exists() for name in PICTURES):
        draw_pictures(folder, found)
    return found


def _subject(network: Setup | str | nn.Module, images: int | None, **said: object) -> Subject:
    """What runs; a setup says all of it but the images."""
    if not isinstance(network, Setup):
        return Subject(network, images=images, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]
    for name, value in said.items():
        if value is not None:
            raise InputError(f"{name} is given beside a setup, which says it: leave it out")
    weights = network.weights if network.hardened is None else network.hardened
    said = {"data": network.data, "calibration": network.calibration, "normalization": network.normalization}
    return Subject(network.network, weights=weights, images=images, **said)  # type: ignore[arg-type]


def _name(member: Site | Kind | str) -> str:
    return member if isinstance(member, str) else member.name


def run_propagation(
    folder: Path,
    subject: Subject,
    array: ArrayConfig,
    request: PropagationRequest,
    executor: Executor,
    progress: Progress | None = None,
    estimated: Callable[[PropagationSummary], None] | None = None,
    notes: Notes = warned,
) -> Propagation:
    """Inject what is not injected yet, and write the tables and their summary; see `propagate`."""
    strata = request.strata(array)
    subject = subject.identified(array)
    loaded = subject.load(array)
    images = len(loaded.labels)
    # Refuses a network that cannot be followed before anything is written.
    replay = Replay(loaded.network, loaded.images[:1])
    population = Population(array, layer_shapes(replay), strata, images)
    rounds = draw_rounds(population, request)
    campaign = Campaign(folder, KIND, request.inputs(subject, array), notes)
    shared = {"subject": subject, "array": array}
    campaign.run([Unit(FAULT_FREE, shared)], fault_free, executor, progress)
    collapse = Collapse(array, list(_uses(campaign, replay, array)), strata)
    counts = PopulationCounts(population.size, *collapse.counts(population).values())
    done, found = 1, list[Found]()
    for number, indices in enumerate(rounds):
        drawn = Round.of(number, indices, population, collapse)
        units = drawn.units(shared, images)
        campaign.run(units, inject, executor, _after(progress, done, done + len(units)))
        done += len(units)
        found.append(drawn.found(campaign, images, len(strata), len(replay.operations)))
        faults, layers = joined([(part.faults, part.layers) for part in found])
        sampled = np.bincount(population.stratum_of(faults["index"]), minlength=len(strata))
        propagation = Propagation(
            faults=faults,
            layers=layers,
            operations=operation_rows(np.sum([part.operations for part in found], axis=0)),
            strata=np.array(
                [(*stratum, *of) for stratum, *of in zip(strata, population.sizes, sampled, strict=True)], STRATA_DTYPE
            ),
            layer_shapes=population.layers,
            graph=replay.operations,
            images=images,
            fault_free_correct=_fault_free_correct(campaign),
            array=array.record,
            subject=subject,
            population=counts,
            request=request,
            versions={name: version(name) for name in _PACKAGES},
            classes=loaded.classes,
        )
        if estimated is not None:
            estimated(propagation.summary)
        if request.margin is not None and _error(propagation.summary) <= request.margin:
            break
    propagation.save(folder / FILE_NAME)
    with replaced(folder / SUMMARY) as beside:
        beside.write_text(json.dumps(propagation.summary.as_dict(), indent=2, allow_nan=False) + "\n")
    return propagation


def _uses(campaign: Campaign, replay: Replay, array: ArrayConfig) -> Iterator[LayerUse]:
    """What the layers do with the array, from the run without faults."""
    packed = np.load(io.BytesIO(campaign.file(FAULT_FREE, SEEN).read()), allow_pickle=False)
    for number, kept in enumerate(replay.layers):
        seen = np.unpackbits(packed[f"layer_{number}"], axis=-1, count=1 << array.act_bits).astype(np.bool_)
        yield LayerUse(kept.gemm.layer.name, kept.gemm.m, kept.gemm.weights, seen)


def _fault_free_correct(campaign: Campaign) -> int:
    """Images that are classified correctly without faults."""
    where = f"{campaign.path(FAULT_FREE, 'json')}: correct"
    return typed(int, campaign.values(FAULT_FREE).get("correct"), where)


def _error(found: PropagationSummary) -> float:
    """How far the share of critical faults may be from what was found: intervals are no more symmetric than shares."""
    critical = found.overall.critical
    assert critical is not None
    return max(critical.high - critical.value, critical.value - critical.low)


def _after(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of a round as that of all so far."""
    return None if progress is None else lambda done, _: progress(before + done, total)
