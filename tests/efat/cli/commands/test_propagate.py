"""`efat propagate` as a user meets it: what it writes and shows, going on after Ctrl-C, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efat
from efat.cli import render
from efat.cli.commands.propagate import propagate
from efat.propagation.request import DEFAULT_CONFIDENCE, DEFAULT_IMAGES, DEFAULT_MARGIN
from simulator import ArrayConfig, FaultMap, Kind, Site
from simulator.lots.chips import Chip, write_lot
from tests.support.programs import contents, done, refused, run

BASE = ["propagate", "--network", "digits-cnn", "--images", "5", "--workers", "0", "-o", "prop"]
ARRAY = ["--array", "8x8", "--weight-bits", "5", "--act-bits", "6", "--acc-bits", "16"]
FEW = ["--site", "weight", "--site", "psum", "--bit", "psum=0-3,15", "--samples", "60"]
SHORT = [*BASE, *ARRAY, *FEW]
PICTURES = ["array.png", "bits.png", "layers.png"]


def table() -> efat.Propagation:
    return efat.Propagation.load("prop")


def percent(interval: dict[str, float]) -> str:
    shown = "{value:.1f}" if interval["low"] == interval["high"] else "{value:.1f} ({low:.1f}-{high:.1f})"
    return shown.format(**{name: 100 * share for name, share in interval.items()})


def test_what_is_shown_is_what_was_found(folder: Path) -> None:
    shown = done(*SHORT, "--json", "out.json").output
    found = table()
    summary = json.loads(Path("out.json").read_text())
    assert Path("prop/summary.json").read_text() == Path("out.json").read_text()
    assert len(found.faults) == 60
    assert "digits-cnn on 8x8 PEs, 5 images: 60 of 1,280 faults tried" in shown
    rows = [(row["site"].lower(), row) for row in summary["by_site"]]
    rows += [(row["kind"].lower().replace("_", "-"), row) for row in summary["by_kind"]]
    rows += [("all", summary["overall"])]
    assert [name for name, _ in rows] == ["weight", "psum", "stuck-at-0", "stuck-at-1", "all"]
    for name, row in rows:
        cells = [str(row["faults"]), *(percent(row[column]) for column in ("critical", "avf", "scores_changed"))]
        cells.append(f"{100 * row['accuracy_lost']['value']:.2f}")
        assert re.search(rf"{name} +{' +'.join(map(re.escape, cells))} *\n", shown)
    for row in summary["layers"]:
        shares = row["pattern_shares"].values()
        cells = [percent(row["reached"]), *("" if share is None else f"{100 * share:.1f}" for share in shares)]
        assert re.search(rf"{row['layer']} +{' +'.join(map(re.escape, cells))}", shown)
    for row in summary["masking"]["by_kind"]:
        assert re.search(rf"{row['kind']} +{row['images_in']:,} ", shown)
    rules = summary["population"]["rules"]
    assert sum(rule["faults"] for rule in rules.values()) == 1280
    assert re.search(rf"provably the same value +{rules['same_value']['faults']} ", shown)
    assert re.search(rf"fault-free +{found.fault_free_correct / 5:.1%}", shown)
    assert shown.splitlines()[-1] == (
        "In prop/propagation.h5, prop/summary.json, prop/array.png, prop/bits.png and prop/layers.png."
    )
    before = contents(Path("prop"))
    files = sorted(name for name in before if not name.startswith("units/"))
    assert files == sorted(["campaign.json", "propagation.h5", "summary.json", *PICTURES])
    again = done(*SHORT).output
    assert again.lstrip() == f"All of it is in prop already: nothing is run.\n{shown.lstrip()}"
    # It keeps the command line that was run on it last.
    assert {name for name, content in contents(Path("prop")).items() if content != before[name]} == {"campaign.json"}
    # JSON for other programs, by itself.
    alone = run(*SHORT, "--json", "-")
    assert json.loads(alone.stdout) == summary


@contextmanager
def interrupting_bar() -> Iterator[Callable[..., None]]:
    """A bar that is interrupted after three units."""

    def show(what: str, done: int, of: int, note: str = "") -> None:
        if done >= 3:
            raise KeyboardInterrupt

    yield show


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(render, "stages_bar", interrupting_bar)
        result = run(*SHORT)
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "Interrupted; run the same command to go on."
    before = contents(Path("prop"))
    assert len([name for name in before if name.endswith(".json")]) == 1 + 3
    assert "prop was begun with another seed: choose another folder" in refused(*SHORT, "--seed", "2")
    done(*SHORT)
    after = contents(Path("prop"))
    assert {name: after[name] for name in before} == before
    # A picture that is gone is drawn again.
    (Path("prop") / PICTURES[0]).unlink()
    done(*SHORT)
    assert contents(Path("prop")) == after


def test_options_reach_what_is_tried(folder: Path) -> None:
    config = ArrayConfig(6, 5, acc_bits=20)
    write_lot("lot.h5", config, [Chip("one", FaultMap(config))])
    options = ["--lot", "lot.h5", "--site", "Activation", "--bit", "activation=7, 1-2", "--kind", "FLIP", "--seed", "9"]
    options += ["--margin", "0.3", "--confidence", "0.8", "--no-stratify", "--calibration", "mse"]
    shown = done(*BASE, *options).output
    found = table()
    assert found.array == config.record
    assert {
        name: getattr(found.request, name) for name in ("sites", "kinds", "bits", "margin", "confidence", "stratify")
    } == {
        "sites": ("ACTIVATION",),
        "kinds": ("FLIP",),
        "bits": {"ACTIVATION": (1, 2, 7)},
        "margin": 0.3,
        "confidence": 0.8,
        "stratify": False,
    }
    assert (found.request.seed, found.subject.calibration, found.images) == (9, "mse", 5)
    assert set(found.faults["site"].tolist()) == {Site.ACTIVATION}
    assert set(found.faults["kind"].tolist()) == {Kind.FLIP}
    assert set(found.faults["bit"].tolist()) <= {1, 2, 7}
    assert "(with 80 % intervals)" in shown


def test_bad_input_is_refused(folder: Path) -> None:
    config = ArrayConfig(8, 8)
    write_lot("lot.h5", config, [Chip("one", FaultMap(config))])
    all_of = [*BASE, *ARRAY]
    assert "give the array with --array, or a lot of chips that has it with --lot" in refused(*BASE)
    assert "--array and --lot are both given" in refused(*SHORT, "--lot", "lot.h5")
    assert "--act-bits describes an array: give its size" in refused(*BASE, "--lot", "lot.h5", "--act-bits", "4")
    assert "lot.h5 is the file to read" in refused(*BASE, "--lot", "lot.h5", "--json", "lot.h5")
    assert "--workers and --ray are both given" in refused(*SHORT, "--ray", "local")
    assert "'alu' is no site: expected one of weight, weight_load" in refused(*all_of, "--site", "alu")
    assert "'stuck' is no kind: expected one of stuck_at_0, stuck_at_1, flip" in refused(*all_of, "--kind", "stuck")
    assert "kinds are flip and stuck-at" in refused(*SHORT, "--kind", "flip", "--kind", "stuck-at-0")
    for text in ("psum", "psum=", "psum=x", "psum=3-1", "psum=0-99999", "psum=1;2"):
        assert "expected bits or ranges with commas, such as psum=0-3,7" in refused(*all_of, "--bit", text)
    assert "'none' is no site" in refused(*all_of, "--bit", "none=3")
    assert "bits of psum have 16: expected 0..15" in refused(*all_of, "--bit", "psum=14-16")
    assert "bits are given of multiplier, which is not among" in refused(*all_of, "--bit", "multiplier=3")
    assert "--bit psum is given twice" in refused(*SHORT, "--bit", "psum=5")
    assert "--samples and --exhaustive are given: choose one" in refused(*SHORT, "--exhaustive")
    assert "--exhaustive and --margin are given" in refused(*all_of, "--exhaustive", "--margin", "0.1")
    assert "samples is 0: expected 1.." in refused(*all_of, "--samples", "0")
    assert "samples is 1281: the population has 1280 faults" in refused(*SHORT, "--samples", "1281")
    assert "samples is 9: the population has 20 strata" in refused(*SHORT, "--samples", "9")
    assert "'1.5': expected a fraction, 0 to 1, or a percentage" in refused(*all_of, "--margin", "1.5")
    assert "'nan': expected a fraction" in refused(*all_of, "--margin", "nan")
    assert "'0.5' means that the share may be off by 50%" in refused(*all_of, "--margin", "0.5")
    assert "margin is 0.0: expected a share between 0 and 1" in refused(*all_of, "--margin", "0%")
    assert "confidence is 0.0: expected a share" in refused(*SHORT, "--confidence", "0")
    assert "for 95 percent give 0.95 or 95%" in refused(*SHORT, "--confidence", "95")
    assert "network 'alexnet' is unknown" in refused(*SHORT, "--network", "alexnet")
    assert "images is 361: expected 1..360" in refused(*SHORT, "--images", "361")
    assert "missing.h5: no such file" in refused(*BASE, "--lot", "missing.h5")
    assert "weight_bits is 9: expected 2..8" in refused(*SHORT, "--weight-bits", "9")
    assert "--faulty-multiplier: no fault would use it" in refused(*SHORT, "--faulty-multiplier", "lot.h5")
    assert "nowhere: no such folder to make prop in" in refused(*SHORT, "-o", "nowhere/prop")
    assert "lot.h5 is not a folder" in refused(*SHORT, "-o", "lot.h5")
    assert "nowhere: no such folder to write out.json into" in refused(*SHORT, "--json", "nowhere/out.json")
    np.save("table.npy", np.zeros((256, 256), np.int16))
    table_only = [*BASE, "--array", "8x8", "--multiplier", "table.npy", "--table-signed"]
    assert "is a table for all PEs and has no place for faults" in refused(*table_only, "--site", "multiplier")
    assert not Path("prop").exists()


def test_defaults_are_those_of_the_library() -> None:
    options: dict[str, Any] = {option.name: option for option in propagate.params}
    assert options["confidence"].default == DEFAULT_CONFIDENCE
    assert f"[default: {DEFAULT_MARGIN}]" in options["margin"].help
    assert f"[default: {DEFAULT_IMAGES}, or all if there are fewer]" in options["images"].help
