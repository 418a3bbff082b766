"""Where the units of a campaign run: here, in worker processes, or on a Ray cluster. Results are the same everywhere.

Every unit computes in one thread, as floating-point sums depend on the number of threads.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import signal
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.util import Finalize
from typing import Any

from efat.campaigns.campaign import Executor, Outcome, Unit, Work
from simulator.errors import InputError, first_line

Workers = int | str | Executor | None
"""Where units run: in so many processes, 0 for this one, None for one per core; on the Ray cluster at an address."""

MOST_DEATHS = 3
"""How many workers may die with a unit before it is given up."""

_PARENT_SECONDS = 1.0
_REACH_SECONDS = 10.0


class WorkerDiedError(RuntimeError):
    """Workers died again and again with the same unit: out of memory, most likely."""


def executor_of(workers: Workers) -> Executor:
    """What does units.

    Args:
        workers: how many processes, 0 for none but this one, None for one per core that may be used; the address of a
            Ray cluster, such as `ray://host:10001`; or what does units itself.

    Raises:
        InputError: a number below 0.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, str):
        return ray_cluster(workers)
    if isinstance(workers, int):
        return processes(workers) if workers else in_line
    return workers


def in_line(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """Do the units one after the other, in this process."""
    for unit in units:
        with one_thread():
            outcome = work(unit.arguments)
        yield unit, outcome


def with_all_threads(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """The same with as many threads as PyTorch has: what is one unit has nothing else to share the cores with."""
    for unit in units:
        yield unit, work(unit.arguments)


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


class _Worker:
    """A process that does units, one at a time.

    It shares nothing with other workers, no lock and no queue: a worker that is killed, whatever it is doing, closes
    its pipe, and holds up nobody.
    """

    def __init__(self) -> None:
        # A process forked from one with threads may stand still for ever.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()))
        self._process.start()
        theirs.close()

    def begin(self, content: bytes) -> None:
        # `outcome` finds out that it is dead.
        with suppress(OSError):
            self.pipe.send_bytes(content)

    def outcome(self) -> Outcome | None:
        """What the unit gave, waited for; None if the worker died with it. What the work raised is raised."""
        try:
            content = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.end()
            return None
        # From a process that this one started, over a pipe that nobody else has; no file is read this way.
        outcome, error, trace = pickle.loads(content)
        if error is not None:
            raise error from RuntimeError(f"in a worker:\n{trace}")
        assert isinstance(outcome, Outcome)
        return outcome

    def end(self) -> None:
        """End it at once, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


class _Processes:
    def __init__(self, workers: int) -> None:
        self._most = workers
        self._all: list[_Worker] = []
        Finalize(self, _end_all, (self._all,), exitpriority=1)

    def __call__(self, work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        """Do units.

        Raises:
            WorkerDiedError: workers died again and again.
        """
        waiting, deaths = deque(units), Counter[str]()
        running: dict[object, tuple[_Worker, Unit]] = {}

        def begin() -> None:
            count = min(self._most, len(running) + len(waiting))
            # All at once, as it takes them long to begin.
            self._all += [_Worker() for _ in range(count - len(self._all))]
            for worker in [worker for worker in self._all if worker.pipe not in running][: count - len(running)]:
                unit = waiting.popleft()
                running[worker.pipe] = worker, unit
                worker.begin(pickle.dumps((work, unit.arguments)))

        try:
            begin()
            while running:
                for pipe in connection.wait(list(running)):  # type: ignore[arg-type]
                    worker, unit = running.pop(pipe)
                    outcome = worker.outcome()
                    if outcome is None:
                        self._all.remove(worker)
                        waiting.appendleft(unit)
                        deaths[unit.name] += 1
                        if deaths[unit.name] >= MOST_DEATHS:
                            raise WorkerDiedError(
                                f"{MOST_DEATHS} workers died while {unit.name} was running: is there enough memory for "
                                f"{self._most} of them?"
                            )
                    begin()
                    if outcome is not None:
                        yield unit, outcome
        except BaseException:
            _end_all(self._all)
            raise


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _serve(pipe: connection.Connection, parent: int) -> None:
    """What a worker does: Ctrl-C is the parent's, and without the parent there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            content = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            work, arguments = pickle.loads(content)
            answer = pickle.dumps((_work(work, arguments), None, ""))
        except BaseException as error:
            answer = _failure(error)
        pipe.send_bytes(answer)


def _failure(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        content = pickle.dumps((None, error, trace))
        pickle.loads(content)
    except Exception:
        # Not every exception of somebody else's travels.
        content = pickle.dumps((None, RuntimeError(first_line(error)), trace))
    return content


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
