"""What all pages have in common: sentences of a summary, settings, and how their templates are filled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

from efat.confidence import bound_text
from efat.display import counted
from efat.figures.drawing import COLORS
from efat.reports.text import accuracy, short_percent
from efat.setup import name_of

MOST_ROWS = 2000
"""Rows of a table; the rest are counted."""


class Finding(NamedTuple):
    """A sentence of the summary.

    Attributes:
        figure: what it comes down to, in a few characters.
        sentence: all of it, plain.
    """

    figure: str
    sentence: str


def fill(template: str, images: int, **values: object) -> str:
    """Fill a template of this package.

    Args:
        template: its file name.
        images: of how many the filter `accuracy` makes shares, unless it is told another number.
        values: what it shows, by name.

    Returns:
        A page that needs nothing else: no network, no script.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text)
    )
    environment.filters.update(accuracy=lambda correct, of=images: accuracy(correct, of))
    environment.filters.update(
        share=short_percent, bound=bound_text, counted=counted, number="{:,}".format, name=name_of
    )
    return environment.get_template(template).render(values, colors=COLORS)


def flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything in nested settings, by names with dots, as text: texts as they are, everything else as JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def identity_inputs(
    identity: Mapping[str, str], places: Mapping[str, str], setup: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Network and images that something was made from: what it is, where it was, and its digest.

    Args:
        identity: digests by name; what is none is among the settings.
        places: names of settings that say where it was.
        setup: the settings; those that are None stand for what comes with the network.
    """
    for name, text in identity.items():
        if re.fullmatch("[0-9a-f]{64}", text):
            yield name, (setup[places[name]] if name in places else None) or f"of {setup['network']}", text


def _text(name: str) -> str:
    return files("efat.reports").joinpath(name).read_text("utf-8")
