"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator."""

from training.accelerator import Accelerator
from training.batches import Augmentation, Batches
from training.convert import convert, place, quantized_layers
from training.datasets import Dataset, load_data
from training.emulation import faulty_gemm, run
from training.errors import ConversionError, InputError
from training.layers import GemmRun, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.lowering import Program, lower
from training.operator import FaultyGemm
from training.workloads import WORKLOADS, LoadedWorkload, Workload, load_workload

__all__ = [
    "WORKLOADS",
    "Accelerator",
    "Augmentation",
    "Batches",
    "ConversionError",
    "Dataset",
    "FaultyGemm",
    "GemmRun",
    "InputError",
    "LoadedWorkload",
    "Program",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Workload",
    "convert",
    "faulty_gemm",
    "load_data",
    "load_workload",
    "lower",
    "place",
    "quantized_layers",
    "run",
]
