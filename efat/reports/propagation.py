"""What the report on fault propagation is about: the folder of `efat propagate`, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from efat.campaigns.command import Command, kept, kept_in
from efat.json_fields import SHA256, Fields
from efat.propagation.estimates import Estimates
from efat.propagation.shares import BitShare, LayerFate, Worst, bit_shares, layer_fates, worst_bit
from efat.propagation.summary import summary
from efat.propagation.tables import FILE_NAME, Propagation, read_propagation
from efat.reports.folder import ReportData
from efat.retraining.manifest import FILE_NAME as LOT_FILE
from simulator import Kind, Site
from simulator.errors import InputError
from simulator.files import digest_of_file


@dataclass(frozen=True, eq=False)
class PropagationReport:
    """What a propagation campaign found.

    Args:
        name: of its folder.
        path: the folder, as it was given.
        propagation: what is in its file.
        confidence: of all intervals.
        digest: SHA-256 (hex) of the file.
        commands: the command line that it was made with, if it was kept.
    """

    name: str
    path: str
    propagation: Propagation
    confidence: float
    digest: str
    commands: tuple[Command, ...] = ()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `efat.propagation.summary.summary` says of it."""
        return summary(self.propagation, self.confidence)

    @cached_property
    def estimates(self) -> Estimates:
        """Of shares in the population of faults."""
        return Estimates(self.propagation, self.confidence)

    @cached_property
    def strata(self) -> list[BitShare]:
        """Those of which faults were tried, the worst first; of equal ones in the order of nets and bits."""
        return sorted(bit_shares(self.estimates), key=lambda share: -share.avf.value)

    @cached_property
    def worst(self) -> Worst | None:
        """The bit that is surely among the most dangerous; None if more faults have to be tried to name it."""
        return worst_bit(self.propagation, self.confidence)

    @cached_property
    def fates(self) -> list[LayerFate]:
        """By layer what becomes of differences that leave it."""
        return layer_fates(self.estimates)

    @property
    def network(self) -> str:
        """Its name."""
        return str(self.propagation.subject["network"])

    @property
    def transient(self) -> bool:
        """Whether all faults are upsets."""
        return bool((self.propagation.strata["kind"] == Kind.FLIP).all())


def read_propagation_report(folder: Path) -> PropagationReport:
    """Read what a report is about.

    Args:
        folder: of `efat propagate`.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it is damaged, or something else.
    """
    path = folder / FILE_NAME
    found = read_propagation(path)
    _check_subject(Fields(dict(found.subject), f"{path}: subject"))
    confidence = _check_request(Fields(dict(found.request), f"{path}: request"))
    return PropagationReport(
        folder.resolve().name, str(folder), found, confidence, digest_of_file(path), kept_in(folder)
    )


def check_same_lot(report: PropagationReport, data: ReportData) -> None:
    """Refuse faults of another array or network than the lot's.

    Raises:
        InputError: so they are.
    """
    for what, theirs, ours in (
        ("array", dict(report.propagation.array), dict(data.manifest.array)),
        ("network", report.network, str(data.plan.setup.network)),
    ):
        if theirs != ours:
            raise InputError(
                f"{report.path} is of another {what} than {LOT_FILE}: expected faults that were tried with "
                f"the {what} of the lot"
            )


def propagation_commands(report: PropagationReport) -> tuple[list[str], list[str]]:
    """The command that found it, and what is said if it was not kept."""
    return kept(report.commands, "propagate")


def propagation_inputs(report: PropagationReport) -> Iterator[tuple[str, str, str]]:
    """What it was made from: what it is, where it was, and its digest."""
    subject = report.propagation.subject
    yield "fault propagation", f"{report.name}/{FILE_NAME}", report.digest
    places = {"network": "weights", "images": "data"}
    for name, text in dict(subject.get("identity") or {}).items():
        if SHA256.fullmatch(text):
            place = subject[places[name]] if name in places else None
            yield name, place or f"of {subject['network']}", text


def _check_subject(subject: Fields) -> None:
    """What of it is shown by itself."""
    for name in ("network", "calibration"):
        subject.text(name)
    for name in ("weights", "data"):
        subject.optional_text(name)
    if "normalization" in subject.values:
        subject.optional_text("normalization")
    if subject.values.get("identity") is not None:
        identity = subject.inner("identity")
        for name in identity.values:
            identity.text(name)


def _check_request(request: Fields) -> float:
    """Likewise; the confidence."""
    for name, known in (("sites", Site), ("kinds", Kind)):
        if not set(request.texts(name)) <= set(known.__members__):
            request.refuse(name, f"names among {', '.join(known.__members__)}")
    bits = request.inner("bits")
    for name in bits.values:
        if name not in Site.__members__:
            request.refuse("bits", "bits by the names of sites")
        bits.counts(name, len(bits.values[name]) if isinstance(bits.values[name], list) else 0, 0, 65535)
    for name in ("exhaustive", "stratify"):
        request.flag(name)
    if request.values.get("samples") is not None:
        request.count("samples")
    if request.values.get("margin") is not None:
        request.number("margin", 0, 1)
    request.count("seed")
    return request.number("confidence", 1e-9, 1 - 1e-9)
