"""`efat.report` from Python: what it takes, prints, shows and saves."""

from __future__ import annotations

from pathlib import Path

import pytest

import efat
from efat.propagation.tables import FILE_NAME
from tests.support.pages import read_page
from tests.support.programs import done
from tests.support.propagation import campaign
from tests.support.retrained_lots import write_retrained_lot


def test_a_report_is_what_the_command_writes_and_says(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=3)
    shown = done("report", "lot").output
    found = efat.report("lot")
    assert isinstance(found, efat.Report)
    assert f"{found}\nWrote lot/report.html.\n" == shown
    found.save("again.html")
    assert Path("again.html").read_bytes() == Path("lot/report.html").read_bytes()
    assert efat.report(Path("lot") / "manifest.json").html() == found.html()
    # A notebook shows the page in a frame.
    frame = read_page(f"<!doctype html>{found._repr_html_()}").one("iframe")
    assert frame.attributes["srcdoc"] == found.html()


def test_faults_have_a_report(folder: Path, seed: int) -> None:
    (folder / "faults").mkdir()
    campaign(seed).save(folder / "faults" / FILE_NAME)
    assert efat.report("faults").sentences == done("report", "faults").output.splitlines()[:-1]


def test_what_is_no_page_is_not_replaced(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=2)
    before = Path("lot/plan.json").read_bytes()
    with pytest.raises(efat.InputError, match="is there already and is no page"):
        efat.report("lot").save("lot/plan.json")
    with pytest.raises(efat.InputError, match="nothing is no folder"):
        efat.report("nothing")
    assert Path("lot/plan.json").read_bytes() == before
