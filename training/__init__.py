"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator."""

from training.accelerator import Accelerator
from training.batches import Augmentation, Batches
from training.convert import convert, place, quantized_layers
from training.datasets import Dataset, load_data
from training.deployment import Deployment
from training.emulation import faulty_gemm, run
from training.errors import ConversionError, InputError
from training.layers import GemmRun, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from training.lowering import Program, lower
from training.mitigations import Hardening, Mitigation, Strategy
from training.operator import FaultyGemm
from training.recipe import Recipe
from training.retrain import RetrainDivergedError, RetrainResult, TrainingData, retrain
from training.workloads import WORKLOADS, LoadedWorkload, Workload, load_workload

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
