"""`efat retrain`: a plan carried out, and every chip verified."""

from __future__ import annotations

from pathlib import Path

import click

from efat.cli.group import INTERRUPTED
from efat.cli.options import INPUT_FILE
from efat.cli.printing import command_text, note, say
from efat.cli.worker_options import WorkerRequest, worker_options


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
        from efat.cli.commands.retrain_tables import failing_chips, show_manifest
        from efat.planning.plan import read_plan
        from efat.planning.planner import table_of
        from efat.retraining.execution import Execution

        plan = read_plan(plan_path)
        execution = Execution(
            plan=plan,
            lot=Path(plan.lot.path) if lot is None else lot,
            resilience=table_of(Path(plan.resilience.path) if resilience is None else resilience),
            folder=output,
            cycle_images=cycle_images,
            network=network,
        )
        executor = workers.executor()
    try:
        with stages_bar() as progress:
            manifest = execution.run(executor, progress, note)
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    show_manifest(manifest, plan, console())
    say(f"Wrote {execution.manifest}. Look at it: {command_text('report', output)}")
    if manifest.passing < len(manifest.chips):
        raise click.ClickException(failing_chips(manifest))
