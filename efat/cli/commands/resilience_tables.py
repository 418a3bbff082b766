"""What `efat resilience` shows: accuracy over fault rates and levels of retraining, and what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from efat.cli.render import facts_table, results_table
from efat.planning.selection import worsening
from efat.resilience.measurement import PICTURE
from efat.resilience.table import FILE_NAME as TABLE
from efat.resilience.table import ResilienceTable
from simulator.faults import Float64Array


def show_resilience(table: ResilienceTable, folder: Path, console: Console) -> None:
    """Print what was measured.

    Args:
        table: what was measured.
        folder: where all of it is.
        console: where to.
    """
    setup, array = table.setup, table.array
    values = "mean (worst) accuracy in %" if table.repeats > 1 else "accuracy in %"
    chips = f"{table.repeats} random chips" if table.repeats > 1 else "1 random chip"
    results = results_table(
        f"{setup.network} with {setup.mitigation} on {array['rows']}x{array['cols']} PEs, "
        f"{chips} for each rate:\n{values} after so many iterations, {table.images:,} tuning images",
        left=["faulty PEs"],
        right=[f"{level:,}" for level in table.levels.tolist()],
    )
    accuracy = table.accuracy
    for rate, of_rate in zip(table.rates, accuracy, strict=True):
        results.add_row(f"{100 * rate:g} %", *map(_cell, of_rate.T))
    console.print(results)
    facts = facts_table("Without faults, and costs")
    facts.add_row("accuracy of float32", f"{table.float_correct / table.images:.1%}")
    facts.add_row("accuracy quantised, fault-free", f"{table.fault_free_correct / table.images:.1%}")
    if table.harden_iterations:
        facts.add_row("the same, hardened", f"{table.start_correct / table.images:.1%}")
        facts.add_row("iterations of hardening", f"{table.harden_iterations:,}")
    facts.add_row("iterations in all", f"{table.iterations_spent:,}")
    console.print(facts)
    files = [str(folder / name) for name in (TABLE, PICTURE) if (folder / name).exists()]
    console.print(f"\nIn {' and '.join(files)}.")
    if worse := worsening(table):
        console.print(f"Note: {worse}.")


def _cell(accuracies: Float64Array) -> str:
    """Mean and worst of some chips, float64 [repeats]; NaN of those whose retraining diverged."""
    if np.isnan(accuracies).all():
        return "diverged"
    mean = f"{100 * np.nanmean(accuracies):.1f}"
    if len(accuracies) == 1:
        return mean
    worst = "diverged" if np.isnan(accuracies).any() else f"{100 * accuracies.min():.1f}"
    return f"{mean} ({worst})"
