"""What do chips that share weights lose together: as masks in order, placed for their union, or aligned?

For groups of chips with defects of each pattern, the share of weights and the share of squared weights (the mean over
the layers) that no chip of the group may use. Alignment places each chip so that it loses what the group has lost.

With --train the network is retrained without these weights: does the share of squared weights foretell its accuracy,
however many weights they are?

Run: python benchmarks/alignment.py
     python benchmarks/alignment.py --network lenet5 --weights FILE --size 64 --rate 0.1
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from efat.image_split import SplitRequest
from efat.planning.alignment import Aligner, model_of
from efat.resilience.severity import pruned_severity
from efat.retraining.lot import fused_chip
from efat.setup import Loaded, Setup
from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults
from simulator.dtypes import BoolArray
from simulator.lots.chips import Chip
from simulator.sampling import PATTERNS
from training.layers.placement import Placement
from training.learning.recipe import Recipe
from training.learning.retrain import retrain

OWN_PE = dict.fromkeys((Site.WEIGHT, Site.PRODUCT, Site.PSUM), 1.0)
SIZES = (1, 2, 4, 8, 16)

Lost = dict[str, BoolArray]


def in_order(aligner: Aligner, chip: Chip) -> Lost:
    """What a chip loses if its operands sit in order."""
    placements = {
        name: Placement.in_order(found.groups, found.rows.shape[1], found.columns.shape[1])
        for name, found in aligner.place(chip).items()
    }
    return aligner.lost(chip, placements)


def trained(loaded: Loaded, config: ArrayConfig, groups: list[tuple[str, Lost]], iterations: int) -> Table:
    """How well the network does without some weights."""
    levels = [0, *(iterations // part for part in (16, 4, 1))]
    table = Table(title="accuracy after so many iterations, without these weights")
    for heading in ("chips: weights / squared weights", *(str(level) for level in levels)):
        table.add_column(heading, justify="right")
    for what, lost in groups:
        result = retrain(
            loaded.network,
            Chip("group", FaultMap(config)),
            loaded.data,
            iterations,
            mitigations="none+t",
            recipe=Recipe(optimizer="AdamW", learning_rate=5e-4),
            evaluate_at=levels,
            pruned=lost,
        )
        table.add_row(what, *(f"{found.accuracy:.1%}" for found in result.evaluations))
    return table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits-cnn")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the array")
    parser.add_argument("--rate", type=float, default=0.1, help="of faulty PEs")
    parser.add_argument("--train", type=int, default=0, metavar="ITERATIONS")
    parser.add_argument("--images", type=int, help="held-out images; all of them if not given")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="chips in a group, at most")
    arguments = parser.parse_args()
    config = ArrayConfig(arguments.size, arguments.size)
    given = arguments.network, arguments.weights, arguments.data
    setup = Setup(*given, "fam+t", Recipe(), split=SplitRequest(arguments.images))
    loaded: Loaded = setup.load()
    aligner = Aligner(model_of(loaded, config), config, setup.mitigations, "saliency")
    parameters = dict(loaded.network.named_parameters(remove_duplicate=False))
    console = Console(width=120)
    console.print(f"{arguments.network} on {arguments.size}x{arguments.size} PEs, {arguments.rate:.1%} of them faulty")
    table = Table(title="weights / squared weights that a group loses")
    for heading in ("pattern", "chips", "masks in order", "placed for their union", "each by itself", "aligned"):
        table.add_column(heading, justify="left" if heading == "pattern" else "right")

    def shown(lost: Lost) -> str:
        names = list(lost)
        weights = [parameters[f"{name}.weight"].detach().flatten(1).numpy() for name in names]
        found = pruned_severity(weights, [lost[name] for name in names])
        return f"{found.pruned:.1%} / {found.saliency:.2%}"

    placed, seconds = 0, 0.0
    to_train: list[tuple[str, Lost]] = []
    for pattern in PATTERNS:
        model = FaultModel(arguments.rate, sites=OWN_PE, pattern=pattern)
        seeds = np.random.SeedSequence(0).spawn(arguments.largest)
        chips = [Chip(f"chip-{number}", sample_faults(config, model, seed)) for number, seed in enumerate(seeds)]
        own: Lost | None = None
        aligned: Lost | None = None
        for size, chip in enumerate(chips, 1):
            alone = aligner.lost(chip, aligner.place(chip))
            own = alone if own is None else {name: own[name] | alone[name] for name in own}
            begun = time.perf_counter()
            joining = aligner.lost(chip, aligner.place(chip, aligned))
            seconds += time.perf_counter() - begun
            placed += 1
            aligned = joining if aligned is None else {name: aligned[name] | joining[name] for name in aligned}
            if size in SIZES:
                union = fused_chip("union", config, chips[:size])
                if pattern == PATTERNS[0]:
                    to_train += [(f"{size} in order", in_order(aligner, union)), (f"{size} aligned", aligned)]
                table.add_row(
                    pattern,
                    str(size),
                    shown(in_order(aligner, union)),
                    shown(aligner.lost(union, aligner.place(union))),
                    shown(own),
                    shown(aligned),
                )
    console.print(table)
    console.print(f"{seconds / placed * 1000:.0f} ms to place a chip")
    if arguments.train:
        groups = [(f"{what}: {shown(lost)}", lost) for what, lost in to_train]
        console.print(trained(loaded, config, groups, arguments.train))


if __name__ == "__main__":
    main()
