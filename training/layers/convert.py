"""From a float network to one whose integer GEMMs run on an accelerator: post-training static quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from simulator import ArrayConfig
from simulator.errors import ConversionError, InputError
from training.calibration import DEFAULT_PERCENTILE, MagnitudeHistogram, Method, check_method
from training.layers.accelerator import Accelerator
from training.layers.quantized import Observer, QuantizedConv2d, QuantizedLayer, QuantizedLinear, float_parameters
from training.layers.quantized_already import check_float_network
from training.layers.user_code import copied, failure
from training.numbers import activation_limits

FloatLayer = nn.Conv2d | nn.Linear

_Module = TypeVar("_Module", bound=nn.Module)

Seen = Callable[[str, Tensor], None]
"""Called with a layer's name and its input."""


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The one input of a layer among the arguments of its call."""
    return args[0] if args else kwargs.get("input")


def float_layers(network: nn.Module) -> Iterator[tuple[str, FloatLayer]]:
    """Each layer once, under its first name; a network that is a single layer is named after its type."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield name or type(layer).__name__.lower(), layer


@contextmanager
def seen_calls(layers: Mapping[str, FloatLayer], see: Seen) -> Iterator[None]:
    """While this is open, `see` is called with the input of each layer before it runs."""
    forwards = {layer: seen_forward(name, layer, see) for name, layer in layers.items()}
    with other_forwards(forwards):
        yield


def seen_forward(name: str, layer: FloatLayer, see: Seen) -> Callable[..., Tensor]:
    """What computes as the float layer, and tells of each call."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        found = input_of(args, kwargs)
        if isinstance(found, Tensor):
            see(name, found)
        # Of the type: the instance may have another one for a while.
        plain: Callable[..., Tensor] = type(layer).forward
        return plain(layer, *args, **kwargs)

    return forward


@contextmanager
def other_forwards(forwards: Mapping[_Module, Callable[..., Any]]) -> Iterator[None]:
    """While this is open, modules compute something else."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


CHECKED_INPUTS = 8
"""How many inputs of the first calibration batch a network is checked on."""

_TOLERANCE = 1e-3
"""Of the largest magnitude, or of a sum of magnitudes: far above the rounding of float32, far below a mistake."""

_FIX = "call layers, and use no more of them than weight, bias and sizes"


@dataclass(frozen=True, eq=False)
class FloatRun:
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


def run_in_float(network: nn.Module, inputs: Tensor) -> FloatRun:
    """What a float network does, whenever it runs.

    Args:
        network: in evaluation mode.
        inputs: what it is called with.

    Raises:
        ConversionError: it does something else each time.
    """
    # The first time some networks make what they then keep.
    _, first, second = runs = FloatRun(), FloatRun(), FloatRun()
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
    expected: FloatRun,
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
    found = FloatRun()
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


def _first_difference(expected: FloatRun, found: FloatRun) -> str | None:
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

    rounded = quantized.input_as_float32(x.detach()) * quantized.activation_scale
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


__all__ = ["ConversionError", "check_convertible", "convert", "put_on_chip", "quantized_layers"]

Calibration = Tensor | Iterable[Any]
"""One batch, or batches; a batch is the input tensor or a tuple or list that starts with it, as loaders give."""

_UNCONVERTIBLE: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "write it as a Conv2d with a kernel of (1, k)"),
    (nn.Conv3d, "write it as a Conv2d whose channels are those of all slices of a window"),
    (_ConvTransposeNd, "write it as a Conv2d on the image with zeros between the pixels"),
    (nn.Bilinear, "write it as a Linear on the outer product of its inputs"),
    (nn.MultiheadAttention, "write its projections as Linear layers"),
    (nn.RNNBase, "write its cell with Linear layers"),
    (nn.RNNCellBase, "write its gates as Linear layers"),
)


