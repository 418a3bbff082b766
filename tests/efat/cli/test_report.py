"""`efat report` as a user meets it: the page, the sentences, commands that do it again, and what it refuses."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from efat import records
from efat.cli import main
from efat.planning.plan import FileOf
from efat.planning.selection import Constraint
from efat.reports.commands import cautions, commands
from efat.reports.folder import ReportData, read_report
from efat.reports.text import summary
from tests.support.command import done, refused
from tests.support.html_page import read_page
from tests.support.retrained_lots import write_retrained_lot


@pytest.fixture
def retrained(folder: Path, seed: int) -> ReportData:
    """A retrained lot in the current folder."""
    write_retrained_lot(folder / "retrained", seed, chips=5)
    return read_report(folder / "retrained")


def test_the_page_is_beside_the_manifest_and_the_terminal_has_its_summary(retrained: ReportData) -> None:
    output = done("report", "retrained").output
    assert output.splitlines()[-6:] == [
        *(finding.sentence for finding in summary(retrained)),
        "Wrote retrained/report.html.",
    ]
    written = Path("retrained/report.html").read_bytes()
    page = read_page(written.decode())
    assert [line.one("span").text for line in page.one("ol", "summary").all("li")] == output.splitlines()[-6:-1]
    # Again, over the earlier one and elsewhere: the same bytes.
    done("report", "retrained/")
    done("report", "retrained", "-o", "other.html")
    assert Path("retrained/report.html").read_bytes() == Path("other.html").read_bytes() == written
    assert not list(Path("retrained").glob(".report*"))


def test_what_it_refuses(retrained: ReportData) -> None:
    assert refused("report", "nothing") == "nothing is no folder: expected that of efat retrain or efat propagate"
    assert "manifest.json: no such file" in refused("report", ".")
    assert "no such folder" in refused("report", "retrained", "-o", "missing/report.html")
    assert refused("report", "retrained", "-o", "retrained/manifest.json") == (
        "retrained/manifest.json is there already and is no page: choose a name that ends in .html"
    )
    Path("retrained/report.html").mkdir()
    assert "is a folder" in refused("report", "retrained")
    Path("retrained/report.html").rmdir()
    Path("retrained/plan.json").write_text("{}")
    assert refused("report", "retrained").startswith("retrained/plan.json is no efat-plan file")
    assert not Path("retrained/report.html").exists()


def parsed(line: str) -> dict[str, Any]:
    """What a command of a report would be run with."""
    program, name, *arguments = shlex.split(line.replace("\\\n", " "))
    assert program == "efat"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.make_context(name, arguments).params


def test_the_commands_are_what_was_done(retrained: ReportData) -> None:
    resilience, plan, retrain, simulate, report = map(parsed, commands(retrained))
    table, planned, setup = retrained.table, retrained.plan, retrained.plan.setup
    assert resilience["network"] == setup["network"]
    assert resilience["mitigation"] == setup["mitigation"]
    assert resilience["array"] == (retrained.manifest.array["rows"], retrained.manifest.array["cols"])
    assert list(resilience["rates"]) == table.rates.tolist()
    assert list(resilience["levels"]) == table.levels.tolist()
    assert (resilience["repeats"], resilience["seed"]) == (table.repeats, table.seed)
    assert dict(resilience["sites"]) == table.fault_model["sites"]
    assert dict(resilience["kinds"]) == table.fault_model["kinds"]
    assert (resilience["batch"], resilience["learning_rate"]) == (128, 0.01)
    assert dict(resilience["options"]) == setup["recipe"]["options"]
    assert (resilience["augment"], resilience["no_augment"]) == (None, True)
    assert resilience["output"] == plan["resilience"] == Path("res")
    assert (plan["max_drop"], plan["accuracy"]) == (planned.constraint.max_drop, None)
    for name in ("strategy", "statistic", "predictor", "step", "budget"):
        assert plan[name] == getattr(planned, name)
    assert plan["aligned"] is False
    assert plan["output"] == retrain["plan_path"] == Path("plan.json")
    assert retrain["cycle_images"] == retrained.manifest.chips[0].cycle_images
    assert simulate["manifest"] == Path("retrained/manifest.json")
    assert plan["lot"] == simulate["lot"] == Path("lot.h5")
    assert report["folder"] == retrain["output"] == Path("retrained")


def test_the_commands_of_unusual_settings(retrained: ReportData) -> None:
    recipe = {
        **retrained.plan.setup["recipe"],
        "optimizer": "AdamW",
        "options": {"weight_decay": 0.05, "amsgrad": True, "betas": [0.9, 0.99]},
        "label_smoothing": 0.1,
        "augmentation": {"flip": True, "crop_padding": 4},
    }
    setup = {
        **retrained.plan.setup,
        "weights": "-odd name.safetensors",
        "data": "images",
        "recipe": recipe,
        "learn_scales": True,
        "normalization": "0.5:0.25",
        "split": {"tune_images": 40, "verify_images": [300, 360], "verify_data": None},
    }
    array = {**retrained.plan.array, "act_signed": False, "acc_bits": 24, "multiplier": "mine 0123abcd"}
    plan = records.replace(
        retrained.plan,
        setup=setup,
        array=array,
        aligned=True,
        constraint=Constraint(0.5, margin=0.01),
        resilience=FileOf("elsewhere/table.h5", ""),
    )
    data = replace(retrained, plan=plan)
    found = parsed(commands(data)[0])
    assert (found["weights"], found["data"]) == (Path("-odd name.safetensors"), Path("images"))
    assert found["normalize"] == "0.5:0.25"
    assert (found["optimizer"], dict(found["options"])) == ("AdamW", {"weight_decay": 0.05, "amsgrad": True})
    assert (found["label_smoothing"], found["augment"], found["learn_scales"]) == (0.1, (True, 4), True)
    assert (found["tune_images"], found["verify_images"], found["verify_data"]) == (40, (300, 360), None)
    assert (found["acc_bits"], found["unsigned_acts"]) == (24, True)
    planned = parsed(commands(data)[1])
    assert (planned["accuracy"], planned["max_drop"], planned["aligned"]) == (0.5, None, True)
    assert planned["margin"] == 0.01
    assert planned["resilience"] == Path("elsewhere/table.h5")
    assert "mine 0123abcd" in cautions(data)[0]
    hardened = replace(data, table=replace(data.table, harden_iterations=300))
    found = parsed(commands(hardened)[0])
    assert (found["harden"], found["weights"]) == (300, Path("-odd name.safetensors"))
    assert "hardened" in cautions(hardened)[0]
