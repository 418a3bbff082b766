"""How a network stands broken PEs: random chips of rising fault rates, each retrained once and measured on the way.

A campaign (`efat.campaigns.campaign`) of the units in `efat.resilience.units`. What they gave is
put together in a table (`efat.resilience.table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from msgspec import structs

from efat.campaigns.campaign import Campaign, Executor, Notes, Progress, warned
from efat.json_fields import Fields
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import FILE_NAME as TABLE
from efat.resilience.table import ResilienceTable, write_table
from efat.resilience.units import (
    BASELINE,
    HARDENED,
    WEIGHTS,
    Growth,
    Measured,
    Resilience,
    fault_model_dict,
    hardened_unit,
    work,
)
from simulator.errors import InputError
from simulator.files import replaced

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

    A folder goes on with other rates, repeats, levels and images; see `efat.resilience.units`. The table has what is
    asked for, the same bytes as from a new folder.

    Args:
        folder: of the campaign; made if it is not there.
        resilience: what to measure.
        executor: where; results do not depend on it, bit for bit.
        progress: called at the beginning and after each unit.
        notes: told of what is in the folder and is done again, as it does not fit, or is not enough.

    Returns:
        What is in the folder's table.

    Raises:
        InputError: the folder is another campaign's, something in it changes meanwhile, hardening diverges.
    """
    resilience = replace(resilience, setup=resilience.setup.located())
    original = resilience.setup
    campaign = Campaign(folder, KIND, resilience.inputs(), notes)
    before = 0
    if resilience.hardening is not None:
        campaign.run([hardened_unit(resilience)], work, executor, _part_of(progress, 0, resilience.unit_count))
        before = 1
        start = campaign.file(HARDENED, WEIGHTS)
        resilience = replace(resilience, setup=structs.replace(original, hardened=start.path.absolute()))
        if resilience.setup.identity()["network"] != campaign.values(HARDENED)["network"]:
            raise InputError(f"{start.path} changed while this ran: run the same command again")
    growth = Growth.of(campaign, resilience, original)
    for note in growth.notes:
        notes(note)
    part = _part_of(progress, before, resilience.unit_count)
    campaign.run(growth.units, work, executor, part, growth.again)
    table = _table(resilience, campaign)
    _keep(folder, table)
    return table


def draw_picture(folder: Path, table: ResilienceTable) -> str | None:
    """Draw the table into its folder.

    Args:
        folder: of the campaign.
        table: what is in its table.

    Returns:
        Why it was left out; None if it was not.
    """
    try:
        from efat.resilience.plot import draw_resilience
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


def _table(resilience: Resilience, campaign: Campaign) -> ResilienceTable:
    """What the units gave of what is asked for; they may have more."""
    setup, hardening = resilience.setup, resilience.hardening

    def of_unit(name: str) -> Fields:
        return Fields(dict(campaign.values(name)), str(campaign.path(name, "json")))

    baseline = of_unit(BASELINE)
    images = baseline.count("images", 1)
    shape = len(resilience.rates), resilience.repeats
    correct = np.empty((*shape, len(resilience.levels)), np.int64)
    predictors = {name: np.empty(shape) for name in PREDICTORS}
    for place in resilience.places:
        found = of_unit(resilience.chip_id(*place))
        measured = Measured.of(found.values, found.where)
        correct[place] = [measured.at(level) for level in resilience.levels]
        of_chip = found.inner("predictors", PREDICTORS)
        for predictor, values in predictors.items():
            values[place] = of_chip.number(predictor, 0, 1)
    return ResilienceTable(
        rates=np.array(resilience.rates, np.float64),
        levels=np.array(resilience.levels, np.int64),
        correct=correct,
        images=images,
        predictors=predictors,
        float_correct=baseline.count("float_correct", most=images),
        fault_free_correct=baseline.count("fault_free_correct", most=images),
        start_correct=baseline.count("start_correct", most=images),
        array=resilience.config.as_dict(),
        fault_model=fault_model_dict(resilience.model),
        setup=setup,
        setup_identity=setup.identity(),
        harden_iterations=0 if hardening is None else hardening.iterations,
        seed=resilience.seed,
    )


def _keep(folder: Path, table: ResilienceTable) -> None:
    """Write a table if it is not there; a picture of another one goes first."""
    with TemporaryDirectory() as elsewhere:
        write_table(Path(elsewhere) / TABLE, table)
        content = (Path(elsewhere) / TABLE).read_bytes()
    path = folder / TABLE
    if path.is_file() and path.read_bytes() == content:
        return
    (folder / PICTURE).unlink(missing_ok=True)
    with replaced(path) as beside:
        beside.write_bytes(content)


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of some of the units as that of all."""
    return None if progress is None else lambda done, _: progress(before + done, total)
