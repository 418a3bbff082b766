"""What the faults of a multiplier's gates do, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from efat.figures.drawing import png_figure
from simulator.gates.netlist import Netlist
from simulator.multipliers.fault_classes import FaultClass

_GATE, _BIT = "#4C78A8", "#E45756"


def draw_fault_classes(name: str, netlist: Netlist, classes: Sequence[FaultClass], path: Path) -> None:
    """Draw which product bits each class of faults inverts, and how classes lie to the stuck bits of the product.

    The PNG file appears, or replaces an older one, only when it is complete.
    """
    seen = sorted((one for one in classes if one.detectable), key=lambda one: -one.disturbed)
    with png_figure(path, 11, 4.2, dpi=90) as figure:
        bits = f"{netlist.weight_bits}x{netlist.act_bits} bits"
        figure.suptitle(f"{name}, {bits}: {len(seen)} classes of stuck-at faults of its gates")
        _draw(figure, netlist, seen)


def _draw(figure: Figure, netlist: Netlist, seen: Sequence[FaultClass]) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])

    # The smallest fraction there is gets a colour of its own.
    fractions = LogNorm(1 / (1 << netlist.product_bits), 1)
    bits = np.array([one.bits for one in seen]).reshape(-1, netlist.product_bits).T
    image = left.imshow(
        np.where(bits > 0, bits, np.nan), origin="lower", aspect="auto", cmap="viridis", norm=fractions,
        interpolation="nearest",
    )  # fmt: skip
    figure.colorbar(image, ax=left, label="fraction of inputs that invert it")
    left.set(xlabel="class, most disturbing first", ylabel="product bit", title="Which bits each class inverts")

    for equal, color, label in ((False, _GATE, "no stuck bit"), (True, _BIT, "equal to a stuck bit")):
        chosen = [one for one in seen if (one.nearest.differs == 0) == equal]
        middle.scatter(
            [one.disturbed for one in chosen],
            [one.errors.mean_absolute for one in chosen],
            s=30 if equal else 6,
            color=color,
            alpha=1 if equal else 0.5,
            linewidth=0,
            label=f"{label} ({len(chosen)})",
        )
    middle.set(xlabel="fraction of inputs disturbed", ylabel="mean absolute error of the product", xlim=(0, 1))
    middle.set(yscale="log", title="How often and how far")
    middle.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    distances = np.sort([one.nearest.differs for one in seen])
    right.step(distances, np.arange(1, len(seen) + 1) / max(len(seen), 1), where="post", color=_GATE)
    right.set(xlabel="fraction of inputs", ylabel="classes up to there", xlim=(0, 1), ylim=(0, 1))
    right.set_title("Nearest stuck bit is wrong for")
    left.spines[["top", "right"]].set_visible(True)
