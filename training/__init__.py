"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator."""

from training.data.batches import Augmentation, Batches
from training.data.datasets import Dataset, load_data
from training.data.workloads import WORKLOADS, LoadedWorkload, Workload, load_workload
from training.emulation.gemm import faulty_gemm, run
from training.emulation.operator import FaultyGemm
from training.emulation.program import Program, lower
from training.errors import ConversionError, InputError
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, place, quantized_layers
from training.layers.deployment import Deployment
from training.layers.quantized import GemmRun, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.learning.mitigations import Hardening, Mitigation, Strategy
from training.learning.recipe import Recipe
from training.learning.retrain import RetrainDivergedError, RetrainResult, TrainingData, retrain

__all__ = [
    "WORKLOADS",
    "Accelerator",
    "Augmentation",
    "Batches",
    "ConversionError",
    "Dataset",
    "Deployment",
    "FaultyGemm",
    "GemmRun",
    "Hardening",
    "InputError",
    "LoadedWorkload",
    "Mitigation",
    "Program",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Recipe",
    "RetrainDivergedError",
    "RetrainResult",
    "Strategy",
    "TrainingData",
    "Workload",
    "convert",
    "faulty_gemm",
    "load_data",
    "load_workload",
    "lower",
    "place",
    "quantized_layers",
    "retrain",
    "run",
]
