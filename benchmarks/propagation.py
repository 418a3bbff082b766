"""How many single faults a second are followed through a network, against running all of it with each fault?

A uniform sample of the population is taken as `efat propagate` takes it: faults that provably do nothing are left out,
the others are injected into a run that is done again only where it differs. The same faults by full emulation, each
with a run of the whole network on the emulated faulty array, and one of them on the cycle engine, must give the same
classes. Everything in one thread.

Run: python benchmarks/propagation.py
     python benchmarks/propagation.py --network resnet20 --weights FILE --data FOLDER
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from efat.propagation.collapsing.collapse import Collapse
from efat.propagation.injection import MOST_ENTRIES, layer_shapes, trial_of
from efat.propagation.population import LayerUse, Population
from efat.propagation.request import Subject
from simulator import ArrayConfig, FaultMap, Kind, Site
from training.injection.replay import Injected, Propagated, Replay
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import put_on_chip, quantized_layers
from training.layers.quantized import QuantizedLayer

SITES = [site for site in Site if site is not Site.MULTIPLIER]


def population_of(replay: Replay, config: ArrayConfig, kinds: Sequence[Kind]) -> tuple[Population, Collapse]:
    """All faults of some kinds, and the rules for them."""
    gemms = [kept.gemm for kept in replay.layers]
    uses = [LayerUse(gemm.layer.name, gemm.m, gemm.weights, replay.seen(number)) for number, gemm in enumerate(gemms)]
    strata = [(site, bit, kind) for site in SITES for bit in range(site.bits(config)) for kind in kinds]
    return Population(config, layer_shapes(replay), strata, len(replay)), Collapse(config, uses, strata)


def replayed(replay: Replay, trials: Sequence[Injected]) -> tuple[list[Propagated], float]:
    """Follow faults, as many at a time as in a campaign; and the seconds it takes."""
    begun = time.perf_counter()
    each = max(1, MOST_ENTRIES // max((len(trial.images) for trial in trials), default=1))
    found = [replay.propagate(trials[first : first + each]) for first in range(0, len(trials), each)]
    return found, time.perf_counter() - begun


def in_full(network: torch.nn.Module, images: torch.Tensor, trial: Injected, engine: Engine) -> npt.NDArray[np.int64]:
    """Classes by a run of the whole network with a fault."""
    layers = _calls(network, images[:1])
    faulty = Accelerator(layers[0].config, FaultMap.from_faults(layers[0].config, [trial.fault]), engine=engine)
    if trial.layer is None:
        put_on_chip(network, faulty)
    else:
        layers[trial.layer].accelerator = faulty
    with torch.no_grad():
        found: npt.NDArray[np.int64] = network(images[torch.from_numpy(trial.images)]).argmax(1).numpy()
    put_on_chip(network, Accelerator.fault_free(layers[0].config))
    return found


def _calls(network: torch.nn.Module, image: torch.Tensor) -> list[QuantizedLayer]:
    """The layers in the order in which they run; here none does twice."""
    return list(quantized_layers(network).values())


def measured(
    replay: Replay, network: torch.nn.Module, images: torch.Tensor, trials: Sequence[Injected], full: int
) -> tuple[float, float, npt.NDArray[np.bool_]]:
    """Seconds for a fault, followed and by full emulation, and which faults nothing is left of after their layer."""
    found, seconds = replayed(replay, trials)
    in_next = np.concatenate([part.layers[:, :, 0].any(axis=1) for part in found])
    predicted = np.concatenate([part.predicted for part in found])
    first = np.concatenate([[0], np.cumsum([len(trial.images) for trial in trials])])
    spent = 0.0
    for number in range(min(full, len(trials))):
        begun = time.perf_counter()
        classes = in_full(network, images, trials[number], "emulation")
        spent += time.perf_counter() - begun
        if not np.array_equal(classes, predicted[first[number] : first[number + 1]]):
            raise SystemExit(f"full emulation differs for {trials[number].fault}: a bug")
    return seconds / max(1, len(trials)), spent / max(1, min(full, len(trials))), ~in_next


def rows(
    what: str, replay: Replay, network: torch.nn.Module, images: torch.Tensor, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """Measure one kind of fault on some images each."""
    config = replay.layers[0].gemm.config
    flips = what == "flips"
    population, collapse = population_of(replay, config, [Kind.FLIP] if flips else [Kind.STUCK_AT_0, Kind.STUCK_AT_1])
    sample = population.faults(population.sample(arguments.flips if flips else arguments.faults, arguments.seed))
    sample = np.random.default_rng(arguments.seed).permutation(sample)
    collapse.rules(sample)
    begun = time.perf_counter()
    rules, _ = collapse.rules(sample)
    ruled = time.perf_counter() - begun
    chosen = np.random.default_rng(arguments.seed)
    each = 1 if what.endswith("one image") else len(replay)

    def trial(fault: np.void) -> Injected:
        made = trial_of(fault, 0, len(replay))
        return made if flips or each > 1 else Injected(made.fault, chosen.integers(len(replay), size=1))

    trials = [trial(fault) for fault in sample]
    acting = [made for made, rule in zip(trials, rules, strict=True) if rule in (0, 3)]
    replayed(replay, acting[:4])
    in_full(network, images, trials[0], "emulation")
    followed, full, masked = measured(replay, network, images, acting, arguments.full)
    average = (followed * len(acting) + ruled) / len(trials)
    yield _row(f"{what}: all", len(trials), average, full)
    yield _row(f"{what}: not collapsed", len(acting), followed, full)
    kept = [made for made, is_masked in zip(acting, masked, strict=True) if is_masked]
    if kept:
        _, seconds = replayed(replay, kept)
        yield _row(f"{what}: masked in their layer", len(kept), seconds / len(kept), full)


def _row(what: str, count: int, followed: float, full: float) -> tuple[str, ...]:
    rate = 1 / followed if followed else float("inf")
    return what, f"{count:,}", f"{rate:,.0f}", f"{1 / full:,.1f}", f"{full / followed:,.1f}x"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits-cnn")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the array")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--faults", type=int, default=200, help="permanent faults")
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--full", type=int, default=10, help="faults of each row that are run in full")
    parser.add_argument("--cycle-engine", type=int, default=1, help="faults that are run on it, with one image")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = ArrayConfig(arguments.size, arguments.size)
    loaded = Subject(arguments.network, arguments.weights, arguments.data, arguments.images).load(config)
    console = Console(width=120)
    console.print(f"{platform.processor() or platform.machine()}, one thread; {vars(arguments)}")
    begun = time.perf_counter()
    replay = Replay(loaded.network, loaded.images)
    for kept in replay.layers:
        _: Any = kept.windows
    console.print(f"the run without faults: {time.perf_counter() - begun:.2f} s, {replay.kept_bytes / 1e6:.0f} MB kept")
    table = Table(title=f"{arguments.network} on {arguments.size}x{arguments.size}")
    for heading in ("faults", "number", "faults/s", "full emulation, faults/s", "ratio"):
        table.add_column(heading, justify="left" if heading == "faults" else "right")
    for what in (f"stuck, {len(replay)} images", "stuck, one image", "flips"):
        for row in rows(what, replay, loaded.network, loaded.images, arguments):
            table.add_row(*row)
    console.print(table)
    population, _collapse = population_of(replay, config, [Kind.STUCK_AT_0, Kind.STUCK_AT_1])
    for fault in population.faults(population.sample(arguments.cycle_engine, arguments.seed)):
        one = Injected(trial_of(fault, 0, 1).fault, np.zeros(1, np.int64))
        begun = time.perf_counter()
        classes = in_full(loaded.network, loaded.images, one, "cycle")
        seconds = time.perf_counter() - begun
        found, followed = replayed(replay, [one])
        same = np.array_equal(classes, found[0].predicted)
        console.print(
            f"{one.fault.site.name} bit {one.fault.bit} on one image: cycle engine {1 / seconds:.3g} faults/s, "
            f"followed {1 / followed:.3g} ({seconds / followed:,.0f}x), "
            f"{'the same class' if same else 'ANOTHER CLASS: a bug'}"
        )
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
