"""Templates of pages: what they all know, and where they are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from efat.confidence import bound_text
from efat.reports.text import accuracy, counted, short_percent
from simulator.files import replaced


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
    environment.filters.update(share=short_percent, bound=bound_text, counted=counted, number="{:,}".format)
    return environment.get_template(template).render(values)


def write_text(text: str, path: Path) -> None:
    """Write a page in one piece; what no UTF-8 can hold is written as HTML says it.

    Args:
        text: the page.
        path: the file; its folder is there.
    """
    with replaced(path) as beside:
        beside.write_bytes(text.encode("utf-8", "xmlcharrefreplace"))


def _text(name: str) -> str:
    return files("efat.reports").joinpath(name).read_text("utf-8")
