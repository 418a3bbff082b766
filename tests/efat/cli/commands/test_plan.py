"""`efat plan` as a user meets it: what it shows is in the plan that it writes, and what it refuses."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import efat
from efat.cli.commands.plan import plan
from efat.confidence import at_least, bound_text
from efat.planning.plan import AS_IS, Plan
from efat.planning.selection import Constraint
from efat.records import replace
from efat.resilience.severity import PREDICTORS
from simulator import ArrayConfig, FaultMap
from simulator.lots.chips import Chip, write_lot
from tests.support.networks import with_broken_accumulators
from tests.support.programs import done, refused
from tests.support.retrained_lots import LOT, PLAN, random_chips, write_digits_measured

CONFIG = ArrayConfig(16, 12)
BASE = ["plan", "--resilience", "res", "--lot", LOT, "--max-drop", "0", "-o", PLAN]
HERE = ["--workers", "0"]
"""In this process, where the network is loaded already."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `efat resilience` and a lot, which nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "res").mkdir()
    write_digits_measured(folder, CONFIG).rename(folder / "res/resilience.h5")
    write_lot(folder / LOT, CONFIG, random_chips(1, [0.0, 0.2, 0.22, 0.3, 0.05], CONFIG))
    return folder


@pytest.fixture
def inputs(folder: Path, made: Path) -> Path:
    """The same in the current folder."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


def written() -> Plan:
    return Plan.load(Path(PLAN))


def rows(shown: str) -> dict[str, list[str]]:
    """Cells of the table by the name of the strategy."""
    cells = (re.split(r" {2,}", line.strip()) for line in shown.splitlines())
    return {row[0]: row[1:] for row in cells if len(row) in (5, 6) and row[1].isdigit()}


def test_what_is_shown_is_in_the_plan(inputs: Path) -> None:
    shown = done(*BASE, *HERE, "--predictor", "faulty_pes").output
    plan = written()
    fixed = plan.comparison[0].iterations
    assert [cost.strategy for cost in plan.comparison] == ["fixed", "select", "merge-5", "efat"]
    assert {name.removesuffix(" *"): row for name, row in rows(shown).items()} == {
        cost.strategy: [
            str(cost.retrained_groups),
            str(cost.iterations),
            str(cost.largest_amount),
            str(cost.out_of_reach),
            f"{cost.iterations / fixed:.1%}",
        ]
        for cost in plan.comparison
    }
    assert [name for name in rows(shown) if name.endswith("*")] == ["efat *"]
    (as_is,) = [group for group in plan.groups if group.name == AS_IS]
    text = " ".join(shown.split())
    assert "5 chips, 96.67% of 30 tuning images required; severity: faulty_pes, statistic: max" in text
    assert (
        f"{len(as_is.chips)} of 5 chips need no retraining, as tried on 30 tuning images; the others share "
        f"{plan.cost.retrained_groups} retraining" in text
    )
    assert f"of {plan.cost.iterations} iterations in total" in text
    assert {chip.id for chip in plan.tried if chip.correct >= plan.required} == set(as_is.chips)
    sure = bound_text(at_least(29, 30))
    assert f"A chip that just meets what is required gets at least {sure} right with 95 % confidence" in text
    assert f"The resilience analysis took {plan.resilience_iterations} iterations." in text
    assert "Note: 29 of 30 images (96.67 %) are reached only up to a severity (faulty_pes) of 0.4" in text
    assert shown.splitlines()[-1] == f"Wrote {PLAN}. Carry it out: efat retrain --plan {PLAN} -o retrained/"
    assert (plan.lot.path, plan.resilience.path) == (LOT, "res/resilience.h5")
    # The same again is the same, but for the command line.
    before = Plan.load(Path(PLAN))
    assert before.commands[-1] == ("efat", *BASE, *HERE, "--predictor", "faulty_pes")
    assert f"{PLAN} is there already: choose another name, or replace it with --force" in refused(*BASE)
    assert done(*BASE, *HERE, "--predictor", "faulty_pes", "--force").output == shown
    again = Plan.load(Path(PLAN))
    assert again.commands[-1] == (*before.commands[-1], "--force")
    assert replace(again, commands=before.commands).as_dict() == before.as_dict()


def test_options_reach_the_plan(inputs: Path) -> None:
    options = ["--strategy", "Merge-2", "--statistic", "quantile:0.5", "--predictor", "weights"]
    options += ["--margin", "0.1", "--no-try", "--step", "3", "--budget", "21", "--no-align"]
    options += ["--resilience", "res/resilience.h5"]
    shown = done("plan", "--lot", LOT, "--accuracy", "50%", *options, "-o", PLAN).output
    plan = written()
    assert (plan.strategy, plan.statistic, plan.predictor) == ("merge-2", "quantile:0.5", "weights")
    assert (plan.step, plan.budget, plan.aligned, plan.required) == (3, 21, False, 18)
    assert plan.constraint == Constraint(0.5, margin=0.1)
    assert "merge-2 *" in rows(shown)
    assert plan.tried == ()
    text = " ".join(shown.split())
    assert "5 of 5 chips need no retraining, as predicted." in text
    assert "Note: no chip was tried: which of them need no retraining is predicted from the table alone." in text


def test_aligned_chips(inputs: Path) -> None:
    write_digits_measured(inputs, CONFIG, "fam+t").rename("res/resilience.h5")
    shown = done(*BASE, *HERE, "--align").output
    plan = written()
    assert (plan.aligned, plan.predictor in ("pruned", "saliency")) == (True, True)
    assert "efat, aligned *" in rows(shown)
    assert len(rows(shown)) == 5


def no_chips() -> None:
    write_lot(LOT, CONFIG, [])


def another_array() -> None:
    write_lot(LOT, ArrayConfig(16, 16), [Chip("one", FaultMap(ArrayConfig(16, 16)))])


def dead_chip() -> None:
    write_lot(LOT, CONFIG, [with_broken_accumulators(Chip("dead one", FaultMap(CONFIG)), *range(12))])


def no_table() -> None:
    Path("res/resilience.h5").unlink()


def table_is_something_else() -> None:
    shutil.copyfile(LOT, "res/resilience.h5")


def damaged_lot() -> None:
    Path(LOT).write_bytes(Path(LOT).read_bytes()[:500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_chips, "lot.h5 has no chips: generate or import some first"),
        (another_array, "the lot's array has cols=16, and resilience was measured with 12"),
        (dead_chip, "chip dead one has no column that can be used"),
        (no_table, "res/resilience.h5: no such file; make it with `efat resilience`"),
        (table_is_something_else, "it is of another kind: expected attribute format='efat-resilience'"),
        (damaged_lot, "lot.h5 is not an HDF5 file or is damaged"),
    ],
)
def test_files_that_do_not_fit_are_refused(inputs: Path, damage: Callable[[], None], message: str) -> None:
    damage()
    assert message in refused(*BASE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accuracy", "0.9"], "give one of --accuracy and --max-drop"),
        (["--max-drop", "1.5"], "'1.5': expected a fraction, 0 to 1, or a percentage such as 1%; for 1.5 percent give"),
        (["--max-drop", "nan"], "'nan': expected a fraction"),
        (["--max-drop", "some%"], "'some%': expected a fraction"),
        (["--max-drop", "101%"], "'101%': expected a fraction, 0 to 1, or a percentage such as 1%"),
        (
            ["--max-drop", "1"],
            "'1' means that chips may lose 100% of the images: for 1 percent give 0.01 or 1%, or 100%",
        ),
        (
            ["--max-drop", "0.5"],
            "'0.5' means that chips may lose 50% of the images: for 0.5 percent give 0.005 or 0.5%",
        ),
        (["--strategy", "best"], "strategy 'best' is unknown: expected fixed, select, efat, or merge-K"),
        (["--statistic", "median"], "statistic 'median' is unknown"),
        (["--predictor", "pruned"], "predictor 'pruned' cannot be had for strategy efat here"),
        (["--align"], "the mitigation permutes nothing, so chips cannot be aligned"),
        (["--align", "--strategy", "select"], "strategy select does not align chips"),
        (["--budget", "1", *HERE], "budget is 1 iterations, and a group needs"),
        (["--budget", str(10**15)], "expected at most 10,000 steps"),
        (["--step", "0"], "Invalid value for '--step': 0 is not in the range"),
        (["--lot", "none.h5"], "none.h5: no such file"),
        (["-o", LOT], "lot.h5 is there already"),
        (["-o", LOT, "--force"], "lot.h5 is the file to read: choose another name to write"),
        (["-o", "res/resilience.h5", "--force"], "res/resilience.h5 is the file to read"),
        (["-o", "no/folder.json"], "no: no such folder to write folder.json into"),
        (["--network", "mine:network"], "network 'mine:network' is not that of res/resilience.h5"),
    ],
)
def test_bad_options_are_refused(inputs: Path, options: list[str], message: str) -> None:
    assert message in refused(*BASE, *options)
    assert not Path(PLAN).exists()


def test_one_of_the_constraints_is_needed(inputs: Path) -> None:
    assert "give one of --accuracy and --max-drop" in refused("plan", "--resilience", "res", "--lot", LOT, "-o", PLAN)
    everything = [*BASE[:5], "--accuracy", "1", "-o", PLAN]
    for every in ("1", "100%"):
        assert "cannot be met: 30 of 30 images" in refused(*BASE[:5], "--accuracy", every, "--no-try", "-o", PLAN)
    assert "for 97 percent give 0.97 or 97%" in refused(*BASE[:5], "--accuracy", "97", "-o", PLAN)
    assert "--workers is of no use with --no-try" in refused(*everything, "--no-try", "--workers", "1")
    # The chip without faults does it.
    text = " ".join(done(*everything, "--workers", "0").output.split())
    assert "1 of 5 chips need no retraining, as tried" in text
    assert "Note: the constraint cannot be met: 30 of 30 images" in text


def test_a_chip_that_is_out_of_reach_is_told_of(inputs: Path) -> None:
    write_lot(LOT, CONFIG, [Chip("broken", FaultMap(CONFIG), np.ones((16, 12), np.bool_))])
    text = " ".join(done(*BASE, *HERE).output.split())
    assert "Note: 1 chip is out of reach as far as was measured: there are 8 iterations for each such group" in text
    assert "0 of 1 chips need no retraining, as tried on 30 tuning images; the others share 1 retraining of 8" in text


def test_options_are_those_of_the_library() -> None:
    parameters = inspect.signature(efat.plan).parameters
    options = {option.name: option for option in plan.params}
    assert tuple(options["predictor"].type.choices) == PREDICTORS  # type: ignore[attr-defined]
    for name in ("margin", "strategy", "statistic", "tried"):
        assert options[name].default == parameters[name].default
