"""`efat retrain-chip` as a user meets it: what it writes and shows, going on after any end, and what it refuses."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from efat.cli import render
from efat.cli.commands import retrain_chip
from efat.cli.learning_options import (
    DEFAULT_BATCH,
    DEFAULT_LABEL_SMOOTHING,
    DEFAULT_LEARNING_RATE,
    DEFAULT_OPTIMIZER,
    DEFAULT_OPTIMIZER_OPTIONS,
    RecipeRequest,
    recipe_options,
)
from simulator import ArrayConfig, FaultMap, FaultModel, sample_faults
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import done, refused, run
from training.data.batches import Augmentation
from training.layers.deployment import read_deployed
from training.learning import fit
from training.learning.fit import TrainingProgress
from training.learning.recipe import DEFAULT_OPTIONS, Recipe

CONFIG = ArrayConfig(16, 16)
BASE = ["retrain-chip", "--network", "digits-cnn", "--lot", "lot.h5", "--chip", "bad", "--images", "40"]
RETRAIN = [*BASE, "--mitigation", "fap+t", "--batch", "16", "--threads", "1", "--evaluate-at", "3", "-o", "out"]
SHORT = [*RETRAIN, "--iterations", "4"]
UNTIL_TARGET = [word for word in SHORT if word not in ("--images", "40")]


@pytest.fixture(autouse=True)
def threads_of_others() -> Iterator[None]:
    """The command sets PyTorch's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lot(folder: Path, seed: int) -> Path:
    """A chip with many faults and one without."""
    bad = sample_faults(CONFIG, FaultModel(0.05), seed)
    write_lot("lot.h5", CONFIG, [Chip("bad", bad), Chip("good", FaultMap(CONFIG))])
    return Path("lot.h5")


def measured(folder: str = "out") -> dict[str, Any]:
    """What a run measured, but for the time it took."""
    found: dict[str, Any] = json.loads(Path(folder, "metrics.json").read_text())
    assert found.pop("wall")["seconds"] > 0
    assert len(found.pop("sha256")) == 64
    return found


def results(folder: str = "out") -> dict[str, bytes]:
    """The files of a folder, but for those of the campaign."""
    files = (path for path in Path(folder).iterdir() if path.is_file() and path.name != "campaign.json")
    return {path.name: path.read_bytes() for path in files}


def test_what_is_shown_is_what_was_measured_and_simulated(lot: Path) -> None:
    shown = done(*SHORT).output
    metrics = measured()
    assert sorted(results()) == ["curve.png", "metrics.json", "weights.safetensors"]
    for name, row in (
        ("float", "float32"),
        ("fault_free", "quantised, fault-free"),
        ("before", "on the chip, before retraining"),
        ("after", "on the chip, after "),
    ):
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(row)]
        found = metrics["accuracy"][name]
        assert f"{found['accuracy']:.1%}" in line
        assert f"{found['accuracy_95_low']:.1%} .. {found['accuracy_95_high']:.1%}" in line
    for count, of in ((metrics["bypassed_pes"], 256), (metrics["weights_pruned"], metrics["weights_on_chip"])):
        assert f"{count:,} of {of:,} ({count / of:.2%})" in shown
    assert re.search(r"iterations +4\n", shown)
    assert "In out/weights.safetensors, out/metrics.json and out/curve.png." in shown
    assert [entry["iteration"] for entry in metrics["evaluations"]] == [0, 3, 4]
    assert metrics["recipe"]["options"] == {"momentum": 0.9}
    command = shown.splitlines()[-1].removeprefix("Try it: efat ")
    assert command.endswith("--lot lot.h5 --chip bad --images 40")
    for engine in ("cycle", "emulation"):
        again = done(*command.split(), "--engine", engine, "--json", "again.json").output
        assert "Weights made for bad with fap+t: " in again
        written = json.loads(Path("again.json").read_text())
        assert written["chips"][0]["correct"] == metrics["accuracy"]["after"]["correct"]
        assert written["chips"][0]["bypassed_pes"] == metrics["bypassed_pes"] == written["deployment"]["bypassed_pes"]
        assert written["deployment"]["other_chips"] == []
        assert written["deployment"]["about"]["chip_digest"] == metrics["chip"]["digest"]


