"""Quantised PyTorch networks whose integer GEMMs run on a simulated accelerator.

What is exported is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.batches import Augmentation, Batches
    from training.data.datasets import Dataset, load_data
    from training.data.workloads import WORKLOADS, LoadedWorkload, Workload, load_workload
    from training.emulation.gemm import faulty_gemm, run
    from training.emulation.operator import FaultyGemm
    from training.emulation.program import Program, lower
    from training.layers.accelerator import Accelerator
    from training.layers.convert import convert, put_on_chip, quantized_layers
    from training.layers.deployment import Deployment
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
    "Program",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Recipe",
    "RetrainDivergedError",
    "RetrainResult",
    "TrainingData",
    "Workload",
    "convert",
    "faulty_gemm",
    "load_data",
    "load_workload",
    "lower",
    "put_on_chip",
    "quantized_layers",
    "retrain",
    "run",
]

_MODULES = {
    "Accelerator": "layers.accelerator",
    "Augmentation": "data.batches",
    "Batches": "data.batches",
    "Dataset": "data.datasets",
    "Deployment": "layers.deployment",
    "FaultyGemm": "emulation.operator",
    "GemmRun": "layers.quantized",
    "Hardening": "learning.mitigations",
    "LoadedWorkload": "data.workloads",
    "Mitigation": "learning.mitigations",
    "Program": "emulation.program",
    "QuantizedConv2d": "layers.quantized",
    "QuantizedLayer": "layers.quantized",
    "QuantizedLinear": "layers.quantized",
    "Recipe": "learning.recipe",
    "RetrainDivergedError": "learning.retrain",
    "RetrainResult": "learning.retrain",
    "Mitigations": "learning.mitigations",
    "TrainingData": "learning.retrain",
    "WORKLOADS": "data.workloads",
    "Workload": "data.workloads",
    "convert": "layers.convert",
    "faulty_gemm": "emulation.gemm",
    "load_data": "data.datasets",
    "load_workload": "data.workloads",
    "lower": "emulation.program",
    "put_on_chip": "layers.convert",
    "quantized_layers": "layers.convert",
    "retrain": "learning.retrain",
    "run": "emulation.gemm",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
