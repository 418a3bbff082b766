"""Settings of a run as a report lists them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything in nested settings, by names with dots, as text."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", plain(value)


def plain(value: object) -> str:
    """A setting as text: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
