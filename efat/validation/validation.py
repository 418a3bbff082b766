"""The implementations of the array against each other: on random cases until one differs, and on whole networks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from efat.display import Shown, Table, Verdict, counted
from efat.inference.simulate import simulate
from efat.inference.simulation import Simulation
from efat.records import check
from efat.setup import Setup, first_images
from efat.validation.cases import Case, config_pool, load_case, random_case, shrink
from simulator import ArrayConfig, InputError, Site, simulate_gemm
from simulator.rtl import rtl_gemm, unavailable
from training import faulty_gemm
from training.data.classification import bits_of
from training.data.datasets import Normalization
from training.layers.accelerator import Engine
from training.layers.convert import put_on_chip

DEFAULT_CASES = 2000
DEFAULT_RTL_CASES = 500
DEFAULT_IMAGES = 64

_WARM_UP_CASES = 10
"""Enough that some have what each kernel is for."""

_POOL_SIZE, _CASES_PER_POOL = 4, 250

Against = Literal["cycle", "rtl"]
Implementation = Callable[[Case], npt.NDArray[np.integer]]
"""Gives the outputs int32 [M, N] of a case."""


def _of_cycle_engine(case: Case) -> npt.NDArray[np.integer]:
    return simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, threads=1).outputs


def _of_emulation(case: Case) -> npt.NDArray[np.integer]:
    x, w = torch.from_numpy(case.x), torch.from_numpy(case.w)
    outputs: npt.NDArray[np.integer] = faulty_gemm(x, w, case.config, case.faults, bypass=case.bypass).numpy()
    return outputs


def _of_rtl(case: Case) -> npt.NDArray[np.integer]:
    return rtl_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs


def _implementations(against: Against) -> Mapping[str, Implementation]:
    """What is compared, the reference first; the RTL only where it can be run."""
    engines: dict[str, Implementation] = {"cycle": _of_cycle_engine, "emulation": _of_emulation}
    if against == "cycle":
        return engines
    if against != "rtl":
        raise InputError(f"against is {against!r}: expected cycle or rtl")
    reason = unavailable()
    if reason is not None:
        raise InputError(f"against rtl: {reason}")
    return {"rtl": _of_rtl, **engines}


@dataclass(frozen=True)
class ComparedCase:
    """A case, and what each implementation, the reference first, makes of it: outputs, or a kind of error."""

    case: Case
    answers: Mapping[str, list[list[int]] | str]

    @property
    def differs(self) -> bool:
        """Whether the answers do. A case that all refuse alike is no difference."""
        reference, *others = self.answers.values()
        return any(other != reference for other in others)

    def __str__(self) -> str:
        return "\n".join([str(self.case), *(f"{name:>10}: {answer}" for name, answer in self.answers.items())])


def _compared(case: Case, implementations: Mapping[str, Implementation]) -> ComparedCase:
    return ComparedCase(case, {name: _answer(run, case) for name, run in implementations.items()})


def _answer(run: Implementation, case: Case) -> list[list[int]] | str:
    try:
        outputs: list[list[int]] = run(case).tolist()
    except Exception as error:
        # One that fails where another answers is a difference to report like any other.
        return type(error).__name__
    return outputs


@dataclass
class SiteCount:
    """Cases with a fault at one site (a case with several sites counts for each)."""

    cases: int = 0
    outputs: int = 0
    mismatches: int = 0


@dataclass(repr=False)
class Validation(Shown):
    """Random cases one after the other, until one differs.

    Attributes:
        seed: case i is drawn from it and i, whatever else is run.
        size: rows and columns of the arrays; None for any.
        sites: nets that may be faulty.
        implementations: what is compared, by name, the reference first. With the RTL among them, every 250 cases share
            a few arrays.
        most_cases: how many there are to be; None for no limit.
        most_seconds: how long it is to take; None for no limit.
        counts: by site; key None for cases without faults.
        cases: done so far.
        outputs: compared so far.
        seconds: spent so far.
        mismatch: the last case, made small, if it differs.
    """

    seed: int
    size: tuple[int, int] | None
    sites: Sequence[Site]
    implementations: Mapping[str, Implementation]
    most_cases: int | None
    most_seconds: float | None
    counts: dict[Site | None, SiteCount] = field(default_factory=dict)
    cases: int = 0
    outputs: int = 0
    seconds: float = 0.0
    mismatch: ComparedCase | None = None

    def case(self, number: int) -> Case:
        """The case of a number, from 0."""
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        pool = None
        if "rtl" in self.implementations:
            of_pool = np.random.SeedSequence(self.seed, spawn_key=(number // _CASES_PER_POOL, 0))
            pool = config_pool(np.random.default_rng(of_pool), _POOL_SIZE, self.size)
        return random_case(random, self.size, self.sites, pool)

    @property
    def mismatching_case(self) -> int | None:
        """Number of the case that differs."""
        return None if self.mismatch is None else self.cases - 1

    def warm_up(self) -> None:
        """Have all kernels compiled, so that their compilation is not counted as time for cases."""
        for number in range(_WARM_UP_CASES):
            _compared(self.case(number), self.implementations)

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Go on until a limit is reached, or a case differs; `progress` takes the number of cases done."""
        begun = time.perf_counter() - self.seconds
        while self.mismatch is None and (self.most_cases is None or self.cases < self.most_cases):
            case = self.case(self.cases)
            differs = _compared(case, self.implementations).differs
            self._count(case, differs)
            if differs:
                small = shrink(case, lambda smaller: _compared(smaller, self.implementations).differs)
                self.mismatch = _compared(small, self.implementations)
            self.cases += 1
            self.seconds = time.perf_counter() - begun
            if progress is not None:
                progress(self.cases)
            if self.most_seconds is not None and self.seconds >= self.most_seconds:
                break

    def _count(self, case: Case, differs: bool) -> None:
        size = len(case.x) * case.w.shape[1]
        self.outputs += size
        present: set[Site | None] = {Site(code) for code in np.unique(case.faults.table["site"]).tolist()}
        for site in present or {None}:
            count = self.counts.setdefault(site, SiteCount())
            count.cases += 1
            count.outputs += size
            count.mismatches += differs

    def parts(self) -> Iterator[Table | str]:
        """Cases, outputs and mismatches by site, and the case that differs."""
        present = {site: self.counts[site] for site in (*self.sites, None) if site in self.counts}
        yield Table(
            f"{' against '.join(reversed(list(self.implementations)))}: random faulty GEMMs, seed {self.seed}",
            ["faults at", "cases", "outputs", "mismatches"],
            [
                ("no faults" if site is None else site.name.lower(), count.cases, count.outputs, count.mismatches)
                for site, count in present.items()
            ],
        )
        found = "1 mismatch" if self.mismatch else "no mismatch"
        rate = self.cases / self.seconds if self.seconds else 0.0
        yield (
            f"{self.cases:,} cases, {self.outputs:,} outputs compared, {found}; {rate:,.0f} cases/s. "
            "A case counts for each site it has faults at."
        )
        if self.mismatch is not None:
            yield f"Case {self.mismatching_case} of seed {self.seed} differs. Made small:\n{self.mismatch}"

    def as_dict(self) -> dict[str, Any]:
        """Everything counted, as JSON takes it."""
        named = {"none" if site is None else site.name: asdict(count) for site, count in self.counts.items()}
        return {
            "engines": list(self.implementations),
            "seed": self.seed,
            "array": None if self.size is None else list(self.size),
            "sites": [site.name for site in self.sites],
            "cases": self.cases,
            "outputs": self.outputs,
            "seconds": self.seconds,
            "by_site": named,
            "mismatching_case": self.mismatching_case,
        }


