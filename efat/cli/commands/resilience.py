"""`efat resilience`: how much retraining random chips need, over fault rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.group import resumable
from efat.cli.learning_options import (
    RecipeRequest,
    SplitOptions,
    WorkerRequest,
    recipe_options,
    split_options,
    worker_options,
)
from efat.cli.machine_options import ArrayRequest, FaultRequest, array_options, fault_options
from efat.cli.options import NETWORKS, NetworkRequest, array_of_lot_option, fail, network_options
from efat.cli.parameters import INPUT_FILE, PERMANENT_KINDS, NumberList, RateRange, complete_mitigations
from efat.cli.printing import command_text, note, own_network, say, warn_of_guessing

if TYPE_CHECKING:
    from simulator import ArrayConfig

DEFAULT_RATES = "0.005,0.01,0.02,0.05,0.1"
DEFAULT_LEVELS = "0,5,10,20,40,80"
DEFAULT_HARDEN_RATES = (0.0, 0.2)


@click.command(
    epilog="""\b
Examples:
  efat resilience --network digits-cnn --array 32x32 -o res/
  efat resilience --network digits-cnn --lot lot.h5 --site weight --site psum --rates 0.02,0.05,0.1,0.2 \\
      --levels 0,10,20,40,80,160 --repeats 5 -o res/
  efat resilience --network lenet5 --weights lenet5.safetensors --array 64x64 --mitigation fam+t --harden 2000 -o res/
  efat plan --resilience res/ --lot lot.h5 --max-drop 0.01 -o plan.json
"""
)
@network_options(
    f"Network to retrain: {NETWORKS}.",
    "Weights to start from.  [default: the network's]",
    "Images to learn from and to test on, as for efat simulate.",
    required=True,
)
@array_options(required=False)
@array_of_lot_option
@fault_options(PERMANENT_KINDS)
@click.option(
    "--mitigation",
    shell_complete=complete_mitigations,
    metavar="NAME",
    default="fap+t",
    show_default=True,
    help="What is done about broken PEs, as for efat retrain-chip; it has to bypass them and to retrain.",
)
@click.option(
    "--rates",
    type=NumberList(float, DEFAULT_RATES),
    default=DEFAULT_RATES,
    show_default=True,
    help="Fractions of PEs that are faulty.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), metavar="N", default=3, show_default=True, help="Random chips of each."
)
@click.option(
    "--levels",
    type=NumberList(int, DEFAULT_LEVELS),
    default=DEFAULT_LEVELS,
    show_default=True,
    help="Iterations after which accuracy is measured; 0 is always one of them.",
)
@click.option("--harden", type=click.IntRange(min=1), metavar="N", help="Harden the network for N iterations first.")
@click.option("--harden-rates", type=RateRange(), help="Fault rates that it is hardened for.  [default: 0:0.2]")
@recipe_options
@split_options
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**53),
    metavar="S",
    default=0,
    show_default=True,
    help="Seed of chips, orders and augmentation.",
)
@worker_options
@click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FOLDER", help="Folder to write into.")
def resilience(
    subject: NetworkRequest,
    described: ArrayRequest | None,
    lot: Path | None,
    described_faults: FaultRequest,
    mitigation: str,
    rates: tuple[float, ...],
    repeats: int,
    levels: tuple[int, ...],
    harden: int | None,
    harden_rates: tuple[float, float] | None,
    learning: RecipeRequest,
    split: SplitOptions,
    seed: int,
    workers: WorkerRequest,
    output: Path,
) -> None:
    """Measure how much retraining random chips need.

    Chips with random faults are made for each fault rate, and the network is retrained once for each of them. After
    each level of retraining its accuracy on the tuning images is measured, on the exact emulation of the chip. What a
    lot of chips will need is planned from this: efat plan.

    Half of the test images are tuning images, which decide everything; the others are kept for verification. Which are
    which depends on their content alone. Test images that are training images, too, are neither.

    FOLDER gets resilience.h5, resilience.png and a file for each chip that is done: the same command goes on after
    Ctrl-C, a crash or a power cut. Results do not depend on the number of workers, bit for bit.

    With other --rates, --repeats, --levels or tuning images the same folder goes on, too: only what is missing runs,
    and the table has what is asked for, as from a new folder. Higher levels go on from the last one; for levels between
    and for other images the retrainings run again, which is said.
    """
    if (described is None) == (lot is None):
        fail(
            "give the array with --array, or a lot of chips that has it with --lot"
            if lot is None
            else "--array and --lot are both given: choose one"
        )
    if harden_rates is not None and harden is None:
        fail("--harden-rates is of no hardening: say for how many iterations with --harden")
    subject.warn()
    from efat.cli.render import console, show, stages_bar, working

    ran = False
    with working("Loading and checking"):
        import efat
        from training import augmentation_of

        setup = efat.Setup(
            network=subject.name,
            weights=subject.weights,
            data=subject.data,
            mitigation=mitigation,
            recipe=learning.recipe(seed, augmentation_of(subject.name, learning.augmentation)),
            calibration=learning.calibration,
            learn_scales=learning.learn_scales,
            split=split.request(),
            normalization=subject.normalize,
        )
        config, faults = _array(described, lot, described_faults), described_faults.model(0.0)
        setup.load()
    with resumable(), stages_bar() as bar:

        def progress(done: int, of: int) -> None:
            nonlocal ran
            ran |= done < of
            bar("retrainings", done, of)

        table = efat.measure_resilience(
            output,
            setup,
            config,
            rates=rates,
            repeats=repeats,
            levels=sorted({0, *levels}),
            faults=faults,
            seed=seed,
            hardening=None if harden is None else efat.HardeningPlan(harden, *(harden_rates or DEFAULT_HARDEN_RATES)),
            workers=workers.where,
            progress=progress,
            notes=note,
        )
    if not ran:
        say(f"All of it is in {output} already: nothing is run.", err=True)
    _, data, verification, _, learned, _ = setup.load()
    in_float, fault_free = (efat.Accuracy(n, table.images) for n in (table.float_correct, table.fault_free_correct))
    if not warn_of_guessing("the float network", in_float, data.held_out.classes):
        warn_of_guessing("the quantised network", fault_free, data.held_out.classes)
    show(table)
    files = [str(output / name) for name in table.FILES if (output / name).exists()]
    console().print(f"\nIn {' and '.join(files)}.", soft_wrap=True)
    say(_judges(len(verification), learned))
    given = {"resilience": output, "lot": "lot.h5" if lot is None else lot, "max_drop": 0.01}
    say(f"Try it: {command_text('plan', **given, network=own_network(subject.name), output='plan.json')}")


def _judges(images: int, learned: int) -> str:
    """Which images are left for the verdict."""
    text = f"{images:,} other images are kept to verify a lot with; they decided nothing."
    if learned:
        also = "is a training image" if learned == 1 else "are training images"
        text += f" {learned:,} of the test images {also}, too, and left out."
    return text


def _array(described: ArrayRequest | None, lot: Path | None, faults: FaultRequest) -> ArrayConfig:
    if described is not None:
        config = described.config()
        faults.check_multiplier(config, described.faulty_multipliers)
        return config
    import efat

    assert lot is not None
    config = efat.Lot(lot).config
    faults.check_multiplier(config)
    return config
