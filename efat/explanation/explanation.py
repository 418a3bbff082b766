"""Why a chip classifies images otherwise than a fault-free one: what each fault costs, which ones spoil an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from efat.display import Shown, Table, Verdict, counted
from efat.explanation.costs import MOST_SHOWN, BypassCosts, FaultCost, cells
from efat.explanation.divergence import ErrorPropagation, FirstDivergence, error_propagation, first_divergence
from efat.explanation.fault_subsets import FaultSubsets, Inference, minimal_subset
from efat.inference.classified import Comparison
from efat.inference.simulate import simulate
from efat.inference.simulation import Simulation
from efat.setup import Setup
from simulator.errors import InputError
from simulator.faults import Fault
from training.calibration import Method
from training.data.classification import Progress
from training.data.datasets import Normalization

DEFAULT_IMAGES = 100
"""Images on which faults are left out, if there are so many and nothing else is asked for."""

SURE = 0.05
"""Chance that a fault is said to cost something and does not."""

MOST_IMAGES_SHOWN = 12

Stages = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much; None if nobody knows."""

_NETS = {
    "WEIGHT": "the weight",
    "WEIGHT_LOAD": "the weight being loaded",
    "ACTIVATION": "the activation",
    "PRODUCT": "the product",
    "PSUM": "the sum",
    "MULTIPLIER": "the product",
    "ACCUMULATOR": "the sum to be stored",
}


@dataclass(frozen=True)
class Action:
    """What one fault of a set, `index` in canonical order, does to an image, compared with the set without it."""

    index: int
    first: FirstDivergence | None
    """Where it first acts; None if it changes no output of any layer."""
    travel: ErrorPropagation


@dataclass(frozen=True)
class ImageExplanation:
    """Why an image is classified as it is on a chip.

    Attributes:
        image: index of the image.
        label: its class.
        fault_free: class predicted on a fault-free array.
        without_faults: class predicted on the chip without its faults, but with the PEs bypassed that are.
        on_chip: class predicted on the chip.
        cause: `none` if the prediction is the fault-free one; `bypass` if bypassed PEs change it so without any fault;
            otherwise `faults`.
        faults: faults that make the chip predict this class when it has no others, and none of which can be left
            out; empty if the cause is another.
        runs: sets of faults that were tried to find them.
        travel: how far the error of these faults goes, compared with the chip without faults; None if there are none.
        actions: what each of them does.
    """

    image: int
    label: int
    fault_free: int
    without_faults: int
    on_chip: int
    cause: Literal["none", "bypass", "faults"]
    faults: tuple[int, ...] = ()
    runs: int = 0
    travel: ErrorPropagation | None = None
    actions: tuple[Action, ...] = ()

    @property
    def summary(self) -> str:
        """The classes, and the cause where no faults are."""
        line = f"Image {self.image} of class {self.label}: class {self.on_chip} on the chip"
        if self.cause == "none":
            right = "right" if self.on_chip == self.label else "wrong, but not because of faults"
            return f"{line}, as on a fault-free array: {right}. There is nothing to explain."
        line += f", class {self.fault_free} on a fault-free array"
        if self.cause == "bypass":
            return f"{line}. So it is without any fault: the bypassed PEs are the cause."
        if self.without_faults != self.fault_free:
            line += f", class {self.without_faults} on the chip without its faults but with its PEs bypassed"
        return f"{line}."


