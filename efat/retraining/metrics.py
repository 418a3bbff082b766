"""Everything that was measured in the retraining of one chip: `metrics.json`, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from msgspec import Meta

from efat.confidence import Accuracy, bound_text
from efat.display import Shown, Table, Verdict
from efat.records import Count, Document, Positive, Record, Sha256, Share, check, digest_of
from efat.setup import name_of
from simulator.config import ArrayRecord
from simulator.faults import FaultCounts
from training.learning.recipe import Recipe


class MeasuredAccuracy(Record, frozen=True):
    """Images that were classified correctly, and what follows from it; see `efat.confidence.Accuracy`."""

    correct: Count
    accuracy: Share
    accuracy_95_low: Share
    accuracy_95_high: Share
    accuracy_95_at_least: Share

    @classmethod
    def of(cls, correct: int, images: int) -> MeasuredAccuracy:
        """So many of so many images."""
        return cls(**Accuracy(correct, images).as_dict())  # type: ignore[arg-type]


class DataOf(Record, frozen=True):
    """The images.

    Args:
        name: of the data.
        source: as it was given; None for what comes with the network.
        normalization: what was done to pixels of 0..1 instead of what the network's name implies; None for nothing.
        classes: how many.
        training_images: that are learned from.
        held_out_images: that it is measured on while it runs.
        decided_by_them: whether a target accuracy on these decided when it ended.
        verification_images: that decided nothing; the same images if none decided.
    """

    name: str
    source: str | None
    normalization: str | None
    classes: Positive
    training_images: Positive
    held_out_images: Positive
    decided_by_them: bool
    verification_images: Positive


class ChipOf(Record, frozen=True):
    """The chip: its id, digest, array, a summary of its faults, and PEs that are bypassed by fuses."""

    id: str
    digest: Sha256
    array: ArrayRecord
    faults: FaultCounts
    bypassed_by_fuses: Count


class Budget(Record, frozen=True):
    """How long it may be: most iterations, what was asked for, and when accuracy is measured."""

    iterations: Count
    epochs: float | None
    iterations_per_epoch: Positive
    evaluate_at: tuple[Count, ...]
    target_accuracy: Share | None


class Accuracies(Record, frozen=True, rename={"in_float": "float"}):
    """On the held-out images: without faults in float32 and quantised, and on the chip before retraining and after."""

    in_float: MeasuredAccuracy
    fault_free: MeasuredAccuracy
    before: MeasuredAccuracy
    after: MeasuredAccuracy


class Verified(Record, frozen=True):
    """On the verification images: without faults before retraining, and on the chip after it."""

    fault_free: MeasuredAccuracy
    after: MeasuredAccuracy


class EvaluationOf(Record, frozen=True):
    """Accuracy on the chip after some iterations."""

    iteration: Count
    correct: Count
    images: Positive
    accuracy: Share


class Wall(Record, frozen=True):
    """Time that the last process took, and the iteration where it began."""

    seconds: Annotated[float, Meta(ge=0)]
    from_iteration: Count


class Machine(Record, frozen=True):
    """The machine that it ran on: its operating system, kind of processor, and cores; None where unknown."""

    system: str
    processor: str
    cores: Positive | None


class Metrics(Shown, Document, frozen=True, eq=False):
    """Everything about a retraining for one chip. But for `wall`, interruptions do not change it.

    Args:
        identity: what decides the result, as digests and texts by name.
        network: its name.
        weights: file of the weights it started from, as given; None for those that come with the network.
        weights_retrained_for: what these say of themselves if they were retrained for a chip; otherwise None.
        data: the images.
        lot: file of chips, as given.
        chip: the chip.
        mitigation: what is done about its broken PEs.
        recipe: how it learned.
        calibration: how the activations' scales were chosen.
        learn_scales: whether they were learned from there.
        budget: how long it might be.
        bypassed_pes: PEs that are bypassed.
        placed_layers: layers whose operands do not sit in order.
        weights_on_chip: weights of all layers that run on the array.
        weights_pruned: those of them at bypassed PEs.
        accuracy: on the held-out images.
        verified: on the verification images.
        iterations: mini-batches that were learned from.
        reached_target: whether the target accuracy ended it early.
        diverged_at: the iteration that brought NaN or infinity; None if none did.
        message: the error, likewise. Then everything else is of the last evaluation before.
        evaluations: accuracy on the way.
        losses: of the mini-batches.
        wall: the time it took.
        threads: of PyTorch.
        versions: of programs and libraries, by name.
        machine: that it ran on.
        weights_sha256: of the file of weights.
        sha256: of all the rest.
    """

    FORMAT = "efat-retraining"
    VERSION = 3
    SOURCE = "efat retrain-chip"

    identity: Mapping[str, str]
    network: str
    weights: str | None
    weights_retrained_for: Mapping[str, str] | None
    data: DataOf
    lot: str
    chip: ChipOf
    mitigation: str
    recipe: Recipe
    calibration: str
    learn_scales: bool
    budget: Budget
    bypassed_pes: Count
    placed_layers: Count
    weights_on_chip: Count
    weights_pruned: Count
    accuracy: Accuracies
    verified: Verified
    iterations: Count
    reached_target: bool
    diverged_at: Count | None
    message: str | None
    evaluations: tuple[EvaluationOf, ...]
    losses: tuple[float, ...]
    wall: Wall
    threads: Positive
    versions: Mapping[str, str]
    machine: Machine
    weights_sha256: Sha256
    sha256: str = ""

    def check(self) -> None:
        """See `Document.check`."""
        check(self.sha256 == self.digest, "sha256", self.sha256, f"{self.digest}, so it was edited or is damaged")
        for name, found, images in (
            ("accuracy", self.accuracy, self.data.held_out_images),
            ("verified", self.verified, self.data.verification_images),
        ):
            for place in found.__struct_fields__:
                correct = getattr(found, place).correct
                check(correct <= images, f"{name}: {place}: correct", correct, f"an integer of 0..{images}")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all but itself."""
        return digest_of({name: value for name, value in self.as_dict().items() if name != "sha256"})

    def on_held_out(self, name: str) -> Accuracy:
        """One of `accuracy`, by the name of its field."""
        return Accuracy(getattr(self.accuracy, name).correct, self.data.held_out_images)

    def on_unseen(self, name: str) -> Accuracy:
        """One of `verified`, by the name of its field."""
        return Accuracy(getattr(self.verified, name).correct, self.data.verification_images)

    @property
    def summary(self) -> str:
        """What came out, in a sentence."""
        found, fault_free = self.on_unseen("after"), self.on_unseen("fault_free")
        points = 100 * (found.value - fault_free.value)
        against = f"{abs(points):.1f} points {'below' if points < 0 else 'above'} the fault-free network"
        low, high = found.interval
        if abs(points) < 0.05:
            against = "as well as the fault-free network"
        elif low <= fault_free.value <= high:
            against += f", which {found.images:,} images are too few to tell apart"
        text = (
            f"{found.value:.1%} of {found.images:,} unseen images on {self.chip.id} with {self.mitigation} (at least "
            f"{bound_text(found.at_least)} with 95 % confidence), {against}"
        )
        before, iterations = self.on_held_out("before"), f"{self.iterations:,} iterations"
        if not self.data.decided_by_them:
            return f"{text}; it was {before.value:.1%} before {iterations}." if self.iterations else f"{text}."
        after, target = self.on_held_out("after"), self.budget.target_accuracy
        text += f"; on {after.images:,} tuning images {after.value:.1%}"
        if self.iterations:
            text += f" after {iterations}, {before.value:.1%} before"
        if target is not None:
            text += f": the target of {100 * target:.6g}% was {'' if self.reached_target else 'not '}reached"
        return f"{text}."

    def parts(self) -> Iterator[Table | str]:
        """Accuracies, costs, and what came out in a sentence."""
        yield self.table()
        since = f", since iteration {self.wall.from_iteration:,}" if self.wall.from_iteration else ""
        rows: list[list[object]] = [
            ["faulty PEs", _share(self.chip.faults.faulty_pes, self.chip.array.sizes.pe_count)],
            ["bypassed PEs", _share(self.bypassed_pes, self.chip.array.sizes.pe_count)],
            ["weights pruned", _share(self.weights_pruned, self.weights_on_chip)],
            ["iterations", self.iterations],
            ["time", f"{_duration(self.wall.seconds)}{since}"],
        ]
        yield Table("Chip and retraining", ["", ""], rows)
        yield Verdict(self.summary)

    def table(self) -> Table:
        """A row for each accuracy, with its 95 % interval."""
        data, array = self.data, self.chip.array
        named = {"float32": "in_float", "quantised, fault-free": "fault_free"}
        if self.iterations:
            named |= {"on the chip, before retraining": "before", "on the chip, after": "after"}
        else:
            named["on the chip"] = "after"
        accuracies = {title: self.on_held_out(name) for title, name in named.items()}
        if data.decided_by_them:
            unseen = f"{data.verification_images} unseen images"
            accuracies[f"{unseen}, fault-free"] = self.on_unseen("fault_free")
            accuracies[f"{unseen}, on the chip, after"] = self.on_unseen("after")
        rows = [
            [title, f"{found.value:.1%}", f"{found.interval[0]:.1%} .. {found.interval[1]:.1%}"]
            for title, found in accuracies.items()
        ]
        which = "tuning" if data.decided_by_them else "unseen"
        return Table(
            f"{name_of(self.network)} on {data.name}, {data.held_out_images} {which} images; "
            f"{self.chip.id}, {array} array, {self.mitigation}",
            ["runs on", "accuracy", "95 %\ninterval"],
            rows,
        )


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({count / of:.2%})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
