"""Where a layer's operands lie, and what its GEMMs give on an array without faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simulator import ArrayConfig, Kind
from simulator.errors import InputError
from tests.support.strategies import configs, convolutions, fault_maps, linear_layers
from training.injection.layer_gemm import GemmInMemory
from training.layers.accelerator import Accelerator
from training.layers.placement import Placement
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear, image_to_columns

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


def on_chip(layer: nn.Conv2d | nn.Linear, chip: Accelerator) -> QuantizedLayer:
    """Quantised; normal numbers beyond 2.5 are clipped."""
    kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    return kind(layer, 2.5 / chip.config.act_range[1], chip, "layer")  # type: ignore[arg-type]


def operands(layer: QuantizedLayer, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """X and W of each group, by im2col of the images as they are padded in float."""
    if not isinstance(layer, QuantizedConv2d):
        return [(layer.quantize_input(x).reshape(-1, layer.in_features), layer.weight_int.t())]  # type: ignore[union-attr]
    down, across = layer.product_padding
    padded = nn.functional.pad(layer.pad(x), [across, across, down, down])
    groups = layer.quantize_input(padded).chunk(layer.groups, dim=1)
    return [
        (image_to_columns(images, layer.kernel_size, layer.stride, layer.dilation), weights.flatten(1).t())
        for images, weights in zip(groups, layer.weight_int.chunk(layer.groups), strict=True)
    ]


@st.composite
def layers_on_chips(draw: st.DrawFn) -> tuple[nn.Conv2d | nn.Linear, tuple[int, ...], Accelerator]:
    """Any layer, the shape of one image's input, and a chip with permanent faults, which must make no difference."""
    layer, x = draw(linear_layers() | convolutions())
    shape = tuple(x.shape[-3:]) if isinstance(layer, nn.Conv2d) else tuple(x.shape[-draw(st.integers(1, x.ndim)) :])
    config = draw(configs())
    faults = draw(fault_maps(config, 0, (Kind.STUCK_AT_0, Kind.STUCK_AT_1)))
    return layer, shape, Accelerator(config, faults)


@settings(max_examples=30)
@given(case=layers_on_chips(), images=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_gemms_are_those_of_an_array_without_faults(
    case: tuple[nn.Conv2d | nn.Linear, tuple[int, ...], Accelerator], images: int, seed: int
) -> None:
    layer, shape, chip = case
    torch.manual_seed(seed)
    x = torch.randn(images, *shape)
    quantized, healthy = on_chip(layer, chip), on_chip(layer, Accelerator.fault_free(chip.config))
    gemm = GemmInMemory.of(quantized, shape)
    assert (gemm.groups, gemm.k, gemm.n) == quantized.gemm_shape
    memory = gemm.memory(x)
    assert memory.dtype == (np.int8 if chip.config.act_signed else np.uint8)
    assert memory.shape == (images, gemm.image_size)
    accumulated = gemm.accumulate(memory)
    assert accumulated.dtype == np.int32
    assert accumulated.shape == (images, gemm.outputs, gemm.m)
    for group, (rows, w) in enumerate(operands(quantized, x)):
        rows = rows.reshape(images, gemm.m, gemm.k)
        assert np.array_equal(memory[:, gemm.start[:, None] + gemm.offset[group]], rows)
        assert np.array_equal(gemm.weights[group].T, w)
        found = accumulated[:, group * gemm.n : (group + 1) * gemm.n]
        for image in range(images):
            assert np.array_equal(found[image].T, healthy.accelerator.gemm(rows[image], w))
    result = gemm.result(accumulated)
    assert result.is_contiguous()
    assert result.shape == (images, *gemm.output_shape)
    if images:
        assert torch.equal(result, healthy(x))
    # Any accumulators will do, as they come of a fault.
    assert torch.equal(gemm.result(np.zeros_like(accumulated)), gemm.result(np.broadcast_to(0, accumulated.shape)))


def test_whole_rows_of_x_begin_where_it_says(seed: int) -> None:
    torch.manual_seed(seed)
    layer = on_chip(nn.Conv2d(2, 3, 3, stride=(2, 1), padding=1), Accelerator(ArrayConfig(4, 4)))
    gemm = GemmInMemory.of(layer, (2, 5, 6))
    assert (gemm.down, gemm.across, gemm.step_down, gemm.step_across) == (3, 6, 16, 1)
    assert gemm.image_size == 2 * 7 * 8
    assert gemm.start.tolist() == [down * 16 + across for down in range(3) for across in range(6)]
    assert gemm.offset.tolist() == [
        [56 * c + 8 * row + column for c in (0, 1) for row in range(3) for column in range(3)]
    ]
    with pytest.raises(ValueError, match="read-only"):
        gemm.weights[0, 0, 0] = 1


def test_what_has_no_such_gemm_is_refused() -> None:
    chip = Accelerator(ArrayConfig(4, 4))
    convolution = on_chip(nn.Conv2d(2, 3, 3), chip)
    with pytest.raises(InputError, match=r"input of one image has shape \[3, 3\]: expected \[2, height, width\]"):
        GemmInMemory.of(convolution, (3, 3))
    with pytest.raises(InputError, match="smaller than the kernel"):
        GemmInMemory.of(convolution, (2, 2, 3))
    linear = on_chip(nn.Linear(2, 3), chip)
    with pytest.raises(InputError, match=r"expected \[\.\.\., 2\]"):
        GemmInMemory.of(linear, (3,))
    linear.placement = Placement.in_order(1, 2, 3)
    with pytest.raises(InputError, match="placed elsewhere on the array: expected them in order"):
        GemmInMemory.of(linear, (2,))
