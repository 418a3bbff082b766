"""A picture of a retraining: the loss, and the accuracy on the chip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from efat.figures.drawing import png_figure

LOSS_COLOR = "#9D755D"
ACCURACY_COLOR = "#4C78A8"


def draw_curve(
    path: Path, title: str, losses: Sequence[float], accuracies: Sequence[tuple[int, float]], fault_free: float
) -> None:
    """Draw the loss of the mini-batches, and the accuracy (0..1) on the chip beside that without faults, as PNG.

    `accuracies` are iterations and the accuracy on the chip after them.
    """
    with png_figure(path, 8, 4.5) as figure:
        of_loss = figure.add_subplot()
        of_loss.set(xlabel="iteration", ylabel="loss of the mini-batch")
        of_loss.tick_params(axis="y", colors=LOSS_COLOR)
        if losses:
            of_loss.plot(np.arange(1, len(losses) + 1), losses, color=LOSS_COLOR, linewidth=0.8, alpha=0.7)
            of_loss.set_ylim(bottom=0)
        else:
            of_loss.set_yticks([])
        of_accuracy = of_loss.twinx()
        of_accuracy.set_ylabel("accuracy on held-out images, %")
        of_accuracy.tick_params(axis="y", colors=ACCURACY_COLOR)
        of_accuracy.axhline(
            100 * fault_free, color="#555555", linewidth=1, linestyle=":", label="quantised, fault-free"
        )
        iterations, values = zip(*accuracies, strict=True)
        percent = 100 * np.array(values)
        of_accuracy.plot(iterations, percent, color=ACCURACY_COLOR, marker="o", markersize=5, label="on the chip")
        of_accuracy.set_ylim(0, 103)
        of_loss.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2)
        of_loss.set_title(title)
