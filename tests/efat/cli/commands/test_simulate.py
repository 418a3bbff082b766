"""`efat simulate`: what it measures is what the engine gives, and bad input is refused before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from efat import simulate
from efat.inference import classified as inference
from efat.inference import simulation
from efat.retraining.chip import ChipRetraining
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, gemm_timing, sample_faults
from simulator.errors import InputError
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import done, refused, run, written
from training.data.networks import LeNet5
from training.data.workloads import WORKLOADS, load_workload
from training.layers import accelerator
from training.layers.accelerator import Accelerator
from training.layers.convert import convert

CONFIG = ArrayConfig(32, 32)
SIMULATE = ["simulate", "--network", "digits-cnn", "--lot", "lot.h5", "--images", "40"]


@pytest.fixture
def lot(folder: Path) -> Path:
    """A fault-free chip, a ruined one, and a mildly damaged one with a broken accumulator that nothing uses."""
    ruined = sample_faults(CONFIG, FaultModel(0.1), seed=1)
    sign_bits = [Fault(0, col, Site.ACCUMULATOR, 30, Kind.STUCK_AT_1) for col in (30, 31)]
    chips = [
        Chip("good", FaultMap(CONFIG)),
        Chip("ruined", ruined),
        Chip("mild", FaultMap.from_faults(CONFIG, [Fault(5, 4, Site.WEIGHT, 1, Kind.STUCK_AT_0), *sign_bits])),
    ]
    write_lot(folder / "lot.h5", CONFIG, chips)
    return folder / "lot.h5"


@pytest.fixture(autouse=True)
def own_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the current folder can be imported."""
    monkeypatch.syspath_prepend(str(folder))


def test_both_engines_give_the_same_report(lot: Path) -> None:
    reports = []
    for engine in ("cycle", "emulation"):
        found, shown = written(*SIMULATE, "--engine", engine)
        assert found.pop("engine") == engine
        assert found.pop("cycle_images") == (8 if engine == "emulation" else 0)
        reports.append(found)
        said = (
            "the same outputs on the first 8 images of each chip." if engine == "emulation" else "on the cycle engine,"
        )
        assert said in shown
    assert reports[0] == reports[1]


