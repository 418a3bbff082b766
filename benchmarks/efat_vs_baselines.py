"""How much retraining does a lot of faulty chips take by each strategy, every chip verified? On real networks and data.

For each mitigation the resilience of the network is measured, then each strategy is planned and carried out: every chip
is verified with its own faults, on test images that decided nothing. Everything is kept in the folder of results, and a
run that was stopped goes on where it was. Data as for fault_aware_training.py.

Run: python benchmarks/efat_vs_baselines.py --network lenet5 --chips 100
     python benchmarks/efat_vs_baselines.py --network resnet20 --chips 20 --cifar FOLDER --resnet20 FILE
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from study.networks import CIFAR, subject

from efat.campaigns.campaign import Executor
from efat.campaigns.workers import in_line, processes
from efat.image_split import SplitRequest
from efat.planning.plan import Plan
from efat.planning.planner import plan
from efat.resilience.measurement import run_resilience
from efat.resilience.table import FILE_NAME, ResilienceTable
from efat.resilience.units import HardeningPlan, Resilience
from efat.retraining.lot import retrain
from efat.retraining.manifest import Manifest
from efat.setup import Setup
from simulator import ArrayConfig, FaultModel, Site
from simulator.errors import InputError
from simulator.lots.chips import generate_chips, provenance, write_lot
from simulator.sampling import PATTERNS
from training.data.datasets import FASHION_MNIST
from training.data.workloads import augmentation_of
from training.learning.recipe import Recipe

OWN_PE = dict.fromkeys((Site.WEIGHT, Site.PRODUCT, Site.PSUM), 1.0)
"""Faults that cost their own PE: the fault rate is the fraction of PEs that are bypassed."""

STRATEGIES = (("fixed", False), ("select", False), ("merge-5", False), ("efat", False), ("efat", True))
LEVELS = {
    "digits-cnn": (0, 5, 10, 20, 40, 80),
    "lenet5": (0, 5, 10, 20, 40, 80, 160, 320),
    "resnet20": (0, 5, 10, 20, 40),
}
RATES = {"fap": (0.01, 0.02, 0.05, 0.1, 0.15, 0.2), "fam": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
RECIPES = {
    "digits-cnn": Recipe(optimizer="AdamW", learning_rate=5e-4, augmentation=augmentation_of("digits-cnn", None)),
    "lenet5": Recipe(optimizer="AdamW", learning_rate=5e-4),
    "resnet20": Recipe(batch=64, learning_rate=0.005, augmentation=augmentation_of("resnet20", None)),
}
"""With small steps, as accuracy after few iterations must not hang on chance."""


@dataclass(frozen=True)
class Run:
    """A strategy that was carried out.

    Attributes:
        mitigation: what is done about broken PEs.
        plan: what was planned.
        manifest: what came out.
        planning_seconds: that the plan took.
    """

    mitigation: str
    plan: Plan
    manifest: Manifest
    planning_seconds: float


class Study:
    """What all runs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.key: str = arguments.network
        arguments.results.mkdir(parents=True, exist_ok=True)
        self.folder = arguments.results / f"{self.key}-{arguments.size}-{arguments.pattern}"
        self.folder.mkdir(exist_ok=True)
        self.config = ArrayConfig(arguments.size, arguments.size)
        self.executor: Executor = processes(arguments.workers) if arguments.workers else in_line
        self.lot = self._lot()
        self.weights, self.data = self._network()

    def model(self, rate: float | tuple[float, float]) -> FaultModel:
        """What the faults of a chip look like."""
        return FaultModel(rate, sites=OWN_PE, pattern=self.arguments.pattern)

    def resilience(self, mitigation: str, progress: Progress) -> tuple[Path, ResilienceTable]:
        """Measure it, or what is left of it."""
        arguments = self.arguments
        setup = Setup(
            self.key, self.weights, self.data, mitigation, RECIPES[self.key], split=SplitRequest(arguments.images)
        )
        hardening = HardeningPlan(arguments.harden) if arguments.harden else None
        rates = arguments.rates or RATES[mitigation.split("+")[0]]
        levels = arguments.levels or LEVELS[self.key]
        resilience = Resilience(
            setup, self.config, self.model(0.0), rates, arguments.repeats, levels, hardening=hardening
        )
        folder = self.folder / f"resilience-{mitigation}{'-hardened' * bool(arguments.harden)}"
        task = progress.add_task(folder.name)
        table = run_resilience(
            folder, resilience, self.executor, lambda done, of: progress.update(task, completed=done, total=of)
        )
        return folder / FILE_NAME, table

    def carry_out(self, mitigation: str, table: Path, strategy: str, aligned: bool, progress: Progress) -> Run | None:
        """Plan and retrain by a strategy; None if it cannot be had."""
        arguments = self.arguments
        begun = time.perf_counter()
        try:
            made = plan(
                table,
                self.lot,
                max_drop=arguments.max_drop,
                margin=arguments.margin,
                strategy=strategy,
                statistic=arguments.statistic,
                aligned=aligned,
                workers=self.executor,
            )
        except InputError as error:
            progress.console.print(f"{mitigation} {strategy}{', aligned' * aligned}: {error}")
            return None
        seconds = time.perf_counter() - begun
        name = f"{self.lot.stem}-{mitigation}-{strategy}{'-aligned' * aligned}{'-hardened' * bool(arguments.harden)}"
        tasks: dict[str, object] = {}

        def told(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{name}: {what}")
            progress.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]

        manifest = retrain(
            made,
            self.folder / f"{name}-{arguments.max_drop:g}-{arguments.margin:g}",
            lot=self.lot,
            resilience=table,
            cycle_images=arguments.cycle_images,
            workers=self.executor,
            progress=told,
        )
        for task in tasks.values():
            progress.remove_task(task)  # type: ignore[arg-type]
        return Run(mitigation, made, manifest, seconds)

    def _lot(self) -> Path:
        arguments = self.arguments
        rates = low, high = arguments.fault_rate[0], arguments.fault_rate[1]
        path: Path = self.folder / f"lot-{low:g}-{high:g}-{arguments.chips}.h5"
        if not path.exists():
            chips = generate_chips(self.config, self.model(rates), arguments.chips, arguments.seed)
            write_lot(path, self.config, chips, provenance=provenance(f"{arguments.pattern} {rates}", arguments.seed))
        return path

    def _network(self) -> tuple[Path | None, Path | None]:
        """Files of weights and images, trained and decoded if they are not there yet."""
        if self.key == "digits-cnn":
            return None, None
        arguments = self.arguments
        data = {"lenet5": arguments.fashion_mnist, "resnet20": arguments.cifar}[self.key]
        subject(self.key, self.arguments.results, data, arguments.resnet20, arguments.images)
        decoded = self.arguments.results / CIFAR
        if self.key == "resnet20" and decoded.exists():
            data = decoded
        return self.arguments.results / f"{self.key}.safetensors", Path(FASHION_MNIST) if data is None else data