def convert(
    module: nn.Module,
    config: ArrayConfig,
    calibration: Calibration,
    *,
    method: Method = "max",
    percentile: float = DEFAULT_PERCENTILE,
    accelerator: Accelerator | None = None,
    activation_scales: Mapping[str, float] | None = None,
) -> nn.Module:
    """Quantise every Conv2d and Linear of a network and put them on an accelerator.

    Everything else of the network stays as it is and computes in float. A layer used in several places stays one
    layer with one input scale. What a network computes by calling functions instead of layers (such as
    `torch.nn.functional.linear` with a weight of its own) is not seen and stays float. On a few inputs of the first
    batch the converted network is held against the float one: see `training.layers.convert`.

    Args:
        module: the trained float32 network; it is not changed.
        config: the array; gives the widths of weights and activations.
        calibration: inputs like those to come: one batch (a tensor) or batches, whose first item is used if they
            are tuples or lists.
        method: how input scales are chosen from them: see `training.calibration`.
        percentile: for method `percentile`, in percent.
        accelerator: the chip to run on; a fault-free one of `config` in the emulation if None.
        activation_scales: the value of one step of each layer's input by the layer's name, as `quantized_layers` has
            them; then nothing is calibrated, and `calibration` may be empty, in which case the converted network is
            not held against the float one either. None to choose them on `calibration`.

    Returns:
        A converted copy, in evaluation mode.

    Raises:
        ConversionError: there is no layer to convert, or one that cannot be; weights or activations are not finite;
            calibration data is missing, does not fit the network, does not reach a layer, or is negative where
            activations are unsigned; `activation_scales` lacks a layer, names one that is not there, or has a value
            that is not positive and finite; or the converted network does something else than the float one, which
            the rounding of its layers does not explain.
        InputError: an unknown method, or a percentile outside (0, 100].
        ValueError: `accelerator` has other widths than `config`.
    """
    check_method(method, percentile)
    if accelerator is None:
        accelerator = Accelerator(config)
    _check_widths(config, accelerator.config)
    check_convertible(module)
    network = copied(module)
    network.eval()
    scales: Mapping[str, Tensor | float]
    batches = _batches(calibration)
    first = next(batches, None)
    if activation_scales is None:
        if first is None:
            raise ConversionError("no calibration data: give at least one batch of inputs")
        levels = activation_limits(config)[1]
        histograms = _calibrate(network, chain([first], batches), config)
        scales = {name: histogram.scale(method, levels, percentile) for name, histogram in histograms.items()}
    else:
        _check_scales(network, activation_scales)
        scales = activation_scales
    checked = None if first is None else _run_some(network, first)
    layers: dict[FloatLayer, QuantizedLayer] = {}
    for name, layer in float_layers(network):
        scale = scales[name]
        quantized = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        layers[layer] = quantized(layer, scale, accelerator, name).eval()
        layer.forward = partial(_refuse_to_run, type(layer).__name__)  # type: ignore[method-assign]
    converted = with_replaced(network, layers)
    if checked is not None:
        check_conversion(converted, layers, *checked)
    return converted


def with_replaced(network: nn.Module, others: Mapping[Any, nn.Module]) -> nn.Module:
    """Put other modules in the place of some, wherever they are used; gives the network, which may be one itself."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child in others:
                parent._modules[name] = others[child]
    return others.get(network, network)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantised layers of a converted network by name, in the order they are defined."""
    return {layer.name: layer for layer in module.modules() if isinstance(layer, QuantizedLayer)}


@contextmanager
def observing(module: nn.Module, observer: Observer) -> Iterator[None]:
    """While this is open, `observer` sees each GEMM that the quantised layers of a converted network run."""
    layers = quantized_layers(module).values()
    for layer in layers:
        layer.observer = observer
    try:
        yield
    finally:
        for layer in layers:
            layer.observer = None


