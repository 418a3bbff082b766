"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator."""

from training.accelerator import Accelerator
from training.convert import convert, place, quantized_layers
from training.datasets import Dataset, load_data
from training.errors import ConversionError, InputError
from training.layers import GemmRun, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.workloads import WORKLOADS, LoadedWorkload, Workload, load_workload

__all__ = [
    "WORKLOADS",
    "Accelerator",
    "ConversionError",
    "Dataset",
    "GemmRun",
    "InputError",
    "LoadedWorkload",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Workload",
    "convert",
    "load_data",
    "load_workload",
    "place",
    "quantized_layers",
]
