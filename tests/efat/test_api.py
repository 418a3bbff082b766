"""The public API: what `import efat` gives, and the whole flow as a script."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import efat
from efat.records import replace
from simulator import ArrayConfig, FaultModel, InputError

ROOT = Path(efat.__file__).parents[1]
ARRAY = ArrayConfig(8, 8)


@pytest.fixture
def lot(tmp_path: Path) -> efat.Lot:
    return efat.Lot.generate(tmp_path / "lot.h5", ARRAY, FaultModel((0.02, 0.1)), count=3, seed=7)


def test_exports_what_the_table_names_and_nothing_else() -> None:
    assert efat.__all__ == sorted(efat._MODULES) == dir(efat)
    for name in efat.__all__:
        assert getattr(efat, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        efat.nothing  # noqa: B018


@pytest.mark.integration
@pytest.mark.parametrize("hiding", ["training.py", "simulator/__init__.py"])
def test_a_package_of_others_that_hides_ours_is_named(hiding: str, tmp_path: Path) -> None:
    file = tmp_path / hiding
    file.parent.mkdir(exist_ok=True)
    file.touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = subprocess.run(
        [sys.executable, "-c", "import efat"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    name = hiding.split("/")[0].removesuffix(".py")
    said = f"ImportError: {file} is found instead of {ROOT / name / '__init__.py'}, which efat needs: rename that file"
    assert said in found.stderr.splitlines()[-1]


def test_a_lot_reads_its_file_when_it_is_asked(lot: efat.Lot, tmp_path: Path) -> None:
    again = efat.Lot.open(str(lot.path))
    assert list(again) == [lot[name] for name in lot.chip_ids]
    assert len(again) == 3
    assert str(again).startswith("3 chips of 8x8 PEs: 8-bit weights")
    assert again._repr_html_().count("<tr>") == 4
    assert Path(lot) == lot.path
    written = lot.write_csv(tmp_path / "faults.csv")
    before = lot.path.read_bytes()
    with pytest.raises(efat.InputError, match="is the lot itself: choose another name"):
        lot.write_csv(lot)
    assert lot.path.read_bytes() == before
    copied = efat.Lot.read_csv(tmp_path / "faults.csv", tmp_path / "copy.h5", ARRAY)
    assert list(copied) == list(lot)
    assert written.faults == sum(len(chip.faults) for chip in lot)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"count": 0}, r"count is 0: expected 1\.\.1,000,000 chips"), ({"count": 1, "seed": -1}, "seed is -1: expected")],
)
def test_refuses_lots_that_cannot_be(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        efat.Lot.generate(tmp_path / "lot.h5", ARRAY, FaultModel(0.1), **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "lot.h5").exists()


def test_simulates_a_module_and_tensors_of_ones_own_as_its_setup_does(lot: efat.Lot) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    data = ((images, labels), (torch.rand(20, 1, 4, 4), torch.arange(20) % 3))
    run = efat.simulate(network, lot, data=data, chips=["chip-0001"])
    assert [report.accuracy.images for report in run.reports] == [20]
    assert str(run).startswith("Sequential on test images, 20 images; 8x8 array, emulation engine\n")
    setup = efat.Setup(network, data=data)
    judged = efat.simulate(setup, lot, chips=["chip-0001"])
    assert judged.reports[0].accuracy.images == len(setup.load().verification)
    with pytest.raises(InputError, match="data is given beside a setup, which says it: leave it out"):
        efat.simulate(setup, lot, data=data)


def test_counts_cycles_of_a_module_of_ones_own() -> None:
    found = efat.count_cycles(nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), ARRAY, batch=5, image=(1, 4, 4))
    assert [(each.layer.m, each.layer.k, each.layer.n) for each in found.count.layers] == [(5, 16, 8)]
    assert "5 x 16 x 8" in str(found)
    assert found.count == efat.count_cycles([each.layer for each in found.count.layers], ARRAY).count


def test_retrains_a_module_of_ones_own_for_one_chip_and_shows_it(lot: efat.Lot, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images, labels = torch.rand(300, 1, 4, 4), torch.arange(300) % 3
    data = ((images, labels), (torch.rand(20, 1, 4, 4), torch.arange(20) % 3))
    retraining = efat.ChipRetraining(
        network=network, data=data, lot=lot, chip="chip-0001", mitigation="fap+t", iterations=2
    )
    metrics = efat.retrain_chip(retraining, tmp_path / "out")
    shown = str(metrics).splitlines()
    assert shown[0].startswith("Sequential on ")
    named = ["float32", "quantised, fault-free", "on the chip, before retraining", "on the chip, after"]
    assert [line.split("  ")[0] for line in shown[2:6]] == named
    assert metrics._repr_html_().count("<tr>") == 5 + 5
    assert str(efat.retrain_chip(retraining, tmp_path / "out")) == str(metrics)


def test_measures_and_plans_for_a_module_of_ones_own_and_shows_both(tmp_path: Path, lot: efat.Lot) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images, labels = torch.rand(60, 1, 4, 4), torch.arange(60) % 3
    setup = efat.Setup(network, data=((images, labels), (torch.rand(20, 1, 4, 4), torch.arange(20) % 3)))
    table = efat.measure_resilience(
        tmp_path / "res", setup, lot, rates=(0.1, 0.3), repeats=2, levels=(0, 2), workers=0, notes=lambda _: None
    )
    assert table.path == tmp_path / "res/resilience.h5"
    shown = str(table).splitlines()
    assert shown[0] == "Sequential with fap+t on 8x8 PEs, 2 random chips for each rate:"
    assert [line.split()[0] for line in shown[2:5]] == ["faulty", "10", "30"]
    plan = efat.plan(table, lot, max_drop=0.9)
    assert plan.setup.network is setup.network
    assert sorted(chip for group in plan.groups for chip in group.chips) == lot.chip_ids
    assert str(plan).splitlines()[0].startswith("3 chips, ")
    assert plan.summary in plan._repr_html_()
    # A file does not hold the objects.
    with pytest.raises(InputError, match=r"network 'Sequential \w{16}' was given as an object in Python"):
        efat.plan(tmp_path / "res", lot, max_drop=0.9)
    again = efat.plan(tmp_path / "res", lot, max_drop=0.9, setup=setup)
    assert again.as_dict() == plan.as_dict()
    other = efat.Setup(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data=setup.data)
    with pytest.raises(InputError, match="another network than resilience was measured with"):
        efat.plan(tmp_path / "res", lot, max_drop=0.9, setup=other)


def test_explains_a_chip(lot: efat.Lot) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    found = efat.explain(network, lot, "chip-0001", data=((images, labels), (images, labels)), images=20, image=3)
    assert len(found.costs) == len(found.subsets.acting)
    assert [each.image for each in found.explained] == [3]
    assert str(found).startswith("Chip chip-0001, 8x8: ")
    assert found.complete
    assert "<table>" in found._repr_html_()
    only = efat.explain(network, lot, "chip-0001", data=((images, labels), (images, labels)), image=[3])
    assert not only.costs
    assert only.explained == found.explained


def test_validates_a_network(lot: efat.Lot) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    found = efat.validate_network(network, lot, data=((images, labels), (images, labels)), images=5)
    assert [comparison.logits for comparison in found.comparisons] == [15, 15, 15]
    assert str(found).splitlines()[-1] == "3 chips. All logits are identical."
    assert found._repr_html_().count("<tr>") == 4


def test_validates() -> None:
    found = efat.validate(20, seed=3, array=(4, 4))
    assert (found.cases, found.mismatch) == (20, None)
    assert str(found).startswith("emulation against cycle: random faulty GEMMs, seed 3\nfaults at")
    assert "20 cases, " in found._repr_html_()
    with pytest.raises(InputError, match="cases and minutes are both given: choose one"):
        efat.validate(20, minutes=1)
    with pytest.raises(InputError, match="rows is 0: expected"):
        efat.validate(20, array=(0, 4))
    with pytest.raises(InputError, match="against is 'gates': expected cycle or rtl"):
        efat.validate(20, against="gates")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cases": 0}, "cases is 0: expected 1 or more"),
        ({"minutes": -1.0}, "minutes is -1.0: expected more than 0"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        ({"sites": []}, "sites is a list of 0: expected one or more of `Site`"),
        ({"array": (3,)}, "array is a list of 1: expected rows and columns"),
    ],
)
def test_a_validation_that_would_compare_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        efat.validate(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": 3}, "network is 3: expected its name, a torch.nn.Module or a Setup"),
        ({"chips": "chip-0001"}, "chips is 'chip-0001': expected a list of their ids"),
        ({"engine": "exact"}, "engine is 'exact': expected emulation or cycle"),
        ({"batch": 0}, "batch is 0: expected 1 or more images"),
        ({"clock_mhz": 0}, "clock_mhz is 0: expected more than 0"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        efat.simulate(**{"network": "digits-cnn", "lot": "missing.h5", **wrong})


FLOW = """
import efat
from simulator import ArrayConfig, FaultModel, Site