def results(
    study: Study, mitigations: list[str], progress: Progress
) -> Iterator[tuple[str, ResilienceTable, list[Run]]]:
    """The runs of each mitigation, with the resilience that they are planned from."""
    for mitigation in mitigations:
        path, table = study.resilience(mitigation, progress)
        runs = []
        for strategy, aligned in STRATEGIES:
            if (aligned and not mitigation.startswith("fam")) or strategy not in study.arguments.strategies:
                continue
            run = study.carry_out(mitigation, path, strategy, aligned, progress)
            if run is not None:
                runs.append(run)
        yield mitigation, table, runs


def show(found: list[tuple[str, ResilienceTable, list[Run]]], study: Study, console: Console) -> None:
    """Print the table."""
    runs = [run for _, _, of_mitigation in found for run in of_mitigation]
    base = {run.plan.strategy: run.manifest.totals.iterations for run in runs if run.mitigation == runs[0].mitigation}
    first = runs[0].manifest
    tuning = first.tuning
    table = Table(
        title=f"{len(first.chips)} chips, {first.required} of {first.images} unseen images required, "
        f"{tuning.required} of {tuning.images} tuning images"
    )
    for heading in ("mitigation", "strategy", "severity"):
        table.add_column(heading)
    for heading in (
        "retrainings",
        "planned",
        "executed",
        "split",
        "tuned",
        "meet it",
        "worst",
        "seconds",
        "fixed/",
        "select/",
    ):
        table.add_column(heading, justify="right")
    for run in runs:
        manifest, plan = run.manifest, run.plan
        executed = manifest.totals.iterations
        table.add_row(
            run.mitigation,
            plan.strategy + ", aligned" * plan.aligned,
            plan.predictor,
            str(sum(group.iterations > 0 for group in manifest.groups)),
            f"{plan.cost.iterations:,}",
            f"{executed:,}",
            str(manifest.totals.split_groups),
            str(sum(chip.tuning_correct >= tuning.required for chip in manifest.chips)),
            f"{manifest.passing} / {len(manifest.chips)}",
            f"{min(chip.correct for chip in manifest.chips) / manifest.images:.2%}",
            f"{manifest.totals.seconds:.0f}",
            _ratio(base.get("fixed"), executed),
            _ratio(base.get("select"), executed),
        )
    console.print(table)
    for mitigation, resilience, of_mitigation in found:
        spent = resilience.iterations_spent
        line = f"{mitigation}: fault-free {resilience.fault_free_correct / resilience.images:.2%}"
        if resilience.harden_iterations:
            line += f", hardened {resilience.start_correct / resilience.images:.2%}"
        line += f"; its resilience took {spent:,} iterations"
        if "fixed" in base and of_mitigation:
            best = min(run.manifest.totals.iterations for run in of_mitigation)
            saved = (base["fixed"] - best) / len(runs[0].manifest.chips)
            if saved > 0:
                line += f"; with them it pays against fixed from {math.ceil(spent / saved)} chips on"
        console.print(line)


