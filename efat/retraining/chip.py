"""A network retrained for one chip of a lot: a campaign of one unit, with a checkpoint while it runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from efat.campaigns.campaign import Campaign, Notes, OtherInputsError, Outcome, Unit, check_folder, warned
from efat.campaigns.workers import with_all_threads
from efat.image_split import SplitRequest
from efat.lot import Lot
from efat.records import content_of
from efat.records import replace as changed
from efat.retraining.metrics import (
    Accuracies,
    Budget,
    ChipOf,
    DataOf,
    EvaluationOf,
    Machine,
    MeasuredAccuracy,
    Metrics,
    Verified,
    Wall,
)
from efat.setup import Loaded, OwnData, OwnNetwork, load_training, try_a_step
from simulator.errors import InputError
from simulator.lots.chips import Chip, ChipLot
from training.calibration import Method
from training.data.batches import Augmentation, Batches
from training.data.classification import count_correct
from training.data.datasets import Normalization
from training.data.workloads import augmentation_of
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import deployed_bytes
from training.learning.fit import TrainingProgress, read_state
from training.learning.mitigations.combination import Mitigations
from training.learning.recipe import Recipe
from training.learning.retrain import PreparedRetraining, RetrainDivergedError, RetrainResult

KIND = "retraining of a chip"
WEIGHTS, METRICS, CURVE, _STATE = _FILES = ("weights.safetensors", "metrics.json", "curve.png", "checkpoint.pt")
"""In the folder; the state is there in folders of older versions, and is one of its unit's since."""

_UNIT = "chip"

Progress = Callable[[int, int, TrainingProgress | None], None]
"""Called with the iterations that are done, and that there are at most, before the first and after each."""


