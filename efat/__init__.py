"""Networks on lots of chips with broken processing elements: the whole flow from Python, and the `efat` command.

What is exported is imported when it is first used.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efat.campaigns.workers import WorkerDiedError
    from efat.confidence import Accuracy
    from efat.explanation.costs import FaultCost
    from efat.explanation.explanation import Explanation, ImageExplanation, explain
    from efat.figures.fault_map import draw_fault_map
    from efat.image_split import SplitRequest
    from efat.inference.classified import ChipReport, Comparison, EngineMismatchError, LayerReport
    from efat.inference.simulate import simulate
    from efat.inference.simulation import RetrainedLot, Simulation
    from efat.inference.waveforms import ChipWaveform, write_waveform
    from efat.lot import Lot
    from efat.multipliers import (
        GateFaults,
        MultiplierDesigns,
        ProductErrors,
        array_multiplier,
        gate_faults,
        multiplier_designs,
        product_errors,
    )
    from efat.network_gemms import NetworkCycles, count_cycles
    from efat.planning.plan import Plan
    from efat.planning.planner import plan
    from efat.planning.selection import Constraint, Statistic
    from efat.propagation.campaign import propagate
    from efat.propagation.summary import Propagation, PropagationSummary
    from efat.reports.report import Report, report
    from efat.resilience.measurement import measure_resilience
    from efat.resilience.table import ResilienceTable
    from efat.resilience.units import HardeningPlan
    from efat.retraining.chip import ChipRetraining, retrain_chip
    from efat.retraining.lot import retrain
    from efat.retraining.manifest import Manifest
    from efat.retraining.metrics import Metrics
    from efat.setup import Setup
    from efat.validation.validation import (
        ChipComparison,
        ComparedCase,
        NetworkValidation,
        Validation,
        replay_case,
        validate,
        validate_network,
    )
    from simulator.errors import InputError

_EXPORTS = {
    "efat.campaigns.workers": "WorkerDiedError",
    "efat.confidence": "Accuracy",
    "efat.explanation.costs": "FaultCost",
    "efat.explanation.explanation": "Explanation ImageExplanation explain",
    "efat.figures.fault_map": "draw_fault_map",
    "efat.image_split": "SplitRequest",
    "efat.inference.classified": "ChipReport Comparison EngineMismatchError LayerReport",
    "efat.inference.simulate": "simulate",
    "efat.inference.simulation": "RetrainedLot Simulation",
    "efat.inference.waveforms": "ChipWaveform write_waveform",
    "efat.lot": "Lot",
    "efat.multipliers": "GateFaults MultiplierDesigns ProductErrors array_multiplier gate_faults multiplier_designs "
    "product_errors",
    "efat.network_gemms": "NetworkCycles count_cycles",
    "efat.planning.plan": "Plan",
    "efat.planning.planner": "plan",
    "efat.planning.selection": "Constraint Statistic",
    "efat.propagation.campaign": "propagate",
    "efat.propagation.summary": "Propagation PropagationSummary",
    "efat.reports.report": "Report report",
    "efat.resilience.measurement": "measure_resilience",
    "efat.resilience.table": "ResilienceTable",
    "efat.resilience.units": "HardeningPlan",
    "efat.retraining.chip": "ChipRetraining retrain_chip",
    "efat.retraining.lot": "retrain",
    "efat.retraining.manifest": "Manifest",
    "efat.retraining.metrics": "Metrics",
    "efat.setup": "Setup",
    "efat.validation.validation": "ChipComparison ComparedCase NetworkValidation Validation replay_case validate "
    "validate_network",
    "simulator.errors": "InputError",
}
"""By module, the names that it has."""

_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = [
    "Accuracy",
    "ChipComparison",
    "ChipReport",
    "ChipRetraining",
    "ChipWaveform",
    "ComparedCase",
    "Comparison",
    "Constraint",
    "EngineMismatchError",
    "Explanation",
    "FaultCost",
    "GateFaults",
    "HardeningPlan",
    "ImageExplanation",
    "InputError",
    "LayerReport",
    "Lot",
    "Manifest",
    "Metrics",
    "MultiplierDesigns",
    "NetworkCycles",
    "NetworkValidation",
    "Plan",
    "ProductErrors",
    "Propagation",
    "PropagationSummary",
    "Report",
    "ResilienceTable",
    "RetrainedLot",
    "Setup",
    "Simulation",
    "SplitRequest",
    "Statistic",
    "Validation",
    "WorkerDiedError",
    "array_multiplier",
    "count_cycles",
    "draw_fault_map",
    "explain",
    "gate_faults",
    "measure_resilience",
    "multiplier_designs",
    "plan",
    "product_errors",
    "propagate",
    "replay_case",
    "report",
    "retrain",
    "retrain_chip",
    "simulate",
    "validate",
    "validate_network",
    "write_waveform",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _check_siblings() -> None:
    """Refuse packages of others that are found instead of the two that lie beside this one."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("simulator", "training"):
        loaded = sys.modules.get(name)
        spec = find_spec(name) if loaded is None else loaded.__spec__
        found = None if spec is None else spec.origin
        expected = os.path.join(home, name, "__init__.py")
        if found is None or os.path.realpath(found) != os.path.realpath(expected):
            raise ImportError(
                f"{found or f'no package {name!r}'} is found instead of {expected}, which efat needs: rename that file "
                "or folder, or take the folder that it is in off the path of Python (it may be the current one)",
                name=__name__,
                path=__file__,
            )


_check_siblings()
