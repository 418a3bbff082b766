"""Classifying, and counting what is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from simulator.errors import NotFiniteError
from training.data.classification import classify, count_correct
from training.data.datasets import Dataset

LOGITS = torch.randn(11, 4, generator=torch.Generator().manual_seed(3))
DATA = Dataset("logits", LOGITS[:, :, None, None], LOGITS.argmax(1).roll(1), 4)


@pytest.mark.parametrize("batch", [1, 4, 11, 256])
def test_right_are_those_whose_largest_logit_is_their_class(batch: int) -> None:
    expected = 0
    for row, label in zip(LOGITS.tolist(), DATA.labels.tolist(), strict=True):
        expected += row.index(max(row)) == label
    assert count_correct(nn.Flatten(), DATA, batch) == expected
    assert count_correct(nn.Flatten(), Dataset("right", DATA.images, LOGITS.argmax(1), 4), batch) == 11


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_evaluated_and_stays_in_its_mode(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert count_correct(network, DATA) == count_correct(nn.Flatten(), DATA)
    assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_no_classes(broken: float) -> None:
    images = DATA.images.clone()
    images[7, 2] = broken
    network = nn.Flatten().train()
    with pytest.raises(NotFiniteError, match="NaN or infinity among the logits"):
        count_correct(network, Dataset("broken", images, DATA.labels, 4), batch=2)
    assert network.training


def test_an_image_with_nan_among_its_logits_is_of_no_class() -> None:
    logits = LOGITS.clone()
    logits[[2, 7], [1, 3]] = math.nan
    expected = LOGITS.argmax(1)
    expected[[2, 7]] = -1
    for batch in (1, 4, 11):
        assert torch.equal(classify(nn.Flatten(), logits[:, :, None, None], batch), expected)
