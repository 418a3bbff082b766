"""`efat simulate --vcd`: the file shows what the layer's GEMM does on the chip, and bad requests are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from efat import simulate
from efat.cli import main
from efat.inference.chip_networks import one_network
from efat.inference.waveforms import layer_gemm
from simulator import ArrayConfig, FaultMap, FaultModel, gemm_timing, sample_faults, simulate_gemm
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import refused, run
from tests.support.vcd_file import read_vcd
from training.data.workloads import load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers
from training.layers.quantized import GemmRun

CONFIG = ArrayConfig(16, 12)
FAULTS = sample_faults(CONFIG, FaultModel(0.1), seed=3)
SIMULATE = ["simulate", "--network", "digits-cnn", "--lot", "lot.h5", "--chip", "bad", "--batch", "1", "--images", "3"]
WAVE = [*SIMULATE, "--vcd", "wave.vcd"]


@pytest.fixture
def lot(folder: Path) -> Path:
    """A good chip and a bad one."""
    write_lot(folder / "lot.h5", CONFIG, [Chip("good", FaultMap(CONFIG)), Chip("bad", FAULTS)])
    return folder / "lot.h5"


def operands(layer: str, accelerator: Accelerator) -> GemmRun:
    """What the layer multiplies for the first test image on a chip."""
    workload = load_workload("digits-cnn")
    network = put_on_chip(convert(workload.network, CONFIG, workload.calibration), accelerator)
    runs: list[GemmRun] = []
    quantized_layers(network)[layer].observer = runs.append
    with torch.inference_mode():
        network(workload.test.images[:1])
    (run_of_layer,) = runs
    return run_of_layer


@pytest.mark.parametrize(("layer", "position"), [("conv1", "0"), ("conv3", "2"), ("linear2", "4")])
@pytest.mark.parametrize("bypass", [False, True])
def test_the_file_shows_the_gemm_of_the_layer_on_the_chip(lot: Path, layer: str, position: str, bypass: bool) -> None:
    mask = FAULTS.required_bypass() if bypass else None
    gemm = operands(layer, Accelerator(CONFIG, FAULTS, mask))
    x, w = gemm.x.numpy(), gemm.w.numpy()
    timing = gemm_timing(CONFIG, *x.shape, w.shape[1])
    fold = timing.folds - 1
    start = fold * timing.cycles_per_fold
    pes = ["--pe", "3,4", "--pe", "15,11", "--pe", "3,4"]
    flags = ["--fold", str(fold), "--cycles", "10:33", *pes, *(["--bypass"] if bypass else [])]
    result = run(*WAVE, *flags, "--layer", layer)
    assert result.exit_code == 0, result.output
    assert f"31 signals of 2 PEs in cycles 10:33 of fold {fold} of layer {layer}, on chip bad." in result.output
    assert result.output.splitlines()[-1] == "Look at it with: gtkwave wave.vcd"

    read = read_vcd("wave.vcd")
    assert read.comment == f"chip bad, digits-cnn, fold {fold} of layer {layer}"
    assert read.begin / read.period == start + 10
    window = (start + 10, start + 33)
    faulty = simulate_gemm(x, w, CONFIG, FAULTS, bypass=mask, record=window).trace
    fault_free = simulate_gemm(x, w, CONFIG, record=window).trace
    assert faulty is not None
    assert fault_free is not None
    assert len(read.cycles) == 23
    for entry, shown in enumerate(read.cycles):
        assert shown["array.load"] == (10 + entry < CONFIG.rows)
        for row, col in ((3, 4), (15, 11)):
            for suffix, trace in (("", faulty), ("_fault_free", fault_free)):
                scope = f"array.pe_{row}_{col}."
                assert shown[f"{scope}weight{suffix}"] == int(trace.weight[entry, row, col]) % 256
                assert shown[f"{scope}activation{suffix}"] == int(trace.east[entry, row, col]) % 256
                assert shown[f"{scope}product{suffix}"] == int(trace.product[entry, row, col]) % (1 << 16)
                assert shown[f"{scope}psum{suffix}"] == int(trace.south[entry, row, col]) % (1 << 32)

    named = Path("wave.vcd").read_bytes()
    assert run(*WAVE, *flags, "--layer", position, "--engine", "emulation").exit_code == 0
    assert Path("wave.vcd").read_bytes() == named


def test_by_default_it_shows_all_pes_in_the_first_fold(lot: Path) -> None:
    result = run(*WAVE, "--layer", "linear2", "--clock-mhz", "250")
    assert result.exit_code == 0, result.output
    read = read_vcd("wave.vcd")
    x, w = (operands("linear2", Accelerator(CONFIG, FAULTS)).x, operands("linear2", Accelerator(CONFIG, FAULTS)).w)
    cycles = gemm_timing(CONFIG, *x.shape, w.shape[1]).cycles_per_fold
    assert (read.begin, read.period, len(read.cycles)) == (0, 4_000_000, cycles)
    assert len(read.widths) == 5 + 13 * CONFIG.pe_count
    assert f"in cycles 0:{cycles} of fold 0 of layer linear2" in result.output


def test_ends_of_the_window_may_be_left_out(lot: Path) -> None:
    for window, first, count in (("20:", 20, None), (":7", 0, 7), (":", 0, None)):
        assert run(*WAVE, "--layer", "0", "--pe", "0,0", "--cycles", window).exit_code == 0
        read = read_vcd("wave.vcd")
        whole = gemm_timing(CONFIG, 64, 9, 16).cycles_per_fold
        assert [cycle["array.fold_cycle"] for cycle in read.cycles] == list(range(first, count or whole))


def test_a_lot_of_one_chip_needs_no_choice(folder: Path) -> None:
    write_lot("lot.h5", CONFIG, [Chip("only", FAULTS)])
    base = [*SIMULATE[:5], "--batch", "1", "--vcd", "wave.vcd", "--layer", "conv1", "--pe", "1,1"]
    assert "on chip only." in run(*base).output


def test_what_the_options_cannot_mean_is_refused(lot: Path) -> None:
    layer = [*WAVE, "--layer", "conv2"]
    for option, value in (
        ("--layer", "conv1"),
        ("--fold", "0"),
        ("--group", "0"),
        ("--pe", "0,0"),
        ("--cycles", "1:2"),
    ):
        assert f"{option} says what a waveform shows: name the file" in refused(*SIMULATE, option, value)
    assert "--vcd-limit says what a waveform shows" in refused(*SIMULATE, "--vcd-limit", "1GB")
    assert "--vcd needs a layer: choose one with --layer" in refused(*WAVE)
    assert "linear1, linear2; did you mean conv2 or " in refused(*WAVE, "--layer", "cnov2")
    assert "expected 0..4 or one of conv1, conv2, conv3, linear1, linear2" in refused(*WAVE, "--layer", "dense")
    assert "no layer '5' in digits-cnn: expected 0..4 or one of conv1" in refused(*WAVE, "--layer", "5")
    assert "fold 99: the GEMM of M=64, K=144, N=24 has 18 folds on the 16x12 array, expected 0..17" in refused(
        *layer, "--fold", "99"
    )
    assert "-1 is not in the range" in refused(*layer, "--fold", "-1")
    assert "group 1: layer conv2 has 1 group, expected 0..0" in refused(*layer, "--group", "1")
    assert "PE 16,0 is not in the 16x12 array: expected row 0..15 and column 0..11" in refused(*layer, "--pe", "16,0")
    assert "'3x4' is not a PE: expected its row and column, such as 3,17" in refused(*layer, "--pe", "3x4")
    assert "'5' is no window of cycles: expected first:stop, such as 32:200" in refused(*layer, "--cycles", "5")
    assert "cycles 5:5: a fold has" in refused(*layer, "--cycles", "5:5")
    assert "cycles 0:100000: a fold has" in refused(*layer, "--cycles", ":100000")
    assert "'much' is not a size: expected bytes, such as 800kB" in refused(*layer, "--vcd-limit", "much")
    assert "'0' is not a size" in refused(*layer, "--vcd-limit", "0")
    assert "clock of 1e+12 MHz: expected a half period" in refused(*layer, "--clock-mhz", "1e12")
    assert "nowhere: no such folder" in refused(*SIMULATE, "--layer", "0", "--vcd", "nowhere/wave.vcd")
    assert "lot.h5 is the file to read" in refused(*SIMULATE, "--layer", "0", "--vcd", "lot.h5")
    assert "leave one of them out" in refused(*layer, "--json", "result.json")
    both = [*layer, "--chip", "good"]
    assert "2 chips are chosen: a waveform shows one, choose it with --chip ID" in refused(*both)


def test_a_large_file_is_refused_until_told(lot: Path) -> None:
    layer = [*WAVE, "--layer", "conv1", "--pe", "2,2", "--pe", "3,3"]
    message = refused(*layer, "--vcd-limit", "9.5kB")
    assert "2 PEs in 106 cycles may take up to" in message
    assert "the limit is 9.5 kB: choose fewer PEs or cycles, or a higher limit" in message
    assert message.endswith("(--pe R,C, --cycles A:B, --vcd-limit SIZE)")
    narrow = run(*layer, "--vcd-limit", "9.5kB", "--cycles", "20:30")
    assert narrow.exit_code == 0, narrow.output
    assert Path("wave.vcd").stat().st_size <= 9500
    assert run(*layer, "--vcd-limit", "1MB").exit_code == 0
    assert Path("wave.vcd").stat().st_size > 9500


def test_interrupted_it_leaves_nothing(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.engine.vcd._dump", interrupted)
    result = run(*WAVE, "--layer", "conv1")
    assert result.exit_code == 130
    assert [path.name for path in Path.cwd().iterdir()] == ["lot.h5"]


class Backwards(nn.Module):
    """Its layers do not run in the order in which they are defined, and one does not run for single images."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 10)
        self.of_several = nn.Linear(6, 6)
        self.grouped = nn.Conv2d(2, 6, 8, groups=2)
        self.first = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From images to classes."""
        features = self.grouped(self.first(x)).flatten(1)
        return self.last(self.of_several(features) if len(x) > 1 else features)


def test_layers_count_in_the_order_they_run_and_groups_are_gemms(
    folder: Path, lot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = Backwards()
    simulation = simulate("digits-cnn", lot, chips=["bad"], images=2, batch=1, run=False)
    workload = load_workload("digits-cnn")
    network_on_chip = convert(network, CONFIG, workload.calibration)
    simulation.networks = one_network(network_on_chip)
    names = [layer_gemm(simulation, str(position)).layer for position in range(3)]
    assert names == ["first", "grouped", "last"]
    groups = [layer_gemm(simulation, "grouped", group) for group in (0, 1)]
    weights = quantized_layers(network_on_chip)["grouped"].weight_int.numpy()
    for group, gemm in enumerate(groups):
        assert gemm.group == group
        assert np.array_equal(gemm.w, weights[3 * group : 3 * group + 3].reshape(3, -1).T)
    assert not np.array_equal(groups[0].x, groups[1].x)
    with pytest.raises(ValueError, match=r"group 2: layer grouped has 2 groups, expected 0\.\.1"):
        layer_gemm(simulation, "grouped", 2)
    for layer in ("of_several", "3"):
        with pytest.raises(ValueError, match=f"layer '{layer}' of digits-cnn does not run: choose another"):
            layer_gemm(simulation, layer)
    assert all(layer.observer is None for layer in quantized_layers(network_on_chip).values())


def test_help_lists_the_options() -> None:
    shown = CliRunner().invoke(main, ["simulate", "--help"]).output
    for option in ("--vcd FILE", "--layer L", "--fold F", "--group G", "--pe R,C", "--cycles A:B", "--vcd-limit SIZE"):
        assert option in shown
