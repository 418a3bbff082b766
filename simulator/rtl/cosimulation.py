"""Simulator processes: Icarus Verilog with cocotb inside, compiled once for each set of parameters and kept running."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from simulator.rtl import sources
from simulator.rtl.messages import receive, send

CHUNK_CYCLES = 128
"""Clock cycles that the testbench runs at a time."""

_MOST_PROCESSES = 10
_MOST_BINARIES = 60
_START_SECONDS = 120.0
_COMPILE_SECONDS = 600.0
_STOP_SECONDS = 5.0


class RtlUnavailableError(RuntimeError):
    """What runs the RTL is not installed; the message says what to install."""


class CosimulationError(RuntimeError):
    """The simulator ended, or did not answer in time."""


def unavailable() -> str | None:
    """Why the RTL cannot be run here, and what to install; None if it can."""
    for program, package in (("iverilog", "iverilog"), ("vvp", "iverilog")):
        if shutil.which(program) is None:
            return f"{program} is not installed, which simulates the RTL: apt-get install {package}"
    for module in ("cocotb", "cocotb_tools", "find_libpython"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed, which connects Python to the simulator: pip install 'efat[rtl]'"
    return None


class Simulator:
    """One running simulation of one array.

    Args:
        binary: what `iverilog` made; what the simulator writes goes beside it.
    """

    def __init__(self, binary: Path) -> None:
        folder = binary.parent
        self._output = folder / "output.txt"
        self._vectors: dict[str, str] = {}
        ours, theirs = socket.socketpair()
        with theirs, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*_vvp_command(), str(binary), "-none"],
                cwd=folder,
                env=_environment(folder, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C on the terminal is for this process, which then ends the simulator.
                start_new_session=True,
            )
        self._connection = ours
        self._answer(_START_SECONDS)

    def run(self, vectors: Mapping[str, str], chunks: list[dict[str, Any]], seconds: float) -> list[str]:
        """Set vectors, run chunks as `cocotb_server.serve` describes, and return their logs.

        Raises:
            CosimulationError: the simulator ended, or took longer than `seconds`.
        """
        changed = {name: bits for name, bits in vectors.items() if self._vectors.get(name) != bits}
        self._vectors.update(vectors)
        try:
            send(self._connection, {"set": changed, "chunks": chunks})
        except OSError:
            raise self._failure("ended") from None
        answer: list[str] = self._answer(seconds)
        return answer

    def _answer(self, seconds: float) -> Any:
        self._connection.settimeout(seconds)
        try:
            answer = receive(self._connection)
        except TimeoutError:
            raise self._failure(f"did not answer for {seconds:.0f} s") from None
        except OSError:
            answer = None
        if answer is None:
            raise self._failure("ended")
        return answer

    def _failure(self, what: str) -> CosimulationError:
        self.close(kill=True)
        last_lines = self._output.read_text(errors="replace").strip().splitlines()[-8:]
        return CosimulationError("\n".join([f"the RTL's simulator {what}; it wrote:", *last_lines]))

    @property
    def running(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def hang_up(self) -> None:
        """Have the process end by itself."""
        self._connection.close()

    def close(self, *, kill: bool = False) -> None:
        """End the process and wait for it."""
        self.hang_up()
        if not kill:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Pool:
    """Simulators by what they simulate, the ones used last kept running. Belongs to one process; threads take turns."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._simulators: OrderedDict[tuple[Any, ...], Simulator] = OrderedDict()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._binaries: OrderedDict[tuple[Any, ...], Path] = OrderedDict()

    @contextmanager
    def simulator(self, parameters: Mapping[str, int], multiplier: Mapping[str, str] | None) -> Iterator[Simulator]:
        """The simulator of an array, for the time of a `with` block; an error in the block ends it.

        `parameters` are of `testbench.sv`, `multiplier` the files of a multiplier by name, None for `multiplier.sv`.
        """
        with self._lock:
            key = (*sorted(parameters.items()), *sorted((multiplier or {}).items()))
            simulator = self._simulators.pop(key, None)
            if simulator is None or not simulator.running:
                reason = unavailable()
                if reason is not None:
                    raise RtlUnavailableError(reason)
                while len(self._simulators) >= _MOST_PROCESSES:
                    self._simulators.popitem(last=False)[1].close()
                binary = self._binary(key, parameters, multiplier)
                simulator = Simulator(binary)
            try:
                yield simulator
            except BaseException:
                # What it was doing is not finished, and the next answer would be of this request.
                simulator.close(kill=True)
                raise
            self._simulators[key] = simulator

    def _binary(
        self, key: tuple[Any, ...], parameters: Mapping[str, int], multiplier: Mapping[str, str] | None
    ) -> Path:
        if key not in self._binaries:
            while len(self._binaries) >= _MOST_BINARIES:
                oldest = next(key for key in self._binaries if key not in self._simulators)
                shutil.rmtree(self._binaries.pop(oldest).parent, ignore_errors=True)
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="efat-rtl-", ignore_cleanup_errors=True)
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            for name, content in (multiplier or {}).items():
                (folder / name).write_text(content)
            paths = [sources.FOLDER / name for name in (sources.TESTBENCH, *sources.SOURCES)]
            paths.append((sources.FOLDER if multiplier is None else folder) / sources.MULTIPLIER)
            binary = folder / "testbench.vvp"
            options = [f"-Ptestbench.{name}={value}" for name, value in parameters.items()]
            command = ["iverilog", "-g2012", "-s", "testbench", "-o", str(binary), *options, *map(str, paths)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                raise CosimulationError(f"iverilog took longer than {_COMPILE_SECONDS:.0f} s") from None
            if done.returncode:
                raise CosimulationError(f"iverilog does not compile the RTL:\n{done.stderr.strip()}")
            self._binaries[key] = binary
        self._binaries.move_to_end(key)
        return self._binaries[key]

    def close(self) -> None:
        """End all simulators and remove what was compiled."""
        if self._owner != os.getpid():
            return
        with self._lock:
            for simulator in self._simulators.values():
                simulator.hang_up()
            while self._simulators:
                self._simulators.popitem()[1].close()
            self._binaries.clear()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None


_pools: dict[int, Pool] = {}


def pool() -> Pool:
    """The pool of this process; one that a fork inherited stays its parent's."""
    pid = os.getpid()
    if pid not in _pools:
        _pools[pid] = Pool()
        atexit.register(_pools[pid].close)
    return _pools[pid]


@cache
def _vvp_command() -> tuple[str, ...]:
    import cocotb_tools.config

    return "vvp", "-n", "-m", str(cocotb_tools.config.lib_entry("vpi", "icarus"))


@cache
def _gpi_users() -> str:
    import cocotb_tools.config
    import find_libpython

    return f"{find_libpython.find_libpython()};{cocotb_tools.config.pygpi_entry_point()}"


def _environment(folder: Path, connection: int) -> dict[str, str]:
    """Environment variables of a simulator, see cocotb's reference."""
    import cocotb_tools.config

    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("COCOTB_", "GPI_", "PYGPI_"))
    }
    search_path = [str(sources.FOLDER), *(entry for entry in sys.path if entry and Path(entry).is_dir())]
    return {
        **inherited,
        "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{cocotb_tools.config.libs_dir}",
        "PYTHONPATH": os.pathsep.join(search_path),
        "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": _gpi_users(),
        "GPI_LOG_LEVEL": "WARNING",
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_TOPLEVEL": "testbench",
        "TOPLEVEL_LANG": "verilog",
        "COCOTB_TEST_MODULES": "cocotb_server",
        "COCOTB_RESULTS_FILE": str(folder / "results.xml"),
        "COCOTB_REWRITE_ASSERTION_FILES": "",
        "EFAT_COSIMULATION_SOCKET": str(connection),
    }
