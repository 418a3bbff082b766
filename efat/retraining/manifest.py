"""The manifest of a lot that was retrained: which weights each chip runs, how they sit on it, and how well it does.

It is data, also of others: everything is checked before use. Files that it names are read only when they have the
digest that it says, and no path leads out of its folder. docs/formats.md describes it field by field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta
from torch import Tensor

from efat.confidence import at_least, bound_text
from efat.display import Shown, Table, Verdict, counted
from efat.planning.plan import AS_IS, FileOf, Plan
from efat.planning.selection import Constraint
from efat.records import Count, Document, Positive, Record, Sha256, Share, check, check_different
from efat.setup import Setup
from simulator.config import ArrayRecord
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.lots.chips import LONGEST_ID_BYTES, MOST_CHIPS
from training.layers.deployment import Deployment, read_deployed

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"

Name = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="up to 100 letters, digits, dots, underscores and hyphens",
    ),
]
Inside = Annotated[
    str,
    Meta(
        pattern=rf"^(?=.{{1,400}}$){_PART}(/{_PART})*$",
        description="a path within the folder of the manifest, of at most 400 letters, digits, dots, underscores and "
        "hyphens, such as weights/a.b",
    ),
]


class ManifestGroup(Record, frozen=True):
    """Chips that run the same weights, in the order in which they joined.

    Args:
        name: unique.
        chips: ids.
        weights: file of the weights, relative to the folder of the manifest, with nothing bypassed or rearranged.
        sha256: of that file.
        planned: iterations that the plan had for it.
        iterations: that these weights were retrained for.
        top_ups: how often it went on for more iterations because it missed what was required.
        split_from: the group that it is a part of, which missed what was required; None for a group of the plan.
        severity: how bad it is, 0..1, by the predictor of the plan.
        tuning_correct: tuning images that the weights classify correctly on an array without faults, nothing bypassed.
            In a group that was retrained together its chips do just as well; those of `AS_IS` lose what sits at their
            own bypassed PEs.
    """

    name: Name
    chips: Annotated[tuple[str, ...], Meta(min_length=1, description="one or more ids")]
    weights: Inside
    sha256: Sha256
    planned: Count
    iterations: Count
    top_ups: Count
    split_from: Name | None
    severity: Share
    tuning_correct: Count

    def __post_init__(self) -> None:
        check(self.top_ups <= self.iterations, "top_ups", self.top_ups, f"an integer of 0..{self.iterations}")


class ManifestChip(Record, frozen=True):
    """A chip of the lot, and what was found when the weights of its group were put on it.

    Args:
        id: its id in the lot.
        digest: `Chip.digest()` of its array, faults and bypassed PEs.
        group: name of its group.
        deployment: file that says how the weights sit on it, relative to the folder of the manifest, without weights.
        sha256: of that file.
        tuning_correct: tuning images that it classifies correctly; they decided what was done for it.
        correct: verification images that it classifies correctly: its own faults, exact emulation.
        at_least: the one-sided 95 % lower bound (Clopper and Pearson) of its accuracy that follows from `correct`.
        passes: whether `correct` is what is required, or more.
        bypassed_pes: PEs that are bypassed.
        faulty_pes: PEs with a fault.
        cycle_images: how many of the first verification images ran on the cycle engine, too.
        cycle_same: whether both engines predicted the same class for each of them; true if there were none.
    """

    id: str
    digest: Sha256
    group: str
    deployment: Inside
    sha256: Sha256
    tuning_correct: Count
    correct: Count
    at_least: Share
    passes: bool
    bypassed_pes: Count
    faulty_pes: Count
    cycle_images: Count
    cycle_same: bool

    def __post_init__(self) -> None:
        fits = 1 <= len(self.id.encode()) <= LONGEST_ID_BYTES
        check(fits, "id", self.id, f"1 to {LONGEST_ID_BYTES} bytes of text")
        same = bool(self.cycle_images) or self.cycle_same
        check(same, "cycle_same", self.cycle_same, "true, as no images ran on the cycle engine")


class ManifestTuning(Record, frozen=True):
    """How many images decided, how many of them had to be right, with the margin, and how many are without faults."""

    images: Positive
    required: Count
    fault_free_correct: Count


class ManifestWork(Record, frozen=True):
    """The multiply-accumulates of the network for one image: on the array, and in float, where they have no faults."""

    on_array: Positive
    in_float: Count

    @property
    def summary(self) -> str:
        """How much of the network has the faults of its chip, in a sentence."""
        if not self.in_float:
            return "All multiply-accumulates of the network run on the array."
        share = self.on_array / (self.on_array + self.in_float)
        percent = f"{share:.1%}" if share < 0.9995 else "More than 99.9%"
        return (
            f"{percent} of the network's multiply-accumulates run on the array; {self.in_float:,} for an image are "
            "computed in float, without faults."
        )


class ManifestTotals(Record, frozen=True):
    """What everything took: iterations of all groups, with top-ups and with those of groups that were split.

    `top_up_iterations` are those of them that the plan had not; the resilience analysis and hardening took others
    before. `seconds` are those of the retraining of the lot, wall clock.
    """

    iterations: Count
    top_up_iterations: Count
    split_groups: Count
    resilience_iterations: Count
    harden_iterations: Count
    seconds: Annotated[float, Meta(ge=0)]

    def __post_init__(self) -> None:
        found, most = self.top_up_iterations, self.iterations
        check(found <= most, "top_up_iterations", found, f"an integer of 0..{most}")


class Manifest(Shown, Document, frozen=True, dict=True):
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
        constraint: what is required.
        setup: what learned from what, and how.
        identity: `Setup.identity()`: digests of what the setup loaded, by name.
        array: of the lot.
        lot: the lot.
        groups: the groups, with different names.
        chips: all chips of the lot in its order, each in one group.
        totals: what everything took.
        versions: of programs and libraries, by name.
    """

    FORMAT = "efat-manifest"
    VERSION = 2
    SOURCE = "efat retrain"
    FILE_NAME: ClassVar[str] = "manifest.json"
    """In the folder of `efat retrain`."""

    strategy: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="the name of a strategy")]
    aligned: bool
    images: Positive
    required: Count
    fault_free_correct: Count
    verification: Sha256
    tuning: ManifestTuning
    work: ManifestWork
    constraint: Constraint
    setup: Setup
    identity: Mapping[str, str]
    array: ArrayRecord
    lot: FileOf
    groups: tuple[ManifestGroup, ...]
    chips: Annotated[tuple[ManifestChip, ...], Meta(min_length=1, description=f"1..{MOST_CHIPS} chips")]
    totals: ManifestTotals
    versions: Mapping[str, str]

    def check(self) -> None:
        """See `Document.check`."""
        pes, tuning = self.array.sizes.pe_count, self.tuning.images
        _check_required("", self, self.constraint.required_of)
        _check_required("tuning: ", self.tuning, self.constraint.required_to_end)
        for place, group in enumerate(self.groups):
            _check_most(f"groups[{place}]: ", group, tuning_correct=tuning)
        check(len(self.chips) <= MOST_CHIPS, "chips", self.chips, f"1..{MOST_CHIPS} chips")
        most = {"correct": self.images, "cycle_images": self.images, "tuning_correct": tuning}
        for place, chip in enumerate(self.chips):
            where, correct = f"chips[{place}]: ", chip.correct
            _check_most(where, chip, **most, bypassed_pes=pes, faulty_pes=pes)
            passes = correct >= self.required
            why = f"{str(passes).lower()}, as {correct} images are correct and {self.required} required"
            check(chip.passes == passes, f"{where}passes", chip.passes, why)
            bound = at_least(correct, self.images)
            why = f"{bound}, as {correct} of {self.images} images are correct"
            check(abs(chip.at_least - bound) <= 1e-9, f"{where}at_least", chip.at_least, why)
        self._check_membership()
        done, found = sum(group.iterations for group in self.groups), self.totals.iterations
        check(found >= done, "totals: iterations", found, f"{done} or more, which its groups took")

    def _check_membership(self) -> None:
        """Names are unique, and chips and groups say the same about who is where."""
        check_different("group", (group.name for group in self.groups), "expected different names")
        check_different("chip", (chip.id for chip in self.chips), "expected different names")
        members = {(group.name, chip) for group in self.groups for chip in group.chips}
        for group, chip in sorted(members ^ {(chip.group, chip.id) for chip in self.chips}):
            how = "lists chip" if (group, chip) in members else "does not list chip"
            raise InputError(f"group {group!r} {how} {chip!r}, which says otherwise: write it anew with {self.SOURCE}")
        if sum(len(group.chips) for group in self.groups) != len(self.chips):
            raise InputError("a group lists a chip twice: expected each once")

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

    @property
    def failing(self) -> list[ManifestChip]:
        """Chips that do not pass, the worst first; of equal ones as in the lot."""
        return sorted((chip for chip in self.chips if not chip.passes), key=lambda chip: chip.correct)

    def parts(self, plan: Plan | None = None) -> Iterator[Table | str]:
        """The groups, and what came out in a few sentences, beside what the plan said of `fixed`."""
        yield self.table()
        worst, totals = min(self.chips, key=lambda chip: chip.correct), self.totals
        alone = len(self.group_named[AS_IS].chips) if AS_IS in self.group_named else 0
        comparison = () if plan is None else plan.comparison
        fixed = next((cost.iterations for cost in comparison if cost.strategy == "fixed"), 0)
        yield Verdict(
            f"{self.passing} of {len(self.chips)} chips meet {self.required / self.images:.2%} on {self.images:,} "
            f"unseen images; the worst is {worst.id} with {worst.correct / self.images:.2%}, at least "
            f"{bound_text(worst.at_least)} with 95 % confidence. {alone} needed no retraining. It took "
            f"{counted(totals.iterations, 'iteration')} ({totals.top_up_iterations:,} of them topped up, "
            f"{counted(totals.split_groups, 'group')} split){f', where fixed would take {fixed:,}' if fixed else ''}. "
            f"The cycle engine gave the same for {sum(chip.cycle_images for chip in self.chips):,} images. "
            f"{self.work.summary}"
        )

    def table(self) -> Table:
        """A row for each group: its chips, iterations and accuracies."""
        rows: list[list[object]] = []
        for group in self.groups:
            chips = [self.chip_named[chip] for chip in group.chips]
            rows.append(
                [
                    group.name,
                    len(chips),
                    group.planned,
                    group.iterations,
                    f"{min(chip.tuning_correct for chip in chips) / self.tuning.images:.2%}",
                    f"{min(chip.correct for chip in chips) / self.images:.2%}",
                    bound_text(min(chip.at_least for chip in chips)),
                    f"{sum(chip.passes for chip in chips)}/{len(chips)}",
                ]
            )
        return Table(
            f"{len(self.chips)} chips on {self.images:,} images that decided nothing, "
            f"{self.required / self.images:.2%} required",
            ["group", "chips", "planned", "iterations", "when tuned", "worst chip", "at least", "pass"],
            rows,
        )


