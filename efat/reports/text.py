"""Numbers and names as people read them, on pages and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal


def accuracy(correct: int, images: int) -> str:
    """A share of images in percent, with as many digits as tell one image more from one less."""
    digits = max(1, math.ceil(math.log10(images)) - 2)
    return f"{100 * correct / images:.{digits}f}%"


def short_percent(share: float) -> str:
    """A share in percent, to two digits or to the whole per cent; halves are rounded up.

    >>> short_percent(0.625), short_percent(0.0125)
    ('63%', '1.3%')
    """
    percent = 100 * Decimal(repr(float(share)))
    digits = (
        0
        if percent >= Decimal("9.95") or percent == 0
        else 1
        if percent >= Decimal("0.995")
        else 1 - percent.adjusted()
    )
    rounded = percent.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded:,f}%"


def duration(seconds: float) -> str:
    """How long something took, as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def named(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many there are besides."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