def validate(
    cases: int | None = None,
    *,
    minutes: float | None = None,
    seed: int | None = None,
    array: tuple[int, int] | None = None,
    sites: Sequence[Site] = tuple(Site),
    against: Against = "cycle",
    progress: Callable[[int], None] | None = None,
    run: bool = True,
) -> Validation:
    """Compare the implementations of the array on random faulty GEMMs, bit for bit, until one differs.

    Args:
        cases: how many; None for `DEFAULT_CASES` (`DEFAULT_RTL_CASES` with the RTL), or for as long as `minutes` says.
        minutes: go on for so long instead.
        seed: of the cases; None for a fresh one.
        array: rows and columns of the arrays; None for many sizes.
        sites: nets that may be faulty.
        against: `cycle` compares the emulation with the cycle engine, `rtl` both with the RTL, too.
        progress: called after each case with the number done.
        run: False to have everything compiled only, for `Validation.run`.

    Returns:
        What was counted; a case that differs is its `mismatch`, made small.

    Raises:
        InputError: a number, an array or nets that cannot be, both a number of cases and a time, or the RTL cannot be
            run.
    """
    if cases is not None and minutes is not None:
        raise InputError("cases and minutes are both given: choose one")
    check(cases is None or cases >= 1, "cases", cases, "1 or more")
    check(minutes is None or minutes > 0, "minutes", minutes, "more than 0")
    check(seed is None or seed >= 0, "seed", seed, "0 or more")
    check(array is None or len(array) == 2, "array", array, "rows and columns")
    check(bool(sites) and all(isinstance(site, Site) for site in sites), "sites", sites, "one or more of `Site`")
    implementations = _implementations(against)
    if array is not None:
        ArrayConfig(*array)
    if cases is None and minutes is None:
        cases = DEFAULT_CASES if against == "cycle" else DEFAULT_RTL_CASES
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    seconds = None if minutes is None else 60 * minutes
    found = Validation(seed, array, sites, implementations, cases, seconds)
    found.warm_up()
    if run:
        found.run(progress)
    return found