def test_a_finished_run_is_shown_again_and_never_replaced_unasked(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = done(*SHORT)
    before = results()
    with monkeypatch.context() as patched:
        patched.setattr(fit, "_step", None)
        again = done(*SHORT)
    assert "out/metrics.json is of this very retraining: nothing is run; --force runs it again." in again.output
    assert first.output in again.output
    for changes, what in (
        (["--seed", "1", "--iterations", "5"], "budget, recipe"),
        (["--chip", "good"], "chip"),
        (["--mitigation", "fam+t", "--images", "39"], "held-out images, strategy"),
    ):
        message = refused(*SHORT, *changes)
        assert f"out was begun with another {what}: choose another folder" in message
        assert "--force starts over" in message
    assert results() == before
    done(*SHORT, "--force")
    assert results()["weights.safetensors"] == before["weights.safetensors"]
    done(*SHORT, "--seed", "1", "--force")
    assert results()["weights.safetensors"] != before["weights.safetensors"]
    assert measured()["recipe"]["seed"] == 1
    # What was deleted of its files is written again.
    made = results()
    for missing in made:
        Path("out", missing).unlink()
        assert "nothing is run" in done(*SHORT, "--seed", "1").output
        assert results() == made


def test_a_mitigation_that_does_not_retrain_needs_no_length(lot: Path) -> None:
    shown = done(*BASE, "--mitigation", "fap", "--threads", "1", "-o", "out").output
    metrics = measured()
    assert metrics["losses"] == []
    assert len(metrics["evaluations"]) == 1
    assert "before retraining" not in shown
    deployment = read_deployed(Path("out/weights.safetensors"))[1]
    assert deployment is not None
    assert deployment.about["mitigation"] == "fap"


DRIVER = """
import sys
from efat.cli import main
from training.learning import fit
from training.data.batches import Augmentation
fit.CHECKPOINT_SECONDS = 0
main(sys.argv[1:])
"""


@pytest.mark.integration
def test_a_killed_run_goes_on_bit_for_bit(lot: Path) -> None:
    length = ["--iterations", "15", "--mitigation", "fam+t+gradual"]
    command = [*RETRAIN, *length, "--learn-scales", "--optimizer", "Adam", "--learning-rate", "0.001"]
    done(*command)
    undisturbed, metrics = results()["weights.safetensors"], measured()
    Path("out").rename("undisturbed")
    running = subprocess.Popen([sys.executable, "-c", DRIVER, *command], stderr=subprocess.PIPE)
    checkpoint = Path("out/units/chip.checkpoint.pt")
    while not checkpoint.exists() and running.poll() is None:
        time.sleep(0.005)
    time.sleep(random.random() * 0.3)
    running.send_signal(signal.SIGKILL)
    _, said = running.communicate()
    assert running.returncode in (0, -signal.SIGKILL), said
    if running.returncode and checkpoint.exists() and not Path("out/metrics.json").exists():
        assert "another recipe" in refused(*command, "--batch", "17")
    again = done(*command).output
    assert "Going on after iteration" in again or "nothing is run" in again
    assert results()["weights.safetensors"] == undisturbed
    assert measured() == metrics
    assert sorted(results()) == ["curve.png", "metrics.json", "weights.safetensors"]
    assert [path.name for path in Path("out/units").iterdir() if "checkpoint" in path.name] == []


def test_results_that_are_damaged_are_made_again(lot: Path, seed: int) -> None:
    done(*SHORT)
    undisturbed, metrics = results()["weights.safetensors"], measured()
    for path in (Path("out/weights.safetensors"), Path("out/metrics.json")):
        content = path.read_bytes()
        place = random.Random(seed).randrange(len(content))
        for damaged in (content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], content[:50]):
            path.write_bytes(damaged)
            shown = done(*SHORT).output
            assert shown.startswith(f"{path} is damaged, or another one: written again\n")
            assert "nothing is run" in shown
            assert path.read_bytes() == content
    for name, why in (("chip.weights.safetensors", "does not fit its files"), ("chip.json", "is damaged")):
        Path("out/units", name).write_bytes(b"damaged")
        shown = done(*SHORT).output
        assert shown.startswith(f"out/units/chip.json {why}: done again\n")
        assert "nothing is run" not in shown
        assert results()["weights.safetensors"] == undisturbed
        assert measured() == metrics


