"""Calls of a network's layers, seen however they are made: by position or keyword, or of `forward` itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

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
