"""Small lots, plans made by hand, and a program that carries one out: `python lot_retraining.py FOLDER WORKERS`.

The network, its data and what it is retrained with are those of `resilience_runs`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efat.campaigns.campaign import Executor
from efat.campaigns.workers import in_line, processes
from efat.image_split import SplitRequest
from efat.planning.plan import FileOf, LotOf, Plan, PlannedGroup, StrategyCost
from efat.planning.selection import Constraint
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import ResilienceTable, write_table
from efat.retraining.lot import retrain
from efat.retraining.manifest import Manifest, ManifestChip, read_chip_deployment, read_group_weights
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel, sample_faults
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, ChipLot, write_lot
from tests.support.resilience_runs import HELD_OUT, small_network, small_setup
from tests.support.resilience_tables import table_of
from tests.support.tiny_networks import ARRAY, OWN_PE
from training.layers.accelerator import Engine
from training.layers.convert import convert
from training.learning.recipe import Recipe

NETWORK = "tests.support.resilience_runs:small_network"
LOT, TABLE, PLAN, OUT = "lot.h5", "table.h5", "plan.json", "out"


def random_chips(seed: int, rates: Sequence[float], config: ArrayConfig = ARRAY) -> list[Chip]:
    """Chips of these fault rates; a fault costs its own PE."""
    seeds = np.random.SeedSequence(seed).spawn(len(rates))
    models = [FaultModel(rate, sites=dict.fromkeys(OWN_PE, 1.0)) for rate in rates]
    return [
        Chip(f"chip-{number}", sample_faults(config, model, own))
        for number, (model, own) in enumerate(zip(models, seeds, strict=True))
    ]


def write_measured(
    folder: Path, setup: Setup, config: ArrayConfig = ARRAY, names: Sequence[str] = PREDICTORS, **changes: Any
) -> ResilienceTable:
    """Write a table that nobody measured: of 30 images, chips of severity s get 29 right after 40 s^2 iterations.

    So they take 0 iterations at 0.1, 2 at 0.2, 4 at 0.3, 8 at 0.4, and more than there are at 0.5.

    Args:
        folder: where to.
        setup: of what it is.
        config: the array.
        names: of the predictors, all of which foretell as much.
        changes: other fields.
    """
    severity = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    levels = np.array([0, 2, 4, 8])
    correct = np.where(levels >= np.floor(40 * severity**2)[:, None, None], 29, 20)
    correct[0] = 29
    given = {
        "rates": severity,
        "levels": levels,
        "images": len(HELD_OUT),
        "float_correct": 30,
        "fault_free_correct": 29,
        "start_correct": 29,
        "array": config.as_dict(),
        "setup": setup,
        "setup_identity": setup.identity(),
        **changes,
    }
    table = table_of(correct, dict.fromkeys(names, severity[:, None]), **given)
    write_table(folder / TABLE, table)
    return table


def write_digits_measured(folder: Path, config: ArrayConfig, mitigation: str = "fap+t") -> Path:
    """The same for digits-cnn with 30 of its images; gives the path of the table."""
    recipe = Recipe(batch=16, optimizer="AdamW", learning_rate=5e-4, options={})
    write_measured(
        folder, Setup("digits-cnn", None, None, mitigation, recipe, split=SplitRequest(len(HELD_OUT))), config
    )
    return folder / TABLE


def planned(
    folder: Path,
    chips: Sequence[Chip],
    groups: Mapping[str, tuple[Sequence[int], int]],
    *,
    setup: Setup | None = None,
    required: int = 0,
    **changes: Any,
) -> Plan:
    """Write a lot and a table, and make a plan for them by hand.

    Args:
        folder: where to.
        chips: of the lot.
        groups: positions of its chips and iterations of each group by its name.
        setup: None for the small network with fap+t.
        required: images.
        changes: other fields of the plan.
    """
    setup = small_setup(folder) if setup is None else setup
    config = chips[0].faults.config
    write_lot(folder / LOT, config, chips)
    table = table_of(
        [[[30, 30]]],
        {"weights": [[0.1]]},
        images=len(HELD_OUT),
        float_correct=30,
        fault_free_correct=29,
        start_correct=29,
    )
    write_table(folder / TABLE, table)
    named = tuple(
        PlannedGroup(name, tuple(chips[member].id for member in members), 0.0, amount)
        for name, (members, amount) in groups.items()
    )
    given: dict[str, Any] = {
        "strategy": "efat",
        "aligned": False,
        "step": 2,
        "budget": 6,
        "constraint": Constraint(max(0, required - 0.5) / len(HELD_OUT)),
        "tried": (),
        "statistic": "max",
        "predictor": "weights",
        "resilience_iterations": 20,
        "harden_iterations": 0,
        "comparison": (StrategyCost.of("efat", False, named),),
        **changes,
    }
    return Plan(
        groups=named,
        required=required,
        images=len(HELD_OUT),
        setup=setup,
        identity=setup.identity(),
        array=config.as_dict(),
        resilience=FileOf(str(folder / TABLE), digest_of_file(folder / TABLE)),
        lot=LotOf(str(folder / LOT), digest_of_file(folder / LOT), len(chips)),
        fault_free_correct=29,
        **given,
    )


def carried_out(
    folder: Path,
    plan: Plan,
    out: str = OUT,
    executor: Executor = in_line,
    progress: Callable[[str, int, int], None] | None = None,
    **others: Any,
) -> Manifest:
    """What comes out of a plan that is carried out in a folder of the folder."""
    given = {"lot": folder / LOT, "resilience": folder / TABLE, "cycle_images": 2, "network": NETWORK, **others}
    return retrain(plan, folder / out, workers=executor, progress=progress, **given)


def logits(out: Path, manifest: Manifest, found: ManifestChip, chip: Chip, engine: Engine, images: Tensor) -> Tensor:
    """What a chip computes, from the files that the manifest names alone."""
    network: nn.Module = copy.deepcopy(small_network())
    weights, _ = read_group_weights(out, manifest.group_named[found.group])
    network.load_state_dict(weights)
    deployment = read_chip_deployment(out, found)
    config = chip.faults.config
    converted = convert(network.eval(), config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults, engine))
    with torch.no_grad():
        result: Tensor = converted(images)
    return result


def chips_of(folder: Path) -> dict[str, Chip]:
    """The chips of the lot by their ids."""
    with ChipLot(folder / LOT) as lot:
        return {chip.id: chip for chip in lot}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    workers = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    carried_out(where, Plan.load(where / PLAN), executor=workers)
