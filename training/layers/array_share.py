"""How much of a network's work runs on the array, and what stays in float beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from training.layers.convert import observing, other_forwards
from training.layers.quantized import GemmRun, QuantizedLayer


@dataclass(frozen=True)
class ArrayShare:
    """The multiply-accumulates of a network for one input."""

    on_array: int
    in_float: Mapping[str, int]
    """Those of products of matrices and vectors, convolutions and attention that are no layers on the array.

    By the qualified name of the module whose forward has them, the largest first; the network's own forward has none.
    """

    @property
    def value(self) -> float:
        """Fraction of them that runs on the array."""
        return self.on_array / (self.on_array + sum(self.in_float.values()))

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "multiply_accumulates": self.on_array,
            "share": self.value,
            "in_float": [{"module": name, "multiply_accumulates": count} for name, count in self.in_float.items()],
        }


def array_share(network: nn.Module, image: Tensor) -> ArrayShare:
    """Count the multiply-accumulates of a converted network for one input, float32 [1, ...], by running it once."""
    on_array = 0

    def observe(run: GemmRun) -> None:
        nonlocal on_array
        (m, k), n = run.x.shape, run.w.shape[1]
        on_array += m * k * n

    counter = FlopCounterMode(display=False, custom_mapping=_VECTORS)
    attributed = _attributed(network, counter)
    with observing(network, observe), torch.no_grad(), _all_products_seen(), counter, attributed as operations:
        network(image)
    # A multiply-accumulate is two floating-point operations.
    return ArrayShare(on_array, {name: found // 2 for name, found in operations.most_common() if found > 1})


def _vector_operations(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """Of the products of a vector, which torch does not count: two for each number of the other operand."""
    return 2 * max(math.prod(shape) for shape in shapes if isinstance(shape, torch.Size))


_VECTORS: dict[Any, Callable[..., int]] = dict.fromkeys(
    (torch.ops.aten.mv, torch.ops.aten.addmv, torch.ops.aten.dot), _vector_operations
)


@contextmanager
def _all_products_seen() -> Iterator[None]:
    """While this is open, attention is made of products that torch counts, not of one fused operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _attributed(network: nn.Module, counter: FlopCounterMode) -> Iterator[Counter[str]]:
    """Operations by the module whose forward has them; what quantised layers do is the array's."""
    found: Counter[str] = Counter()
    names = {module: name for name, module in reversed(list(network.named_modules()))}
    running: list[nn.Module] = []
    counted = 0

    def settle() -> None:
        nonlocal counted
        total = counter.get_total_flops()
        if running and not isinstance(running[-1], QuantizedLayer):
            found[names[running[-1]]] += total - counted
        counted = total

    def enter(module: nn.Module, _args: object) -> None:
        settle()
        running.append(module)

    def leave(_module: nn.Module, _args: object, _outputs: object) -> None:
        settle()
        running.pop()

    def as_layer(layer: QuantizedLayer) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            enter(layer, args)
            outputs: Tensor = type(layer).forward(layer, *args, **kwargs)
            leave(layer, args, outputs)
            return outputs

        return forward

    # Layers may be called by their forward, where no hook is.
    forwards = {module: as_layer(module) for module in names if isinstance(module, QuantizedLayer)}
    handles: list[RemovableHandle] = []
    for module in names.keys() - forwards.keys():
        handles += (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    try:
        with other_forwards(forwards):
            yield found
    finally:
        for handle in handles:
            handle.remove()
