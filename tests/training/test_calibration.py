"""Scales from calibration data against plain NumPy on all of the data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simulator.errors import InputError
from training.calibration import METHODS, MagnitudeHistogram, check_method

RESOLUTION = 2.0**-9
"""Width of a bin relative to the numbers in it."""

magnitudes = arrays.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(2.0**-20, 2.0**20, width=32) | st.just(0.0)
)


def histogram(*batches):
    result = MagnitudeHistogram()
    for batch in batches:
        result.update(torch.as_tensor(batch))
    return result


@settings(deadline=None)
@given(magnitudes, st.integers(1, 299))
def test_max_is_exact_and_batches_do_not_matter(values, cut):
    whole, parts = histogram(values), histogram(-values[:cut], values[cut:])
    assert whole.threshold("max", 127) == parts.threshold("max", 127) == values.max()
    for method in METHODS:
        assert whole.threshold(method, 127) == parts.threshold(method, 127)
    assert whole.total == parts.total == len(values)


@settings(deadline=None)
@given(magnitudes, st.floats(1, 100))
def test_percentile_is_the_order_statistic(values, percentile):
    exact = np.sort(values)[max(1, int(np.ceil(len(values) * percentile / 100))) - 1]
    found = histogram(values).threshold("percentile", 127, percentile)
    if exact == 0:
        assert found == values.max()
    else:
        assert exact <= found <= exact * (1 + RESOLUTION)


def test_percentile_leaves_outliers_out():
    values = torch.ones(100_000)
    values[:3] = 1000.0
    assert histogram(values).threshold("max", 127) == 1000.0
    assert 1.0 <= histogram(values).threshold("percentile", 127) <= 1 + RESOLUTION


def squared_error(values, threshold, levels):
    step = threshold / levels
    return float(((np.minimum(np.rint(values / step), levels) * step - values) ** 2).sum())


@pytest.mark.parametrize("levels", [1, 7, 127, 255])
def test_mse_is_near_the_best_of_all_thresholds(levels):
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print(f"seed {seed}")  # noqa: T201
    values = np.abs(np.random.default_rng(seed).standard_t(3, 20_000)).astype(np.float32).astype(np.float64)
    found = histogram(values.astype(np.float32)).threshold("mse", levels)
    best = min(
        squared_error(values, threshold, levels) for threshold in np.linspace(values.max() / 400, values.max(), 400)
    )
    assert squared_error(values, found, levels) <= 1.05 * best
    assert found <= values.max()


def test_zeros_have_a_sane_scale():
    for method in METHODS:
        assert float(histogram(torch.zeros(10)).scale(method, 127)) == float(np.float32(1 / 127))


def test_the_sign_of_the_values_is_remembered():
    assert histogram(torch.tensor([-2.0, 5.0])).smallest == -2.0
    assert histogram(torch.tensor([2.0, 5.0])).smallest == 0.0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(broken):
    with pytest.raises(InputError, match="NaN or infinity"):
        histogram(torch.tensor([1.0, broken]))


def test_unknown_methods_and_percentiles_are_refused():
    with pytest.raises(InputError, match=r"'median' is unknown: choose one of max, percentile, mse"):
        check_method("median", 99.0)
    for percentile in (0.0, -1.0, 100.1, float("nan")):
        with pytest.raises(InputError, match="expected more than 0 and at most 100"):
            check_method("percentile", percentile)