def put_on_chip(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Put all quantised layers of a converted network on another chip, in place.

    Args:
        module: a converted network.
        accelerator: an array of any size and accumulator width, with the widths of weights and activations that the
            network was converted for.

    Returns:
        `module`.

    Raises:
        ConversionError: `module` has no quantised layers.
        ValueError: the accelerator has other widths.
    """
    layers = quantized_layers(module).values()
    if not layers:
        raise ConversionError(f"{type(module).__name__} has no quantised layers: convert() it first")
    for layer in layers:
        _check_widths(layer.config, accelerator.config)
    for layer in layers:
        layer.accelerator = accelerator
    return module


def _check_widths(network: ArrayConfig, array: ArrayConfig) -> None:
    for name in ("weight_bits", "act_bits", "act_signed"):
        expected, found = getattr(network, name), getattr(array, name)
        if expected != found:
            raise ValueError(f"the accelerator has {name}={found}, the network {expected}: convert the network anew")


def check_convertible(module: nn.Module) -> None:
    """Refuse a network with layers that cannot be converted, or without any that can.

    Raises:
        ConversionError: it is such.
    """
    check_float_network(module)
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        for unconvertible, fix in _UNCONVERTIBLE:
            if isinstance(layer, unconvertible):
                raise ConversionError(
                    f"layer {name!r} is a {kind}, which cannot be converted: {fix}; docs/networks.md shows how"
                )
        if isinstance(layer, QuantizedLayer):
            raise ConversionError(
                f"layer {name!r} is quantised already: convert the float network, or use put_on_chip()"
            )
    layers = list(float_layers(module))
    if not layers:
        raise ConversionError(f"{type(module).__name__} has no Conv2d or Linear layer: there is nothing to convert")
    for name, layer in layers:
        if any(is_lazy(parameter) for parameter in layer.parameters()):
            raise ConversionError(f"layer {name!r} has no weights yet: run the network on one batch first")
        if not layer.weight.numel():
            raise ConversionError(
                f"layer {name!r} has weights of shape {list(layer.weight.shape)}: expected inputs and outputs"
            )
        if _has_own_forward(layer):
            raise ConversionError(
                f"layer {name!r} is a {type(layer).__name__} with a forward of its own: "
                "use a plain Conv2d or Linear and put the rest into another module"
            )
        if "forward" in vars(layer):
            raise ConversionError(
                f"layer {name!r} has had its forward replaced, which would be lost: put what it does into a module"
            )
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise ConversionError(f"layer {name!r} has forward hooks, which would be lost: remove them first")
        float_parameters(layer, name)


def _check_scales(network: nn.Module, scales: Mapping[str, float]) -> None:
    names = [name for name, _ in float_layers(network)]
    for name in names:
        if name not in scales:
            raise ConversionError(f"layer {name!r} has no activation scale: give one for each layer, or calibrate")
    for name in scales:
        if name not in names:
            raise ConversionError(
                f"there is an activation scale for layer {name!r}, which the network has not: "
                "give those of this network, or calibrate"
            )


def _has_own_forward(layer: FloatLayer) -> bool:
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        return kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward
    return kind.forward is not nn.Linear.forward


def _refuse_to_run(kind: str, *_args: object, **_kwargs: object) -> Tensor:
    """Runs when the network keeps a second reference to a layer that was replaced, where no float result may hide."""
    raise ConversionError(
        f"a converted {kind} is still used in its float form: "
        "keep layers only as attributes or in ModuleList, ModuleDict and Sequential"
    )


def _calibrate(network: nn.Module, batches: Iterable[Tensor], config: ArrayConfig) -> dict[str, MagnitudeHistogram]:
    """The inputs of each layer, while the network runs on batches."""
    histograms = {name: MagnitudeHistogram() for name, _ in float_layers(network)}

    def observe(name: str, x: Tensor) -> None:
        try:
            histograms[name].update(x)
        except InputError as error:
            raise ConversionError(f"layer {name!r}: {error}") from None

    with torch.no_grad(), seen_calls(dict(float_layers(network)), observe):
        for count, batch in enumerate(batches):
            _run(network, batch, count)
    for name, histogram in histograms.items():
        if not histogram.total:
            raise ConversionError(
                f"layer {name!r} was never reached by the calibration data: remove it from the network, or give inputs "
                "that reach it"
            )
        if histogram.smallest < 0 and not config.act_signed:
            raise ConversionError(
                f"layer {name!r}: calibration inputs go down to {histogram.smallest:.3g} but activations are unsigned: "
                "use act_signed=True, or put a ReLU before it"
            )
    return histograms


def _run(network: nn.Module, batch: Tensor, count: int) -> None:
    try:
        network(batch)
    except InputError:
        raise
    except Exception as error:
        raise _failed(network, error, batch, count) from error


def _run_some(network: nn.Module, batch: Tensor) -> tuple[Tensor, FloatRun]:
    """Some inputs of a batch, or all if the network takes no fewer, and what the network does with them."""
    some = batch[:CHECKED_INPUTS]
    try:
        return some, run_in_float(network, some)
    except InputError:
        raise
    except Exception:
        # Whatever the user's network has against so few; against all it has nothing, if it was calibrated on them.
        try:
            return batch, run_in_float(network, batch)
        except InputError:
            raise
        except Exception as error:
            raise _failed(network, error, batch, 0) from error


def _failed(network: nn.Module, error: Exception, batch: Tensor, count: int) -> ConversionError:
    """Whatever the user's network raises on inputs, it is the inputs or the network that must change."""
    return ConversionError(
        f"the network failed on calibration batch {count} of shape {list(batch.shape)}: {failure(error, network)}"
    )


def _batches(calibration: Calibration) -> Iterator[Tensor]:
    batches = [calibration] if isinstance(calibration, Tensor) else calibration
    try:
        iterator = iter(batches)
    except TypeError:
        raise ConversionError(
            f"calibration data is a {type(calibration).__name__}: expected a tensor or an iterable of batches"
        ) from None
    for position, batch in enumerate(iterator):
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(inputs, Tensor):
            raise ConversionError(
                f"calibration batch {position} is a {type(inputs).__name__}: expected a tensor, or a tuple or list "
                "that starts with one"
            )
        if inputs.numel():
            yield inputs
