"""Which mitigation wins back how much accuracy, and what does retraining cost? On real networks and data.

Every unit of work is a file in the folder of results: a run that was stopped goes on where it was, and parts can be run
one by one. Which data: digits come with their package; Fashion-MNIST is found by itself or given with --fashion-mnist;
CIFAR-10 and pretrained weights of ResNet-20 are given with --cifar and --resnet20.

Run: python benchmarks/fault_aware_training.py speed
     python benchmarks/fault_aware_training.py curves --network lenet5 --size 64 --png curves.png
     python benchmarks/fault_aware_training.py collapse|sites|behaviour|hardening --network lenet5
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from study.measurements import Case, last, measure, summary
from study.networks import Subject, subject

from efat.campaigns.campaign import Campaign
from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults
from simulator.lots.chips import Chip
from training.data.datasets import FASHION_MNIST
from training.data.workloads import WORKLOADS
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.trainable import move, trainable
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.hardening import Hardening
from training.learning.recipe import Recipe
from training.learning.retrain import retrain

RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
STRATEGIES = ("none", "fap", "fam", "fap+t", "fam+t")
ITERATIONS = {"digits-cnn": 100, "lenet5": 200, "resnet20": 60}
COSINE = "CosineAnnealingLR"
RECIPES = {
    "digits-cnn": Recipe(learning_rate=0.02, schedule=COSINE, augmentation=WORKLOADS["digits-cnn"].augmentation),
    "lenet5": Recipe(learning_rate=0.02, schedule=COSINE),
    "resnet20": Recipe(learning_rate=0.02, schedule=COSINE, augmentation=WORKLOADS["resnet20"].augmentation),
}
COLLAPSE_PES = (1, 2, 4, 8, 16, 32, 64, 256)
BEHAVIOUR_SITES = ("WEIGHT", "WEIGHT_LOAD", "ACTIVATION", "PRODUCT", "PSUM")
COLORS = {"none": "#E45756", "fap": "#F2A93B", "fam": "#54A24B", "fap+t": "#4C78A8", "fam+t": "#7B4EA3"}


class Study:
    """What the parts share: the arguments, the network when it is first needed, and the results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.key: str = arguments.network
        self.folder: Path = arguments.results
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Weights that were trained are there, too.
        self.kept = Campaign(self.folder, "study", {}, among_others=True)
        self.console = Console(width=120)
        self._subject: Subject | None = None

    @property
    def subject(self) -> Subject:
        """The network and its data."""
        if self._subject is None:
            arguments = self.arguments
            data = {"lenet5": arguments.fashion_mnist, "resnet20": arguments.cifar}.get(self.key)
            self._subject = subject(self.key, self.folder, data, arguments.resnet20, arguments.images)
        return self._subject

    def accuracies(self, cases: list[Case], what: str) -> list[float]:
        """Accuracy at the end of each case."""
        key = self.key if self.arguments.images is None else f"{self.key}-{self.arguments.images}"
        recipe = RECIPES[self.key]
        return [
            last(measure(self.subject, key, case, recipe, self.kept)) for case in track(cases, what, transient=True)
        ]

    def say(self, table: Table) -> None:
        """Print a table with what it was made of."""
        self.console.print(table)
        subject = self.subject
        self.console.print(
            f"{subject.title}, {len(subject.data.held_out)} held-out images, float32 {subject.float_accuracy:.2%}; "
            f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )


def curves(study: Study) -> None:
    """Accuracy against fault rate for each mitigation: a table, and a picture if it is asked for."""
    size, maps, iterations = study.arguments.size, study.arguments.maps, study.arguments.iterations
    table = Table(title=f"{study.key} on {size}x{size}: mean (least .. greatest) accuracy on {maps} chips")
    strategies: list[str] = study.arguments.strategies
    for heading in ("faulty PEs", *strategies):
        table.add_column(heading, justify="right")
    found: dict[str, list[list[float]]] = {strategy: [] for strategy in strategies}
    for rate in study.arguments.rates:
        cells = [f"{rate:.0%}"]
        for strategy in strategies:
            spent = iterations if strategy.endswith("+t") else 0
            numbers = range(maps if rate else 1)
            cases = [Case(size, rate, number, strategy, iterations=spent) for number in numbers]
            values = study.accuracies(cases, f"{strategy} at {rate:.0%}")
            found[strategy].append(values)
            cells.append(summary(values))
        table.add_row(*cells)
    study.say(table)
    study.console.print(f"retraining: {iterations} iterations, {RECIPES[study.key]}")
    if study.arguments.png is not None:
        _draw(study, found)


