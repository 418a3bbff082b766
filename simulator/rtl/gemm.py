"""GEMMs on the reference RTL, simulated by Icarus Verilog through cocotb."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simulator.bits import as_number
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int32Array, Int64Array
from simulator.engine.masks import Flips, is_signed
from simulator.engine.operands import check_gemm
from simulator.engine.timing import gemm_timing
from simulator.engine.trace import Trace, check_window
from simulator.errors import InputError
from simulator.faults import FaultMap, Kind, Site
from simulator.rtl import sources
from simulator.rtl.cosimulation import CHUNK_CYCLES, CosimulationError, pool
from simulator.rtl.schedule import Bits, double_buffered_schedule, serial_schedule

_SECONDS = 60.0
_SLOWEST_PE_CYCLES_PER_SECOND = 10_000
"""Beyond this a simulation is taken to hang."""


@dataclass(frozen=True)
class RtlResult:
    """What one GEMM on the RTL gave.

    Attributes:
        outputs: int32 [M, N], as they were written last.
        cycles: clock cycles it took.
        written: int64 [k-folds, M, N], the clock cycle in which each partial sum was stored, the output in the last
            k-fold.
        trace: the registers after every clock cycle, or None. In the last cycle of a fold they are already reset.
    """

    outputs: Int32Array
    cycles: int
    written: Int64Array
    trace: Trace | None = None


def rtl_gemm(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    config: ArrayConfig,
    faults: FaultMap | None = None,
    *,
    bypass: npt.ArrayLike | None = None,
    timing: Literal["serial", "double_buffered"] = "serial",
    record: bool = False,
    seconds: float | None = None,
) -> RtlResult:
    """Multiply `x @ w` on the reference RTL, in Icarus Verilog.

    The first GEMM of an array compiles it, and its simulator then waits for the next one.

    Args:
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        timing: one fold after the other, or loading the next one's weights meanwhile.
        record: return the registers of all PEs in all cycles, too.
        seconds: longest time to wait for the simulator; None for one that grows with the work.

    Raises:
        InputError: as of `simulate_gemm`; or FLIPs, whose cycles are counted in serial timing, in another timing.
        RtlUnavailableError: Icarus Verilog or cocotb is missing.
        CosimulationError: the simulator failed, or took too long.
    """
    acts, weights, faults, bypassed = check_gemm(x, w, config, faults, bypass)
    (m, k), n = acts.shape, weights.shape[1]
    expected = gemm_timing(config, m, k, n)
    Flips(faults, expected.cycles_per_fold, expected.serial)
    if timing == "serial":
        schedule = serial_schedule(config, acts, weights)
    elif timing == "double_buffered":
        if faults.has_flips:
            raise InputError("FLIPs in double_buffered timing: their cycles are counted in serial timing, use that")
        schedule = double_buffered_schedule(config, acts, weights)
    else:
        raise InputError(f"timing is {timing!r}: expected 'serial' or 'double_buffered'")
    cycles = len(schedule.reset)
    if record:
        check_window(config, (0, cycles), cycles)

    multiplier = sources.multiplier_files(config, faults)
    parameters = sources.parameters(config, m, locations=multiplier is not None)
    row_bits = parameters["ACC_DEPTH"].bit_length() - 1
    stimulus = _after_reset(schedule.packed(config, row_bits))
    vectors = {"bypass": _to_text(bypassed.astype(np.uint8))}
    for kind, mask in ((Kind.STUCK_AT_0, "clear"), (Kind.STUCK_AT_1, "set")):
        vectors |= _vectors(faults.table[faults.table["kind"] == kind], mask, config, parameters)
    chunks = list(_chunks(stimulus, _flip_vectors(faults, parameters)))
    if seconds is None:
        seconds = _SECONDS + cycles * config.pe_count / _SLOWEST_PE_CYCLES_PER_SECOND
    testbench = {**parameters, "CHUNK": CHUNK_CYCLES, "TRACE": int(record)}
    with pool().simulator(testbench, multiplier) as simulator:
        logs = simulator.run(vectors, chunks, seconds)
    log = np.concatenate([_from_text(text).reshape(CHUNK_CYCLES, -1) for text in logs])[1 : 1 + cycles]
    if (log > 1).any():
        raise CosimulationError(f"the RTL gives X or Z in clock cycle {int((log > 1).any(axis=1).argmax())}")
    writes = 1 + row_bits + config.acc_bits
    outputs, written = _collected(config, log[:, : config.cols * writes].reshape(cycles, config.cols, writes), m, k, n)
    trace = _trace(config, log[:, config.cols * writes :], schedule.stream) if record else None
    return RtlResult(outputs, cycles, written, trace)


def _after_reset(stimulus: Bits) -> Bits:
    """One cycle of reset, bit 0, before cycle 0; then zeros up to whole chunks."""
    length = 1 + len(stimulus)
    padded = np.zeros((length + -length % CHUNK_CYCLES, stimulus.shape[1]), np.uint8)
    padded[0, 0] = 1
    padded[1:length] = stimulus
    return padded


def _vectors(
    table: npt.NDArray[np.void],
    mask: str,
    config: ArrayConfig,
    parameters: dict[str, int],
    sites: Iterable[Site] = tuple(Site),
) -> dict[str, str]:
    """The masks of these sites with the bits of these faults set, by the names of the inputs of `systolic_array`."""
    vectors = {}
    for site in sites:
        own = table[table["site"] == site]
        width = parameters["MULTIPLIER_LOCATIONS"] if site is Site.MULTIPLIER else site.bits(config)
        bits = np.zeros((config.cols if site is Site.ACCUMULATOR else config.pe_count, width), np.uint8)
        bits[own["row"].astype(np.int64) * config.cols + own["col"], own["bit"]] = 1
        vectors[f"{site.name.lower()}_{mask}"] = _to_text(bits)
    return vectors


def _flip_vectors(faults: FaultMap, parameters: dict[str, int]) -> dict[int, dict[str, str]]:
    """The masks of the upsets of each clock cycle that has any."""
    table = faults.table[faults.table["kind"] == Kind.FLIP]
    vectors = {}
    for cycle in np.unique(table["cycle"]).tolist():
        flips = table[table["cycle"] == cycle]
        present = map(Site, np.unique(flips["site"]).tolist())
        vectors[cycle] = _vectors(flips, "invert", faults.config, parameters, present)
    return vectors


def _chunks(stimulus: Bits, flips: dict[int, dict[str, str]]) -> Iterator[dict[str, Any]]:
    """The chunks of a run: in cycles with upsets masks are set, and cleared in the next."""
    # Row 0 of the stimulus is the reset before clock cycle 0.
    changes = {1 + cycle: vectors for cycle, vectors in flips.items()}
    for cycle in sorted(changes):
        cleared = {name: "0" * len(bits) for name, bits in changes[cycle].items()}
        changes[cycle + 1] = {**cleared, **changes.get(cycle + 1, {})}
    for start in range(0, len(stimulus), CHUNK_CYCLES):
        stop = start + CHUNK_CYCLES
        cuts = sorted({start, *(cycle for cycle in changes if start <= cycle < stop)})
        runs = [[end - begin, changes.get(begin, {})] for begin, end in zip(cuts, [*cuts[1:], stop], strict=True)]
        yield {"stimulus": _to_text(stimulus[start:stop]), "runs": runs}


def _collected(config: ArrayConfig, log: Bits, m: int, k: int, n: int) -> tuple[Int32Array, Int64Array]:
    """The outputs int32 [M, N] and the cycles of all writes int64 [k-folds, M, N], from what each column logged.

    `log` is uint8 [cycles, cols, bits]: whether an entry was written, which one, and what.
    """
    k_folds, n_folds = -(-k // config.rows), -(-n // config.cols)
    row_bits = log.shape[-1] - 1 - config.acc_bits
    outputs = np.zeros((m, n_folds, config.cols), np.int32)
    written = np.zeros((k_folds, m, n_folds, config.cols), np.int64)
    for column in range(config.cols):
        (cycle,) = np.nonzero(log[:, column, 0])
        rows = _from_bits(log[cycle, column, 1 : 1 + row_bits])
        if not np.array_equal(rows, np.tile(np.arange(m), n_folds * k_folds)):
            raise CosimulationError(f"the accumulator of column {column} was written in rows {rows.tolist()}")
        sums = as_number(_from_bits(log[cycle, column, 1 + row_bits :]), config.acc_bits, signed=True)
        outputs[:, :, column] = sums.reshape(n_folds, k_folds, m)[:, -1].T
        written[:, :, :, column] = cycle.reshape(n_folds, k_folds, m).transpose(1, 2, 0)
    return (
        np.ascontiguousarray(outputs.reshape(m, n_folds * config.cols)[:, :n]),
        np.ascontiguousarray(written.reshape(k_folds, m, n_folds * config.cols)[:, :, :n]),
    )


def _trace(config: ArrayConfig, log: Bits, streaming: BoolArray) -> Trace:
    """The registers of all PEs from bits [cycles, ...], in the order of `testbench.sv`."""
    states = log.reshape(len(log), config.rows, config.cols, -1)
    fields = {
        "shift": (config.weight_bits, True),
        "weight": (config.weight_bits, True),
        "east": (config.act_bits, is_signed(Site.ACTIVATION, config)),
        "product": (config.product_bits, True),
        "south": (config.acc_bits, True),
    }
    values = {}
    for name, (width, signed) in fields.items():
        bits, states = states[..., :width], states[..., width:]
        values[name] = as_number(_from_bits(bits), width, signed=signed).astype(np.int32)
    # A trace shows the nets of the datapath only while it is clocked.
    values["product"][~streaming] = 0
    return Trace(0, **values)


def _from_bits(bits: Bits) -> Int64Array:
    """Numbers of bits [..., width], the least significant bit first, read as unsigned."""
    numbers: Int64Array = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1)
    return numbers


def _to_text(bits: Bits) -> str:
    """The string of a vector whose bits, the least significant one first, are those of an array in its order."""
    return (bits.ravel()[::-1] + ord("0")).tobytes().decode("ascii")


def _from_text(text: str) -> Bits:
    """The bits of a vector, the least significant one first, uint8; values above 1 are X or Z."""
    bits: Bits = np.frombuffer(text.encode("ascii"), np.uint8)[::-1] - np.uint8(ord("0"))
    return bits
