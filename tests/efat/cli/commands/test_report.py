"""`efat report` as a user meets it: the page, the sentences, commands that do it again, and what it refuses."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from efat.campaigns.campaign import Campaign
from efat.command_lines import running
from efat.records import replace
from efat.reports.lot import LotReport, lot_findings, read_lot_report
from tests.support.pages import read_page
from tests.support.programs import done, refused
from tests.support.retrained_lots import write_retrained_lot


@pytest.fixture
def retrained(folder: Path, seed: int) -> LotReport:
    """A retrained lot in the current folder."""
    write_retrained_lot(folder / "retrained", seed, chips=5)
    return read_lot_report(folder / "retrained")


def test_the_page_is_beside_the_manifest_and_the_terminal_has_its_summary(retrained: LotReport) -> None:
    output = done("report", "retrained").output
    assert output.splitlines()[-6:] == [
        *(finding.sentence for finding in lot_findings(retrained)),
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


def test_what_it_refuses(retrained: LotReport) -> None:
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


def test_the_commands_are_those_that_were_run(retrained: LotReport) -> None:
    page = read_page(Path(done("report", "retrained").output.split()[-1].rstrip(".")).read_text()).with_id("reproduce")
    simulate, report = page.one("code").text.split("\n\n")
    assert simulate == "efat simulate --manifest retrained/manifest.json --lot lot.h5"
    assert report == "efat report retrained/"
    for name in ("resilience", "plan", "retrain"):
        assert f"No command line of efat {name} was kept: it was called from Python, or by an older" in page.text
    table = ("efat", "resilience", "--network", "my net", "--rates", "0.1,0.2", "-o", "res")
    made = ("efat", "plan", "--resilience", "res", "--max-drop", "<1%>", "-o", "plan.json")
    replace(retrained.plan, commands=(table, made)).save(Path("retrained/plan.json"))
    token = running.set(("efat", "retrain", "--plan", "plan.json"))
    Campaign(Path("retrained"), "retraining of a lot", {}, among_others=True)
    running.reset(token)
    done("report", "retrained", "-o", "again.html")
    page = read_page(Path("again.html").read_text()).with_id("reproduce")
    shown = [shlex.split(text.replace("\\\n", " ")) for text in page.one("code").text.split("\n\n")]
    assert [tuple(words) for words in shown[:3]] == [table, made, ("efat", "retrain", "--plan", "plan.json")]
    assert "No command line" not in page.text
