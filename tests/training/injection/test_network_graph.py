"""Networks whose operations cannot be followed: what is said of them, where it is, and what to write instead."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from simulator import ArrayConfig
from simulator.errors import InputError
from training.injection.network_graph import NetworkGraph
from training.layers.convert import convert

IMAGES = torch.rand(4, 1, 5, 5)


class Uses(nn.Module):
    """A convolution and a linear layer, and what is done with them."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(1, 4, 3)
        self.c = nn.Linear(4, 3)
        self.use = use

    def forward(self, x):  # noqa: D102
        return self.use(self, x)

    def features(self, x):  # noqa: D102
        return self.a(x).mean((2, 3))


def assigned(net, x):
    """Writes into a tensor."""
    found = net.features(x)
    found[0] = 0
    return net.c(found)


def traced(use):
    """The graph of a network."""
    return NetworkGraph(convert(Uses(use), ArrayConfig(4, 4), IMAGES), IMAGES)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda net, x: net.c(net.features(x)) * (1 if x.sum() > 0 else 2), "HERE; .* decide by torch.where"),
        (lambda net, x: net.c(net.a(x).reshape(len(x), 4, -1).mean(2)), r"HERE; .* write x.shape\[0\] for len\(x\)"),
        (lambda net, x: torch.cat([net.c(net.features(x[i : i + 1])) for i in range(x.shape[0])]), "HERE; .* no loops"),
        (lambda net, x: torch.stack([net.c(net.a(one).mean((1, 2))) for one in x]), "HERE; .* all images at once"),
        (lambda net, x: net.c(torch.from_numpy(net.features(x).numpy())), "HERE; .* instead of NumPy's"),
        (lambda net, x: net.c(net.features(x)) * float(x.max()), "HERE; .* no single numbers"),
        (lambda net, x: net.c(net.features(x)) + torch.zeros(x.shape[0], 3), r"HERE; .* write x.new_zeros\(...\)"),
        (lambda net, x: net.c(net.features(x).mul_(2)), "operation 'mul_' HERE of the network writes into its input"),
        (assigned, "HERE; .* instead of writing into one"),
        (
            lambda net, x: net.c(net.features(x)) + net.features(x).mean(),
            r"operation 'mean_2' HERE .* gives \[\]",
        ),
        (lambda net, x: net.c(net.features(x)) if isinstance(x, torch.Tensor) else 0, "no decisions by the type"),
        (lambda net, x: net.c(net.features(x)) * len(f"{x.shape}"), "gives other scores for its operations one by one"),
    ],
)
def test_what_cannot_be_followed_is_told_with_its_place(use, message):
    with pytest.raises(InputError) as caught:
        traced(use)
    said = str(caught.value)
    assert "\n" not in said
    here = rf"\(at \S*{re.escape(Path(__file__).name)}:\d+\)"
    assert re.search(message.replace("HERE", here), said), said


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.c(net.features(x)),
        lambda net, x: net.c(input=net.features(x=x)),
        lambda net, x: net.c.forward(net.a.forward(input=x).mean((2, 3))),
        lambda net, x: net.c(net.features(x)) + x.new_zeros(x.shape[0], 3),
        lambda net, x: net.c(net.features(x) @ net.c.weight.t() @ net.c.weight),
    ],
)
def test_calls_of_all_kinds_are_followed(use):
    graph = traced(use)
    assert [layer.name for layer in graph.layers] == ["a", "c"]
    assert graph.scores in graph.values
