"""What `efat propagate` shows: what faults do by net, how they leave layers, and what ends differences on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from efat.cli.render import ResultsTable, facts_table, results_table
from efat.propagation.columns import PATTERNS

_COLLAPSED = (
    ("provably unused", "unused"),
    ("provably the same value", "same_value"),
    ("the same as another fault", "equivalent"),
)


def show_propagation(found: Mapping[str, Any], files: list[Path], console: Console) -> None:
    """Print what was found.

    Args:
        found: the summary, as `efat.propagation.summary.summary` gives it.
        files: where all of it is.
        console: where to.
    """
    array, sample, population = found["array"], found["sample"], found["population"]
    console.print(
        f"{found['subject']['network']} on {array['rows']}x{array['cols']} PEs, {found['images']:,} images: "
        f"{sample['faults']:,} of {population['faults']:,} faults tried",
        style="bold",
    )
    console.print(_effects(found))
    console.print(_layers(found))
    console.print(_masking(found))
    console.print(_facts(found))
    console.print(f"\nIn {_listed([str(path) for path in files])}.", soft_wrap=True)


def _effects(found: Mapping[str, Any]) -> ResultsTable:
    table = results_table(
        f"What they do, in % (with {100 * found['confidence']:g} % intervals)",
        left=["faults of"],
        right=[
            "tried",
            "critical\nfaults",
            "images with\nanother class",
            "images with\nother scores",
            "accuracy\nlost",
        ],
    )
    rows = [(_kind(row["kind"]), row) for row in found["by_kind"]] if len(found["by_kind"]) > 1 else []
    rows = [*((row["site"].lower(), row) for row in found["by_site"]), *rows]
    for place, (name, row) in enumerate(rows):
        last = place == len(rows) - 1 or place == len(found["by_site"]) - 1
        _add_effects(table, name, row, end_section=last)
    _add_effects(table, "all", found["overall"])
    return table


def _add_effects(table: ResultsTable, name: str, row: Mapping[str, Any], *, end_section: bool = False) -> None:
    lost = row["accuracy_lost"]
    table.add_row(
        name,
        f"{row['faults']:,}",
        _interval(row["critical"]),
        _interval(row["avf"]),
        _interval(row["scores_changed"]),
        "" if lost is None else f"{100 * lost['value']:.2f}",
        end_section=end_section,
    )


def _layers(found: Mapping[str, Any]) -> ResultsTable:
    """Images whose outputs of a layer change, and the patterns of the outputs that do."""
    table = results_table(
        "How they leave layers: images with other outputs, and which outputs, in %",
        left=["layer"],
        right=["images", *PATTERNS],
    )
    for row in found["layers"]:
        shares = (row["pattern_shares"][name] for name in PATTERNS)
        table.add_row(row["layer"], _interval(row["reached"]), *map(_share, shares))
    return table


def _masking(found: Mapping[str, Any]) -> ResultsTable:
    table = results_table(
        "What ends differences: images that differ before an operation, not after it",
        left=["operation"],
        right=["differ", "end there\nin %"],
    )
    for row in found["masking"]["by_kind"]:
        table.add_row(row["kind"], f"{row['images_in']:,}", _share(row["masked_share"]))
    return table


def _facts(found: Mapping[str, Any]) -> ResultsTable:
    facts = facts_table("Of all faults, and without faults")
    rules = found["population"]["rules"]
    for name, rule in _COLLAPSED if rules is not None else ():
        facts.add_row(f"faults that are {name}", f"{rules[rule]['faults']:,} ({_percent(rules[rule]['share'])})")
    facts.add_row("accuracy quantised, fault-free", _percent(found["fault_free"]["accuracy"]))
    return facts


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    # All faults were tried where both ends are the same.
    return f"{value:.1f}" if low == high else f"{value:.1f} ({low:.1f}-{high:.1f})"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _kind(name: str) -> str:
    return name.lower().replace("_", "-")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
