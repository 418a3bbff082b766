"""`efat retrain-chip`: weights that work on one faulty chip, and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.completion import complete_chips, complete_mitigations, complete_networks
from efat.cli.group import INTERRUPTED
from efat.cli.network_warnings import warn_of_guessing, warn_of_own_weights
from efat.cli.options import INPUT_FILE, NETWORKS, Fraction, fail, normalization_of, normalize_option
from efat.cli.printing import note, say
from efat.cli.recipe_options import RecipeRequest, recipe_options
from efat.cli.split_options import SplitOptions, split_options

if TYPE_CHECKING:
    from efat.retraining.chip import Retraining
    from efat.retraining.folder import ResultFolder


@click.command(
    name="retrain-chip",
    epilog="""\b
Examples:
  efat chips generate --array 32x32 --count 5 --fault-rate 0.05 -o lot.h5
  efat retrain-chip --network digits-cnn --lot lot.h5 --chip chip-0003 --mitigation fap+t --epochs 5 -o out/
  efat simulate --network digits-cnn --weights out/weights.safetensors --lot lot.h5 --chip chip-0003
  efat retrain-chip --network digits-cnn --lot lot.h5 --chip chip-0003 --mitigation fam+t --iterations 500 \\
      --optimizer AdamW --learning-rate 0.001 --option weight_decay=0.05 --schedule CosineAnnealingLR -o fam/

\b
Mitigations:
  none         the chip as it is
  fap          bypass broken PEs, and prune the weights there (fault-aware pruning)
  fam          the same, with rows and columns permuted so that least is lost (fault-aware mapping);
               fam-rows and fam-columns permute only one of them
  ...+t        then retrain
  ...+bn       measure the statistics of batch normalisation anew on the chip first: fap+bn+t
  ...+gradual  with the faults injected in steps: fap+t+gradual
