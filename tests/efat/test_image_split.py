"""Test images divided into those that decide and those that judge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efat.image_split import ImageSplit, SplitRequest, content_keys, split_images
from simulator.errors import InputError
from training.data.datasets import Dataset


def of(values: list[float]) -> Dataset:
    """Images of one pixel; the label is none of their content."""
    images = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)
    return Dataset("pixels", images, torch.arange(len(values)) % 3, 3)


def pixels(data: Dataset) -> list[float]:
    return data.images.flatten().tolist()


TRAIN = of([-1.0, -2.0])
DISTINCT = [float(value) for value in range(20)]


@given(st.permutations(DISTINCT), st.data())
def test_where_an_image_belongs_depends_on_its_content_alone(order: list[float], data: st.DataObject) -> None:
    found, again = (split_images(of(values), TRAIN) for values in (DISTINCT, order))
    assert (len(found.tuning), len(found.verification)) == (10, 10)
    assert set(pixels(found.tuning)) == set(pixels(again.tuning))
    assert pixels(again.tuning) == [value for value in order if value in pixels(found.tuning)]
    labels = [DISTINCT.index(value) % 3 for value in pixels(found.verification)]
    assert found.verification.labels.tolist() == labels
    fewer, more = sorted(data.draw(st.tuples(st.integers(1, 19), st.integers(1, 19))))
    of_fewer, of_more = (split_images(of(order), TRAIN, tune_images=count) for count in (fewer, more))
    assert set(pixels(of_fewer.tuning)) <= set(pixels(of_more.tuning))
    assert (len(of_more.tuning), len(of_more.verification)) == (more, 20 - more)


@given(
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12),
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=6),
    st.lists(st.integers(0, 6).map(float), max_size=4),
    st.integers(1, 12) | st.none(),
    st.integers(0, 2),
)
def test_no_image_decides_and_judges(
    test: list[float], train: list[float], other: list[float], count: int | None, how: int
) -> None:
    changes = [
        {},
        {"verify_images": (len(test) // 2, len(test))},
        {"verify_data": of(other) if other else None},
    ][how]
    try:
        found: ImageSplit = split_images(of(test), of(train), tune_images=count, **changes)  # type: ignore[arg-type]
    except InputError:  # nothing would be left on a side
        return
    sides = [set(pixels(side)) for side in (found.tuning, found.verification)]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & set(train)
    assert found.learned == sum(value in train for value in test)
    assert count is None or len(found.tuning) == count


def test_places_and_other_data_judge() -> None:
    test = of(DISTINCT)
    by_place = split_images(test, TRAIN, verify_images=(15, 20))
    assert (pixels(by_place.tuning), pixels(by_place.verification)) == (DISTINCT[:15], DISTINCT[15:])
    by_data = split_images(test, TRAIN, verify_data=of([3.0, 30.0, -1.0]))
    assert pixels(by_data.verification) == [3.0, 30.0]
    assert pixels(by_data.tuning) == [value for value in DISTINCT if value != 3]
    few = split_images(test, TRAIN, verify_images=(15, 20), tune_images=4)
    assert (len(few.tuning), pixels(few.verification)) == (4, DISTINCT[15:])


def test_zeros_of_both_signs_are_the_same_pixel() -> None:
    keys = content_keys(of([0.0, -0.0, 1.0]))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("test", "changes", "message"),
    [
        ([-1.0, -2.0], {}, "all 2 test images of pixels are training images, too"),
        ([1.0, 1.0], {"tune_images": 1}, "no verification images are left of pixels"),
        ([1.0], {}, "one test image of pixels is no training image: expected 2 or more"),
        (DISTINCT, {"tune_images": 21}, "tuning images are 21: expected 1..20"),
        (DISTINCT, {"verify_images": (10, 21)}, "verification images are 10:21: expected places within 0:20"),
        (DISTINCT, {"verify_images": (0, 20)}, "no test image of pixels is left to tune on"),
        ([1.0], {"verify_data": of([1.0])}, "no test image of pixels is left to tune on"),
    ],
)
def test_what_leaves_nothing_is_refused(test: list[float], changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        split_images(of(test), TRAIN, **changes)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_requests_are_checked() -> None:
    from pathlib import Path

    for changes in ({"tune_images": 0}, {"verify_images": (3, 3)}):
        with pytest.raises(InputError):
            SplitRequest(**changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="by place and as other data: choose one"):
        SplitRequest(verify_images=(0, 1), verify_data=Path("x"))
