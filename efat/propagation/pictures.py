"""Pictures of a propagation campaign: where on the array faults matter, which bits, and what ends differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efat.propagation.tables import Propagation

ARRAY, BITS, LAYERS = "array.png", "bits.png", "layers.png"
PICTURES = (ARRAY, BITS, LAYERS)
"""What the folder has beside the tables and their summary."""


def draw_pictures(folder: Path, propagation: Propagation, summary: Mapping[str, Any]) -> str | None:
    """Draw what was found into its folder: by PE, by bit, and by layer.

    Args:
        folder: of the campaign; it is there.
        propagation: what was found.
        summary: of it; intervals have its confidence.

    Returns:
        Why they were left out; None if they were not.
    """
    try:
        from efat.propagation.plots import draw_array, draw_bits, draw_layers
    except ImportError as error:
        return f"the pictures in {folder} need {error.name}, which is not installed: pip install 'efat[plots]'"
    from efat.propagation.estimates import Estimates

    estimates = Estimates(propagation, float(summary["confidence"]))
    for name, draw in ((ARRAY, draw_array), (BITS, draw_bits), (LAYERS, draw_layers)):
        draw(estimates, folder / name)
    return None
