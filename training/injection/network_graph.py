"""A quantised network as a graph of operations, each of which can be done again for some of the images alone."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from simulator.errors import InputError
from training.layers.convert import other_forwards
from training.layers.quantized import QuantizedLayer
from training.layers.user_code import copied, failure, is_users, place_of

Kind = Literal["quantise", "multiply", "relu", "pooling", "other"]

_RELU = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Threshold)
_POOLING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.FractionalMaxPool2d,
)  # fmt: skip
_RELU_NAMES = frozenset({"relu", "relu6", "relu_", "hardtanh", "clamp", "clamp_min", "threshold", "leaky_relu"})


@dataclass(frozen=True)
class GraphOperation:
    """What a difference has to pass.

    Args:
        name: of the layer, or of the operation in the graph.
        kind: `quantise` is the rounding of a layer's input, `multiply` the layer's GEMM.
        layer: place of the last quantised layer that runs up to here; -1 before the first.
    """

    name: str
    kind: Kind
    layer: int


@dataclass(frozen=True, eq=False)
class GraphStep:
    """One operation of the graph that gives a tensor with one entry for each image.

    Attributes:
        node: of the graph.
        sources: the tensors that it is made from, each with one entry for each image.
        layer: place of the quantised layer among all that run; None for other operations.
        operation: place among the operations; of a quantised layer that of its `quantise`, which `multiply` follows.
        last_of: tensors that no later step is made from.
    """

    node: fx.Node
    sources: tuple[fx.Node, ...]
    layer: int | None
    operation: int
    last_of: tuple[fx.Node, ...]


class NetworkGraph:
    """A network, traced.

    Args:
        network: quantised, in evaluation mode; a copy is taken.
        images: float32 [n, c, h, w], n >= 1, that it is run on to see what its operations give.

    Attributes:
        steps: in the order in which they run.
        layers: the quantised layers in that order; one that is called twice is there twice.
        operations: all that differences pass, in that order.
        scores: the node of what the network returns.
        values: what each step gives for the images, and the images.

    Raises:
        InputError: what the network does depends on values, writes into its inputs, or mixes images.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        network = copied(network)
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        # The tracer goes into the outermost module whatever it is.
        self._root = nn.Sequential(network) if isinstance(network, QuantizedLayer) else network
        self._graph = _traced(self._root, type(network).__name__)
        self._modules = dict(self._root.named_modules())
        self._constants: dict[fx.Node, Any] = {}
        self.layers: list[QuantizedLayer] = []
        self.operations: list[GraphOperation] = []
        self.steps: list[GraphStep] = []
        self.values: dict[fx.Node, Tensor] = {}
        self._dependent: set[fx.Node] = set()
        with torch.no_grad():
            self._run(images)
            self._check(images)

    def evaluate(self, node: fx.Node, fetch: Callable[[fx.Node], Any]) -> Any:
        """What a node gives.

        Args:
            node: of the graph.
            fetch: gives the values of tensors that have an entry for each image; the same images for all of them.
        """

        def value(argument: fx.Node) -> Any:
            if argument in self._constants:
                return self._constants[argument]
            return fetch(argument) if argument in self.values else self.evaluate(argument, fetch)

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        return self._call(node, args, kwargs)

    def layer_input(self, step: GraphStep, fetch: Callable[[fx.Node], Any]) -> Tensor:
        """What a quantised layer is called with; as `evaluate`."""
        node = step.node
        argument = node.args[0] if node.args else next(iter(node.kwargs.values()))
        assert isinstance(argument, fx.Node)
        found: Tensor = fetch(argument) if argument in self.values else self.evaluate(argument, fetch)
        return found

    def _call(self, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if node.op == "call_module":
            return self._modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _run(self, images: Tensor) -> None:
        """Run the whole graph, and find out what its nodes are."""
        sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if not self._dependent:
                    self._dependent.add(node)
                    self.values[node] = images
                    sources[node] = (node,)
                else:
                    self._constants[node] = node.args[0] if node.args else None
            elif node.op == "get_attr":
                self._constants[node] = operator.attrgetter(str(node.target))(self._root)
            elif node.op == "output":
                self._end(node)
            elif not any(argument in self._dependent for argument in node.all_input_nodes):
                self._constants[node] = self.evaluate(node, self.values.__getitem__)
            else:
                self._dependent.add(node)
                used = [argument for argument in node.all_input_nodes if argument in self._dependent]
                sources[node] = tuple(dict.fromkeys(tensor for argument in used for tensor in sources[argument]))
                versions = [self.values[tensor]._version for tensor in sources[node]]
                found = self.evaluate(node, self.values.__getitem__)
                if versions != [self.values[tensor]._version for tensor in sources[node]]:
                    raise InputError(
                        f"operation {_named(node)} of the network writes into its input: use one that returns a result"
                    )
                if isinstance(found, Tensor):
                    layer, operation = self._note(node, found, len(images))
                    self.steps.append(GraphStep(node, sources[node], layer, operation, ()))
                    sources[node] = (node,)
        self._find_last_uses()

    def _note(self, node: fx.Node, found: Tensor, images: int) -> tuple[int | None, int]:
        """Keep what a step gives, and number it among the layers, if it is one, and among the operations."""
        if found.ndim == 0 or len(found) != images:
            raise InputError(
                f"operation {_named(node)} of the network gives {list(found.shape)} for {images} images: expected an "
                "entry for each image, in the first dimension"
            )
        self.values[node] = found.contiguous()
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        place, layer = len(self.operations), None
        if isinstance(module, QuantizedLayer):
            layer = len(self.layers)
            self.layers.append(module)
            self.operations += [
                GraphOperation(module.name, "quantise", layer - 1),
                GraphOperation(module.name, "multiply", layer),
            ]
        else:
            name = str(node.target) if node.op == "call_module" else node.name
            self.operations.append(GraphOperation(name, _kind(node, module), len(self.layers) - 1))
        return layer, place

    def _end(self, node: fx.Node) -> None:
        returned = node.args[0]
        if not isinstance(returned, fx.Node) or returned not in self.values or self.values[returned].ndim != 2:
            raise InputError(
                "the network, followed operation by operation, does not return scores [images, classes]: expected one "
                "tensor of them, and no decisions by the type of what it is given"
            )
        self.scores = returned

    def _find_last_uses(self) -> None:
        last: dict[fx.Node, int] = {}
        for number, step in enumerate(self.steps):
            last.update(dict.fromkeys(step.sources, number))
        last.pop(self.scores, None)
        of_step: dict[int, list[fx.Node]] = {}
        for node, number in last.items():
            of_step.setdefault(number, []).append(node)
        self.steps = [
            GraphStep(step.node, step.sources, step.layer, step.operation, tuple(of_step.get(number, ())))
            for number, step in enumerate(self.steps)
        ]

    def _check(self, images: Tensor) -> None:
        """Operations by themselves give what the network gives, and an image by itself what it gives among others."""
        scores = self.values[self.scores]
        whole = self._root(images)
        alone = self._root(images[-1:])
        if not torch.equal(whole, scores) or not torch.equal(alone, scores[-1:]):
            what = "its operations one by one" if not torch.equal(whole, scores) else "an image by itself"
            raise InputError(
                f"the network gives other scores for {what}: expected results for an image that depend on nothing else"
            )


_REWRITES = (
    ("'len'", "write x.shape[0] for len(x)"),
    ("iterated", "work on all images at once instead of one after the other"),
    ("control flow", "decide by torch.where, or by what is known when the network is made"),
    ("item assignment", "make a new tensor, by torch.where or torch.cat, instead of writing into one"),
    ("zeros()", "write x.new_zeros(...) for torch.zeros(...)"),
    ("numpy", "use torch's functions instead of NumPy's"),
    ("np.ndarray", "use torch's functions instead of NumPy's"),
    ("as an integer", "use no loops over sizes: -1, flatten(1) and mean((2, 3)) need none"),
)
"""What to write instead, by what tracing says."""


def _traced(root: nn.Module, name: str) -> fx.Graph:
    tracer = _Tracer()
    layers = [module for module in root.modules() if isinstance(module, QuantizedLayer)]
    try:
        # A call of a layer's forward is a call of the layer.
        with other_forwards({layer: partial(_called, tracer, layer) for layer in layers}):
            return tracer.trace(root)
    except Exception as error:
        # Whatever the user's network raises when values are asked for that there are none of.
        said = str(error)
        fix = next((fix for sign, fix in _REWRITES if sign in said), "use torch's functions, and no single numbers")
        raise InputError(
            f"{name} cannot be followed operation by operation: {failure(error, root)}; its forward runs once without "
            f"values: {fix}"
        ) from None


def _called(tracer: fx.Tracer, layer: QuantizedLayer, *args: Any, **kwargs: Any) -> Any:
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, kwargs)


def _named(node: fx.Node) -> str:
    """An operation, and the user's line that it is from, if it is from one."""
    places = [
        place_of(Path(path), int(line))
        for path, line in re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
        if is_users(Path(path))
    ]
    return f"{node.name!r} (at {places[-1]})" if places else repr(node.name)


class _Tracer(fx.Tracer):
    """Goes into modules that have quantised layers; all others are one operation."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it stays one operation."""
        return isinstance(m, QuantizedLayer) or not any(isinstance(part, QuantizedLayer) for part in m.modules())


def _kind(node: fx.Node, module: nn.Module | None) -> Kind:
    if module is not None:
        return "relu" if isinstance(module, _RELU) else "pooling" if isinstance(module, _POOLING) else "other"
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name in _RELU_NAMES or node.target is functional.relu:
        return "relu"
    return "pooling" if "pool" in name else "other"