def test_the_cycle_engine_runs_as_many_images_as_asked_for(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[int] = []
    original = accelerator._cycle_gemm

    def counted(chip: Accelerator, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        stepped.append(len(x))
        return original(chip, x, w)

    monkeypatch.setattr(accelerator, "_cycle_gemm", counted)
    some = [*SIMULATE[:-1], "6", "--chip", "mild"]
    for asked, expected, said in (
        ([], 6, "the same outputs on all images of the chip."),
        (["--cycle-images", "1"], 1, "the same outputs on the first image of the chip."),
        (["--cycle-images", "0"], 0, "nothing was compared with the cycle engine."),
    ):
        stepped.clear()
        found, shown = written(*some, *asked)
        assert said in shown
        assert found["cycle_images"] == expected
        # The last layer has a row for each image.
        assert stepped[-1:] == ([expected] if expected else [])
    message = refused(*some, "--engine", "cycle", "--cycle-images", "2")
    assert message == "--engine cycle runs all images on the cycle engine: leave out --cycle-images"
    assert "leave out --cycle-images" in refused(*SIMULATE, "--vcd", "w.vcd", "--layer", "0", "--cycle-images", "2")
    with pytest.raises(InputError, match="cycle images is 2: the cycle engine runs all images already"):
        simulate("digits-cnn", lot, engine="cycle", cycle_images=2)


def test_engines_that_disagree_end_the_run(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = accelerator._cycle_gemm

    def wrong(chip: Accelerator, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        outputs = original(chip, x, w)
        if w.shape[1] == 10:
            # One bit of one logit, which decides no class.
            outputs[0, 0] ^= 1
        return outputs

    monkeypatch.setattr(accelerator, "_cycle_gemm", wrong)
    result = run(*SIMULATE, "--chip", "mild", "--json", "result.json")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        "Error: chip mild: 1 of 80 outputs of layer linear2 differ between emulation and cycle engine: "
        "a bug in eFAT; do not trust its results"
    )
    assert not Path("result.json").exists()


def test_numbers_are_those_of_the_engine(lot: Path) -> None:
    found, _ = written(*SIMULATE, "--batch", "16")
    assert [chip["chip"] for chip in found["chips"]] == ["good", "ruined", "mild"]
    assert found["complete"] is True

    workload = load_workload("digits-cnn")
    images, labels = workload.test.images[:40], workload.test.labels[:40]
    network = convert(workload.network, CONFIG, workload.calibration)
    fault_free = inference.classify(network, images, 40)
    assert found["fault_free"]["correct"] == int((fault_free == labels).sum())
    assert found["float"]["correct"] == int((workload.network(images).argmax(1) == labels).sum())
    ruined = found["chips"][1]
    chip = Accelerator(CONFIG, sample_faults(CONFIG, FaultModel(0.1), seed=1))
    report = inference.run_chip(network, chip, images, labels, fault_free, 40)
    assert ruined["correct"] == report.accuracy.correct
    assert ruined["changed_predictions"] == report.changed_predictions > 0
    for layer, expected in zip(ruined["layers"], report.layers, strict=True):
        assert layer["name"] == expected.name
        assert layer["outputs_changed"] == expected.outputs_changed
        assert layer["largest_change"] == expected.largest_change
    assert found["chips"][0]["changed_predictions"] == 0


def test_table_and_json_show_the_same_numbers(lot: Path) -> None:
    found, shown = written(*SIMULATE, "--clock-mhz", "500")
    for chip in found["chips"]:
        row = next(line for line in shown.splitlines() if line.strip().startswith(chip["chip"]))
        assert f"{chip['accuracy']:.1%}" in row
        assert f"{chip['accuracy_95_low']:.1%} .. {chip['accuracy_95_high']:.1%}" in row
        assert f"{chip['changed_predictions']} (" in row
    for position, layer in enumerate(found["chips"][0]["layers"]):
        row = next(line for line in shown.splitlines() if line.strip().startswith(layer["name"]))
        changed = sum(chip["layers"][position]["outputs_changed"] for chip in found["chips"])
        assert f"{layer['m']} x {layer['k']} x {layer['n']}" in row
        assert f"{changed / (3 * layer['outputs']):.2%}" in row
        assert f"{layer['serial_cycles']:,}" in row
    cycles = found["chips"][0]["serial_cycles"]
    assert f"{cycles:,} cycles serial ({cycles / 500 / 40:.3g} us per image)" in shown


def test_cycles_are_those_of_the_timing_model(lot: Path) -> None:
    (chip,) = written(*SIMULATE, "--chip", "good", "--batch", "40")[0]["chips"]
    assert chip["serial_cycles"] == sum(
        gemm_timing(CONFIG, layer["m"], layer["k"], layer["n"]).serial for layer in chip["layers"]
    )
    first = chip["layers"][0]
    assert (first["m"], first["gemms"], first["folds"]) == (40 * 64, 1, 1)
    assert first["utilisation"] == pytest.approx(40 * 64 * 9 * 16 / (1024 * first["serial_cycles"]))


def test_bypass_and_chip_selection(lot: Path) -> None:
    found, shown = written(*SIMULATE, "--chip", "mild", "--chip", "good", "--bypass")
    assert [(chip["chip"], chip["bypassed_pes"]) for chip in found["chips"]] == [("mild", 1), ("good", 0)]
    assert "1 chip has broken column accumulators, which no bypass hides" in shown


def test_what_a_chips_fuses_bypass_is_bypassed(folder: Path) -> None:
    faults = FaultMap.from_faults(CONFIG, [Fault(3, 2, Site.PSUM, 30, Kind.STUCK_AT_1)])
    fused = np.zeros((32, 32), bool)
    fused[3, 2] = True
    more = fused.copy()
    more[0, 0] = True
    write_lot("lot.h5", CONFIG, [Chip("bare", faults), Chip("fused", faults, fused), Chip("more", faults, more)])
    plain, bypassed = (written(*SIMULATE, *more)[0]["chips"] for more in ([], ["--bypass"]))
    assert [chip["bypassed_pes"] for chip in plain] == [0, 1, 2]
    assert [chip["bypassed_pes"] for chip in bypassed] == [1, 1, 2]
    assert plain[1]["layers"] == bypassed[0]["layers"] == bypassed[1]["layers"] != plain[0]["layers"]
    assert plain[2]["layers"] == bypassed[2]["layers"] != plain[1]["layers"]


@pytest.fixture
def low_bits(folder: Path) -> Path:
    """A chip whose first 12 rows have the lowest bit of weights stuck, which costs nothing, and a ruined one."""
    low = [Fault(row, col, Site.WEIGHT, 0, Kind.STUCK_AT_1) for row in range(12) for col in range(32)]
    ruined = sample_faults(CONFIG, FaultModel(0.05), seed=1)
    write_lot("low.h5", CONFIG, [Chip("low", FaultMap.from_faults(CONFIG, low)), Chip("ruined", ruined)])
    return Path("low.h5")


def test_treatments_that_are_worse_than_the_faults_are_warned_of(low_bits: Path) -> None:
    arguments = ["simulate", "--network", "digits-cnn", "--lot", "low.h5", "--images", "60", "--json", "result.json"]
    run(*arguments)
    as_is = json.loads(Path("result.json").read_text())["chips"]
    assert [chip["as_is"] for chip in as_is] == [None, None]
    for options, name, advice in (
        (["--bypass"], "bypass", "take them as they are, or try --mitigation fam"),
        (["--mitigation", "fam-rows"], "fam-rows", "take them as they are"),
    ):
        result = run(*arguments, *options)
        written = json.loads(Path("result.json").read_text())
        assert (written["bypass"], written["mitigation"]) == (name == "bypass", None if name == "bypass" else name)
        low, ruined = written["chips"]
        for chip, expected in zip((low, ruined), as_is, strict=True):
            assert chip["as_is"]["correct"] == expected["correct"]
        assert low["correct"] < low["as_is"]["correct"]
        assert ruined["correct"] > ruined["as_is"]["correct"]
        figures = f"low {low['as_is']['accuracy']:.1%} -> {low['accuracy']:.1%}"
        warning = f"Warning: {name} makes 1 of 2 chips worse than leaving their faults in: {figures}; {advice}"
        assert [line for line in result.stderr.splitlines() if line] == [warning]


@pytest.mark.parametrize("mitigation", ["none", "fap", "fam", "fam-columns+bn"])
def test_mitigations_do_what_retrain_chip_does_without_retraining(
    lot: Path, mitigation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_norms.py").write_text(
        "import torch\nfrom torch import nn\n\ndef network():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    arguments = ["--network", "my_norms:network", "--data", "digits", "--lot", "lot.h5", "--images", "60"]
    arguments += ["--mitigation", mitigation]
    found, plain = (written("simulate", *some)[0] for some in (arguments, arguments[:-2]))
    assert found["fault_free"] == plain["fault_free"]
    for chip in found["chips"][1:]:
        alone = ChipRetraining(
            network="my_norms:network",
            lot=lot,
            data=Path("digits"),
            chip=chip["chip"],
            mitigation=mitigation,
            images=60,
        )
        result = alone.prepare().prepared.run()
        assert chip["correct"] == result.evaluations[-1].correct
        assert chip["bypassed_pes"] == int(result.deployment.bypass.sum())


def test_mitigations_that_mean_nothing_are_refused(lot: Path) -> None:
    assert "mitigation fap+t retrains, which a simulation does not: efat retrain-chip" in refused(
        *SIMULATE, "--mitigation", "fap+t"
    )
    assert "mitigation 'fab' is unknown" in refused(*SIMULATE, "--mitigation", "fab")
    assert "mitigation fap and bypass both say what is bypassed: leave out one of them" in refused(
        *SIMULATE, "--mitigation", "fap", "--bypass"
    )
    assert "no statistics of batch normalisation to measure: leave out +bn" in refused(
        *SIMULATE, "--mitigation", "fap+bn"
    )
    small = ArrayConfig(8, 2)
    broken = [Fault(0, col, Site.ACCUMULATOR, 3, Kind.STUCK_AT_1) for col in range(2)]
    write_lot("dead.h5", small, [Chip("good", FaultMap(small)), Chip("dead", FaultMap.from_faults(small, broken))])
    dead = [*SIMULATE[:3], "--lot", "dead.h5", "--images", "2"]
    assert "chip dead has no column whose accumulator works" in refused(*dead, "--mitigation", "fam")
    assert run(*dead, "--mitigation", "none").exit_code == 0
    run("retrain-chip", *SIMULATE[1:], "--chip", "mild", "--mitigation", "fap", "-o", "out")
    weights = ["--weights", "out/weights.safetensors", "--mitigation", "fap"]
    assert "was retrained for a chip, which says what is bypassed: leave out the mitigation" in refused(
        *SIMULATE, *weights
    )


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_calibration_methods(lot: Path, method: str) -> None:
    found, _ = written(*SIMULATE, "--chip", "good", "--calibration", method)
    assert found["fault_free"]["accuracy"] >= 0.95


def test_own_weights_data_and_network(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (24, 28, 28), dtype=np.uint8)
    np.savez("images.npz", images=images, labels=random.integers(0, 10, 24))
    torch.manual_seed(0)
    save_file(LeNet5().state_dict(), "lenet5.safetensors")
    Path("my_networks.py").write_text(
        "from training.data.networks import LeNet5\n\ndef lenet():\n    return LeNet5()\n"
    )
    arguments = ["--weights", "lenet5.safetensors", "--data", "images.npz", "--lot", "lot.h5", "--chip", "ruined"]
    named, own = (written("simulate", "--network", name, *arguments)[0] for name in ("lenet5", "my_networks:lenet"))
    assert own["chips"] == named["chips"]


def test_networks_that_guess_are_warned_of(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_random.py").write_text(
        "import torch\nfrom training.data.networks import DigitsCnn\n\ndef untrained():\n"
        "    torch.manual_seed(0)\n    return DigitsCnn(1, 8, 10)"
    )
    own = ["--network", "my_random:untrained", "--data", "digits"]
    of_weights = (
        "Warning: no --weights: my_random:untrained has the weights that the function returns, which are random"
    )
    guessing = "images right without faults, no better than guessing among 10 classes"
    images = ["--images", "40"]
    chip = ["--lot", "lot.h5", "--chip", "good", *images]
    levels = ["--lot", "lot.h5", "--rates", "0", "--levels", "0", "--repeats", "1"]
    for command in (
        ["simulate", *own, *chip],
        ["explain", *own, *chip],
        ["retrain-chip", *own, *chip, "--mitigation", "fap", "-o", "chip"],
        ["resilience", *own, "--tune-images", "40", *levels, "--workers", "0", "-o", "resilience"],
        ["propagate", *own, *images, *chip[:2], "--samples", "2", "--no-stratify", "--workers", "0", "-o", "faults"],
    ):
        result = done(*command)
        assert of_weights in result.stderr
        # Said once, of the float network where there is one.
        assert result.stderr.count(guessing) == 1
    trained = str(WORKLOADS["digits-cnn"].weights)
    for command in (["--network", "digits-cnn"], [*own, "--weights", trained]):
        assert run("simulate", *command, *SIMULATE[3:], "--chip", "good").stderr.count("Warning") == 0


def test_what_stays_in_float_is_said(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_float.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Own(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.first = nn.Linear(64, 20)\n"
        "        self.weight = nn.Parameter(torch.eye(20, 10))\n\n"
        "    def forward(self, x):\n        return self.first(x.flatten(1)) @ self.weight\n"
    )
    arguments = ["--lot", "lot.h5", "--chip", "good", "--images", "2"]
    found, shown = written("simulate", "--network", "my_float:Own", "--data", "digits", *arguments)
    assert (
        "86.5% of the multiply-accumulates run on the array; 200 per image stay in float: "
        "the forward of the network (200)."
    ) in shown
    assert found["on_array"] == {
        "multiply_accumulates": 1280,
        "share": 1280 / 1480,
        "in_float": [{"module": "", "multiply_accumulates": 200}],
    }
    assert "All multiply-accumulates run on the array." in run(*SIMULATE, "--chip", "good").output


def test_own_networks_have_their_images_normalised(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_normed.py").write_text(
        "import torch\nfrom training.data.networks import DigitsCnn\n\ndef network():\n"
        "    torch.manual_seed(3)\n    return DigitsCnn(1, 8, 10)\n"
    )
    own = ["simulate", "--network", "my_normed:network", "--data", "digits", *SIMULATE[3:], "--chip", "ruined"]
    found, _ = written(*own, "--normalize", "0.3:0.2")
    assert found["normalization"] == "0.3:0.2"
    workload = load_workload("my_normed:network", data="digits")
    images, labels = (workload.test.images[:40] - 0.3) / 0.2, workload.test.labels[:40]
    network = convert(workload.network, CONFIG, [(batch - 0.3) / 0.2 for batch in workload.calibration])
    assert found["float"]["correct"] == int((workload.network.eval()(images).argmax(1) == labels).sum())
    assert found["fault_free"]["correct"] == int((inference.classify(network, images, 40) == labels).sum())
    assert "normalisation '0.3': expected means and deviations" in refused(*own, "--normalize", "0.3")
    assert "has images of floats, which are taken as normalised already" in refused(
        *[*own[:4], floats(), *own[5:], "--normalize", "0.3:0.2"]
    )
    save_file(WORKLOADS["resnet20"].build(3, 32, 10).state_dict(), "resnet.safetensors")
    np.savez("colours.npz", images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4))
    packaged = ["simulate", "--network", "resnet20", "--weights", "resnet.safetensors", "--data", "colours.npz"]
    assert "network 'resnet20' has a normalisation of its own, 0.485,0.456,0.406:0.229,0.224,0.225" in refused(
        *packaged, "--lot", "lot.h5", "--normalize", "0.3:0.2"
    )


def floats() -> str:
    """A file of images that are floats."""
    np.savez("floats.npz", images=np.zeros((4, 1, 8, 8), np.float32), labels=np.arange(4))
    return "floats.npz"


def test_bad_input_is_refused(lot: Path) -> None:
    base = SIMULATE[:3]
    assert "missing.h5: no such file" in refused(*base, "--lot", "missing.h5")
    Path("text.h5").write_text("text")
    assert "text.h5 is not an HDF5 file" in refused(*base, "--lot", "text.h5")
    assert "no chip 'rooined' among its 3 chips; did you mean ruined" in refused(*SIMULATE, "--chip", "rooined")
    assert "network 'alexnet' is unknown" in refused("simulate", "--network", "alexnet", "--lot", "lot.h5")
    assert "comes without weights: give a path" in refused("simulate", "--network", "lenet5", "--lot", "lot.h5")
    assert "0 is not in the range" in refused(*base, "--lot", "lot.h5", "--images", "0")
    assert "images is 5000: expected 1..360" in refused(*base, "--lot", "lot.h5", "--images", "5000")
    assert "0 is not in the range" in refused(*SIMULATE, "--batch", "0")
    assert "'fpga' is not one of 'cycle', 'emulation'" in refused(*SIMULATE, "--engine", "fpga")
    assert "nowhere: no such folder" in refused(*SIMULATE, "--json", "nowhere/result.json")
    assert "lot.h5 is the file to read" in refused(*SIMULATE, "--json", "lot.h5")
    assert "nothing.npz" in refused(*SIMULATE, "--data", "nothing.npz")
    assert "nothing.safetensors" in refused(*SIMULATE, "--weights", "nothing.safetensors")


def test_weights_that_do_not_fit_are_refused(lot: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), "small.safetensors")
    message = refused(*SIMULATE, "--weights", "small.safetensors")
    assert "small.safetensors" in message
    assert re.search(r"missing|unexpected", message)
    Path("broken.safetensors").write_bytes(b"\x00" * 50)
    assert "broken.safetensors" in refused(*SIMULATE, "--weights", "broken.safetensors")


def test_a_chip_with_flips_is_refused(folder: Path) -> None:
    flips = FaultMap.from_faults(CONFIG, [Fault(1, 1, Site.PSUM, 3, Kind.FLIP, cycle=7)])
    write_lot("lot.h5", CONFIG, [Chip("hit", flips)])
    assert "chip hit has FLIP faults" in refused(*SIMULATE)


def test_output_that_cannot_be_written_is_refused_before_the_run(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("efat.inference.simulate.simulate", None)
    assert "no permission to write it" in refused(*SIMULATE, "--json", "result.json")


def test_interrupt_keeps_the_chips_that_are_done(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    original = simulation.run_chip

    def interrupted(*arguments: object, **named: object) -> inference.ChipReport:
        if done:
            raise KeyboardInterrupt
        done.append("one")
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(simulation, "run_chip", interrupted)
    result = run(*SIMULATE, "--json", "result.json")
    assert result.exit_code == 130
    assert "Stopped early: 2 of 3 chips were not simulated." in result.output
    assert result.output.splitlines()[-1] == "Interrupted."
    written = json.loads(Path("result.json").read_text())
    assert written["complete"] is False
    assert [chip["chip"] for chip in written["chips"]] == ["good"]


def test_interrupt_before_the_first_chip(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "classify", interrupted)
    result = run(*SIMULATE)
    assert result.exit_code == 130
    assert "Stopped early: 3 of 3 chips" in result.output
