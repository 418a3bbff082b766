"""Fault-aware retraining: from a network and a chip to weights that work on that chip, and their accuracy on it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.calibration import Method
from training.data.batches import Batches
from training.data.datasets import Dataset
from training.layers.accelerator import Accelerator
from training.layers.convert import Calibration, convert
from training.layers.deployment import Deployment
from training.layers.trainable import TrainableLayer, deployed, move, trainable, trainable_layers
from training.learning.fit import DivergedError, Evaluation, Hooks, Trained, TrainingProgress, TrainingState, fit
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.mitigation import TrainingStep
from training.learning.recipe import Recipe

Pruned = Mapping[str, BoolArray]
"""Weights that are pruned, by the layer's name: bool [outputs, weights of an output], as
`training.layers.placement.Placement.at_weights` gives them."""


class ChipHooks(Hooks):
    """Puts each step on the chip it is for, and holds the weights at bypassed PEs at zero."""

    def __init__(
        self,
        model: nn.Module,
        chip: Accelerator,
        deployment: Deployment,
        mitigations: Mitigations,
        budget: TrainingStep,
        always_kept: Mapping[str, Tensor],
    ) -> None:
        """Put the model on its chip and prune it.

        Args:
            model: from `trainable`.
            chip: the chip as deployed.
            deployment: what is bypassed, and where operands sit.
            mitigations: say which chip a step is for.
            budget: the first step.
            always_kept: weights that are not pruned on any chip, by layer, bool of the shape of its weights; layers
                that are not named keep all of theirs.
        """
        self._model = model
        self._chip = chip
        self._deployment = deployment
        self._mitigations = mitigations.in_turn
        self._budget = budget
        self._always_kept = always_kept
        self._present: Accelerator | None = None
        self._held: list[tuple[TrainableLayer, Tensor]] = []
        self._holds_anew = False
        self._unpruned: list[tuple[TrainableLayer, Tensor, Tensor]] = []
        layers = trainable_layers(model)
        for name, kept in always_kept.items():
            # As for weights at bypassed PEs: what would move them is zero, whatever the optimiser.
            layers[name].weight.register_hook(kept.mul)  # type: ignore[no-untyped-call]
        self.before_step(0)

    def before_step(self, iteration: int) -> None:
        """Put the model on the chip that the step is for, and prune what that chip cannot hold."""
        accelerator = self._chip
        for mitigation in self._mitigations:
            accelerator = mitigation.chip_for(replace(self._budget, iteration=iteration), accelerator)
        self._on(accelerator)
        if self._holds_anew:
            self._hold()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set weights at bypassed PEs to zero again; their gradients are zero, so momentum stays so, too."""
        self._hold()
        if self._holds_anew:
            for layer, kept in self._held:
                for value in optimizer.state.get(layer.weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                        value.mul_(kept)
            self._holds_anew = False

    def before_evaluation(self) -> None:
        """Put the model on its chip, and prune all that sits on bypassed PEs, whatever the steps have come to."""
        self._on(self._chip)
        self._unpruned = [(layer, kept, layer.weight.detach().clone()) for layer, kept in self._held]
        self._hold()

    def after_evaluation(self) -> None:
        """Take back what was pruned."""
        for layer, kept, weight in self._unpruned:
            layer.weight.data.copy_(torch.where(kept, layer.weight.data, weight))
        self._unpruned = []

    def _hold(self) -> None:
        for layer, kept in self._held:
            layer.weight.data.mul_(kept)

    def _on(self, accelerator: Accelerator) -> None:
        if self._present is not None and _are_alike(accelerator, self._present):
            return
        self._present = accelerator
        move(self._model, accelerator, self._deployment.placements)
        # PEs that are bypassed for one step only, as hardening does, keep their weights.
        bypass = self._deployment.bypass if accelerator.bypass is None else self._deployment.bypass & accelerator.bypass
        self._held = []
        for name, layer in trainable_layers(self._model).items():
            kept, always = layer.acting(bypass), self._always_kept.get(name)
            if kept is not None and always is not None:
                kept = kept & always
            elif kept is None:
                kept = always
            if kept is not None:
                self._held.append((layer, kept))
        self._holds_anew = True


def _are_alike(one: Accelerator, other: Accelerator) -> bool:
    """Whether two chips compute the same."""
    if one is other:
        return True
    if one.bypass is None or other.bypass is None:
        return False
    return one.faults == other.faults and bool((one.bypass == other.bypass).all()) and one.engine == other.engine


def kept_weights(model: nn.Module, pruned: Pruned) -> dict[str, Tensor]:
    """Find the weights that are kept whatever the chip.

    Args:
        model: from `trainable`.
        pruned: weights that are pruned.

    Returns:
        Bool of the shape of the weights, of each layer that has any to prune.

    Raises:
        InputError: a layer that is not there, or a mask that does not fit.
    """
    layers = trainable_layers(model)
    kept = {}
    for name, zeros in pruned.items():
        if name not in layers:
            raise InputError(f"weights of a layer {name!r} are to be pruned, and the network has none: name another")
        weight = layers[name].weight
        expected = (len(weight), weight[0].numel())
        if zeros.dtype != np.bool_ or zeros.shape != expected:
            raise InputError(
                f"weights of layer {name!r} to be pruned are {zeros.dtype} {zeros.shape}: expected bool {expected}"
            )
        kept[name] = torch.from_numpy(~zeros).view(weight.shape).to(weight.device)
    return kept


def digest_of_pruned(pruned: Pruned) -> str:
    """SHA-256 (hex) of layers and masks."""
    found = hashlib.sha256()
    for name in sorted(pruned):
        found.update(f"{name} {pruned[name].shape}\n".encode())
        found.update(np.packbits(pruned[name]).tobytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a network learns from, and what it is measured on.

    Args:
        train: images to learn from.
        held_out: images that are not learned from, to measure accuracy on.
        calibration: batches that activations' scales are chosen on.
    """

    train: Dataset
    held_out: Dataset
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class RetrainResult:
    """A network retrained for a chip.

    Attributes:
        network: quantised, on the chip, in evaluation mode.
        weights: parameters and buffers of the float network, by name.
        deployment: how they sit on the chip.
        evaluations: accuracy on the chip on the way; the first is before retraining, the last that of `network`.
        losses: of the mini-batches.
        reached_target: whether retraining ended early because the target accuracy was reached.
    """

    network: nn.Module
    weights: dict[str, Tensor]
    deployment: Deployment
    evaluations: list[Evaluation]
    losses: list[float]
    reached_target: bool

    @property
    def accuracy(self) -> float:
        """Fraction of the held-out images that `network` classifies correctly."""
        return self.evaluations[-1].accuracy


class RetrainDivergedError(ArithmeticError):
    """Retraining ended in NaN or infinity.

    Attributes:
        result: the last good state.
        iteration: the mini-batch in which it was noticed.
    """

    def __init__(self, message: str, result: RetrainResult, iteration: int) -> None:
        super().__init__(message)
        self.result = result
        self.iteration = iteration


def retrain(
    network: nn.Module,
    chip: Chip,
    data: TrainingData,
    iterations: int,
    *,
    mitigations: Mitigations | str = "fap+t",
    recipe: Recipe | None = None,
    evaluate_at: Sequence[int] = (),
    target_accuracy: float | None = None,
    least_iterations: int = 0,
    calibration: Method = "max",
    learn_scales: bool = False,
    pruned: Pruned | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> RetrainResult:
    """Retrain a network for a chip, quantisation-aware, and measure it on the exact emulation of the chip.

    Args:
        network: float32 and trained; it is not changed. It computes on the device it is on.
        chip: the chip, with permanent faults only.
        data: images.
        iterations: mini-batches to learn from; mitigations that do not retrain use none of them.
        mitigations: what is done about the broken PEs, or its name; see `Mitigations.named`.
        recipe: how it learns; None for a `Recipe()` of defaults.
        evaluate_at: iterations after which accuracy is measured, beside before the first and after the last.
        target_accuracy: retraining ends at the first evaluation that reaches it; None for never.
        least_iterations: evaluations after fewer do not end it.
        calibration: how the scales of activations are chosen on the network as it is given.
        learn_scales: whether they are learned from there.
        pruned: weights that are held at zero beside those at bypassed PEs; None for no others.
        checkpoint: file to keep the state in while it runs; if it is there, retraining goes on from it.
        progress: called after each iteration.

    Returns:
        The same for the same inputs on the same machine, bit for bit, however often it was interrupted; on other
        numbers of threads float32 gradients may add up in another order.

    Raises:
        RetrainDivergedError: the loss or a parameter was NaN or infinite; it holds the last good state.
        InputError: the chip has FLIP faults, the network does not fit, a value is out of range, `checkpoint` is of
            another retraining.
    """
    prepared = PreparedRetraining(
        network,
        chip,
        data,
        iterations,
        mitigations=mitigations,
        recipe=recipe,
        evaluate_at=evaluate_at,
        target_accuracy=target_accuracy,
        least_iterations=least_iterations,
        calibration=calibration,
        learn_scales=learn_scales,
        pruned=pruned,
    )
    return prepared.run(checkpoint, progress)


class PreparedRetraining:
    """A network on its chip, checked and ready to learn: the first half of `retrain`, whose arguments it takes.

    Attributes:
        iterations: mini-batches to learn from, at most; 0 if the mitigations do not retrain.
        deployment: how the network sits on the chip, with the scales before it learns.
        identity: what decides the result, as digests and texts by name; the name says what it is of. Where all of them
            are the same, so is the result, on the same machine with the same number of threads.
    """

    def __init__(
        self,
        network: nn.Module,
        chip: Chip,
        data: TrainingData,
        iterations: int,
        *,
        mitigations: Mitigations | str = "fap+t",
        recipe: Recipe | None = None,
        evaluate_at: Sequence[int] = (),
        target_accuracy: float | None = None,
        least_iterations: int = 0,
        calibration: Method = "max",
        learn_scales: bool = False,
        pruned: Pruned | None = None,
    ) -> None:
        """Check everything, quantise the network and put it on the chip.

        Raises:
            InputError: as `retrain`, but for `checkpoint`.
        """
        mitigations = Mitigations.named(mitigations) if isinstance(mitigations, str) else mitigations
        recipe = Recipe() if recipe is None else recipe
        _check(chip, iterations, evaluate_at, target_accuracy)
        config = chip.faults.config
        self.iterations = iterations if mitigations.retrains else 0
        self._data = data
        self._recipe = recipe
        self._mitigations = mitigations.in_turn
        self._evaluate_at = [stop for stop in sorted(set(evaluate_at)) if 0 < stop < self.iterations]
        self._target_accuracy = target_accuracy
        self._least_iterations = least_iterations
        self._batches = Batches(data.train, recipe.batch, recipe.seed, recipe.augmentation)
        converted = convert(network, config, data.calibration, method=calibration)
        self._model = trainable(network, converted, learn_scales=learn_scales)
        self.deployment = deploy(self._model, chip, mitigations)
        self._hooks = ChipHooks(
            self._model,
            self.deployment.accelerator(config, chip.faults),
            self.deployment,
            mitigations,
            TrainingStep(0, self.iterations, recipe.seed),
            kept_weights(self._model, pruned or {}),
        )
        self.identity = {
            "network": digest_of_network(network),
            "chip": chip.faults.digest() + ("" if chip.bypass is None else _digest(chip.bypass.tobytes())),
            "training images": data.train.digest,
            "held-out images": data.held_out.digest,
            "activation scales": _digest(repr(self.deployment.activation_scales).encode()),
            "strategy": mitigations.text,
            "recipe": json.dumps({**recipe.as_dict(), "learn_scales": learn_scales}, sort_keys=True),
            "budget": json.dumps([self.iterations, self._evaluate_at, target_accuracy, least_iterations]),
            "pruned weights": digest_of_pruned(pruned or {}),
        }

    @property
    def identity_of_any_length(self) -> dict[str, str]:
        """What the same retraining of more or fewer iterations has in common with it."""
        return {name: text for name, text in self.identity.items() if name != "budget"}

    def run(
        self,
        checkpoint: Path | None = None,
        progress: Callable[[TrainingProgress], None] | None = None,
        *,
        start: TrainingState | None = None,
        on_end: Callable[[TrainingState], None] | None = None,
    ) -> RetrainResult:
        """Retrain; once only.

        Args:
            checkpoint: as for `retrain`.
            progress: as for `retrain`.
            start: of the same retraining with fewer iterations, to go on from; its learning rate has to be constant.
            on_end: called with the state when all iterations are done. Its identity is `identity_of_any_length`.

        Raises:
            RetrainDivergedError: as `retrain`.
            InputError: `checkpoint` is of another retraining, or is none.
        """
        self._hooks.before_evaluation()
        for mitigation in self._mitigations:
            mitigation.settle(self._model, self._batches)
        self._hooks.after_evaluation()
        try:
            trained = fit(
                self._model,
                self._batches,
                self._data.held_out,
                self.iterations,
                self._recipe,
                evaluate_at=self._evaluate_at,
                target_accuracy=self._target_accuracy,
                least_iterations=self._least_iterations,
                hooks=self._hooks,
                checkpoint=checkpoint,
                identity=self.identity if on_end is None else self.identity_of_any_length,
                progress=progress,
                start=start,
                on_end=on_end,
            )
        except DivergedError as error:
            raise RetrainDivergedError(str(error), self._result(error.trained), error.iteration) from None
        return self._result(trained)

    def _result(self, trained: Trained) -> RetrainResult:
        self._hooks.before_evaluation()
        named = self._model.named_modules(remove_duplicate=False)
        layers = [(name, layer) for name, layer in named if isinstance(layer, TrainableLayer)]
        scales = {layer.name: float(layer.quantized.activation_scale) for _, layer in layers}
        # Scales that are learned are parameters of the layers, and none of the float network's.
        learned = {f"{name}.activation_scale".lstrip(".") for name, _ in layers}
        weights = {name: value for name, value in self._model.state_dict().items() if name not in learned}
        final = replace(self.deployment, activation_scales=scales)
        return RetrainResult(
            deployed(self._model), weights, final, trained.evaluations, trained.losses, trained.reached_target
        )


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in weights.items():
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of_network(network: nn.Module) -> str:
    """SHA-256 (hex) of what a network prints, and of its weights."""
    # Without addresses of objects, which are others in every process.
    structure = re.sub("0x[0-9a-fA-F]+", "", repr(network))
    return _digest(f"{structure} {digest_of_weights(network.state_dict())}".encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check(chip: Chip, iterations: int, evaluate_at: Sequence[int], target_accuracy: float | None) -> None:
    if chip.faults.has_flips:
        raise InputError(
            f"chip {chip.id} has FLIP faults, whose cycle counts within one GEMM: "
            "retraining needs permanent faults only (STUCK_AT_0, STUCK_AT_1)"
        )
    if iterations < 0:
        raise InputError(f"iterations is {iterations}: expected 0 or more")
    if any(stop < 0 for stop in evaluate_at):
        raise InputError(f"evaluations are asked for after {min(evaluate_at)} iterations: expected 0 or more")
    if target_accuracy is not None and not 0 <= target_accuracy <= 1:
        raise InputError(f"target accuracy is {target_accuracy}: expected a fraction, 0..1")


def deploy(model: nn.Module, chip: Chip, mitigations: Mitigations) -> Deployment:
    """Decide how a network sits on a chip.

    Args:
        model: from `training.layers.trainable`; it is not changed.
        chip: the chip.
        mitigations: what is done about its broken PEs.

    Raises:
        InputError: none of its columns can be used.
    """
    config = chip.faults.config
    bypass = np.zeros((config.rows, config.cols), np.bool_) if chip.bypass is None else chip.bypass.copy()
    scales = {name: float(layer.activation_scale.detach()) for name, layer in trainable_layers(model).items()}
    deployment = Deployment(config.record, bypass, scales, {})
    for mitigation in mitigations.in_turn:
        deployment = mitigation.deploy(deployment, chip, model)
    return deployment


def mitigated(
    network: nn.Module,
    chip: Chip,
    mitigations: Mitigations,
    activation_scales: Mapping[str, float],
    batches: Batches | None = None,
) -> tuple[nn.Module, Deployment]:
    """A network on a chip with all that mitigations do about its broken PEs but retraining; as `retrain` gives it.

    Args:
        network: float32 and trained; it is not changed.
        chip: the chip, with permanent faults only.
        mitigations: what is done.
        activation_scales: the value of one step of each layer's input, by the layer's name.
        batches: of training images, which are needed to measure batch normalisation.

    Returns:
        The network, quantised, on the chip, in evaluation mode; and how it sits there.

    Raises:
        InputError: none of the chip's columns can be used.
    """
    config = chip.faults.config
    model = trainable(network, convert(network, config, (), activation_scales=activation_scales))
    deployment = deploy(model, chip, mitigations)
    accelerator = deployment.accelerator(config, chip.faults)
    ChipHooks(model, accelerator, deployment, mitigations, TrainingStep(0, 0, 0), {}).before_evaluation()
    if batches is not None:
        for mitigation in mitigations.in_turn:
            mitigation.settle(model, batches)
    return deployed(model), deployment
