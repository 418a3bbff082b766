"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_MOST_KNOWN = 20_000
"""Names to compare with; more would take longer than anybody waits for a message."""


def did_you_mean(given: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: a question, or nothing if no name is near.

    Args:
        given: the name, in capitals or not.
        known: the names there are.

    >>> did_you_mean("resnet19", ["lenet5", "resnet18", "vgg11"])
    '; did you mean resnet18?'
    >>> did_you_mean("alexnet9000", ["lenet5", "resnet18", "vgg11"])
    ''
    """
    if len(known) > _MOST_KNOWN:
        return ""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=3)
    return f"; did you mean {' or '.join(by_lower[name] for name in near)}?" if near else ""
