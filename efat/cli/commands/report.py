"""`efat report`: one page about a retrained lot, or about how faults travel through a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from efat.cli.options import check_output, fail
from efat.cli.parameters import INPUT_FILE
from efat.cli.printing import say

if TYPE_CHECKING:
    from efat.reports.text import Finding

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
    for given, whose in ((folder, "efat retrain or efat propagate"), (propagation, "efat propagate")):
        if given is not None and not given.is_dir():
            fail(f"{given} is no folder: expected that of {whose}")
    path = folder / DEFAULT_NAME if output is None else output
    check_output(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        fail(f"{path} is there already and is no page: choose a name that ends in .html")
    from efat.cli.render import working

    with working("Reading"):
        found = _of_propagation(folder, path, propagation) or _of_lot(folder, path, propagation)
    for finding in found:
        say(finding.sentence)
    say(f"Wrote {path}.")


def _of_propagation(folder: Path, path: Path, added: Path | None) -> tuple[Finding, ...]:
    """The page about a folder of `efat propagate`; nothing if it is no such folder."""
    from efat.propagation.tables import FILE_NAME as PROPAGATION
    from efat.retraining.manifest import FILE_NAME as LOT

    if (folder / LOT).exists() or not (folder / PROPAGATION).exists():
        return ()
    if added is not None:
        fail(f"{folder} is a folder of efat propagate: --propagation adds such a folder to the page of a lot")
    from efat.reports.propagation import read_propagation_report
    from efat.reports.propagation_page import write_propagation_page
    from efat.reports.propagation_text import propagation_findings

    report = read_propagation_report(folder)
    write_propagation_page(report, path)
    return propagation_findings(report)


def _of_lot(folder: Path, path: Path, added: Path | None) -> tuple[Finding, ...]:
    """The page about a folder of `efat retrain`."""
    from efat.reports.folder import read_report
    from efat.reports.page import write_page
    from efat.reports.propagation import read_propagation_report
    from efat.reports.propagation_text import propagation_findings
    from efat.reports.text import summary

    data = read_report(folder)
    propagation = None if added is None else read_propagation_report(added)
    write_page(data, path, propagation)
    return summary(data) + (() if propagation is None else propagation_findings(propagation))