@dataclass(frozen=True, kw_only=True)
class ChipRetraining:
    """What to retrain for which chip, and how. Its constants name files in the folder of results.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, `package.module:function`, or a `torch.nn.Module`.
        lot: HDF5 file of chips.
        chip: id of the chip in it.
        mitigation: what is done about its broken PEs: see `Mitigations.named`.
        weights: file of the weights to start from; None for those that come with the network. How weights that were
            retrained already sit on their chip is not taken over.
        data: what `training.data.datasets.load_data` reads; None for what comes with the network. Or a pair of training
            and test images, as for `efat.setup.OwnData`.
        iterations: mini-batches to learn from.
        epochs: passes over the training images instead.
        recipe: how it learns, but for its augmentation.
        augment: how training images are augmented, or whether they are as the network's are; None to do so if it has an
            augmentation.
        evaluate_at: iterations after which accuracy is measured, beside before the first and after the last.
        target_accuracy: retraining ends at the first evaluation that reaches it; None for never.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
        images: number of held-out test images; None for all. Only without a target, as then none of them decides.
        split: with a target, which test images decide when it is reached, and which judge; None for the default.
        normalization: as for `training.data.workloads.load_workload`.
    """

    network: str | nn.Module | OwnNetwork
    lot: Path | Lot | str
    chip: str
    mitigation: str
    weights: Path | str | None = None
    data: Path | str | OwnData | tuple[object, object] | None = None
    iterations: int | None = None
    epochs: float | None = None
    recipe: Recipe = field(default_factory=Recipe)
    augment: Augmentation | bool | None = None
    evaluate_at: Sequence[int] = ()
    target_accuracy: float | None = None
    calibration: Method = "max"
    learn_scales: bool = False
    images: int | None = None
    split: SplitRequest | None = None
    normalization: Normalization | None = None

    WEIGHTS: ClassVar[str] = WEIGHTS
    METRICS: ClassVar[str] = METRICS
    CURVE: ClassVar[str] = CURVE
    CHECKPOINT: ClassVar[str] = f"units/{_UNIT}.{_STATE}"

    def __post_init__(self) -> None:
        network, data = self.network, self.data
        own = {
            "lot": Path(self.lot),
            "network": OwnNetwork(network) if isinstance(network, nn.Module) else network,
            "weights": None if self.weights is None else Path(self.weights),
            "data": OwnData(*data) if isinstance(data, tuple) else Path(data) if isinstance(data, str) else data,
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def prepare(self) -> PreparedChip:
        """Load and check everything it needs, before anything runs.

        Raises:
            FileNotFoundError: a file is not there.
            InputError: something is of the wrong kind, does not fit or is unknown; one line says what.
        """
        strategy = Mitigations.named(self.mitigation)
        self._check_length(strategy)
        recipe = replace(self.recipe, augmentation=augmentation_of(str(self.network), self.augment))
        with ChipLot(Path(self.lot)) as opened:
            chip = opened[self.chip]
        split = self._split(strategy)
        network = self.network.module if isinstance(self.network, OwnNetwork) else self.network
        data = self.data.pair if isinstance(self.data, OwnData) else self.data
        loaded = load_training(network, self.weights, data, split, self.images, self.normalization)  # type: ignore[arg-type]
        batches = Batches(loaded.data.train, recipe.batch, recipe.seed, recipe.augmentation)
        wanted = self.iterations if self.epochs is None else max(1, round(self.epochs * batches.per_epoch))
        iterations = wanted if wanted is not None and strategy.retrains else 0
        if strategy.retrains:
            late = next((stop for stop in self.evaluate_at if stop > iterations), None)
            if late is not None:
                raise InputError(
                    f"accuracy is asked for after {late} of {iterations} iterations: expected 0..{iterations}"
                )
            try_a_step(loaded.network, batches, recipe, iterations)
        prepared = PreparedRetraining(
            loaded.network,
            chip,
            loaded.data,
            iterations,
            mitigations=strategy,
            recipe=recipe,
            evaluate_at=self.evaluate_at,
            target_accuracy=self.target_accuracy,
            calibration=self.calibration,
            learn_scales=self.learn_scales,
        )
        return PreparedChip(self, chip, recipe, batches.per_epoch, split, loaded, prepared)

    def _check_length(self, strategy: Mitigations) -> None:
        iterations, epochs = self.iterations, self.epochs
        if iterations is not None and epochs is not None:
            raise InputError(f"{iterations} iterations and {epochs:g} epochs are both asked for: choose one")
        if strategy.retrains and iterations is None and epochs is None:
            raise InputError(f"mitigation {self.mitigation} retrains: say for how many iterations or epochs")
        if epochs is not None and not (math.isfinite(epochs) and epochs > 0):
            raise InputError(f"epochs is {epochs}: expected a finite number above 0")

    def _split(self, strategy: Mitigations) -> SplitRequest | None:
        """Which images decide when it ends; None if none do."""
        if strategy.retrains and self.target_accuracy is not None:
            if self.images is not None:
                raise InputError(
                    f"images is {self.images} and target accuracy {self.target_accuracy}: the images that decide when "
                    "it is reached cannot judge; say how many decide with tune_images"
                )
            return SplitRequest() if self.split is None else self.split
        if self.split is not None:
            raise InputError(
                "test images decide nothing without a target accuracy: all of them judge; leave out the split"
            )
        return None


@dataclass(frozen=True, eq=False)
class PreparedChip:
    """A network on a chip, loaded, checked and ready to be retrained for it.

    `per_epoch` are the iterations in a pass, and `split` says which test images decide when it ends, None if none do.
    """

    asked: ChipRetraining
    chip: Chip
    recipe: Recipe
    per_epoch: int
    split: SplitRequest | None
    loaded: Loaded
    prepared: PreparedRetraining

    @property
    def identity(self) -> dict[str, str]:
        """What decides the result; see `PreparedRetraining`."""
        found = dict(self.prepared.identity)
        return found if self.split is None else {**found, "verification images": self.loaded.verification.digest}

    def run(self, checkpoint: Path | None = None, progress: Progress | None = None, done: int = 0) -> Retrained:
        """Measure the network without faults, and retrain it for its chip; once only.

        The state is kept in the `checkpoint` while it runs. If it is there, with `done` iterations, retraining goes on
        from it. If it diverges, the last good state is what it gives.
        """
        begun = time.perf_counter()
        held_out, judged, most = self.loaded.data.held_out, self.loaded.verification, self.prepared.iterations
        if progress is not None:
            progress(done, most, None)
        config = self.chip.faults.config
        # The layers of a conversion are taken over by what learns: this one stays as the network was.
        fault_free = convert(
            self.loaded.network,
            config,
            (),
            accelerator=Accelerator.fault_free(config),
            activation_scales=self.prepared.deployment.activation_scales,
        )
        in_float, without_faults = count_correct(self.loaded.network, held_out), count_correct(fault_free, held_out)
        diverged: RetrainDivergedError | None = None
        try:
            result = self.prepared.run(
                checkpoint, None if progress is None else lambda moment: progress(moment.iteration, most, moment)
            )
        except RetrainDivergedError as error:
            diverged, result = error, error.result
        first, last = result.evaluations[0], result.evaluations[-1]
        after, before = last.correct, without_faults
        if self.split is not None:
            after, before = count_correct(result.network, judged), count_correct(fault_free, judged)
        accuracy = Accuracies(
            in_float=MeasuredAccuracy.of(in_float, len(held_out)),
            fault_free=MeasuredAccuracy.of(without_faults, len(held_out)),
            before=MeasuredAccuracy.of(first.correct, first.images),
            after=MeasuredAccuracy.of(last.correct, last.images),
        )
        verified = Verified(MeasuredAccuracy.of(before, len(judged)), MeasuredAccuracy.of(after, len(judged)))
        wall = Wall(time.perf_counter() - begun, done)
        return self._retrained(result, diverged, accuracy, verified, wall)

    def _retrained(
        self,
        result: RetrainResult,
        diverged: RetrainDivergedError | None,
        accuracy: Accuracies,
        verified: Verified,
        wall: Wall,
    ) -> Retrained:
        """The weights, and everything that was measured."""
        asked, chip, data = self.asked, self.chip, self.loaded.data
        bypass, iterations = result.deployment.bypass, len(result.losses)
        layers = quantized_layers(result.network).values()
        acting = [kept for layer in layers if (kept := layer.acting(bypass)) is not None]
        versions = {name: version(name) for name in ("efat", "torch", "numpy")}
        started_from = self.loaded.deployment
        about = {
            "network": str(asked.network),
            "data": data.held_out.name,
            "chip": chip.id,
            "chip_digest": chip.faults.digest(),
            "mitigation": asked.mitigation.lower(),
            "iterations": str(iterations),
            "accuracy": f"{verified.after.correct}/{len(self.loaded.verification)}",
            "program": f"efat {versions['efat']}",
            "run": hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest(),
        }
        weights = deployed_bytes(result.weights, result.deployment, about)
        metrics = Metrics(
            identity=self.identity,
            network=str(asked.network),
            weights=_text(asked.weights),
            weights_retrained_for=None if started_from is None else dict(started_from.about),
            data=DataOf(
                name=data.held_out.name,
                source=_text(asked.data),
                normalization=_text(asked.normalization),
                classes=data.held_out.classes,
                training_images=len(data.train),
                held_out_images=len(data.held_out),
                decided_by_them=self.split is not None,
                verification_images=len(self.loaded.verification),
            ),
            lot=str(asked.lot),
            chip=ChipOf(
                id=chip.id,
                digest=chip.faults.digest(),
                array=chip.faults.config.record,
                faults=chip.faults.summary(),
                bypassed_by_fuses=chip.bypassed_by_fuses,
            ),
            mitigation=asked.mitigation.lower(),
            recipe=self.recipe,
            calibration=asked.calibration,
            learn_scales=asked.learn_scales,
            budget=Budget(
                iterations=self.prepared.iterations,
                epochs=float(asked.epochs) if asked.epochs is not None and self.prepared.iterations else None,
                iterations_per_epoch=self.per_epoch,
                evaluate_at=tuple(asked.evaluate_at),
                target_accuracy=None if asked.target_accuracy is None else float(asked.target_accuracy),
            ),
            bypassed_pes=int(bypass.sum()),
            placed_layers=len(result.deployment.placements),
            weights_on_chip=sum(layer.weight.numel() for layer in layers),
            weights_pruned=sum(int((~kept).sum()) for kept in acting),
            accuracy=accuracy,
            verified=verified,
            iterations=iterations,
            reached_target=result.reached_target,
            diverged_at=None if diverged is None else diverged.iteration,
            message=_text(diverged),
            evaluations=tuple(EvaluationOf(**asdict(found), accuracy=found.accuracy) for found in result.evaluations),
            losses=tuple(result.losses),
            wall=wall,
            threads=torch.get_num_threads(),
            versions={"python": platform.python_version(), **versions},
            machine=Machine(platform.platform(), platform.machine(), os.cpu_count()),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        return Retrained(result, weights, changed(metrics, sha256=metrics.digest))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True, eq=False)
class Retrained:
    """What retraining for a chip gave, the content of the file of weights, and everything that was measured."""

    result: RetrainResult
    weights: bytes
    metrics: Metrics


def retrain_chip(
    retraining: ChipRetraining,
    folder: Path | str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    notes: Notes = warned,
) -> Metrics:
    """Retrain a network for one chip, and write weights, a picture of the training and everything measured.

    What was interrupted is gone on with, to the same bytes with the same number of threads. What is done is not run
    again; `progress` is then not called.

    Args:
        retraining: what to retrain for which chip, and how.
        folder: for the results; made if it is not there.
        force: start over in a folder that has other results.
        progress: called from time to time.
        notes: told of files that are damaged and made again, and of what is left out.

    Returns:
        Everything that was measured, as in `metrics.json`. If retraining diverged, `message` says how, and the rest is
        of the last good state.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown; or the folder has other results.
    """
    folder = Path(folder)
    given = (retraining.lot, retraining.weights, retraining.data)
    _check_files(folder, [each for each in given if isinstance(each, Path)])
    prepared = retraining.prepare()
    campaign = _campaign(folder, prepared.identity, force, notes)
    checkpoint = folder / retraining.CHECKPOINT

    def work(_: object) -> Outcome:
        done = _iterations_done(checkpoint, prepared.prepared.identity, notes)
        retrained = prepared.run(checkpoint, progress, done)
        return Outcome({}, {WEIGHTS: retrained.weights, METRICS: content_of(retrained.metrics, METRICS)})

    campaign.run([Unit(_UNIT, None)], work, with_all_threads)
    for name in (WEIGHTS, METRICS):
        campaign.export(_UNIT, name, name)
    metrics = Metrics.load(folder / METRICS)
    if not (folder / CURVE).exists():
        from efat.figures.learning_curve import draw_curve

        title = f"{metrics.network} on {metrics.chip.id}, {metrics.mitigation}: {metrics.accuracy.after.accuracy:.1%}"
        found = [(each.iteration, each.accuracy) for each in metrics.evaluations]
        draw_curve(folder / CURVE, title, metrics.losses, found, metrics.accuracy.fault_free.accuracy)
    # What a run that was killed has left half written goes, too.
    halves = [path for name in _FILES for path in folder.glob(f".{name}.*")]
    for path in [checkpoint, *folder.glob("units/.*"), *halves]:
        path.unlink(missing_ok=True)
    return metrics


def _check_files(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder that cannot be written into, or where a file that is read would be replaced."""
    check_folder(folder)
    for path in (folder / name for name in _FILES):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file: choose another folder")
        if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
            raise InputError(f"{path} is a file to read: choose another folder to write into")


def _campaign(folder: Path, identity: Mapping[str, str], force: bool, notes: Notes) -> Campaign:
    """The campaign in a folder; forced, without what is done there, but with the checkpoint of this very retraining."""
    begun = (folder / "campaign.json").exists()
    strangers = [] if begun else [path for name in _FILES if (path := folder / name).exists()]
    if strangers and not force:
        raise InputError(
            f"{strangers[0]} is there already, and of another program: choose another folder (--force starts over)"
        )
    try:
        campaign = Campaign(folder, KIND, identity, notes, among_others=True)
        done = bool(strangers) or campaign.there(_UNIT) is not None
    except OtherInputsError as error:
        if not force:
            raise InputError(f"{error} (--force starts over)") from None
        done = True
    if not (force and done):
        return campaign
    for path in [*(folder / name for name in (*_FILES, "campaign.json")), *folder.glob(f"units/{_UNIT}.*")]:
        path.unlink(missing_ok=True)
    return Campaign(folder, KIND, identity, notes, among_others=True)


def _iterations_done(checkpoint: Path, identity: Mapping[str, str], notes: Notes) -> int:
    if not checkpoint.exists():
        return 0
    try:
        return len(read_state(checkpoint, identity).losses)
    except InputError:
        notes(f"{checkpoint} is damaged: done again from the start")
        checkpoint.unlink()
        return 0
