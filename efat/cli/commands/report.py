"""`efat report`: one page about a retrained lot, or about how faults travel through a network."""

from __future__ import annotations

from pathlib import Path

import click

from efat.cli.options import check_output
from efat.cli.parameters import INPUT_FILE
from efat.cli.printing import say

DEFAULT_NAME = "report.html"


@click.command(
    epilog="""\b
Examples:
  efat retrain --plan plan.json --workers 2 -o retrained/
  efat report retrained/
  efat report retrained/ -o lot-17.html
  efat propagate --network digits-cnn --array 16x16 -o prop/
  efat report prop/
  efat report retrained/ --propagation prop/
"""
)
@click.argument("folder", type=INPUT_FILE, metavar="FOLDER")
@click.option(
    "-o", "--output", type=INPUT_FILE, metavar="FILE", help=f"Page to write.  [default: FOLDER/{DEFAULT_NAME}]"
)
@click.option(
    "--propagation", type=INPUT_FILE, metavar="FOLDER", help="Folder of efat propagate, to add to the page of a lot."
)
def report(folder: Path, output: Path | None, propagation: Path | None) -> None:
    """Write a page about a retrained lot, and say in five sentences what is in it.

    FOLDER is that of efat retrain. The page shows how well each chip does, what that cost beside other strategies, the
    resilience analysis that the plan is from, the groups, and how to do it again. It is one HTML file, without scripts
    and without anything from the network; an earlier one is replaced.

    FOLDER may be that of efat propagate instead: the page shows which single faults matter, by net, bit and place on
    the array, and what ends the differences that they make. --propagation adds this to the page of a lot.
    """
    import efat
    from efat.cli.render import working

    path = folder / DEFAULT_NAME if output is None else output
    with working("Reading"):
        found = efat.report(folder, propagation)
        check_output(path)
        found.save(path)
    say(str(found))
    say(f"Wrote {path}.")
