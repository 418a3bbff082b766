"""Random cases one after the other, until one differs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from efat.display import Shown, Table
from efat.validation import DEFAULT_CASES, DEFAULT_RTL_CASES
from efat.validation.cases import Case, config_pool, random_case
from efat.validation.shrinking import shrink
from simulator import ArrayConfig, InputError, Site, simulate_gemm
from simulator.rtl import rtl_gemm, unavailable
from training import faulty_gemm

_WARM_UP_CASES = 10
"""Enough that some have what each kernel is for."""

Engine = Callable[[Case], npt.NDArray[np.integer]]


def cycle_outputs(case: Case) -> npt.NDArray[np.integer]:
    """What the cycle engine gives, int32 [M, N]."""
    return simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass, threads=1).outputs


def emulated_outputs(case: Case) -> npt.NDArray[np.integer]:
    """What the emulation gives, int32 [M, N]."""
    x, w = torch.from_numpy(case.x), torch.from_numpy(case.w)
    outputs: npt.NDArray[np.integer] = faulty_gemm(x, w, case.config, case.faults, bypass=case.bypass).numpy()
    return outputs


def rtl_outputs(case: Case) -> npt.NDArray[np.integer]:
    """What the reference RTL gives, int32 [M, N]."""
    return rtl_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs


ENGINES: Mapping[str, Engine] = {"cycle": cycle_outputs, "emulation": emulated_outputs}
"""What is compared, the reference first."""

RTL_ENGINES: Mapping[str, Engine] = {"rtl": rtl_outputs, **ENGINES}
"""What is compared against the RTL, each array of which is compiled."""

_POOL_SIZE, _CASES_PER_POOL = 4, 250


@dataclass(frozen=True)
class Answer:
    """What one engine says to a case: outputs, or the error it ended with."""

    engine: str
    outputs: list[list[int]] | None
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.engine:>10}: {self.outputs if self.error is None else self.error}"


@dataclass
class SiteCount:
    """Cases with a fault at one site (a case with several sites counts for each)."""

    cases: int = 0
    outputs: int = 0
    mismatches: int = 0


@dataclass(frozen=True)
class Mismatch:
    """A case on which engines differ, made small.

    Attributes:
        number: of the case in its campaign.
        case: the small case.
        answers: what each engine says to it.
    """

    number: int
    case: Case
    answers: list[Answer]


def answers(case: Case, engines: Mapping[str, Engine] = ENGINES) -> list[Answer]:
    """What every engine says to a case."""
    return [_answer(name, engine, case) for name, engine in engines.items()]


def _answer(name: str, engine: Engine, case: Case) -> Answer:
    try:
        return Answer(name, engine(case).tolist())
    except Exception as error:
        # An engine that fails where another answers is a difference to report like any other.
        return Answer(name, None, type(error).__name__)


def differ(case: Case, engines: Mapping[str, Engine] = ENGINES) -> bool:
    """Whether the engines give different answers. A case that all of them refuse alike is no difference."""
    reference, *others = answers(case, engines)
    return any((other.outputs, other.error) != (reference.outputs, reference.error) for other in others)


@dataclass(repr=False)
class Validation(Shown):
    """A campaign of random cases.

    Attributes:
        seed: case i is drawn from it and i, whatever else is run.
        size: rows and columns of the arrays; None for any.
        sites: nets that may be faulty.
        engines: what is compared, by name, the reference first. With the RTL among them, every 250 cases share a few
            arrays.
        counts: by site; key None for cases without faults.
        cases: done so far.
        outputs: compared so far.
        seconds: spent so far.
        mismatch: what was found, or None.
    """

    seed: int
    size: tuple[int, int] | None = None
    sites: Sequence[Site] = tuple(Site)
    engines: Mapping[str, Engine] = field(default_factory=lambda: ENGINES)
    counts: dict[Site | None, SiteCount] = field(default_factory=dict)
    cases: int = 0
    outputs: int = 0
    seconds: float = 0.0
    mismatch: Mismatch | None = None

    def case(self, number: int) -> Case:
        """Case `number` of this campaign."""
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        pool = None
        if "rtl" in self.engines:
            of_pool = np.random.SeedSequence(self.seed, spawn_key=(number // _CASES_PER_POOL, 0))
            pool = config_pool(np.random.default_rng(of_pool), _POOL_SIZE, self.size)
        return random_case(random, self.size, self.sites, pool)

    def warm_up(self) -> None:
        """Have all kernels compiled, so that their compilation is not counted as time for cases."""
        for number in range(_WARM_UP_CASES):
            answers(self.case(number), self.engines)

    def run(self, *, cases: int | None, seconds: float | None, progress: Callable[[int], None] | None = None) -> None:
        """Compare until `cases` are done, `seconds` are over, or one differs.

        Args:
            cases: number of cases in all; None for no limit.
            seconds: time in all; None for no limit.
            progress: called after each case with the number done.
        """
        begun = time.perf_counter() - self.seconds
        while self.mismatch is None and (cases is None or self.cases < cases):
            case = self.case(self.cases)
            found = differ(case, self.engines)
            self._count(case, found)
            if found:
                small = shrink(case, lambda smaller: differ(smaller, self.engines))
                self.mismatch = Mismatch(self.cases, small, answers(small, self.engines))
            self.cases += 1
            self.seconds = time.perf_counter() - begun
            if progress is not None:
                progress(self.cases)
            if seconds is not None and self.seconds >= seconds:
                break

    def _count(self, case: Case, found: bool) -> None:
        size = len(case.x) * case.w.shape[1]
        self.outputs += size
        present: set[Site | None] = {Site(code) for code in np.unique(case.faults.table["site"]).tolist()}
        for site in present or {None}:
            count = self.counts.setdefault(site, SiteCount())
            count.cases += 1
            count.outputs += size
            count.mismatches += found

    def table(self) -> Table:
        """A row for each net that was faulty."""
        rows = [
            ("no fault" if site is None else site.name.lower(), found.cases, found.outputs, found.mismatches)
            for site, found in sorted(self.counts.items(), key=lambda item: -1 if item[0] is None else int(item[0]))
        ]
        end = "" if self.mismatch is None else f"; case {self.mismatch.number} differs:\n{self.mismatch.case}"
        return Table(
            f"{' against '.join(self.engines)}: {self.cases:,} cases of seed {self.seed}{end}",
            ("faults in", "cases", "outputs", "mismatches"),
            rows,
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything counted, as JSON takes it."""
        named = {"none" if site is None else site.name: asdict(count) for site, count in self.counts.items()}
        return {
            "engines": list(self.engines),
            "seed": self.seed,
            "array": None if self.size is None else list(self.size),
            "sites": [site.name for site in self.sites],
            "cases": self.cases,
            "outputs": self.outputs,
            "seconds": self.seconds,
            "by_site": named,
            "mismatching_case": None if self.mismatch is None else self.mismatch.number,
        }


