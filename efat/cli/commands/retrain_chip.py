"""`efat retrain-chip`: weights that work on one faulty chip, and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efat.cli.group import resumable
from efat.cli.learning_options import RecipeRequest, SplitOptions, recipe_options, split_options
from efat.cli.options import NETWORKS, NetworkRequest, fail, lot_option, network_options
from efat.cli.parameters import INPUT_FILE, FractionText, complete_chips, complete_mitigations
from efat.cli.printing import command_text, note, say, warn_of_guessing

if TYPE_CHECKING:
    from training.learning.fit import TrainingProgress


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
@network_options(
    f"Network to retrain: {NETWORKS}.",
    "Weights to start from.  [default: the network's]",
    "Images to learn from and to test on, as for efat simulate.",
    required=True,
)
@lot_option
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
    type=FractionText(),
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
    subject: NetworkRequest,
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
    subject.warn()
    from efat.cli.render import show, training_bar, working

    with working("Loading"):
        import torch

        from efat import ChipRetraining
        from efat import retrain_chip as run_retraining

        if threads is not None:
            torch.set_num_threads(threads)
        retraining = ChipRetraining(
            network=subject.name,
            lot=lot,
            chip=chip,
            mitigation=mitigation,
            weights=subject.weights,
            data=subject.data,
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
            normalization=subject.normalization,
        )
    began = None

    def told(done: int, most: int, moment: TrainingProgress | None) -> None:
        nonlocal began
        if began is None and done:
            say(f"Going on after iteration {done} of {most}, from {output / retraining.CHECKPOINT}.", err=True)
        began = done if began is None else began
        shown(done, most, moment)

    with resumable(), training_bar("Loading, quantising and calibrating") as shown:
        metrics = run_retraining(retraining, output, force=force, progress=told, notes=note)
    if began is None:
        say(
            f"{output / retraining.METRICS} is of this very retraining: nothing is run; --force runs it again.",
            err=True,
        )
    if not warn_of_guessing("the float network", metrics.on_held_out("in_float"), metrics.data.classes):
        warn_of_guessing("the quantised network", metrics.on_held_out("fault_free"), metrics.data.classes)
    *tables, verdict = metrics.parts()
    *others, last = (str(output / name) for name in (retraining.WEIGHTS, retraining.METRICS, retraining.CURVE))
    show([*tables, f"\nIn {', '.join(others)} and {last}.\n", verdict])
    if metrics.message is not None:
        raise click.ClickException(metrics.message)
    judged: dict[str, Any] = {"images": images}
    if target_accuracy is not None and metrics.data.decided_by_them:
        judged = {"verify_images": split.verify_images and "{}:{}".format(*split.verify_images)}
        judged["verify_data"] = split.verify_data
        if split.verify_images is None and split.verify_data is None:
            judged["tune_images"] = metrics.data.held_out_images
    again = command_text(
        "simulate",
        network=subject.name,
        weights=output / retraining.WEIGHTS,
        data=subject.data,
        normalize=metrics.data.normalization,
        lot=lot,
        chip=chip,
        **judged,
    )
    say(f"Try it: {again}")
