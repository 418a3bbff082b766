"""The report on fault propagation says what is in the tables, whatever that is, alone or on the page of a lot."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from command import done, refused
from html_page import Element, read_page
from hypothesis import given, settings
from propagation_tables import fields_of, propagations, small_propagation
from retrained_lots import write_retrained_lot

from efat import report_propagation_page
from efat.cli import main
from efat.propagation.estimates import Estimates
from efat.propagation.heat import HeatMap, heat_maps
from efat.propagation.shares import bit_shares
from efat.propagation.tables import FILE_NAME, Propagation, write_propagation
from efat.report import read_report
from efat.report_page import render
from efat.report_propagation import (
    PropagationReport,
    propagation_cautions,
    propagation_command,
    read_propagation_report,
)
from efat.report_propagation_charts import bits_chart, heat_chart, shade
from efat.report_propagation_page import render_propagation
from efat.report_propagation_text import propagation_findings
from efat.report_text import short_percent
from simulator import ArrayConfig, Kind, Site
from simulator.faults import BoolArray
from training.errors import InputError

REQUEST: dict[str, Any] = {
    "sites": ["WEIGHT", "PSUM"],
    "kinds": ["STUCK_AT_0"],
    "bits": {"PSUM": [0, 1, 2, 7]},
    "samples": None,
    "exhaustive": False,
    "margin": 0.01,
    "confidence": 0.9,
    "stratify": True,
    "seed": 12,
}


def asked(found: Propagation, **changes: Any) -> Propagation:
    """The same with everything that a request has."""
    return replace(found, request=REQUEST | changes)


def campaign(seed: int, least: int = 5) -> Propagation:
    """A campaign of stuck values that tried some faults, and one or more of them changed the class of an image."""
    random = np.random.default_rng(seed)
    while True:
        found = _without_flips(fields_of(random))
        changed = found.faults["top1"].astype(int) + found.faults["top5"]
        if len(found.faults) >= least and changed.any():
            return found


def _without_flips(fields: dict[str, Any]) -> Propagation:
    """What remains of the fields without the strata of upsets."""

    def kept(table: str, chosen: BoolArray, column: str) -> None:
        """Rows of a table whose column is a row of another, of which some are kept."""
        rows = fields[table]
        rows = rows[chosen[rows[column]]]
        rows[column] = (np.cumsum(chosen) - 1)[rows[column]]
        fields[table] = rows

    stays = fields["strata"]["kind"] != Kind.FLIP
    if not stays.any():
        return asked(Propagation(**fields_of(np.random.default_rng(0))))
    kept("operations", stays, "stratum")
    of_fault = fields["faults"]["kind"] != Kind.FLIP
    kept("layers", of_fault, "fault")
    fields["faults"], fields["strata"] = fields["faults"][of_fault], fields["strata"][stays]
    size = int(fields["strata"]["population"].sum())
    fields["faults"]["index"] = np.arange(len(fields["faults"]))
    fields["faults"]["same_as"] = -1
    return asked(Propagation(**{**fields, "population": {"size": size}}))


def report_of(found: Propagation) -> PropagationReport:
    """A report on it, as if it were read."""
    return PropagationReport("faults", "here/faults", found, float(found.request["confidence"]), "d" * 64)


def texts(row: Element) -> list[str]:
    """The cells of a row."""
    return [cell.text.strip() for cell in row.elements() if cell.tag in ("th", "td")]


def table_after(page: Element, label: str) -> list[list[str]]:
    """The rows of the table in a region."""
    (region,) = (box for box in page.all("div", "box") if box.attributes["aria-label"] == label)
    return [texts(row) for row in region.one("tbody").all("tr")]


@settings(max_examples=12)
@given(propagations())
def test_a_page_stands_by_itself_whatever_was_found(found: Propagation) -> None:
    report = report_of(asked(found))
    whole = read_page(render_propagation(report))
    assert not [element for element in whole.elements() if element.tag in ("script", "link", "iframe", "object")]
    ids = [element.attributes["id"] for element in whole.elements() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in whole.elements():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name == "href":
                assert (value or "").removeprefix("#") in ids
            assert name not in ("src", "srcset", "action")
    inner = {id(part) for svg in whole.all("svg") for part in svg.all("svg")}
    for svg in whole.all("svg"):
        hidden = svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden")
        assert hidden or id(svg) in inner
    levels = [int(element.tag[1]) for element in whole.elements() if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1
    assert all(following <= level + 1 for level, following in pairwise(levels))
    assert "nan" not in whole.one("main").text.lower().split()
    # Each kind of fault of each bit that was tried has a row.
    rows = table_after(whole, "Bits")
    tried = found.strata[found.strata["sampled"] > 0]
    assert sorted((row[0], row[1], row[2], row[3], row[4]) for row in rows) == sorted(
        (
            Site(stratum["site"]).name.lower().replace("_", " "),
            f"{stratum['bit']:,}",
            Kind(stratum["kind"]).name.lower().replace("_", " "),
            f"{stratum['population']:,}",
            f"{stratum['sampled']:,}",
        )
        for stratum in tried
    )


def test_the_sentences_and_the_table_of_nets_say_what_was_found(seed: int) -> None:
    report = report_of(campaign(seed))
    found, faults = report.propagation, report.propagation.faults
    stratum = {
        (row["site"], row["bit"], row["kind"]): row["population"] / max(1, row["sampled"]) for row in found.strata
    }
    weights = np.array([stratum[fault["site"], fault["bit"], fault["kind"]] for fault in faults])
    changed = (faults["top1"].astype(float) + faults["top5"]) / faults["images"]
    critical, lost, worst, *_ = propagation_findings(report)
    expected = short_percent(float(np.average(changed > 0, weights=weights)))
    assert critical.figure == expected
    assert critical.sentence.startswith(f"{expected} of ")
    if len(faults) < found.population["size"]:
        assert (
            f" with 90% confidence, from {len(faults):,} of {found.population['size']:,} faults." in critical.sentence
        )
    assert lost.figure == short_percent(float(np.average(changed, weights=weights)))
    balance = (faults["correct_lost"].astype(float) - faults["correct_gained"]) / faults["images"]
    if balance.max() > 0:
        assert f"takes {short_percent(balance.max()).removesuffix('%')}." in lost.sentence
    name, first = re.findall(r"is (\d+) of ([a-z ]+), stuck at", worst.sentence)[0][::-1]
    assert any(
        (Site(row["site"]).name.lower().replace("_", " "), str(row["bit"])) == (name, first) for row in found.strata
    )
    whole = read_page(render_propagation(report))
    assert [line.one("span").text for line in whole.one("ol", "summary").all("li")] == [
        finding.sentence for finding in propagation_findings(report)
    ]
    rows = table_after(whole, "Faults by net")
    for row in rows[:-1]:
        of_net = faults["site"] == Site[row[0].upper().replace(" ", "_")]
        assert row[2] == f"{of_net.sum():,}"
        if of_net.any():
            mean = short_percent(float(np.average(changed[of_net], weights=weights[of_net])))
            assert re.match(r"[\d.]+%", row[4])[0] == mean  # type: ignore[index]
    assert rows[-1][0] == "all"
    assert rows[-1][3].startswith(critical.figure)


def test_bars_of_layers_are_what_ends_there(seed: int) -> None:
    report = report_of(campaign(seed))
    bars = list(read_page(render_propagation(report)).one("ul", "fates").all("li"))
    assert [bar.one("b").text for bar in bars] == [shape.name for shape in report.propagation.layer_shapes]
    for bar, fate in zip(bars, report.fates, strict=True):
        assert bar.one("span", "count").text == f"{fate.differences:,}"
        widths = {part.attributes["class"]: float(part.attributes["width"] or "") for part in bar.all("rect")}
        shown = {**fate.ended, "carried": fate.carried} if fate.differences else {}
        assert widths == pytest.approx({name: 1000 * share for name, share in shown.items() if share}, abs=0.11)


@settings(max_examples=12)
@given(propagations())
def test_cells_of_the_array_have_the_shade_of_their_share(found: Propagation) -> None:
    random = np.random.default_rng(len(found.faults))
    for heat in heat_maps(Estimates(found, 0.95)):
        shares = random.choice([np.nan, 0.0, 0.005, 0.04, 0.19, 0.5, 1.0], heat.cells.shape)
        shares.flat[0] = 0.3
        assert_shaded(replace(heat, cells=shares))


def assert_shaded(heat: HeatMap) -> None:
    """Cells are covered by boxes of their shade, and blank ones by none."""
    (chart,) = read_page(f"<!doctype html>{heat_chart(heat)}").all("svg")
    frames = [path.attributes["d"] or "" for path in chart.all("path", "frame")]
    corners = [[float(value) for value in re.findall(r"[\d.]+", frame)] for frame in frames]
    left, top, right, _, _, bottom = corners[0][:6]
    side = (right - left) / heat.cells.shape[1]
    assert (bottom - top) / heat.cells.shape[0] == pytest.approx(side, abs=0.2)
    covered = np.full(heat.cells.shape, -1)
    for path in chart.all("path"):
        shown = re.fullmatch(r"heat-(\d)", path.attributes["class"] or "")
        boxes = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H", path.attributes["d"] or "")
        for x, y, end, low in ([float(value) for value in box] for box in boxes if shown):
            if y > bottom:
                continue
            assert low <= bottom + 0.11
            row, first, last = round((y - top) / side), round((x - left) / side), (end - left) / side
            assert shown is not None
            covered[row, first : int(np.ceil(last - 0.02))] = int(shown[1])
    expected = [[-1 if np.isnan(share) else shade(share) for share in row] for row in heat.cells.tolist()]
    assert covered.tolist() == expected


def test_shades_are_as_the_key_says() -> None:
    assert [shade(share) for share in (0, 1e-9, 0.01, 0.0101, 0.05, 0.2, 0.21, 0.5, 0.51, 1)] == [
        0, 1, 1, 2, 2, 3, 4, 4, 5, 5,
    ]  # fmt: skip


def test_bits_are_where_their_share_is(seed: int) -> None:
    shares = bit_shares(Estimates(campaign(seed), 0.9))
    top = 1.1
    for site in {share.site for share in shares}:
        of_net = [share for share in shares if share.site is site]
        (chart, *_) = read_page(f"<!doctype html>{bits_chart(of_net, top)}").all("svg")
        titles = {path.one("title").text: path for path in chart.all("path") if list(path.all("title"))}
        assert len(titles) == len(of_net)
        base = _down(next(chart.all("path", "base")))[0]
        heights = {}
        for text, path in titles.items():
            form = path.attributes["d"] or ""
            # Squares begin at their upper left corner.
            heights[text] = base - _down(path)[0] - (3.5 if "Z" in form else 0)
        unit = (base - 34) / top
        for share in of_net:
            name = f"bit {share.first}, {share.kind.name.lower().replace('_', ' ')}: {short_percent(share.avf.value)}, "
            (text,) = (text for text in titles if text.startswith(name))
            assert heights[text] == pytest.approx(unit * share.avf.value, abs=0.2)
            assert text.endswith(f"{share.faults} fault{'s' * (share.faults != 1)}")


def _down(path: Element) -> list[float]:
    return [float(y) for _, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attributes["d"] or "")]


def test_a_long_table_has_the_worst_bits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(campaign(seed, least=20))
    monkeypatch.setattr(report_propagation_page, "MOST_ROWS", 2)
    rows = table_after(read_page(render_propagation(report)), "Bits")
    worst = sorted((share.avf.value for share in report.strata), reverse=True)
    assert [re.match(r"[\d.]+%", row[6])[0] for row in rows] == [short_percent(share) for share in worst[:2]]  # type: ignore[index]
    if len(worst) > 2:
        assert f"{len(worst) - 2} further row" in read_page(render_propagation(report)).text


def parsed(line: str) -> dict[str, Any]:
    """What a command of a report would be run with."""
    program, name, *arguments = shlex.split(line.replace("\\\n", " "))
    assert program == "efat"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.make_context(name, arguments).params


def test_the_command_is_what_was_done(seed: int) -> None:
    found = campaign(seed)
    again = parsed(propagation_command(report_of(found)))
    assert again["network"] == found.subject["network"]
    assert again["array"] == (found.array["rows"], found.array["cols"])
    assert (again["weight_bits"], again["act_bits"], again["acc_bits"]) == (3, 4, 12)
    assert (list(again["sites"]), list(again["kinds"])) == (REQUEST["sites"], REQUEST["kinds"])
    assert again["bits"] == (("PSUM", (0, 1, 2, 7)),)
    assert (again["samples"], again["exhaustive"], again["margin"]) == (None, False, 0.01)
    assert (again["confidence"], again["stratify"], again["seed"]) == (0.9, True, 12)
    assert (again["images"], again["output"]) == (found.images, Path("faults"))
    other = asked(found, margin=None, exhaustive=True, stratify=False, bits={}, seed=2**53)
    subject = {**found.subject, "weights": "-odd name.safetensors", "data": "images", "calibration": "mse"}
    again = parsed(propagation_command(report_of(replace(other, subject=subject))))
    assert (again["weights"], again["data"], again["calibration"]) == (
        Path("-odd name.safetensors"),
        Path("images"),
        "mse",
    )
    assert (again["exhaustive"], again["margin"], again["stratify"], again["seed"]) == (True, None, False, 2**53)
    read = replace(found, array={**found.array, "multiplier": "mine 0123abcd"})
    assert "mine 0123abcd" in propagation_cautions(report_of(read))[0]


def test_texts_from_files_are_texts(seed: int) -> None:
    hostile = "<script>alert(1)</script>\"'{{ 7 * 7 }}"
    found = campaign(seed)
    shapes = [replace(shape, name=f"{hostile}{place}") for place, shape in enumerate(found.layer_shapes)]
    found = replace(found, layer_shapes=shapes, subject={**found.subject, "network": hostile})
    whole = read_page(render_propagation(report_of(found)))
    assert whole.one("h1").text == f"Fault propagation in {hostile}"
    assert not list(whole.all("script"))
    assert [bar.one("b").text for bar in whole.one("ul", "fates").all("li")] == [shape.name for shape in shapes]


def on_the_array_of(folder: Path, found: Propagation) -> Propagation:
    """The same on the array of a lot that was retrained."""
    return replace(found, array=dict(read_report(folder).manifest.array))


def test_a_lot_has_it_as_a_section(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=4)
    (folder / "faults").mkdir()
    found = on_the_array_of(folder / "lot", campaign(seed))
    write_propagation(folder / "faults" / FILE_NAME, found)
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
    assert parsed(commands[-2])["output"] == Path("faults")
    assert (parsed(commands[-1])["folder"], parsed(commands[-1])["propagation"]) == (Path("lot"), Path("faults"))
    assert report.digest in whole.with_id("reproduce").text
    # Without it the page says nothing of it.
    assert "propagat" not in render(read_report(folder / "lot")).split("</style>")[1].lower()


def test_faults_of_something_else_are_refused(folder: Path, seed: int) -> None:
    write_retrained_lot(folder / "lot", seed, chips=2)
    (folder / "faults").mkdir()
    found = campaign(seed)
    write_propagation(folder / "faults" / FILE_NAME, found)
    assert "faults is of another array than manifest.json" in refused("report", "lot", "--propagation", "faults")
    other = replace(on_the_array_of(folder / "lot", found), subject={**found.subject, "network": "lenet5"})
    write_propagation(folder / "faults" / FILE_NAME, other)
    assert "faults is of another network than manifest.json" in refused("report", "lot", "--propagation", "faults")
    assert "--propagation adds such a folder" in refused("report", "faults", "--propagation", "faults")
    assert refused("report", "lot", "--propagation", "none") == "none is no folder: expected that of efat propagate"
    assert not list(folder.rglob("*.html"))


def test_a_folder_of_efat_propagate_has_a_page_of_its_own(folder: Path, seed: int) -> None:
    (folder / "faults").mkdir()
    write_propagation(folder / "faults" / FILE_NAME, campaign(seed))
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
    write_propagation(folder / "faults" / FILE_NAME, asked(small_propagation()))
    damage(folder / "faults" / FILE_NAME)
    assert "faults/propagation.h5" in refused("report", "faults")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ["NOWHERE"]}, "sites is a list of 1"),
        ({"kinds": "FLIP"}, "kinds is 'FLIP'"),
        ({"bits": {"NOWHERE": [1]}}, "bits is an object of 1"),
        ({"bits": {"PSUM": ["1"]}}, "PSUM is a list of 1"),
        ({"bits": {"PSUM": 3}}, "PSUM is 3"),
        ({"confidence": 1}, "confidence is 1"),
        ({"confidence": "sure"}, "confidence is 'sure'"),
        ({"seed": -1}, "seed is -1"),
        ({"exhaustive": 1}, "exhaustive is 1"),
        ({"margin": 7}, "margin is 7"),
        ({"samples": 0.5}, "samples is 0.5"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_propagation(tmp_path / FILE_NAME, small_propagation(request=REQUEST | changes))
    with pytest.raises(InputError, match=message) as error:
        read_propagation_report(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / FILE_NAME}: request")
    assert len(str(error.value).splitlines()) == 1


def test_arrays_of_other_shapes_have_pictures(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = campaign(seed)
    for rows, cols in ((1, 1), (1, 300), (300, 1), (130, 70)):
        faults = found.faults.copy()
        faults["row"] = np.where(faults["site"] == Site.ACCUMULATOR, 0, random.integers(0, rows, len(faults)))
        faults["col"] = random.integers(0, cols, len(faults))
        array = ArrayConfig(rows, cols, weight_bits=3, act_bits=4, acc_bits=12).as_dict()
        for heat in heat_maps(Estimates(replace(found, faults=faults, array=array), 0.95)):
            assert_shaded(heat)
