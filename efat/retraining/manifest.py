"""The manifest of a lot that was retrained: which weights each chip runs, how they sit on it, and how well it does.

It is `manifest.json` in the folder of `efat retrain`. Files that it names are beside or below it, each with its digest;
docs/formats.md describes it field by field. It is data: everything is checked before use, and no path leads out of
the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from efat.confidence import at_least
from efat.json_fields import Fields, read_json
from efat.planning.selection import Constraint
from efat.records import typed
from simulator.config import ArrayConfig
from simulator.errors import InputError
from simulator.files import replaced
from simulator.lots.chips import LONGEST_ID_BYTES, MOST_CHIPS

FORMAT = "efat-manifest"
VERSION = 2
FILE_NAME = "manifest.json"
SOURCE = "efat retrain"
"""The command that writes it."""

AS_IS = "as-is"
"""Name of the group of chips that run the weights that everything starts from, without retraining."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_PATH_EXPECTED = (
    "a path within the folder of the manifest, of letters, digits, dots, underscores and hyphens, such as weights/a.b"
)
_LONGEST_PATH = 400


@dataclass(frozen=True)
class ManifestGroup:
    """Chips that run the same weights.

    Args:
        name: unique; letters, digits, dots, underscores and hyphens.
        chips: ids of its chips, in the order in which they joined.
        weights: file of the weights, relative to the folder of the manifest, written by
            `training.layers.deployment.write_deployed` with nothing bypassed and nothing rearranged.
        sha256: of that file, hexadecimal.
        planned: iterations that the plan had for it.
        iterations: that these weights were retrained for.
        top_ups: how often it went on for more iterations because it missed what was required.
        split_from: the group that it is a part of, which missed what was required; None for a group of the plan.
        severity: how bad it is, 0..1, by the predictor of the plan.
        tuning_correct: tuning images that the weights classify correctly on an array without faults, nothing bypassed.
            In a group that was retrained together its chips do just as well; those of `AS_IS` lose what sits at their
            own bypassed PEs.
    """

    name: str
    chips: tuple[str, ...]
    weights: str
    sha256: str
    planned: int
    iterations: int
    top_ups: int
    split_from: str | None
    severity: float
    tuning_correct: int


@dataclass(frozen=True)
class ManifestChip:
    """A chip of the lot, and what was found when the weights of its group were put on it.

    Args:
        id: its id in the lot.
        digest: `Chip.digest()` of its array, faults and bypassed PEs, hexadecimal.
        group: name of its group.
        deployment: file that says how the weights sit on it, relative to the folder of the manifest, written by
            `training.layers.deployment.write_deployed` without weights.
        sha256: of that file, hexadecimal.
        tuning_correct: tuning images that it classifies correctly; they decided what was done for it.
        correct: verification images that it classifies correctly: its own faults, exact emulation.
        at_least: the one-sided 95 % lower bound (Clopper and Pearson) of its accuracy that follows from `correct`, for
            this chip by itself, 0..1.
        passes: whether `correct` is what is required, or more.
        bypassed_pes: PEs that are bypassed.
        faulty_pes: PEs with a fault.
        cycle_images: how many of the first verification images ran on the cycle engine, too.
        cycle_same: whether both engines predicted the same class for each of them; true if there were none.
    """

    id: str
    digest: str
    group: str
    deployment: str
    sha256: str
    tuning_correct: int
    correct: int
    at_least: float
    passes: bool
    bypassed_pes: int
    faulty_pes: int
    cycle_images: int
    cycle_same: bool


