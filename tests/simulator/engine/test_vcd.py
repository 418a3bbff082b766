"""Waveforms: every value in a file is the recorded one, and that of the oracle; files are no larger than announced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, Trace, sample_faults, simulate_gemm
from simulator.engine.fold_trace import FoldWindow, WaveformError
from simulator.engine.vcd import WaveformTooLargeError, size_text, vcd_size_bound, write_gemm_vcd, write_vcd
from tests.support.oracle import Net, oracle_gemm
from tests.support.strategies import GemmCase, gemm_cases
from tests.support.vcd_file import VcdFile, read_vcd

RECORDED = {"weight_load": "shift", "weight": "weight", "activation": "east", "product": "product", "psum": "south"}


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write to."""
    return tmp_path_factory.mktemp("waveform") / "wave.vcd"


def check_file(
    read: VcdFile,
    config: ArrayConfig,
    faults: FaultMap,
    pes: list[tuple[int, int]],
    first: int,
    cycles_per_fold: int,
    faulty: dict[str, npt.NDArray[Any]],
    fault_free: dict[str, npt.NDArray[Any]],
) -> None:
    """Compare every value of every signal in every cycle with recorded registers [cycles, rows, cols]."""
    widths = {
        **dict.fromkeys(("weight_load", "weight", "weight_used"), config.weight_bits),
        "activation": config.act_bits,
        "product": config.product_bits,
        "psum": config.acc_bits,
    }
    names = {"array.clock", "array.load", "array.fold", "array.cycle", "array.fold_cycle"}
    assert len(read.cycles) == len(faulty["south"])
    for entry, shown in enumerate(read.cycles):
        cycle = first + entry
        assert shown["array.cycle"] == cycle
        assert shown["array.fold"] == cycle // cycles_per_fold
        assert shown["array.fold_cycle"] == cycle % cycles_per_fold
        assert shown["array.load"] == (cycle % cycles_per_fold < config.rows)
        for row, col in pes:
            scope = f"array.pe_{row}_{col}"
            on_weight = [fault for fault in faults if (fault.row, fault.col, fault.site) == (row, col, Site.WEIGHT)]
            output = Net(config.weight_bits, True, on_weight)
            values = {
                suffix: {name: int(recorded[register][entry, row, col]) for name, register in RECORDED.items()}
                for suffix, recorded in (("", faulty), ("_fault_free", fault_free))
            }
            values[""]["weight_used"] = output.stuck_at(values[""]["weight"])
            values["_fault_free"]["weight_used"] = values["_fault_free"]["weight"]
            for suffix, of_run in values.items():
                for name, value in of_run.items():
                    assert shown[f"{scope}.{name}{suffix}"] == value % (1 << widths[name]), (cycle, name, suffix)
            assert shown[f"{scope}.differs"] == (values[""] != values["_fault_free"])
            names |= {f"{scope}.{name}{suffix}" for name in widths for suffix in ("", "_fault_free")}
            names.add(f"{scope}.differs")
    assert read.widths.keys() == names
    for name, width in read.widths.items():
        signal = name.rsplit(".", 1)[1].removesuffix("_fault_free")
        assert (
            width == {**widths, "differs": 1, "clock": 1, "load": 1, "fold": 32, "cycle": 64, "fold_cycle": 32}[signal]
        )


def arrays(trace: Trace) -> dict[str, npt.NDArray[Any]]:
    return {name: getattr(trace, name) for name in RECORDED.values()}


def chosen_pes(data: st.DataObject, config: ArrayConfig) -> list[tuple[int, int]] | None:
    pe = st.tuples(st.integers(0, config.rows - 1), st.integers(0, config.cols - 1))
    return data.draw(st.none() | st.lists(pe, min_size=1, max_size=5))


def all_pes(config: ArrayConfig) -> list[tuple[int, int]]:
    return [(row, col) for row in range(config.rows) for col in range(config.cols)]


