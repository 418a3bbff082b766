"""How fast does the cycle engine step the array, and what limits it?

Prints PE-cycles/s and multiply-accumulates/s over array size, fault rate and threads, beside a NumPy stepping of the
same machine measured in the same run; the engine's parts by themselves, down to a fault-free PE on data in the
first-level cache, which is the limit; and images/s of a whole network.

Run: python benchmarks/cycle_engine.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from efat.inference.classified import run_chip
from simulator import ArrayConfig, FaultMap, FaultModel, GemmResult, sample_faults, simulate_gemm
from simulator.engine.cycle_kernel import BLOCK_CYCLES, FoldProducts, Tape, _kernel, _step_clean, load_weights, stream
from simulator.engine.masks import NO_FLIPS, PeMasks, pe_masks, stuck_masks
from simulator.engine.timing import stream_cycles
from simulator.faults import Site
from simulator.pe_behaviour import pe_products
from training.data.classification import classify
from training.data.workloads import load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert

IntArray = npt.NDArray[np.int32]


def numpy_gemm(x: IntArray, w: IntArray, faults: FaultMap) -> IntArray:
    """The same machine stepped with whole-array NumPy operations, one clock cycle at a time: the baseline.

    One fold (K <= rows, N <= cols), permanent faults, no bypass. Returns int32 [M, N].
    """
    config = faults.config
    rows, cols = config.rows, config.cols
    m, k = x.shape
    n = w.shape[1]
    pe: PeMasks = pe_masks(faults, np.zeros((rows, cols), np.bool_))
    masks = {name: mask.astype(np.int32) for name, mask in pe._asdict().items()}

    shift = np.zeros((rows, cols), np.int32)
    tile = np.zeros((rows, cols), np.int32)
    tile[:k, :n] = w
    for cycle in range(rows):
        arriving = np.vstack([tile[rows - 1 - cycle], shift[:-1]])
        shift = (arriving & masks["load_keep"]) | masks["load_force"]
    weight = (shift & masks["weight_keep"]) | masks["weight_force"]

    accumulator_keep, accumulator_force = (mask[0] for mask in stuck_masks(faults, Site.ACCUMULATOR, np.int32))
    east = np.zeros((rows, cols), np.int32)
    south = np.zeros((rows, cols), np.int32)
    outputs = np.zeros((m, cols), np.int32)
    row, column = np.arange(rows), np.arange(cols)
    for cycle in range(stream_cycles(config, m)):
        fed = np.zeros((rows, 1), np.int32)
        row_of_x = cycle - row
        active = (row_of_x >= 0) & (row_of_x < m) & (row < k)
        fed[active, 0] = x[row_of_x[active], row[active]]
        act = (np.hstack([fed, east[:, :-1]]) & masks["act_keep"]) | masks["act_force"]
        product = ((act * weight) & masks["product_keep"]) | masks["product_force"]
        arriving = np.vstack([np.zeros((1, cols), np.int32), south[:-1]])
        south = ((arriving + product) & masks["psum_keep"]) | masks["psum_force"]
        east = act
        leaving = cycle - (rows - 1) - column
        written = (leaving >= 0) & (leaving < m)
        outputs[leaving[written], column[written]] = south[-1, written]
    outputs &= accumulator_keep
    outputs |= accumulator_force
    return outputs[:, :n]


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Shortest wall-clock time of a call, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_rows(table: Table, sizes: list[int], rates: list[float], threads: list[int], m: int) -> None:
    """One row per array size, fault rate and number of threads."""
    random = np.random.default_rng(0)
    for size in sizes:
        config = ArrayConfig(size, size)
        x = random.integers(-128, 128, (m, size), dtype=np.int32)
        w = random.integers(-128, 128, (size, size), dtype=np.int32)
        for rate in rates:
            faults = sample_faults(config, FaultModel(rate), seed=1)
            baseline_rows = min(m, 256)
            baseline = best_of(lambda x=x, w=w, f=faults, b=baseline_rows: numpy_gemm(x[:b], w, f), 1)  # type: ignore[misc]
            baseline_rate = config.pe_count * (config.rows + stream_cycles(config, baseline_rows)) / baseline
            for count in threads:

                def run(x: IntArray = x, w: IntArray = w, faults: FaultMap = faults, count: int = count) -> GemmResult:
                    return simulate_gemm(x, w, faults.config, faults, threads=count)

                result = run()
                if not np.array_equal(result.outputs[:baseline_rows], numpy_gemm(x[:baseline_rows], w, faults)):
                    raise SystemExit("the engine and the NumPy stepping disagree")
                seconds = best_of(run, 7)
                pe_cycles = config.pe_count * result.cycles / seconds
                table.add_row(
                    f"{size}x{size}",
                    f"{rate:.1%}",
                    str(count),
                    f"{pe_cycles / 1e9:.2f}",
                    f"{m * size * size / seconds / 1e9:.2f}",
                    f"{baseline_rate / 1e9:.3f}",
                    f"{pe_cycles / baseline_rate:.0f}x",
                )


@_kernel
def step_one_pe(act: npt.NDArray[np.int16], psum: IntArray, weight: int, visits: int) -> None:
    """Visit one fault-free PE again and again: its lines never leave the first-level cache."""
    for _ in range(visits):
        _step_clean(act, psum, weight)


def limit_rows(table: Table, m: int) -> None:
    """One 128x128 fold on one core: one PE alone, the streaming kernel, the whole call."""
    config = ArrayConfig(128, 128)
    random = np.random.default_rng(0)
    x = random.integers(-128, 128, (m, 128), dtype=np.int32)
    w = random.integers(-128, 128, (128, 128), dtype=np.int32)
    faults = sample_faults(config, FaultModel(0.01), seed=1)
    cycles = stream_cycles(config, m)
    nothing = np.empty((0, 0, 0), np.int32)
    tape = Tape(0, 0, 0, nothing, nothing, nothing, nothing, nothing)
    acts, outputs = np.ascontiguousarray(x.T, np.int16), np.zeros((128, m), np.int32)
    masks = pe_masks(faults, np.zeros((128, 128), np.bool_))
    weights = load_weights(w.astype(np.int16), 128, masks, NO_FLIPS, tape)
    products, tables = pe_products(faults), FoldProducts(np.empty((0, 1), np.int16), np.zeros((128, 128), np.int32))
    act, psum = np.ones(BLOCK_CYCLES, np.int16), np.zeros(BLOCK_CYCLES, np.int32)
    step_one_pe(act, psum, 3, 1)
    one_pe = best_of(lambda: step_one_pe(act, psum, 3, 10_000), 7)
    streaming = best_of(
        lambda: stream(acts, weights, 128, masks, products, tables, NO_FLIPS, tape, 0, 0, cycles, outputs),
        7,
    )
    whole = best_of(lambda: simulate_gemm(x, w, config, faults, threads=1), 7)
    limit = 10_000 * BLOCK_CYCLES / one_pe
    for name, rate in (
        ("one fault-free PE, lines in first-level cache", limit),
        ("streaming kernel, 1 % faulty", config.pe_count * cycles / streaming),
        ("simulate_gemm, 1 % faulty", config.pe_count * (config.rows + cycles) / whole),
    ):
        table.add_row(name, f"{rate / 1e9:.2f}", f"{rate / limit:.0%}")


def network_rows(table: Table, images: int) -> None:
    """Images/s of the packaged network on chips of several sizes."""
    workload = load_workload("digits-cnn")
    data = workload.test
    pictures, labels = data.images[:images], data.labels[:images]
    for size in (16, 32, 64):
        config = ArrayConfig(size, size)
        network = convert(workload.network, config, workload.calibration)
        faults = sample_faults(config, FaultModel(0.01), seed=1)
        accelerator = Accelerator(config, faults)
        fault_free = classify(network, pictures[:1], 1)
        run_chip(network, accelerator, pictures[:1], labels[:1], fault_free, 1)
        start = time.perf_counter()
        report = run_chip(network, accelerator, pictures, labels, labels, len(pictures))
        seconds = time.perf_counter() - start
        table.add_row(
            f"{size}x{size}",
            f"{len(pictures) / seconds:.0f}",
            f"{report.serial_cycles / seconds / 1e6:.2f}",
        )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rates")
    quick = parser.parse_args().quick
    cores = len(os.sched_getaffinity(0))
    console = Console()
    console.print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}, "
        f"torch {torch.__version__}, {platform.machine()}, {cores} cores"
    )
    m = 2048
    table = Table(title=f"One GEMM of {m} x R by R x C on an R x C array, best of 7 (NumPy: one run of 256 rows)")
    for heading in ("array", "faulty PEs", "threads", "G PE-cycles/s", "G MAC/s", "NumPy G PE-cycles/s", "ratio"):
        table.add_column(heading, justify="right")
    sizes, rates = ([128], [0.01]) if quick else ([8, 32, 128, 256], [0.0, 0.01, 0.1, 1.0])
    gemm_rows(table, sizes, rates, sorted({1, cores}), m)
    console.print(table)
    limits = Table(title="128x128, one core: the parts and the limit")
    limits.add_column("part")
    limits.add_column("G PE-cycles/s", justify="right")
    limits.add_column("of the limit", justify="right")
    limit_rows(limits, m)
    console.print(limits)
    networks = Table(title="digits-cnn with 1 % of PEs faulty, all threads")
    for heading in ("array", "images/s", "M clock cycles/s"):
        networks.add_column(heading, justify="right")
    network_rows(networks, 60 if quick else 360)
    console.print(networks)


if __name__ == "__main__":
    main()
