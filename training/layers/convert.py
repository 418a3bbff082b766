"""From a float network to one whose integer GEMMs run on an accelerator: post-training static quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from simulator import ArrayConfig
from simulator.errors import ConversionError, InputError
from training.calibration import DEFAULT_PERCENTILE, MagnitudeHistogram, Method, check_method
from training.layers.accelerator import Accelerator
from training.layers.quantized import Observer, QuantizedConv2d, QuantizedLayer, QuantizedLinear, float_parameters
from training.layers.user_code import copied, failure, tensors_in
from training.numbers import activation_limits

FloatLayer = nn.Conv2d | nn.Linear

_Module = TypeVar("_Module", bound=nn.Module)


def float_layers(network: nn.Module) -> Iterator[tuple[str, FloatLayer]]:
    """Each layer once, under its first name; a network that is a single layer is named after its type."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield name or type(layer).__name__.lower(), layer


def _seen_forward(name: str, layer: FloatLayer, see: Callable[[str, Tensor], None]) -> Callable[..., Tensor]:
    """What computes as the float layer, and calls `see` with its name and input before."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        found = _input_of(args, kwargs)
        if isinstance(found, Tensor):
            see(name, found)
        # Of the type: the instance may have another one for a while.
        plain: Callable[..., Tensor] = type(layer).forward
        return plain(layer, *args, **kwargs)

    return forward


def _seen_forwards(network: nn.Module, see: Callable[[str, Tensor], None]) -> dict[FloatLayer, Callable[..., Tensor]]:
    return {layer: _seen_forward(name, layer, see) for name, layer in float_layers(network)}


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The one input of a layer among the arguments of its call."""
    return args[0] if args else kwargs.get("input")


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


_CHECKED_INPUTS = 8
"""How many inputs of the first calibration batch a network is checked on."""

_TOLERANCE = 1e-3
"""Of the largest magnitude, or of a sum of magnitudes: far above the rounding of float32, far below a mistake."""

_FIX = "call layers, and use no more of them than weight, bias and sizes"


@dataclass(frozen=True, eq=False)
class _FloatRun:
    """What a network does with some inputs: name and input of each layer as they ran, and what it returned."""

    calls: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def see(self, name: str, x: Tensor) -> None:
        self.calls.append((name, x.detach().clone()))

    def run(self, network: nn.Module, forwards: Mapping[Any, Callable[..., Tensor]], inputs: Tensor) -> None:
        with other_forwards(forwards), torch.no_grad():
            self.outputs.extend(tensor.detach().clone() for tensor in tensors_in(network(inputs)))


def _run_in_float(network: nn.Module, inputs: Tensor) -> _FloatRun:
    """What a float network does, whenever it runs."""
    # The first time some networks make what they then keep.
    _, first, second = runs = _FloatRun(), _FloatRun(), _FloatRun()
    for run in runs:
        run.run(network, _seen_forwards(network, run.see), inputs)
    if _first_difference(first, second) is not None:
        raise ConversionError(
            f"{type(network).__name__} gives other outputs each time it runs on the same inputs: it must neither draw "
            "random numbers in evaluation mode nor depend on what it ran on before"
        )
    return first


def _check_conversion(
    converted: nn.Module, layers: Mapping[FloatLayer, QuantizedLayer], inputs: Tensor, expected: _FloatRun
) -> None:
    """Check that a converted network does what the float network does, but for the rounding of its layers."""
    found = _FloatRun()
    in_float = {quantized: _seen_forward(quantized.name, layer, found.see) for layer, quantized in layers.items()}
    failed = f"the float network runs and the converted one does not: {{}}; {_FIX}"
    with _blamed(converted, failed):
        found.run(converted, in_float, inputs)
    difference = _first_difference(expected, found)
    if difference is not None:
        raise ConversionError(difference)
    chips = {quantized: quantized.accelerator for quantized in layers.values()}
    held = {quantized: _held_against(layer, quantized) for layer, quantized in layers.items()}
    try:
        for quantized, chip in chips.items():
            quantized.accelerator = Accelerator.fault_free(chip.config)
        with _blamed(converted, failed):
            _FloatRun().run(converted, held, inputs)
    finally:
        for quantized, chip in chips.items():
            quantized.accelerator = chip


