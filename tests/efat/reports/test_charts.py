"""Charts show what was measured, where it belongs; pictures are PNG as others read it."""

from __future__ import annotations

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
from PIL import Image

from efat import records
from efat.figures.bitmaps import png
from efat.reports import charts as report_charts
from efat.reports.axes import NARROW, WIDE, Scale, Shape, scale_of, spread
from efat.reports.charts import amounts_chart, below_axis, chips_chart, resilience_chart
from efat.reports.folder import ReportData, read_report
from tests.support.html_page import Element, read_page
from tests.support.retrained_lots import write_retrained_lot

Places = list[tuple[float, float]]


def lot(folder: Path, seed: int, **arguments: Any) -> ReportData:
    """A lot that was retrained, as a report sees it."""
    write_retrained_lot(folder / "retrained", seed, **arguments)
    return read_report(folder / "retrained")


def drawing(markup: str, shape: Shape) -> Element:
    """One of the two drawings of a chart."""
    return next(read_page(f"<!doctype html>{markup}").all("svg", shape.name))


def places(chart: Element, *kinds: str) -> Places:
    """Where the lines and marks with some classes begin and go on."""
    found = [path for path in chart.all("path") if set(kinds) <= set((path.attributes["class"] or "").split())]
    points = [re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attributes["d"] or "") for path in found]
    return [(float(x), float(y)) for path in points for x, y in path]


def titled(chart: Element) -> dict[str, tuple[float, float]]:
    """Where the marks that can be pointed at are, by the name that they begin with."""
    found = {}
    for path in chart.all("path"):
        if list(path.all("title")):
            (x, y), shape = places(Element("", {}, [path]))[0], path.attributes["d"] or ""
            # Dots begin where they are, crosses at their upper left, arrows above.
            right, down = (4, 9) if "Z" in shape else (4, 4) if "m" in shape else (0, 0)
            found[path.one("title").text.split(":")[0]] = (round(x + right, 1), round(y + down, 1))
    return found


def assert_monotone(values: list[float], drawn: list[float], tolerance: float = 0.11) -> None:
    """What is more is drawn further."""
    order = np.argsort(values, kind="stable")
    for one, other in pairwise(order.tolist()):
        assert drawn[one] <= drawn[other] + tolerance


@pytest.mark.parametrize("shape", [WIDE, NARROW])
def test_each_chip_is_where_its_faults_and_its_accuracy_are(tmp_path: Path, seed: int, shape: Shape) -> None:
    data = lot(tmp_path, seed, chips=20, failing=4, side=64)
    chart = drawing(chips_chart(data), shape)
    ((left, required), (right, _)), ((_, free), _) = places(chart, "required"), places(chart, "free")
    marks, chips = titled(chart), data.manifest.chips
    assert set(marks) == {chip.id for chip in chips}
    assert_monotone([chip.faulty_pes for chip in chips], [marks[chip.id][0] for chip in chips])
    per_image = (required - free) / (data.plan.fault_free_correct - data.plan.required)
    bottom = places(chart, "base")[0][1]
    for chip in chips:
        x, y = marks[chip.id]
        assert left - 0.1 <= x <= right + 0.1
        below = (data.plan.required - chip.correct) * per_image
        assert y == pytest.approx(min(bottom, required + below), abs=0.5 + 0.02 * abs(below))


def test_many_chips_are_drawn_at_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lot(tmp_path, seed, chips=15, failing=4, side=64)
    single = titled(drawing(chips_chart(data), WIDE))
    monkeypatch.setattr(report_charts, "MOST_MARKS", 3)
    chart = drawing(chips_chart(data), WIDE)
    assert titled(chart) == {}
    failing = {chip.id for chip in data.failing}
    assert set(places(chart, "dot")) == {place for chip, place in single.items() if chip not in failing}
    crosses = {(round(x + 2.5, 1), round(y + 2.5, 1)) for x, y in places(chart, "fail")}
    assert crosses == {place for chip, place in single.items() if chip in failing}


def test_what_is_far_below_is_at_the_edge_and_counted(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=30, failing=2, side=64)
    low, other = data.failing
    manifest = data.manifest
    changed = {low.id: 1000, other.id: manifest.required - 100}
    chips = tuple(records.replace(chip, correct=changed.get(chip.id, chip.correct)) for chip in manifest.chips)
    data = replace(data, manifest=records.replace(manifest, chips=chips))
    assert below_axis(data) == 1
    chart = drawing(chips_chart(data), WIDE)
    bottom = places(chart, "base")[0][1]
    # An arrow stands on the axis, and a cross is where it belongs.
    assert ["Z" in (path.attributes["d"] or "") for path in chart.all("path", "fail")].count(True) == 1
    assert titled(chart)[low.id][1] == pytest.approx(bottom, abs=0.11)
    assert titled(chart)[other.id][1] < bottom - 20


