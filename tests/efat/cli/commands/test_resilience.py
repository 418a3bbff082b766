"""`efat resilience` as a user meets it: what it writes and shows, going on after Ctrl-C, and what it refuses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efat.cli import render
from efat.cli.commands.resilience import (
    DEFAULT_HARDEN_RATES,
    DEFAULT_LEVELS,
    DEFAULT_RATES,
    resilience,
)
from efat.cli.learning_options import RecipeRequest
from efat.cli.parameters import NumberList
from efat.resilience.measurement import measure_resilience
from efat.resilience.table import ResilienceTable, read_table
from efat.resilience.units import HardeningPlan
from efat.setup import Setup
from simulator import ArrayConfig, FaultMap
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import contents, done, refused, run
from training.learning.recipe import Recipe

BASE = ["resilience", "--network", "digits-cnn", "--tune-images", "20", "--batch", "16", "--workers", "0", "-o", "res"]
ARRAY = ["--array", "16x16"]
RATES = ["--rates", "0.3,0.02", "--levels", "2", "--repeats", "2"]
SHORT = [*BASE, *ARRAY, *RATES]


def table() -> ResilienceTable:
    return read_table(Path("res/resilience.h5"))


def test_what_is_shown_is_what_was_measured(folder: Path) -> None:
    shown = done(*SHORT).output
    found = table()
    assert found.rates.tolist() == [0.02, 0.3]
    assert found.levels.tolist() == [0, 2]
    for rate, values in zip(("2 %", "30 %"), 100 * found.accuracy, strict=True):
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(rate)]
        for level in (0, 1):
            assert f"{values[:, level].mean():.1f} ({values[:, level].min():.1f})" in line
    assert re.search(rf"accuracy of float32 +{found.float_correct / 20:.1%}", shown)
    assert re.search(rf"fault-free +{found.fault_free_correct / 20:.1%}", shown)
    assert re.search(r"iterations in all +8\n", shown)
    assert "In res/resilience.h5 and res/resilience.png." in shown
    assert shown.splitlines()[-1].startswith("Try it: efat plan --resilience res --lot lot.h5 --max-drop 0.01")
    before = contents(Path("res"))
    assert sorted(name for name in before if "units" not in name) == [
        "campaign.json",
        "resilience.h5",
        "resilience.png",
    ]
    again = done(*SHORT).output
    assert again.lstrip() == f"All of it is in res already: nothing is run.\n{shown.lstrip()}"
    assert contents(Path("res")) == before
    # Where retraining diverges, there is no accuracy to show.
    correct = found.correct.copy()
    correct[0, 0, 1] = correct[1, :, 1] = -1
    text = str(replace(found, correct=correct))
    assert re.search(rf"2 % .* {5 * correct[0, 1, 1]:.1f} \(diverged\)", text)
    assert re.search(r"30 % .*\) +diverged", text)
    assert "Note: retraining makes chips worse from" in text
    assert "20 tuning images" in shown
    assert "340 other images are kept to verify a lot with; they decided nothing." in shown
    setup = found.setup
    assert (setup.network, setup.mitigation, setup.split.tune_images) == ("digits-cnn", "fap+t", 20)
    assert setup.recipe == Recipe(batch=16, options={"momentum": 0.9}, augmentation=setup.recipe.augmentation)


@contextmanager
def interrupting_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is interrupted after three units."""

    def show(what: str, done: int, of: int) -> None:
        assert (what, of) == ("retrainings", 5)
        if done >= 3:
            raise KeyboardInterrupt

    yield show


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(render, "stages_bar", interrupting_bar)
        result = run(*SHORT)
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "Interrupted; run the same command to go on."
    before = contents(Path("res"))
    assert len([name for name in before if name.endswith(".json")]) == 1 + 3
    assert "res was begun with another recipe, seed: choose another folder" in refused(*SHORT, "--seed", "2")
    done(*SHORT)
    after = contents(Path("res"))
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if name.endswith(".json")]) == 1 + 5
    picture = after["resilience.png"]
    shown = done(*SHORT, "--levels", "2,3").output
    assert shown.lstrip().startswith("levels up to 3 instead of 2: 4 retrainings go on\n")
    assert table().levels.tolist() == [0, 2, 3]
    assert Path("res/resilience.png").read_bytes() != picture
    assert "All of it is in res already: nothing is run." in done(*SHORT).output
    assert contents(Path("res"))["resilience.h5"] == after["resilience.h5"]
    assert contents(Path("res"))["resilience.png"] == picture


