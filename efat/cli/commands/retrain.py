"""`efat retrain`: a plan carried out, and every chip verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.group import INTERRUPTED
from efat.cli.learning_options import WorkerRequest, worker_options
from efat.cli.parameters import INPUT_FILE
from efat.cli.printing import command_text, note, say
from efat.confidence import bound_text

if TYPE_CHECKING:
    from rich.console import Console

    from efat import Manifest, Plan

MOST_GROUPS_SHOWN = 20
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
    from efat.cli.render import console, stages_bar, working

    with working("Loading"):
        from efat import Plan
        from efat import retrain as carry_out
        from efat.retraining.manifest import FILE_NAME

        plan = Plan.load(plan_path)
    try:
        with stages_bar() as progress:
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
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    show_manifest(manifest, plan, console())
    say(f"Wrote {output / FILE_NAME}. Look at it: {command_text('report', output)}")
    if manifest.passing < len(manifest.chips):
        raise click.ClickException(failing_chips(manifest))


def show_manifest(manifest: Manifest, plan: Plan, console: Console) -> None:
    """Print what came out of a plan.

    Args:
        manifest: what came out.
        plan: what was planned.
        console: where to.
    """
    from efat.cli.render import results_table
    from efat.retraining.manifest import FILE_NAME

    shown = manifest.table()
    table = results_table(shown.title, left=shown.columns[:1], right=shown.columns[1:])
    for row in shown.texts[:MOST_GROUPS_SHOWN]:
        table.add_row(*row)
    if len(manifest.groups) > MOST_GROUPS_SHOWN:
        table.add_note(f"... and {len(manifest.groups) - MOST_GROUPS_SHOWN:,} more: see {FILE_NAME}")
    console.print(table)
    console.print(_summary(manifest, plan), style="bold")


def failing_chips(manifest: Manifest) -> str:
    """Say how many chips miss what is required, and which."""
    failing = sorted((chip for chip in manifest.chips if not chip.passes), key=lambda chip: chip.correct)
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


def _summary(manifest: Manifest, plan: Plan) -> str:
    from efat.display import counted
    from efat.planning.plan import AS_IS
    from efat.reports.text import on_array

    images, totals = manifest.images, manifest.totals
    worst = min(manifest.chips, key=lambda chip: chip.correct)
    cycle_images = sum(chip.cycle_images for chip in manifest.chips)
    alone = next((len(group.chips) for group in manifest.groups if group.name == AS_IS), 0)
    text = (
        f"{manifest.passing} of {len(manifest.chips)} chips meet {manifest.required / images:.2%} on {images:,} "
        f"unseen images; the worst is {worst.id} with {worst.correct / images:.2%}, at least "
        f"{bound_text(worst.at_least)} with 95 % confidence. {alone} needed no retraining. It took "
        f"{counted(totals.iterations, 'iteration')} ({totals.top_up_iterations:,} of them topped up, "
        f"{counted(totals.split_groups, 'group')} split)"
    )
    fixed = next((cost.iterations for cost in plan.comparison if cost.strategy == "fixed"), 0)
    if fixed:
        text += f", where fixed would take {fixed:,}"
    return f"{text}. The cycle engine gave the same for {cycle_images:,} images. {on_array(manifest.work)}"
