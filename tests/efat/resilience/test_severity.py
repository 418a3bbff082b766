"""Weights are counted where the machine puts them, and severity is the share of them that bypass removes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efat.network_gemms import network_gemms
from efat.resilience.severity import MOST_WEIGHTS, pruned_severity, severity, total_weights, weights_per_pe
from simulator import ArrayConfig
from simulator.engine.timing import folds
from simulator.errors import InputError
from training.data.workloads import WORKLOADS

sides = st.integers(1, 7)
gemm_lists = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)


@given(gemm_lists, sides, sides)
def test_each_pe_holds_a_weight_for_each_fold_that_reaches_it(
    gemms: list[tuple[int, int, int]], rows: int, cols: int
) -> None:
    config = ArrayConfig(rows, cols)
    expected = np.zeros((rows, cols), np.int64)
    for groups, k, n in gemms:
        for fold in folds(config, k, n):
            expected[: fold.used_rows, : fold.used_cols] += groups
    weights = weights_per_pe(gemms, config)
    assert weights.dtype == np.int64
    assert weights.tolist() == expected.tolist()
    assert total_weights(weights) == sum(groups * k * n for groups, k, n in gemms)


def test_all_weights_of_a_network_are_counted() -> None:
    gemms = [(1, gemm.k, gemm.n) for gemm in network_gemms("lenet5")]
    workload = WORKLOADS["lenet5"]
    network = workload.build(*workload.input_shape[:2], workload.classes)
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)
    assert weights_per_pe(gemms, ArrayConfig(16, 16)).sum() == count


@given(gemm_lists, sides, sides, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), max_size=2))
def test_severity_is_the_share_of_weights_on_bypassed_pes(
    gemms: list[tuple[int, int, int]], rows: int, cols: int, seed: int, batch: list[int]
) -> None:
    random = np.random.default_rng(seed)
    bypass = random.random((*batch, rows, cols)) < random.random()
    found = severity(bypass, weights_per_pe(gemms, ArrayConfig(rows, cols)))
    assert found.shape == tuple(batch)
    assert found.dtype == np.float64
    total = sum(groups * k * n for groups, k, n in gemms)
    for index in np.ndindex(*batch):
        mask = bypass[index]
        removed = sum(
            groups * int(mask[i % rows, j % cols]) for groups, k, n in gemms for i in range(k) for j in range(n)
        )
        assert found[index] == removed / total


def test_pes_without_weights_do_not_count() -> None:
    weights = weights_per_pe([(1, 2, 3)], ArrayConfig(4, 5))
    unused = np.ones((4, 5), np.bool_)
    unused[:2, :3] = False
    assert severity(np.stack([unused, ~unused]), weights).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("gemms", "message"),
    [
        ([], "network has no layers"),
        ([(1, 2, 3), (1, 0, 3)], "layer has groups=1, K=0, N=3: expected 1 or more"),
        ([(-1, 2, 3)], "groups=-1"),
        ([(1, 1 << 27, 1 << 27)], f"network has {1 << 54} weights: expected at most {MOST_WEIGHTS}"),
    ],
)
def test_networks_that_are_refused(gemms: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weights_per_pe(gemms, ArrayConfig(2, 2))


@pytest.mark.parametrize(
    ("bypass", "weights", "message"),
    [
        (np.zeros((3, 2), np.bool_), np.ones((2, 3), np.int64), r"bypass is bool \(3, 2\): expected bool with 2x3 PEs"),
        (np.zeros((2, 3)), np.ones((2, 3), np.int64), r"bypass is float64 \(2, 3\)"),
        (np.zeros(3, np.bool_), np.ones(3, np.int64), r"weights of the PEs are int64 \(3,\): expected integers"),
        (np.zeros((2, 3), np.bool_), np.ones((2, 3)), r"weights of the PEs are float64 \(2, 3\)"),
        (np.zeros((1, 2), np.bool_), np.array([[3, -1]]), "weights of a PE are -1: expected 0 or more"),
        (np.zeros((1, 2), np.bool_), np.array([[0, 0]]), "the PEs hold 0 weights in total"),
        (np.zeros((1, 2), np.bool_), np.array([[1 << 62, 1 << 62]]), f"the PEs hold {1 << 63} weights in total"),
    ],
)
def test_masks_and_weights_that_are_refused(
    bypass: npt.NDArray[np.bool_], weights: npt.NDArray[np.int64], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        severity(bypass, weights)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_what_is_pruned_counts_by_number_and_by_squares(layers: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = [tuple(random.integers(1, 6, random.integers(1, 4))) for _ in range(layers)]
    weights = [random.normal(size=shape).astype(random.choice([np.float32, np.float64])) for shape in shapes]
    weights[0][...] *= random.integers(2)  # a layer of zeros now and then
    pruned = [random.random(shape) < random.random() for shape in shapes]
    found = pruned_severity(weights, pruned)
    count = gone = 0
    shares = []
    for layer, mask in zip(weights, pruned, strict=True):
        values, lost = layer.astype(float).ravel().tolist(), mask.ravel().tolist()
        count, gone = count + len(values), gone + sum(lost)
        whole = sum(value**2 for value in values)
        shares.append(sum(value**2 for value, is_lost in zip(values, lost, strict=True) if is_lost) / (whole or 1))
    assert found.pruned == gone / count
    assert found.saliency == pytest.approx(sum(shares) / layers)
    assert 0 <= found.saliency <= 1
    everything = pruned_severity(weights, [np.ones(shape, np.bool_) for shape in shapes])
    assert everything.pruned == 1
    assert everything.saliency == pytest.approx(sum(bool(layer.any()) for layer in weights) / layers)


@pytest.mark.parametrize(
    ("shapes", "masks", "message"),
    [
        ([], [], "weights of 0 layers, masks of 0: expected as many, at least one"),
        ([(2, 3)], [], "weights of 1 layers, masks of 0"),
        ([(2, 3)], [np.zeros((3, 2), np.bool_)], r"mask of a layer is bool \(3, 2\): expected bool \(2, 3\)"),
        ([(2, 3)], [np.zeros((2, 3), np.int64)], r"mask of a layer is int64 \(2, 3\)"),
        ([(0, 3)], [np.zeros((0, 3), np.bool_)], "of one weight or more"),
    ],
)
def test_masks_that_fit_no_weights_are_refused(
    shapes: list[tuple[int, ...]], masks: list[npt.NDArray[np.bool_]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pruned_severity([np.ones(shape) for shape in shapes], masks)
