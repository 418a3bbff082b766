"""What `efat validate` shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from efat import ChipComparison, Validation
from efat.cli.render import results_table


def show_cases(validation: Validation, console: Console) -> None:
    """Cases, outputs and mismatches by site."""
    title = f"{' against '.join(reversed(list(validation.engines)))}: random faulty GEMMs, seed {validation.seed}"
    table = results_table(title, ["faults at"], ["cases", "outputs", "mismatches"])
    for site in (*validation.sites, None):
        count = validation.counts.get(site)
        if count is not None:
            name = "no faults" if site is None else site.name.lower()
            table.add_row(name, f"{count.cases:,}", f"{count.outputs:,}", f"{count.mismatches:,}")
    console.print(table)
    found = "1 mismatch" if validation.mismatch else "no mismatch"
    rate = validation.cases / validation.seconds if validation.seconds else 0.0
    console.print(
        f"{validation.cases:,} cases, {validation.outputs:,} outputs compared, {found}; {rate:,.0f} cases/s. "
        "A case counts for each site it has faults at."
    )


def show_chips(network: str, images: int, comparisons: Sequence[ChipComparison], console: Console) -> None:
    """Logits and mismatches by chip."""
    title = f"emulation against cycle: {network}, {images} images a chip"
    table = results_table(title, ["chip"], ["logits", "mismatches"])
    for comparison in comparisons:
        table.add_row(comparison.chip, f"{comparison.logits:,}", f"{comparison.mismatches:,}")
    console.print(table)
    different = sum(comparison.mismatches > 0 for comparison in comparisons)
    verdict = "All logits are identical." if not different else f"{_chips(different)} differ{'s' * (different == 1)}."
    console.print(f"{_chips(len(comparisons))}. {verdict}")


def _chips(count: int) -> str:
    return f"{count} chip" if count == 1 else f"{count} chips"