@contextmanager
def _blamed(network: nn.Module, message: str) -> Iterator[None]:
    """Whatever the user's network raises on inputs, it is the inputs or the network that must change."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(message.format(failure(error, network))) from error


def _first_difference(expected: _FloatRun, found: _FloatRun) -> str | None:
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
            _check_result(layer, quantized, _input_of(args, kwargs), result)
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
    step = quantized.output_scale.double().view(-1, *[1] * (-1 - quantized.channel_dim))
    fits = magnitude < step * 2.0 ** (quantized.config.acc_bits - 1)
    off = ((result.double() - product(rounded, weight, bias)).abs() > allowed) & fits
    if bool(off.any()):
        raise ConversionError(
            f"layer {quantized.name!r}: {int(off.sum())} of {off.numel()} results are further from the float layer's "
            "than rounding explains: convert another form of it, and report it"
        )


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
    batch the converted network is held against the float one.

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
        InputError: an unknown method, a percentile outside (0, 100], or an `accelerator` of other widths.
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
        _check_conversion(converted, layers, *checked)
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
    """Put all quantised layers of a converted network on another chip, in place; gives the network.

    Args:
        module: a converted network.
        accelerator: an array of any size and accumulator width, with the widths of weights and activations that the
            network was converted for.

    Raises:
        ConversionError: `module` has no quantised layers.
        InputError: the accelerator has other widths.
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
            raise InputError(f"the accelerator has {name}={found}, the network {expected}: convert the network anew")


_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.quantizable", "torchao.")
_PREPARED = (
    "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
)  # fmt: skip
_INSTEAD = "give the float32 network that it was made from, which is quantised here for the array"


def check_float_network(network: nn.Module) -> None:
    """Refuse a network that is quantised, prepared for it or a graph of operations, which has no layers to convert.

    Raises:
        ConversionError: it is such.
    """
    for name, module in network.named_modules():
        homes = [base.__module__ for base in type(module).__mro__]
        what = f"layer {name!r} is a {type(module).__name__}" if name else f"the network is a {type(module).__name__}"
        if any(home.startswith(_QUANTISED) for home in homes):
            raise ConversionError(f"{what} of torch.ao, quantised already: {_INSTEAD}")
        if any(home.startswith(_PREPARED) for home in homes):
            raise ConversionError(
                f"{what} of torch.ao: the network is prepared for quantisation; give it as it was before, and load "
                "what was learned since with load_state_dict(..., strict=False)"
            )
        if isinstance(module, torch.jit.ScriptModule) or "torch._dynamo.eval_frame" in homes:
            raise ConversionError(f"{what}, compiled: give the Python module that it was made from")
        if isinstance(module, fx.GraphModule):
            targets = [str(node.target) for node in module.graph.nodes if node.op in ("call_function", "call_method")]
            if any("quantize" in target for target in targets):
                raise ConversionError(f"{what} with operations that quantise: {_INSTEAD}")
            if any(target.startswith("aten.") for target in targets):
                raise ConversionError(
                    f"{what}, exported to operations without layers: give the Python module it was made from"
                )


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
        own = ("forward", "_conv_forward") if isinstance(layer, nn.Conv2d) else ("forward",)
        plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        if any(getattr(type(layer), method) is not getattr(plain, method) for method in own):
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
    names = dict(float_layers(network))
    missing, unknown = (
        [name for name in one if name not in other] for one, other in ((names, scales), (scales, names))
    )
    if missing:
        raise ConversionError(f"layer {missing[0]!r} has no activation scale: give one for each layer, or calibrate")
    if unknown:
        raise ConversionError(
            f"there is an activation scale for layer {unknown[0]!r}, which the network has not: "
            "give those of this network, or calibrate"
        )


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

    with torch.no_grad(), other_forwards(_seen_forwards(network, observe)):
        for count, batch in enumerate(batches):
            with _blamed(network, _batch_failed(batch, count)):
                network(batch)
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


def _batch_failed(batch: Tensor, count: int) -> str:
    return f"the network failed on calibration batch {count} of shape {list(batch.shape)}: {{}}"


def _run_some(network: nn.Module, batch: Tensor) -> tuple[Tensor, _FloatRun]:
    """Some inputs of a batch, or all if the network takes no fewer, and what the network does with them."""
    some = batch[:_CHECKED_INPUTS]
    try:
        return some, _run_in_float(network, some)
    except ConversionError:
        raise
    except Exception:
        # Whatever the user's network has against so few; against all it has nothing, if it was calibrated on them.
        with _blamed(network, _batch_failed(batch, 0)):
            return batch, _run_in_float(network, batch)


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
