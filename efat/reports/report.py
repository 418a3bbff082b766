"""The report as an object: one page about a retrained lot, or about how faults travel through a network."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from efat.propagation.tables import FILE_NAME as PROPAGATION_FILE
from efat.reports.lot import lot_findings, lot_page, read_lot_report
from efat.reports.pages import Finding
from efat.reports.propagation import propagation_findings, propagation_page, read_propagation_report
from efat.retraining.manifest import Manifest
from simulator.errors import InputError
from simulator.files import replaced


class Report:
    """A page, and a summary of it; printed it is the summary, and a notebook shows the page.

    Args:
        findings: the summary.
        page: makes the page, as HTML that needs nothing else: no network, no script.
    """

    def __init__(self, findings: tuple[Finding, ...], page: Callable[[], str]) -> None:
        self.findings = findings
        self._page = page

    @property
    def sentences(self) -> list[str]:
        """The summary."""
        return [finding.sentence for finding in self.findings]

    def html(self) -> str:
        """The page; the same folder gives the same text."""
        return self._page()

    def save(self, path: Path | str) -> None:
        """Write the page in one piece; what no UTF-8 can hold is written as HTML says it.

        Args:
            path: the file; its folder is there. An earlier page is replaced.

        Raises:
            InputError: it is there and is no page.
        """
        path = Path(path)
        if path.exists() and path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{path} is there already and is no page: choose a name that ends in .html")
        content = self.html().encode("utf-8", "xmlcharrefreplace")
        with replaced(path) as beside:
            beside.write_bytes(content)

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        # In a frame, as the page has a style sheet of its own.
        return f'<iframe srcdoc="{escape(self.html())}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def report(folder: Path | str, propagation: Path | str | None = None) -> Report:
    """The report about a folder of `efat.retrain` or of `efat.propagate`.

    Args:
        folder: it, or the manifest in it.
        propagation: folder of `efat.propagate`, to add to the page of a lot.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is damaged, or the files are not of the same lot and plan; `propagation` is of another array
            or network, or given with a folder of `efat.propagate`.
    """
    folder = Path(folder)
    if folder.name == Manifest.FILE_NAME and folder.is_file():
        folder = folder.parent
    for given, whose in ((folder, "efat retrain or efat propagate"), (propagation, "efat propagate")):
        if given is not None and not Path(given).is_dir():
            raise InputError(f"{given} is no folder: expected that of {whose}")
    added = None if propagation is None else Path(propagation)
    if not (folder / Manifest.FILE_NAME).exists() and (folder / PROPAGATION_FILE).exists():
        if added is not None:
            raise InputError(
                f"{folder} is a folder of efat propagate: --propagation adds such a folder to the page of a lot"
            )
        of_faults = read_propagation_report(folder)
        return Report(propagation_findings(of_faults), lambda: propagation_page(of_faults))
    faults = None if added is None else read_propagation_report(added)
    of_lot = read_lot_report(folder, faults)
    findings = lot_findings(of_lot) + (() if faults is None else propagation_findings(faults))
    return Report(findings, lambda: lot_page(of_lot))