@given(case=gemm_cases(), data=st.data())
def test_every_value_is_the_recorded_one_and_the_oracle_s(case: GemmCase, data: st.DataObject, wave: Path) -> None:
    """Windows anywhere, over several folds, in one piece or in several."""
    config, faults = case.config, case.faults
    timing = simulate_gemm(case.x, case.w, config).timing
    first = data.draw(st.integers(0, timing.serial - 1) | st.just(0))
    stop = data.draw(st.integers(first + 1, timing.serial) | st.just(timing.serial))
    cut = data.draw(st.integers(first + 1, stop))
    pes = chosen_pes(data, config)
    traces = []
    for begin, end in ((first, cut), (cut, stop)):
        if begin < end:
            faulty = simulate_gemm(case.x, case.w, config, faults, bypass=case.bypass, record=(begin, end)).trace
            fault_free = simulate_gemm(case.x, case.w, config, record=(begin, end)).trace
            assert faulty is not None
            assert fault_free is not None
            traces.append((faulty, fault_free))
    done: list[int] = []
    written = write_vcd(
        wave, traces, faults, cycles_per_fold=timing.cycles_per_fold, pes=pes, progress=done.append, comment="a case"
    )
    read = read_vcd(wave)
    assert written.size == wave.stat().st_size
    assert written.size <= vcd_size_bound(faults, (first, stop), timing.cycles_per_fold, pes, comment="a case")
    assert (written.cycles, written.signals) == (stop - first, len(read.widths))
    assert sum(done) == stop - first
    assert read.begin == first * read.period

    shown = sorted(set(pes)) if pes is not None else all_pes(config)
    recorded = [
        {name: np.concatenate([arrays(pair[place])[name] for pair in traces]) for name in RECORDED.values()}
        for place in (0, 1)
    ]
    check_file(read, config, faults, shown, first, timing.cycles_per_fold, recorded[0], recorded[1])
    expected = [
        oracle_gemm(case.x, case.w, config, faults, bypass=case.bypass, record=(first, stop)).trace,
        oracle_gemm(case.x, case.w, config, record=(first, stop)).trace,
    ]
    check_file(read, config, faults, shown, first, timing.cycles_per_fold, expected[0], expected[1])


