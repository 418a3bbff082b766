"""How long work took that was interrupted and went on: a small file beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from efat.json_fields import read_json
from simulator.errors import InputError
from simulator.files import replaced

FORMAT = "efat-elapsed"
VERSION = 1


class Elapsed:
    """The time that was spent on some work, in this run and those before it; a run that does nothing spends none.

    Args:
        path: of the file; one that is damaged is begun anew.

    Attributes:
        seconds: up to when something was done last, wall clock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.perf_counter()
        self._before = 0.0
        if path.exists():
            try:
                self._before = read_json(path, FORMAT, VERSION, "efat retrain").number("seconds", 0)
            except InputError:
                # It is for people alone, and no reason to stop.
                path.unlink()
        self.seconds = self._before

    def note(self) -> None:
        """Keep that something is done."""
        self.seconds = self._before + time.perf_counter() - self._begun
        with replaced(self._path) as beside:
            beside.write_text(json.dumps({"format": FORMAT, "version": VERSION, "seconds": self.seconds}) + "\n")