def _check_most(where: str, part: Record, **most: int) -> None:
    for name, bound in most.items():
        found = getattr(part, name)
        check(found <= bound, f"{where}{name}", found, f"an integer of 0..{bound}")


def _check_required(where: str, found: Manifest | ManifestTuning, least: Callable[[int, int], int]) -> None:
    _check_most(where, found, required=found.images, fault_free_correct=found.images)
    expected = least(found.images, found.fault_free_correct)
    what = f"{expected}, which the constraint takes of {found.images} images"
    check(found.required == expected, f"{where}required", found.required, what)


def check_files(manifest: Manifest, folder: Path) -> None:
    """Check that every file that a manifest names is in its folder and is the one that it was made with.

    Raises:
        FileNotFoundError: one is not there.
        InputError: one has another digest, or leads out of the folder.
    """
    named = dict.fromkeys((group.weights, group.sha256) for group in manifest.groups)
    named.update(dict.fromkeys((chip.deployment, chip.sha256) for chip in manifest.chips))
    for path, sha256 in named:
        named_file(folder, path, sha256)


def read_group_weights(folder: Path, group: ManifestGroup) -> tuple[dict[str, Tensor], Deployment]:
    """Weights of a group, and the deployment in their file, which bypasses and rearranges nothing.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it has another digest than the manifest says, or is no such file.
    """
    path = named_file(folder, group.weights, group.sha256)
    weights, deployment = read_deployed(path)
    if deployment is None or not weights:
        raise InputError(f"{path} has no weights with the steps of activations: write it anew with {Manifest.SOURCE}")
    if deployment.bypass.any() or deployment.placements:
        raise InputError(f"{path} is for one chip: expected weights of a group, with nothing bypassed or rearranged")
    return weights, deployment


def read_chip_deployment(folder: Path, chip: ManifestChip) -> Deployment:
    """How the weights of its group sit on a chip.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it has another digest than the manifest says, or is no such file.
    """
    path = named_file(folder, chip.deployment, chip.sha256)
    weights, deployment = read_deployed(path)
    if deployment is None or weights:
        raise InputError(f"{path} is no deployment without weights: write it anew with {Manifest.SOURCE}")
    if int(deployment.bypass.sum()) != chip.bypassed_pes:
        raise InputError(
            f"{path} bypasses {int(deployment.bypass.sum())} PEs and the manifest says {chip.bypassed_pes} for chip "
            f"{chip.id}: write both anew with {Manifest.SOURCE}"
        )
    return deployment


def named_file(folder: Path, path: str, sha256: str) -> Path:
    """The file that a path of a manifest leads to, once it is known to be in its folder and to have the digest."""
    file = folder / path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the manifest names it")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} leads out of the folder of the manifest: expected a file in it, no link to others")
    if digest_of_file(file) != sha256:
        raise InputError(f"{file} is not the file that the manifest was made with: its SHA-256 is not {sha256[:12]}...")
    return file
