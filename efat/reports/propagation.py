"""What the report on fault propagation is about: the folder of `efat propagate`, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from efat.json_fields import SHA256, Fields
from efat.propagation.estimates import Estimates
from efat.propagation.shares import BitShare, LayerFate, Worst, bit_shares, layer_fates, worst_bit
from efat.propagation.summary import summary
from efat.propagation.tables import FILE_NAME, Propagation, read_propagation
from efat.reports.commands import Option, array_options, command, fraction_text, number_text
from efat.reports.folder import ReportData
from efat.retraining.manifest import FILE_NAME as LOT_FILE
from simulator import Kind, Site
from simulator.errors import InputError
from simulator.files import digest_of_file

_LISTED = 40
"""Bits of a net that a command names one by one."""


@dataclass(frozen=True, eq=False)
class PropagationReport:
    """What a propagation campaign found.

    Args:
        name: of its folder.
        path: the folder, as it was given.
        propagation: what is in its file.
        confidence: of all intervals.
        digest: SHA-256 (hex) of the file.
    """

    name: str
    path: str
    propagation: Propagation
    confidence: float
    digest: str

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
    return PropagationReport(folder.resolve().name, str(folder), found, confidence, digest_of_file(path))


def check_same_lot(report: PropagationReport, data: ReportData) -> None:
    """Refuse faults of another array or network than the lot's.

    Raises:
        InputError: so they are.
    """
    for what, theirs, ours in (
        ("array", dict(report.propagation.array), dict(data.manifest.array)),
        ("network", report.network, data.plan.setup["network"]),
    ):
        if theirs != ours:
            raise InputError(
                f"{report.path} is of another {what} than {LOT_FILE}: expected faults that were tried with "
                f"the {what} of the lot"
            )


def propagation_command(report: PropagationReport) -> str:
    """The command that found it, over as many lines as it takes."""
    return command("propagate", [*_options(report.propagation), ("-o", f"{report.name}/")])


def propagation_cautions(report: PropagationReport) -> list[str]:
    """What the command does not say."""
    multiplier = str(report.propagation.array.get("multiplier"))
    if " " in multiplier:
        return [f"The multiplier was read from files, and its name and digest are {multiplier}."]
    return []


def propagation_inputs(report: PropagationReport) -> Iterator[tuple[str, str, str]]:
    """What it was made from: what it is, where it was, and its digest."""
    subject = report.propagation.subject
    yield "fault propagation", f"{report.name}/{FILE_NAME}", report.digest
    places = {"network": "weights", "images": "data"}
    for name, text in dict(subject.get("identity") or {}).items():
        if SHA256.fullmatch(text):
            place = subject[places[name]] if name in places else None
            yield name, place or f"of {subject['network']}", text


def _options(found: Propagation) -> Iterator[Option]:
    subject, request = found.subject, found.request
    yield "--network", str(subject["network"])
    for name in ("weights", "data"):
        if subject[name] is not None:
            yield f"--{name}", str(subject[name])
    if subject.get("normalization") is not None:
        yield "--normalize", str(subject["normalization"])
    yield from array_options(found.array)
    for site in request["sites"]:
        yield "--site", site.lower()
    for site, bits in request["bits"].items():
        yield "--bit", f"{site.lower()}={_ranges(bits)}"
    for kind in request["kinds"]:
        yield "--kind", kind.lower().replace("_", "-")
    yield "--images", str(found.images)
    if subject["calibration"] != "max":
        yield "--calibration", str(subject["calibration"])
    if request["exhaustive"]:
        yield ("--exhaustive",)
    if request["samples"] is not None:
        yield "--samples", str(request["samples"])
    if request["margin"] is not None:
        yield "--margin", fraction_text(request["margin"])
    yield "--confidence", number_text(request["confidence"])
    if not request["stratify"]:
        yield ("--no-stratify",)
    yield "--seed", str(request["seed"])


def _ranges(bits: list[int]) -> str:
    """Bits with commas, those that follow each other as a range: 0-3,7."""
    parts: list[list[int]] = []
    for bit in sorted(bits):
        if parts and bit == parts[-1][1] + 1:
            parts[-1][1] = bit
        else:
            parts.append([bit, bit])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)


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
