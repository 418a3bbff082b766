"""What does a fault map do to a GEMM and to a network? Prints a table, and draws the picture of the README.

Run: python benchmarks/fault_effect.py [--png docs/fault-effect.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from efat.figures.fault_map import SITE_COLORS
from efat.inference.classified import run_chip
from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults, simulate_gemm
from training.data.classification import classify
from training.data.workloads import load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip

SIZE = 32
RATES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def accuracies(images: int, maps: int) -> dict[bool, npt.NDArray[np.float64]]:
    """Accuracy [rates, maps] of digits-cnn, by whether the required PEs are bypassed."""
    workload = load_workload("digits-cnn")
    config = ArrayConfig(SIZE, SIZE)
    network = convert(workload.network, config, workload.calibration)
    pictures, labels = workload.test.images[:images], workload.test.labels[:images]
    put_on_chip(network, Accelerator(config, engine="exact"))
    fault_free = classify(network, pictures, images)
    found = {bypass: np.zeros((len(RATES), maps)) for bypass in (False, True)}
    for i, rate in track(list(enumerate(RATES)), description="chips"):
        for j in range(maps):
            faults = sample_faults(config, FaultModel(rate), np.random.SeedSequence(1, spawn_key=(i, j)))
            for bypass, values in found.items():
                mask = faults.required_bypass() if bypass else None
                report = run_chip(network, Accelerator(config, faults, mask), pictures, labels, fault_free, images)
                values[i, j] = report.accuracy.value
    return found


def draw(
    path: Path, faults: FaultMap, changed: npt.NDArray[np.int64], found: dict[bool, npt.NDArray[np.float64]]
) -> None:
    """Fault map, changed outputs of a GEMM, and accuracy against fault rate, side by side."""
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    figure, (chip, outputs, network) = pyplot.subplots(
        1, 3, figsize=(13, 4.4), width_ratios=(1, 1.1, 1.15), layout="constrained"
    )
    chip.set_title(f"a chip: {len(faults)} of {faults.config.pe_count} PEs are broken")
    for site, color in SITE_COLORS.items():
        if site is Site.ACCUMULATOR:
            continue
        rows = faults.table[faults.table["site"] == site]
        chip.scatter(rows["col"], rows["row"], s=34, marker="s", color=color, label=site.name)
    chip.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5), xlabel="column", ylabel="row", aspect="equal")
    figure.legend(*chip.get_legend_handles_labels(), fontsize=8, loc="outside lower left", ncols=5, frameon=False)

    outputs.set_title("a GEMM on it: error of each output")
    shown = outputs.imshow(
        np.where(changed == 0, np.nan, changed), norm=LogNorm(), cmap="magma_r", aspect="auto", interpolation="nearest"
    )
    outputs.set_facecolor("#eeeeee")
    outputs.set(xlabel="output n (column n mod 32)", ylabel="row m of X")
    figure.colorbar(shown, ax=outputs, label="|error| (grey: exact)")

    network.set_title("digits-cnn on such chips")
    for bypass, label, color in ((False, "as they are", "#E45756"), (True, "broken PEs bypassed", "#4C78A8")):
        values = 100 * found[bypass]
        percent = [100 * rate for rate in RATES]
        network.plot(percent, values.mean(1), marker="o", color=color, label=label)
        network.fill_between(percent, values.min(1), values.max(1), color=color, alpha=0.18, linewidth=0)
    network.set(xlabel="faulty PEs (%)", ylabel="accuracy (%)", ylim=(0, 102))
    network.legend(frameon=False)
    network.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table and, if asked to, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, help="draw the picture into this file")
    parser.add_argument("--images", type=int, default=360, help="test images (default: 360)")
    parser.add_argument("--maps", type=int, default=12, help="fault maps per rate (default: 12)")
    arguments = parser.parse_args()

    config = ArrayConfig(SIZE, SIZE)
    random = np.random.default_rng(3)
    x = random.integers(0, 128, (64, 96))
    w = random.integers(-127, 128, (96, 64))
    faults = sample_faults(config, FaultModel(0.01), seed=8)
    changed = np.abs(simulate_gemm(x, w, config, faults).outputs.astype(np.int64) - x @ w)

    found = accuracies(arguments.images, arguments.maps)
    table = Table(
        title=f"digits-cnn, {SIZE}x{SIZE}, {arguments.maps} uniform fault maps per rate, {arguments.images} images"
    )
    for heading in ("faulty PEs", "as they are: mean", "min", "max", "bypassed: mean", "min", "max"):
        table.add_column(heading, justify="right")
    for i, rate in enumerate(RATES):
        cells = [f"{rate:.1%}"]
        for bypass in (False, True):
            values = found[bypass][i]
            cells += [f"{values.mean():.1%}", f"{values.min():.1%}", f"{values.max():.1%}"]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(f"64x96 by 96x64 GEMM on the drawn chip: {(changed > 0).mean():.1%} of outputs changed")
    if arguments.png is not None:
        draw(arguments.png, faults, changed, found)
        console.print(f"wrote {arguments.png}")


if __name__ == "__main__":
    main()
