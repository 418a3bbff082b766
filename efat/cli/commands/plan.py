"""`efat plan`: which chips of a lot share a retraining, and how long each takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.group import resumable
from efat.cli.learning_options import WorkerRequest, worker_options
from efat.cli.options import check_output, fail, force_option, output_option
from efat.cli.parameters import INPUT_FILE, FractionText
from efat.cli.printing import command_text, note, own_network, say

if TYPE_CHECKING:
    pass


@click.command(
    epilog="""\b
Examples:
  efat resilience --network digits-cnn --array 32x32 -o resilience/
  efat plan --resilience resilience/ --lot lot.h5 --max-drop 0.01 -o plan.json
  efat plan --resilience resilience/ --lot lot.h5 --accuracy 0.97 --strategy select -o plan.json
  efat retrain --plan plan.json --workers 2 -o retrained/

\b
Strategies:
  fixed    every chip is retrained for as long as the worst one needs
  select   every chip is retrained for as long as it needs
  merge-K  K chips at a time share a retraining, as they come: merge-5
  efat     chips share a retraining where that takes less than retraining them one by one
"""
)
@click.option(
    "--resilience", required=True, type=INPUT_FILE, metavar="FOLDER", help="Folder of efat resilience, or its table."
)
@click.option("--lot", required=True, type=INPUT_FILE, metavar="FILE", help="Lot of chips (HDF5).")
@click.option("--accuracy", type=FractionText(), metavar="X", help="What each chip must reach, such as 0.97 or 97%.")
@click.option(
    "--max-drop",
    type=FractionText("chips may lose {} of the images"),
    metavar="X",
    help="Or how much each may lose against the fault-free quantised network: 0.01 or 1% for one percentage point.",
)
@click.option(
    "--margin",
    type=FractionText("tuning images must do better by {}"),
    metavar="X",
    default=0.0,
    show_default=True,
    help="How much more is asked for on tuning images, such as 0.005 or 0.5%: the verdict is on other images.",
)
@click.option(
    "--strategy", metavar="NAME", default="efat", show_default=True, help="Which chips share a retraining; see below."
)
@click.option(
    "--statistic",
    metavar="NAME",
    default="max",
    show_default=True,
    help="Over the repeats of the resilience analysis: max (all meet the constraint), quantile:0.9, or mean.",
)
@click.option(
    "--predictor",
    type=click.Choice(["faulty_pes", "weights", "pruned", "saliency"]),
    help="How bad a chip is: faulty PEs, weights on bypassed PEs, weights pruned, squared weights pruned.  "
    "[default: what foretells accuracy best]",
)
@click.option(
    "--align/--no-align",
    "aligned",
    default=None,
    help="Let each chip place the weights to suit its group (only if the mitigation permutes).  "
    "[default: what takes less]",
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="N",
    help="Iterations by which a group that misses is topped up.  [default: 1/16 of the largest level]",
)
@click.option(
    "--budget",
    type=click.IntRange(min=0),
    metavar="N",
    help="Most iterations for a group.  [default: twice the largest level]",
)
@click.option(
    "--network", metavar="NAME", help="The network, as package.module:function, if it is your own: its code will run."
)
@click.option(
    "--try/--no-try",
    "tried",
    default=True,
    show_default=True,
    help="Try each chip of the lot without retraining first; what was tried before is kept in the folder of the table.",
)
@worker_options
@output_option("Plan to write (JSON).")
@force_option
def plan(
    resilience: Path,
    lot: Path,
    accuracy: float | None,
    max_drop: float | None,
    margin: float,
    strategy: str,
    statistic: str,
    predictor: str | None,
    aligned: bool | None,
    step: int | None,
    budget: int | None,
    network: str | None,
    tried: bool,
    workers: WorkerRequest,
    output: Path,
    force: bool,
) -> None:
    """Plan the retraining of a lot: give each chip what it needs, and let chips share it.

    Each chip is tried without retraining first, on the tuning images: one that meets the constraint needs none. How
    many iterations the others take to meet it follows from the resilience of the network. The table compares what all
    strategies are predicted to cost; the plan that is written is that of --strategy.
    """
    if (accuracy is None) == (max_drop is None):
        fail("give one of --accuracy and --max-drop: what each chip must reach, or how much it may lose")
    if not tried and workers.given:
        fail(f"{workers.given[0]} is of no use with --no-try: nothing is run")
    check_output(output, force=force, inputs=[resilience, resilience / "resilience.h5", lot])
    from efat.cli.render import show, stages_bar, working

    with working("Loading"):
        import efat

    with resumable(), stages_bar() as progress:
        made = efat.plan(
            resilience,
            lot,
            accuracy=accuracy,
            max_drop=max_drop,
            margin=margin,
            strategy=strategy,
            statistic=statistic,
            predictor=predictor,
            aligned=aligned,
            step=step,
            budget=budget,
            network=network,
            tried=tried,
            workers=workers.where if tried else 0,
            progress=progress,
            notes=note,
        )
    made.save(output)
    show(made)
    own = own_network(str(made.setup.network))
    following = command_text("retrain", plan=output, network=own, output="retrained/")
    say(f"Wrote {output}. Carry it out: {following}")
