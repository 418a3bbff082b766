"""`efat resilience`: how much retraining random chips need, over fault rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.group import INTERRUPTED
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
from efat.cli.parameters import (
    INPUT_FILE,
    PERMANENT_KINDS,
    NumberList,
    RateRange,
    complete_mitigations,
)
from efat.cli.printing import command_text, note, own_network, say, warn_of_guessing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from efat import ResilienceTable
    from efat.campaigns.campaign import Outcome, Unit, Work
    from efat.setup import Loaded
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
    from efat.cli.render import console, stages_bar, working

    with working("Loading and checking"):
        import efat
        from efat import Accuracy, WorkerDiedError
        from efat.setup import augmentation_of

        executor, ran = workers.executor(), 0

        def counted(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
            nonlocal ran
            for done in executor(work, units):
                ran += 1
                yield done

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
        loaded = setup.load()
    try:
        with stages_bar() as progress:
            table = efat.measure_resilience(
                output,
                setup,
                config,
                rates=rates,
                repeats=repeats,
                levels=sorted({0, *levels}),
                faults=faults,
                seed=seed,
                hardening=None
                if harden is None
                else efat.HardeningPlan(harden, *(harden_rates or DEFAULT_HARDEN_RATES)),
                workers=counted,
                progress=lambda done, of: progress("retrainings", done, of),
                notes=note,
            )
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except WorkerDiedError as error:
        raise click.ClickException(f"{error}; run the same command to go on") from None
    if not ran:
        say(f"All of it is in {output} already: nothing is run.", err=True)
    classes = loaded.data.held_out.classes
    in_float, fault_free = (Accuracy(n, table.images) for n in (table.float_correct, table.fault_free_correct))
    if not warn_of_guessing("the float network", in_float, classes):
        warn_of_guessing("the quantised network", fault_free, classes)
    show_resilience(table, output, console())
    say(_judges(loaded))
    given = {"resilience": output, "lot": "lot.h5" if lot is None else lot, "max_drop": 0.01}
    say(f"Try it: {command_text('plan', **given, network=own_network(subject.name), output='plan.json')}")


def _judges(loaded: Loaded) -> str:
    """Which images are left for the verdict."""
    text = f"{len(loaded.verification):,} other images are kept to verify a lot with; they decided nothing."
    if loaded.learned:
        also = "is a training image" if loaded.learned == 1 else "are training images"
        text += f" {loaded.learned:,} of the test images {also}, too, and left out."
    return text


def _array(described: ArrayRequest | None, lot: Path | None, faults: FaultRequest) -> ArrayConfig:
    if described is not None:
        config = described.config()
        faults.check_multiplier(config, described.faulty_multipliers)
        return config
    from simulator.lots.chips import ChipLot

    assert lot is not None
    with ChipLot(lot) as opened:
        faults.check_multiplier(opened.config)
        return opened.config


def show_resilience(table: ResilienceTable, folder: Path, console: Console) -> None:
    """Print what was measured.

    Args:
        table: what was measured.
        folder: where all of it is.
        console: where to.
    """
    from efat.cli.render import facts_table, results_table
    from efat.resilience.measurement import PICTURE
    from efat.resilience.table import FILE_NAME as TABLE

    shown = table.table()
    results = results_table(shown.title, left=shown.columns[:1], right=shown.columns[1:])
    for row in shown.texts:
        results.add_row(*row)
    console.print(results)
    facts = facts_table("Without faults, and costs")
    facts.add_row("accuracy of float32", f"{table.float_correct / table.images:.1%}")
    facts.add_row("accuracy quantised, fault-free", f"{table.fault_free_correct / table.images:.1%}")
    if table.harden_iterations:
        facts.add_row("the same, hardened", f"{table.start_correct / table.images:.1%}")
        facts.add_row("iterations of hardening", f"{table.harden_iterations:,}")
    facts.add_row("iterations in all", f"{table.iterations_spent:,}")
    console.print(facts)
    files = [str(folder / name) for name in (TABLE, PICTURE) if (folder / name).exists()]
    console.print(f"\nIn {' and '.join(files)}.")
    for text in shown.notes:
        console.print(text)
