"""The report says what is in the files, whatever lot it is, and stands by itself."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

from efat import records
from efat.confidence import bound_text
from efat.planning.plan import AS_IS
from efat.planning.selection import Constraint
from efat.reports import lot as lot_report
from efat.reports.lot import LotReport, lot_findings, lot_page, read_lot_report
from efat.reports.report import Report
from efat.reports.text import accuracy, duration, named, short_percent
from efat.retraining.manifest import ManifestChip
from simulator.errors import InputError
from simulator.files import digest_of_file
from tests.support.pages import Element, read_page
from tests.support.retrained_lots import write_retrained_lot
from training.layers.deployment import read_deployed

HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "&lt;b&gt;{{ 7 * 7 }}{% raw %}", "W" * 64]


def lot(folder: Path, seed: int, **arguments: Any) -> LotReport:
    """A lot that was retrained, as a report sees it."""
    write_retrained_lot(folder / "retrained", seed, **arguments)
    return read_lot_report(folder / "retrained")


def page(data: LotReport) -> Element:
    """Its report."""
    return read_page(lot_page(data))


def texts(row: Element) -> list[str]:
    """The cells of a row."""
    return [cell.text.strip() for cell in row.elements() if cell.tag in ("th", "td")]


def facts(section: Element) -> dict[str, str]:
    """Terms of its definition lists, and what they are."""
    lists = list(section.all("dl"))
    terms = [term.text for found in lists for term in found.all("dt")]
    return dict(zip(terms, (fact.text.strip() for found in lists for fact in found.all("dd")), strict=True))


def test_every_chip_is_in_the_table_as_it_is_in_the_manifest(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, failing=3)
    rows = [texts(row) for row in page(data).with_id("chips").one("tbody").all("tr")]
    assert sorted(rows) == sorted(
        [
            chip.id,
            "met" if chip.correct >= data.manifest.required else "missed",
            f"{chip.correct / 100:.2f}%",
            bound_text(chip.at_least),
            f"{chip.correct:,}",
            f"{chip.tuning_correct / 100:.2f}%",
            f"{chip.faulty_pes:,}",
            f"{chip.bypassed_pes:,}",
            chip.group,
        ]
        for chip in data.manifest.chips
    )
    assert [row[1] for row in rows] == ["missed"] * 3 + ["met"] * 9
    assert [row[4] for row in rows] == [f"{chip:,}" for chip in sorted(chip.correct for chip in data.manifest.chips)]


@pytest.mark.parametrize(("most", "what"), [(3, "1 of them fail"), (5, "all of them pass")])
def test_a_long_table_has_the_worst_chips_and_says_what_is_left_out(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, most: int, what: str
) -> None:
    data = lot(tmp_path, seed, failing=4)
    correct = sorted(chip.correct for chip in data.manifest.chips)
    monkeypatch.setattr(lot_report, "MOST_ROWS", most)
    chips = page(data).with_id("chips")
    assert [texts(row)[4] for row in chips.one("tbody").all("tr")] == [f"{value:,}" for value in correct[:most]]
    assert f"{12 - most} further chips with {correct[most] / 100:.2f}% or more: {what}" in chips.one("caption").text


def test_costs_are_those_of_the_plan_and_of_the_run(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=30)
    bars = list(page(data).with_id("cost").one("ul", "costs").all("li"))
    shown = {bar.one("b").text: bar.one("span", "count").text.split()[0] for bar in bars}
    expected = {
        f"{cost.strategy}{', aligned' if cost.aligned else ''}": cost.iterations for cost in data.plan.comparison
    }
    expected |= {"executed": data.manifest.totals.iterations, "resilience analysis": data.analysis_iterations}
    assert shown == {name: f"{count:,}" for name, count in expected.items()}
    widths = {bar.one("b").text: sum(float(part.attributes["width"] or "") for part in bar.all("rect")) for bar in bars}
    longest = max(expected.values())
    assert widths == {name: pytest.approx(1000 * count / longest, abs=0.11) for name, count in expected.items()}
    lost = {bar.one("b").text: found.text for bar in bars for found in bar.all("span", "bad")}
    expected_lost = {cost.strategy: cost.out_of_reach for cost in data.plan.comparison if cost.out_of_reach}
    assert {name.split(",")[0]: int(text.split()[0]) for name, text in lost.items()} == expected_lost
    more = [bar for bar in bars if list(bar.all("rect", "more"))]
    assert [bar.one("b").text for bar in more] == ["executed"] * (data.manifest.totals.top_up_iterations > 0)


def test_groups_are_shown_with_what_their_chips_bypass(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=14, failing=4, side=24)
    cards = {card.one("h3").text: card for card in page(data).all("article")}
    groups = [group for group in data.manifest.groups if group.name != AS_IS]
    assert list(cards) == [group.name for group in groups]
    for group in groups:
        card, chips = cards[group.name], [data.manifest.chip_named[chip] for chip in group.chips]
        shown = facts(card)
        assert shown["Planned"] == f"{group.planned:,}"
        assert shown["Executed"] == f"{group.iterations:,}"
        assert shown["Accuracy"] == f"{min(chip.correct for chip in chips) / 100:.2f}%"
        assert all(chip.id in card.text for chip in chips)
        missing = sum(not chip.passes for chip in chips)
        assert [found.text.split()[0] for found in card.all("p", "bad")] == [str(missing)] * (missing > 0)
        masks = [read_deployed(tmp_path / "retrained" / chip.deployment)[1] for chip in chips]
        union = np.logical_or.reduce([mask.bypass for mask in masks if mask is not None])
        assert np.array_equal(picture(card), union)


def picture(card: Element) -> Any:
    """What is marked in the picture of a group, read by another program."""
    kind, content = (card.one("img").attributes["src"] or "").split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))[..., 3] == 255


def test_of_many_groups_those_that_fail_and_the_largest_are_shown(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lot_report, "MOST_GROUPS", 3)
    data = lot(tmp_path, seed, chips=20, failing=1, together=3, as_is=0)
    shown = [card.one("h3").text for card in page(data).all("article")]
    bad = data.failing[0].group
    first = [group.name for group in data.manifest.groups if group.name != bad and len(group.chips) == 3]
    # Those with fewer chips, of which there is one at most, do not get a place unless they fail.
    assert shown == sorted([bad, *first[:2]])
    rest = [group for group in data.manifest.groups if group.name not in shown]
    text = page(data).with_id("groups").text
    assert f"the other {len(rest)} have {sum(len(group.chips) for group in rest)} chips" in text
    assert f"took {sum(group.iterations for group in rest):,} iterations" in text


def test_large_arrays_have_small_pictures(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lot_report, "LARGEST_PICTURE", 8)
    data = lot(tmp_path, seed, chips=4, side=29)
    for card in page(data).all("article"):
        mask = np.pad(data.bypassed[card.one("h3").text], ((0, 3), (0, 3)))
        assert np.array_equal(picture(card), mask.reshape(8, 4, 8, 4).any(axis=(1, 3)))
    assert "4\N{MULTIPLICATION SIGN}4 PEs in a pixel" in page(data).with_id("groups").text


def test_settings_inputs_and_versions_are_there_in_full(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed)
    shown = facts(page(data).with_id("reproduce"))
    recipe = data.plan.setup.as_dict()["recipe"]
    assert shown["recipe.options.momentum"] == str(recipe["options"]["momentum"])
    assert shown["recipe.learning_rate"] == str(recipe["learning_rate"])
    assert shown["array.rows"] == str(data.manifest.array.rows)
    assert json.loads(shown["resilience.levels"]) == data.table.levels.tolist()
    assert json.loads(shown["resilience.rates"]) == data.table.rates.tolist()
    assert (shown["resilience.seed"], shown["budget"]) == (str(data.table.seed), str(data.plan.budget))
    assert shown["lot"] == data.manifest.lot.path + data.manifest.lot.sha256
    assert shown["network"] == data.plan.setup.network
    assert shown["tuning images"].endswith(data.manifest.identity["tuning images"])
    assert shown["verification images"].endswith(data.manifest.verification)
    for name, version in data.manifest.versions.items():
        assert shown[name] == version


def test_the_summary_says_what_managers_ask(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=25, failing=2)
    passing, worst, cost, analysis, verified = (finding.sentence for finding in lot_findings(data))
    shown = [line.one("span").text for line in page(data).one("ol", "summary").all("li")]
    assert shown == [passing, worst, cost, analysis, verified]
    correct = {chip.id: chip.correct for chip in data.manifest.chips}
    low, high = sorted(correct, key=lambda chip: correct[chip])[:2]
    assert passing.startswith("23 of 25 chips meet the constraint on 10,000 unseen images: at least 97.50% ")
    assert passing.endswith(
        f"(9,750 of 10,000), at most 1 point below the 98.50% of a chip without faults. {low} and {high} do not, "
        "2 of which do on the 10,000 images that decided."
    )
    assert f"{low}, gets {correct[low] / 100:.2f}% right, {(9750 - correct[low]) / 100:.2f} point" in worst
    took, fixed, select = data.manifest.totals.iterations, 400 * 25, 4000
    assert cost.startswith(f"Retraining took {took:,} iterations: ")
    for name, other in (("fixed", fixed), ("select", select)):
        (share,) = re.findall(rf"([\d.]+)% of what {name} would take \({other:,}, ", cost)
        assert float(share) == pytest.approx(100 * took / other, rel=0.05, abs=0.5)
    # With so many chips like these, what is saved over `fixed` first covers the analysis.
    enough = next(chips for chips in range(1, 10**6) if chips * (fixed - took) >= 7200 * 25)
    assert analysis == (
        "The resilience analysis before it took 7,200 iterations, once for all lots; against fixed it pays from "
        f"{enough} chips like these on."
    )
    assert "Each of the 25 chips was verified" in verified
    assert "first 16 of them" in verified
    assert verified.endswith(
        " 96.4% of the network's multiply-accumulates run on the array; 36,000 for an image are "
        "computed in float, without faults."
    )


def test_what_went_wrong_is_in_the_summary(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=5, failing=5, as_is=0)
    passing, worst = (finding.sentence for finding in lot_findings(data)[:2])
    assert passing.startswith("0 of 5 chips meet")
    assert " and 2 more do not, 5 of which do on the 10,000 images that decided." in passing
    assert " less than required; with 95% confidence at least " in worst
    totals = records.replace(data.manifest.totals, iterations=10**9)
    chips = tuple(records.replace(chip, cycle_same=False) for chip in data.manifest.chips)
    data = replace(data, manifest=records.replace(data.manifest, totals=totals, chips=chips))
    assert data.pays_from is None
    assert "saves nothing over fixed" in lot_findings(data)[3].sentence
    assert "do not trust these results" in lot_findings(data)[4].sentence


@pytest.mark.parametrize("arguments", [{}, {"chips": 1, "failing": 0, "as_is": 0}, {"chips": 3, "failing": 3}])
def test_a_page_stands_by_itself(tmp_path: Path, seed: int, arguments: dict[str, int]) -> None:
    data = lot(tmp_path, seed, **arguments)
    whole = page(data)
    assert whole.one("html").attributes["lang"] == "en"
    assert not [element for element in whole.elements() if element.tag in ("script", "link", "iframe", "object")]
    for element in whole.elements():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "xlink:href", "action"):
                assert (value or "").startswith(("#", "data:image/png;base64,"))
    style = whole.one("style").text
    assert "@import" not in style
    assert "url(" not in style
    # Whoever does not see pictures is told what they show.
    assert all(svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") for svg in whole.all("svg"))
    assert all(image.attributes["alt"] for image in whole.all("img"))
    levels = [int(element.tag[1]) for element in whole.elements() if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1
    assert all(following <= level + 1 for level, following in pairwise(levels))
    assert lot_page(data) == lot_page(read_lot_report(tmp_path / "retrained"))


def test_texts_from_files_are_texts(tmp_path: Path, seed: int) -> None:
    name = "<b>lot<p> & '\"{{ 1 }}.h5"
    data = lot(tmp_path, seed, chips=4, failing=2, ids=HOSTILE, lot_path=f"lots/{name}")
    whole = page(data)
    assert whole.one("h1").text == f"Retraining of {name}"
    assert {row.one("span", "id").text for row in whole.one("tbody").all("tr")} == set(HOSTILE)
    titles = {title.text.split(":")[0] for title in whole.with_id("chips").all("title")}
    assert titles == {chip.split(":")[0] for chip in HOSTILE}
    assert not list(whole.all("script"))
    assert len(list(whole.all("img"))) == len(data.shown_groups)
    # What no UTF-8 can hold does not stop it.
    broken = replace(
        data, manifest=records.replace(data.manifest, lot=records.replace(data.manifest.lot, path="\ud800.h5"))
    )
    Report((), lambda: lot_page(broken)).save(tmp_path / "broken.html")
    assert "&#55296;" in (tmp_path / "broken.html").read_text()


def test_ten_thousand_chips_that_fail_fit_into_five_megabytes(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, chips=4, failing=4, as_is=0)
    random = np.random.default_rng(seed)

    def another(number: int) -> ManifestChip:
        correct, faulty = random.integers(0, data.manifest.required), random.integers(0, 256)
        chip = data.manifest.chips[number % 4]
        return records.replace(chip, id=f"{number:05d}{'W' * 59}", correct=int(correct), faulty_pes=int(faulty))

    chips = tuple(another(number) for number in range(10_000))
    group = data.manifest.groups[0]
    groups = tuple(
        records.replace(
            group, name=f"group-{number}", chips=(chip.id,), severity=number / 10_000, iterations=number, top_ups=0
        )
        for number, chip in enumerate(chips)
    )
    manifest = records.replace(data.manifest, chips=chips, groups=groups)
    mask = random.random((256, 256)) < 0.5
    shown = groups[: lot_report.MOST_GROUPS]
    many = replace(data, manifest=manifest, shown_groups=shown, bypassed=dict.fromkeys([g.name for g in shown], mask))
    assert len(lot_page(many).encode()) < 5_000_000


@pytest.mark.parametrize("constraint", [Constraint(accuracy=0.95), Constraint(max_drop=0.025)])
def test_few_images_and_other_constraints(tmp_path: Path, seed: int, constraint: Constraint) -> None:
    data = lot(tmp_path, seed, images=360, constraint=constraint, predictor="weights", aligned=True)
    sentence = lot_findings(data)[0].sentence
    assert f"({data.manifest.required} of 360)" in sentence
    assert ("at most 2.5 points below" in sentence) == (constraint.max_drop is not None)
    assert "places of its own" in page(data).with_id("groups").text


def test_no_drop_is_said_as_such(tmp_path: Path, seed: int) -> None:
    data = lot(tmp_path, seed, constraint=Constraint(max_drop=0.0))
    assert "of 10,000), no less than the 98.50% of a chip without faults." in lot_findings(data)[0].sentence


def test_numbers_as_they_are_written() -> None:
    assert [accuracy(359, 360), accuracy(9999, 10_000), accuracy(1, 1)] == ["99.7%", "99.99%", "100.0%"]
    assert [short_percent(share) for share in (0, 0.00043, 0.0431, 0.0996, 0.5, 12)] == [
        "0%", "0.043%", "4.3%", "10%", "50%", "1,200%",
    ]  # fmt: skip
    # Halves are rounded up.
    assert [short_percent(share) for share in (0.625, 0.0625, 0.00125, 0.00996)] == ["63%", "6.3%", "0.13%", "1.0%"]
    assert [duration(seconds) for seconds in (0.04, 59, 61, 3599, 86400)] == [
        "0.0 s", "59.0 s", "1 min", "1 h 0 min", "24 h 0 min",
    ]  # fmt: skip
    assert [named(list("abcd")[:count]) for count in (1, 2, 3, 4)] == [
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 1 more",
    ]


@given(st.integers(2, 10**7).flatmap(lambda images: st.tuples(st.integers(0, images - 1), st.just(images))))
def test_one_image_more_is_another_accuracy(found: tuple[int, int]) -> None:
    correct, images = found
    assert accuracy(correct, images) != accuracy(correct + 1, images)


def deleted(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [deleted, cut, emptied])
@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "resilience.h5", "chips/00001.safetensors"])
def test_files_that_are_missing_or_damaged_are_named(
    tmp_path: Path, seed: int, name: str, damage: Callable[[Path], None]
) -> None:
    write_retrained_lot(tmp_path / "retrained", seed, chips=3, as_is=0)
    damage(tmp_path / "retrained" / name)
    with pytest.raises((FileNotFoundError, InputError)) as refused:
        read_lot_report(tmp_path / "retrained")
    assert name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "resilience.h5"])
def test_files_of_another_lot_are_refused(tmp_path: Path, seed: int, name: str) -> None:
    write_retrained_lot(tmp_path / "one", seed, chips=3)
    write_retrained_lot(tmp_path / "other", seed + 1, chips=4)
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(InputError, match=r"another list of chips|is not the table"):
        read_lot_report(tmp_path / "one")


def test_a_chip_of_another_lot_is_refused(tmp_path: Path, seed: int) -> None:
    manifest = write_retrained_lot(tmp_path / "retrained", seed, chips=1, failing=0, as_is=0)
    path = tmp_path / "retrained" / manifest.chips[0].deployment
    mask = np.roll(load(path.read_bytes())["efat.bypass"], 1, axis=0)
    path.write_bytes(save({"efat.bypass": mask}))
    with pytest.raises(InputError, match=r"is not the file that the manifest was made with"):
        read_lot_report(tmp_path / "retrained")
    for other, expected in ((mask | 1, "bypasses 256 PEs"), (mask[:-1], r"\[15, 16\]"), (None, "no deployment")):
        path.write_bytes(save({"efat.bypass" if other is not None else "other": mask if other is None else other}))
        chip = records.replace(manifest.chips[0], sha256=digest_of_file(path))
        records.replace(manifest, chips=(chip,)).save(tmp_path / "retrained" / "manifest.json")
        with pytest.raises(InputError, match=expected):
            read_lot_report(tmp_path / "retrained")


def test_a_chip_outside_the_folder_is_refused(tmp_path: Path, seed: int) -> None:
    write_retrained_lot(tmp_path / "retrained", seed, chips=1, failing=0, as_is=0)
    chip = tmp_path / "retrained" / "chips" / "00000.safetensors"
    chip.rename(tmp_path / "elsewhere.safetensors")
    chip.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="leads out of"):
        read_lot_report(tmp_path / "retrained")
