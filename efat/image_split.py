"""Test images divided by their content: tuning images, which decide, and verification images, which only judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efat.records import Positive, Record
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from training.data.datasets import Dataset

Keys = npt.NDArray[np.bytes_]


class SplitRequest(Record, frozen=True):
    """Which test images are to decide, and which are to judge; see `split_images`.

    Args:
        tune_images: how many decide; None for the default.
        verify_images: places of the test images that judge, from the first up to and without the second; None for all
            that do not decide.
        verify_data: other images that judge, which `training.data.datasets.load_data` reads; None for test images.

    Raises:
        InputError: counts or places that cannot be, or both places and other data.
    """

    tune_images: Positive | None = None
    verify_images: tuple[int, int] | None = None
    verify_data: Path | None = None

    def __post_init__(self) -> None:
        if self.tune_images is not None and self.tune_images < 1:
            raise InputError(f"tuning images are {self.tune_images}: expected 1 or more")
        if self.verify_images is not None:
            start, stop = self.verify_images
            if not 0 <= start < stop:
                raise InputError(f"verification images are {start}:{stop}: expected A:B with 0 <= A < B")
            if self.verify_data is not None:
                raise InputError("verification images are given by place and as other data: choose one")


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images that decide and images that judge. No image is in both, and none is a training image.

    Attributes:
        tuning: decide how long is retrained, who shares it and when it ends, in the order of the data.
        verification: decide nothing; every chip is judged on them, in the order of the data.
        learned: test images that are in neither, as they are training images, too.
    """

    tuning: Dataset
    verification: Dataset
    learned: int


def split_images(
    test: Dataset,
    train: Dataset,
    *,
    tune_images: int | None = None,
    verify_images: tuple[int, int] | None = None,
    verify_data: Dataset | None = None,
) -> ImageSplit:
    """Divide test images by their content, so that neither their order nor other images change where one belongs.

    Without options every other image decides, by the order of digests of their pixels, and the rest judge. Equal images
    are on the same side. The first N images of that order are among its first N + 1: more tuning images are the same
    ones and some more.

    Args:
        test: the test images.
        train: the training images; test images among them are left out.
        tune_images: how many decide; None for half of them, or for all that do not judge if it is said which do.
        verify_images: places of the test images that judge, from the first up to and without the second; None for all
            that do not decide.
        verify_data: other images that judge; all test images may then decide.

    Raises:
        InputError: places that are not there; more tuning images than there are; or none are left to decide or to
            judge.
    """
    keys, learned = content_keys(test), set(content_keys(train).tolist())
    held_out = _outside(keys, learned)
    if not held_out.any():
        raise InputError(f"all {len(test)} test images of {test.name} are training images, too: give others to test on")
    judges = np.zeros(len(test), np.bool_)
    if verify_data is not None:
        verification = _chosen(verify_data, _outside(content_keys(verify_data), learned), "verification")
        candidates = held_out & _outside(keys, content_keys(verification).tolist())
    elif verify_images is not None:
        start, stop = verify_images
        if not 0 <= start < stop <= len(test):
            raise InputError(
                f"verification images are {start}:{stop}: expected places within 0:{len(test)}, the test images of "
                f"{test.name}"
            )
        judges[start:stop] = held_out[start:stop]
        verification = _chosen(test, judges, "verification")
        candidates = held_out & ~judges & _outside(keys, keys[judges].tolist())
    else:
        candidates = held_out
    ordered = np.flatnonzero(candidates)[np.argsort(keys[candidates], kind="stable")]
    among_all = verify_images is None and verify_data is None
    count = tune_images if tune_images is not None else len(ordered) // 2 if among_all else len(ordered)
    if among_all and len(ordered) == 1:
        raise InputError(
            f"one test image of {test.name} is no training image: expected 2 or more, as none decides and judges"
        )
    if not 1 <= count <= len(ordered):
        raise InputError(
            f"tuning images are {count}: expected 1..{len(ordered)}, those of {test.name} that do not verify"
            if len(ordered)
            else f"no test image of {test.name} is left to tune on: have fewer of them verify"
        )
    decides = np.zeros(len(test), np.bool_)
    decides[ordered[:count]] = True
    if among_all:
        judges = held_out & ~decides & _outside(keys, keys[decides].tolist())
        verification = _chosen(test, judges, "verification")
    return ImageSplit(_chosen(test, decides, "tuning"), verification, int((~held_out).sum()))


def content_keys(data: Dataset) -> Keys:
    """A digest of each image's pixels, bytes [n]; the same for equal images alone."""
    # Adding 0 makes -0.0 and 0.0 the same.
    pixels = data.images.reshape(len(data), -1).numpy().astype("<f4", copy=False) + np.float32(0)
    return np.array([hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest().encode() for row in pixels])


def _outside(keys: Keys, known: Iterable[bytes]) -> BoolArray:
    """Which of the keys are not known."""
    taken = known if isinstance(known, set) else set(known)
    return np.array([key not in taken for key in keys.tolist()], np.bool_)


def _chosen(data: Dataset, chosen: BoolArray, what: str) -> Dataset:
    """Some of the images, in their order.

    Raises:
        InputError: there are none.
    """
    if not chosen.any():
        raise InputError(
            f"no {what} images are left of {data.name}: give more test images that differ, or other data to verify with"
        )
    if chosen.all():
        return data
    places = torch.from_numpy(np.flatnonzero(chosen))
    return replace(data, images=data.images[places], labels=data.labels[places])
