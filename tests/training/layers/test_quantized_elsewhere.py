"""Models that are quantised already, or of other formats: said so, with what to give instead."""

import h5py
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simulator import ArrayConfig
from simulator.errors import ConversionError, InputError
from training.layers.convert import convert
from training.layers.weights import load_weights

# Of torch's own quantisation, whose parts warn that others will replace them.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.rand(3, 1, 4, 4)


def floats() -> nn.Sequential:
    """The network that it was made from."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def static(*, convert_it: bool = True) -> nn.Module:
    """Quantised with calibration, or ready for it."""
    from torch.ao import quantization

    network = nn.Sequential(quantization.QuantStub(), *floats(), quantization.DeQuantStub()).eval()
    network.qconfig = quantization.get_default_qconfig("x86")
    network = quantization.prepare(network)
    network(IMAGES)
    return quantization.convert(network) if convert_it else network


def dynamic() -> nn.Module:
    """Quantised in its linear layers."""
    return torch.ao.quantization.quantize_dynamic(floats().eval(), {nn.Linear})


def aware() -> nn.Module:
    """Ready for quantisation-aware training."""
    network = floats().train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(network)


class Rounds(nn.Module):
    """Quantises by functions."""

    def forward(self, x):  # noqa: D102
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()


def exported() -> nn.Module:
    """A graph of operations."""
    return torch.export.export(floats().eval(), (IMAGES,)).module()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (static, "layer '0' is a Quantize of torch.ao, quantised already: give the float32 network"),
        (dynamic, "layer '2' is a Linear of torch.ao, quantised already"),
        (lambda: static(convert_it=False), "is a HistogramObserver of torch.ao: the network is prepared"),
        (
            aware,
            "layer '0' is a Conv2d of torch.ao: the network is prepared for quantisation; give it as it was",
        ),
        (lambda: torch.fx.symbolic_trace(Rounds()), "the network is a Rounds with operations that quantise"),
        (lambda: torch.jit.trace(floats().eval(), IMAGES), "the network is a .*, compiled: give the Python module"),
        (lambda: torch.compile(floats()), "the network is a OptimizedModule, compiled: give the Python module"),
        (exported, "the network is a .*GraphModule, exported to operations without layers: give the Python module"),
    ],
)
def test_networks_that_are_quantised_already(build, message):
    with pytest.raises(ConversionError, match=message) as caught:
        convert(build(), ArrayConfig(4, 4), IMAGES)
    assert "\n" not in str(caught.value)


def test_integers_in_a_float_layer_are_named():
    network = floats()
    network[2].weight = nn.Parameter(torch.ones(3, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConversionError, match=r"layer .2.: weights are torch.int8, quantised already"):
        convert(network, ArrayConfig(4, 4), IMAGES)


def test_traced_and_fused_float_networks_are_converted():
    for network in (torch.fx.symbolic_trace(floats()), torch.ao.quantization.fuse_modules(fusable(), [["0", "1"]])):
        convert(network, ArrayConfig(4, 4), IMAGES)


def fusable() -> nn.Module:
    """A convolution and what is fused with it."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("build", [static, dynamic])
def test_state_dicts_of_quantised_networks(build, folder):
    torch.save(build().state_dict(), "weights.pt")
    with pytest.raises(InputError, match=r"weights.pt holds weights that are quantised already .* give the float32"):
        load_weights(floats(), folder / "weights.pt", "mine")


def test_integers_where_the_network_has_floats(folder):
    whole = {name: (10 * value).to(torch.int8) for name, value in floats().state_dict().items()}
    save_file(whole, "weights.safetensors")
    with pytest.raises(InputError, match=r"quantised already \(0.bias is torch.int8 \[2\]\): give the float32 weights"):
        load_weights(floats(), folder / "weights.safetensors", "mine")
    masked = floats()
    masked.register_buffer("mask", torch.ones(3, 3, dtype=torch.uint8))
    save_file(masked.state_dict(), "masked.safetensors")
    load_weights(masked, folder / "masked.safetensors", "mine")


def write_models(folder):
    """A file of each kind."""
    (folder / "a.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
    (folder / "a.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    (folder / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(20))
    h5py.File(folder / "a.h5", "w").close()
    torch.jit.trace(floats().eval(), IMAGES).save("a.pt")
    torch.export.save(torch.export.export(floats().eval(), (IMAGES,)), "a.pt2")


def test_files_of_other_formats_are_named(folder):
    write_models(folder)
    kinds = {
        "a.tflite": "a TFLite model",
        "a.onnx": "an ONNX model",
        "a.gguf": "a GGUF model",
        "a.h5": "an HDF5 file, of Keras maybe",
        "a.pt": "a TorchScript archive",
        "a.pt2": "an exported program of PyTorch",
    }
    for name, kind in kinds.items():
        with pytest.raises(InputError, match=f"{name} is {kind}, and not weights .* as package.module:function"):
            load_weights(floats(), folder / name, "mine")
