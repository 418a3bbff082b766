"""Batches: orders that repeat nothing, augmentation against every way it can go, and that only the number counts."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simulator.errors import InputError
from training import Augmentation, Batches, Dataset
from training.data.batches import LARGEST_CROP_PADDING, NO_AUGMENTATION


def numbered(count: int, channels: int, height: int, width: int, black: tuple[float, ...] = ()) -> Dataset:
    """Images in which no two pixels are the same, and none is black."""
    images = torch.arange(1, count * channels * height * width + 1, dtype=torch.float32)
    shape = count, channels, height, width
    return Dataset("numbered", images.view(shape), torch.randint(0, 5, (count,)), classes=5, black=black)


def numbers(data: Dataset, images: Tensor) -> list[int]:
    """Which images of the numbered data these are."""
    return ((images[:, 0, 0, 0] - 1) / data.images[0].numel()).long().tolist()


def possible(image: Tensor, black: tuple[float, ...], augmentation: Augmentation) -> set[bytes]:
    """Everything that augmentation can make of an image [c, h, w], worked out one by one."""
    _, height, width = image.shape
    padding = augmentation.crop_padding
    results = set()
    for mirrored in (False, True) if augmentation.flip else (False,):
        pixels = image.numpy()[:, :, ::-1] if mirrored else image.numpy()
        padded = np.stack(
            [np.pad(pixels[channel], padding, constant_values=value) for channel, value in enumerate(black)]
        )
        for down, right in itertools.product(range(2 * padding + 1), repeat=2):
            results.add(padded[:, down : down + height, right : right + width].tobytes())
    return results


@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
def test_a_pass_takes_each_image_at_most_once(count: int, batch: int, seed: int, epoch: int) -> None:
    data = numbered(count, 2, 2, 3)
    batches = Batches(data, batch, seed)
    assert batches.per_epoch == (count // batch if count >= batch else 1)
    seen: list[int] = []
    for iteration in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
        images, labels = batches.at(iteration)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert len(images) == len(labels) == min(batch, count)
        chosen = numbers(data, images)
        assert torch.equal(images, data.images[chosen])
        assert torch.equal(labels, data.labels[chosen])
        seen += chosen
    assert len(set(seen)) == len(seen) == batches.per_epoch * min(batch, count) > count - batch


def test_each_pass_and_each_seed_has_another_order(seed: int) -> None:
    data = numbered(60, 1, 1, 1)
    orders = [numbers(data, Batches(data, 60, other).at(epoch)[0]) for other in (seed, seed + 1) for epoch in range(3)]
    assert all(first != second for first, second in itertools.combinations(orders, 2))
    assert all(sorted(order) == list(range(60)) for order in orders)


def test_an_iteration_is_the_same_whatever_came_before(seed: int) -> None:
    data = numbered(23, 3, 5, 4, black=(-1.0, -2.0, -3.0))
    augmentation = Augmentation(flip=True, crop_padding=2)
    in_order = [Batches(data, 6, seed, augmentation).at(iteration) for iteration in range(12)]
    batches = Batches(data, 6, seed, augmentation)
    for iteration in np.random.default_rng(seed).integers(0, 12, 30).tolist():
        images, labels = batches.at(iteration)
        assert torch.equal(images, in_order[iteration][0])
        assert torch.equal(labels, in_order[iteration][1])
        images.zero_()
        labels.zero_()
    assert torch.equal(data.images, numbered(23, 3, 5, 4).images)


@settings(max_examples=50)
@given(
    count=st.integers(1, 6),
    channels=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    flip=st.booleans(),
    with_black=st.booleans(),
    seed=st.integers(0, 2**32),
    choice=st.data(),
)
def test_augmentation_is_one_of_the_possible_ones(
    count: int,
    channels: int,
    height: int,
    width: int,
    flip: bool,
    with_black: bool,
    seed: int,
    choice: st.DataObject,
) -> None:
    augmentation = Augmentation(flip, choice.draw(st.integers(0, min(height, width) - 1), "crop_padding"))
    black = tuple(-1.5 * (channel + 1) for channel in range(channels)) if with_black else ()
    data = numbered(count, channels, height, width, black)
    of_image = [possible(image, black or (0.0,) * channels, augmentation) for image in data.images]
    plain, augmented = Batches(data, 4, seed), Batches(data, 4, seed, augmentation)
    for iteration in range(3 * plain.per_epoch):
        chosen = numbers(data, plain.at(iteration)[0])
        images, labels = augmented.at(iteration)
        assert torch.equal(labels, data.labels[chosen])
        assert images.shape[1:] == data.images.shape[1:]
        assert all(image.numpy().tobytes() in of_image[number] for number, image in zip(chosen, images, strict=True))


@pytest.mark.parametrize("flip", [True, False])
def test_every_possible_augmentation_is_as_likely(flip: bool, seed: int) -> None:
    one = numbered(1, 2, 3, 4)
    black = (-4.0, -5.0)
    data = Dataset("copies", one.images.repeat(200, 1, 1, 1), torch.zeros(200, dtype=torch.int64), 1, black)
    augmentation = Augmentation(flip, crop_padding=1)
    batches = Batches(data, 100, seed, augmentation)
    found = Counter(image.numpy().tobytes() for iteration in range(18) for image in batches.at(iteration)[0])
    expected = possible(one.images[0], black, augmentation)
    assert len(expected) == (18 if flip else 9)
    assert set(found) == expected
    mean = 1800 / len(expected)
    assert all(abs(times - mean) < 7 * mean**0.5 for times in found.values())  # seven standard deviations


def test_augmentation_leaves_the_order_alone(seed: int) -> None:
    data = Dataset("labels", torch.ones(50, 1, 4, 4), torch.arange(50), classes=50)
    plain, mirrored = Batches(data, 8, seed), Batches(data, 8, seed, Augmentation(flip=True, crop_padding=3))
    for iteration in range(15):
        assert torch.equal(plain.at(iteration)[1], mirrored.at(iteration)[1])


@pytest.mark.parametrize(
    ("batch", "chosen_seed", "augmentation", "message"),
    [
        (0, 1, NO_AUGMENTATION, "batch is 0 images: expected 1 or more"),
        (1, -1, NO_AUGMENTATION, "seed is -1: expected 0 or more"),
        (1, 1, Augmentation(crop_padding=3), "crop padding is 3 pixels and numbered has images of 5x3: expected less"),
    ],
)
def test_batches_that_cannot_be(batch: int, chosen_seed: int, augmentation: Augmentation, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(numbered(2, 1, 5, 3), batch, chosen_seed, augmentation)


@pytest.mark.parametrize("padding", [-1, LARGEST_CROP_PADDING + 1])
def test_padding_out_of_range(padding: int) -> None:
    with pytest.raises(InputError, match=rf"crop padding is {padding}: expected 0\.\.64 pixels"):
        Augmentation(crop_padding=padding)


def test_iterations_count_from_0() -> None:
    with pytest.raises(ValueError, match="iteration is -1: expected 0 or more"):
        Batches(numbered(2, 1, 1, 1), 1, 1).at(-1)
