"""`efat retrain` as a user meets it: what it shows and writes, going on after Ctrl-C, chips that fail, bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from efat import records
from efat.cli import render
from efat.command_lines import kept_in
from efat.confidence import bound_text
from efat.planning.plan import AS_IS
from efat.planning.planner import plan
from efat.retraining.manifest import Manifest, check_files
from simulator import ArrayConfig, FaultMap
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import contents, done, refused, run
from tests.support.retrained_lots import LOT, PLAN, random_chips, write_digits_measured

CONFIG = ArrayConfig(16, 12)
BASE = ["retrain", "--plan", PLAN, "--cycle-images", "1", "--workers", "0", "-o", "out"]


def write_inputs(folder: Path, chips: list[Chip]) -> None:
    """A lot, a table and a plan; as the table is made up, chips may do better or worse than planned."""
    (folder / "res").mkdir()
    write_digits_measured(folder, CONFIG).rename(folder / "res/resilience.h5")
    write_lot(folder / LOT, CONFIG, chips)
    given = {"predictor": "faulty_pes", "step": 2, "budget": 8, "tried": False}
    made = plan(folder / "res/resilience.h5", folder / LOT, accuracy=0.7, **given)  # type: ignore[arg-type]
    lot, table = records.replace(made.lot, path=LOT), records.replace(made.resilience, path="res/resilience.h5")
    records.replace(made, lot=lot, resilience=table).save(folder / PLAN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of chips that all can do what is required, which nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    write_inputs(folder, random_chips(1, [0.0, 0.15, 0.05, 0.18], CONFIG))
    return folder


@pytest.fixture
def inputs(folder: Path, made: Path) -> Path:
    """The same in the current folder."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


def written() -> Manifest:
    return Manifest.load(Path("out/manifest.json"))


def rows(shown: str) -> dict[str, list[str]]:
    """Cells of the table by the name of the group."""
    cells = (re.split(r" {2,}", line.strip()) for line in shown.splitlines())
    return {row[0]: row[1:] for row in cells if len(row) == 8 and row[1].isdigit()}


def test_what_is_shown_is_in_the_manifest(inputs: Path) -> None:
    shown = done(*BASE).output
    manifest = written()
    check_files(manifest, Path("out"))
    assert kept_in(Path("out")) == (("efat", *BASE),)
    chips = manifest.chip_named
    assert rows(shown) == {
        group.name: [
            str(len(group.chips)),
            str(group.planned),
            str(group.iterations),
            f"{min(chips[chip].tuning_correct for chip in group.chips) / 30:.2%}",
            f"{min(chips[chip].correct for chip in group.chips) / 330:.2%}",
            bound_text(min(chips[chip].at_least for chip in group.chips)),
            f"{sum(chips[chip].passes for chip in group.chips)}/{len(group.chips)}",
        ]
        for group in manifest.groups
    }
    assert {group.name for group in manifest.groups} > {AS_IS}
    text = " ".join(shown.split())
    worst = min(manifest.chips, key=lambda chip: chip.correct)
    assert f"{manifest.passing} of 4 chips meet 70.00% on 330 unseen images; the worst is {worst.id} with" in text
    assert f"{worst.correct / 330:.2%}, at least {bound_text(worst.at_least)} with 95 % confidence." in text
    assert f"It took {manifest.totals.iterations} iterations" in text
    assert "The cycle engine gave the same for 4 images." in text
    assert shown.splitlines()[-1] == "Wrote out/manifest.json. Look at it: efat report out"
    before = contents(Path("out"))
    # The plan and the table are in the folder, which is enough with the lot.
    Path(PLAN).unlink()
    Path("res/resilience.h5").unlink()
    again = ["retrain", "--plan", "out/plan.json", "--resilience", "out", *BASE[3:]]
    assert done(*again).output == shown
    assert kept_in(Path("out")) == (("efat", *again),)
    assert {**contents(Path("out")), "campaign.json": b""} == {**before, "campaign.json": b""}
    assert "Wrote out/report.html" in done("report", "out").output