def replay_case(path: str | Path, *, against: Against = "cycle") -> ComparedCase:
    """Compare the implementations of the array on a case that `efat validate` saved.

    Args:
        path: its file.
        against: as for `validate`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no case, holds something impossible, or the RTL cannot be run.
    """
    return _compared(load_case(Path(path)), _implementations(against))


@dataclass(frozen=True)
class ChipComparison:
    """How many logits of a chip were compared, and how many of them differ in any bit."""

    chip: str
    logits: int
    mismatches: int


@dataclass(repr=False)
class NetworkValidation(Shown):
    """Whole networks on both engines: every logit compared, chip by chip.

    Attributes:
        simulation: what runs on both.
        comparisons: those that are done, in the order of the chips.
    """

    simulation: Simulation
    comparisons: list[ChipComparison] = field(default_factory=list)

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Compare chip by chip, as the chips are: with the PEs that their fuses bypass, and those of the weights."""
        simulation = self.simulation
        engines: tuple[Engine, ...] = ("emulation", "cycle")
        for chip in simulation.chips[len(self.comparisons) :]:
            logits = {}
            for engine in engines:
                network = put_on_chip(*simulation.on_chip(chip, engine))
                with torch.inference_mode():
                    parts = [network(batch) for batch in torch.split(simulation.data.images, simulation.batch)]
                logits[engine] = bits_of(torch.cat(parts))
            difference = logits["emulation"] != logits["cycle"]
            self.comparisons.append(ChipComparison(chip.id, difference.numel(), int(difference.sum())))
            if progress is not None:
                progress(1)

    @property
    def differing(self) -> int:
        """Chips with a logit that differs."""
        return sum(comparison.mismatches > 0 for comparison in self.comparisons)

    def parts(self) -> Iterator[Table | str]:
        """Logits and mismatches by chip."""
        yield from self.simulation.about_weights()
        yield Table(
            f"emulation against cycle: {self.simulation.network_name}, {len(self.simulation.data)} images a chip",
            ["chip", "logits", "mismatches"],
            [(comparison.chip, comparison.logits, comparison.mismatches) for comparison in self.comparisons],
            most=len(self.comparisons),
        )
        differing = self.differing
        verdict = (
            f"{counted(differing, 'chip')} differ{'s' * (differing == 1)}."
            if differing
            else "All logits are identical."
        )
        yield Verdict(f"{counted(len(self.comparisons), 'chip')}. {verdict}")

    def as_dict(self) -> dict[str, Any]:
        """Everything found, as JSON takes it."""
        return {
            "network": self.simulation.network_name,
            "images": len(self.simulation.data),
            "deployment": self.simulation.deployment_dict(),
            "complete": len(self.comparisons) == len(self.simulation.chips),
            "chips": [asdict(comparison) for comparison in self.comparisons],
        }


def validate_network(
    network: Setup | str | nn.Module,
    lot: str | PathLike[str],
    *,
    weights: str | Path | None = None,
    data: str | Path | tuple[object, object] | None = None,
    normalization: str | Normalization | None = None,
    images: int | None = None,
    progress: Callable[[int], None] | None = None,
    run: bool = True,
) -> NetworkValidation:
    """Run a network on the chips of a lot, on the emulation and on the cycle engine, and compare every logit.

    Args:
        network: as for `efat.simulate`.
        lot: as for `efat.simulate`.
        weights: as for `efat.simulate`.
        data: as for `efat.simulate`.
        normalization: as for `efat.simulate`.
        images: how many each chip classifies; None for `DEFAULT_IMAGES`, or for all if there are fewer.
        progress: called after each chip with 1.
        run: False to have everything loaded and checked only, for `NetworkValidation.run`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown; one line says what.
    """
    simulation = simulate(
        network, lot, weights=weights, data=data, normalization=normalization, images=images, run=False
    )
    if images is None:
        simulation.data = first_images(simulation.data, min(DEFAULT_IMAGES, len(simulation.data)))
    found = NetworkValidation(simulation)
    if run:
        found.run(progress)
    return found
