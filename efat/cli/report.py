"""`efat report`: one page about a retrained lot."""

from __future__ import annotations

from pathlib import Path

import click

from efat.cli.options import INPUT_FILE, check_output, fail

DEFAULT_NAME = "report.html"


@click.command(
    epilog="""\b
Examples:
  efat retrain --plan plan.json --workers 2 -o retrained/
  efat report retrained/
  efat report retrained/ -o lot-17.html
"""
)
@click.argument("folder", type=INPUT_FILE, metavar="FOLDER")
@click.option(
    "-o", "--output", type=INPUT_FILE, metavar="FILE", help=f"Page to write.  [default: FOLDER/{DEFAULT_NAME}]"
)
def report(folder: Path, output: Path | None) -> None:
    """Write a page about a retrained lot, and say in five sentences what is in it.

    FOLDER is that of efat retrain. The page shows how well each chip does, what that cost beside other strategies, the
    resilience analysis that the plan is from, the groups, and how to do it again. It is one HTML file, without scripts
    and without anything from the network; an earlier one is replaced.
    """
    if not folder.is_dir():
        fail(f"{folder} is no folder: expected that of efat retrain")
    path = folder / DEFAULT_NAME if output is None else output
    check_output(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        fail(f"{path} is there already and is no page: choose a name that ends in .html")
    from efat.cli.render import working

    with working("Reading"):
        from efat.report import read_report
        from efat.report_page import write_page
        from efat.report_text import summary

        data = read_report(folder)
        write_page(data, path)
    for finding in summary(data):
        click.echo(finding.sentence)
    click.echo(f"Wrote {path}.")
