"""Why a chip classifies images otherwise than a fault-free one: what each fault costs, which ones spoil an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from efat.display import Shown, Table
from efat.explanation.bypass_costs import BypassCosts
from efat.explanation.delta_debugging import minimal_subset
from efat.explanation.error_propagation import ErrorPropagation, error_propagation
from efat.explanation.fault_subsets import FaultSubsets, Inference
from efat.explanation.first_divergence import FirstDivergence, first_divergence
from efat.inference.classified import Comparison
from efat.inference.simulation import Simulation, simulate
from efat.setup import Setup
from simulator.errors import InputError
from simulator.faults import Fault
from training.calibration import Method
from training.data.classification import Progress
from training.data.datasets import Normalization

DEFAULT_IMAGES = 100
"""Images on which faults are left out, if there are so many and nothing else is asked for."""


@dataclass(frozen=True)
class FaultCost:
    """What one fault of the chip does to the accuracy.

    Attributes:
        index: the fault's place in canonical order.
        left_out: the chip without this fault, compared with the chip.
        alone: the chip with this fault only, compared with the chip without faults.
    """

    index: int
    left_out: Comparison
    alone: Comparison


@dataclass(frozen=True)
class Action:
    """What one fault of a set does to an image, compared with the set without it.

    Attributes:
        index: the fault's place in canonical order.
        first: where it first acts; None if it changes no output of any layer.
        travel: how far its error goes.
    """

    index: int
    first: FirstDivergence | None
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


class Explanation(Shown):
    """Everything that `efat explain` finds out about one chip.

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
    """

    def __init__(self, simulation: Simulation, images: int | None = None) -> None:
        """Put what a simulation has ready to be taken apart.

        Args:
            simulation: with one chip, and at least all images that are asked about.
            images: images to measure the accuracy on; None for all up to `DEFAULT_IMAGES`.

        Raises:
            InputError: there are not so many images.
            FileNotFoundError: a file of the chip's own weights is not there.
        """
        (self._chip,) = simulation.chips
        self.simulation = simulation
        present = len(simulation.images)
        self.images = min(present, DEFAULT_IMAGES) if images is None else images
        if not 1 <= self.images <= present:
            raise InputError(f"images is {images}: expected 1..{present}, the test images of {simulation.data_name}")
        network = simulation.networks.network(self._chip)
        self.subsets = FaultSubsets(network, simulation.accelerator(self._chip, "emulation"))
        images_measured = simulation.images[: self.images], simulation.labels[: self.images]
        self.bypass = BypassCosts(self.subsets, self._chip, *images_measured, simulation.batch)
        self.fault_free: Comparison | None = None
        self.without_faults: Comparison | None = None
        self.on_chip: Comparison | None = None
        self.costs: list[FaultCost] = []
        self.explained: list[ImageExplanation] = []

    @property
    def chip_id(self) -> str:
        """Id of the chip."""
        return self._chip.id

    @property
    def faults(self) -> list[Fault]:
        """The faults of the chip in canonical order."""
        return self.subsets.faults

    def check_image(self, image: int) -> None:
        """Refuse an image that is not there.

        Raises:
            InputError: it is not.
        """
        present = len(self.simulation.images)
        if not 0 <= image < present:
            raise InputError(
                f"image {image}: expected 0..{present - 1}, one of the {present} test images of "
                f"{self.simulation.data_name}"
            )

    @property
    def steps(self) -> int:
        """Images to classify in all for `measure`: the unit of its progress."""
        return self.images * (3 + 2 * len(self.subsets.acting))

    def measure(self, progress: Progress | None = None) -> None:
        """Find out what each fault costs. Interrupted, it keeps the faults that are done."""
        images, labels = self.simulation.images[: self.images], self.simulation.labels[: self.images]
        batch, acting = self.simulation.batch, self.subsets.acting
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
            found = FaultCost(index, Comparison.of(left_out, on_chip, labels), Comparison.of(alone, without, labels))
            self.costs.append(found)

    @property
    def ranked(self) -> list[FaultCost]:
        """The costs, the fault first that most images are gained without, then the one that loses most alone."""

        def rank(cost: FaultCost) -> tuple[int, int, int]:
            left_out, alone = cost.left_out, cost.alone
            return left_out.lost - left_out.gained, alone.gained - alone.lost, -len(alone.changed)

        return sorted(self.costs, key=rank)

    def explain(self, image: int, progress: Callable[[int], None] | None = None) -> ImageExplanation:
        """Find out why an image is classified as it is on the chip.

        Args:
            image: its index.
            progress: called with the number of sets of faults tried so far.

        Returns:
            The explanation, which is in `explained` then, too.

        Raises:
            InputError: there is no such image.
        """
        self.check_image(image)
        found = self._explained(image, progress)
        self.explained.append(found)
        return found

    def _explained(self, image: int, progress: Callable[[int], None] | None) -> ImageExplanation:
        subsets, one = self.subsets, self.simulation.images[image : image + 1]
        fault_free = int(subsets.classify_fault_free(one, 1))
        without, on_chip = (int(subsets.classify(subset, one, 1)) for subset in ((), subsets.acting))
        predictions = (image, int(self.simulation.labels[image]), fault_free, without, on_chip)
        if on_chip == fault_free:
            return ImageExplanation(*predictions, "none")
        if on_chip == without:
            return ImageExplanation(*predictions, "bypass")
        runs = 0

        def same(subset: tuple[int, ...]) -> bool:
            nonlocal runs
            runs += 1
            if progress is not None:
                progress(runs)
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
        bypass = subsets.bypass
        first = first_divergence(
            subsets.faults[index],
            without,
            with_them,
            subsets.chosen(others),
            subsets.chosen(kept),
            np.zeros((subsets.config.rows, subsets.config.cols), np.bool_) if bypass is None else bypass,
        )
        return Action(index, first, travelled)

    def table(self) -> Table:
        """What each fault costs, the one first without which most images are gained."""
        rows = []
        for cost in self.ranked:
            fault = self.faults[cost.index]
            site = f"{fault.site.name.lower()} bit {fault.bit} {fault.kind.name.lower()}"
            rows.append((site, f"{fault.row}, {fault.col}", cost.left_out.gained, cost.left_out.lost, cost.alone.lost))
        why = {"none": "as without faults", "bypass": "because of bypassed PEs", "faults": "because of faults"}
        images = [
            f"image {found.image}: class {found.on_chip} instead of {found.fault_free}, {why[found.cause]}"
            + "".join(f", {self.faults[index]}" for index in found.faults)
            for found in self.explained
        ]
        return Table(
            f"{self.chip_id}: what each fault costs on {self.images:,} images",
            ("fault", "row, column", "gained without it", "lost without it", "lost with it alone"),
            rows,
            images,
        )

    def as_dict(self, *, complete: bool) -> dict[str, Any]:
        """Everything found, as JSON takes it; `complete` says whether it is all that was asked for."""
        simulation, subsets = self.simulation, self.subsets
        parts = {"fault_free": self.fault_free, "without_faults": self.without_faults, "on_chip": self.on_chip}
        costs = {cost.index: cost for cost in self.costs}
        return {
            "network": simulation.network_name,
            "data": simulation.data_name,
            "array": simulation.config.as_dict(),
            "chip": self.chip_id,
            "digest": self._chip.digest(),
            "bypassed_pes": subsets.bypassed_pes,
            "images": self.images,
            **{name: None if part is None else part.as_dict() for name, part in parts.items()},
            "complete": complete,
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
        run: False to load and check everything only; `measure` and `explain` find out the rest then.

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
    found = Explanation(simulation, images)
    chosen = [image] if isinstance(image, int) else list(dict.fromkeys(image))
    for number in chosen:
        found.check_image(number)
    if not run:
        return found
    if images is not None or not chosen:
        found.measure()
        found.bypass.measure()
    for number in chosen:
        found.explain(number)
    return found
