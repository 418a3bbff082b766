"""A network on a chip: accuracy, what each layer computed otherwise, and clock cycles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from efat.confidence import Accuracy
from efat.inference.classified import measure_accuracy, run_chip
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, gemm_timing, sample_faults
from simulator.multipliers.multiplier import Multiplier, exact_products
from training.data.classification import classify
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, put_on_chip, quantized_layers

CONFIG = ArrayConfig(8, 4)
FAULT_FREE = Accelerator(CONFIG, engine="exact")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(10, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(images: torch.Tensor) -> nn.Module:
    torch.manual_seed(2)
    float_network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    return convert(float_network, CONFIG, images)


@given(st.integers(1, 2000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images))))
def test_interval_is_that_of_scipy(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    low, high = Accuracy(*counts).interval
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert low - 1e-12 <= Accuracy(*counts).value <= high + 1e-12


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(2, 20))
def test_guessing_is_told_as_scipy_tells_it(counts: tuple[int, int], classes: int) -> None:
    correct, images = counts
    as_good = binomtest(correct, images, 1 / classes, "greater").pvalue
    if abs(as_good - 0.05) > 1e-9:
        assert Accuracy(*counts).like_guessing(classes) == (as_good > 0.05 and classes**-images <= 0.05)


def test_guessing_cannot_be_told_of_one_class_and_is_of_many_images() -> None:
    assert not Accuracy(5, 10).like_guessing(1)
    assert Accuracy(1_010, 10_000).like_guessing(10)
    assert not Accuracy(1_100, 10_000).like_guessing(10)


def test_measure_accuracy_counts() -> None:
    assert measure_accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 3])) == Accuracy(2, 3)


def test_fault_free_chip_changes_nothing(network: nn.Module, images: torch.Tensor) -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    expected = classify(put_on_chip(network, FAULT_FREE), images, 10)
    report = run_chip(network, Accelerator(CONFIG), images, labels, expected, batch=10)
    assert report.changed_predictions == 0
    assert torch.equal(report.predictions, expected)
    assert report.accuracy == measure_accuracy(expected, labels)
    assert [(layer.outputs_changed, layer.largest_change) for layer in report.layers] == [(0, 0), (0, 0)]


def test_changes_are_counted_against_the_fault_free_array_with_its_multipliers(images: torch.Tensor) -> None:
    table = exact_products(8, 8) & np.int16(~15)
    faulty = np.zeros_like(table)
    config = ArrayConfig(8, 4, multiplier=Multiplier.from_tables("coarse", table, [faulty]))
    torch.manual_seed(2)
    network = convert(nn.Sequential(nn.Flatten(), nn.Linear(72, 5)), config, images)
    expected = classify(put_on_chip(network, Accelerator.fault_free(config)), images, 10)
    labels = torch.zeros(10, dtype=torch.int64)
    report = run_chip(network, Accelerator(config), images, labels, expected, batch=10)
    assert (report.changed_predictions, report.layers[0].outputs_changed) == (0, 0)
    broken = FaultMap.from_faults(config, [Fault(0, 1, Site.MULTIPLIER, 0, Kind.STUCK_AT_1)])
    report = run_chip(network, Accelerator(config, broken), images, labels, expected, batch=10)
    assert 0 < report.layers[0].outputs_changed <= 10


def test_layers_report_shapes_and_cycles(network: nn.Module, images: torch.Tensor) -> None:
    finished: list[int] = []
    labels = torch.zeros(10, dtype=torch.int64)
    report = run_chip(network, Accelerator(CONFIG), images, labels, labels, batch=4, progress=finished.append)
    assert finished == [4, 4, 2]
    convolution, linear = report.layers
    assert (convolution.m, convolution.k, convolution.n, convolution.gemms) == (4 * 36, 9, 2, 3 * 2)
    assert (linear.m, linear.k, linear.n, linear.gemms) == (4, 144, 5, 3)
    timings = [gemm_timing(CONFIG, rows, 144, 5) for rows in (4, 4, 2)]
    assert linear.serial_cycles == sum(timing.serial for timing in timings)
    assert linear.double_buffered_cycles == sum(timing.double_buffered for timing in timings)
    assert linear.multiply_accumulates == 10 * 144 * 5
    assert linear.utilisation(CONFIG) == 10 * 144 * 5 / (32 * linear.serial_cycles)
    assert report.serial_cycles == convolution.serial_cycles + linear.serial_cycles


def test_a_fault_shows_in_the_layers_that_use_its_column(network: nn.Module, images: torch.Tensor) -> None:
    # Bit 31 of the sums of column 3, stuck: the convolution's two outputs per group sit on columns 0 and 1, the linear
    # layer's five on columns 0..3 and 0, so only output 3 of the linear layer changes.
    faults = FaultMap.from_faults(CONFIG, [Fault(0, 3, Site.ACCUMULATOR, 31, Kind.STUCK_AT_1)])
    labels = torch.zeros(10, dtype=torch.int64)
    report = run_chip(network, Accelerator(CONFIG, faults), images, labels, labels, batch=10)
    convolution, linear = report.layers
    assert convolution.outputs_changed == 0
    assert 0 < linear.outputs_changed <= 10
    # Setting the sign bit of a sum that is not negative takes 2^31 from it.
    assert linear.largest_change == 1 << 31


def test_observers_are_taken_off_again(network: nn.Module, images: torch.Tensor) -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    run_chip(network, Accelerator(CONFIG), images, labels, labels, batch=10)
    assert all(layer.observer is None for layer in quantized_layers(network).values())


def test_batch_size_changes_no_prediction_and_no_change_count(network: nn.Module, images: torch.Tensor) -> None:
    seed = int(np.random.default_rng().integers(1 << 31))
    print(f"seed {seed}")  # noqa: T201
    faults = sample_faults(CONFIG, FaultModel(0.3), seed)
    labels = torch.zeros(10, dtype=torch.int64)
    reports = [
        run_chip(network, Accelerator(CONFIG, faults), images, labels, labels, batch=batch) for batch in (1, 3, 10)
    ]
    for report in reports[1:]:
        assert torch.equal(report.predictions, reports[0].predictions)
        assert [layer.outputs_changed for layer in report.layers] == [
            layer.outputs_changed for layer in reports[0].layers
        ]