@given(case=gemm_cases(), data=st.data())
def test_a_gemm_s_waveform_is_the_oracle_s(case: GemmCase, data: st.DataObject, wave: Path) -> None:
    config, faults = case.config, case.faults
    folds = -(-case.x.shape[1] // config.rows) * -(-case.w.shape[1] // config.cols)
    window = FoldWindow.of(case.x, case.w, config, data.draw(st.integers(0, folds - 1)))
    first = data.draw(st.integers(0, len(window) - 1))
    window = FoldWindow.of(case.x, case.w, config, window.fold, first)
    pes = chosen_pes(data, config)
    write_gemm_vcd(wave, case.x, case.w, faults, window, bypass=case.bypass, pes=pes)
    faulty = oracle_gemm(case.x, case.w, config, faults, bypass=case.bypass, record=window.gemm_cycles).trace
    fault_free = oracle_gemm(case.x, case.w, config, record=window.gemm_cycles).trace
    shown = sorted(set(pes)) if pes is not None else all_pes(config)
    begin = window.gemm_cycles[0]
    check_file(read_vcd(wave), config, faults, shown, begin, window.cycles_per_fold, faulty, fault_free)


def test_one_pe_worked_by_hand(folder: Path) -> None:
    """Weight 3 with bit 0 stuck at 0 is used as 2; products 4 and -2 with bit 0 stuck at 1 are 5 and -1."""
    config = ArrayConfig(1, 1, acc_bits=16)
    faults = FaultMap.from_faults(
        config, [Fault(0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0), Fault(0, 0, Site.PRODUCT, 0, Kind.STUCK_AT_1)]
    )
    x, w = [[2], [-1]], [[3]]
    write_gemm_vcd("wave.vcd", x, w, faults, FoldWindow.of(x, w, config), clock_mhz=500, comment="by hand")
    text = Path("wave.vcd").read_text()
    head, body = text.split("$enddefinitions $end\n")
    assert head.splitlines()[:4] == [
        "$comment by hand $end",
        "$timescale 1 fs $end",
        "$scope module array $end",
        "$var wire 1 ! clock $end",
    ]
    idents = {line.split()[4]: line.split()[3] for line in head.splitlines() if line.startswith("$var ")}
    dumped, changes = body.split("$end\n")

    def lines(**values: str) -> list[str]:
        return [f"{value}{' ' if value.startswith('b') else ''}{idents[name]}" for name, value in values.items()]

    both = {name + suffix: "b11" for name in ("weight_load", "weight") for suffix in ("", "_fault_free")}
    zero = {name + suffix: "b0" for name in ("activation", "product", "psum") for suffix in ("", "_fault_free")}
    assert dumped.splitlines() == [
        "#0",
        "$dumpvars",
        *lines(clock="1", load="1", fold="b0", cycle="b0", fold_cycle="b0"),
        *lines(**both, weight_used="b10", weight_used_fault_free="b11", **zero, differs="1"),
    ]
    first = {"activation": "b10", "activation_fault_free": "b10", "product": "b101", "product_fault_free": "b110"}
    minus_1, minus_3 = "b" + "1" * 16, "b" + "1" * 13 + "101"
    second = {"activation": "b11111111", "activation_fault_free": "b11111111"}
    second |= {"product": minus_1, "product_fault_free": minus_3, "psum": minus_1, "psum_fault_free": minus_3}
    assert changes.splitlines() == [
        "#1000000",
        *lines(clock="0"),
        "#2000000",
        *lines(clock="1", load="0", cycle="b1", fold_cycle="b1"),
        *lines(**first, psum="b101", psum_fault_free="b110"),
        "#3000000",
        *lines(clock="0"),
        "#4000000",
        *lines(clock="1", cycle="b10", fold_cycle="b10"),
        *lines(**second),
        "#5000000",
        *lines(clock="0"),
        "#6000000",
    ]


def test_long_waveforms_are_written_in_blocks(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as one cycle, and the same file."""
    random = np.random.default_rng(seed)
    config = ArrayConfig(4, 4)
    faults = sample_faults(config, FaultModel(0.3), seed)
    x, w = random.integers(-128, 128, (60, 9)), random.integers(-128, 128, (9, 5))
    window = FoldWindow.of(x, w, config, fold=3)
    write_gemm_vcd("whole.vcd", x, w, faults, window)
    for values in (1, 1000):
        monkeypatch.setattr("simulator.engine.vcd._BLOCK_VALUES", values)
        write_gemm_vcd("blocks.vcd", x, w, faults, window)
        assert Path("blocks.vcd").read_bytes() == Path("whole.vcd").read_bytes()


@pytest.mark.parametrize("pes", [None, [(7, 7)], [(0, 0), (3, 5)]])
def test_size_is_announced_closely_for_data_that_toggles(
    pes: list[tuple[int, int]] | None, seed: int, folder: Path
) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(8, 8)
    faults = sample_faults(config, FaultModel(0.1), seed)
    x, w = random.integers(-128, 128, (500, 8)), random.integers(-128, 128, (8, 8))
    window = FoldWindow.of(x, w, config)
    bound = vcd_size_bound(faults, window.gemm_cycles, window.cycles_per_fold, pes)
    size = write_gemm_vcd("wave.vcd", x, w, faults, window, pes=pes, limit=bound).size
    assert size <= bound <= 1.6 * size
    with pytest.raises(WaveformTooLargeError, match=f"{64 if pes is None else len(pes)} PEs in 522 cycles may take"):
        write_gemm_vcd("more.vcd", x, w, faults, window, pes=pes, limit=bound - 1)
    assert not Path("more.vcd").exists()
    write_gemm_vcd("more.vcd", x, w, faults, window, pes=pes, limit=None)


@pytest.mark.parametrize("upsets", [False, True])
def test_size_of_the_worst_data_is_within_the_bound(upsets: bool, folder: Path) -> None:
    """Every net alternates between numbers that are written in all their bits, upset weights in all but one."""
    config = ArrayConfig(1, 1, acc_bits=16)
    x, w = np.resize([-1, -2], (4000, 1)), np.array([[1]])
    flips = [Fault(0, 0, Site.WEIGHT, 6, Kind.FLIP, cycle) for cycle in range(1, 4001)] if upsets else []
    faults = FaultMap.from_faults(config, flips)
    window = FoldWindow.of(x, w, config)
    bound = vcd_size_bound(faults, window.gemm_cycles, window.cycles_per_fold)
    size = write_gemm_vcd("wave.vcd", x, w, faults, window).size
    assert size <= bound <= (1.08 if upsets else 1.05) * size


def small_traces(config: ArrayConfig, window: tuple[int, int] = (0, 4)) -> tuple[Trace, Trace]:
    ones = np.ones((3, config.rows), int), np.ones((config.rows, 2), int)
    trace = simulate_gemm(*ones, config, record=window).trace
    assert trace is not None
    return trace, trace


CONFIG = ArrayConfig(2, 3)
FAULTS = FaultMap(CONFIG)


@pytest.mark.parametrize(
    ("traces", "named", "message"),
    [
        ([], {}, "no cycles are recorded"),
        ([small_traces(CONFIG)], {"pes": []}, "no PEs are chosen"),
        (
            [small_traces(CONFIG)],
            {"pes": [(0, 0), (2, 0)]},
            r"PE 2,0 is not in the 2x3 array: expected row 0..1 and col",
        ),
        ([small_traces(CONFIG)], {"pes": [(0, -1)]}, "PE 0,-1 is not in the 2x3 array"),
        ([small_traces(ArrayConfig(3, 2))], {}, r"a trace has shape \(4, 3, 2\): expected \(4, 2, 3\)"),
        ([(small_traces(CONFIG)[0], small_traces(CONFIG, (0, 3))[0])], {}, r"shape \(3, 2, 3\): expected \(4, 2, 3\)"),
        ([(small_traces(CONFIG)[0], small_traces(CONFIG, (1, 5))[0])], {}, "cycle 0 and the fault-free one in cycle 1"),
        (
            [small_traces(CONFIG), small_traces(CONFIG, (5, 7))],
            {},
            "begins in cycle 5: expected 4, where the one before",
        ),
        ([small_traces(CONFIG)], {"clock_mhz": 0}, "clock of 0 MHz"),
        ([small_traces(CONFIG)], {"clock_mhz": float("nan")}, "clock of nan MHz"),
        ([small_traces(CONFIG)], {"clock_mhz": 1e10}, "a half period of at least a femtosecond"),
        ([small_traces(CONFIG)], {"clock_mhz": 1e-10}, r"cycle 4 within 2\^63 femtoseconds"),
        ([small_traces(CONFIG)], {"cycles_per_fold": 1}, "cycles_per_fold is 1: expected at least the 2 load cycles"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    traces: list[tuple[Trace, Trace]], named: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(WaveformError, match=message):
        write_vcd("wave.vcd", traces, FAULTS, **{"cycles_per_fold": 8, **named})
    assert list(folder.iterdir()) == []


def test_faults_of_another_array_are_refused() -> None:
    window = FoldWindow.of([[1]], [[1]], ArrayConfig(2, 2))
    with pytest.raises(ValueError, match="faults are of another array"):
        write_gemm_vcd("wave.vcd", [[1]], [[1]], FAULTS, window)


def test_a_comment_cannot_end_the_head(folder: Path) -> None:
    comment = "chip $end $scope module x $end\nlayer größe\x00"
    bound = vcd_size_bound(FAULTS, (0, 4), 8, comment=comment)
    written = write_vcd("wave.vcd", [small_traces(CONFIG)], FAULTS, cycles_per_fold=8, comment=comment)
    assert written.size <= bound
    read = read_vcd("wave.vcd")
    assert read.comment == "chip ?end ?scope module x ?end?layer gr??e?"
    assert len(read.cycles) == 4


def test_without_pyvcd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vcd", None)
    with pytest.raises(ModuleNotFoundError, match="vcd"):
        write_vcd("wave.vcd", [small_traces(CONFIG)], FAULTS, cycles_per_fold=8)
    assert list(folder.iterdir()) == []


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 999_901, 1_000_000, 2_000_000_001)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1,000.0 kB",
        "1.0 MB",
        "2.1 GB",
    ]
