"""What `efat resilience` shows: accuracy over fault rates and levels of retraining, and what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from efat.cli.render import results_table
from efat.resilience import PICTURE, telling_levels
from efat.resilience_table import FILE_NAME as TABLE
from efat.resilience_table import ResilienceTable
from efat.severity import Float64Array

_RATE_WIDTH, _LEVEL_WIDTH = 12, 14


def show_resilience(table: ResilienceTable, folder: Path, console: Console) -> None:
    """Print what was measured: as many levels as the terminal is wide enough for.

    Args:
        table: what was measured.
        folder: where all of it is.
        console: where to.
    """
    setup, array = table.setup, table.array
    fitting = max(2, (console.width - _RATE_WIDTH) // _LEVEL_WIDTH)
    shown = telling_levels(table.levels.tolist(), fitting)
    values = "mean (worst) accuracy in %" if table.repeats > 1 else "accuracy in %"
    chips = f"{table.repeats} random chips" if table.repeats > 1 else "1 random chip"
    # Not as the table's title, which would be as narrow as the table.
    console.print(
        f"{setup['network']} with {setup['mitigation']} on {array['rows']}x{array['cols']} PEs, "
        f"{chips} for each rate:\n{values} after so many iterations, {table.images} held-out images",
        style="bold",
    )
    results = results_table("", left=["faulty PEs"], right=[f"{table.levels[place]:,}" for place in shown])
    accuracy = table.accuracy
    for rate, of_rate in zip(table.rates, accuracy, strict=True):
        results.add_row(f"{100 * rate:g} %", *(_cell(of_rate[:, place]) for place in shown))
    console.print(results)
    facts = results_table("Without faults, and costs", left=[""], right=[""])
    facts.show_header, facts.box = False, None
    facts.add_row("accuracy of float32", f"{table.float_correct / table.images:.1%}")
    facts.add_row("accuracy quantised, fault-free", f"{table.fault_free_correct / table.images:.1%}")
    if table.harden_iterations:
        facts.add_row("the same, hardened", f"{table.start_correct / table.images:.1%}")
        facts.add_row("iterations of hardening", f"{table.harden_iterations:,}")
    facts.add_row("iterations in all", f"{table.iterations_spent:,}")
    console.print(facts)
    files = [str(folder / name) for name in (TABLE, PICTURE) if (folder / name).exists()]
    console.print(f"\nIn {' and '.join(files)}.")


def _cell(accuracies: Float64Array) -> str:
    """Mean and worst of some chips, float64 [repeats]; NaN of those whose retraining diverged."""
    if np.isnan(accuracies).all():
        return "diverged"
    mean = f"{100 * np.nanmean(accuracies):.1f}"
    if len(accuracies) == 1:
        return mean
    worst = "diverged" if np.isnan(accuracies).any() else f"{100 * accuracies.min():.1f}"
    return f"{mean} ({worst})"