class Explanation(Shown):
    """Everything that `efat explain` finds out about one chip.

    Args:
        simulation: with one chip, and all images that are asked about.
        images: images to measure the accuracy on; None for all up to `DEFAULT_IMAGES`.
        asked: images to explain.
        measured: whether each fault is left out.

    Attributes:
        simulation: has the chip, the network and the images.
        subsets: the network on the chip with any of its faults.
        images: images on which the accuracy is measured, from the first one.
        fault_free: on a fault-free array, compared with itself; None before `measure`.
        without_faults: on the chip without its faults but with the PEs bypassed that are, compared with the former.
        on_chip: on the chip, compared with the chip without faults.
        costs: of each fault that may act, in canonical order; those that are done.
        bypass: what the bypass of PEs costs.
        explained: images that are done.

    Raises:
        InputError: there are not so many images, or one is asked about that is not there.
        FileNotFoundError: a file of the chip's own weights is not there.
    """

    def __init__(
        self, simulation: Simulation, images: int | None = None, asked: Sequence[int] = (), *, measured: bool = True
    ) -> None:
        (self._chip,) = simulation.chips
        self.simulation = simulation
        present = len(simulation.data)
        self.images = min(present, DEFAULT_IMAGES) if images is None else images
        if not 1 <= self.images <= present:
            raise InputError(f"images is {images}: expected 1..{present}, the test images of {simulation.data.name}")
        self._asked, self._measured = tuple(dict.fromkeys(asked)), measured
        for image in self._asked:
            self._check_image(image)
        self.subsets = FaultSubsets(*simulation.on_chip(self._chip, "emulation"))
        self._used = simulation.data.images[: self.images], simulation.data.labels[: self.images]
        self.bypass = BypassCosts(self.subsets, self._chip, *self._used, simulation.batch)
        self.fault_free: Comparison | None = None
        self.without_faults: Comparison | None = None
        self.on_chip: Comparison | None = None
        self.costs: list[FaultCost] = []
        self.explained: list[ImageExplanation] = []

    @property
    def faults(self) -> list[Fault]:
        """The faults of the chip in canonical order."""
        return self.subsets.faults

    @property
    def complete(self) -> bool:
        """Whether all is found that was asked for."""
        return self._stopped is None

    def _check_image(self, image: int) -> None:
        present = len(self.simulation.data)
        if not 0 <= image < present:
            raise InputError(
                f"image {image}: expected 0..{present - 1}, one of the {present} test images of "
                f"{self.simulation.data.name}"
            )

    def run(self, progress: Stages | None = None) -> None:
        """Find out all that was asked for. Interrupted, it keeps what was found; `progress` takes how far it is."""
        report: Stages = progress or (lambda *_: None)
        if self._measured:
            self.measure(_summed("images", self.steps, report))
            self.bypass.measure(_summed("images with a bypassed PE in use", self.bypass.steps, report))
        for image in self._asked:
            self.explain(image, _summed(f"sets of faults for image {image}", None, report))

    @property
    def steps(self) -> int:
        """Images to classify in all for `measure`: the unit of its progress."""
        return self.images * (3 + 2 * len(self.subsets.acting))

    def measure(self, progress: Progress | None = None) -> None:
        """Find out what each fault costs. Interrupted, it keeps the faults that are done."""
        (images, labels), batch, acting = self._used, self.simulation.batch, self.subsets.acting
        clean = self.subsets.classify_fault_free(images, batch, progress)
        without = self.subsets.classify((), images, batch, progress)
        on_chip = self.subsets.classify(acting, images, batch, progress)
        self.fault_free = Comparison.of(clean, clean, labels)
        self.without_faults = Comparison.of(without, clean, labels)
        self.on_chip = Comparison.of(on_chip, without, labels)
        for index in acting:
            others = [other for other in acting if other != index]
            left_out = self.subsets.classify(others, images, batch, progress)
            alone = self.subsets.classify([index], images, batch, progress)
            self.costs.append(
                FaultCost(index, Comparison.of(left_out, on_chip, labels), Comparison.of(alone, without, labels))
            )

    @property
    def ranked(self) -> list[FaultCost]:
        """The costs, the fault first that most images are gained without, then the one that loses most alone."""
        return sorted(self.costs, key=lambda cost: cost.rank)

    def explain(self, image: int, progress: Progress | None = None) -> ImageExplanation:
        """Find out why an image is classified as it is on the chip; `explained` has the answer then, too.

        Args:
            image: its index.
            progress: called with 1 after each set of faults that is tried.

        Raises:
            InputError: there is no such image.
        """
        self._check_image(image)
        self.explained.append(self._explained(image, progress))
        return self.explained[-1]

    def _explained(self, image: int, progress: Progress | None) -> ImageExplanation:
        subsets, one = self.subsets, self.simulation.data.images[image : image + 1]
        fault_free = int(subsets.classify_fault_free(one, 1))
        without, on_chip = (int(subsets.classify(subset, one, 1)) for subset in ((), subsets.acting))
        predictions = (image, int(self.simulation.data.labels[image]), fault_free, without, on_chip)
        if on_chip == fault_free:
            return ImageExplanation(*predictions, "none")
        if on_chip == without:
            return ImageExplanation(*predictions, "bypass")
        runs = 0

        def same(subset: tuple[int, ...]) -> bool:
            nonlocal runs
            runs += 1
            if progress is not None:
                progress(1)
            return int(subsets.classify(subset, one, 1)) == on_chip

        kept = minimal_subset(subsets.acting, same)
        with_them = subsets.infer(kept, one)
        return ImageExplanation(
            *predictions,
            cause="faults",
            faults=kept,
            runs=runs,
            travel=error_propagation(subsets.infer((), one), with_them),
            actions=tuple(self._action(index, kept, one, with_them) for index in kept),
        )

    def _action(self, index: int, kept: tuple[int, ...], image: Tensor, with_them: Inference) -> Action:
        subsets = self.subsets
        others = [other for other in kept if other != index]
        without = subsets.infer(others, image)
        # Refuses a network whose layers cannot be compared.
        travelled = error_propagation(without, with_them)
        maps = subsets.chosen(others), subsets.chosen(kept)
        return Action(
            index, first_divergence(subsets.faults[index], without, with_them, *maps, subsets.bypass), travelled
        )

    def parts(self) -> Iterator[Table | str]:
        """The chip, what its faults and the bypass of its PEs cost, and each image that was explained."""
        yield from self.simulation.about_weights()
        yield self._chip_line()
        if self.on_chip is not None:
            yield self._accuracies()
            if self.costs:
                yield self._fault_costs()
            yield Verdict(self._verdict(self.on_chip))
            yield from self.bypass.parts()
        for found in self.explained:
            yield ""
            yield from self._image_parts(found)
        if self._stopped is not None:
            yield self._stopped

    def _chip_line(self) -> str:
        config, subsets = self.subsets.config, self.subsets
        line = f"Chip {self._chip.id}, {config.rows}x{config.cols}: {counted(len(self.faults), 'fault')}"
        bypassed, unused = (subsets.hidden.count(why) for why in ("bypassed", "unused column"))
        if bypassed:
            line += f", {bypassed:,} of them hidden by the bypass of {counted(subsets.bypassed_pes, 'PE')}"
        elif subsets.bypassed_pes:
            line += f", {counted(subsets.bypassed_pes, 'PE')} bypassed"
        if unused:
            line += f", {unused:,} in columns that no layer uses"
        return f"{line}."

    def _accuracies(self) -> Table:
        named = {"a fault-free array": self.fault_free}
        if self.subsets.bypassed_pes:
            named["the chip without faults, PEs bypassed"] = self.without_faults
        named["the chip"] = self.on_chip
        rows = []
        for name, found in named.items():
            assert found is not None
            low, high = found.accuracy.interval
            changed = "" if found is self.fault_free else len(found.changed)
            rows.append((name, f"{found.accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}", changed))
        return Table(
            f"{self.simulation.network_name} on {self.simulation.data.name}, {counted(self.images, 'image')}",
            ["runs on", "accuracy", "95 %\ninterval", "predictions changed\nfrom the row above"],
            rows,
        )

    def _fault_costs(self) -> Table:
        rows = []
        for cost in self.ranked:
            fault = self.faults[cost.index]
            names = _place(fault), fault.site.name, _bit(fault), _kind(fault)
            rows.append((*names, *cells(cost.left_out), *cells(cost.alone)))
        return Table(
            "Faults that may act; left out: the chip without this one; alone: without the others",
            [
                *("place", "net", "bit", "value"),
                *(head for how in ("left out", "alone") for head in (f"{how}:\naccuracy", "images\ngained", "\nlost")),
            ],
            rows,
            left=4,
            most=MOST_SHOWN,
        )

    @property
    def changed_images(self) -> list[int]:
        """Images that the faults change the prediction of, as far as that was measured."""
        return [] if self.on_chip is None else [each.image for each in self.on_chip.changed]

    def _verdict(self, on_chip: Comparison) -> str:
        if not self.subsets.acting:
            why = "The chip has no faults" if not self.faults else "No fault of the chip can act"
            return f"{why}: there is nothing to leave out."
        images = self.changed_images
        if not images:
            return "The faults change no prediction."
        shown = ", ".join(map(str, images[:MOST_IMAGES_SHOWN])) + (", ..." if len(images) > MOST_IMAGES_SHOWN else "")
        costliest = f"{self._costliest(self.ranked[0])}\n" if self.costs else ""
        return f"{costliest}The faults change the predictions of images {shown}."

    def _costliest(self, cost: FaultCost) -> str:
        net = cost.left_out.gained - cost.left_out.lost
        if net <= 0:
            return "Leaving out one fault alone makes nothing better: what is lost, several of them cost together."
        name = fault_name(self.faults[cost.index])
        gain = f"without it {net} more of {self.images} images would be right"
        # The best of many is good by chance, too.
        if cost.left_out.better_by_chance() * len(self.costs) > SURE:
            return f"{name} costs most on these images: {gain}. Too few to be sure that it costs anything on others."
        return f"{name} costs most: {gain}."

    def _image_parts(self, found: ImageExplanation) -> Iterator[Table | str]:
        yield Verdict(found.summary)
        if found.travel is None:
            return
        count = len(found.faults)
        which = "this one alone gives" if count == 1 else f"these {count} by themselves give"
        yield (
            f"Of {counted(len(self.subsets.acting), 'fault')} that may act {which} class {found.on_chip}, "
            f"and {'it cannot' if count == 1 else 'none of them can'} be left out ({found.runs} sets were tried):"
        )
        travels = {} if count == 1 else {"them, against no faults": found.travel}
        for action in found.actions:
            fault = self.faults[action.index]
            yield Verdict(f"  {fault_name(fault)}")
            if action.first is not None:
                yield _first_lines(fault, action.first)
            if count > 1:
                yield f"    without it the others give class {action.travel.before}"
            travels[fault_name(fault)] = found.travel if count == 1 else action.travel
        yield _travel_table(found.travel, travels)

    @property
    def _stopped(self) -> str | None:
        """What is missing, if anything is."""
        if self.on_chip is None and not self.explained:
            return "Stopped before anything was found."
        if self.on_chip is not None:
            acting, places = self.subsets.acting, self.bypass.places
            left, unknown = len(acting) - len(self.costs), len(places) - len(self.bypass.costs)
            if left:
                return f"Stopped early: {counted(left, 'fault')} of {len(acting)} not left out yet."
            if unknown:
                return f"Stopped early: {unknown:,} of {counted(len(places), 'bypassed PE')} not tried yet."
        if len(self.explained) < len(self._asked):
            return "Stopped early: not all images are explained."
        return None

    def as_dict(self) -> dict[str, Any]:
        """Everything found, as JSON takes it."""
        simulation, subsets = self.simulation, self.subsets
        parts = {"fault_free": self.fault_free, "without_faults": self.without_faults, "on_chip": self.on_chip}
        costs = {cost.index: cost for cost in self.costs}
        return {
            "network": simulation.network_name,
            "data": simulation.data.name,
            "array": simulation.config.as_dict(),
            "chip": self._chip.id,
            "digest": self._chip.digest(),
            "bypassed_pes": subsets.bypassed_pes,
            "images": self.images,
            **{name: None if part is None else part.as_dict() for name, part in parts.items()},
            "complete": self.complete,
            "bypass": self.bypass.as_dict(),
            "faults": [self._fault_dict(index, costs.get(index)) for index in range(len(self.faults))],
            "explained": [asdict(found) for found in self.explained],
        }

    def _fault_dict(self, index: int, cost: FaultCost | None) -> dict[str, Any]:
        fault = self.faults[index]
        return {
            "fault": index,
            "row": fault.row,
            "col": fault.col,
            "site": fault.site.name,
            "bit": fault.bit,
            "kind": fault.kind.name,
            "hidden": self.subsets.hidden[index],
            "left_out": None if cost is None else cost.left_out.as_dict(),
            "alone": None if cost is None else cost.alone.as_dict(),
        }