def test_lines_of_resilience_are_means_and_bands_their_range(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed)
    table = data.table
    chart = drawing(resilience_chart(data), WIDE)
    (left, required), (_, free) = places(chart, "required")[0], places(chart, "free")[0]
    per_image = (required - free) / (data.plan.fault_free_correct - data.plan.required)
    labels = [text.text.replace(",", "") for text in chart.all("text", "tick")]
    shown = sorted(int(text) for text in labels if text.isdigit())
    # All levels but one.
    assert set(shown) < set(table.levels.tolist())
    assert (len(shown), shown[0], shown[-1]) == (len(table.levels) - 1, 0, table.levels[-1])
    for place, level in enumerate(shown):
        correct = table.correct[..., table.levels.tolist().index(level)]
        line, band = places(chart, "line", f"level-{place}"), places(chart, "band", f"level-{place}")
        expected = [*correct.mean(1), *correct.max(1), *correct.min(1)[::-1]]
        for (x, y), images in zip([*line, *band], expected, strict=True):
            assert x >= left
            below = (data.plan.required - images) * per_image
            assert y == pytest.approx(required + below, abs=0.5 + 0.02 * abs(below))


def test_retraining_that_diverged_gives_nothing(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed)
    correct = data.table.correct.copy()
    correct[:, 0, -1] = -1
    data = replace(data, table=replace(data.table, correct=correct))
    svg = drawing(resilience_chart(data), WIDE)
    assert "nan" not in "".join(str(path.attributes["d"]) for path in svg.all("path"))
    worst = places(svg, "band", "level-5")[-1][1]
    assert worst > places(svg, "base")[0][1]


def test_the_step_line_is_the_map_of_the_plan(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=40, side=32, together=2)
    chart = drawing(amounts_chart(data), WIDE)
    steps, marks, zero = places(chart, "step"), titled(chart), places(chart, "base")[0][1]
    amounts = data.resilience.amounts
    finite = amounts.amounts[np.isfinite(amounts.amounts)]
    per_iteration = (zero - steps[-1][1]) / finite[-1]
    drawn = sorted({round((zero - y) / per_iteration) for _, y in steps})
    assert drawn == pytest.approx(sorted({*finite.tolist()}), abs=2)
    for group in data.manifest.groups:
        x, y = marks[group.name]
        assert (zero - y) / per_iteration == pytest.approx(group.iterations, abs=2)
        amount = float(amounts.amount(group.severity))
        if math.isinf(amount):
            assert x >= steps[-1][0] - 0.11
        else:
            # What the line says at the severity of the group, right and left of which it may go up.
            levels = {round((zero - y) / per_iteration) for x_step, y in steps if x_step <= x + 0.11}
            assert max(levels) >= amount - 2
            assert x <= steps[-1][0] + 0.11
    stems = [path.attributes["d"] or "" for path in chart.all("path", "topped")]
    topped = sum(group.iterations != group.planned for group in data.manifest.groups)
    assert sum(stem.count("V") for stem in stems) <= topped
    assert bool(stems) == bool(topped)
    assert len(places(chart, "rug")) <= len({chip.faulty_pes for chip in data.manifest.chips})


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans(), st.integers(2, 12))
def test_ticks_are_few_round_and_on_the_scale(low: float, length: float, logarithmic: bool, most: int) -> None:
    scale = Scale(low, low + length, logarithmic)
    if not scale.high > scale.low * (1 + 1e-6):
        return
    ticks = scale.ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= scale.share(tick) <= 1 + 1e-6 for tick in ticks)


@given(st.lists(st.just(0.0) | st.floats(1e-9, 1), min_size=1, max_size=20), st.booleans())
def test_scales_have_room_for_what_is_on_them(values: list[float], logarithmic: bool) -> None:
    scale = scale_of(values, logarithmic=logarithmic)
    shares = [scale.share(value) for value in values]
    assert all(0 <= share <= 1 for share in shares)
    assert_monotone(values, shares, 1e-9)
    assert len(scale.ticks(6)) >= 2


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
def test_pictures_are_read_by_others(marked: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    content = png(marked, (12, 200, 77))
    found = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert np.array_equal(found[..., 3], np.where(marked, 255, 0))
    assert (found[marked] == (12, 200, 77, 255)).all()
    assert png(marked, (12, 200, 77)) == content
    with pytest.raises(ValueError, match="at least one pixel"):
        png(marked[:0], (12, 200, 77))