def validate(
    cases: int | None = None,
    *,
    minutes: float | None = None,
    seed: int | None = None,
    array: tuple[int, int] | None = None,
    sites: Sequence[Site] = tuple(Site),
    against: Literal["cycle", "rtl"] = "cycle",
    progress: Callable[[int], None] | None = None,
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

    Returns:
        What was counted; a case that differs is its `mismatch`, made small.

    Raises:
        InputError: both a number of cases and a time, an array that cannot be, or the RTL cannot be run.
    """
    if cases is not None and minutes is not None:
        raise InputError("cases and minutes are both given: choose one")
    engines = engines_against(against)
    if array is not None:
        try:
            ArrayConfig(*array)
        except ValueError as error:
            raise InputError(str(error)) from None
    if cases is None and minutes is None:
        cases = DEFAULT_CASES if against == "cycle" else DEFAULT_RTL_CASES
    found = Validation(secrets.randbelow(1 << 32) if seed is None else seed, array, sites, engines)
    found.run(cases=cases, seconds=None if minutes is None else 60 * minutes, progress=progress)
    return found


def engines_against(against: Literal["cycle", "rtl"]) -> Mapping[str, Engine]:
    """What is compared, the reference first.

    Args:
        against: as for `validate`.

    Raises:
        InputError: the RTL cannot be run here, or there is no such engine.
    """
    if against == "cycle":
        return ENGINES
    if against != "rtl":
        raise InputError(f"against is {against!r}: expected cycle or rtl")
    reason = unavailable()
    if reason is not None:
        raise InputError(f"against rtl: {reason}")
    return RTL_ENGINES
