"""What pictures show is what was found: by place, by bit and by layer; and they are drawn whatever that is."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efat import records
from efat.figures.propagation import draw_pictures
from efat.propagation.estimates import ENDINGS, MOST_CELLS, Estimates, HeatMap, bit_shares, heat_maps, layer_fates
from efat.propagation.statistics import Interval, mean_interval
from efat.propagation.summary import Propagation
from efat.propagation.tables import PICTURES
from simulator import ArrayConfig, Kind, Site
from tests.support.propagation import fields_of, propagations


def assert_is_mean(found: Interval, values: Any, population: int) -> None:
    expected = mean_interval(values, 0.9, population=population)
    assert found.as_dict() == pytest.approx(expected.as_dict())


FEW = settings(max_examples=20)


def elsewhere(propagation: Propagation, rows: int, cols: int, random: np.random.Generator) -> Propagation:
    """The same faults at other places, on an array of another size."""
    faults = propagation.faults.copy()
    faults["row"] = np.where(faults["site"] == Site.ACCUMULATOR, 0, random.integers(0, rows, len(faults)))
    faults["col"] = random.integers(0, cols, len(faults))
    array = ArrayConfig(rows, cols, weight_bits=3, act_bits=4, acc_bits=12).record
    return replace(propagation, faults=faults, array=array)


def assert_shows(heat: HeatMap, propagation: Propagation, flips: bool) -> None:
    """Each cell is the mean of what its faults do, each as often as it stands for others."""
    stands_for = {
        (stratum["site"], stratum["bit"], stratum["kind"]): Fraction(
            int(stratum["population"]), max(1, int(stratum["sampled"]))
        )
        for stratum in propagation.strata
    }
    cells: dict[tuple[int, int], list[tuple[Fraction, Fraction]]] = defaultdict(list)
    for fault in propagation.faults:
        if (fault["kind"] == Kind.FLIP) != flips:
            continue
        below = fault["site"] == Site.ACCUMULATOR
        place = (len(heat.cells) if below else int(fault["row"]) // heat.step, int(fault["col"]) // heat.step)
        weight = Fraction(1)
        if propagation.request.stratify:
            weight = stands_for[fault["site"], fault["bit"], fault["kind"]]
        cells[place].append((weight, Fraction(int(fault["top1"]) + int(fault["top5"]), int(fault["images"]))))
    shown = np.append(heat.cells, heat.accumulators[None], axis=0)
    assert heat.faults.sum() == sum(map(len, cells.values()))
    for place, share in np.ndenumerate(shown):
        found = cells[place[0], place[1]]
        assert heat.faults[place] == len(found)
        if not found:
            assert math.isnan(share)
        else:
            mean = sum(weight * value for weight, value in found) / sum(weight for weight, _ in found)
            assert share == pytest.approx(float(mean), abs=1e-12)


@FEW
@given(propagations(), st.integers(1, 150), st.integers(1, 150), st.booleans(), st.integers(0, 2**32 - 1))
def test_cells_are_means_of_their_faults(found: Propagation, rows: int, cols: int, stratified: bool, seed: int) -> None:
    moved = elsewhere(found, rows, cols, np.random.default_rng(seed))
    moved = replace(moved, request=records.replace(moved.request, stratify=stratified))
    maps = heat_maps(Estimates(moved, 0.95))
    flips = moved.faults["kind"] == Kind.FLIP
    assert [heat.kinds for heat in maps] == ["stuck-at faults"] * (not flips.all()) + ["flips"] * bool(flips.any())
    for heat in maps:
        assert heat.cells.shape == (-(-rows // heat.step), -(-cols // heat.step))
        assert max(heat.cells.shape) <= MOST_CELLS
        assert_shows(heat, moved, heat.kinds == "flips")
        at_pes = heat.faults[:-1]
        # Not coarser than it takes for half of the cells to have a fault.
        finest = -(-max(rows, cols) // MOST_CELLS)
        assert heat.step == finest or at_pes.any()
        assert not at_pes.any() or 2 * np.count_nonzero(at_pes) >= at_pes.size or heat.step >= max(rows, cols)


@FEW
@given(propagations())
def test_bits_have_the_share_of_their_faults(found: Propagation) -> None:
    shown = bit_shares(Estimates(found, 0.9))
    strata = [stratum for stratum in found.strata if stratum["sampled"]]
    assert [(share.site, share.first, share.kind) for share in shown] == sorted(
        (stratum["site"], stratum["bit"], stratum["kind"]) for stratum in strata
    )
    faults = found.faults
    for share in shown:
        assert share.first == share.last
        its = faults[(faults["site"] == share.site) & (faults["bit"] == share.first) & (faults["kind"] == share.kind)]
        changed = (its["top1"].astype(float) + its["top5"]) / its["images"]
        assert (share.faults, share.population >= len(its)) == (len(its), True)
        assert_is_mean(share.avf, changed, share.population)
        assert_is_mean(share.critical, changed > 0, share.population)
        scores = np.minimum(1, changed + its["benign"] / its["images"])
        assert_is_mean(share.scores, scores, share.population)


@FEW
@given(propagations(), st.integers(1, 8))
def test_bits_that_share_a_place_are_counted_once(found: Propagation, most: int) -> None:
    estimates = Estimates(found, 0.95)
    alone, together = bit_shares(estimates), bit_shares(estimates, most)
    for site in Site:
        spans = sorted({(share.first, share.last) for share in together if share.site is site})
        assert len(spans) <= most
        assert all(one[1] < other[0] for one, other in pairwise(spans))
    for share in together:
        parts = [
            part
            for part in alone
            if (part.site, part.kind) == (share.site, share.kind) and share.first <= part.first <= share.last
        ]
        assert share.faults == sum(part.faults for part in parts)
        assert min(part.avf.value for part in parts) - 1e-9 <= share.avf.value
        assert share.avf.value <= max(part.avf.value for part in parts) + 1e-9


@FEW
@given(propagations())
def test_what_leaves_a_layer_ends_or_goes_on(found: Propagation) -> None:
    equal = replace(found, request=records.replace(found.request, stratify=False))
    for layer, fate in enumerate(layer_fates(Estimates(equal, 0.95))):
        of_layer = {place: step.kind for place, step in enumerate(found.graph) if step.layer == layer}
        rows = [(row, of_layer[row["operation"]]) for row in found.operations if row["operation"] in of_layer]
        leaving = sum(int(row["images_out"]) for row, kind in rows if kind == "multiply")
        ended = {name: sum(int(row["images_masked"]) for row, kind in rows if kind == name) for name in ENDINGS}
        assert fate.name == found.layer_shapes[layer].name
        assert fate.differences == leaving
        whole = max(leaving, sum(ended.values()), 1)
        assert fate.ended == pytest.approx({name: count / whole for name, count in ended.items()})
        assert sum(fate.ended.values()) + fate.carried == pytest.approx(1)


def test_pictures_are_drawn_of_what_was_found(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    found = Propagation(**fields_of(random))
    (tmp_path / "one").mkdir()
    draw_pictures(tmp_path / "one", found)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        with Image.open(tmp_path / "one" / name) as picture:
            assert (picture.format, min(picture.size) >= 100) == ("PNG", True)
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10


def test_pictures_of_nothing(tmp_path: Path, seed: int) -> None:
    fields = fields_of(np.random.default_rng(seed))
    fields["strata"]["sampled"] = 0
    none = {name: fields[name][:0] for name in ("faults", "layers", "operations")}
    found = Propagation(**{**fields, **none})
    draw_pictures(tmp_path, found)
    assert all((tmp_path / name).exists() for name in PICTURES)
