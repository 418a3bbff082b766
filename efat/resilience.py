"""How a network stands broken PEs: random chips of rising fault rates, each retrained once and measured on the way.

A campaign (`efat.campaign`) of the units in `efat.resilience_units`. What they gave is put together in a table
(`efat.resilience_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efat.campaign import Campaign, Executor, Notes, Progress, warned
from efat.json_fields import Fields
from efat.resilience_inputs import Resilience, chip_id, fault_model_dict
from efat.resilience_table import FILE_NAME as TABLE
from efat.resilience_table import PREDICTORS, ResilienceTable, read_table, write_table
from efat.resilience_units import BASELINE, HARDENED, WEIGHTS, units_on_chips, units_without_faults, work
from training.errors import InputError

KIND = "resilience"
PICTURE = "resilience.png"
"""What the folder has beside the campaign's files and the table."""


def run_resilience(
    folder: Path,
    resilience: Resilience,
    executor: Executor,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> ResilienceTable:
    """Measure what is not measured yet, and write the table.

    Args:
        folder: of the campaign; made if it is not there.
        resilience: what to measure.
        executor: where; results do not depend on it, bit for bit.
        progress: called at the beginning and after each unit.
        notes: told of what is in the folder and does not fit; it is done again.

    Returns:
        What is in the folder's table.

    Raises:
        InputError: the folder is another campaign's, something in it changes meanwhile, hardening diverges.
    """
    resilience = replace(resilience, setup=resilience.setup.located())
    campaign = Campaign(folder, KIND, resilience.inputs(), notes)
    units = units_without_faults(resilience)
    if resilience.hardening is not None:
        campaign.run(units, work, executor, _part_of(progress, 0, resilience.unit_count))
        start = campaign.file(HARDENED, WEIGHTS)
        resilience = replace(resilience, setup=resilience.setup.with_weights(start.path.absolute()))
        if resilience.setup.identity()["network"] != campaign.values(HARDENED)["network"]:
            raise InputError(f"{start.path} changed while this ran: run the same command again")
        units = []
    units += units_on_chips(resilience)
    campaign.run(units, work, executor, _part_of(progress, resilience.unit_count - len(units), resilience.unit_count))
    return _keep_table(folder / TABLE, resilience, campaign)


def draw_picture(folder: Path, table: ResilienceTable) -> str | None:
    """Draw the table into its folder.

    Args:
        folder: of the campaign.
        table: what is in its table.

    Returns:
        Why it was left out; None if it was not.
    """
    try:
        from efat.resilience_plot import draw_resilience
    except ImportError as error:
        return f"{folder / PICTURE} needs {error.name}, which is not installed: pip install 'efat[plots]'"
    draw_resilience(table, folder / PICTURE)
    return None


def telling_levels(levels: Sequence[int], most: int) -> list[int]:
    """Places of a few levels: the first, the last, and between them closer together where there is less retraining.

    Args:
        levels: ascending, the first is 0.
        most: how many places to give, at most; 2 or more.

    >>> telling_levels([0, 10, 20, 30, 40, 50, 60, 70, 80], 5)
    [0, 1, 2, 4, 8]
    """
    if len(levels) <= most:
        return list(range(len(levels)))
    left = dict.fromkeys(range(1, len(levels) - 1))
    chosen = [0, len(levels) - 1]
    for target in np.geomspace(levels[1], levels[-1], most - 1)[:-1]:
        nearest = min(left, key=lambda place: abs(np.log(levels[place] / target)))
        del left[nearest]
        chosen.append(nearest)
    return sorted(chosen)


def _keep_table(path: Path, resilience: Resilience, campaign: Campaign) -> ResilienceTable:
    """The table in the folder; written if it is not there, damaged, or from when files were elsewhere."""
    try:
        table = read_table(path)
    except (FileNotFoundError, InputError):
        table = None
    if table is None or table.setup != resilience.setup.as_dict():
        table = _table(resilience, campaign)
        write_table(path, table)
    return table


def _table(resilience: Resilience, campaign: Campaign) -> ResilienceTable:
    setup, hardening, levels = resilience.setup, resilience.hardening, resilience.levels
    images = len(setup.load().data.held_out)

    def of_unit(name: str, *fields: str) -> Fields:
        return Fields(dict(campaign.values(name)), str(campaign.path(name, "json")), fields)

    baseline = of_unit(BASELINE, "float_correct", "fault_free_correct")
    fault_free = baseline.count("fault_free_correct", most=images)
    start = fault_free
    if hardening is not None:
        start = of_unit(HARDENED, "start_correct", "network").count("start_correct", most=images)
    shape = len(resilience.rates), resilience.repeats
    correct = np.empty((*shape, len(levels)), np.int64)
    predictors = {name: np.empty(shape) for name in PREDICTORS}
    for place in resilience.places:
        found = of_unit(chip_id(*place), "chip", "correct", "predictors")
        correct[place] = _counts(found, len(levels), images)
        of_chip = found.inner("predictors", PREDICTORS)
        for name, values in predictors.items():
            values[place] = of_chip.number(name, 0, 1)
    return ResilienceTable(
        rates=np.array(resilience.rates, np.float64),
        levels=np.array(resilience.levels, np.int64),
        correct=correct,
        images=images,
        predictors=predictors,
        float_correct=baseline.count("float_correct", most=images),
        fault_free_correct=fault_free,
        start_correct=start,
        array=resilience.config.as_dict(),
        fault_model=fault_model_dict(resilience.model),
        setup=setup.as_dict(),
        setup_identity=setup.identity(),
        harden_iterations=0 if hardening is None else hardening.iterations,
        seed=resilience.seed,
    )


def _counts(unit: Fields, levels: int, images: int) -> list[int]:
    """The images that a unit classified correctly at each level; the table checks the rest of them."""
    found = unit.values["correct"]
    if not isinstance(found, list) or len(found) != levels or not all(type(n) is int and n <= images for n in found):
        unit.refuse("correct", f"a list of {levels} integers up to {images}")
    return found


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of some of the units as that of all."""
    return None if progress is None else lambda done, _: progress(before + done, total)
