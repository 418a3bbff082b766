"""Fault propagation on pages that `efat report` writes: of its own, or a section of a lot's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from efat import records
from efat.propagation.summary import Propagation
from efat.propagation.tables import FILE_NAME
from efat.reports.lot import lot_page, read_lot_report
from efat.reports.propagation import propagation_findings, read_propagation_report
from simulator.errors import InputError
from tests.support.pages import read_page
from tests.support.programs import done, refused
from tests.support.propagation import asked, campaign, small_propagation
from tests.support.retrained_lots import write_retrained_lot


def on_the_array_of(folder: Path, found: Propagation) -> Propagation:
    """The same on the array of a lot that was retrained."""
    return replace(found, array=read_lot_report(folder).manifest.array)


def test_a_lot_has_it_as_a_section(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=4)
    (folder / "faults").mkdir()
    found = on_the_array_of(folder / "lot", campaign(seed))
    found.save(folder / "faults" / FILE_NAME)
    alone = done("report", "lot").output
    output = done("report", "lot", "--propagation", "faults", "-o", "both.html").output
    report = read_propagation_report(folder / "faults")
    sentences = [finding.sentence for finding in propagation_findings(report)]
    assert output.splitlines()[-len(sentences) - 1 : -1] == sentences
    assert output.splitlines()[: -len(sentences) - 1] == alone.splitlines()[:-1]
    whole = read_page(Path("both.html").read_text())
    section = whole.with_id("propagation")
    assert [line.one("span").text for line in section.one("ol", "summary").all("li")] == sentences
    assert not list(section.all("h1"))
    assert [heading.text for heading in section.all("h2")] == ["Fault propagation"]
    commands = whole.with_id("reproduce").one("code").text.split("\n\n")
    assert commands[-1] == "efat report lot/ --propagation faults/"
    assert report.digest in whole.with_id("reproduce").text
    # Without it the page says nothing of it.
    assert "propagat" not in lot_page(read_lot_report(folder / "lot")).split("</style>")[1].lower()


def test_faults_of_something_else_are_refused(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=2)
    (folder / "faults").mkdir()
    found = campaign(seed)
    found.save(folder / "faults" / FILE_NAME)
    assert "faults is of another array than manifest.json" in refused("report", "lot", "--propagation", "faults")
    other = replace(on_the_array_of(folder / "lot", found), subject=records.replace(found.subject, network="lenet5"))
    other.save(folder / "faults" / FILE_NAME)
    assert "faults is of another network than manifest.json" in refused("report", "lot", "--propagation", "faults")
    assert "--propagation adds such a folder" in refused("report", "faults", "--propagation", "faults")
    assert refused("report", "lot", "--propagation", "none") == "none is no folder: expected that of efat propagate"
    assert not list(folder.rglob("*.html"))


def test_a_folder_of_efat_propagate_has_a_page_of_its_own(folder: Path, seed: int) -> None:
    (folder / "faults").mkdir()
    campaign(seed).save(folder / "faults" / FILE_NAME)
    output = done("report", "faults").output
    sentences = [finding.sentence for finding in propagation_findings(read_propagation_report(folder / "faults"))]
    assert output.splitlines() == [*sentences, "Wrote faults/report.html."]
    written = Path("faults/report.html").read_bytes()
    done("report", "faults/", "-o", "other.html")
    assert Path("other.html").read_bytes() == written


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, emptied])
def test_a_damaged_file_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    (folder / "faults").mkdir()
    asked(small_propagation()).save(folder / "faults" / FILE_NAME)
    damage(folder / "faults" / FILE_NAME)
    assert "faults/propagation.h5" in refused("report", "faults")


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("request", {"confidence": 1}, "confidence is 1"),
        ("request", {"confidence": 0}, "confidence is 0"),
        ("request", {"confidence": "sure"}, "confidence is 'sure'"),
        ("subject", {"network": 3}, "network is 3"),
        ("subject", {"weights": []}, "weights is "),
        ("subject", {"identity": {"network": 1}}, "network is 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, where: str, changes: dict[str, Any], message: str) -> None:
    asked(small_propagation()).save(tmp_path / FILE_NAME)
    with h5py.File(tmp_path / FILE_NAME, "r+") as file:
        del file.attrs["digest"]
        file.attrs["version"] = 1
        file.attrs[where] = np.bytes_(json.dumps({**json.loads(file.attrs[where]), **changes}))
    with pytest.raises(InputError, match=message) as error:
        read_propagation_report(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / FILE_NAME}: ")
    assert len(str(error.value).splitlines()) == 1