@dataclass(frozen=True)
class ManifestLot:
    """The lot.

    Args:
        path: as it was given, for people.
        sha256: of the file, hexadecimal.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class ManifestTuning:
    """The images that decided.

    Args:
        images: how many.
        required: how many of them had to be classified correctly for retraining to end, the margin included.
        fault_free_correct: how many of them the original network classifies correctly, quantised and without faults.
    """

    images: int
    required: int
    fault_free_correct: int


@dataclass(frozen=True)
class ManifestWork:
    """The multiply-accumulates of the network for one image.

    Args:
        on_array: those that run on the array.
        in_float: those that do not, and so have no faults.
    """

    on_array: int
    in_float: int


@dataclass(frozen=True)
class ManifestTotals:
    """What everything took.

    Args:
        iterations: of retraining, all groups together, with top-ups and with those of groups that were split.
        top_up_iterations: those of them that the plan had not.
        split_groups: groups that missed what was required and were split.
        resilience_iterations: that `efat resilience` took.
        harden_iterations: that hardening took before that; 0 if the network was not hardened.
        seconds: that the retraining of the lot took, wall clock.
    """

    iterations: int
    top_up_iterations: int
    split_groups: int
    resilience_iterations: int
    harden_iterations: int
    seconds: float


@dataclass(frozen=True)
class Manifest:
    """A lot that was retrained.

    Args:
        strategy: which chips share a retraining: `fixed`, `select`, `merge-K` or `efat`.
        aligned: whether each chip has its own placement, made so that its bypassed PEs hold what is pruned already.
        images: verification images: those of the test images, or of other data, that decided nothing.
        required: how many of them have to be classified correctly for a chip to pass.
        fault_free_correct: how many of them the original network classifies correctly, quantised and without faults.
        verification: `Dataset.digest` of the verification images.
        tuning: the images that decided.
        work: how much of the network runs on the array.
        constraint: what is required: `Constraint.as_dict()`.
        setup: `Setup.as_dict()`.
        identity: `Setup.identity()`, digests and texts of what the setup loaded, by name.
        array: `ArrayConfig.as_dict()`.
        lot: the lot.
        groups: the groups, with different names.
        chips: all chips of the lot in its order, each in one group.
        totals: what everything took.
        versions: of programs and libraries, by name.
    """

    strategy: str
    aligned: bool
    images: int
    required: int
    fault_free_correct: int
    verification: str
    tuning: ManifestTuning
    work: ManifestWork
    constraint: Mapping[str, Any]
    setup: Mapping[str, Any]
    identity: Mapping[str, str]
    array: Mapping[str, Any]
    lot: ManifestLot
    groups: tuple[ManifestGroup, ...]
    chips: tuple[ManifestChip, ...]
    totals: ManifestTotals
    versions: Mapping[str, str]

    @cached_property
    def group_named(self) -> Mapping[str, ManifestGroup]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def chip_named(self) -> Mapping[str, ManifestChip]:
        """The chips by id."""
        return {chip.id: chip for chip in self.chips}

    @property
    def passing(self) -> int:
        """Number of chips that pass."""
        return sum(chip.passes for chip in self.chips)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write it in one piece; the same content gives the same bytes.

    Raises:
        InputError: `read_manifest` would refuse it.
        OSError: it cannot be written.
    """
    text = json.dumps(manifest.as_dict(), indent=1, allow_nan=False)
    content = json.loads(text)
    del content["format"], content["version"]
    _manifest(Fields(content, str(path)))
    with replaced(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. The files that it names are not looked at: see `efat.retraining.manifest_files`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no manifest, is damaged, or is of another version.
    """
    return _manifest(read_json(path, FORMAT, VERSION, SOURCE))


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _manifest(content: Fields) -> Manifest:
    """Take a manifest from what JSON gave.

    Raises:
        InputError: a field is missing or wrong, or they do not fit together.
    """
    whole = Fields(content.values, content.where, _names(Manifest))
    images = whole.count("images", 1)
    required, fault_free_correct = (whole.count(name, 0, images) for name in ("required", "fault_free_correct"))
    array = _array(whole.inner("array", _names(ArrayConfig)))
    constraint = typed(Constraint, whole.inner("constraint").values, f"{whole.where}: constraint")
    least = constraint.required_of(images, fault_free_correct)
    if required != least:
        whole.refuse("required", f"{least}, which the constraint takes of {images} images")
    tuning = _tuning(whole.inner("tuning", _names(ManifestTuning)), constraint)
    chips = tuple(
        _chip(found, images, required, tuning.images, array["rows"] * array["cols"])
        for found in whole.objects("chips", _names(ManifestChip))
    )
    groups = tuple(_group(found, tuning.images) for found in whole.objects("groups", _names(ManifestGroup)))
    if not 1 <= len(chips) <= MOST_CHIPS:
        whole.refuse("chips", f"1..{MOST_CHIPS} chips")
    lot = whole.inner("lot", _names(ManifestLot))
    work = whole.inner("work", _names(ManifestWork))
    totals = whole.inner("totals", _names(ManifestTotals))
    manifest = Manifest(
        strategy=whole.text("strategy", _NAME, "the name of a strategy"),
        aligned=whole.flag("aligned"),
        images=images,
        required=required,
        fault_free_correct=fault_free_correct,
        verification=whole.sha256("verification"),
        tuning=tuning,
        work=ManifestWork(work.count("on_array", 1), work.count("in_float")),
        constraint=constraint.as_dict(),
        setup=whole.inner("setup").values,
        identity=_texts(whole.inner("identity")),
        array=array,
        lot=ManifestLot(lot.text("path"), lot.sha256("sha256")),
        groups=groups,
        chips=chips,
        totals=_totals(totals),
        versions=_texts(whole.inner("versions")),
    )
    _check_membership(manifest, content.where)
    done = sum(group.iterations for group in groups)
    if manifest.totals.iterations < done:
        totals.refuse("iterations", f"{done} or more, which its groups took")
    return manifest


def _array(found: Fields) -> dict[str, Any]:
    found.text("multiplier")
    try:
        ArrayConfig(**{name: value for name, value in found.values.items() if name != "multiplier"})
    except (TypeError, ValueError) as error:
        raise InputError(f"{found.where}: {error}") from None
    return found.values


def _group(found: Fields, images: int) -> ManifestGroup:
    chips = found.texts("chips")
    if not chips:
        found.refuse("chips", "one or more ids")
    iterations = found.count("iterations")
    return ManifestGroup(
        name=found.text("name", _NAME, "up to 100 letters, digits, dots, underscores and hyphens"),
        chips=chips,
        weights=_path(found, "weights"),
        sha256=found.sha256("sha256"),
        planned=found.count("planned"),
        iterations=iterations,
        top_ups=found.count("top_ups", 0, iterations),
        split_from=found.optional_text("split_from", _NAME, "the name of a group, or null"),
        severity=found.number("severity", 0, 1),
        tuning_correct=found.count("tuning_correct", 0, images),
    )


def _tuning(found: Fields, constraint: Constraint) -> ManifestTuning:
    images = found.count("images", 1)
    required, fault_free_correct = (found.count(name, 0, images) for name in ("required", "fault_free_correct"))
    least = constraint.required_to_end(images, fault_free_correct)
    if required != least:
        found.refuse("required", f"{least}, which the constraint takes of {images} images")
    return ManifestTuning(images, required, fault_free_correct)


def _chip(found: Fields, images: int, required: int, tuning_images: int, pes: int) -> ManifestChip:
    chip_id = found.text("id")
    if not 1 <= len(chip_id.encode()) <= LONGEST_ID_BYTES:
        found.refuse("id", f"1 to {LONGEST_ID_BYTES} bytes of text")
    correct, passes = found.count("correct", 0, images), found.flag("passes")
    if passes != (correct >= required):
        found.refuse(
            "passes", f"{str(correct >= required).lower()}, as {correct} images are correct and {required} required"
        )
    bound = found.number("at_least", 0, 1)
    if abs(bound - at_least(correct, images)) > 1e-9:
        found.refuse("at_least", f"{at_least(correct, images)}, as {correct} of {images} images are correct")
    cycle_images, cycle_same = found.count("cycle_images", 0, images), found.flag("cycle_same")
    if not cycle_images and not cycle_same:
        found.refuse("cycle_same", "true, as no images ran on the cycle engine")
    return ManifestChip(
        id=chip_id,
        digest=found.sha256("digest"),
        group=found.text("group"),
        deployment=_path(found, "deployment"),
        sha256=found.sha256("sha256"),
        tuning_correct=found.count("tuning_correct", 0, tuning_images),
        correct=correct,
        at_least=bound,
        passes=passes,
        bypassed_pes=found.count("bypassed_pes", 0, pes),
        faulty_pes=found.count("faulty_pes", 0, pes),
        cycle_images=cycle_images,
        cycle_same=cycle_same,
    )


def _totals(found: Fields) -> ManifestTotals:
    iterations = found.count("iterations")
    return ManifestTotals(
        iterations=iterations,
        top_up_iterations=found.count("top_up_iterations", 0, iterations),
        split_groups=found.count("split_groups"),
        resilience_iterations=found.count("resilience_iterations"),
        harden_iterations=found.count("harden_iterations"),
        seconds=found.number("seconds", 0),
    )


def _texts(found: Fields) -> dict[str, str]:
    return {name: found.text(name) for name in found.values}


def _path(found: Fields, name: str) -> str:
    path = found.text(name, _PATH, _PATH_EXPECTED)
    if len(path) > _LONGEST_PATH:
        found.refuse(name, f"a path of at most {_LONGEST_PATH} characters")
    return path


def _check_membership(manifest: Manifest, where: str) -> None:
    """Names are unique, and chips and groups say the same about who is where."""
    for what, names in (
        ("group", [group.name for group in manifest.groups]),
        ("chip", [chip.id for chip in manifest.chips]),
    ):
        twice = _first_twice(names)
        if twice is not None:
            raise InputError(f"{where} has {what} {twice!r} twice: expected different names")
    members = {(group.name, chip) for group in manifest.groups for chip in group.chips}
    claimed = {(chip.group, chip.id) for chip in manifest.chips}
    for group, chip in sorted(members ^ claimed):
        how = "lists chip" if (group, chip) in members else "does not list chip"
        raise InputError(f"{where}: group {group!r} {how} {chip!r}, which says otherwise: write it anew with {SOURCE}")
    if sum(len(group.chips) for group in manifest.groups) != len(manifest.chips):
        raise InputError(f"{where}: a group lists a chip twice: expected each once")


def _first_twice(names: Iterable[str]) -> str | None:
    known: set[str] = set()
    for name in names:
        if name in known:
            return name
        known.add(name)
    return None