def _summed(what: str, of: int | None, report: Stages) -> Progress:
    """Reports how much is done in all, where it is told how much was just done."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        report(what, done, of)

    return add


def _travel_table(whole: ErrorPropagation, travels: Mapping[str, ErrorPropagation]) -> Table:
    """What the faults change in each layer, and what each of them does beside the others."""
    rows = [
        ("" if place else name, layer.layer, layer.changed, layer.outputs, layer.pattern, layer.largest_error)
        for name, travel in travels.items()
        for place, layer in enumerate(travel.layers)
    ]
    layers = len(whole.layers)
    return Table(
        f"The way of the error, which changes {counted(whole.scores_changed, 'score')} of {whole.scores} in the end",
        ["changed by", "layer", "outputs\nchanged", "of", "pattern", "largest\nerror"],
        rows,
        left=2,
        most=len(rows),
        sections=range(layers - 1, len(rows), layers),
    )


def _first_lines(fault: Fault, first: FirstDivergence) -> str:
    group = f", group {first.group}" if first.group else ""
    stored = first.stored
    return (
        f"    first acts in layer {first.layer}{group}, fold {first.fold}, clock cycle {first.cycle:,}: "
        f"{_NETS[fault.site.name]} is {first.became:,} instead of {first.was:,};\n"
        f"    in cycle {stored.cycle:,} output {stored.output} of row {stored.row_of_x} of X is stored as "
        f"{stored.became:,} instead of {stored.was:,}"
    )


def fault_name(fault: Fault) -> str:
    """A fault in words.

    >>> from simulator import Kind, Site
    >>> fault_name(Fault(3, 5, Site.PSUM, 23, Kind.STUCK_AT_1))
    'PE 3,5 PSUM bit 23 stuck at 1'
    """
    return f"{_place(fault)} {fault.site.name} {_bit(fault)} {_kind(fault)}"


def _place(fault: Fault) -> str:
    return f"column {fault.col}" if fault.site.name == "ACCUMULATOR" else f"PE {fault.row},{fault.col}"


def _bit(fault: Fault) -> str:
    return f"{'location' if fault.site.name == 'MULTIPLIER' else 'bit'} {fault.bit}"


def _kind(fault: Fault) -> str:
    return f"stuck at {int(fault.kind.name == 'STUCK_AT_1')}"


def explain(
    network: Setup | str | nn.Module | None,
    lot: str | PathLike[str],
    chip: str,
    *,
    image: int | Sequence[int] = (),
    images: int | None = None,
    manifest: str | Path | None = None,
    weights: str | Path | None = None,
    data: str | Path | tuple[object, object] | None = None,
    normalization: str | Normalization | None = None,
    bypass: bool = False,
    calibration: Method | None = None,
    progress: Stages | None = None,
    run: bool = True,
) -> Explanation:
    """Find out which faults of a chip cause what it does wrong.

    Args:
        network: as for `efat.simulate`.
        lot: an `efat.Lot`, or a file of chips.
        chip: id of the chip.
        image: places of images, from 0, to explain.
        images: leave out each fault on so many images, the first ones; None for `DEFAULT_IMAGES`, or for none if
            images to explain are named.
        manifest: as for `efat.simulate`.
        weights: as for `efat.simulate`.
        data: as for `efat.simulate`.
        normalization: as for `efat.simulate`.
        bypass: as for `efat.simulate`.
        calibration: as for `efat.simulate`.
        progress: called with what is being done, how much of it is done, and of how much.
        run: False to load and check everything only, for `Explanation.run`.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: something is of the wrong kind, does not fit or is unknown; one line says what.
    """
    simulation = simulate(
        network,
        lot,
        manifest=manifest,
        weights=weights,
        data=data,
        normalization=normalization,
        chips=[chip],
        bypass=bypass,
        calibration=calibration,
        run=False,
    )
    chosen = [image] if isinstance(image, int) else image
    found = Explanation(simulation, images, chosen, measured=images is not None or not chosen)
    if run:
        found.run(progress)
    return found