array = ArrayConfig(16, 16)
faults = FaultModel(rate=(0.02, 0.2), sites={Site.PSUM: 1.0, Site.WEIGHT: 1.0})
lot = efat.Lot.generate("lot.h5", array, faults, count=4, seed=7)
setup = SETUP
run = efat.simulate(setup, lot, engine="emulation")
table = efat.measure_resilience("resilience", setup, lot, rates=(0.05, 0.2), levels=(0, 2, 4), repeats=2)
plan = efat.plan(table, lot, max_drop=0.2)
manifest = efat.retrain(plan, "retrained", workers=0)
again = efat.simulate(setup, lot, manifest="retrained/manifest.json")
efat.report("retrained").save("report.html")
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    "setup",
    [
        'efat.Setup("digits-cnn", mitigation="fam+t")',
        "efat.Setup(network, data=((images, labels), (images[:90] + 0.01, labels[:90])), mitigation='fap+t')",
    ],
)
def test_the_whole_flow_is_a_short_script(setup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    names = {"network": network, "images": torch.rand(150, 1, 4, 4), "labels": torch.arange(150) % 3}
    assert len(FLOW.strip().splitlines()) <= 25
    exec(FLOW.replace("SETUP", setup), names)
    run, manifest, again = (names[name] for name in ("run", "manifest", "again"))
    assert len(run.reports) == len(manifest.chips) == len(again.reports) == 4
    assert {report.accuracy.images for report in run.reports} == {manifest.images}
    of_chip = dict(zip((chip.id for chip in again.chips), again.reports, strict=True))
    assert [of_chip[chip.id].accuracy.correct for chip in manifest.chips] == [chip.correct for chip in manifest.chips]
    other = replace(names["setup"], calibration="mse")
    with pytest.raises(InputError, match=r"manifest\.json is of another setup \(calibration\): give the one it was"):
        efat.simulate(other, names["lot"], manifest="retrained/manifest.json")
    assert "<html" in Path("report.html").read_text()
    for shown in (names["lot"], run, names["table"], names["plan"], manifest, again):
        assert "\n" in str(shown), type(shown)
        assert "<t" in shown._repr_html_(), type(shown)
