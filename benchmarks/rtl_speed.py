"""How fast is the cycle engine next to Verilator, which compiles the same machine from its RTL?

Both run one GEMM with the same faults on one core, and their outputs are compared. Verilator gets what makes it fast:
registers around the array, constant masks where there are no faults of a kind, -O3 for this machine's processor, a
harness in C++ that drives only what changes, and accumulators that fit the cache. Its build time is shown apart. "Masks
built in" is one chip's own model, in which masks are constants: faster, but built anew for each chip.

Run: python benchmarks/rtl_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults, simulate_gemm
from simulator.engine.masks import stuck_masks
from simulator.rtl.schedule import Schedule, serial_schedule
from simulator.rtl.sources import FOLDER, MULTIPLIER, SOURCES

HERE = Path(__file__).resolve().parent / "rtl_speed_verilator"
FAULT_RATE = 0.01
SITES = (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION, Site.PRODUCT, Site.PSUM, Site.ACCUMULATOR)
MASK_DTYPES = {
    Site.WEIGHT: np.uint8,
    Site.WEIGHT_LOAD: np.uint8,
    Site.ACTIVATION: np.uint8,
    Site.PRODUCT: np.uint16,
    Site.PSUM: np.uint32,
    Site.ACCUMULATOR: np.uint32,
}

IntArray = npt.NDArray[np.int32]


def build(config: ArrayConfig, top: str, folder: Path) -> Path:
    """Compile the RTL with this text of top.sv, and the harness; returns the program."""
    folder.mkdir()
    (folder / "top.sv").write_text(top)
    sources = [folder / "top.sv", *(FOLDER / name for name in (*SOURCES, MULTIPLIER)), HERE / "harness.cpp"]
    options = [
        "--cc",
        "--exe",
        "--build",
        "-O3",
        # Without the splits one C++ function evaluates all PEs: it takes longer to compile and runs no faster.
        "--output-split",
        "20000",
        "--output-split-cfuncs",
        "1000",
        "--x-assign",
        "fast",
        "--x-initial",
        "fast",
        "--noassert",
        "-Wno-WIDTHCONCAT",
    ]
    command = ["verilator", *options, "--top-module", "top", f"-GROWS={config.rows}", f"-GCOLS={config.cols}"]
    command += ["-CFLAGS", "-O3 -march=native", "-MAKEFLAGS", "OPT_FAST=-O3 OPT_SLOW=-O0 OPT_GLOBAL=-O3"]
    command += ["-j", str(os.cpu_count() or 1), "--Mdir", str(folder), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"verilator failed:\n{done.stderr}")
    return folder / "Vtop"


def masks(faults: FaultMap) -> dict[str, npt.NDArray[np.unsignedinteger]]:
    """The masks of the permanent faults by the names of the RTL's inputs, one number for each net."""
    config = faults.config
    named = {}
    for site in SITES:
        rows = 1 if site is Site.ACCUMULATOR else config.rows
        keep, force = (mask[:rows].astype(np.int64) for mask in stuck_masks(faults, site, np.int32))
        named[f"{site.name.lower()}_clear"] = (~keep).astype(MASK_DTYPES[site])
        named[f"{site.name.lower()}_set"] = force.astype(MASK_DTYPES[site])
    return named


def with_constant_masks(top: str, faults: FaultMap) -> str:
    """The text of top.sv for one chip alone: its masks are constants, and Verilator leaves out what they make idle."""
    constants = {name: f"{8 * mask.nbytes}'h{mask.tobytes()[::-1].hex()}" for name, mask in masks(faults).items()}
    constants["bypass"] = "'0"
    for name, constant in constants.items():
        top = top.replace(f".{name}({name}_q)", f".{name}({constant})")
    return top


def harness_input(schedule: Schedule, faults: FaultMap) -> bytes:
    """The file that harness.cpp reads."""
    bypass = np.packbits(np.zeros(faults.config.pe_count, np.uint8), bitorder="little")
    flags = [schedule.reset, schedule.stream, schedule.load, schedule.load_last, schedule.write]
    control = sum(flag.astype(np.uint8) << bit for bit, flag in enumerate(flags))
    cycles = np.column_stack([control, schedule.activation_west, schedule.weight_north]).astype(np.uint8)
    return b"".join([bypass.tobytes(), *(mask.tobytes() for mask in masks(faults).values()), cycles.tobytes()])


def verilated(program: Path, x: IntArray, w: IntArray, faults: FaultMap, repeats: int) -> tuple[IntArray, float]:
    """Outputs int32 [M, cols] and the shortest time in seconds."""
    config = faults.config
    schedule = serial_schedule(config, x, w)
    given, result = program.parent / "input.bin", program.parent / "output.bin"
    given.write_bytes(harness_input(schedule, faults))
    numbers = [config.rows, config.cols, len(schedule.reset), len(x), repeats]
    command = [str(program), str(given), str(result), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the Verilator model failed:\n{done.stderr}")
    return np.fromfile(result, np.int32).reshape(len(x), config.cols), float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small array")
    quick = parser.parse_args().quick
    console = Console()
    if shutil.which("verilator") is None:
        console.print("Nothing to compare with, verilator is not installed: apt-get install verilator")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sizes, m, repeats = ([4], 256, 3) if quick else ([8, 16, 32], 4096, 7)
    version = subprocess.run(["verilator", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    console.print(f"Python {platform.python_version()}, {version}, {platform.machine()}, {cores} cores")
    console.print(f"{FAULT_RATE:.0%} of PEs faulty, at least one, at {', '.join(site.name.lower() for site in SITES)}")
    table = Table(title=f"M PE-cycles/s: {m} x R by R x R on an R x R array, one core, best of {repeats}")
    verilator = ["Verilator", "ratio", "build"]
    for heading in ("array", "faulty PEs", "cycle engine", *verilator, "masks built in", *verilator[1:]):
        table.add_column(heading, justify="right")
    random = np.random.default_rng(0)
    for size in sizes:
        config = ArrayConfig(size, size)
        x = random.integers(-128, 128, (m, size), dtype=np.int32)
        w = random.integers(-128, 128, (size, size), dtype=np.int32)
        faults = sample_faults(
            config, FaultModel(max(FAULT_RATE, 1 / config.pe_count), sites=dict.fromkeys(SITES, 1.0)), seed=1
        )
        times = []
        for _ in range(1 + repeats):
            begun = time.perf_counter()
            result = simulate_gemm(x, w, config, faults, threads=1)
            times.append(time.perf_counter() - begun)
        # The first call may compile.
        engine = min(times[1:])
        work = config.pe_count * result.cycles / 1e6
        row = [f"{size}x{size}", str(int(faults.faulty_pes().sum())), f"{work / engine:,.0f}"]
        text = (HERE / "top.sv").read_text()
        for top in (text, with_constant_masks(text, faults)):
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                program = build(config, top, Path(folder) / "model")
                build_seconds = time.perf_counter() - begun
                outputs, seconds = verilated(program, x, w, faults, repeats)
            if not np.array_equal(result.outputs, outputs):
                raise SystemExit("the cycle engine and the RTL in Verilator disagree")
            row += [f"{work / seconds:,.0f}", f"{seconds / engine:.1f}x", f"{build_seconds:.0f} s"]
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
