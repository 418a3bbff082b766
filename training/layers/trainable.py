"""Networks that learn on a chip: quantised forward, bit for bit what the chip computes, and straight-through gradients.

Weights and biases stay float parameters under their old names; before each product they are
quantised anew, just as `training.layers.convert` would. The gradient passes the rounding as if it
were not there (straight-through: Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv
1712.05877), stops where an activation was clipped, and is that of the product with the weights as
the multipliers get them: stuck bits count as constants, and weights at bypassed PEs get none. Steps
of activations can be learned (LSQ: Esser et al. 2020, arXiv 1902.08153, equations 3 and 5, and the
gradient's scale of section 2.2; what rounds to the largest number is not clipped here).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from simulator.dtypes import BoolArray
from simulator.errors import InputError
from training.emulation.program import lower
from training.layers.accelerator import Accelerator
from training.layers.convert import FloatLayer, float_layers, quantized_layers, with_replaced
from training.layers.placement import Placement
from training.layers.quantized import QuantizedConv2d, QuantizedLayer
from training.layers.user_code import copied
from training.numbers import SMALLEST_SCALE, activation_limits


class TrainableLayer(nn.Module):
    """A convolution or linear layer that computes on a chip and learns.

    Attributes:
        name: qualified name of the layer in its network.
        weight: float32 parameter, the shape of the float layer's.
        bias: float32 parameter [outputs], or None.
        activation_scale: float32, no dimensions: the value of one step of the input; a parameter if it is learned.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    activation_scale: Tensor

    def __init__(self, source: FloatLayer, quantized: QuantizedLayer, *, learn_scale: bool = False) -> None:
        """Make a float layer trainable on the chip that its quantised form is on, which is taken over."""
        super().__init__()
        self.name = quantized.name
        self.weight = nn.Parameter(source.weight.detach().clone())
        self.register_parameter("bias", None if source.bias is None else nn.Parameter(source.bias.detach().clone()))
        scale = quantized.activation_scale.detach().clone()
        if learn_scale:
            self.activation_scale = nn.Parameter(scale)
        else:
            self.register_buffer("activation_scale", scale, persistent=False)
        for size in quantized.SIZES:
            setattr(self, size, getattr(source, size))
        # Within a tuple it is no part of the network: its integers are made from the parameters.
        self._on_chip = (quantized,)

    @property
    def quantized(self) -> QuantizedLayer:
        """The layer on its chip, with the present parameters quantised."""
        layer = self._on_chip[0]
        bias = None if self.bias is None else self.bias.detach()
        layer.load_parameters(self.weight.detach(), bias, self.activation_scale.detach().clamp(min=SMALLEST_SCALE))
        return layer

    @property
    def gemm_shape(self) -> tuple[int, int, int]:
        """Groups, and K and N of each group's GEMM."""
        return self._on_chip[0].gemm_shape

    def move(self, accelerator: Accelerator, placement: Placement | None) -> None:
        """Put the layer on another chip or to other places on it; the chip has the same widths."""
        layer = self._on_chip[0]
        layer.accelerator, layer.placement = accelerator, placement

    def acting(self, bypass: BoolArray) -> Tensor | None:
        """Which weights act if those PEs, bool [R, C], are bypassed: bool, the shape of the weights; None for all."""
        return self._on_chip[0].acting(bypass)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch's layers have
        """Compute on the chip as the float layer would; in training mode, with gradients.

        In training mode NaN makes outputs NaN, and infinity is clipped; in evaluation mode both are refused.
        """
        layer = self.quantized
        if not self.training:
            outputs: Tensor = layer(input)
            return outputs
        layer.check_shape(input)
        parameters = (self.weight, self.bias, self.activation_scale)
        return layer.on_batch(input, lambda padded: _compute_on_chip(padded, *parameters, layer))


