"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator.

What is exported is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.batches import Augmentation, Batches
    from training.data.datasets import Dataset, Normalization, load_data
    from training.data.workloads import WORKLOADS, LoadedWorkload, Workload, augmentation_of, load_workload
    from training.emulation.gemm import faulty_gemm, run
    from training.emulation.operator import FaultyGemm
    from training.emulation.program import Program, lower
    from training.layers.accelerator import Accelerator
    from training.layers.array_share import array_share
    from training.layers.convert import convert, put_on_chip, quantized_layers
    from training.layers.deployment import Deployment, read_deployed
    from training.layers.quantized import GemmRun, QuantizedConv2d, QuantizedLayer, QuantizedLinear
    from training.learning.mitigations import Hardening, Mitigation, Mitigations
    from training.learning.recipe import Recipe
    from training.learning.retrain import RetrainDivergedError, RetrainResult, TrainingData, retrain

__all__ = [
    "WORKLOADS",
    "Accelerator",
    "Augmentation",
    "Batches",
    "Dataset",
    "Deployment",
    "FaultyGemm",
    "GemmRun",
    "Hardening",
    "LoadedWorkload",
    "Mitigation",
    "Mitigations",
    "Normalization",
    "Program",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Recipe",
    "RetrainDivergedError",
    "RetrainResult",
    "TrainingData",
    "Workload",
    "array_share",
    "augmentation_of",
    "convert",
    "faulty_gemm",
    "load_data",
    "load_workload",
    "lower",
    "put_on_chip",
    "quantized_layers",
    "read_deployed",
    "retrain",
    "run",
]

_EXPORTS = {
    "data.batches": "Augmentation Batches",
    "data.datasets": "Dataset Normalization load_data",
    "data.workloads": "WORKLOADS LoadedWorkload Workload augmentation_of load_workload",
    "emulation.gemm": "faulty_gemm run",
    "emulation.operator": "FaultyGemm",
    "emulation.program": "Program lower",
    "layers.accelerator": "Accelerator",
    "layers.array_share": "array_share",
    "layers.convert": "convert put_on_chip quantized_layers",
    "layers.deployment": "Deployment read_deployed",
    "layers.quantized": "GemmRun QuantizedConv2d QuantizedLayer QuantizedLinear",
    "learning.mitigations": "Hardening Mitigation Mitigations",
    "learning.recipe": "Recipe",
    "learning.retrain": "RetrainDivergedError RetrainResult TrainingData retrain",
}
"""By module, the names that it has."""

_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