def _draw(study: Study, found: dict[str, list[list[float]]]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    percent = [100 * rate for rate in study.arguments.rates]
    for strategy, values in found.items():
        mean, least, greatest = (100 * np.array([f(part) for part in values]) for f in (np.mean, np.min, np.max))
        axes.plot(percent, mean, marker="o", markersize=4, color=COLORS[strategy], label=strategy)
        axes.fill_between(percent, least, greatest, color=COLORS[strategy], alpha=0.15, linewidth=0)
    axes.set(xlabel="faulty PEs (%)", ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_title(f"{study.subject.title}, {study.arguments.size}x{study.arguments.size}", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(study.arguments.png, dpi=110)
    study.console.print(f"wrote {study.arguments.png}")


def collapse(study: Study) -> None:
    """How few unmitigated faulty PEs ruin a network."""
    size, maps = study.arguments.size, study.arguments.maps
    table = Table(title=f"{study.key} on {size}x{size}, nothing done about the faults: {maps} chips each")
    for heading in ("faulty PEs", "any own site", "PSUM, stuck-at-1", "PSUM, stuck-at-0"):
        table.add_column(heading, justify="right")
    for count in COLLAPSE_PES:
        cells = [f"{count} of {size * size}"]
        for sites, kind in ((None, None), (("PSUM",), "STUCK_AT_1"), (("PSUM",), "STUCK_AT_0")):
            chosen = {} if sites is None else {"sites": sites}
            cases = [Case(size, count / size**2, number, kind=kind, **chosen) for number in range(maps)]  # type: ignore[arg-type]
            cells.append(summary(study.accuracies(cases, f"{count} PEs")))
        table.add_row(*cells)
    study.say(table)


def sites(study: Study) -> None:
    """Which bit of the partial sum hurts, stuck at which value."""
    size, maps, count = study.arguments.size, study.arguments.maps, study.arguments.pes
    table = Table(title=f"{study.key} on {size}x{size}, {count} PEs with one PSUM bit stuck: {maps} chips each")
    for heading in ("bit", "stuck-at-0", "stuck-at-1"):
        table.add_column(heading, justify="right")
    for bit in (0, 4, 8, 10, 12, 14, 16, 18, 20, 24, 28, 31):
        cells = [str(bit)]
        for kind in ("STUCK_AT_0", "STUCK_AT_1"):
            cases = [Case(size, count / size**2, number, sites=("PSUM",), kind=kind, bit=bit) for number in range(maps)]
            cells.append(summary(study.accuracies(cases, f"bit {bit}")))
        table.add_row(*cells)
    study.say(table)


def behaviour(study: Study) -> None:
    """Learning to live with what the faults do, against bypassing them, by site."""
    size, maps, iterations = study.arguments.size, study.arguments.maps, study.arguments.iterations
    strategies = ("none", "none+t", "fap", "fap+t")
    table = Table(title=f"{study.key} on {size}x{size}, {iterations} iterations, {maps} chips each")
    for heading in ("site", "faulty PEs", *strategies):
        table.add_column(heading, justify="right")
    for site in BEHAVIOUR_SITES:
        for rate in study.arguments.rates:
            cells = [site, f"{rate:.1%}"]
            for strategy in strategies:
                spent = iterations if strategy.endswith("+t") else 0
                cases = [Case(size, rate, number, strategy, (site,), iterations=spent) for number in range(maps)]
                cells.append(summary(study.accuracies(cases, f"{site} {strategy}")))
            table.add_row(*cells, end_section=rate == study.arguments.rates[-1])
    study.say(table)


def hardening(study: Study) -> None:
    """Right after FAP, with and without one retraining for no chip in particular."""
    size, maps, iterations = study.arguments.size, study.arguments.maps, study.arguments.iterations
    config = ArrayConfig(size, size)
    found = study.subject
    table = Table(title=f"{study.key} on {size}x{size}: FAP without retraining, {maps} chips each")
    for heading in ("faulty PEs", "as trained", f"{iterations} plain iterations", f"{iterations} hardening iterations"):
        table.add_column(heading, justify="right")
    recipe = RECIPES[study.key]
    fault_free = Chip("fault-free", FaultMap(config))
    versions: list[tuple[str, nn.Module]] = [("", found.network)]
    for name, mitigations in (("plain", ()), ("hardened", (Hardening(0.0, 0.2),))):
        path = study.folder / f"{study.key}-{size}-{iterations}-{name}.safetensors"
        network = _retrained(found, fault_free, Mitigations(mitigations), recipe, iterations, path)
        versions.append((f"-{name}{iterations}", network))
    for rate in study.arguments.rates:
        cells = [f"{rate:.0%}"]
        for suffix, network in versions:
            version = Subject(found.title, network, found.data, found.float_accuracy)
            cases = [Case(size, rate, number, "fap") for number in range(maps if rate else 1)]
            results = [
                measure(version, f"{study.key}{suffix}-{len(found.data.held_out)}", case, recipe, study.kept)
                for case in track(cases, f"{rate:.0%}", transient=True)
            ]
            cells.append(summary([last(result) for result in results]))
        table.add_row(*cells)
    study.say(table)


def _retrained(
    found: Subject, chip: Chip, strategy: Mitigations, recipe: Recipe, iterations: int, path: Path
) -> nn.Module:
    import copy

    from safetensors.torch import load_file, save_file

    network = copy.deepcopy(found.network)
    if not path.exists():
        result = retrain(found.network, chip, found.data, iterations, mitigations=strategy, recipe=recipe)
        save_file(result.weights, path)
    network.load_state_dict(load_file(path))
    return network


def speed(study: Study) -> None:
    """What a step of training costs: float, quantisation-aware, FAP+T, and with faults that act, in one run."""
    batch, rounds = study.arguments.batch, study.arguments.rounds
    size = study.arguments.size
    config = ArrayConfig(size, size)
    torch.manual_seed(0)
    network = WORKLOADS["resnet20"].build(3, 32, 10)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    mixed = sample_faults(config, FaultModel(0.01), seed=1)
    own = sample_faults(config, FaultModel(0.2, sites={Site.PSUM: 1.0}), seed=1)
    chips = {
        "plain quantisation-aware": Accelerator(config),
        "FAP+T, 20 % of PEs bypassed": Accelerator(config, own, own.required_bypass()),
        "1 % mixed faults, not bypassed": Accelerator(config, mixed),
    }
    steps = {"float32": network}
    for name, chip in chips.items():
        steps[name] = trainable(network, convert(network, config, images[:8]))
        move(steps[name], chip, {})
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    optimizers = {name: torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for name, model in steps.items()}
    for _ in track(range(rounds + 1), "rounds", transient=True):
        for name, model in steps.items():
            model.train()
            begun = time.perf_counter()
            optimizers[name].zero_grad()
            functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - begun)
    table = Table(title=f"a step of ResNet-20, batch {batch}, {size}x{size}, {torch.get_num_threads()} threads")
    for heading in ("step", "ms", "x float32", "x quantisation-aware"):
        table.add_column(heading, justify="right")
    # Each round's ratio compares what ran side by side; the first round warms up.
    measured = {name: np.array(values[1:]) for name, values in seconds.items()}
    for name, values in measured.items():
        ratios = [float(np.median(values / measured[other])) for other in ("float32", "plain quantisation-aware")]
        table.add_row(name, f"{np.median(values) * 1e3:.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    study.console.print(table)


PARTS = {part.__name__: part for part in (speed, curves, collapse, sites, behaviour, hardening)}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--network", choices=list(ITERATIONS), default="digits-cnn", help="default: digits-cnn")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the array (default: 64)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="fault rates")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, help="of part curves")
    parser.add_argument("--maps", type=int, default=5, help="chips for each rate (default: 5)")
    parser.add_argument("--pes", type=int, default=8, help="faulty PEs of part sites (default: 8)")
    parser.add_argument("--iterations", type=int, help="of retraining (default: by network)")
    parser.add_argument("--images", type=int, help="held-out images (default: all)")
    parser.add_argument("--batch", type=int, default=128, help="images of a step in part speed (default: 128)")
    parser.add_argument("--rounds", type=int, default=9, help="of part speed (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    parser.add_argument("--results", type=Path, default=Path("study-results"), help="folder (default: study-results)")
    parser.add_argument("--png", type=Path, help="draw the curves into this file")
    parser.add_argument("--fashion-mnist", type=Path, help=f"default: where {FASHION_MNIST} is found by itself")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--resnet20", type=Path, help="state dict of a pretrained ResNet-20")
    arguments = parser.parse_args()
    if arguments.network == "resnet20" and arguments.part != "speed" and None in (arguments.cifar, arguments.resnet20):
        parser.error("resnet20 needs --cifar and --resnet20: give the folder of CIFAR-10 and the pretrained weights")
    if arguments.iterations is None:
        arguments.iterations = ITERATIONS[arguments.network]
    torch.set_num_threads(arguments.threads)
    PARTS[arguments.part](Study(arguments))


if __name__ == "__main__":
    main()
