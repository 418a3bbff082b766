"""What `efat explain` shows of bypassed PEs: ranked by what their bypass costs, and the chip with the worst in use."""

from __future__ import annotations

from rich.console import Console

from efat import Comparison
from efat.cli.render import ResultsTable, results_table
from efat.explanation.bypass_costs import BypassCosts

MOST_PES_SHOWN = 20


def show_bypass(found: BypassCosts, console: Console) -> None:
    """Print all that was found of them."""
    if not found.costs:
        return
    console.print()
    console.print(_cost_table(found))
    if found.releases:
        console.print(_release_table(found))
    console.print(_verdict(found), style="bold", soft_wrap=True)


def _cost_table(found: BypassCosts) -> ResultsTable:
    table = results_table(
        "Bypassed PEs; in use: the chip with this one not bypassed",
        left=["place", "bypassed for"],
        right=["in use:\naccuracy", "images\ngained", "\nlost", "margin\ngained"],
    )
    for cost in found.ranked[:MOST_PES_SHOWN]:
        margin = "-" if cost.margin is None else f"{cost.margin:+.3g}"
        table.add_row(f"PE {cost.row},{cost.col}", cost.reason, *_cells(cost.in_use), margin)
    more = len(found.costs) - MOST_PES_SHOWN
    if more > 0:
        table.add_note(f"... and {more:,} more: --json has them all")
    return table


def _release_table(found: BypassCosts) -> ResultsTable:
    table = results_table(
        "The first of them in use together", left=["PEs in use"], right=["accuracy", "images\ngained", "\nlost"]
    )
    for release in found.releases:
        table.add_row(f"{release.pes:,}", *_cells(release.in_use))
    return table


def _cells(found: Comparison) -> list[str]:
    return [f"{found.accuracy.value:.1%}", str(found.gained), str(found.lost)]


def _verdict(found: BypassCosts) -> str:
    worst, best = found.ranked[0], found.best
    images = worst.in_use.accuracy.images
    if best is None:
        return "No bypass costs images: none of the PEs tried does better in use."
    before = best.in_use.accuracy.correct - best.in_use.gained + best.in_use.lost
    which = f"the first {best.pes:,} PEs" if best.pes > 1 else f"PE {worst.row},{worst.col}"
    return (
        f"With {which} in use instead of bypassed, {best.in_use.accuracy.value:.1%} of {images:,} images are right "
        f"instead of {before / images:.1%}."
    )
