"""Figures of a page show what was measured, where it belongs; pictures are PNG as others read it."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.figure import Figure
from PIL import Image

from efat import records
from efat.figures import drawing, lot
from efat.figures.drawing import COLORS, NARROW, WIDE, bitmap, page_axes, page_figure, scale
from efat.figures.resilience import spread
from efat.reports.lot import LotReport, lot_page, read_lot_report
from simulator.dtypes import BoolArray
from tests.support.pages import Element, has, levels, lines, marks, place, points, read_page
from tests.support.retrained_lots import write_retrained_lot

FREE, REQUIRED, STEP = "stroke-linecap: round", "stroke: var(--ink)", "stroke: var(--ink)"


def retrained(folder: Path, seed: int, **arguments: Any) -> LotReport:
    """A lot that was retrained, as a report sees it."""
    write_retrained_lot(folder / "retrained", seed, **arguments)
    return read_lot_report(folder / "retrained")


def charts(report: LotReport, kind: str = "wide") -> list[Element]:
    """Those of its page: of chips, of resilience and of iterations."""
    return list(read_page(lot_page(report)).all("svg", kind))


def assert_monotone(values: list[float], drawn: list[float], tolerance: float = 0.11) -> None:
    """What is more is drawn further."""
    order = np.argsort(values, kind="stable")
    for one, other in pairwise(order.tolist()):
        assert drawn[one] <= drawn[other] + tolerance


def names(chart: Element) -> dict[str, tuple[float, float]]:
    """Where marks are, by the name that they begin with."""
    return {text.split(":")[0]: at for text, at in marks(chart).items()}


def heights(chart: Element, report: LotReport) -> tuple[float, float, float]:
    """Of what is required and of what is reached without faults, and of the lower edge."""
    across = [path for path in chart.all("path") if "stroke-dasharray" in (path.attributes.get("style") or "")]
    (free,) = [points(path)[0][1] for path in across if has(path, "stroke: var(--quiet)")]
    (required,) = [points(path)[0][1] for path in across if has(path, "stroke: var(--ink)")]
    edge = max(float(use.attributes["y"] or "") for use in chart.all("use"))
    return required, free, edge


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_each_chip_is_where_its_faults_and_its_accuracy_are(tmp_path: Path, seed: int, kind: str) -> None:
    report = retrained(tmp_path, seed, chips=20, failing=4, side=64)
    chart = charts(report, kind)[0]
    required, free, bottom = heights(chart, report)
    found, chips = names(chart), report.manifest.chips
    assert set(found) == {chip.id for chip in chips}
    assert_monotone([chip.faulty_pes for chip in chips], [found[chip.id][0] for chip in chips])
    per_image = (required - free) / (report.plan.fault_free_correct - report.plan.required)
    for chip in chips:
        x, y = found[chip.id]
        assert 0 < x < {"wide": WIDE, "narrow": NARROW}[kind][0]
        below = (report.plan.required - chip.correct) * per_image
        assert y == pytest.approx(min(bottom, required + below), abs=0.5 + 0.02 * abs(below))


def test_many_chips_are_drawn_at_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report = retrained(tmp_path, seed, chips=15, failing=4, side=64)
    single = names(charts(report)[0])
    monkeypatch.setattr(lot, "MOST_MARKS", 1)
    chart = charts(report)[0]
    dots = [path for path in chart.all("path") if has(path, "stroke-linecap: round") and has(path, "stroke-width: 4")]
    expected = {at for chip, at in single.items() if chip in {chip.id for chip in report.failing}}
    (failing,) = [path for path in dots if has(path, "stroke: var(--bad)")]
    assert set(points(failing)) == expected
    assert {at for path in dots for at in points(path)} | set(names(chart).values()) == set(single.values())


def test_what_is_far_below_is_at_the_edge_and_counted(tmp_path: Path, seed: int) -> None:
    report = retrained(tmp_path, seed, chips=30, failing=2, side=64)
    low, other = report.failing
    changed = {low.id: 1000, other.id: report.manifest.required - 100}
    chips = tuple(records.replace(chip, correct=changed.get(chip.id, chip.correct)) for chip in report.manifest.chips)
    report = replace(report, manifest=records.replace(report.manifest, chips=chips))
    whole = read_page(lot_page(report))
    assert "further down than the axis goes (1)" in whole.with_id("chips").text
    chart = charts(report)[0]
    bottom, found = heights(chart, report)[2], names(chart)
    assert found[low.id][1] == pytest.approx(bottom, abs=0.11)
    assert found[other.id][1] < bottom - 20


def test_lines_of_resilience_are_means_and_bands_their_range(tmp_path: Path, seed: int) -> None:
    report = retrained(tmp_path, seed)
    table, chart = report.table, charts(report)[1]
    required, free, _ = heights(chart, report)
    per_image = (required - free) / (report.plan.fault_free_correct - report.plan.required)
    texts = [text.text.replace(",", "") for text in chart.all("text")]
    shown = sorted(int(text) for text in texts if text.isdigit())
    # All levels but one.
    assert set(shown) < set(table.levels.tolist())
    assert (len(shown), shown[0], shown[-1]) == (len(table.levels) - 1, 0, table.levels[-1])
    for number, level in enumerate(shown):
        correct = table.correct[..., table.levels.tolist().index(level)]
        (line,) = lines(chart, f"stroke: var(--level-{number})", "stroke-width: 2")
        (band,) = lines(chart, f"fill: var(--level-{number})", "fill-opacity: 0.14")
        expected = [set(correct.mean(1)), {*correct.max(1), *correct.min(1)}]
        for found, images in zip((line, band), expected, strict=True):
            # Lines that leave the drawing end at its edge.
            drawn = {y for _, y in found if y < WIDE[1]}
            for value in images:
                below = (report.plan.required - value) * per_image
                if required + below < WIDE[1] - 10:
                    assert min(abs(required + below - y) for y in drawn) <= 0.5 + 0.02 * abs(below)


def test_retraining_that_diverged_gives_nothing(tmp_path: Path, seed: int) -> None:
    report = retrained(tmp_path, seed)
    correct = report.table.correct.copy()
    correct[:, 0, -1] = -1
    chart = charts(replace(report, table=replace(report.table, correct=correct)))[1]
    assert "nan" not in "".join(str(path.attributes["d"]) for path in chart.all("path"))
    (band,) = lines(chart, "fill: var(--level-5)", "fill-opacity: 0.14")
    assert max(y for _, y in band) > heights(chart, report)[2]


def test_the_step_line_is_the_map_of_the_plan(tmp_path: Path, seed: int) -> None:
    report = retrained(tmp_path, seed, chips=40, side=32, together=2)
    chart = charts(report)[2]
    (steps,), found = lines(chart, STEP, "stroke-width: 2"), names(chart)
    zero = levels(chart, "0")[0]
    amounts = report.resilience.amounts
    finite = amounts.amounts[np.isfinite(amounts.amounts)]
    per_iteration = (zero - steps[-1][1]) / finite[-1]
    drawn = sorted({round((zero - y) / per_iteration) for _, y in steps})
    assert drawn == pytest.approx(sorted({*finite.tolist()}), abs=2)
    for group in report.manifest.groups:
        x, y = found[group.name]
        assert (zero - y) / per_iteration == pytest.approx(group.iterations, abs=2)
        amount = float(amounts.amount(group.severity))
        if math.isinf(amount):
            assert x >= steps[-1][0] - 0.11
        else:
            # What the line says at the severity of the group, right and left of which it may go up.
            reached = {round((zero - y) / per_iteration) for x_step, y in steps if x_step <= x + 0.11}
            assert max(reached) >= amount - 2
            assert x <= steps[-1][0] + 0.11
    stems = [at for line in lines(chart, "stroke: var(--accent)", "stroke-width: 2") for at in line]
    topped = sum(group.iterations != group.planned for group in report.manifest.groups)
    assert len(stems) == 2 * topped


def test_colours_are_variables_and_nothing_is_outside(tmp_path: Path, seed: int) -> None:
    whole = read_page(lot_page(retrained(tmp_path, seed, chips=6, failing=2)))
    assert len({light for light, _ in COLORS.values()}) == len(COLORS)
    style = whole.one("style").text
    assert all(f"--{name}: {color}" in style for name, both in COLORS.items() for color in both)
    ids = [element.attributes["id"] for element in whole.elements() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for svg in whole.all("svg", "chart"):
        for element in svg.elements():
            assert not re.search("#[0-9a-f]{3}", element.attributes.get("style") or "")
            for name in ("href", "clip-path"):
                used = re.sub(r"^url\(|\)$", "", element.attributes.get(name) or "#" + str(ids[0]))
                assert used.removeprefix("#") in ids
            assert not set(element.attributes) & {"xmlns", "font-family", "onload"}
        # Texts are texts, and stay in the drawing.
        width, height = (float(size) for size in (svg.attributes["viewbox"] or "0 0 12 12").split()[2:])
        assert all(0 <= place(text)[0] <= width and 0 <= place(text)[1] <= height for text in svg.all("text"))


def test_texts_at_marks_are_escaped() -> None:
    hostile = ["<script>alert(1)</script>", "\"'>&lt;&amp; $x_1$ \x07\ud800", "[1, 2]"]

    def draw(figure: Figure) -> None:
        drawing.mark(page_axes(figure, "x", "y"), [0.1, 0.2, 0.3], [0.5, 0.5, 0.5], hostile, color="#1f5fb8")

    drawn = page_figure(draw, WIDE, "#1f5fb8 <b>", "wide")
    assert drawn == page_figure(draw, WIDE, "#1f5fb8 <b>", "wide")
    (svg,) = read_page(f"<!doctype html>{drawn}").all("svg")
    assert list(marks(svg)) == hostile
    assert svg.attributes["aria-label"] == "#1f5fb8 <b>"
    assert not list(svg.all("script"))


@given(st.lists(st.just(0.0) | st.floats(1e-9, 1), min_size=1, max_size=20), st.sampled_from([WIDE, NARROW]))
def test_scales_have_room_for_what_is_on_them(values: list[float], size: tuple[int, int]) -> None:
    axes = page_axes(Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72), "x", "y")
    scale(axes, values)
    low, high = axes.get_xlim()
    assert low < min(values) <= max(values) < high
    ticks = axes.get_xticks().tolist()
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= (size[0] - 60) / 60
    assert all(low <= tick <= high for tick in ticks)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=12), st.floats(1, 30))
def test_labels_do_not_touch_and_keep_their_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, 0, 300)
    placed = sorted(found)
    assert all(other - one >= gap - 1e-9 for one, other in pairwise(placed))
    assert max(found) <= 300
    assert_monotone(wanted, found, 1e-9)
    if all(other - one >= gap for one, other in pairwise(sorted(wanted))) and min(wanted) >= 0 and max(wanted) <= 300:
        assert found == pytest.approx(wanted)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_pictures_are_read_by_others(marked: BoolArray) -> None:
    kind, content = bitmap(marked).split(",")
    assert kind == "data:image/png;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))
    assert np.array_equal(found[..., 3], np.where(marked, 255, 0))
    assert (found[marked] == (*bytes.fromhex(COLORS["heat-3"][0][1:]), 255)).all()
    assert bitmap(marked).split(",")[1] == content