def test_options_reach_what_is_measured(folder: Path) -> None:
    config = ArrayConfig(12, 10, acc_bits=24)
    write_lot("lot.h5", config, [Chip("one", FaultMap(config))])
    options = ["--site", "psum=3", "--site", "weight", "--kind", "stuck-at-1", "--pattern", "clustered"]
    options += ["--cluster-alpha", "0.7", "--harden", "2", "--harden-rates", "0.1:0.3", "--seed", "7"]
    options += ["--mitigation", "fam+t", "--no-augment", "--learn-scales", "--calibration", "mse"]
    levels = ["--levels", "0,1,2,3,4,5,6,7,8", "--rates", "0.1", "--repeats", "1"]
    shown = done(*BASE, "--lot", "lot.h5", *options, *levels).output
    found = table()
    assert found.array == config.record
    assert found.fault_model.sites == {"WEIGHT": 1.0, "PSUM": 3.0}
    assert found.fault_model.kinds == {"STUCK_AT_1": 1.0}
    assert (found.fault_model.pattern, found.fault_model.cluster_alpha) == ("clustered", 0.7)
    assert (found.harden_iterations, found.seed) == (2, 7)
    setup = found.setup
    assert (setup.mitigation, setup.learn_scales, setup.calibration) == ("fam+t", True, "mse")
    assert (setup.recipe.seed, setup.recipe.augmentation.crop_padding) == (7, 0)
    assert setup.hardened == folder / "res" / "units" / "hardened.safetensors"
    (head,) = [line.split() for line in shown.splitlines() if line.startswith(" faulty PEs")]
    assert head == ["faulty", "PEs", *map(str, range(9))]
    assert re.search(r"the same, hardened +\d+\.\d%\niterations of hardening +2\niterations in all +10\n", shown)
    assert shown.splitlines()[-1].startswith("Try it: efat plan --resilience res --lot lot.h5 ")


def test_bad_input_is_refused(folder: Path) -> None:
    config = ArrayConfig(16, 16)
    write_lot("lot.h5", config, [Chip("one", FaultMap(config))])
    assert "give the array with --array, or a lot of chips that has it with --lot" in refused(*BASE)
    assert "--array and --lot are both given" in refused(*SHORT, "--lot", "lot.h5")
    assert "--act-bits describes an array: give its size" in refused(*BASE, "--lot", "lot.h5", "--act-bits", "4")
    assert "--harden-rates is of no hardening" in refused(*SHORT, "--harden-rates", "0:0.1")
    assert "--workers and --ray are both given" in refused(*SHORT, "--ray", "local")
    assert "'0.1;0.2': expected numbers of 0 or more with commas" in refused(*SHORT, "--rates", "0.1;0.2")
    assert "'1.5': expected whole numbers of 0 or more" in refused(*SHORT, "--levels", "1.5")
    assert "'-1': expected whole numbers" in refused(*SHORT, "--levels", "-1")
    assert "rates have 3: expected 0..1" in refused(*SHORT, "--rates", "3")
    assert "rate 0.001 of 256 PEs is not one PE" in refused(*SHORT, "--rates", "0.001")
    assert "'flip' is no kind: expected one of stuck_at_0, stuck_at_1" in refused(*SHORT, "--kind", "flip")
    assert "cluster_alpha is 0.0" in refused(*SHORT, "--pattern", "clustered", "--cluster-alpha", "0")
    assert "mitigation fap does not retrain: add +t" in refused(*SHORT, "--mitigation", "fap")
    assert "depends on the number of iterations" in refused(*SHORT, "--schedule", "CosineAnnealingLR")
    assert "momentum is given twice" in refused(*SHORT, "--option", "momentum=0", "--option", "momentum=1")
    assert "network 'alexnet' is unknown" in refused(*SHORT, "--network", "alexnet")
    assert "tuning images are 361: expected 1..360" in refused(*SHORT, "--tune-images", "361")
    assert "no verification images are left" in refused(*SHORT, "--tune-images", "360")
    assert "'5:5': expected places of test images A:B" in refused(*SHORT, "--verify-images", "5:5")
    assert "missing.h5: no such file" in refused(*BASE, "--lot", "missing.h5")
    assert "expected fractions of all PEs within 0 to 1" in refused(*SHORT, "--harden-rates", "0:2")
    assert "nowhere: no such folder to make res in" in refused(*SHORT, "-o", "nowhere/res")
    assert "lot.h5 is not a folder" in refused(*SHORT, "-o", "lot.h5")
    assert not Path("res").exists()


def test_defaults_are_those_of_the_library() -> None:
    plan = HardeningPlan(1)
    assert (plan.lowest, plan.highest) == DEFAULT_HARDEN_RATES
    defaults = {option.name: option for option in resilience.params}
    assert "0:0.2" in defaults["harden_rates"].help  # type: ignore[attr-defined]
    signature = inspect.signature(measure_resilience).parameters
    assert [float(rate) for rate in DEFAULT_RATES.split(",")] == list(signature["rates"].default)
    assert [int(level) for level in DEFAULT_LEVELS.split(",")] == list(signature["levels"].default)
    assert (defaults["repeats"].default, defaults["seed"].default) == (
        signature["repeats"].default,
        signature["seed"].default,
    )
    setup = Setup("digits-cnn", None, None, "fap+t", Recipe())
    assert defaults["mitigation"].default == setup.mitigation
    assert {"calibration", "learn_scales"} <= set(RecipeRequest.__dataclass_fields__)
    assert defaults["calibration"].default == setup.calibration


def test_numbers_come_in_order_and_once(seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 50, 20).tolist()
    text = ", ".join(map(str, numbers))
    assert NumberList(int, "1,2").convert(text, None, None) == tuple(sorted(set(numbers)))
