"""A chip's fault map as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from efat.figures.drawing import png_figure
from simulator import Kind, Site
from simulator.lots.chips import Chip

SITE_COLORS = {
    Site.WEIGHT: "#4C78A8",
    Site.WEIGHT_LOAD: "#72B7B2",
    Site.ACTIVATION: "#F58518",
    Site.PRODUCT: "#54A24B",
    Site.PSUM: "#E45756",
    Site.MULTIPLIER: "#9D755D",
    Site.ACCUMULATOR: "#B279A2",
}
"""One colour per site, the same in every picture."""

_MARKERS = {Kind.STUCK_AT_0: ("o", "stuck at 0"), Kind.STUCK_AT_1: ("s", "stuck at 1"), Kind.FLIP: ("^", "flip")}


def draw_fault_map(chip: Chip, path: Path) -> None:
    """Draw where a chip is broken, which PEs must be bypassed for it, and which its fuses bypass.

    Args:
        chip: the chip.
        path: PNG file; it appears, or replaces an older one, only when it is complete.
    """
    config = chip.faults.config
    height = float(np.clip(5.5 * config.rows / config.cols, 2, 11))
    with png_figure(path, 8, height + 1.3) as figure:
        _draw(figure, chip)


def _draw(figure: Figure, chip: Chip) -> None:
    config = chip.faults.config
    table = chip.faults.table
    required = chip.faults.required_bypass()
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(True)
    background = np.ones((config.rows, config.cols, 3))
    background[required] = (0.91, 0.91, 0.91)
    # With few PEs, lines between them; with many, none, or they would be all there is.
    axes.imshow(background, extent=(-0.5, config.cols - 0.5, config.rows - 0.5, -0.5), interpolation="nearest")
    if max(config.rows, config.cols) <= 64:
        axes.set_xticks(np.arange(config.cols + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(config.rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
    size = float(np.clip((330 / max(config.rows, config.cols)) ** 2 * 0.6, 4, 220))
    for site, color in SITE_COLORS.items():
        for kind, (marker, _) in _MARKERS.items():
            chosen = table[(table["site"] == site) & (table["kind"] == kind)]
            # Column accumulators lie below the last row.
            row = chosen["row"].astype(float) if site is not Site.ACCUMULATOR else np.full(len(chosen), config.rows)
            axes.scatter(chosen["col"], row, s=size, marker=marker, color=color, linewidth=0, zorder=3, clip_on=False)
    counts = {site: int((table["site"] == site).sum()) for site in Site}
    handles = [
        axes.scatter([], [], marker="s", color=color, label=f"{site.name.lower()} ({counts[site]})")
        for site, color in SITE_COLORS.items()
        if counts[site]
    ]
    handles += [
        axes.scatter([], [], marker=marker, color="#555555", label=label)
        for kind, (marker, label) in _MARKERS.items()
        if (table["kind"] == kind).any()
    ]
    handles.append(axes.scatter([], [], marker="s", color="#E0E0E0", label=f"must be bypassed ({int(required.sum())})"))
    if chip.bypass is not None and chip.bypassed_by_fuses:
        rows, cols = np.nonzero(chip.bypass)
        label = f"bypassed by fuses ({chip.bypassed_by_fuses})"
        handles.append(
            axes.scatter(cols, rows, s=size, zorder=2, marker="x", color="#888888", linewidth=1, label=label)
        )
    figure.legend(handles=handles, loc="outside right upper")
    faulty = int(chip.faults.faulty_pes().sum())
    title = f"{chip.id}: {faulty} of {config.pe_count} PEs faulty ({faulty / config.pe_count:.2%})"
    axes.set_title(title)
    axes.set(xlabel="column (activations flow this way)", ylabel="row (partial sums flow this way)")
    lowest = config.rows + (0.8 if counts[Site.ACCUMULATOR] else -0.5)
    axes.set(xlim=(-0.5, config.cols - 0.5), ylim=(lowest, -0.5))
