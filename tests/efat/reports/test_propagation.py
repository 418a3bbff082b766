"""The report on fault propagation says what is in the tables, whatever that is, alone or on the page of a lot."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from efat import records
from efat.figures.propagation import bits_chart, heat_chart, shade, words
from efat.propagation.estimates import Estimates, HeatMap, bit_shares, heat_maps, worst_bit
from efat.propagation.summary import Propagation
from efat.propagation.tables import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE, STRATA_DTYPE, PopulationCounts
from efat.reports import propagation as report_propagation
from efat.reports.pages import Finding
from efat.reports.propagation import PropagationReport, propagation_findings, propagation_page
from efat.reports.text import short_percent
from simulator import ArrayConfig, Kind, Site
from tests.support.pages import Element, has, levels, marks, points, read_page
from tests.support.propagation import asked, campaign, propagations, small_propagation


def report_of(found: Propagation) -> PropagationReport:
    """A report on it, as if it were read."""
    return PropagationReport("faults", "here/faults", found, "d" * 64)


def percents(share: float) -> set[str]:
    """What a share is shown as, however it is rounded in the middle between two."""
    return {short_percent(share * (1 + nudge)) for nudge in (-1e-12, 0, 1e-12)}


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
    whole = read_page(propagation_page(report))
    assert not [element for element in whole.elements() if element.tag in ("script", "link", "iframe", "object")]
    ids = [element.attributes["id"] for element in whole.elements() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in whole.elements():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name == "href":
                assert (value or "").removeprefix("#") in ids
            assert name not in ("src", "srcset", "action")
    assert all(svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") for svg in whole.all("svg"))
    headings = [int(element.tag[1]) for element in whole.elements() if re.fullmatch(r"h[1-6]", element.tag)]
    assert headings[0] == 1
    assert all(following <= level + 1 for level, following in pairwise(headings))
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
    critical, lost, worst, *_ = (*propagation_findings(report), Finding("", ""))
    assert critical.figure in percents(np.average(changed > 0, weights=weights))
    assert critical.sentence.startswith(f"{critical.figure} of ")
    if len(faults) < found.population.size:
        assert f" with 90% confidence, from {len(faults):,} of {found.population.size:,} faults." in critical.sentence
    assert lost.figure in percents(np.average(changed, weights=weights))
    balance = (faults["correct_lost"].astype(float) - faults["correct_gained"]) / faults["images"]
    if balance.max() > 0:
        assert f"takes {short_percent(balance.max()).removesuffix('%')}." in lost.sentence
    if len(found.strata) == 1:
        assert "dangerous" not in worst.sentence
    elif report.worst is None:
        assert worst.figure == "-"
        assert f"takes more than {len(faults)} faults to say" in worst.sentence
    else:
        share = report.worst.share
        assert worst.figure == short_percent(share.avf.value)
        assert f"{share.first} of {words(share.site)}, {words(share.kind)}: {worst.figure} of" in worst.sentence
    whole = read_page(propagation_page(report))
    assert [line.one("span").text for line in whole.one("ol", "summary").all("li")] == [
        finding.sentence for finding in propagation_findings(report)
    ]
    rows = table_after(whole, "Faults by net")
    for row in rows[:-1]:
        of_net = faults["site"] == Site[row[0].upper().replace(" ", "_")]
        assert row[2] == f"{of_net.sum():,}"
        if of_net.any():
            mean = np.average(changed[of_net], weights=weights[of_net])
            assert re.match(r"[\d.]+%", row[4])[0] in percents(mean)  # type: ignore[index]
    assert rows[-1][0] == "all"
    assert rows[-1][3].startswith(critical.figure)


def of_bits(*bits: tuple[Site, int, int, int, int]) -> Propagation:
    """Faults of bits: net, bit, how many there are, are tried, and change the class of each of four images."""
    faults = np.zeros(sum(tried for _, _, _, tried, _ in bits), FAULTS_DTYPE)
    strata = np.array([(site, bit, Kind.STUCK_AT_1, there, tried) for site, bit, there, tried, _ in bits], STRATA_DTYPE)
    for name in ("layer", "group", "cycle", "image", "same_as", "first_layer", "last_layer"):
        faults[name] = -1
    faults["images"], faults["kind"] = 4, Kind.STUCK_AT_1
    first = start = 0
    for site, bit, there, tried, bad in bits:
        rows = faults[first : first + tried]
        rows["index"], rows["site"], rows["bit"] = start + np.arange(tried), site, bit
        rows["top1"][:bad] = 4
        rows["inactive"][bad:] = 4
        rows["first_layer"][:bad] = rows["last_layer"][:bad] = 1
        first, start = first + tried, start + there
    return small_propagation(
        faults=faults,
        strata=strata,
        layers=np.array(
            [(row, 1, 0, 4, 4, 4, 4, 0, 0, 0, 0, 1, 4.0) for row in np.nonzero(faults["top1"])[0]], LAYERS_DTYPE
        ),
        operations=np.zeros(0, OPERATIONS_DTYPE),
        population=PopulationCounts(start, start, 0, 0, 0),
    )


@pytest.mark.parametrize(
    ("bits", "figure", "sentence"),
    [
        # Two faults are too few, whatever they do.
        ([(Site.PSUM, 9, 100, 2, 2), (Site.WEIGHT, 0, 100, 90, 0)], "-", "takes more than 92 faults to say"),
        ([(Site.PSUM, 9, 2, 2, 2), (Site.WEIGHT, 0, 100, 90, 0)], "100%", "is bit 9 of psum"),
        (
            [(Site.PSUM, 9, 100, 12, 12), (Site.WEIGHT, 0, 100, 90, 0)],
            "100%",
            "on average is bit 9 of psum, stuck at 1",
        ),
        # What others do may be as bad.
        ([(Site.PSUM, 9, 100, 12, 12), (Site.WEIGHT, 0, 100, 12, 10)], "-", "takes more than 24 faults to say"),
        ([(Site.PSUM, 9, 12, 12, 7), (Site.WEIGHT, 0, 12, 12, 6)], "58%", "No bit is more dangerous than 9 of psum"),
        ([(Site.PSUM, 9, 100, 50, 0), (Site.WEIGHT, 0, 100, 50, 0)], "none", "No fault that was tried changes"),
    ],
)
def test_the_most_dangerous_bit_is_named_once_it_is_sure(
    bits: list[tuple[Site, int, int, int, int]], figure: str, sentence: str
) -> None:
    worst = propagation_findings(report_of(of_bits(*bits)))[2]
    assert worst.figure == figure
    assert sentence in worst.sentence


def test_what_is_known_has_no_interval() -> None:
    report = report_of(of_bits((Site.PSUM, 9, 7, 7, 3), (Site.WEIGHT, 0, 12, 12, 6)))
    lost = report.summary.overall.accuracy_lost
    assert lost is not None
    assert lost.low == lost.value == lost.high
    sentence = propagation_findings(report)[1].sentence
    assert "(" not in sentence


def test_a_single_bit_is_not_the_worst_of_any() -> None:
    report = report_of(of_bits((Site.PSUM, 9, 100, 50, 50)))
    assert worst_bit(report.propagation, 0.95) is None
    assert not any("dangerous" in finding.sentence for finding in propagation_findings(report))


def test_by_chance_no_bit_is_named(seed: int) -> None:
    """Where all bits are alike, the worst of them is named in few campaigns."""
    random = np.random.default_rng(seed)
    named = 0
    for _ in range(60):
        bits = [(Site.PSUM, bit, 10_000, 15, int(random.binomial(15, 0.3))) for bit in range(12)]
        named += worst_bit(of_bits(*bits), 0.95) is not None
    # Of 60 with 5 % each, 12 or more would be one in 100,000.
    assert named < 12


def test_bars_of_layers_are_what_ends_there(seed: int) -> None:
    report = report_of(campaign(seed))
    bars = list(read_page(propagation_page(report)).one("ul", "fates").all("li"))
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
    (chart,) = read_page(f"<!doctype html>{heat_chart(heat, 'places')}").all("svg")
    frame = points(next(path for path in chart.all("path") if has(path, "stroke: var(--quiet)")))
    (left, top), (right, bottom) = np.min(frame, axis=0), np.max(frame, axis=0)
    side = (right - left) / heat.cells.shape[1]
    assert (bottom - top) / heat.cells.shape[0] == pytest.approx(side, abs=0.2)
    covered = np.full(heat.cells.shape, -1)
    for number in range(6):
        for path in (path for path in chart.all("path") if has(path, f"fill: var(--heat-{number})")):
            for corners in np.reshape(points(path), (-1, 4, 2)):
                if corners[0, 1] < bottom - 0.06:
                    row, first = round((corners[0, 1] - top) / side), round((corners[0, 0] - left) / side)
                    covered[row, first : round((corners[1, 0] - left) / side)] = number
    expected = [[-1 if np.isnan(share) else shade(share) for share in row] for row in heat.cells.tolist()]
    assert covered.tolist() == expected


def test_shades_are_as_the_key_says() -> None:
    assert [shade(share) for share in (0, 1e-9, 0.01, 0.0101, 0.05, 0.2, 0.21, 0.5, 0.51, 1)] == [
        0, 1, 1, 2, 2, 3, 4, 4, 5, 5,
    ]  # fmt: skip


def test_bits_are_where_their_share_is(seed: int) -> None:
    shares = bit_shares(Estimates(campaign(seed), 0.9))
    for site in {share.site for share in shares}:
        of_net = [share for share in shares if share.site is site]
        titles = [f"{share.first} {share.kind.name}" for share in of_net]
        (chart,) = read_page(f"<!doctype html>{bits_chart(of_net, 1.1, 'bits', titles)}").all("svg")
        found, grid = marks(chart), dict(zip((0, 1), levels(chart, "0%", "100%"), strict=True))
        assert set(found) == set(titles)
        for share, title in zip(of_net, titles, strict=True):
            assert found[title][1] == pytest.approx(grid[0] + share.avf.value * (grid[1] - grid[0]), abs=0.2)


def test_a_long_table_has_the_worst_bits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(campaign(seed, least=20))
    monkeypatch.setattr(report_propagation, "MOST_ROWS", 2)
    rows = table_after(read_page(propagation_page(report)), "Bits")
    worst = sorted((share.avf.value for share in report.strata), reverse=True)
    assert [re.match(r"[\d.]+%", row[6])[0] for row in rows] == [short_percent(share) for share in worst[:2]]  # type: ignore[index]
    if len(worst) > 2:
        assert f"{len(worst) - 2} further row" in read_page(propagation_page(report)).text


def test_the_command_is_what_was_run(seed: int) -> None:
    report = report_of(campaign(seed))
    assert "No command line of efat propagate was kept" in read_page(propagation_page(report)).text
    command = ("efat", "propagate", "--network", "<b>", "-o", "faults")
    page = read_page(propagation_page(replace(report, commands=(command,)))).with_id("reproduce")
    first, again = page.one("code").text.split("\n\n")
    assert tuple(shlex.split(first)) == command
    assert again == "efat report faults/"


def test_texts_from_files_are_texts(seed: int) -> None:
    hostile = "<script>alert(1)</script>\"'{{ 7 * 7 }}"
    found = campaign(seed)
    shapes = [replace(shape, name=f"{hostile}{place}") for place, shape in enumerate(found.layer_shapes)]
    found = replace(found, layer_shapes=shapes, subject=records.replace(found.subject, network=hostile))
    whole = read_page(propagation_page(report_of(found)))
    assert whole.one("h1").text == f"Fault propagation in {hostile}"
    assert not list(whole.all("script"))
    assert [bar.one("b").text for bar in whole.one("ul", "fates").all("li")] == [shape.name for shape in shapes]


def test_arrays_of_other_shapes_have_pictures(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = campaign(seed)
    for rows, cols in ((1, 1), (1, 300), (300, 1), (130, 70)):
        faults = found.faults.copy()
        faults["row"] = np.where(faults["site"] == Site.ACCUMULATOR, 0, random.integers(0, rows, len(faults)))
        faults["col"] = random.integers(0, cols, len(faults))
        array = ArrayConfig(rows, cols, weight_bits=3, act_bits=4, acc_bits=12).record
        for heat in heat_maps(Estimates(replace(found, faults=faults, array=array), 0.95)):
            assert_shaded(heat)
