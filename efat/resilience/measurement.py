"""How a network stands broken PEs: random chips of rising fault rates, each retrained once and measured on the way.

A campaign (`efat.campaigns.campaign`) of the units in `efat.resilience.units`. What they gave is
put together in a table (`efat.resilience.table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from msgspec import structs

from efat.campaigns.campaign import Campaign, Executor, Notes, Progress, warned
from efat.campaigns.workers import executor_of, in_line
from efat.records import typed
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import (
    FILE_NAME,
    PICTURE,
    RandomFaults,
    ResilienceTable,
    read_table,
    telling_levels,
    write_table,
)
from efat.resilience.units import (
    BASELINE,
    HARDENED,
    WEIGHTS,
    Baseline,
    Growth,
    HardeningPlan,
    Measured,
    Resilience,
    hardened_unit,
    work,
)
from efat.setup import Setup, name_of
from simulator import ArrayConfig, FaultModel
from simulator.errors import InputError
from simulator.files import replaced
from simulator.lots.chips import ChipLot

KIND = "resilience"


class HasArray(Protocol):
    """A lot of chips, of one array."""

    @property
    def config(self) -> ArrayConfig:
        """The array."""


def measure_resilience(
    folder: str | Path,
    setup: Setup,
    array: ArrayConfig | str | Path | HasArray,
    *,
    rates: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1),
    repeats: int = 3,
    levels: Sequence[int] = (0, 5, 10, 20, 40, 80),
    faults: FaultModel | None = None,
    seed: int = 0,
    hardening: HardeningPlan | None = None,
    workers: int | str | Executor | None = 0,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> ResilienceTable:
    """Measure how much retraining random chips need, over fault rates.

    A folder goes on where it was interrupted, and with other rates, repeats, levels and tuning images; the table has
    what is asked for, the same bytes as from a new folder, whatever the workers.

    Args:
        folder: where everything is kept: the table, its picture, and a file for each chip; made if it is not there.
        setup: network, data, mitigation and recipe.
        array: the array, or a lot of chips that has it.
        rates: fractions of PEs that are faulty, 0..1, strictly ascending.
        repeats: random chips of each rate.
        levels: iterations after which accuracy is measured, strictly ascending; 0 comes first.
        faults: what the faults of the random chips look like; its rate does not count. None for stuck bits anywhere.
        seed: of the random chips, from 0; orders and augmentation have that of the recipe.
        hardening: how the network is hardened first; None for not at all.
        workers: see `efat.campaigns.workers.executor_of`.
        progress: called at the beginning and after each unit.
        notes: told of what is in the folder and is done again, or is left out.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something does not fit, cannot learn, or chips that no network runs on; the folder is another
            campaign's; something in it changes meanwhile; hardening diverges.
    """
    resilience = Resilience(
        setup=setup,
        config=array if isinstance(array, ArrayConfig) else _array_of(array),
        model=FaultModel(0.0) if faults is None else faults,
        rates=rates,
        repeats=repeats,
        levels=levels,
        seed=seed,
        hardening=hardening,
    )
    resilience.check()
    if workers not in (0, in_line):
        setup.check_travels()
    folder = Path(folder)
    table = run_resilience(folder, resilience, executor_of(workers), progress, notes)
    if not (folder / PICTURE).exists():
        draw_picture(folder, table)
    return table


def run_resilience(
    folder: Path,
    resilience: Resilience,
    executor: Executor,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> ResilienceTable:
    """Measure what is not measured yet, and write the table.

    A folder goes on with other rates, repeats, levels and images; see `efat.resilience.units`. The table has what is
    asked for, the same bytes as from a new folder.
    """
    resilience = replace(resilience, setup=resilience.setup.located())
    original = resilience.setup
    campaign = Campaign(folder, KIND, resilience.inputs(), notes)
    before, of = 0, resilience.unit_count

    def told(done: int, units: int) -> None:
        # Of hardening it is told when it begins, and then the others go on from there.
        hardened = resilience.hardening is not None and not before and done == units
        if progress is not None and not hardened:
            progress(before + done, of)

    if resilience.hardening is not None:
        campaign.run([hardened_unit(resilience)], work, executor, told)
        before = 1
        start = campaign.file(HARDENED, WEIGHTS)
        resilience = replace(resilience, setup=structs.replace(original, hardened=start.path.absolute()))
        if resilience.setup.identity()["network"] != campaign.values(HARDENED)["network"]:
            raise InputError(f"{start.path} changed while this ran: run the same command again")
    growth = Growth.of(campaign, resilience, original)
    for note in growth.notes:
        notes(note)
    campaign.run(growth.units, work, executor, told, growth.again)
    table = _table(resilience, campaign)
    _keep(folder, table)
    return replace(table, path=folder / FILE_NAME)


def draw_picture(folder: Path, table: ResilienceTable) -> None:
    """Draw the table into its folder."""
    from efat.figures.resilience import MOST_LEVELS, draw_resilience

    chips = f"{table.repeats} random chips a rate, worst to best" if table.repeats > 1 else "one random chip a rate"
    array = f"{table.array} PEs"
    title = f"{name_of(table.setup.network)} with {table.setup.mitigation} on {array}; {chips}"
    correct = {"float": table.float_correct, "quantised, fault-free": table.fault_free_correct}
    if table.harden_iterations:
        correct["hardened, fault-free"] = table.start_correct
    references = {name: count / table.images for name, count in correct.items()}
    shown = telling_levels(table.levels.tolist(), MOST_LEVELS)
    levels, accuracy = table.levels[shown].tolist(), table.accuracy[..., shown]
    draw_resilience(folder / PICTURE, title, table.rates, levels, accuracy, references)


def _array_of(lot: str | Path | HasArray) -> ArrayConfig:
    if not isinstance(lot, str | Path):
        return lot.config
    with ChipLot(lot) as opened:
        return opened.config


def _table(resilience: Resilience, campaign: Campaign) -> ResilienceTable:
    """What the units gave of what is asked for; they may have more."""
    setup, hardening = resilience.setup, resilience.hardening

    baseline = typed(Baseline, campaign.values(BASELINE), str(campaign.path(BASELINE, "json")))
    shape = len(resilience.rates), resilience.repeats
    correct = np.empty((*shape, len(resilience.levels)), np.int64)
    predictors = {name: np.empty(shape) for name in PREDICTORS}
    for place in resilience.places:
        name = resilience.chip_id(*place)
        measured = typed(Measured, campaign.values(name), str(campaign.path(name, "json")))
        correct[place] = [measured.at(level) for level in resilience.levels]
        for predictor, values in predictors.items():
            values[place] = getattr(measured.predictors, predictor)
    return ResilienceTable(
        rates=np.array(resilience.rates, np.float64),
        levels=np.array(resilience.levels, np.int64),
        correct=correct,
        images=baseline.images,
        predictors=predictors,
        float_correct=baseline.float_correct,
        fault_free_correct=baseline.fault_free_correct,
        start_correct=baseline.start_correct,
        array=resilience.config.record,
        fault_model=RandomFaults.of(resilience.model),
        setup=setup,
        setup_identity=setup.identity(),
        harden_iterations=0 if hardening is None else hardening.iterations,
        seed=resilience.seed,
    )


def _bytes_of(table: ResilienceTable) -> bytes:
    with TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / FILE_NAME
        write_table(path, table)
        return path.read_bytes()


def _keep(folder: Path, table: ResilienceTable) -> None:
    """Write a table if it is not there; a picture of another one goes first.

    One of an older version stays as it is if it says the same: plans know it by its digest.
    """
    content, path = _bytes_of(table), folder / FILE_NAME
    with suppress(OSError, InputError):
        if _bytes_of(read_table(path)) == content:
            return
    (folder / PICTURE).unlink(missing_ok=True)
    with replaced(path) as beside:
        beside.write_bytes(content)
