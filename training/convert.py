"""From a float network to one whose integer GEMMs run on an accelerator: post-training static quantisation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from simulator import ArrayConfig
from training.accelerator import Accelerator
from training.calibration import DEFAULT_PERCENTILE, MagnitudeHistogram, Method, check_method
from training.errors import ConversionError, InputError, first_line
from training.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, float_parameters
from training.quantization import activation_limits

__all__ = ["ConversionError", "convert", "place", "quantized_layers"]

Calibration = Tensor | Iterable[Any]
"""One batch, or batches; a batch is the input tensor or a tuple or list that starts with it, as loaders give."""

_FloatLayer = nn.Conv2d | nn.Linear

_UNCONVERTIBLE: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "write it as a Conv2d with a kernel of (1, k)"),
    (nn.Conv3d, "write it as Conv2d layers over the slices"),
    (_ConvTransposeNd, "write it as an Upsample and a Conv2d"),
    (nn.Bilinear, "write it as a Linear on the outer product of its inputs"),
    (nn.MultiheadAttention, "write its projections as Linear layers"),
    (nn.RNNBase, "write its cell with Linear layers"),
    (nn.RNNCellBase, "write its gates as Linear layers"),
    (torch.jit.ScriptModule, "convert the Python module it was made from"),
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
    `torch.nn.functional.linear` with a weight of its own) is not seen and stays float.

    Args:
        module: the trained float32 network; it is not changed.
        config: the array; gives the widths of weights and activations.
        calibration: inputs like those to come: one batch (a tensor) or batches, whose first item is used if they
            are tuples or lists.
        method: how input scales are chosen from them: see `training.calibration`.
        percentile: for method `percentile`, in percent.
        accelerator: the chip to run on; a fault-free one of `config` in the emulation if None.
        activation_scales: the value of one step of each layer's input by the layer's name, as `quantized_layers` has
            them; then nothing is calibrated, and `calibration` may be empty. None to choose them on `calibration`.

    Returns:
        A converted copy, in evaluation mode.

    Raises:
        ConversionError: there is no layer to convert, or one that cannot be; weights or activations are not finite;
            calibration data is missing, does not fit the network, does not reach a layer, or is negative where
            activations are unsigned; `activation_scales` lacks a layer, names one that is not there, or has a value
            that is not positive and finite.
        InputError: an unknown method, or a percentile outside (0, 100].
        ValueError: `accelerator` has other widths than `config`.
    """
    check_method(method, percentile)
    if accelerator is None:
        accelerator = Accelerator(config)
    _check_widths(config, accelerator.config)
    _check_convertible(module)
    network = copy.deepcopy(module).eval()
    scales: Mapping[str, Tensor | float]
    if activation_scales is None:
        levels = activation_limits(config)[1]
        histograms = _calibrate(network, calibration, config)
        scales = {name: histogram.scale(method, levels, percentile) for name, histogram in histograms.items()}
    else:
        _check_scales(network, activation_scales)
        scales = activation_scales
    converted: dict[nn.Module, QuantizedLayer] = {}
    for name, layer in _float_layers(network):
        scale = scales[name]
        quantized = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        converted[layer] = quantized(layer, scale, accelerator, name).eval()  # type: ignore[arg-type]
        layer.register_forward_pre_hook(_refuse_to_run)
    if network in converted:
        return converted[network]
    for parent in list(network.modules()):
        for child_name, child in parent._modules.items():
            if child in converted:
                parent._modules[child_name] = converted[child]
    return network


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantised layers of a converted network by name, in the order they are defined."""
    return {layer.name: layer for layer in module.modules() if isinstance(layer, QuantizedLayer)}


def place(module: nn.Module, accelerator: Accelerator) -> nn.Module:
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


def _float_layers(module: nn.Module) -> Iterator[tuple[str, _FloatLayer]]:
    """Each layer once, under its first name; a network that is a single layer is named after its type."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield name or type(layer).__name__.lower(), layer


def _check_convertible(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        for unconvertible, fix in _UNCONVERTIBLE:
            if isinstance(layer, unconvertible):
                raise ConversionError(f"layer {name!r} is a {kind}, which cannot be converted: {fix}")
        if isinstance(layer, QuantizedLayer):
            raise ConversionError(f"layer {name!r} is quantised already: convert the float network, or use place()")
    layers = list(_float_layers(module))
    if not layers:
        raise ConversionError(f"{type(module).__name__} has no Conv2d or Linear layer: there is nothing to convert")
    for name, layer in layers:
        if any(is_lazy(parameter) for parameter in layer.parameters()):
            raise ConversionError(f"layer {name!r} has no weights yet: run the network on one batch first")
        if _has_own_forward(layer):
            raise ConversionError(
                f"layer {name!r} is a {type(layer).__name__} with a forward of its own: "
                "use a plain Conv2d or Linear and put the rest into another module"
            )
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise ConversionError(f"layer {name!r} has forward hooks, which would be lost: remove them first")
        float_parameters(layer, name)


def _check_scales(network: nn.Module, scales: Mapping[str, float]) -> None:
    names = [name for name, _ in _float_layers(network)]
    for name in names:
        if name not in scales:
            raise ConversionError(f"layer {name!r} has no activation scale: give one for each layer, or calibrate")
    for name in scales:
        if name not in names:
            raise ConversionError(
                f"there is an activation scale for layer {name!r}, which the network has not: "
                "give those of this network, or calibrate"
            )


def _has_own_forward(layer: _FloatLayer) -> bool:
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        return kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward
    return kind.forward is not nn.Linear.forward


def _refuse_to_run(layer: nn.Module, _args: object) -> None:
    """Runs when the network keeps a second reference to a layer that was replaced, where no float result may hide."""
    raise ConversionError(
        f"a converted {type(layer).__name__} is still used in its float form: "
        "keep layers only as attributes or in ModuleList, ModuleDict and Sequential"
    )


def _calibrate(network: nn.Module, calibration: Calibration, config: ArrayConfig) -> dict[str, MagnitudeHistogram]:
    histograms = {name: MagnitudeHistogram() for name, _ in _float_layers(network)}
    count = 0
    with torch.no_grad(), _observed_inputs(network, histograms):
        for batch in _batches(calibration):
            try:
                network(batch)
            except InputError:
                raise
            except Exception as error:
                # Whatever the user's network raises on these inputs, it is the inputs or the network that must change.
                raise ConversionError(
                    f"the network failed on calibration batch {count} of shape {list(batch.shape)}: "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from error
            count += 1
    if not count:
        raise ConversionError("no calibration data: give at least one batch of inputs")
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


@contextmanager
def _observed_inputs(network: nn.Module, histograms: dict[str, MagnitudeHistogram]) -> Iterator[None]:
    """While this is open, each float layer's inputs go into its histogram."""

    def observe(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            histograms[name].update(args[0] if args else kwargs["input"])
        except InputError as error:
            raise ConversionError(f"layer {name!r}: {error}") from None

    handles = [
        layer.register_forward_pre_hook(
            lambda _layer, args, kwargs, name=name: observe(name, args, kwargs), with_kwargs=True
        )
        for name, layer in _float_layers(network)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