class _OnChip(torch.autograd.Function):
    """The product of a quantised layer; `layer` has the parameters that are given beside it, quantised."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _weight: Tensor, _bias: Tensor | None, _scale: Tensor, layer: QuantizedLayer
    ) -> Tensor:
        whole = layer.input_as_float32(x)
        weights = layer.weights_as_float32() if layer.multiplies_plainly(x) else None
        if weights is not None:
            outputs = layer.product_in_float32(whole, weights)
        else:
            weights = _effective_weights(layer)
            outputs = layer.compute(x)
            if bool(torch.isnan(x).any()):
                # Integers have no NaN that would tell of it.
                outputs.fill_(math.nan)
        # The layer may be given other parameters before the backward pass: no tensor of it changes in place then.
        ctx.layer, ctx.kept = layer, layer.kept_weights()
        ctx.save_for_backward(x, whole, weights, layer.weight_scale, layer.activation_scale)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, whole, weights, weight_scale, scale = ctx.saved_tensors
        layer: QuantizedLayer = ctx.layer
        of_x, of_weight, of_bias, of_scale = ctx.needs_input_grad[:4]
        seen = weights * weight_scale.view(-1, *[1] * (weights.ndim - 1))
        for_x, for_weight = _product_gradients(layer, gradient, whole, seen, of_x or of_scale, of_weight)
        for_bias = for_scale = None
        if for_weight is not None:
            for_weight *= scale
            if ctx.kept is not None:
                for_weight *= ctx.kept
        if of_bias:
            for_bias = gradient.sum((0, 2, 3)) if isinstance(layer, QuantizedConv2d) else _rows(gradient).sum(0)
        if for_x is not None:
            low, high = activation_limits(layer.config)
            limits = ((low - 0.5) * float(scale), (high + 0.5) * float(scale))
            if of_scale:
                inside = (x > limits[0]) & (x < limits[1])
                slope = whole - torch.where(inside, x / scale, 0.0)
                for_scale = (for_x * slope).sum() / math.sqrt(max(1, x.numel()) * high)
            for_x = torch.ops.aten.hardtanh_backward(for_x, x, *limits) if of_x else None
        return for_x, for_weight, for_bias, for_scale, None


_compute_on_chip: Callable[..., Tensor] = _OnChip.apply


def _product_gradients(
    layer: QuantizedLayer, gradient: Tensor, x: Tensor, weights: Tensor, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `layer.multiply(x, weights)`, where asked for."""
    if isinstance(layer, QuantizedConv2d):
        for_x, for_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weights, None, layer.stride, layer.product_padding, layer.dilation, False, (0, 0),
            layer.groups, (of_x, of_weight, False),
        )  # fmt: skip
        return for_x, for_weight
    for_weight = _rows(gradient).t() @ _rows(x) if of_weight else None
    return gradient @ weights if of_x else None, for_weight


def _rows(vectors: Tensor) -> Tensor:
    """Vectors [..., size], however many, as a matrix [vectors, size]."""
    return vectors.reshape(vectors.shape[:-1].numel(), vectors.shape[-1])


def _effective_weights(layer: QuantizedLayer) -> Tensor:
    """Whole numbers in float32, the shape of the weights: as the multipliers get them, 0 at bypassed PEs."""
    groups, k, n = layer.gemm_shape
    accelerator, placement = layer.accelerator, layer.placement
    parts = []
    for group, matrix in enumerate(layer.weight_int.cpu().view(groups, n, k)):
        w = matrix.t() if placement is None else placement.place_w(matrix.t(), group)
        program = lower(w.numpy(), layer.config, accelerator.faults, bypass=accelerator.bypass)
        effective = torch.from_numpy(program.effective_weights.astype("float32"))
        if placement is not None:
            effective = placement.take_out(effective[torch.tensor(placement.rows[group])], group)
        parts.append(effective.t())
    return torch.cat(parts).reshape(layer.weight_int.shape).to(layer.weight_int.device)


def check_trainable(network: nn.Module) -> None:
    """Refuse a float network whose layers have no weights of their own to learn.

    Raises:
        InputError: a layer computes its weights from other parameters, or shares them with another module.
    """
    owners: dict[nn.Parameter, str] = {}
    layers = {layer: name for name, layer in float_layers(network)}
    for name, module in network.named_modules():
        if module in layers and is_parametrized(module):
            raise InputError(
                f"layer {name!r} computes its weights from other parameters, and would learn them themselves: make "
                "them plain first, with torch.nn.utils.parametrize.remove_parametrizations"
            )
        for own, parameter in module.named_parameters(recurse=False):
            shown = f"{name}.{own}" if name else own
            if parameter in owners and (module in layers or owners[parameter].rpartition(".")[0] in layers.values()):
                raise InputError(
                    f"parameters {owners[parameter]!r} and {shown!r} are the same, and each would learn alone: give "
                    "the modules parameters of their own to retrain the network"
                )
            owners[parameter] = shown


def trainable(network: nn.Module, converted: nn.Module, *, learn_scales: bool = False) -> nn.Module:
    """A copy of a float network whose layers are `TrainableLayer`s, its parameters under the names that they have.

    The layers of `converted`, the same network as `training.layers.convert` gives it, are taken over, with their chip.
    If `learn_scales`, the steps of activations are parameters, too.

    Raises:
        InputError: as `check_trainable`.
    """
    check_trainable(network)
    layers, model = quantized_layers(converted), copied(network)
    found = {
        layer: TrainableLayer(layer, layers[name], learn_scale=learn_scales) for name, layer in float_layers(model)
    }
    return with_replaced(model, found)


def deployed(network: nn.Module) -> nn.Module:
    """A copy of a trainable network in evaluation mode: its present weights, quantised, on the chip it learned on."""
    model = copied(network)
    network = with_replaced(model, {layer: layer.quantized for layer in trainable_layers(model).values()})
    # A user's module may return nothing from it.
    network.eval()
    return network


def trainable_layers(network: nn.Module) -> dict[str, TrainableLayer]:
    """The layers of a trainable network that are on the chip, by name, in the order they are defined."""
    return {layer.name: layer for layer in network.modules() if isinstance(layer, TrainableLayer)}


def move(network: nn.Module, accelerator: Accelerator, placements: Mapping[str, Placement]) -> None:
    """Put all layers of a trainable network on another chip of the same widths, in place.

    `placements` is by the layer's name; layers that are not named sit in order.
    """
    for name, layer in trainable_layers(network).items():
        layer.move(accelerator, placements.get(name))
