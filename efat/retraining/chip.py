"""A network retrained for one chip of a lot: everything `efat retrain-chip` loads, checks, runs and writes."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from efat.image_split import SplitRequest
from efat.inference.classified import Accuracy
from efat.retraining.folder import ResultFolder
from efat.retraining.metrics import about, metrics_of, write_metrics
from efat.setup import augmentation_of, load_training, try_a_step
from simulator.errors import InputError
from simulator.files import replaced
from simulator.lots.chips import Chip, ChipLot
from training.calibration import Method
from training.data.batches import Augmentation, Batches
from training.data.classification import count_correct
from training.data.datasets import Dataset, Normalization
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.deployment import Deployment, deployed_bytes
from training.learning.fit import Moment
from training.learning.mitigations.combination import Strategy
from training.learning.recipe import Recipe
from training.learning.retrain import PreparedRetraining, RetrainDivergedError, RetrainResult, TrainingData


@dataclass
class Retraining:
    """A network on a chip, ready to be retrained for it, with what was measured once it is.

    Attributes:
        network_name: name of the network.
        weights: file of the weights to start from; None for those that come with the network.
        source: folder or name of the data; None for what comes with the network.
        lot: file of chips.
        chip: the chip.
        mitigation: name of the strategy.
        recipe: how it learns.
        epochs: passes over the training images that were asked for; None if iterations were.
        per_epoch: iterations in one pass.
        evaluate_at: iterations after which accuracy is measured, beside the first and the last.
        target_accuracy: at which it ends early; None for never.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
        images: number of held-out images that was asked for; None for all.
        split: which test images decide when it ends, and which only judge; None if nothing is decided by any.
        normalization: what was done to pixels of 0..1 instead of what the network's name implies; None for nothing.
        network: the float network to start from, in evaluation mode.
        data: images to learn from and to measure on while it runs.
        verification: images that judge, which decided nothing.
        started_from: how the weights to start from sit on a chip, if they were retrained for one.
        prepared: the retraining.
        float_accuracy: of the float network; None before `run`.
        fault_free_accuracy: of the network quantised, on a fault-free array, before retraining; None before `run`.
        verified: accuracy in the end on the verification images, and that without faults before retraining; None before
            `run`.
        result: what retraining gave; after divergence its last good state. None before `run`.
        diverged: how it diverged; None if it did not.
        seconds: that `run` took.
        from_iteration: iterations that were done before `run`, by a run that was interrupted.
    """

    network_name: str
    weights: Path | None
    source: Path | None
    lot: Path
    chip: Chip
    mitigation: str
    recipe: Recipe
    epochs: float | None
    per_epoch: int
    evaluate_at: tuple[int, ...]
    target_accuracy: float | None
    calibration: Method
    learn_scales: bool
    images: int | None
    split: SplitRequest | None
    normalization: Normalization | None
    network: nn.Module
    data: TrainingData
    verification: Dataset
    started_from: Deployment | None
    prepared: PreparedRetraining
    float_accuracy: Accuracy | None = None
    fault_free_accuracy: Accuracy | None = None
    verified: tuple[Accuracy, Accuracy] | None = None
    result: RetrainResult | None = None
    diverged: RetrainDivergedError | None = None
    seconds: float = 0.0
    from_iteration: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """What decides the result; see `PreparedRetraining`."""
        found = dict(self.prepared.identity)
        return found if self.split is None else {**found, "verification images": self.verification.digest}

    def run(
        self, progress: Callable[[Moment], None] | None = None, *, checkpoint: Path | None = None, done: int = 0
    ) -> RetrainResult:
        """Measure the network without faults, and retrain it for its chip; once only.

        Args:
            progress: called after each iteration.
            checkpoint: file to keep the state in while it runs; if it is there, retraining goes on from it.
            done: iterations that are done in `checkpoint`.

        Returns:
            What retraining gave. If it diverged, the last good state, and `diverged` says how.
        """
        begun = time.perf_counter()
        self.from_iteration = done
        held_out = self.data.held_out
        config = self.chip.faults.config
        # The layers of a conversion are taken over by what learns: this one stays as the network was.
        fault_free = convert(
            self.network,
            config,
            (),
            accelerator=Accelerator.fault_free(config),
            activation_scales=self.prepared.deployment.activation_scales,
        )
        self.float_accuracy = Accuracy(count_correct(self.network, held_out), len(held_out))
        self.fault_free_accuracy = Accuracy(count_correct(fault_free, held_out), len(held_out))
        try:
            self.result = self.prepared.run(checkpoint, progress)
        except RetrainDivergedError as error:
            self.diverged = error
            self.result = error.result
        judged = self.verification
        after, before = (
            (self.result.evaluations[-1].correct, self.fault_free_accuracy.correct)
            if self.split is None
            else (count_correct(self.result.network, judged), count_correct(fault_free, judged))
        )
        self.verified = Accuracy(after, len(judged)), Accuracy(before, len(judged))
        self.seconds = time.perf_counter() - begun
        return self.result

    def write(self, folder: ResultFolder) -> str | None:
        """Write weights, a picture of the training and everything measured, each in one piece and in this order.

        Args:
            folder: of this retraining.

        Returns:
            What was left out, and why; None if nothing was.

        Raises:
            ValueError: it has not run.
        """
        if self.result is None:
            raise ValueError("nothing was retrained: call run() first")
        metrics = metrics_of(self)
        weights = deployed_bytes(self.result.weights, self.result.deployment, about(metrics))
        with replaced(folder.weights) as beside:
            beside.write_bytes(weights)
        left_out = None
        try:
            from efat.retraining.curve import draw_curve

            draw_curve(metrics, folder.curve)
        except ImportError as error:
            left_out = f"{folder.curve} needs {error.name}, which is not installed: pip install 'efat[plots]'"
        write_metrics(folder.metrics, metrics, hashlib.sha256(weights).hexdigest())
        return left_out


def prepare(
    *,
    network: str,
    lot: Path,
    chip: str,
    mitigation: str,
    weights: Path | None = None,
    data: Path | None = None,
    iterations: int | None = None,
    epochs: float | None = None,
    recipe: Recipe | None = None,
    augment: Augmentation | bool | None = None,
    evaluate_at: Sequence[int] = (),
    target_accuracy: float | None = None,
    calibration: Method = "max",
    learn_scales: bool = False,
    images: int | None = None,
    split: SplitRequest | None = None,
    normalization: Normalization | None = None,
) -> Retraining:
    """Load and check everything a retraining needs, before anything runs.

    Args:
        network: a name in `training.data.workloads.WORKLOADS`, or `package.module:function`.
        lot: HDF5 file of chips.
        chip: id of the chip in it.
        mitigation: what is done about its broken PEs: see `Strategy.named`.
        weights: file of the weights to start from; None for those that come with the network. How weights that were
            retrained already sit on their chip is not taken over.
        data: folder of images; None for those that come with the network.
        iterations: mini-batches to learn from.
        epochs: passes over the training images instead.
        recipe: how it learns, but for its augmentation; None for a `Recipe()` of defaults.
        augment: how training images are augmented, or whether they are as the network's are; None to do so if it has an
            augmentation.
        evaluate_at: iterations after which accuracy is measured, beside before the first and after the last.
        target_accuracy: retraining ends at the first evaluation that reaches it; None for never.
        calibration: how the activations' scales are chosen.
        learn_scales: whether they are learned from there.
        images: number of held-out test images; None for all. Only without a target, as then none of them decides.
        split: with a target, which test images decide when it is reached, and which judge; None for the default.
        normalization: as for `training.data.workloads.load_workload`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: something is of the wrong kind, does not fit or is unknown; one line says what.
    """
    strategy = Strategy.named(mitigation)
    _check_length(strategy, mitigation, iterations, epochs)
    recipe = replace(Recipe() if recipe is None else recipe, augmentation=augmentation_of(network, augment))
    with ChipLot(lot) as opened:
        chosen = opened[chip]
    if strategy.retrains and target_accuracy is not None:
        if images is not None:
            raise InputError(
                f"images is {images} and target accuracy {target_accuracy}: the images that decide when it is reached "
                "cannot judge; say how many decide with tune_images"
            )
        split = SplitRequest() if split is None else split
    elif split is not None:
        raise InputError("test images decide nothing without a target accuracy: all of them judge; leave out the split")
    loaded = load_training(network, weights, data, split, images, normalization)
    training_data = loaded.data
    batches = Batches(training_data.train, recipe.batch, recipe.seed, recipe.augmentation)
    if epochs is not None:
        iterations = max(1, round(epochs * batches.per_epoch))
    iterations = iterations if iterations is not None and strategy.retrains else 0
    late = [stop for stop in evaluate_at if stop > iterations]
    if late and strategy.retrains:
        raise InputError(f"accuracy is asked for after {late[0]} of {iterations} iterations: expected 0..{iterations}")
    if strategy.retrains:
        try_a_step(loaded.network, batches, recipe, iterations)
    prepared = PreparedRetraining(
        loaded.network,
        chosen,
        training_data,
        iterations,
        strategy=strategy,
        recipe=recipe,
        evaluate_at=evaluate_at,
        target_accuracy=target_accuracy,
        calibration=calibration,
        learn_scales=learn_scales,
    )
    return Retraining(
        network_name=network,
        weights=weights,
        source=data,
        lot=lot,
        chip=chosen,
        mitigation=mitigation.lower(),
        recipe=recipe,
        epochs=epochs if strategy.retrains else None,
        per_epoch=batches.per_epoch,
        evaluate_at=tuple(evaluate_at),
        target_accuracy=target_accuracy,
        calibration=calibration,
        learn_scales=learn_scales,
        images=images,
        split=split,
        normalization=normalization,
        network=loaded.network,
        data=training_data,
        verification=loaded.verification,
        started_from=loaded.deployment,
        prepared=prepared,
    )


def _check_length(strategy: Strategy, mitigation: str, iterations: int | None, epochs: float | None) -> None:
    if iterations is not None and epochs is not None:
        raise InputError(f"{iterations} iterations and {epochs:g} epochs are both asked for: choose one")
    if strategy.retrains and iterations is None and epochs is None:
        raise InputError(f"mitigation {mitigation} retrains: say for how many iterations or epochs")
    if epochs is not None and not (math.isfinite(epochs) and epochs > 0):
        raise InputError(f"epochs is {epochs}: expected a finite number above 0")
