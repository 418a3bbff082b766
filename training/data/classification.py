"""Classifying images, and counting how often that is right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simulator.errors import NotFiniteError
from training.data.datasets import Dataset

Progress = Callable[[int], None]
"""Called with the number of images just finished."""


def classify(network: nn.Module, images: Tensor, batch: int, progress: Progress | None = None) -> Tensor:
    """Predict the class of each image.

    Args:
        network: maps float32 [b, c, h, w] to logits [b, classes].
        images: float32 [n, c, h, w].
        batch: images per call of the network, >= 1.
        progress: called after each batch.

    Returns:
        int64 [n]; -1, which is no class, where a logit is NaN.
    """
    predictions = []
    with torch.inference_mode():
        for part in torch.split(images, batch):
            logits = network(part)
            predictions.append(torch.where(logits.isnan().any(1), -1, logits.argmax(1)))
            if progress is not None:
                progress(len(part))
    return torch.cat(predictions)


def bits_of(scores: Tensor) -> Tensor:
    """The bits of floats, as whole numbers of their width: what differs in any bit differs, NaN and signed zeros, too.

    Args:
        scores: floats of 16, 32 or 64 bits, of any shape.
    """
    return scores.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[scores.element_size()])


def count_correct(network: nn.Module, data: Dataset, batch: int = 256) -> int:
    """How many images of a data set the network classifies correctly; in evaluation mode, whatever mode it is in.

    Args:
        network: maps float32 [b, c, h, w] to logits [b, classes].
        data: the images, and what they are.
        batch: images per call of the network, >= 1.

    Raises:
        NotFiniteError: a logit is NaN or infinite.
    """
    training = network.training
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    network.eval()
    correct = 0
    try:
        with torch.inference_mode():
            for images, labels in zip(torch.split(data.images, batch), torch.split(data.labels, batch), strict=True):
                logits = network(images.to(device))
                if not bool(torch.isfinite(logits).all()):
                    raise NotFiniteError("NaN or infinity among the logits: check images and weights")
                correct += int((logits.argmax(1).cpu() == labels).sum())
    finally:
        network.train(training)
    return correct
