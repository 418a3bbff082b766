"""Whether a converted network is still the network that was converted, but for the rounding of its layers.

What a network does between its layers may depend on what these are: on their type, on attributes that a quantised layer
has not, on their parameters. So the converted network runs with its layers computing in float, as those that they
replace do: whatever then differs from the float network has nothing to do with quantisation. After that it runs as it
is on an array without faults, and each layer's result is held against the float layer's on the same quantised input: it
may differ by the rounding of weights and bias, and no more, except where sums wrap or multipliers are not exact.

No threshold is about how well a network bears quantisation: one of 2 bits, or of random weights, passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.errors import ConversionError
from training.layers.accelerator import Accelerator
from training.layers.layer_calls import FloatLayer, float_layers, input_of, other_forwards, seen_calls, seen_forward
from training.layers.quantized import QuantizedLayer
from training.layers.user_code import failure

CHECKED_INPUTS = 8
"""How many inputs of the first calibration batch a network is checked on."""

_TOLERANCE = 1e-3
"""Of the largest magnitude, or of a sum of magnitudes: far above the rounding of float32, far below a mistake."""

_FIX = "call layers, and use no more of them than weight, bias and sizes"


@dataclass(frozen=True, eq=False)
class Run:
    """What a network does with some inputs.

    Attributes:
        calls: name and input of each layer, in the order in which they ran.
        outputs: the tensors that the network returned.
    """

    calls: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def see(self, name: str, x: Tensor) -> None:
        """Note a call."""
        self.calls.append((name, x.detach().clone()))


def run_in_float(network: nn.Module, inputs: Tensor) -> Run:
    """What a float network does, whenever it runs.

    Args:
        network: in evaluation mode.
        inputs: what it is called with.

    Raises:
        ConversionError: it does something else each time.
    """
    # The first time some networks make what they then keep.
    _, first, second = runs = Run(), Run(), Run()
    for run in runs:
        with seen_calls(dict(float_layers(network)), run.see):
            run.outputs.extend(_outputs(network, inputs))
    if _first_difference(first, second) is not None:
        raise ConversionError(
            f"{type(network).__name__} gives other outputs each time it runs on the same inputs: it must neither draw "
            "random numbers in evaluation mode nor depend on what it ran on before"
        )
    return first


def check_conversion(
    converted: nn.Module,
    layers: Mapping[FloatLayer, QuantizedLayer],
    inputs: Tensor,
    expected: Run,
) -> None:
    """Check that a converted network does what the float network does, but for the rounding of its layers.

    Args:
        converted: the network; its layers are on the chips afterwards that they were on.
        layers: the quantised form of each float layer.
        inputs: what it is called with.
        expected: what the float network does with them.

    Raises:
        ConversionError: it does something else; the first layer that shows it is named.
    """
    found = Run()
    in_float = {quantized: seen_forward(quantized.name, layer, found.see) for layer, quantized in layers.items()}
    with other_forwards(in_float):
        found.outputs.extend(_outputs_of_converted(converted, inputs))
    difference = _first_difference(expected, found)
    if difference is not None:
        raise ConversionError(difference)
    chips = {quantized: quantized.accelerator for quantized in layers.values()}
    try:
        for quantized, chip in chips.items():
            quantized.accelerator = Accelerator.fault_free(chip.config)
        with other_forwards({quantized: _held_against(layer, quantized) for layer, quantized in layers.items()}):
            _outputs_of_converted(converted, inputs)
    finally:
        for quantized, chip in chips.items():
            quantized.accelerator = chip


def _outputs_of_converted(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    try:
        return _outputs(network, inputs)
    except ConversionError:
        raise
    except Exception as error:
        # Whatever the user's network raises, it did not with the float layers.
        raise ConversionError(
            f"the float network runs and the converted one does not: {failure(error, network)}; {_FIX}"
        ) from error


def _outputs(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The tensors that a network returns."""
    with torch.no_grad():
        return [tensor.detach().clone() for tensor in _tensors(network(inputs))]