def test_a_checkpoint_that_is_damaged_is_begun_again(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(*SHORT)
    undisturbed, metrics = results()["weights.safetensors"], measured()
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patched:
        patched.setattr(render, "training_bar", interrupting_bar)
        assert run(*SHORT, "--force").exit_code == 130
    checkpoint = Path("out/units/chip.checkpoint.pt")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-9])
    assert "out/units/chip.checkpoint.pt is damaged: done again from the start" in done(*SHORT).output
    assert results()["weights.safetensors"] == undisturbed
    assert measured() == metrics


@contextmanager
def interrupting_bar(beginning: str) -> Iterator[Callable[[int, int, TrainingProgress | None], None]]:
    """A bar that is interrupted after two iterations."""

    def show(done: int, of: int, moment: TrainingProgress | None) -> None:
        if done > 2:
            raise KeyboardInterrupt

    yield show


def test_an_interrupted_run_goes_on(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(*SHORT)
    undisturbed, metrics = results()["weights.safetensors"], measured()
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patched:
        patched.setattr(render, "training_bar", interrupting_bar)
        # Forced: what is there goes, and what was done since is not lost when the same command runs again.
        for forced in ("--force", "--force"):
            result = run(*SHORT, forced)
            assert result.exit_code == 130
            assert result.output.splitlines()[-1] == "Interrupted; run the same command to go on."
            assert sorted(results()) == []
            assert Path("out/units/chip.checkpoint.pt").exists()
    assert "out was begun with another recipe: choose another folder" in refused(*SHORT, "--seed", "1")
    again = done(*SHORT, "--force")
    assert "Going on after iteration 2 of 4, from out/units/chip.checkpoint.pt." in again.output
    assert re.search(r"time +.* s, since iteration 2\n", again.output)
    assert results()["weights.safetensors"] == undisturbed
    assert measured() == metrics


def test_an_interrupted_run_to_a_target_goes_on(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until = [*UNTIL_TARGET, "--target-accuracy", "1"]
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patched:
        patched.setattr(render, "training_bar", interrupting_bar)
        assert run(*until).exit_code == 130
    assert "Going on after iteration 2 of 4" in done(*until).output


def test_a_run_that_diverges_fails_with_its_last_good_state(lot: Path) -> None:
    for _ in range(2):
        result = run(*SHORT, "--learning-rate", "1e38")
        assert result.exit_code == 1
        assert re.search(r"\nError: training diverged: NaN or infinity in iteration \d", result.output)
        assert sorted(results()) == ["curve.png", "metrics.json", "weights.safetensors"]
        assert measured()["diverged_at"] is not None
    assert "nothing is run" in result.output


def test_weights_say_what_they_are_for_wherever_they_are_used(lot: Path) -> None:
    done(*SHORT)
    weights = ["--network", "digits-cnn", "--weights", "out/weights.safetensors", "--lot", "lot.h5", "--images", "8"]
    made_for = "Weights made for bad with fap+t: "
    result = done("validate", *weights, "--json", "validated.json")
    assert made_for in result.output
    assert "this is another chip: good." in result.output
    assert "All logits are identical." in result.output
    assert json.loads(Path("validated.json").read_text())["deployment"]["other_chips"] == ["good"]
    wave = ["--chip", "bad", "--vcd", "wave.vcd", "--layer", "linear2", "--pe", "3,4", "--batch", "1"]
    assert made_for in done("simulate", *weights, *wave).output
    torch.save({"nothing": torch.zeros(1)}, "other.pt")
    assert "does not fit digits-cnn" in refused(*SHORT, "--weights", "other.pt")


def test_bad_input_is_refused(lot: Path) -> None:
    assert "--iterations and --epochs are both given" in refused(*SHORT, "--epochs", "1")
    assert "mitigation fap+t retrains: say for how many" in refused(*RETRAIN)
    assert "mitigation 'fap+u' is unknown" in refused(*SHORT, "--mitigation", "fap+u")
    assert "optimiser 'SDG' is unknown" in refused(*SHORT, "--optimizer", "SDG")
    assert "optimiser SGD refuses its options" in refused(*SHORT, "--option", "mass=3")
    assert "'momentum': expected a name and a value" in refused(*SHORT, "--option", "momentum")
    assert "'momentum=nan': expected a number, true or false" in refused(*SHORT, "--option", "momentum=nan")
    assert "--option momentum is given twice" in refused(*SHORT, "--option", "momentum=0", "--option", "momentum=1")
    assert "is of no schedule: name one" in refused(*SHORT, "--schedule-option", "gamma=0.1")
    assert "schedule 'Step' is unknown" in refused(*SHORT, "--schedule", "Step")
    one_cycle = ["--schedule", "OneCycleLR", "--schedule-option", "total_steps=3"]
    assert "schedule OneCycleLR is over after 3 of 4 iterations" in refused(*SHORT, *one_cycle)
    assert "learning rate is nan" in refused(*SHORT, "--learning-rate", "nan")
    assert "'2': expected a fraction" in refused(*SHORT, "--label-smoothing", "2")
    assert "for 95 percent give 0.95 or 95%" in refused(*UNTIL_TARGET, "--target-accuracy", "95")
    assert "--images is of no use with --target-accuracy" in refused(*SHORT, "--target-accuracy", "0.9")
    assert "--tune-images is of no use without --target-accuracy" in refused(*SHORT, "--tune-images", "9")
    assert "accuracy is asked for after 9 of 4 iterations" in refused(*SHORT, "--evaluate-at", "9")
    assert "no chip 'bat' among its 2 chips; did you mean bad" in refused(*SHORT, "--chip", "bat")
    assert "missing.h5: no such file" in refused(*SHORT, "--lot", "missing.h5")
    assert "comes without weights" in refused(*SHORT, "--network", "lenet5", "--data", "digits")
    random_images = np.random.default_rng().integers(0, 255, (12, 8, 8), dtype=np.uint8)
    np.savez("data.npz", images=random_images, labels=np.arange(12) % 10)
    assert "leaves no images to test with" in refused(*SHORT, "--data", "data.npz")
    assert "nowhere: no such folder to make out in" in refused(*SHORT, "-o", "nowhere/out")
    assert "lot.h5 is not a folder" in refused(*SHORT, "-o", "lot.h5")
    assert not Path("out").exists()


def test_options_reach_the_recipe(lot: Path) -> None:
    options = ["--option", "nesterov=true", "--option", "weight_decay=5e-4", "--schedule", "StepLR"]
    options += ["--schedule-option", "step_size=2", "--schedule-option", "gamma=0.5", "--label-smoothing", "0.1"]
    options += ["--target-accuracy", "1", "--tune-images", "40"]
    until = [word for word in RETRAIN if word not in ("--images", "40")]
    shown = done(*until, "--epochs", "0.04", *options, "--no-augment", "--calibration", "mse").output
    metrics = measured()
    reached = "reached" if metrics["reached_target"] else "not reached"
    assert f": the target of 100% was {reached}." in " ".join(shown.split())
    assert metrics["reached_target"] == (metrics["accuracy"]["after"]["accuracy"] == 1)
    recipe = metrics["recipe"]
    assert recipe["options"] == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert (recipe["schedule"], recipe["schedule_options"]) == ("StepLR", {"step_size": 2, "gamma": 0.5})
    assert (recipe["label_smoothing"], recipe["augmentation"]["crop_padding"]) == (0.1, 0)
    assert (metrics["calibration"], metrics["budget"]["target_accuracy"]) == ("mse", 1.0)
    assert (metrics["budget"]["epochs"], metrics["budget"]["iterations"]) == (0.04, round(0.04 * (1437 // 16)))


@pytest.mark.parametrize(
    "split", [[], ["--tune-images", "300"], ["--verify-images", "100:140"], ["--verify-data", "others.npz"]]
)
def test_the_command_to_try_classifies_the_images_that_judged(lot: Path, split: list[str]) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    np.savez("others.npz", images=pixels, labels=np.arange(20) % 10)
    shown = done(*UNTIL_TARGET, "--target-accuracy", "0.5", *split).output
    metrics = measured()
    judged, decided = metrics["verified"]["after"], metrics["accuracy"]
    before, after = (f"{decided[name]['accuracy']:.1%}" for name in ("before", "after"))
    spent = f" after {metrics['iterations']} iterations, {before} before" if metrics["iterations"] else ""
    reached = "reached" if decided["after"]["accuracy"] >= 0.5 else "not reached"
    said = f"; on {metrics['data']['held_out_images']} tuning images {after}{spent}: the target of 50% was {reached}."
    assert said in " ".join(shown.split())
    done(*shlex.split(shown.partition("Try it: efat ")[2].replace("\\\n", " ")), "--json", "again.json")
    written = json.loads(Path("again.json").read_text())
    assert {name: written["chips"][0][name] for name in judged} == judged
    if split:
        assert str(written["split"]).count("None") == 2


def test_images_are_normalised_and_so_they_are_for_the_command_to_try(
    lot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_normed.py").write_text(
        "import torch\nfrom training.data.networks import DigitsCnn\n\ndef network():\n"
        "    torch.manual_seed(3)\n    return DigitsCnn(1, 8, 10)\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    asked = ["retrain-chip", "--network", "my_normed:network", "--data", "digits", "--normalize", "0.3:0.2", *SHORT[3:]]
    shown = done(*asked).output
    metrics = measured()
    assert metrics["data"]["normalization"] == "0.3:0.2"
    words = shlex.split(shown.partition("Try it: efat ")[2].replace("\\\n", " "))
    assert words[words.index("--normalize") + 1] == "0.3:0.2"
    done(*words, "--json", "again.json")
    (chip,) = json.loads(Path("again.json").read_text())["chips"]
    assert chip["correct"] == metrics["accuracy"]["after"]["correct"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--augment"], True),
        (["--augment", "network"], True),
        (["--no-augment"], False),
        (["--augment", "flip"], Augmentation(flip=True)),
        (["--augment", "crop=4"], Augmentation(crop_padding=4)),
        (["--augment=crop=4,flip"], Augmentation(flip=True, crop_padding=4)),
    ],
)
def test_what_is_said_of_augmentation(options: list[str], expected: object) -> None:
    found: list[object] = []

    @click.command()
    @recipe_options
    def command(learning: RecipeRequest) -> None:
        found.append(learning.augmentation)

    assert CliRunner().invoke(command, [*options, "--batch", "3"]).exit_code == 0
    assert found == [expected]


def test_augmentations_that_cannot_be_are_refused(lot: Path) -> None:
    for text in ("flop", "crop", "crop=0", "crop=x", "flip,flip", "crop=1,crop=2", "", "flip,"):
        assert f"{text!r}: expected flip, crop=PIXELS or both, such as flip,crop=4" in refused(
            *SHORT, "--augment", text
        )
    assert "crop padding is 99: expected 0..64 pixels" in refused(*SHORT, "--augment", "crop=99")
    assert "--augment and --no-augment are both given: choose one" in refused(*SHORT, "--augment", "--no-augment")


def test_defaults_are_those_of_a_recipe() -> None:
    recipe = Recipe()
    assert (recipe.batch, recipe.optimizer, recipe.learning_rate, recipe.label_smoothing) == (
        DEFAULT_BATCH,
        DEFAULT_OPTIMIZER,
        DEFAULT_LEARNING_RATE,
        DEFAULT_LABEL_SMOOTHING,
    )
    assert DEFAULT_OPTIMIZER_OPTIONS == DEFAULT_OPTIONS
    defaults = {option.name: option.default for option in retrain_chip.retrain_chip.params}
    assert defaults["seed"] == recipe.seed
