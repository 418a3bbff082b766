"""Where the units of a campaign run: here, in worker processes, or on a Ray cluster. Results are the same everywhere.

Every unit computes in one thread, as floating-point sums depend on the number of threads.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from efat.campaigns.campaign import Executor, Outcome, Unit, Work
from simulator.errors import InputError, first_line

MOST_DEATHS = 3
"""How many workers may die with a unit before it is given up."""

_PARENT_SECONDS = 1.0
_REACH_SECONDS = 10.0


class WorkerDiedError(RuntimeError):
    """Workers died again and again with the same unit: out of memory, most likely."""


def in_line(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """Do the units one after the other, in this process."""
    for unit in units:
        with one_thread():
            outcome = work(unit.arguments)
        yield unit, outcome


def processes(workers: int) -> Executor:
    """Do units in worker processes. One that dies is replaced, and what it was doing is done again.

    The processes stay for the next units, as it takes them seconds to begin; they end with this one.

    Args:
        workers: how many, >= 1.

    Raises:
        InputError: fewer than one.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}: expected 1 or more")
    return _Processes(workers)


class _Processes:
    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._at_the_end: weakref.finalize[..., _Processes] | None = None

    def __call__(self, work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        """Do units.

        Raises:
            WorkerDiedError: workers died again and again.
        """
        left = {unit.name: unit for unit in units}
        deaths = dict.fromkeys(left, 0)
        while left:
            running: dict[Future[Outcome], Unit] = {}
            try:
                yield from self._do(work, left, running)
            except BrokenProcessPool:
                self._stop()
                for unit in running.values():
                    deaths[unit.name] += 1
                    if deaths[unit.name] >= MOST_DEATHS:
                        raise WorkerDiedError(
                            f"{MOST_DEATHS} workers died while {unit.name} was running: is there enough memory for "
                            f"{self._workers} of them?"
                        ) from None
            except BaseException:
                self._stop()
                raise

    def _do(
        self, work: Work, left: dict[str, Unit], running: dict[Future[Outcome], Unit]
    ) -> Iterator[tuple[Unit, Outcome]]:
        """Do what is left, and take it from there when it is done."""
        if self._pool is None:
            self._pool = _pool(self._workers)
            # Waits: one that is still ending when the program does is woken after it has closed its pipe.
            self._at_the_end = weakref.finalize(self, self._pool.shutdown)
        pool = self._pool
        waiting = iter(list(left.values()))
        # Few at a time: what is queued when a worker dies is not to blame.
        for unit in waiting:
            running[pool.submit(_work, work, unit.arguments)] = unit
            if len(running) == self._workers:
                break
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                unit = running.pop(future)
                del left[unit.name]
                yield unit, outcome
                after = next(waiting, None)
                if after is not None:
                    running[pool.submit(_work, work, after.arguments)] = after

    def _stop(self) -> None:
        """End the workers at once, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._at_the_end is not None:
            self._at_the_end.detach()
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def ray_cluster(address: str, in_flight: int = 1000) -> Executor:
    """Do units on a Ray cluster, whose machines have this package and the same data at the same places.

    Args:
        address: of the cluster, as `ray.init` takes it; `local` for one of its own on this machine.
        in_flight: how many units are handed over at a time, at most.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """

    def execute(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        if not units:
            return
        try:
            import ray
        except ImportError:
            raise InputError("Ray is not installed: pip install 'efat[ray]', or leave out its address") from None
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster at {address!r}: {first_line(error)}") from None
        try:
            remote = ray.remote(num_cpus=1, max_retries=MOST_DEATHS - 1)(_work)
            waiting = iter(units)
            running: dict[Any, Unit] = {}
            for unit in waiting:
                running[remote.remote(work, unit.arguments)] = unit
                if len(running) == in_flight:
                    break
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    unit = running.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        # Ray's own has the traceback of another machine in its message.
                        raise error.cause from None
                    except ray.exceptions.RayError as error:
                        raise WorkerDiedError(
                            f"{MOST_DEATHS} workers died while {unit.name} was running: {first_line(error)}"
                        ) from None
                    yield unit, outcome
                    after = next(waiting, None)
                    if after is not None:
                        running[remote.remote(work, after.arguments)] = after
        finally:
            ray.shutdown()

    return execute


def _check_reachable(address: str) -> None:
    """Ray tries for minutes to reach a machine that does not answer."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d{1,5})", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address!r}: {first_line(error)}") from None


def _work(work: Work, arguments: Mapping[str, Any]) -> Outcome:
    try:
        with one_thread():
            return work(arguments)
    except Exception as error:
        from training.layers.user_code import user_failure

        # Where it comes from does not travel to other processes.
        failed = user_failure(error)
        if failed is None:
            raise
        raise InputError(failed) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, as sums of floats depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pool(workers: int) -> ProcessPoolExecutor:
    # A process forked from one with threads may stand still for ever.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """In a new worker: Ctrl-C is the parent's, and without the parent there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
