"""Tables of a propagation campaign that cannot be are refused in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from efat.propagation.population import LayerShape
from efat.propagation.tables import FAULTS_DTYPE, STRATA_DTYPE
from simulator.errors import InputError
from tests.support.propagation import changed, small_propagation, table_of
from training.injection.network_graph import GraphOperation

SMALL = small_propagation()


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (0, {"site": 7}, r"site in faults is 7: expected 0\.\.6"),
        (0, {"kind": 3}, r"kind in faults is 3: expected 0\.\.2"),
        (0, {"bit": 3}, r"bit of WEIGHT in faults is 3: expected 0\.\.2"),
        (0, {"bit": 1}, r"faults is \(0, 1, 1\): expected site, bit and kind of a stratum"),
        (0, {"kind": 0}, r"faults is \(0, 2, 0\): expected site, bit and kind of a stratum"),
        (0, {"index": -1}, r"index in faults is -1: expected 0\.\.9614"),
        (2, {"index": 9615}, r"index in faults is 9615: expected 0\.\.9614"),
        (0, {"row": 4}, r"row in faults is 4: expected 0\.\.3"),
        (0, {"col": 3}, r"col in faults is 3: expected 0\.\.2"),
        (2, {"layer": 2}, r"layer of flips is 2: expected 0\.\.1"),
        (2, {"layer": -1}, "layer of flips is -1"),
        (2, {"group": 1}, "group of flips is 1: expected one of the layer"),
        (2, {"group": -1}, "group of flips is -1"),
        (2, {"cycle": -1}, "cycle of flips is -1"),
        (2, {"image": 4}, r"image of flips is 4: expected 0\.\.3"),
        (0, {"rule": 4}, r"rule in faults is 4: expected 0\.\.3"),
        (0, {"rule": 3, "same_as": 9615}, r"same_as in faults is 9615: expected -1\.\.9614"),
        (0, {"images": 5}, r"images in faults is 5: expected 1\.\.4"),
        (2, {"images": 0}, r"images in faults is 0: expected 1\.\.4"),
        (0, {"benign": 2}, "images in faults is 4: expected the sum of inactive, masked"),
        (0, {"benign": 2**32 - 1, "masked": 3}, "images in faults is 4: expected the sum"),
        (0, {"first_layer": -2}, r"first_layer in faults is -2: expected -1\.\.1"),
        (0, {"last_layer": 2}, r"last_layer in faults is 2: expected -1\.\.1"),
    ],
)
def test_faults_that_cannot_be_are_refused(row: int, values: dict[str, int], message: str) -> None:
    assert_refused({"faults": changed("faults", row, **values)}, message)


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (2, {"fault": 3}, r"fault in layers is 3: expected 0\.\.2"),
        (2, {"layer": 2}, r"layer in layers is 2: expected 0\.\.1"),
        (0, {"largest_error": -1}, "largest_error in layers is -1"),
        (0, {"error_sum": np.nan}, "error_sum in layers is nan"),
        (0, {"error_sum": np.inf}, "error_sum in layers is inf"),
    ],
)
def test_layers_that_cannot_be_are_refused(row: int, values: dict[str, float], message: str) -> None:
    assert_refused({"layers": changed("layers", row, **values)}, message)


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (4, {"stratum": 3}, r"stratum in operations is 3: expected 0\.\.2"),
        (4, {"operation": 5}, r"operation in operations is 5: expected 0\.\.4"),
        (1, {"images_out": 2**63}, r"images_out in operations is 9223372036854775808: expected 0\.\."),
    ],
)
def test_operations_that_cannot_be_are_refused(row: int, values: dict[str, int], message: str) -> None:
    assert_refused({"operations": changed("operations", row, **values)}, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, r"images is 0: expected 1\.\.10000000"),
        ({"images": 3}, r"images in faults is 4: expected 1\.\.3|image of flips is 3"),
        ({"fault_free_correct": 5}, r"fault_free_correct is 5: expected 0\.\.4"),
        ({"faults": np.zeros((1, 1), FAULTS_DTYPE)}, "expected its columns, as docs/formats.md says, with 1 dimension"),
        ({"faults": np.zeros(1)}, r"faults is float64 \(1,\): expected its columns, as docs"),
        ({"strata": table_of(STRATA_DTYPE)}, "there are no strata"),
        ({"strata": changed("strata", 0, sampled=1)}, "sampled in strata is 1: expected the number of its rows"),
        ({"strata": changed("strata", 0, population=1)}, "sampled in strata is 2: expected at most its population"),
        ({"strata": changed("strata", 0, population=-1)}, "population in strata is -1"),
        ({"strata": changed("strata", 2, site=1, bit=3)}, r"bit of WEIGHT_LOAD in strata is 3: expected 0\.\.2"),
        ({"layer_shapes": []}, "there are no layers"),
        ({"graph": []}, "there are no operations"),
        (
            {"layer_shapes": [LayerShape("a\nb", 1, 1, 1, 1)]},
            "in layer_shapes: expected a printable name of at most 256",
        ),
        ({"layer_shapes": [LayerShape("ü" * 129, 1, 1, 1, 1)]}, "'ü+ in layer_shapes: expected a printable name"),
        ({"layer_shapes": [LayerShape("a", 0, 1, 1, 1)]}, r"groups in layer_shapes is 0: expected 1\.\."),
        ({"layer_shapes": [LayerShape("a", 1, 1, 2**31, 1)]}, "k in layer_shapes is 2147483648"),
        ({"graph": [*SMALL.graph, GraphOperation("a", "relu", 2)]}, r"layer in graph is 2: expected -1\.\.1"),
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    assert_refused(changes, message)


def assert_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        replace(SMALL, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
