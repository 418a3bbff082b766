"""What `efat retrain` shows: the groups, what they took, and how many chips meet the constraint."""

from __future__ import annotations

from rich.console import Console

from efat.cli.render import results_table
from efat.confidence import bound_text
from efat.planning.plan import Plan
from efat.reports.text import counted, on_array
from efat.retraining.manifest import AS_IS, FILE_NAME, Manifest

MOST_GROUPS_SHOWN = 20
MOST_FAILING_SHOWN = 5


def show_manifest(manifest: Manifest, plan: Plan, console: Console) -> None:
    """Print what came out of a plan.

    Args:
        manifest: what came out.
        plan: what was planned.
        console: where to.
    """
    images = manifest.images
    table = results_table(
        f"{len(manifest.chips)} chips on {images:,} images that decided nothing, {manifest.required / images:.2%} "
        "required",
        left=["group"],
        right=["chips", "planned", "iterations", "when tuned", "worst chip", "at least", "pass"],
    )
    correct = {chip.id: chip for chip in manifest.chips}
    for group in manifest.groups[:MOST_GROUPS_SHOWN]:
        chips = [correct[chip] for chip in group.chips]
        table.add_row(
            group.name,
            str(len(chips)),
            f"{group.planned:,}",
            f"{group.iterations:,}",
            f"{min(chip.tuning_correct for chip in chips) / manifest.tuning.images:.2%}",
            f"{min(chip.correct for chip in chips) / images:.2%}",
            bound_text(min(chip.at_least for chip in chips)),
            f"{sum(chip.passes for chip in chips)}/{len(chips)}",
        )
    if len(manifest.groups) > MOST_GROUPS_SHOWN:
        table.add_note(f"... and {len(manifest.groups) - MOST_GROUPS_SHOWN:,} more: see {FILE_NAME}")
    console.print(table)
    console.print(_summary(manifest, plan), style="bold")


def failing_chips(manifest: Manifest) -> str:
    """Say how many chips miss what is required, and which."""
    failing = sorted((chip for chip in manifest.chips if not chip.passes), key=lambda chip: chip.correct)
    named = [f"{chip.id} ({chip.correct / manifest.images:.2%})" for chip in failing[:MOST_FAILING_SHOWN]]
    if len(failing) > len(named):
        named.append(f"{len(failing) - len(named)} more")
    miss = "misses" if len(failing) == 1 else "miss"
    text = (
        f"{len(failing)} of {len(manifest.chips)} chips {miss} what is required on images that decided nothing: "
        f"{', '.join(named)}"
    )
    if any(chip.tuning_correct >= manifest.tuning.required for chip in failing):
        text += "; on the images that decided they met it: plan with a larger --margin, or tune on more images"
    return text


def _summary(manifest: Manifest, plan: Plan) -> str:
    images, totals = manifest.images, manifest.totals
    worst = min(manifest.chips, key=lambda chip: chip.correct)
    cycle_images = sum(chip.cycle_images for chip in manifest.chips)
    alone = next((len(group.chips) for group in manifest.groups if group.name == AS_IS), 0)
    text = (
        f"{manifest.passing} of {len(manifest.chips)} chips meet {manifest.required / images:.2%} on {images:,} "
        f"unseen images; the worst is {worst.id} with {worst.correct / images:.2%}, at least "
        f"{bound_text(worst.at_least)} with 95 % confidence. {alone} needed no retraining. It took "
        f"{counted(totals.iterations, 'iteration')} ({totals.top_up_iterations:,} of them topped up, "
        f"{counted(totals.split_groups, 'group')} split)"
    )
    fixed = next((cost.iterations for cost in plan.comparison if cost.strategy == "fixed"), 0)
    if fixed:
        text += f", where fixed would take {fixed:,}"
    return f"{text}. The cycle engine gave the same for {cycle_images:,} images. {on_array(manifest.work)}"
