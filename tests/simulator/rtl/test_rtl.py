"""The reference RTL: outputs, and the cycle of each, on random faulty GEMMs; its registers; lint and synthesis."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing, simulate_gemm
from simulator.engine.timing import output_cycles
from simulator.gates.systemverilog import gate_level_multiplier
from simulator.rtl import CosimulationError, RtlUnavailableError, rtl_gemm, unavailable
from simulator.rtl.cosimulation import Pool, Simulator
from simulator.rtl.sources import FOLDER, MULTIPLIER, SOURCES
from tests.support.oracle import oracle_gemm
from tests.support.strategies import GemmCase, gemm_cases, pooled_configs

pytestmark = pytest.mark.integration

PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
PATHS = [str(FOLDER / name) for name in (*SOURCES, MULTIPLIER)]

missing = unavailable()
needs_simulator = pytest.mark.skipif(missing is not None, reason=missing or "")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def check(case: GemmCase) -> None:
    """Everything about one GEMM on the RTL, against the oracle, the cycle engine and the formulas."""
    config, sizes = case.config, (len(case.x), *case.w.shape)
    timing = gemm_timing(config, *sizes)
    expected = oracle_gemm(case.x, case.w, config, case.faults, bypass=case.bypass)
    result = rtl_gemm(case.x, case.w, config, case.faults, bypass=case.bypass)
    assert result.outputs.dtype == np.int32
    assert result.outputs.tolist() == expected.outputs.tolist()
    engine = simulate_gemm(case.x, case.w, config, case.faults, bypass=case.bypass, threads=1)
    assert result.outputs.tolist() == engine.outputs.tolist()
    assert result.cycles == expected.cycles == timing.serial
    assert result.written.tolist() == output_cycles(config, *sizes).tolist()
    if case.faults.has_flips:
        return
    overlapped = rtl_gemm(case.x, case.w, config, case.faults, bypass=case.bypass, timing="double_buffered")
    assert overlapped.outputs.tolist() == expected.outputs.tolist()
    assert overlapped.cycles == timing.double_buffered
    assert overlapped.written.tolist() == output_cycles(config, *sizes, double_buffered=True).tolist()


def check_random_cases(seed: int, examples: int) -> None:
    """Compare on a few arrays, drawn from the seed."""

    @settings(max_examples=examples)
    @given(case=gemm_cases(arrays=pooled_configs(seed)))
    def compare(case: GemmCase) -> None:
        check(case)

    compare()


@needs_simulator
def test_500_random_faulty_gemms(pytestconfig: pytest.Config) -> None:
    check_random_cases(int(pytestconfig.option.hypothesis_seed) + 1, 500)


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_20000_random_faulty_gemms(part: int, pytestconfig: pytest.Config) -> None:
    check_random_cases(int(pytestconfig.option.hypothesis_seed) + 100 + part, 500)


@needs_simulator
def test_permanent_faults_in_both_timings(pytestconfig: pytest.Config) -> None:
    arrays = pooled_configs(int(pytestconfig.option.hypothesis_seed) + 1)

    @settings(max_examples=100)
    @given(case=gemm_cases(kinds=PERMANENT, arrays=arrays, least_rows_of_x=1))
    def compare(case: GemmCase) -> None:
        check(case)

    compare()


@needs_simulator
def test_registers_of_all_pes_in_every_cycle(pytestconfig: pytest.Config) -> None:
    arrays = pooled_configs(int(pytestconfig.option.hypothesis_seed) + 1)

    @settings(max_examples=40)
    @given(case=gemm_cases(arrays=arrays, least_rows_of_x=1))
    def compare(case: GemmCase) -> None:
        config = case.config
        trace = rtl_gemm(case.x, case.w, config, case.faults, bypass=case.bypass, record=True).trace
        timing = gemm_timing(config, len(case.x), *case.w.shape)
        window = (0, timing.serial)
        expected = simulate_gemm(case.x, case.w, config, case.faults, bypass=case.bypass, record=window).trace
        assert trace is not None
        assert expected is not None
        cycle = np.arange(timing.serial) % timing.cycles_per_fold
        # The last clock edge of a fold resets the registers. An upset of a weight register before its weight is there
        # is real in the RTL; engines leave it out, as nothing comes of it.
        compared = cycle < timing.cycles_per_fold - 1
        assert trace.product.tolist() == expected.product.tolist()
        for name in ("shift", "east", "south"):
            assert getattr(trace, name)[compared].tolist() == getattr(expected, name)[compared].tolist()
        compared &= cycle >= config.rows - 1
        assert trace.weight[compared].tolist() == expected.weight[compared].tolist()

    compare()


@needs_simulator
def test_long_streams_and_deep_accumulators(seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(3, 2)
    x, w = random.integers(-128, 128, (300, 7)), random.integers(-128, 128, (7, 5))
    for timing in ("serial", "double_buffered"):
        result = rtl_gemm(x, w, config, timing=timing)
        assert np.array_equal(result.outputs, x @ w)
    # Flips at the borders of what the testbench runs at a time.
    flips = [Fault(2, 1, Site.PSUM, 5, Kind.FLIP, cycle) for cycle in (126, 127, 128, 129, 255)]
    faults = FaultMap.from_faults(config, flips)
    assert np.array_equal(rtl_gemm(x, w, config, faults).outputs, oracle_gemm(x, w, config, faults).outputs)


def test_flips_are_for_serial_timing() -> None:
    config = ArrayConfig(2, 2)
    faults = FaultMap.from_faults(config, [Fault(0, 0, Site.PSUM, 0, Kind.FLIP, 3)])
    with pytest.raises(ValueError, match="FLIPs in double_buffered timing"):
        rtl_gemm([[1]], [[1]], config, faults, timing="double_buffered")


def test_an_unknown_timing_is_refused() -> None:
    with pytest.raises(ValueError, match="timing is 'overlapped': expected 'serial' or 'double_buffered'"):
        rtl_gemm([[1]], [[1]], ArrayConfig(2, 2), timing="overlapped")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("missing_module", "message"), [(None, "iverilog is not installed"), ("cocotb", "pip install 'efat\\[rtl\\]'")]
)
def test_what_is_missing_is_said(
    missing_module: str | None, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing_module is None:
        monkeypatch.setenv("PATH", str(folder))
    else:
        monkeypatch.setattr("simulator.rtl.cosimulation.shutil.which", lambda program: program)
        monkeypatch.setattr("simulator.rtl.cosimulation.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RtlUnavailableError, match=message), Pool().simulator({}, None):
        pass


@needs_simulator
def test_a_simulator_that_takes_too_long_is_ended() -> None:
    config = ArrayConfig(1, 2)
    with pytest.raises(CosimulationError, match="did not answer"):
        rtl_gemm(np.ones((500, 5), int), np.ones((5, 9), int), config, seconds=0.001)
    assert rtl_gemm([[3]], [[4]], config).outputs.tolist() == [[12]]


@needs_simulator
def test_a_simulator_that_dies_is_an_error_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ArrayConfig(1, 3)
    run = Simulator.run

    def killed(simulator: Simulator, *arguments: object) -> list[str]:
        os.killpg(simulator._process.pid, signal.SIGKILL)
        return run(simulator, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Simulator, "run", killed)
        with pytest.raises(CosimulationError, match="ended"):
            rtl_gemm([[3]], [[4]], config)
    assert rtl_gemm([[3]], [[4]], config).outputs.tolist() == [[12]]


@needs_simulator
def test_what_was_compiled_first_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.rtl.cosimulation._MOST_PROCESSES", 1)
    monkeypatch.setattr("simulator.rtl.cosimulation._MOST_BINARIES", 2)
    pool = Pool()
    monkeypatch.setattr("simulator.rtl.gemm.pool", lambda: pool)
    try:
        for rows in (1, 2, 3, 1, 1):
            assert rtl_gemm([[3, 5]], [[4], [-6]], ArrayConfig(rows, 1)).outputs.tolist() == [[-18]]
        assert len(pool._simulators) == 1
        assert len(pool._binaries) == 2
        folders = {binary.parent for binary in pool._binaries.values()}
        assert {path for folder in folders for path in folder.parent.iterdir()} == folders
    finally:
        pool.close()


@needs_simulator
@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_simulator_outlives_its_process(end: str, folder: Path) -> None:
    program = f"""
