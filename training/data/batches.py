"""Batches of training images: each pass over the data in another order, each batch augmented at random.

What a batch holds depends on the seed and its number alone, so that training can go on anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simulator.errors import InputError
from training.data.datasets import Dataset

LARGEST_CROP_PADDING = 64
"""Pixels; what the literature pads images of 32x32 with is 4."""

_ORDER, _AUGMENTATION = 0, 1
"""First words of the spawn keys: random numbers of a pass and of an iteration."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images at random (He et al. 2016, section 4.2).

    Args:
        flip: mirror each image left to right with probability 1/2.
        crop_padding: black pixels padded on each side before a crop back to the image's size at a random place.

    Raises:
        InputError: padding out of range.
    """

    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= LARGEST_CROP_PADDING:
            raise InputError(f"crop padding is {self.crop_padding}: expected 0..{LARGEST_CROP_PADDING} pixels")


NO_AUGMENTATION = Augmentation()


class Batches:
    """The batches of training images, as many as are asked for.

    Args:
        data: the training images.
        batch: images in a batch; data with fewer makes one batch of all.
        seed: of orders and augmentation, from 0.
        augmentation: what is done to the images.

    Attributes:
        per_epoch: whole batches in one pass over the data, each image at most once; images that are left over wait for
            another pass, which has another order.

    Raises:
        InputError: no images in a batch, a negative seed, or padding as wide as the images.
    """

    def __init__(self, data: Dataset, batch: int, seed: int, augmentation: Augmentation = NO_AUGMENTATION) -> None:
        if batch < 1:
            raise InputError(f"batch is {batch} images: expected 1 or more")
        if seed < 0:
            raise InputError(f"seed is {seed}: expected 0 or more")
        height, width = data.images.shape[2:]
        if augmentation.crop_padding >= min(height, width):
            raise InputError(
                f"crop padding is {augmentation.crop_padding} pixels and {data.name} has images of {height}x{width}: "
                "expected less, so that every crop shows some of the image"
            )
        self.per_epoch = max(1, len(data) // batch)
        self._data = data
        self._size = min(batch, len(data))
        self._seed = seed
        self._augmentation = augmentation
        black = data.black or (0.0,) * data.images.shape[1]
        self._black = torch.tensor(black, dtype=torch.float32).view(1, -1, 1, 1)
        self._last_order = 0, self._new_order(0)

    def at(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of one iteration, the same whatever was asked for before.

        Args:
            iteration: from 0, counted over all passes.

        Returns:
            Images float32 [b, c, h, w] and labels int64 [b], of memory of their own.

        Raises:
            InputError: a negative iteration.
        """
        if iteration < 0:
            raise InputError(f"iteration is {iteration}: expected 0 or more")
        epoch, index = divmod(iteration, self.per_epoch)
        chosen = self._order(epoch)[index * self._size : (index + 1) * self._size]
        images, labels = self._data.images[chosen], self._data.labels[chosen]
        if self._augmentation != NO_AUGMENTATION:
            images = self._augmented(images, self._random(_AUGMENTATION, iteration))
        return images, labels

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(purpose, number)))

    def _new_order(self, epoch: int) -> Tensor:
        return torch.from_numpy(self._random(_ORDER, epoch).permutation(len(self._data)))

    def _order(self, epoch: int) -> Tensor:
        """Indices of all images in the order of a pass: int64 [n]."""
        if self._last_order[0] != epoch:
            self._last_order = epoch, self._new_order(epoch)
        return self._last_order[1]

    def _augmented(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Images [b, c, h, w], some of them mirrored, then each padded and cropped at a place of its own."""
        count, channels, height, width = images.shape
        padding = self._augmentation.crop_padding
        padded_height, padded_width = height + 2 * padding, width + 2 * padding
        padded = self._black.repeat(count, 1, padded_height, padded_width)
        padded[:, :, padding : padding + height, padding : padding + width] = images
        flipped = torch.from_numpy(random.integers(0, 2, (count, 1)) == 1) & self._augmentation.flip
        down, right = torch.from_numpy(random.integers(0, 2 * padding + 1, (2, count, 1)))
        rows = down + torch.arange(height)
        columns = right + torch.arange(width)
        # As much is padded on the left as on the right: to mirror the padded image is to pad the mirrored one.
        columns = torch.where(flipped, padded_width - 1 - columns, columns)
        pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).view(count, 1, -1)
        gathered = padded.flatten(2).gather(2, pixels.expand(-1, channels, -1))
        return gathered.view(images.shape)
