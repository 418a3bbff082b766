"""`efat retrain`: a plan carried out, and every chip verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.group import resumable
from efat.cli.learning_options import WorkerRequest, worker_options
from efat.cli.parameters import INPUT_FILE
from efat.cli.printing import command_text, note, say

if TYPE_CHECKING:
    from efat import Manifest

MOST_FAILING_SHOWN = 5


@click.command(
    epilog="""\b
Examples:
  efat plan --resilience resilience/ --lot lot.h5 --max-drop 0.01 -o plan.json
  efat retrain --plan plan.json --workers 2 -o retrained/
  efat simulate --manifest retrained/manifest.json --lot lot.h5 --chip chip-0003
  efat report retrained/
"""
)
@click.option("--plan", "plan_path", required=True, type=INPUT_FILE, metavar="FILE", help="Plan of efat plan (JSON).")
@click.option("--lot", type=INPUT_FILE, metavar="FILE", help="Lot of chips, if it is not where it was for the plan.")
@click.option(
    "--resilience",
    type=INPUT_FILE,
    metavar="FOLDER",
    help="Folder of efat resilience, or its table, if it is not where it was for the plan.",
)
@click.option(
    "--cycle-images",
    type=click.IntRange(min=0),
    metavar="N",
    default=8,
    show_default=True,
    help="Images that each chip classifies on the cycle engine, too.",
)
@click.option(
    "--network", metavar="NAME", help="The network, as package.module:function, if it is your own: its code will run."
)
@worker_options
@click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FOLDER", help="Folder to write into.")
def retrain(
    plan_path: Path,
    lot: Path | None,
    resilience: Path | None,
    cycle_images: int,
    network: str | None,
    workers: WorkerRequest,
    output: Path,
) -> None:
    """Carry out a plan for a lot: retrain the groups, and verify every chip.

    A group that misses what is required goes on in steps until it meets it or its budget is spent; then it is split.
    Tuning images decide that. In the end each chip is judged, once, on the verification images, which decided nothing:
    with its own faults, on the exact emulation, and on some of them on the cycle engine.

    FOLDER gets the weights of each group, how they sit on each chip, and manifest.json, which says what runs where and
    how well. The same command goes on after Ctrl-C, a crash or a power cut.
    """
    from efat.cli.render import show, stages_bar, working

    with working("Loading"):
        from efat import Plan
        from efat import retrain as carry_out

        plan = Plan.load(plan_path)
    with resumable(), stages_bar() as progress:
        manifest = carry_out(
            plan,
            output,
            lot=lot,
            resilience=resilience,
            cycle_images=cycle_images,
            network=network,
            workers=workers.where,
            progress=progress,
            notes=note,
        )
    show(manifest.parts(plan))
    say(f"Wrote {output / manifest.FILE_NAME}. Look at it: {command_text('report', output)}")
    if manifest.failing:
        raise click.ClickException(failing_chips(manifest))


def failing_chips(manifest: Manifest) -> str:
    """Say how many chips miss what is required, and which."""
    failing = manifest.failing
    named = [f"{chip.id} ({chip.correct / manifest.images:.2%})" for chip in failing[:MOST_FAILING_SHOWN]]
    if len(failing) > len(named):
        named.append(f"{len(failing) - len(named)} more")
    miss = "misses" if len(failing) == 1 else "miss"
    text = (
        f"{len(failing)} of {len(manifest.chips)} chips {miss} what is required on images that decided nothing: "
        f"{', '.join(named)}"
    )
    if any(chip.tuning_correct >= manifest.tuning.required for chip in failing):
        text += "; on the images that decided they met it: plan with a larger --margin, or tune on more images"
    return text
