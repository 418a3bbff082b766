"""Where the units of a campaign run: here, in worker processes, or on a Ray cluster. Results are the same everywhere.

Every unit computes in one thread, as floating-point sums depend on the number of threads.
"""

from __future__ import annotations

import io
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.util import Finalize
from typing import Any

from efat.campaigns.campaign import Executor, Outcome, Unit, Work
from efat.records import Named
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
    """What does units at such a place; an address is one of a Ray cluster, such as `ray://host:10001`.

    Raises:
        InputError: a number below 0.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, str):
        return ray_cluster(workers)
    if not isinstance(workers, int):
        return workers
    if workers < 0:
        raise InputError(f"workers is {workers}: expected 0 for none but this process, or more")
    return processes(workers) if workers else in_line


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
    """Do units in so many worker processes. One that dies is replaced, and what it was doing is done again.

    The processes stay for the next units, as it takes them seconds to begin; they end with this one.

    Raises:
        InputError: fewer than one.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}: expected 1 or more")
    return _Processes(workers)


class _Packer(pickle.Pickler):
    """Pickles all but a user's network and data: `keep` sees to it that they travel once, and gives what names them."""

    def __init__(self, file: io.BytesIO, keep: Callable[[Named], object]) -> None:
        super().__init__(file)
        self._keep = keep

    def persistent_id(self, found: object) -> object:
        return self._keep(found) if isinstance(found, Named) else None


class _Unpacker(pickle.Unpickler):
    """Reads what `_Packer` gave; from a process of this campaign, over a pipe that nobody else has."""

    def __init__(self, content: bytes, find: Callable[[Any], Named]) -> None:
        super().__init__(io.BytesIO(content))
        self._find = find

    def persistent_load(self, name: object) -> Named:
        return self._find(name)


def _packed(content: object, keep: Callable[[Named], object]) -> bytes:
    file = io.BytesIO()
    _Packer(file, keep).dump(content)
    return file.getvalue()


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
        self._sent: dict[Named, int] = {}

    def begin(self, work: Work, unit: Unit) -> None:
        content = _packed((work, unit.arguments), self._once)
        # `outcome` finds out that it is dead.
        with suppress(OSError):
            self.pipe.send_bytes(content)

    def _once(self, found: Named) -> tuple[int, bytes | None]:
        """What names an object to this worker; the first time with the object."""
        if found in self._sent:
            return self._sent[found], None
        self._sent[found] = len(self._sent)
        return self._sent[found], pickle.dumps(found)

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
                worker.begin(work, unit)

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
    kept: dict[int, Named] = {}

    def find(sent: tuple[int, bytes | None]) -> Named:
        number, content = sent
        if content is not None:
            kept[number] = pickle.loads(content)
        return kept[number]

    while True:
        try:
            content = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            work, arguments = _Unpacker(content, find).load()
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
    """Do units on a Ray cluster, at most `in_flight` at a time; its machines have this package and the same data.

    The address is as `ray.init` takes it; `local` is a cluster of its own on this machine.

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
            remote = ray.remote(num_cpus=1, max_retries=MOST_DEATHS - 1)(_work_packed)
            waiting = deque(units)
            running: dict[Any, Unit] = {}
            numbers: dict[Named, int] = {}
            shared: list[Any] = []

            def once(found: Named) -> int:
                """The number of an object that each machine of the cluster gets once."""
                if found not in numbers:
                    numbers[found] = len(shared)
                    shared.append(ray.put(found))
                return numbers[found]

            while running or waiting:
                while waiting and len(running) < in_flight:
                    unit = waiting.popleft()
                    content = _packed((work, unit.arguments), once)
                    running[remote.remote(content, *shared)] = unit
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


def _work_packed(content: bytes, *shared: Named) -> Outcome:
    """Do a unit on a machine of a cluster."""
    return _work(*_Unpacker(content, lambda number: shared[number]).load())


def _work(work: Work, arguments: Any) -> Outcome:
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
