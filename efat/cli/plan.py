"""`efat plan`: which chips of a lot share a retraining, and how long each takes."""

from __future__ import annotations

from pathlib import Path

import click

from efat.cli.options import INPUT_FILE, Fraction, check_output, fail, force_option, output_option
from efat.cli.printing import say


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
@click.option("--accuracy", type=Fraction(), metavar="X", help="What each chip must reach, such as 0.97 or 97%.")
@click.option(
    "--max-drop",
    type=Fraction("chips may lose {} of the images"),
    metavar="X",
    help="Or how much each may lose against the fault-free quantised network: 0.01 or 1% for one percentage point.",
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
@output_option("Plan to write (JSON).")
@force_option
def plan(
    resilience: Path,
    lot: Path,
    accuracy: float | None,
    max_drop: float | None,
    strategy: str,
    statistic: str,
    predictor: str | None,
    aligned: bool | None,
    step: int | None,
    budget: int | None,
    network: str | None,
    output: Path,
    force: bool,
) -> None:
    """Plan the retraining of a lot: give each chip what it needs, and let chips share it.

    From the resilience of the network follows how many iterations a chip takes to meet the constraint. The table
    compares what all strategies are predicted to cost; the plan that is written is that of --strategy.
    """
    if (accuracy is None) == (max_drop is None):
        fail("give one of --accuracy and --max-drop: what each chip must reach, or how much it may lose")
    check_output(output, force=force, inputs=[resilience, resilience / "resilience.h5", lot])
    from efat.cli.render import console, stages_bar, working

    with working("Loading"):
        from efat.cli.plan_tables import show_plan
        from efat.plan import write_plan
        from efat.planning import Request, make_plan, table_of
        from efat.report_commands import command_line, own_network
        from efat.selection import Constraint

    request = Request(
        Constraint(accuracy=accuracy, max_drop=max_drop),
        strategy.lower(),
        statistic,
        predictor,
        aligned,
        step,
        budget,
        network,
    )
    with stages_bar() as progress:
        planned = make_plan(table_of(resilience), lot, request, progress)
    write_plan(output, planned.plan)
    show_plan(planned, console())
    own = own_network(str(planned.plan.setup["network"]))
    following = command_line("retrain", [("--plan", str(output)), *own, ("-o", "retrained/")])
    say(f"Wrote {output}. Carry it out: {following}")
