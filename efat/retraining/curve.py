"""A picture of a retraining: the loss, and the accuracy on the chip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efat.retraining.metrics import Metrics, Summary
from simulator.files import replaced

LOSS_COLOR = "#9D755D"
ACCURACY_COLOR = "#4C78A8"


def draw_curve(metrics: Metrics, path: Path) -> None:
    """Draw the loss of the mini-batches, and the accuracy on the chip beside that without faults.

    Args:
        metrics: of the retraining.
        path: PNG file; it appears, or replaces an older one, only when it is complete.
    """
    summary = Summary.of(metrics)
    losses = np.array(metrics["losses"], np.float64)
    evaluations = metrics["evaluations"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    of_loss = figure.add_subplot()
    of_loss.set(xlabel="iteration", ylabel="loss of the mini-batch")
    of_loss.tick_params(axis="y", colors=LOSS_COLOR)
    if len(losses):
        of_loss.plot(np.arange(1, len(losses) + 1), losses, color=LOSS_COLOR, linewidth=0.8, alpha=0.7)
        of_loss.set_ylim(bottom=0)
    else:
        of_loss.set_yticks([])
    of_accuracy = of_loss.twinx()
    of_accuracy.set_ylabel("accuracy on held-out images, %")
    of_accuracy.tick_params(axis="y", colors=ACCURACY_COLOR)
    of_accuracy.axhline(
        100 * summary.fault_free.value, color="#555555", linewidth=1, linestyle=":", label="quantised, fault-free"
    )
    of_accuracy.plot(
        [found["iteration"] for found in evaluations],
        [100 * found["accuracy"] for found in evaluations],
        color=ACCURACY_COLOR,
        marker="o",
        markersize=5,
        label="on the chip",
    )
    of_accuracy.set_ylim(0, 103)
    of_loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    title = f"{summary.network} on {summary.chip}, {summary.mitigation}: {summary.after.value:.1%}"
    of_loss.set_title(title, parse_math=False)
    with replaced(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
