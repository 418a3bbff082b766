"""Train the packaged weights of `digits-cnn` again: `python -m training.data.digits -o digits_cnn.safetensors`.

One thread computes in a fixed order, so a seed gives the same result on the same processor and version of PyTorch.
The held-out images are looked at once, at the end; they decide nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from simulator import ArrayConfig
from training.data.classification import count_correct
from training.data.datasets import DIGITS, Dataset, load_data
from training.data.networks import DigitsCnn
from training.data.workloads import CALIBRATION_IMAGES, WORKLOADS
from training.layers.accelerator import Accelerator
from training.layers.convert import convert

EPOCHS = 60
BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
LARGEST_SHIFT = 1


def train_digits(seed: int, epochs: int = EPOCHS) -> DigitsCnn:
    """Train on the training digits, shifted by up to one pixel at random, with AdamW and a one-cycle learning rate.

    Args:
        seed: of the initial weights, the order of the images and the shifts.
        epochs: passes over the training images.

    Returns:
        The trained network in evaluation mode.
    """
    torch.manual_seed(seed)
    data = load_data(DIGITS, "train")
    network = DigitsCnn()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    batches = -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(data)), BATCH):
            loss = functional.cross_entropy(
                network(_shifted(data.images[chosen])), data.labels[chosen], label_smoothing=LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module, data: Dataset) -> float:
    """Fraction of the images that the network classifies correctly."""
    return count_correct(network, data) / len(data)


def _shifted(images: Tensor) -> Tensor:
    """Each image [n, c, h, w] moved by up to `LARGEST_SHIFT` pixels, zeros moving in."""
    size = images.shape[-1]
    padded = functional.pad(images, [LARGEST_SHIFT] * 4)
    down, right = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, len(images), 1))
    rows = (down + torch.arange(size))[:, None, :, None]
    columns = (right + torch.arange(size))[:, None, None, :]
    return padded[torch.arange(len(images))[:, None, None, None], 0, rows, columns]


def main() -> None:
    """Train, save, and say how good the result is in float and in 8-bit integers."""
    parser = argparse.ArgumentParser(prog="python -m training.data.digits", description="Train the network digits-cnn.")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "-o", "--output", type=Path, default=WORKLOADS["digits-cnn"].weights, help="file (default: the packaged one)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = train_digits(arguments.seed)
    beside = arguments.output.with_suffix(".partial")
    beside.write_bytes(save({key: value.contiguous() for key, value in network.state_dict().items()}))
    os.replace(beside, arguments.output)
    calibration = load_data(DIGITS, "train", limit=CALIBRATION_IMAGES).images
    config = ArrayConfig(rows=32, cols=32)
    quantized = convert(network, config, calibration, accelerator=Accelerator(config, engine="exact"))
    test = load_data(DIGITS, "test")
    sys.stdout.write(
        f"{arguments.output}: {accuracy(network, test):.2%} of {len(test)} held-out digits in float32, "
        f"{accuracy(quantized, test):.2%} in int8\n"
    )


if __name__ == "__main__":
    main()