def _ratio(base: int | None, executed: int) -> str:
    if base is None:
        return ""
    return f"{base / executed:.1f}x" if executed else "no iterations"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(RECIPES), default="digits-cnn")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the array")
    parser.add_argument("--chips", type=int, default=100)
    parser.add_argument("--fault-rate", type=float, nargs=2, default=(0.01, 0.19), metavar=("LOW", "HIGH"))
    parser.add_argument("--pattern", choices=PATTERNS, default="uniform")
    parser.add_argument("--mitigations", nargs="+", default=["fap+t", "fam+t"])
    parser.add_argument("--strategies", nargs="+", default=["fixed", "select", "merge-5", "efat"])
    parser.add_argument("--rates", type=float, nargs="+", help="of the resilience analysis, for all mitigations")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--levels", type=int, nargs="+")
    parser.add_argument("--max-drop", type=float, default=0.015)
    parser.add_argument("--margin", type=float, default=0.0, help="more that tuning images have to show")
    parser.add_argument("--statistic", default="max")
    parser.add_argument("--harden", type=int, default=0, metavar="ITERATIONS")
    parser.add_argument("--images", type=int, help="tuning images; half of the test images if not given")
    parser.add_argument("--cycle-images", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="0 for none but this process")
    parser.add_argument("--results", type=Path, default=Path("study-results"))
    parser.add_argument("--fashion-mnist", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--resnet20", type=Path)
    arguments = parser.parse_args()
    console = Console(width=150)
    console.print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {vars(arguments)}")
    study = Study(arguments)
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        found = list(results(study, arguments.mitigations, progress))
    show(found, study, console)


if __name__ == "__main__":
    main()
