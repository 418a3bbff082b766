"""`efat explain`: its numbers are those of plain simulations, it says what there is to say, and refuses bad input."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from efat.confidence import Accuracy
from efat.explanation import explanation
from efat.explanation.explanation import Explanation, FaultCost, fault_name
from efat.explanation.fault_subsets import FaultSubsets
from efat.inference.classified import ChangedPrediction, Comparison
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.lots.chips import Chip, ChipLot, write_lot
from tests.support.programs import refused, run, written
from tests.support.retrained_lots import write_deployed_lot

CONFIG = ArrayConfig(16, 12)
IMAGES = 20
NAMED = ["--network", "digits-cnn", "--lot", "lot.h5"]
EXPLAIN = ["explain", *NAMED, "--images", str(IMAGES), "--chip"]
DECISIVE = Fault(15, 3, Site.PSUM, 22, Kind.STUCK_AT_1)
FAULTS = [
    Fault(2, 1, Site.WEIGHT, 6, Kind.STUCK_AT_1),
    Fault(4, 0, Site.ACTIVATION, 6, Kind.STUCK_AT_1),
    Fault(9, 5, Site.PRODUCT, 0, Kind.STUCK_AT_0),
    DECISIVE,
]


@pytest.fixture
def lot(folder: Path) -> Path:
    """Chips without faults, with one that ruins it among others, with one that does nothing, and with an upset."""
    listed = {
        "good": [],
        "bad": FAULTS,
        "mild": FAULTS[2:3],
        "hit": [Fault(1, 1, Site.PSUM, 3, Kind.FLIP, cycle=7)],
    }
    chips = [Chip(name, FaultMap.from_faults(CONFIG, faults)) for name, faults in listed.items()]
    write_lot(folder / "lot.h5", CONFIG, chips)
    return folder / "lot.h5"


def explained(*arguments: str) -> tuple[dict[str, Any], str]:
    """What was written as JSON, and what was shown, in one line."""
    found, shown = written(*arguments)
    return found, " ".join(shown.split())


def test_numbers_are_those_of_plain_simulations(lot: Path) -> None:
    found, shown = explained(*EXPLAIN, "bad")
    chips = [Chip("all", FaultMap.from_faults(CONFIG, FAULTS))]
    for number, fault in enumerate(FAULTS):
        fewer = [other for other in FAULTS if other != fault]
        chips += [
            Chip(f"without {number}", FaultMap.from_faults(CONFIG, fewer)),
            Chip(f"only {number}", FaultMap.from_faults(CONFIG, [fault])),
        ]
    write_lot(Path("plain.h5"), CONFIG, chips)
    plain = ["--network", "digits-cnn", "--lot", "plain.h5", "--images", str(IMAGES), "--engine", "emulation"]
    simulated, _ = written("simulate", *plain)
    correct = {chip["chip"]: chip["correct"] for chip in simulated["chips"]}
    assert found["complete"] is True
    assert found["fault_free"]["correct"] == simulated["fault_free"]["correct"]
    assert (found["on_chip"]["correct"], found["images"]) == (correct["all"], IMAGES)
    (all_faults, *_) = simulated["chips"]
    assert len(found["on_chip"]["changed"]) == all_faults["changed_predictions"]
    for fault in found["faults"]:
        number = FAULTS.index(Fault(fault["row"], fault["col"], Site[fault["site"]], fault["bit"], Kind[fault["kind"]]))
        left_out, alone = fault["left_out"], fault["alone"]
        assert (left_out["correct"], alone["correct"]) == (correct[f"without {number}"], correct[f"only {number}"])
        assert left_out["gained"] - left_out["lost"] == left_out["correct"] - correct["all"]
        for each in left_out["changed"]:
            assert each["reference"] != each["found"]
        row = f"PE {fault['row']},{fault['col']} {fault['site']} bit {fault['bit']} stuck at "
        assert row in shown
        numbers = f"{left_out['correct'] / IMAGES:.1%} {left_out['gained']} {left_out['lost']} "
        assert f"{numbers}{alone['correct'] / IMAGES:.1%} {alone['gained']} {alone['lost']}" in shown.split(row)[1]
    gain = correct["without 3"] - correct["all"]
    assert gain > 10
    assert f"{fault_name(DECISIVE)} costs most: without it {gain} more of {IMAGES} images would be right." in shown
    first = found["on_chip"]["changed"][0]["image"]
    assert f"To see how: efat {shlex.join(EXPLAIN)} bad --json written.json --image {first}" in shown


@pytest.mark.parametrize(
    ("gained", "lost", "chance", "sure"),
    [(0, 0, 1.0, False), (3, 0, 1 / 8, False), (5, 1, 7 / 64, False), (8, 0, 1 / 256, True)],
)
def test_a_fault_that_costs_few_images_may_cost_none(gained: int, lost: int, chance: float, sure: bool) -> None:
    changed = [ChangedPrediction(image, 1, 0, 1) for image in range(gained)]
    changed += [ChangedPrediction(image, 1, 1, 0) for image in range(gained, gained + lost)]
    found = Comparison(Accuracy(10, IMAGES), tuple(changed))
    assert found.better_by_chance() == chance
    explanation: Any = SimpleNamespace(faults=FAULTS, images=IMAGES, costs=[None] * 4)
    shown = Explanation._costliest(explanation, FaultCost(3, found, found))
    assert shown.endswith(f"{gained - lost} more of {IMAGES} images would be right.") == sure


def test_an_image_is_explained(lot: Path) -> None:
    table, _ = explained(*EXPLAIN, "bad")
    wrong = next(each for each in table["on_chip"]["changed"])
    found, shown = explained("explain", *NAMED, "--chip", "bad", "--image", str(wrong["image"]))
    assert found["on_chip"] is None
    assert found["complete"] is True
    (image,) = found["explained"]
    assert (image["image"], image["label"], image["cause"]) == (wrong["image"], wrong["label"], "faults")
    assert (image["fault_free"], image["on_chip"]) == (wrong["reference"], wrong["found"])
    line = f"Image {wrong['image']} of class {wrong['label']}: class {wrong['found']} on the chip, "
    assert f"{line}class {wrong['reference']} on a fault-free array." in shown
    assert len(image["actions"]) == len(image["faults"]) > 0
    for action in image["actions"]:
        fault = found["faults"][action["index"]]
        where, stored = action["first"], action["first"]["stored"]
        assert f"PE {fault['row']},{fault['col']} {fault['site']} bit {fault['bit']}" in shown
        assert (
            f"first acts in layer {where['layer']}, fold {where['fold']}, clock cycle {where['cycle']:,}: "
            f"{'the sum' if fault['site'] == 'PSUM' else 'the'}" in shown
        )
        assert f"is {where['became']:,} instead of {where['was']:,};" in shown
        assert f"in cycle {stored['cycle']:,} output {stored['output']} of row {stored['row_of_x']} of X" in shown
    for layer in image["travel"]["layers"]:
        row = (
            f"{layer['layer']} {layer['changed']:,} {layer['outputs']:,} {layer['pattern']} {layer['largest_error']:,}"
        )
        assert row in shown


def test_an_image_that_is_as_without_faults(lot: Path) -> None:
    both = ["--image", "2", "--image", "0", "--image", "2"]
    found, shown = explained("explain", *NAMED, "--chip", "mild", *both, "--images", "5")
    assert [image["image"] for image in found["explained"]] == [2, 0]
    assert {image["cause"] for image in found["explained"]} == {"none"}
    assert shown.count("as on a fault-free array: right. There is nothing to explain.") == 2
    assert "The faults change no prediction." in shown
    assert found["images"] == 5


def test_a_chip_without_faults(lot: Path) -> None:
    found, shown = explained(*EXPLAIN, "good", "--image", "1")
    assert "Chip good, 16x12: 0 faults." in shown
    assert "The chip has no faults: there is nothing to leave out." in shown
    assert (found["faults"], found["on_chip"]["changed"]) == ([], [])


def test_faults_that_the_bypass_hides(lot: Path) -> None:
    found, shown = explained(*EXPLAIN, "mild", "--bypass")
    assert "1 fault, 1 of them hidden by the bypass of 1 PE." in shown
    assert "No fault of the chip can act: there is nothing to leave out." in shown
    assert "the chip without faults, PEs bypassed" in shown
    assert [fault["hidden"] for fault in found["faults"]] == ["bypassed"]
    assert found["bypassed_pes"] == 1


def test_an_image_that_the_bypass_spoils(folder: Path) -> None:
    ruined = FaultMap.from_faults(CONFIG, [Fault(row, 0, Site.ACTIVATION, 0, Kind.STUCK_AT_0) for row in range(16)])
    write_lot("lot.h5", CONFIG, [Chip("none left", ruined)])
    chosen = [argument for image in range(8) for argument in ("--image", str(image))]
    found, shown = explained("explain", *NAMED, "--chip", "none left", "--bypass", *chosen)
    assert "bypass" in {image["cause"] for image in found["explained"]}
    assert "So it is without any fault: the bypassed PEs are the cause." in shown


def test_a_retrained_lot_runs_as_deployed(folder: Path, seed: int) -> None:
    few = 8
    manifest = write_deployed_lot(folder, seed, few)
    of_manifest = ["explain", "--manifest", "out/manifest.json", "--lot", "lot.h5"]
    chip = manifest.chips[seed % 4]
    found, shown = explained(*of_manifest, "--chip", chip.id, "--images", str(few))
    assert "Weights of out/manifest.json: 4 chips in 3 groups" in shown
    assert found["on_chip"]["correct"] == chip.correct
    assert found["bypassed_pes"] == chip.bypassed_pes
    message = refused(*of_manifest, "--chip", chip.id, "--image", str(few))
    assert f"image {few}: expected 0..{few - 1}" in message
    for option in (["--weights", "a"], ["--calibration", "mse"], ["--bypass"]):
        assert f"leave out {option[0]}" in refused(*of_manifest, "--chip", chip.id, *option)


def test_bad_input_is_refused(lot: Path) -> None:
    named = ["explain", *NAMED, "--chip"]
    assert "no chip 'bed' among its 4 chips" in refused(*named, "bed")
    assert "chip hit has FLIP faults" in refused(*named, "hit")
    assert "image 360: expected 0..359, one of the 360 test images" in refused(*named, "bad", "--image", "360")
    assert "images is 361: expected 1..360" in refused(*named, "bad", "--images", "361")
    assert "-1 is not in the range" in refused(*named, "bad", "--image", "-1")
    assert "choose a network" in refused("explain", "--lot", "lot.h5", "--chip", "bad")
    assert "lot.h5 is the file to read" in refused(*named, "bad", "--json", "lot.h5")
    assert "missing.h5: no such file" in refused("explain", *NAMED[:2], "--lot", "missing.h5", "--chip", "bad")


@pytest.mark.parametrize("after", [0, 4])
def test_interrupted_it_shows_what_was_found(lot: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    runs: list[object] = []
    original: Callable[..., Any] = FaultSubsets.classify

    def interrupted(*arguments: object, **named: object) -> Any:
        if len(runs) == after:
            raise KeyboardInterrupt
        runs.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(explanation.FaultSubsets, "classify", interrupted)
    result = run(*EXPLAIN, "bad", "--json", "why.json")
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "Interrupted."
    written = json.loads(Path("why.json").read_text())
    assert written["complete"] is False
    if after:
        assert "Stopped early: 3 faults of 4 not left out yet." in result.output
        assert [fault["left_out"] is None for fault in written["faults"]] == [False, True, True, True]
    else:
        assert "Stopped before anything was found." in result.output
        assert written["on_chip"] is None


def test_interrupted_between_images(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = explanation.Explanation.explain

    def interrupted(self: explanation.Explanation, image: int, *arguments: Any) -> Any:
        if image == 1:
            raise KeyboardInterrupt
        return original(self, image, *arguments)

    monkeypatch.setattr(explanation.Explanation, "explain", interrupted)
    result = run("explain", *NAMED, "--chip", "mild", "--image", "0", "--image", "1")
    assert result.exit_code == 130
    assert "Image 0 of class " in result.output
    assert "Stopped early: not all images are explained." in result.output


def test_faults_have_names() -> None:
    assert fault_name(DECISIVE) == "PE 15,3 PSUM bit 22 stuck at 1"
    assert fault_name(Fault(0, 4, Site.ACCUMULATOR, 2, Kind.STUCK_AT_0)) == "column 4 ACCUMULATOR bit 2 stuck at 0"
    assert fault_name(Fault(1, 4, Site.MULTIPLIER, 70, Kind.STUCK_AT_0)) == "PE 1,4 MULTIPLIER location 70 stuck at 0"


def test_bypassed_pes_are_ranked_by_what_their_bypass_costs(lot: Path) -> None:
    # The first row holds a tap of each channel; that its lowest bit is stuck costs nothing.
    harmless = [Fault(0, col, Site.WEIGHT, 0, Kind.STUCK_AT_1) for col in range(6)]
    faults = FaultMap.from_faults(CONFIG, [*harmless, DECISIVE])
    required = faults.required_bypass()
    chips = [Chip("all", faults)]
    for row, col in np.argwhere(required):
        fused = required.copy()
        fused[row, col] = False
        chips.append(Chip(f"PE {row},{col}", faults, fused))
    write_lot(Path("some.h5"), CONFIG, chips)
    plain, _ = written("simulate", "--network", "digits-cnn", "--lot", "some.h5", "--images", str(IMAGES))
    correct = {chip["chip"]: chip["correct"] for chip in plain["chips"]}
    asked = ["explain", "--network", "digits-cnn", "--lot", "some.h5", "--chip", "all", "--images", str(IMAGES)]
    found, shown = explained(*asked, "--bypass")
    pes = found["bypass"]["pes"]
    assert {f"PE {pe['row']},{pe['col']}": pe["in_use"]["correct"] for pe in pes} == {
        name: correct[name] for name in correct if name != "all"
    }
    assert [pe["in_use"]["correct"] for pe in pes] == sorted((pe["in_use"]["correct"] for pe in pes), reverse=True)
    assert (pes[-1]["row"], pes[-1]["col"]) == (DECISIVE.row, DECISIVE.col)
    assert {pe["reason"] for pe in pes} == {"faults"}
    first = pes[0]
    row = f"PE {first['row']},{first['col']} faults {first['in_use']['correct'] / IMAGES:.1%}"
    assert f"{row} {first['in_use']['gained']} {first['in_use']['lost']} {first['margin']:+.3g}" in shown
    counts = [release["pes"] for release in found["bypass"]["releases"]]
    assert counts[:2] == [1, 2]
    best = max(found["bypass"]["releases"], key=lambda release: release["in_use"]["correct"])["in_use"]
    before = found["on_chip"]["correct"]
    if best["correct"] > before:
        assert f"{best['accuracy']:.1%} of {IMAGES} images are right instead of {before / IMAGES:.1%}." in shown
    assert explained(*asked)[0]["bypass"] == {"pes": [], "releases": []}


def test_what_is_bypassed_by_fuses_stays_so(lot: Path) -> None:
    with ChipLot(lot) as opened:
        faults = opened["bad"].faults
    fused = np.zeros((CONFIG.rows, CONFIG.cols), np.bool_)
    fused[DECISIVE.row, DECISIVE.col] = True
    write_lot(Path("fused.h5"), CONFIG, [Chip("fused", faults, fused)])
    found, shown = explained("explain", *NAMED[:2], "--lot", "fused.h5", "--chip", "fused", "--images", str(IMAGES))
    (plain,) = written("simulate", *NAMED[:2], "--lot", "fused.h5", "--images", str(IMAGES))[0]["chips"]
    assert found["on_chip"]["correct"] == plain["correct"]
    assert [fault["hidden"] for fault in found["faults"]] == [None, None, None, "bypassed"]
    assert "4 faults, 1 of them hidden by the bypass of 1 PE." in shown
