"""`efat simulate --manifest`: each chip runs what is its own, and does as it would alone with that."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efat import records, simulate
from efat.confidence import at_least
from efat.inference import simulation
from efat.inference.waveforms import layer_gemm
from efat.planning.plan import AS_IS
from efat.planning.selection import Constraint
from efat.retraining.manifest import Manifest, ManifestChip, read_chip_deployment, read_group_weights
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, simulate_gemm
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, ChipLot, write_lot
from tests.support.programs import refused, run, written
from tests.support.retrained_lots import CONFIG, write_deployed_lot
from tests.support.vcd_file import read_vcd
from training.data.workloads import load_workload
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import write_deployed

IMAGES = 30
SIMULATE = ["simulate", "--manifest", "out/manifest.json", "--lot", "lot.h5"]
QUICK = [*SIMULATE, "--cycle-images", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lot.h5` and `out/`, of random faults."""
    folder = tmp_path_factory.mktemp("retrained")
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    write_deployed_lot(folder, seed, IMAGES)
    return folder


@pytest.fixture
def lot(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A copy of it, which is the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Manifest.load(Path("out/manifest.json"))


def alone(manifest: Manifest, chip: ManifestChip, engine: str) -> dict[str, Any]:
    """What `efat simulate --weights` gives for a chip: its group's weights and how they sit on it, in one file."""
    weights, _ = read_group_weights(Path("out"), manifest.group_named[chip.group])
    deployment = read_chip_deployment(Path("out"), chip)
    write_deployed(Path("alone.safetensors"), weights, deployment, {"chip_digest": chip.digest})
    arguments = ["--network", "digits-cnn", "--weights", "alone.safetensors", "--chip", chip.id, "--engine", engine]
    test = load_workload("digits-cnn").test
    pixels = np.rint(test.images[-IMAGES:].numpy() * 255).astype(np.uint8)
    np.savez("judging.npz", images=pixels, labels=test.labels[-IMAGES:])
    report, _ = written("simulate", *arguments, "--lot", "lot.h5", "--data", "judging.npz")
    return report


def test_each_chip_does_as_with_its_own_weights_alone(lot: Manifest) -> None:
    reports = {}
    for engine in ("emulation", "cycle"):
        report, _ = written(*SIMULATE, "--engine", engine)
        assert report.pop("engine") == engine
        assert report.pop("cycle_images") == (8 if engine == "emulation" else 0)
        reports[engine] = report
    assert reports["emulation"] == reports["cycle"]
    report = reports["cycle"]
    # Groups one after the other, chips of a group as they are in the lot.
    assert [chip["chip"] for chip in report["chips"]] == ["chip 0", "chip 3", "chip 1", "chip 2"]
    fault_free = {group["group"]: group["fault_free"] for group in report["groups"]}
    for chip in report["chips"]:
        found = lot.chip_named[chip["chip"]]
        assert chip.pop("group") == found.group
        assert chip.pop("correct_at_retraining") == chip["correct"] == found.correct
        assert chip.pop("required") == lot.required
        assert chip.pop("passes") == found.passes
        for engine in ("emulation", "cycle") if found.id == "chip 1" else ("emulation",):
            expected = alone(lot, found, engine)
            assert [chip] == expected["chips"]
            assert fault_free[found.group] == expected["fault_free"]
        if found.group != AS_IS:
            assert chip["changed_predictions"] == 0
            assert chip["correct"] == fault_free[found.group]["correct"]


@pytest.mark.parametrize("above", [0, 1])
def test_it_shows_what_it_writes(lot: Manifest, above: int) -> None:
    # One chip has just as many images right as required, or one too few.
    required = min(lot.chip_named["chip 2"].correct + above, IMAGES)
    chips = tuple(records.replace(chip, passes=chip.correct >= required) for chip in lot.chips)
    constraint = Constraint(accuracy=(required - 0.5) / IMAGES)
    least = constraint.required_to_end(lot.tuning.images, lot.tuning.fault_free_correct)
    changes = {"tuning": records.replace(lot.tuning, required=least), "constraint": constraint}
    records.replace(lot, required=required, chips=chips, **changes).save(Path("out/manifest.json"))
    report, shown = written(*QUICK)
    assert "Weights of out/manifest.json: 4 chips in 3 groups, planned by efat." in shown
    assert f"digits-cnn on {report['data']}, {IMAGES} images; 16x12 array, emulation engine" in shown
    fault_free = {group["group"]: group["fault_free"]["accuracy"] for group in report["groups"]}
    for chip in report["chips"]:
        row = next(line for line in shown.splitlines() if line.strip().startswith(chip["chip"]))
        percents = [word for word in row.split() if word.endswith("%")]
        expected = [
            fault_free[chip["group"]],
            chip["accuracy"],
            math.floor(1000 * chip["accuracy_95_at_least"]) / 1000,
            chip["correct_at_retraining"] / IMAGES,
            required / IMAGES,
        ]
        assert percents == [f"{value:.1%}" for value in expected]
        assert row.split()[-1] == ("yes" if chip["passes"] else "no")
        assert chip["group"] in row
        assert f"{chip['bypassed_pes']} " in row
    passing = sum(chip.correct >= required for chip in lot.chips)
    assert sum(chip["passes"] for chip in report["chips"]) == passing
    assert (
        f"{passing} of 4 chips classify as many images correctly as required: {required} of {IMAGES} unseen images."
        in shown
    )
    assert shown.splitlines()[-1] == "All as measured at the retraining."
    assert report["manifest"] == {
        "path": "out/manifest.json",
        "strategy": "efat",
        "images": IMAGES,
        "required": required,
        "same_images": True,
    }
    assert (report["float"], report["fault_free"]) == (None, None)


def test_chips_that_do_otherwise_than_at_the_retraining_are_named(lot: Manifest) -> None:
    chips = list(lot.chips)
    for number in (1, 3):
        other = (chips[number].correct + 1) % (IMAGES + 1)
        chips[number] = records.replace(
            chips[number], correct=other, at_least=at_least(other, IMAGES), passes=other >= lot.required
        )
    records.replace(lot, chips=tuple(chips)).save(Path("out/manifest.json"))
    report, shown = written(*QUICK)
    assert shown.splitlines()[-1] == "Not as at the retraining: chip 3, chip 1."
    measured = {chip["chip"]: chip["correct"] - chip["correct_at_retraining"] for chip in report["chips"]}
    assert [bool(measured[chip.id]) for chip in lot.chips] == [False, True, False, True]


def test_some_chips_and_other_images(lot: Manifest) -> None:
    workload = load_workload("digits-cnn")
    # As many images as verified the lot, and others.
    pixels = np.rint(workload.test.images[IMAGES : 2 * IMAGES].numpy() * 255).astype(np.uint8)
    np.savez("images.npz", images=pixels, labels=workload.test.labels[IMAGES : 2 * IMAGES])
    for others in (["--images", "12"], ["--data", "images.npz"]):
        report, shown = written(*QUICK, "--chip", "chip 2", "--chip", "chip 0", *others)
        assert [chip["chip"] for chip in report["chips"]] == ["chip 0", "chip 2"]
        assert [chip["passes"] for chip in report["chips"]] == [None, None]
        assert report["manifest"]["same_images"] is False
        assert [group["group"] for group in report["groups"]] == ["group-0000", AS_IS]
        assert "passes" not in shown
        assert f"Other images than the {IMAGES} that verified the lot" in shown.splitlines()[-1]
    assert report["images"] == IMAGES


def test_a_waveform_shows_what_runs_on_the_chip(lot: Manifest) -> None:
    wave = [*SIMULATE, "--vcd", "wave.vcd", "--layer", "linear1", "--pe", "3,4", "--batch", "1"]
    assert "4 chips are chosen: a waveform shows one" in refused(*wave)
    result = run(*wave, "--chip", "chip 1")
    assert result.exit_code == 0, result.output
    assert "of fold 0 of layer linear1, on chip chip 1." in result.output
    prepared = simulate(None, "lot.h5", manifest="out", chips=["chip 1"], batch=1, images=1, run=False)
    gemm = layer_gemm(prepared, "linear1")
    deployment = read_chip_deployment(Path("out"), lot.chip_named["chip 1"])
    weights, _ = read_group_weights(Path("out"), lot.group_named["group-0001"])
    # Operands sit where the chip's own placement has them.
    placement = deployment.placements["linear1"]
    network = load_workload("digits-cnn").network
    network.load_state_dict(weights)
    quantised = quantized_layers(convert(network, CONFIG, (), activation_scales=deployment.activation_scales))
    assert np.array_equal(gemm.w, placement.place_w(quantised["linear1"].weight_int.T).numpy())
    assert not placement.is_in_order
    (chip,) = prepared.chips
    read = read_vcd("wave.vcd")
    window = (0, len(read.cycles))
    trace = simulate_gemm(gemm.x, gemm.w, CONFIG, chip.faults, bypass=deployment.bypass, record=window).trace
    assert trace is not None
    for entry, shown in enumerate(read.cycles):
        assert shown["array.pe_3_4.weight"] == int(trace.weight[entry, 3, 4]) % 256


def test_interrupt_keeps_the_chips_that_are_done(lot: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = simulation.run_chip
    done: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return original(*arguments)

    monkeypatch.setattr(simulation, "run_chip", interrupted)
    result = run(*QUICK, "--json", "result.json")
    assert result.exit_code == 130
    assert "Stopped early: 1 of 4 chips were not simulated." in result.output
    report = json.loads(Path("result.json").read_text())
    assert (report["complete"], len(report["chips"])) == (False, 3)
    assert "of 3 chips classify as many images correctly as required" in result.output


def test_options_that_the_manifest_answers_are_refused(lot: Manifest) -> None:
    for options in (
        ["--weights", "lot.h5"],
        ["--calibration", "max"],
        ["--bypass"],
        ["--mitigation", "fap"],
        ["--normalize", "0:1"],
        ["--tune-images", "3"],
    ):
        assert f"leave out {options[0]}" in refused(*SIMULATE, *options)
    assert "network 'lenet5' is not that of out/manifest.json, which is 'digits-cnn'" in refused(
        *SIMULATE, "--network", "lenet5"
    )
    assert "choose a network with --network, or a lot that was retrained with --manifest" in refused(
        "simulate", "--lot", "lot.h5"
    )
    assert "out/missing.json: no such file; efat retrain writes it" in refused(
        "simulate", "--manifest", "out/missing.json", "--lot", "lot.h5"
    )
    assert "images is 361: expected 1..30, the verification images" in refused(*SIMULATE, "--images", "361")
    assert "out/manifest.json is the file to read" in refused(
        *SIMULATE, "--chip", "chip 0", "--vcd", "out/manifest.json", "--layer", "0"
    )


def test_a_network_of_ones_own_is_named_by_the_user(lot: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_own.py").write_text(
        "from pathlib import Path\nfrom training.data.networks import DigitsCnn\n\n"
        "def network():\n    Path('ran').touch()\n    return DigitsCnn(1, 8, 10)\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    setup = records.replace(lot.setup, network="my_own:network", data=Path("digits"))
    records.replace(lot, setup=setup).save(Path("out/manifest.json"))
    message = refused(*QUICK, "--chip", "chip 1")
    assert "if it is your own, say so with --network my_own:network, as it is code that will run" in message
    assert not Path("ran").exists()
    report, _ = written(*QUICK, "--chip", "chip 1", "--network", "my_own:network")
    assert report["chips"][0]["correct"] == lot.chip_named["chip 1"].correct


def test_another_lot_is_refused(lot: Manifest) -> None:
    with ChipLot("lot.h5") as opened:
        chips = list(opened)
    other = [chips[0], Chip("chip 1", FaultMap(CONFIG)), *chips[2:]]
    write_lot("other.h5", CONFIG, other)
    base = [*SIMULATE[:3], "--lot", "other.h5"]
    assert "chip chip 1 of other.h5 has other faults or bypassed PEs than the one that out/manifest.json" in refused(
        *base
    )
    assert written(*base, "--chip", "chip 2", "--images", "2")[0]["complete"]
    write_lot("other.h5", CONFIG, [*chips, Chip("new", chips[0].faults)])
    assert "chip new of other.h5 is not in out/manifest.json" in refused(*base)
    write_lot("other.h5", CONFIG, chips[:-1])
    assert "other.h5 has no chip chip 3, which is in out/manifest.json" in refused(*base)
    taller = ArrayConfig(CONFIG.rows + 1, CONFIG.cols)
    write_lot("other.h5", taller, [Chip(chip.id, FaultMap(taller)) for chip in chips])
    assert "other.h5 has an array with rows=17, and out/manifest.json one with 16" in refused(*base)
    bypass = np.ones((CONFIG.rows, CONFIG.cols), np.bool_)
    write_lot("other.h5", CONFIG, [Chip("chip 0", chips[0].faults, bypass)])
    more = CONFIG.pe_count - lot.chip_named["chip 0"].bypassed_pes
    assert f"the fuses of chip chip 0 bypass {more} PEs more than when it was retrained" in refused(
        *base, "--chip", "chip 0"
    )
    flips = FaultMap.from_faults(CONFIG, [Fault(1, 1, Site.PSUM, 3, Kind.FLIP, cycle=7)])
    write_lot("other.h5", CONFIG, [Chip("chip 0", flips)])
    assert "chip chip 0 has FLIP faults" in refused(*base, "--chip", "chip 0")


def test_files_that_do_not_fit_are_refused_before_anything_runs(lot: Manifest) -> None:
    path = Path("out/manifest.json")
    last = Path("out") / lot.chip_named["chip 2"].deployment
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert f"{last} is not the file that the manifest was made with" in refused(*SIMULATE)
    last.unlink()
    assert f"{last}: no such file" in refused(*SIMULATE)
    last.write_bytes(whole)
    # Digests that fit, and steps of activations that are those of other weights.
    chip = lot.chip_named["chip 1"]
    deployment = read_chip_deployment(Path("out"), chip)
    scales = {name: 2 * scale for name, scale in deployment.activation_scales.items()}
    file = Path("out") / chip.deployment
    whole = file.read_bytes()
    write_deployed(file, {}, replace(deployment, activation_scales=scales), {})
    chips = tuple(
        records.replace(each, sha256=digest_of_file(file)) if each.id == chip.id else each for each in lot.chips
    )
    records.replace(lot, chips=chips).save(path)
    assert "chip chip 1 has other steps of activations than its group group-0001" in refused(*QUICK, "--chip", "chip 1")
    file.write_bytes(whole)
    group = lot.group_named["group-0001"]
    file = Path("out") / group.weights
    _, start = read_group_weights(Path("out"), group)
    write_deployed(file, {"linear1.weight": torch.zeros(3, 2)}, start, {})
    groups = tuple(records.replace(each, sha256=digest_of_file(file)) if each == group else each for each in lot.groups)
    records.replace(lot, groups=groups).save(path)
    message = refused(*QUICK, "--chip", "chip 1")
    assert f"{file} does not fit digits-cnn" in message
    for change, message in (
        ({"mitigation": "none"}, "setup: mitigation none"),
        ({"weights": 3}, "setup: weights is 3"),
    ):
        path.write_text(json.dumps({**lot.as_dict(), "setup": {**lot.setup.as_dict(), **change}}))
        assert f"out/manifest.json: {message}" in refused(*QUICK)