@contextmanager
def interrupting_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Bars that are interrupted when two chips are verified."""

    def show(what: str, done: int, _of: int) -> None:
        if (what, done) == ("chips as they are", 2):
            raise KeyboardInterrupt

    yield show


def test_an_interrupted_run_goes_on(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(render, "stages_bar", interrupting_bar)
        result = run(*BASE)
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "Interrupted; run the same command to go on."
    before = contents(Path("out/units"))
    assert sum(name.endswith(".json") for name in before) == 4
    assert not Path("out/manifest.json").exists()
    done(*BASE)
    after = contents(Path("out/units"))
    assert {name: after[name] for name in before} == before
    assert written().passing == 4


def test_chips_that_fail_are_named_and_end_with_1(folder: Path) -> None:
    broken = [Chip(f"broken {number}", FaultMap(CONFIG), np.ones((16, 12), np.bool_)) for number in range(2)]
    write_inputs(folder, [*broken, Chip("whole", FaultMap(CONFIG))])
    result = run(*BASE)
    assert result.exit_code == 1
    found = written()
    assert [chip.passes for chip in found.chips] == [False, False, True]
    percent = f"{found.chips[0].correct / 330:.2%}"
    lines = result.output.splitlines()
    assert lines[-1] == (
        "Error: 2 of 3 chips miss what is required on images that decided nothing: "
        f"broken 0 ({percent}), broken 1 ({percent})"
    )
    assert lines[-2].startswith("Wrote out/manifest.json.")
    assert run(*BASE).output == result.output


def another_lot() -> None:
    write_lot(LOT, CONFIG, random_chips(2, [0.1], CONFIG))


def another_table() -> None:
    Path("res/resilience.h5").write_bytes(b"something else")


def no_lot() -> None:
    Path(LOT).unlink()


def no_plan() -> None:
    Path(PLAN).unlink()


def no_table() -> None:
    Path("res/resilience.h5").unlink()


def damaged_plan() -> None:
    Path(PLAN).write_text(Path(PLAN).read_text()[:-10])


def another_network() -> None:
    content = json.loads(Path(PLAN).read_text())
    content["identity"]["network"] = "0" * 64
    Path(PLAN).write_text(json.dumps(content))


def folder_in_use() -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")


def folder_is_a_file() -> None:
    Path("out").write_text("precious")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (another_lot, "lot.h5 is not the lot that the plan was made from: make the plan again"),
        (another_table, "res/resilience.h5 is not the table that the plan was made from: make the plan again"),
        (no_lot, "lot.h5: no such file; it is the lot that the plan was made from"),
        (no_table, "res/resilience.h5: no such file; it is the table that the plan was made from"),
        (no_plan, "plan.json: no such file; efat plan writes it"),
        (damaged_plan, "plan.json is no JSON"),
        (another_network, "digits-cnn: another network than resilience was measured with"),
        (folder_in_use, "out has files in it and is no campaign: choose another folder"),
        (folder_is_a_file, "out is not a folder: expected one to write results into"),
    ],
)
def test_files_that_do_not_fit_are_refused(inputs: Path, damage: Callable[[], None], message: str) -> None:
    damage()
    before = contents(inputs)
    assert message in refused(*BASE)
    assert contents(inputs) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "-1"], "Invalid value for '--workers': -1 is not in the range"),
        (["--ray", "local"], "--workers and --ray are both given: choose one"),
        (["--cycle-images", "-1"], "Invalid value for '--cycle-images'"),
        (["--lot", "other.h5"], "other.h5: no such file"),
        (["-o", "no/folder"], "no: no such folder to make folder in; make it first"),
        (["--network", "mine:network"], "network 'mine:network' is not that of the plan, which is 'digits-cnn'"),
    ],
)
def test_bad_options_are_refused(inputs: Path, options: list[str], message: str) -> None:
    assert message in refused(*BASE, *options)
    assert not Path("out").exists()


def test_another_run_in_the_same_folder_is_refused(inputs: Path) -> None:
    done(*BASE)
    before = contents(inputs)
    assert "out was begun with another cycle images: choose another folder" in refused(*BASE, "--cycle-images", "0")
    assert contents(inputs) == before
