"""Results of a long study, one file for each unit of work, so that it can go on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulator.files import replaced


class Store:
    """A folder of results by name.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a unit of work."""
        return self.folder / name

    def get(self, unit: str) -> dict[str, Any] | None:
        """The result of a unit that is done, or None."""
        path = self.path(f"{unit}.json")
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def done(self, unit: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a unit, worked out now if it is not there."""
        found = self.get(unit)
        if found is not None:
            return found
        result = work()
        with replaced(self.path(f"{unit}.json")) as beside:
            beside.write_text(json.dumps(result))
        return result
