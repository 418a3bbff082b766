"""What runs on the array and what beside it: counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.networks import ARRAY, tiny_images, tiny_network
from training.layers.accelerator import Accelerator
from training.layers.array_share import ArrayShare, array_share
from training.layers.convert import convert, put_on_chip, quantized_layers


class Scores(nn.Module):
    """Attention of 4 heads, a product with a parameter, and a bilinear form with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 8))
        self.vector = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """From [b, 5, 8] to [b, 5]."""
        heads = x.view(len(x), 5, 4, 2).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads)
        flat = mixed.transpose(1, 2).reshape(len(x), 5, 8)
        return functional.linear(flat, self.weight) @ self.vector


class Mixed(nn.Module):
    """A linear layer that is used twice, once by its forward, the scores, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.scores = Scores()
        self.table = nn.Parameter(torch.ones(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        """From [b, 5, 8] to [b, 6]."""
        return self.scores(self.shared.forward(self.shared(x))) @ self.table


def test_all_of_a_plain_network_runs_on_the_array() -> None:
    images = tiny_images(3, 1).images
    network = convert(tiny_network(), ARRAY, images)
    put_on_chip(network, Accelerator.fault_free(ARRAY))
    share = array_share(network, images[:1])
    # Convolutions of 4 outputs over 2x3x3, and of 6 outputs over 2x2x2 in each of two groups; 3 outputs of 24.
    assert share == ArrayShare(4 * 16 * 18 + 6 * 4 * 8 + 3 * 24, {})
    assert share.value == 1
    assert all(layer.observer is None for layer in quantized_layers(network).values())


def test_what_is_no_layer_stays_in_float() -> None:
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    network = convert(Mixed(), ARRAY, x)
    before = torch.backends.mha.get_fastpath_enabled()
    share = array_share(network, x)
    assert torch.backends.mha.get_fastpath_enabled() == before
    attention = 2 * 4 * 5 * 5 * 2
    # 5 rows of 8 by 3x8, then by a vector of 3; and a row of 5 by 5x6 in the network's own forward.
    expected = {"scores": attention + 5 * 8 * 3 + 5 * 3, "": 5 * 6}
    assert share == ArrayShare(2 * 5 * 8 * 8, expected)
    assert share.value == 640 / (640 + attention + 135 + 30)
    assert share.as_dict() == {
        "multiply_accumulates": 640,
        "share": share.value,
        "in_float": [
            {"module": "scores", "multiply_accumulates": attention + 135},
            {"module": "", "multiply_accumulates": 30},
        ],
    }
