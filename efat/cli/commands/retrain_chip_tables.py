"""What `efat retrain-chip` shows: accuracy without faults, before and after, costs, and the result in a sentence."""

from __future__ import annotations

from rich.console import Console

from efat.cli.render import facts_table, results_table
from efat.confidence import bound_text
from efat.retraining.folder import ResultFolder
from efat.retraining.metrics import Summary


def show_retraining(summary: Summary, folder: ResultFolder, console: Console) -> None:
    """Print the result of a retraining.

    Args:
        summary: what was measured.
        folder: where all of it is.
        console: where to.
    """
    rows, cols = summary.array
    which = "tuning" if summary.decided else "unseen"
    table = results_table(
        f"{summary.network} on {summary.data}, {summary.after.images} {which} images; "
        f"{summary.chip}, {rows}x{cols} array, {summary.mitigation}",
        left=["runs on"],
        right=["accuracy", "95 %\ninterval"],
    )
    named = {"float32": summary.in_float, "quantised, fault-free": summary.fault_free}
    if summary.iterations:
        named["on the chip, before retraining"] = summary.before
        named["on the chip, after"] = summary.after
    else:
        named["on the chip"] = summary.after
    if summary.decided:
        unseen = f"{summary.verified.images} unseen images"
        named[f"{unseen}, fault-free"] = summary.verified_fault_free
        named[f"{unseen}, on the chip, after"] = summary.verified
    for name, accuracy in named.items():
        low, high = accuracy.interval
        table.add_row(name, f"{accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}")
    console.print(table)
    costs = facts_table("Chip and retraining")
    pes = rows * cols
    costs.add_row("faulty PEs", _share(summary.faulty_pes, pes))
    costs.add_row("bypassed PEs", _share(summary.bypassed_pes, pes))
    costs.add_row("weights pruned", _share(summary.pruned, summary.weights))
    costs.add_row("iterations", f"{summary.iterations:,}")
    since = f", since iteration {summary.from_iteration:,}" if summary.from_iteration else ""
    costs.add_row("time", f"{_duration(summary.seconds)}{since}")
    console.print(costs)
    files = [str(file) for file in (folder.weights, folder.metrics, folder.curve) if file.exists()]
    console.print(f"\nIn {', '.join(files[:-1])} and {files[-1]}.\n")
    console.print(_verdict(summary), style="bold")


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({count / of:.2%})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _verdict(summary: Summary) -> str:
    found, fault_free = summary.verified, summary.verified_fault_free
    points = 100 * (found.value - fault_free.value)
    against = f"{abs(points):.1f} points {'below' if points < 0 else 'above'} the fault-free network"
    low, high = found.interval
    if abs(points) < 0.05:
        against = "as well as the fault-free network"
    elif low <= fault_free.value <= high:
        against += f", which {found.images:,} images are too few to tell apart"
    text = (
        f"{found.value:.1%} of {found.images:,} unseen images on {summary.chip} with {summary.mitigation} (at least "
        f"{bound_text(found.at_least)} with 95 % confidence), {against}"
    )
    text += f"; {_on_tuning_images(summary)}" if summary.decided else ""
    if summary.iterations and not summary.decided:
        text += f"; it was {summary.before.value:.1%} before {summary.iterations:,} iterations"
    return f"{text}."


def _on_tuning_images(summary: Summary) -> str:
    """What the images say that decided when it ended."""
    text = f"on {summary.after.images:,} tuning images {summary.after.value:.1%}"
    if summary.iterations:
        text += f" after {summary.iterations:,} iterations, {summary.before.value:.1%} before"
    if summary.target is None:
        return text
    return f"{text}: the target of {100 * summary.target:.6g}% was {'' if summary.reached_target else 'not '}reached"
