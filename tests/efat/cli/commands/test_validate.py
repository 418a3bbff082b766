"""`efat validate` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import efat
import simulator.engine.gemm
import training.emulation.program
from efat import NetworkValidation
from efat.validation.validation import DEFAULT_CASES, DEFAULT_IMAGES, DEFAULT_RTL_CASES
from simulator import ArrayConfig, FaultModel
from simulator.rtl import unavailable
from tests.support.programs import done, refused, run, written
from training.emulation.program import _chip_faults, _stuck


def test_agreement_is_shown_and_written(folder: Path) -> None:
    found, shown = written("validate", "--cases", "40", "--seed", "5", "--array", "4x3", "--sites", "psum,weight-load")
    for text in ("seed 5", "40 cases", "no mismatch"):
        assert text in shown
    assert found["cases"] == 40
    assert found["array"] == [4, 3]
    assert set(found["by_site"]) <= {"PSUM", "WEIGHT_LOAD", "none"}
    assert sum(count["mismatches"] for count in found["by_site"].values()) == 0
    assert found["outputs"] > 0


def test_time_can_decide(folder: Path) -> None:
    assert "no mismatch" in done("validate", "--minutes", "0.003").output


def test_a_mismatch_is_shown_saved_and_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(faults, site):
        masks = _stuck(faults, site)
        return masks._replace(keep=np.full_like(masks.keep, -1)) if site.name == "PSUM" else masks

    monkeypatch.setattr(training.emulation.program, "_stuck", broken)
    _chip_faults.cache_clear()
    result = run("validate", "--seed", "1", "--cases", "3000", "--json", "r.json")
    assert result.exit_code == 1, result.output
    (saved,) = Path.cwd().glob("mismatch-1-*.json")
    assert f"efat validate --replay {saved.name}" in result.output
    assert "site=<Site.PSUM: 4>" in result.output
    assert json.loads(Path("r.json").read_text())["mismatching_case"] == int(saved.stem.split("-")[-1])
    again = run("validate", "--replay", saved.name)
    assert again.exit_code == 1
    assert "They differ." in again.output
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    _chip_faults.cache_clear()
    assert "They agree." in done("validate", "--replay", saved.name).output


without_rtl = unavailable()
needs_rtl = pytest.mark.skipif(without_rtl is not None, reason=without_rtl or "")


@pytest.mark.integration
@needs_rtl
def test_the_rtl_is_compared_with_both_engines(folder: Path) -> None:
    found, shown = written("validate", "--against", "rtl", "--cases", "30", "--seed", "5", "--array", "3x2")
    assert "no mismatch" in shown
    assert found["engines"] == ["rtl", "cycle", "emulation"]
    assert found["cases"] == 30
    assert set(found["by_site"]) >= {"MULTIPLIER", "ACCUMULATOR"}


@pytest.mark.integration
@needs_rtl
def test_a_mismatch_with_the_rtl_is_shown_saved_and_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = simulator.engine.gemm.pe_masks

    def broken(faults, bypass):
        masks = real(faults, bypass)
        return masks._replace(product_keep=np.full_like(masks.product_keep, -1))

    # The cycle engine alone goes wrong.
    monkeypatch.setattr(simulator.engine.gemm, "pe_masks", broken)
    simulator.engine.gemm._chip.cache_clear()
    options = ["--against", "rtl", "--array", "2x2"]
    result = run("validate", *options, "--sites", "product", "--seed", "1", "--cases", "200")
    assert result.exit_code == 1, result.output
    (saved,) = Path.cwd().glob("mismatch-1-*.json")
    assert f"efat validate --replay {saved.name} --against rtl" in result.output
    assert result.output.count("rtl: [[") == 1
    again = run("validate", "--replay", saved.name, "--against", "rtl")
    assert again.exit_code == 1
    assert "They differ." in again.output
    monkeypatch.undo()
    simulator.engine.gemm._chip.cache_clear()
    monkeypatch.chdir(folder)
    mended = done("validate", "--replay", saved.name, "--against", "rtl").output
    assert "rtl: [[" in mended
    assert "They agree." in mended


def test_without_a_simulator_the_rtl_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    message = refused("validate", "--against", "rtl", "--cases", "3")
    assert message == "against rtl: iverilog is not installed, which simulates the RTL: apt-get install iverilog"


@pytest.fixture
def lot(folder: Path) -> str:
    efat.Lot.generate("lot.h5", ArrayConfig(12, 10), FaultModel(0.05), count=2, seed=3)
    return "lot.h5"


def test_whole_networks_give_identical_logits(lot: str) -> None:
    found, shown = written("validate", "--lot", lot, "--network", "digits-cnn", "--images", "5")
    assert "All logits are identical." in shown
    assert [chip["logits"] for chip in found["chips"]] == [50, 50]


def test_ctrl_c_keeps_the_chips_that_are_done(lot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = NetworkValidation.run

    def interrupted(validation: NetworkValidation, progress: Callable[[int], None]) -> None:
        def stop(_: int) -> None:
            raise KeyboardInterrupt

        compared(validation, stop)

    monkeypatch.setattr(NetworkValidation, "run", interrupted)
    result = run("validate", "--lot", lot, "--network", "digits-cnn", "--images", "5", "--json", "r.json")
    assert result.exit_code == 130, result.output
    assert "1 chip. All logits are identical." in result.output
    found = json.loads(Path("r.json").read_text())
    assert not found["complete"]
    assert [chip["chip"] for chip in found["chips"]] == ["chip-0000"]


def test_the_lot_is_never_written_over(lot: str) -> None:
    asked = ["validate", "--lot", lot, "--network", "digits-cnn", "--json", lot]
    assert "lot.h5 is the file to read" in refused(*asked)


def test_differing_logits_end_with_exit_code_1(lot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(faults, site):
        masks = _stuck(faults, site)
        return masks._replace(force=np.zeros_like(masks.force))

    monkeypatch.setattr(training.emulation.program, "_stuck", broken)
    _chip_faults.cache_clear()
    result = run("validate", "--lot", lot, "--network", "digits-cnn", "--images", "5")
    _chip_faults.cache_clear()
    assert result.exit_code == 1, result.output
    assert "differ" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "5", "--minutes", "1"], "cases and minutes are both given"),
        (["--sites", "psum,clock"], "'clock' is no site: expected one of weight,"),
        (["--array", "2000x2"], "rows is 2000"),
        (["--lot", "lot.h5"], "--lot is given without --network"),
        (["--network", "digits-cnn"], "--network is given without --lot"),
        (["--lot", "lot.h5", "--network", "digits-cnn", "--cases", "3"], "--cases does not go with --lot"),
        (["--lot", "lot.h5", "--network", "digits-cnn", "--against", "rtl"], "--against rtl does not go with --lot"),
        (["--replay", "case.json", "--seed", "1"], "--seed does not go with --replay"),
        (["--replay", "missing.json"], "missing.json: No such file"),
        (["--lot", "missing.h5", "--network", "digits-cnn"], "missing.h5"),
        (["--cases", "3", "--json", "nowhere/r.json"], "no such folder"),
    ],
)
def test_bad_input_is_refused(folder: Path, arguments: list[str], message: str) -> None:
    assert message in refused("validate", *arguments)


def test_help_says_the_defaults(folder: Path) -> None:
    shown = " ".join(run("validate", "--help").output.split())
    assert f"[default: {DEFAULT_CASES}, or {DEFAULT_RTL_CASES} with --against rtl]" in shown
    assert f"[default: {DEFAULT_IMAGES}]" in shown