from simulator import ArrayConfig
from simulator.rtl import cosimulation, rtl_gemm
rtl_gemm([[3]], [[4]], ArrayConfig(1, 1))
(simulator,) = cosimulation.pool()._simulators.values()
print(simulator._process.pid, flush=True)
{end}
"""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)
    if not end:
        assert done.returncode == 0, done.stderr
        assert not list(folder.iterdir())


def runs(pid: int) -> bool:
    """Whether a process is there and not just waiting to be asked how it ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


PARAMETERS = [
    {},
    {"ROWS": 1, "COLS": 1, "WEIGHT_BITS": 2, "ACT_BITS": 2, "ACT_SIGNED": 0, "ACC_BITS": 4, "ACC_DEPTH": 2},
    {"ROWS": 3, "COLS": 5, "WEIGHT_BITS": 7, "ACT_BITS": 3, "ACC_BITS": 10, "ACC_DEPTH": 128},
    {"ROWS": 16, "COLS": 8, "ACT_SIGNED": 0, "ACC_BITS": 24, "MULTIPLIER_LOCATIONS": 900},
]


@needs("verilator")
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_linters_find_nothing(parameters: dict[str, int]) -> None:
    options = [f"-G{name}={value}" for name, value in parameters.items()]
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "systolic_array", *options, *PATHS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs("verilator")
def test_linters_find_nothing_in_the_array_with_gates(tmp_path: Path) -> None:
    config = ArrayConfig(2, 2, 4, 3)
    gates = tmp_path / MULTIPLIER
    netlist = config.pe_multiplier.netlist
    assert netlist is not None
    gates.write_text(gate_level_multiplier(netlist))
    values = {"WEIGHT_BITS": 4, "ACT_BITS": 3, "MULTIPLIER_LOCATIONS": Site.MULTIPLIER.bits(config)}
    options = [f"-G{name}={value}" for name, value in values.items()]
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "systolic_array", *options, *PATHS[:-1], str(gates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs("yosys")
@pytest.mark.parametrize("top", ["pe", "systolic_array"])
def test_yosys_synthesises(top: str) -> None:
    # Accumulators of 64 entries take yosys half a minute.
    smaller = "" if top == "pe" else "chparam -set ROWS 2 -set COLS 2 -set ACC_DEPTH 4 systolic_array; "
    script = f"read_verilog -sv {' '.join(PATHS)}; {smaller}synth -flatten -top {top}; check -assert; stat"
    done = subprocess.run(["yosys", "-p", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr
    statistics = done.stdout.rsplit("Printing statistics", 1)[1]
    cells = {name: int(count) for name, count in re.findall(r"(\$_\w+_)\s+(\d+)", statistics)}
    registers = sum(count for name, count in cells.items() if "DFF" in name)
    # Two weights, an activation and a partial sum, and two bits of control.
    in_pe = 8 + 8 + 8 + 32 + 2
    if top == "pe":
        assert registers == in_pe
    else:
        # Nothing reads activations and control at the east edge, nor partial sums at the south edge.
        in_pes = 2 * 2 * in_pe - 2 * (8 + 2) - 2 * 32
        # Each accumulator has 4 entries; the first hands on two bits of control and an address.
        assert registers == in_pes + 2 * 4 * 32 + (2 + 2)
    assert not any("LATCH" in name for name in cells)


def test_the_formula_of_the_cycles_by_hand() -> None:
    # Two rows, three columns, M = 2: a fold takes 2 + 5 cycles; the first output leaves row 1 in streaming cycle 1.
    cycles = output_cycles(ArrayConfig(2, 3), m=2, k=2, n=4)
    assert cycles.tolist() == [[[3, 4, 5, 10], [4, 5, 6, 11]]]


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_the_last_output_ends_the_gemm(rows: int, cols: int, m: int, k: int, n: int) -> None:
    config = ArrayConfig(rows, cols)
    timing = gemm_timing(config, m, k, n)
    # Columns that no output is mapped to drain, too.
    drained = 1 + -n % cols
    assert output_cycles(config, m, k, n)[-1, -1, -1] + drained == timing.serial
    assert output_cycles(config, m, k, n, double_buffered=True)[-1, -1, -1] + drained == timing.double_buffered