def _tensors(returned: Any) -> Iterator[Tensor]:
    """Those in tuples, lists and dictionaries, however nested."""
    if isinstance(returned, Tensor):
        yield returned
    elif isinstance(returned, Mapping | tuple | list):
        for value in returned.values() if isinstance(returned, Mapping) else returned:
            yield from _tensors(value)


def _first_difference(expected: Run, found: Run) -> str | None:
    """The first call of another layer or with another input, or else another output, in words; None if all is equal.

    Nothing is quantised in either run.
    """
    before = "the beginning"
    for one, other in zip_longest(expected.calls, found.calls):
        if one is None or other is None or one[0] != other[0]:
            comes, instead = (f"layer {call[0]!r}" if call else "its end" for call in (one, other))
            return (
                f"after {before} the float network comes to {comes}, and the converted one to {instead}: "
                f"does it choose layers by their type? {_FIX}"
            )
        name, x = one
        off = _relative_difference(x, other[1])
        if off > _TOLERANCE:
            return (
                f"layer {name!r} gets other inputs once layers are converted, even if they compute in float "
                f"(relative difference {off:.3g}): see what is done between {before} and it; {_FIX}"
            )
        before = f"layer {name!r}"
    offs = [_relative_difference(one, other) for one, other in zip(expected.outputs, found.outputs, strict=False)]
    if len(expected.outputs) == len(found.outputs) and max(offs, default=0.0) <= _TOLERANCE:
        return None
    return (
        "the outputs are others once layers are converted, even if they compute in float "
        f"(relative difference {max(offs, default=1.0):.3g}): see what is done after {before}; {_FIX}"
    )


def _relative_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference, of the largest magnitude; infinity for another shape or NaN in other places."""
    if expected.shape != found.shape:
        return float("inf")
    one, two = expected.double(), found.double()
    same = (one == two) | (one.isnan() & two.isnan())
    if bool(same.all()):
        return 0.0
    difference = (one - two)[~same].abs().max()
    finite = one[one.isfinite()].abs()
    largest = finite.max() if finite.numel() else torch.zeros(())
    return float(torch.nan_to_num(difference / largest, nan=float("inf")))


def _held_against(layer: FloatLayer, quantized: QuantizedLayer) -> Callable[..., Tensor]:
    """What computes as the quantised layer, and checks each result."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = type(quantized).forward(quantized, *args, **kwargs)
        if quantized.config.multiplies_exactly:
            _check_result(layer, quantized, input_of(args, kwargs), result)
        return result

    return forward


def _check_result(layer: FloatLayer, quantized: QuantizedLayer, x: Tensor, result: Tensor) -> None:
    """Refuse a result that is further from the float layer's than weights and bias may be rounded."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            convolved: Tensor = layer._conv_forward(x, weight, bias)
            return convolved.double()
        return functional.linear(x, weight, bias).double()

    rounded = quantized.whole_input(x.detach()) * quantized.activation_scale
    column = quantized.weight_scale.view(-1, *[1] * (quantized.weight.ndim - 1))
    weight, bias = quantized.weight, quantized.bias
    magnitude = product(rounded.abs(), weight.abs() + column, None if bias is None else bias.abs())
    half = None if bias is None else quantized.output_scale / 2
    allowed = product(rounded.abs(), (column / 2).expand_as(weight), half) + _TOLERANCE * magnitude
    shape = [1] * result.ndim
    shape[-3 if isinstance(layer, nn.Conv2d) else -1] = -1
    fits = magnitude < quantized.output_scale.double().view(shape) * 2.0 ** (quantized.config.acc_bits - 1)
    off = ((result.double() - product(rounded, weight, bias)).abs() > allowed) & fits
    if bool(off.any()):
        raise ConversionError(
            f"layer {quantized.name!r}: {int(off.sum())} of {off.numel()} results are further from the float layer's "
            "than rounding explains: convert another form of it, and report it"
        )
