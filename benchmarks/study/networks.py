"""Networks with their weights and data: digits-cnn, LeNet-5 on Fashion-MNIST, ResNet-20 on CIFAR-10 (JPEG q75)."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import nn

from simulator.files import replaced
from training.data.batches import Batches
from training.data.classification import count_correct
from training.data.datasets import DIGITS, FASHION_MNIST, Dataset, Split, load_data
from training.data.workloads import CALIBRATION_BATCH, CALIBRATION_IMAGES, WORKLOADS, load_workload
from training.learning.fit import fit
from training.learning.recipe import Recipe
from training.learning.retrain import TrainingData

CIFAR = "cifar10"
"""Folder in it of images that were decoded."""

LENET_EPOCHS = 12
RESNET_EPOCHS = 2


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network with its data.

    Attributes:
        title: network and data, for people.
        network: float32, trained.
        data: what it learns from and is measured on.
        float_accuracy: on the held-out images.
    """

    title: str
    network: nn.Module
    data: TrainingData
    float_accuracy: float


def subject(name: str, folder: Path, data: Path | None, model: Path | None, limit: int | None) -> Subject:
    """Load a network, or train it once and keep its weights in a folder.

    Args:
        name: `digits-cnn`, `lenet5` or `resnet20`.
        folder: for weights that are trained here.
        data: folder of Fashion-MNIST or CIFAR-10; None for where the data set is found by itself.
        model: pretrained weights of resnet20.
        limit: at most this many held-out images; None for all.
    """
    if name == "digits-cnn":
        loaded = load_workload(name, training=True)
        assert loaded.train is not None
        train, network, title = loaded.train, loaded.network, "digits-cnn, scikit-learn digits"
        held_out = load_data(DIGITS, "test", limit=limit)
    elif name == "lenet5":
        source = FASHION_MNIST if data is None else data
        train, held_out = load_data(source, "train"), load_data(source, "test", limit=limit)
        torch.manual_seed(0)
        network = WORKLOADS[name].build(1, 28, 10)
        _once(folder / "lenet5.safetensors", network, train, held_out, _LENET, LENET_EPOCHS)
        title = "LeNet-5, Fashion-MNIST"
    else:
        assert data is not None
        assert model is not None
        train, held_out = _cifar(data, "train", folder, None), _cifar(data, "test", folder, limit)
        network = WORKLOADS[name].build(3, 32, 10)
        pretrained = torch.load(model, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict({key.removeprefix("module."): value for key, value in pretrained.items()})
        _once(folder / "resnet20.safetensors", network, train, held_out, _RESNET, RESNET_EPOCHS)
        title = "ResNet-20, CIFAR-10 (JPEG q75)"
    chosen = np.linspace(0, len(train) - 1, CALIBRATION_IMAGES).round().astype(np.int64)
    calibration = torch.split(train.images[torch.from_numpy(chosen)], CALIBRATION_BATCH)
    accuracy = count_correct(network.eval(), held_out) / len(held_out)
    return Subject(title, network, TrainingData(train, held_out, calibration), accuracy)


_LENET = Recipe(optimizer="AdamW", learning_rate=2e-3, options={"weight_decay": 0.01}, schedule="OneCycleLR")
_RESNET = Recipe(
    learning_rate=0.01,
    options={"momentum": 0.9, "weight_decay": 1e-4},
    schedule="CosineAnnealingLR",
    augmentation=WORKLOADS["resnet20"].augmentation,
)


def _once(path: Path, network: nn.Module, train: Dataset, held_out: Dataset, recipe: Recipe, epochs: int) -> None:
    """Train in float unless that was done before."""
    if not path.exists():
        batches = Batches(train, recipe.batch, recipe.seed, recipe.augmentation)
        iterations = epochs * batches.per_epoch
        trained = fit(network, batches, held_out, iterations, recipe, checkpoint=path.with_suffix(".checkpoint"))
        with replaced(path) as beside:
            save_file(network.state_dict(), beside)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        print(f"{path.name}: {iterations} iterations, {trained.evaluations[-1].accuracy:.2%}")
    network.load_state_dict(load_file(path))


def _cifar(folder: Path, split: Split, results: Path, limit: int | None) -> Dataset:
    """CIFAR-10 in any format that is read, or as JPEG files one after another, which are decoded once."""
    path = folder / f"{split}.npz"
    if path.exists():
        with np.load(path) as stored:
            if "jpeg" in stored:
                folder = results / CIFAR
                folder.mkdir(exist_ok=True)
                decoded = folder / f"{split}.npz"
                if not decoded.exists():
                    _decode(stored["jpeg"], stored["offsets"], stored["labels"], decoded)
    return load_data(folder, split, limit=limit, normalization=WORKLOADS["resnet20"].normalization)


def _decode(
    jpeg: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], labels: npt.NDArray[np.uint8], path: Path
) -> None:
    from PIL import Image

    images = []
    for first, stop in track(list(itertools.pairwise(offsets)), description=f"decoding {path.stem}"):
        images.append(np.asarray(Image.open(io.BytesIO(jpeg[first:stop].tobytes())).convert("RGB")))
    with replaced(path) as beside:
        np.savez(beside, images=np.stack(images), labels=labels)