""",
)
@click.option(
    "--network",
    shell_complete=complete_networks,
    required=True,
    metavar="NAME",
    help=f"Network to retrain: {NETWORKS}.",
)
@click.option("--weights", type=INPUT_FILE, metavar="FILE", help="Weights to start from.  [default: the network's]")
@click.option(
    "--data", type=INPUT_FILE, metavar="PATH", help="Images to learn from and to test on, as for efat simulate."
)
@normalize_option
@click.option("--lot", required=True, type=INPUT_FILE, metavar="FILE", help="Lot of chips (HDF5).")
@click.option("--chip", shell_complete=complete_chips, required=True, metavar="ID", help="Chip to retrain for.")
@click.option(
    "--mitigation",
    shell_complete=complete_mitigations,
    required=True,
    metavar="NAME",
    help="What is done about broken PEs, such as fap+t.",
)
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Mini-batches to learn from.")
@click.option("--epochs", type=float, metavar="X", help="Passes over the training images instead, such as 1.5.")
@recipe_options
@click.option(
    "--evaluate-at",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Measure accuracy after N iterations, too; repeatable.",
)
@click.option(
    "--target-accuracy",
    type=Fraction(),
    metavar="X",
    help="End at the first evaluation of X or more on tuning images, 0.97 or 97%; the others judge.",
)
@split_options
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Test images to measure on, if there is no target accuracy.  [default: all]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="S",
    default=0,
    show_default=True,
    help="Seed of orders and augmentation.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: as torch has them]")
@click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FOLDER", help="Folder to write into.")
@click.option("--force", is_flag=True, help="Start over in a folder that has other results.")
def retrain_chip(
    network: str,
    weights: Path | None,
    data: Path | None,
    normalize: str | None,
    lot: Path,
    chip: str,
    mitigation: str,
    iterations: int | None,
    epochs: float | None,
    learning: RecipeRequest,
    evaluate_at: tuple[int, ...],
    target_accuracy: float | None,
    split: SplitOptions,
    images: int | None,
    seed: int,
    threads: int | None,
    output: Path,
    force: bool,
) -> None:
    """Retrain a network for one faulty chip, and prove it works there.

    The network learns quantised and on the chip: its forward pass is bit for bit what the chip computes. Accuracy is
    that of held-out images on the exact emulation of the chip, and efat simulate gives the same for the weights that
    are written, with either engine.

    FOLDER gets weights.safetensors, metrics.json with everything that was measured, and curve.png. Until then it has a
    checkpoint: the same command goes on after Ctrl-C, a crash or a power cut, and ends with the same bits. With the
    same number of threads a run can be repeated bit for bit.
    """
    if iterations is not None and epochs is not None:
        fail("--iterations and --epochs are both given: choose one")
    if target_accuracy is None and split.given:
        fail(
            f"{split.given[0]} is of no use without --target-accuracy: no image decides anything, and all of them judge"
        )
    if target_accuracy is not None and images is not None:
        fail("--images is of no use with --target-accuracy: say how many images decide with --tune-images")
    warn_of_own_weights(network, weights)
    from efat.cli.render import console, working

    with working("Loading, quantising and calibrating"):
        import torch

        from efat.cli.commands.retrain_chip_tables import show_retraining
        from efat.retraining.chip import prepare
        from efat.retraining.folder import ResultFolder
        from efat.retraining.metrics import Summary, read_metrics

        folder = ResultFolder(output)
        folder.check(inputs=[path for path in (lot, weights, data) if path is not None])
        if threads is not None:
            torch.set_num_threads(threads)
        retraining = prepare(
            network=network,
            lot=lot,
            chip=chip,
            mitigation=mitigation,
            weights=weights,
            data=data,
            iterations=iterations,
            epochs=epochs,
            recipe=learning.recipe(seed),
            augment=learning.augmentation,
            evaluate_at=evaluate_at,
            target_accuracy=target_accuracy,
            calibration=learning.calibration,
            learn_scales=learning.learn_scales,
            images=images,
            split=split.request() if split.given else None,
            normalization=normalization_of(normalize),
        )
        metrics = None if force else folder.finished(retraining.identity, note)
    if metrics is not None:
        say(f"{folder.metrics} is of this very retraining: nothing is run; --force runs it again.", err=True)
    else:
        _run(retraining, folder, force)
        metrics = read_metrics(folder.metrics)
    summary = Summary.of(metrics)
    classes = retraining.data.held_out.classes
    if not warn_of_guessing("the float network", summary.in_float, classes):
        warn_of_guessing("the quantised network", summary.fault_free, classes)
    show_retraining(summary, folder, console())
    if summary.message is not None:
        raise click.ClickException(summary.message)
    say(f"Try it: {_simulate_command(retraining, folder)}")


def _simulate_command(retraining: Retraining, folder: ResultFolder) -> str:
    """The command that measures the same accuracy."""
    from efat.reports.commands import command_line

    options = [("--network", retraining.network_name), ("--weights", str(folder.weights))]
    split = retraining.split
    if retraining.source is not None:
        options.append(("--data", str(retraining.source)))
    if retraining.normalization is not None:
        options.append(("--normalize", str(retraining.normalization)))
    options += [("--lot", str(retraining.lot)), ("--chip", retraining.chip.id)]
    if retraining.images is not None:
        options.append(("--images", str(retraining.images)))
    if split is not None and split.verify_images is not None:
        options.append(("--verify-images", "{}:{}".format(*split.verify_images)))
    elif split is not None and split.verify_data is not None:
        options.append(("--verify-data", str(split.verify_data)))
    elif split is not None:
        options.append(("--tune-images", str(len(retraining.data.held_out))))
    return command_line("simulate", options)


def _run(retraining: Retraining, folder: ResultFolder, force: bool) -> None:
    from efat.cli.render import training_bar

    iterations = retraining.prepared.iterations
    done = folder.begin(retraining.identity, force=force, notes=note)
    if done:
        say(f"Going on after iteration {done} of {iterations}, from {folder.checkpoint}.", err=True)
    try:
        with training_bar(iterations, done) as progress:
            retraining.run(progress, checkpoint=folder.checkpoint, done=done)
        left_out = retraining.write(folder)
        folder.end()
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    if left_out is not None:
        say(left_out, err=True)
