"""Retraining for a chip of a lot: what is prepared, run and written, and that simulation gives the same accuracy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from efat import simulate
from efat.campaigns.campaign import Campaign
from efat.image_split import SplitRequest
from efat.inference.classified import measure_accuracy
from efat.records import as_json, content_of, replace
from efat.retraining.chip import ChipRetraining, PreparedChip, Retrained, retrain_chip
from efat.retraining.metrics import Metrics
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.lots.chips import Chip, write_lot
from training.data.classification import count_correct
from training.data.workloads import WORKLOADS
from training.layers.accelerator import Engine
from training.layers.deployment import read_deployed
from training.learning.recipe import Recipe

CONFIG = ArrayConfig(16, 16)
IMAGES = 40
RECIPE = Recipe(batch=16, learning_rate=0.02, seed=3)
ENGINES: tuple[Engine, ...] = ("cycle", "emulation")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are quicker with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lot(folder: Path, seed: int) -> Path:
    """Two chips with many faults, the first of which has fuses and a column that cannot be used."""
    model = FaultModel(0.04)
    faults = sample_faults(CONFIG, model, seed) | FaultMap.from_faults(
        CONFIG, [Fault(0, seed % 16, Site.ACCUMULATOR, 30, Kind.STUCK_AT_1)]
    )
    fuses = np.zeros((16, 16), np.bool_)
    fuses[seed % 13, seed % 11] = True
    write_lot("lot.h5", CONFIG, [Chip("bad", faults, fuses), Chip("other", sample_faults(CONFIG, model, seed + 1))])
    return Path("lot.h5")


def asked(lot: Path, mitigation: str = "fap+t", **changes: object) -> ChipRetraining:
    given: dict[str, object] = {"iterations": 3, "recipe": RECIPE, "images": IMAGES, **changes}
    return ChipRetraining(network="digits-cnn", lot=lot, chip="bad", mitigation=mitigation, **given)  # type: ignore[arg-type]


def prepared(lot: Path, mitigation: str = "fap+t", **changes: object) -> PreparedChip:
    return asked(lot, mitigation, **changes).prepare()


def written(found: Retrained) -> Path:
    """The file of its weights."""
    path = Path("weights.safetensors")
    path.write_bytes(found.weights)
    return path


@pytest.mark.parametrize("mitigation", ["fap", "fap+t", "fam+t", "none+t", "fap+t+gradual"])
def test_simulation_gives_the_accuracy_of_retraining(lot: Path, mitigation: str) -> None:
    found = prepared(lot, mitigation, learn_scales=mitigation == "fam+t")
    retrained = found.run()
    result, held_out = retrained.result, found.loaded.data.held_out
    images = held_out.images
    with torch.inference_mode():
        logits = result.network(images)
    assert measure_accuracy(logits.argmax(1), held_out.labels).value == result.accuracy
    weights = written(retrained)
    for engine in ENGINES:
        again = simulate("digits-cnn", lot, run=False, weights=weights, chips=["bad"], engine=engine, images=IMAGES)
        again.run()
        assert again.reports[0].accuracy.correct == result.evaluations[-1].correct
        with torch.inference_mode():
            assert torch.equal(again.on_chip(again.chips[0])[0](images), logits)
        assert again.reports[0].bypassed_pes == result.deployment.bypass.sum()
        assert again.other_chips() == []
        # Without faults and bypass, the weights that are left are all there are.
        if mitigation != "none+t":
            assert again.reports[0].changed_predictions == 0
            assert all(layer.outputs_changed == 0 for layer in again.reports[0].layers)


def test_chips_that_the_weights_are_not_for(lot: Path) -> None:
    found = prepared(lot)
    retrained = found.run()
    bypass, weights = retrained.result.deployment.bypass, written(retrained)
    chip = found.chip
    more = bypass.copy()
    more[tuple(np.argwhere(~bypass)[0])] = True
    # What is bypassed anyway may be bypassed by fuses or not: the chip computes the same.
    chips = [Chip("bare", chip.faults), Chip("blown", chip.faults, bypass), Chip("more", chip.faults, more)]
    write_lot("others.h5", CONFIG, [*chips, Chip("clean", FaultMap(CONFIG))])
    others = simulate("digits-cnn", Path("others.h5"), run=False, weights=weights, images=IMAGES)
    assert others.other_chips() == ["more", "clean"]
    others.engine = "emulation"
    others.run()
    correct = [report.accuracy.correct for report in others.reports]
    assert correct[0] == correct[1] == retrained.result.evaluations[-1].correct
    write_lot("large.h5", ArrayConfig(16, 17), [Chip("large", FaultMap(ArrayConfig(16, 17)))])
    with pytest.raises(InputError, match="array with cols=16, and this one has 17"):
        simulate("digits-cnn", Path("large.h5"), run=False, weights=weights)


def test_what_is_measured(lot: Path) -> None:
    found = prepared(lot, evaluate_at=(2, 1, 2))
    retrained = found.run()
    result, metrics = retrained.result, retrained.metrics.as_dict()
    assert [entry["iteration"] for entry in metrics["evaluations"]] == [0, 1, 2, 3]
    assert [entry["correct"] / IMAGES for entry in metrics["evaluations"]] == [
        evaluation.accuracy for evaluation in result.evaluations
    ]
    assert retrained.metrics.losses == tuple(result.losses)
    assert metrics["iterations"] == 3
    assert metrics["accuracy"]["before"]["correct"] == result.evaluations[0].correct
    assert metrics["accuracy"]["after"]["correct"] == result.evaluations[-1].correct
    plain = simulate("digits-cnn", lot, run=False, engine="emulation", images=IMAGES)
    plain.run()
    assert plain.float_accuracy is not None
    assert plain.fault_free_accuracy is not None
    assert metrics["accuracy"]["float"] == plain.float_accuracy.as_dict()
    assert metrics["accuracy"]["fault_free"] == plain.fault_free_accuracy.as_dict()
    # A layer's outputs are in order on the columns that can be used.
    usable = [column for column in range(16) if column not in found.chip.faults.unusable_columns()]
    pruned = total = 0
    for name, value in result.weights.items():
        if value.ndim >= 2:
            outputs, inputs = np.indices((len(value), value[0].numel()))
            columns = np.array(usable)[outputs % len(usable)]
            pruned += int(result.deployment.bypass[inputs % 16, columns].sum())
            total += value.numel()
            assert not value.flatten(1)[torch.from_numpy(result.deployment.bypass[inputs % 16, columns])].any(), name
    assert (metrics["weights_pruned"], metrics["weights_on_chip"]) == (pruned, total)
    assert pruned > 0
    assert metrics["bypassed_pes"] == result.deployment.bypass.sum()
    assert metrics["chip"]["bypassed_by_fuses"] == 1
    path = Path("metrics.json")
    path.write_bytes(content_of(retrained.metrics, "metrics.json"))
    assert as_json(Metrics.load(path)) == as_json(retrained.metrics)
    assert retrained.metrics.weights_sha256 == digest_of_file(written(retrained))
    genuine = path.read_text()
    damaged = genuine.replace('"reached_target": false', '"reached_target": true')
    after = replace(retrained.metrics.verified.after, correct=IMAGES + 1)
    impossible = replace(retrained.metrics, verified=replace(retrained.metrics.verified, after=after))
    path.write_text(damaged)
    with pytest.raises(
        InputError, match=r"metrics.json: sha256 is '\w+': expected \w+, so it was edited or is damaged"
    ):
        Metrics.load(path)
    with pytest.raises(InputError, match=r"verified: after: correct is 41: expected an integer of 0\.\.40"):
        content_of(replace(impossible, sha256=impossible.digest), "metrics.json")
    weights, deployment = read_deployed(written(retrained))
    assert all(torch.equal(value, result.weights[name]) for name, value in weights.items())
    assert deployment is not None
    assert deployment.about["accuracy"] == f"{result.evaluations[-1].correct}/{IMAGES}"
    assert (deployment.about["chip"], deployment.about["mitigation"]) == ("bad", "fap+t")


def test_a_target_that_is_reached_ends_it(lot: Path) -> None:
    found = prepared(lot, target_accuracy=0.0, images=None, split=SplitRequest(IMAGES))
    retrained = found.run()
    metrics = retrained.metrics.as_dict()
    assert metrics["reached_target"]
    assert (metrics["data"]["held_out_images"], metrics["data"]["verification_images"]) == (IMAGES, 360 - IMAGES)
    assert metrics["data"]["decided_by_them"]
    assert "verification images" in metrics["identity"]
    assert metrics["verified"]["after"]["correct"] == count_correct(retrained.result.network, found.loaded.verification)
    assert metrics["iterations"] == 0
    assert len(metrics["evaluations"]) == 1


def test_a_run_that_diverges_keeps_its_last_good_state(lot: Path) -> None:
    found = prepared(lot, iterations=6, evaluate_at=(1,), recipe=Recipe(batch=16, learning_rate=1e38))
    retrained = found.run()
    result, metrics = retrained.result, retrained.metrics.as_dict()
    assert metrics["diverged_at"] >= metrics["iterations"] == len(metrics["losses"])
    assert "diverged" in metrics["message"]
    weights = written(retrained)
    again = simulate("digits-cnn", lot, run=False, weights=weights, chips=["bad"], engine="emulation", images=IMAGES)
    again.run()
    assert again.reports[0].accuracy.correct == result.evaluations[-1].correct


def test_epochs_are_passes_over_the_training_images(lot: Path) -> None:
    per_epoch = (1797 - 360) // 16
    for epochs, iterations in ((1.5, round(1.5 * per_epoch)), (0.001, 1)):
        found = prepared(lot, iterations=None, epochs=epochs)
        assert (found.prepared.iterations, found.per_epoch) == (iterations, per_epoch)
    assert prepared(lot, "fap", iterations=None).prepared.iterations == 0
    assert prepared(lot, "fap", iterations=7).identity == prepared(lot, "fap", iterations=None).identity


def test_images_are_augmented_as_the_network_wants_them(lot: Path) -> None:
    assert prepared(lot).recipe.augmentation == WORKLOADS["digits-cnn"].augmentation
    plain = prepared(lot, augment=False)
    assert plain.recipe.augmentation.crop_padding == 0
    assert plain.identity != prepared(lot).identity


def test_weights_of_another_retraining_are_a_start(lot: Path) -> None:
    first = prepared(lot)
    second = prepared(lot, weights=written(first.run()), mitigation="fam+t")
    assert second.loaded.deployment is not None
    assert second.loaded.deployment.about["chip"] == "bad"
    assert second.identity["network"] != first.identity["network"]
    retrained_for = second.run().metrics.weights_retrained_for
    assert retrained_for is not None
    assert retrained_for["mitigation"] == "fap+t"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": None}, r"mitigation fap\+t retrains: say for how many iterations or epochs"),
        ({"epochs": 2.0}, "3 iterations and 2 epochs are both asked for: choose one"),
        ({"iterations": None, "epochs": float("nan")}, "epochs is nan: expected a finite number above 0"),
        ({"iterations": None, "epochs": 0.0}, "epochs is 0.0"),
        ({"evaluate_at": (2, 4)}, "accuracy is asked for after 4 of 3 iterations"),
        ({"images": 361}, r"images is 361: expected 1\.\.360"),
        ({"target_accuracy": 0.9, "images": 9}, "images that decide when it is reached cannot judge"),
        ({"split": SplitRequest(5)}, "test images decide nothing without a target accuracy"),
        ({"target_accuracy": float("nan"), "images": None}, "target accuracy is nan"),
        ({"chip": "flipped"}, "chip flipped has FLIP faults"),
        ({"chip": "useless"}, "none of the 16 columns of the array can be used"),
        ({"chip": "baad"}, "no chip 'baad' among its 3 chips; did you mean bad"),
        ({"mitigation": "fap+x"}, r"mitigation 'fap\+x' is unknown"),
        ({"network": "alexnet"}, "network 'alexnet' is unknown"),
        ({"network": "my_untrainable:build", "augment": True}, "has no augmentation of its own"),
        (
            {"network": "my_untrainable:build"},
            "fails to learn from a batch of 1 images: ValueError: Expected more than",
        ),
        ({"network": "my_untrainable:frozen"}, "fails to learn from a batch of 1 images: RuntimeError: element 0 of"),
        ({"network": "my_untrainable:narrow"}, "my_untrainable:narrow has 5 classes and .* has 10"),
    ],
)
def test_what_cannot_work_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    flip = FaultMap.from_faults(CONFIG, [Fault(1, 1, Site.PSUM, 3, Kind.FLIP, cycle=7)])
    columns = [Fault(0, column, Site.ACCUMULATOR, 3, Kind.STUCK_AT_1) for column in range(16)]
    write_lot(
        "lot.h5",
        CONFIG,
        [Chip("bad", FaultMap(CONFIG)), Chip("flipped", flip), Chip("useless", FaultMap.from_faults(CONFIG, columns))],
    )
    Path("my_untrainable.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))\n"
        "def frozen():\n    return build()[:2].requires_grad_(False)\n"
        "def narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    given: dict[str, object] = {
        "network": "digits-cnn", "chip": "bad", "mitigation": "fap+t", "iterations": 3, "recipe": Recipe(batch=1),
        "data": Path("digits"), **changes,
    }  # fmt: skip
    with pytest.raises((InputError, ValueError), match=message) as caught:
        ChipRetraining(lot=Path("lot.h5"), **given).prepare()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_that_are_read_are_never_replaced(lot: Path) -> None:
    out = Path("out")
    out.mkdir()
    weights = out / "weights.safetensors"
    weights.write_bytes(b"precious")
    with pytest.raises(InputError, match="is a file to read: choose another folder"):
        retrain_chip(asked(lot, weights=Path("out/../out/weights.safetensors")), out, force=True)
    with pytest.raises(InputError, match=r"nowhere: no such folder to make out in; make it first"):
        retrain_chip(asked(lot), "nowhere/out")
    with pytest.raises(InputError, match="is not a folder"):
        retrain_chip(asked(lot), weights)
    (out / "curve.png").mkdir()
    with pytest.raises(InputError, match="is not a regular file"):
        retrain_chip(asked(lot), out, force=True)
    assert weights.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["weights.safetensors", "curve.png", "metrics.json", "checkpoint.pt"])
def test_files_of_somebody_else_are_kept_unless_forced(lot: Path, name: str) -> None:
    out = Path("out")
    out.mkdir()
    (out / name).write_bytes(b"precious")
    (out / "notes.txt").write_bytes(b"mine")
    request = asked(lot, "fap", iterations=None)
    with pytest.raises(InputError, match=rf"out/{name} .* \(--force starts over\)") as caught:
        retrain_chip(request, out)
    assert "\n" not in str(caught.value)
    assert (out / name).read_bytes() == b"precious"
    retrain_chip(request, out, force=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "campaign.json", "curve.png", "metrics.json", "notes.txt", "units", "weights.safetensors",
    ]  # fmt: skip
    assert Metrics.load(out / "metrics.json").weights_sha256 == digest_of_file(out / "weights.safetensors")
    # What is not of this at all is never deleted.
    (out / "campaign.json").unlink()
    Campaign(out, "something else", {}, among_others=True)
    with pytest.raises(InputError, match="is a campaign of kind 'something else'"):
        retrain_chip(request, out, force=True)
