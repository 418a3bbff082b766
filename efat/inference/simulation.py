"""A network on the chips of a lot: everything that is measured there, ready to be shown or written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from efat.confidence import Accuracy, bound_text
from efat.display import MOST_ROWS, Shown, Table, Verdict, counted
from efat.image_split import SplitRequest
from efat.inference.chip_networks import ChipNetwork, ChipNetworks
from efat.inference.classified import (
    ChipReport,
    EngineMismatchError,
    check_on_cycle_engine,
    measure_accuracy,
    run_chip,
)
from efat.retraining.manifest import Manifest
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.lots.chips import Chip
from training.data.classification import Progress, classify
from training.data.datasets import Dataset, Normalization
from training.layers.accelerator import Accelerator, Engine
from training.layers.array_share import ArrayShare, array_share
from training.layers.convert import put_on_chip
from training.layers.deployment import Deployment

DEFAULT_CLOCK_MHZ = 700.0
MOST_NAMED = 3
"""Chips and modules that are named in a line; of more it is said that there are."""


@dataclass(frozen=True, eq=False)
class RetrainedLot:
    """The retraining of the lot whose weights run.

    Args:
        path: file of the manifest.
        manifest: what it says.
        same_images: whether the images are those that chips were measured on at the retraining; what is required of
            chips is said of those alone.
    """

    path: Path
    manifest: Manifest
    same_images: bool

    def passes(self, report: ChipReport) -> bool | None:
        """Whether a chip meets what is required; None on other images."""
        return report.accuracy.correct >= self.manifest.required if self.same_images else None


@dataclass(repr=False)
class Simulation(Shown):
    """Networks, the images they classify and the chips they run on, with the reports of the chips that are done.

    Attributes:
        chips: the chips to run, of one array, those that run the same weights one after the other.
        networks: what runs on each of them.
        deployment: how all weights sit on the chip that they were retrained for, on whatever chip they run; None for
            weights of no chip, and where each chip has a deployment of its own.
        batch: images per GEMM.
        cycle_images: how many of the first images each chip runs on the cycle engine, too, and must give the same
            outputs for; 0 for none, as with the cycle engine itself.
        bypass: whether the PEs that the faults require to be bypassed are, beside those that the chips' fuses bypass.
        mitigation: name of what is done about the faults of each chip; None for nothing beside `bypass`.
        normalization: what was done to pixels of 0..1 instead of what the network's name implies; None for nothing.
        split: which test images were left out, as they decided something; None for none.
        clock_mhz: clock frequency that latencies are given for.
        threads: of the cycle engine; None for one per core.
        float_network: None for the weights of a lot.
        retrained: the retraining of the lot that the weights are from; None for weights that are no lot's.
        reports: one per chip that is done, in the order of `chips`.
        float_accuracy: of the float network; None before `run`, and for the weights of a lot.
        fault_free: of the quantised network on a fault-free array, by the name of the group that runs it.
        share: how much of the network runs on the array; None before `run`.
    """

    network_name: str
    data: Dataset
    chips: list[Chip]
    networks: ChipNetworks
    deployment: Deployment | None = None
    engine: Engine = "emulation"
    batch: int = 64
    cycle_images: int = 0
    bypass: bool = False
    mitigation: str | None = None
    normalization: Normalization | None = None
    split: SplitRequest | None = None
    clock_mhz: float = DEFAULT_CLOCK_MHZ
    threads: int | None = None
    float_network: nn.Module | None = None
    retrained: RetrainedLot | None = None
    reports: list[ChipReport] = field(default_factory=list)
    float_accuracy: Accuracy | None = None
    fault_free: dict[str, Accuracy] = field(default_factory=dict)
    share: ArrayShare | None = None

    @property
    def config(self) -> ArrayConfig:
        """The array of the chips."""
        return self.chips[0].faults.config

    @property
    def fault_free_accuracy(self) -> Accuracy | None:
        """Of the quantised network on a fault-free array; None before `run`, and for the weights of a lot."""
        return None if self.retrained is not None else next(iter(self.fault_free.values()), None)

    @property
    def treatment(self) -> str | None:
        """What is done about the faults of chips, by the name of its option; None for nothing."""
        return "bypass" if self.bypass else self.mitigation

    @property
    def steps(self) -> int:
        """Images to classify in all: the unit of `run`'s progress."""
        return len(self.data) * len(self.chips) * (1 if self.treatment is None else 2)

    @property
    def cycle_steps(self) -> int:
        """Images to run on the cycle engine, too: the unit of `run`'s other progress."""
        return self.cycle_images * len(self.chips)

    @property
    def done(self) -> list[tuple[Chip, ChipReport]]:
        """The chips that are done, and their reports."""
        return list(zip(self.chips, self.reports, strict=False))

    def run(self, progress: Progress | None = None, checked: Progress | None = None) -> None:
        """Run all chips. Interrupted, it keeps the reports of the chips that are done.

        Args:
            progress: called with the number of images just classified.
            checked: the same for the cycle engine, where that runs some of them, too.

        Raises:
            EngineMismatchError: the cycle engine gives other outputs than the emulation.
        """
        if self.float_network is not None:
            self.float_accuracy = self._accuracy(classify(self.float_network, self.data.images, self.batch))
        expected: tuple[str, Tensor] | None = None
        for chip in self.chips[len(self.reports) :]:
            found = self.networks(chip)
            if expected is None or expected[0] != found.group:
                expected = found.group, self._run_fault_free(found)
            chip_on_array = self._accelerator(chip, found, self.engine)
            data = self.data
            report = run_chip(found.network, chip_on_array, data.images, data.labels, expected[1], self.batch, progress)
            if self.cycle_images:
                try:
                    check_on_cycle_engine(found.network, chip_on_array, data.images[: self.cycle_images])
                except EngineMismatchError as error:
                    raise EngineMismatchError(f"chip {chip.id}: {error}") from None
                if checked is not None:
                    checked(self.cycle_images)
            self.reports.append(replace(report, as_is=self._as_is(chip, found, progress)))
            del found  # Two networks of groups are never in memory at a time.

    def _accuracy(self, predictions: Tensor) -> Accuracy:
        return measure_accuracy(predictions, self.data.labels)

    def _run_fault_free(self, found: ChipNetwork) -> Tensor:
        # The emulation is as good without faults; it takes multipliers that are not exact, too. Nothing is bypassed:
        # weights that were retrained for bypassed PEs are zero there.
        put_on_chip(found.reference, Accelerator.fault_free(self.config))
        if self.share is None:
            self.share = array_share(found.reference, self.data.images[:1])
        predictions = classify(found.reference, self.data.images, self.batch)
        self.fault_free[found.group] = self._accuracy(predictions)
        return predictions

    def _as_is(self, chip: Chip, found: ChipNetwork, progress: Progress | None) -> Accuracy | None:
        """Accuracy on the chip if nothing is done about its faults, where PEs are bypassed because of them."""
        if self.treatment is None:
            return None
        before = _union(self.config, chip.bypass, None if self.mitigation is not None else found.bypass)
        if (self._bypassed(chip, found) & ~before).any():
            network = put_on_chip(found.reference, Accelerator(self.config, chip.faults, before))
            return self._accuracy(classify(network, self.data.images, self.batch, progress))
        if progress is not None:
            progress(len(self.data))
        return None

    def on_chip(self, chip: Chip, engine: Engine | None = None) -> tuple[nn.Module, Accelerator]:
        """The network of a chip, not put there yet, and the chip on an engine: that of the simulation if None."""
        found = self.networks(chip)
        return found.network, self._accelerator(chip, found, engine or self.engine)

    def _accelerator(self, chip: Chip, found: ChipNetwork, engine: Engine) -> Accelerator:
        bypass = self._bypassed(chip, found)
        return Accelerator(self.config, chip.faults, bypass, engine=engine, threads=self.threads)

    def _bypassed(self, chip: Chip, found: ChipNetwork) -> BoolArray:
        """What the chip's fuses bypass, what its network is for and, if asked for, what the faults require."""
        required = chip.faults.required_bypass() if self.bypass else None
        return _union(self.config, chip.bypass, found.bypass, required)

    def other_chips(self) -> list[str]:
        """Ids of the chips that the weights were not retrained for: with other faults, or more bypassed by fuses."""
        deployment = self.deployment
        if deployment is None:
            return []
        # Of the faults only: what is bypassed anyway may be bypassed by fuses or not.
        digest = deployment.about.get("chip_digest")
        return [
            chip.id
            for chip in self.chips
            if chip.faults.digest() != digest or (chip.bypass is not None and (chip.bypass & ~deployment.bypass).any())
        ]

    def parts(self) -> Iterator[Table | str]:
        """Accuracies, layers, cycles, how it was computed, and what it comes to."""
        yield from self.about_weights()
        retrained = self.retrained
        yield self._accuracies() if retrained is None else self._retrained_accuracies(retrained)
        if self.reports:
            yield self._layers()
            yield self._cycles()
            yield self._on_array()
            yield self._how_computed()
            yield Verdict(self._verdict() if retrained is None else self._retrained_verdict(retrained))
        left = len(self.chips) - len(self.reports)
        if left:
            yield f"Stopped early: {left} of {len(self.chips)} chips were not simulated."

    def about_weights(self) -> list[str]:
        """A line about what the weights were made for, and whether other chips are simulated, if they were."""
        if self.retrained is not None:
            manifest = self.retrained.manifest
            chips, groups = counted(len(manifest.chips), "chip"), counted(len(manifest.groups), "group")
            return [f"Weights of {self.retrained.path}: {chips} in {groups}, planned by {manifest.strategy}."]
        deployment = self.deployment
        if deployment is None:
            return []
        chip, mitigation = (deployment.about.get(name) for name in ("chip", "mitigation"))
        line = (
            f"Weights made for {chip or 'a chip without a name'}{f' with {mitigation}' if mitigation else ''}: "
            f"{int(deployment.bypass.sum()):,} PEs bypassed, {len(deployment.placements)} layers rearranged"
        )
        others = self.other_chips()
        if others:
            line += f"; {'this is another chip' if len(others) == 1 else f'{len(others)} other chips'}: {_some(others)}"
        return [f"{line}."]

    @property
    def _title(self) -> str:
        config = self.config
        return (
            f"{self.network_name} on {self.data.name}, {len(self.data)} images; {config.rows}x{config.cols} array, "
            f"{self.engine} engine"
        )

    def _accuracies(self) -> Table:
        config = self.config
        widths = f"int{config.weight_bits} x {'' if config.act_signed else 'u'}int{config.act_bits}, fault-free"
        measured = [("float32", "", "", self.float_accuracy, ""), (widths, "0", "0", self.fault_free_accuracy, "0")]
        references = [row for row in measured if row[3] is not None]
        chips = [
            (
                chip.id,
                _faulty(chip),
                str(report.bypassed_pes),
                report.accuracy,
                f"{report.changed_predictions} ({report.changed_predictions / len(self.data):.1%})",
            )
            for chip, report in self.done
        ]
        rows = []
        for name, faulty, bypassed, accuracy, changed in [*references, *chips]:
            assert accuracy is not None
            low, high = accuracy.interval
            rows.append((name, faulty, bypassed, f"{accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}", changed))
        heads = ["runs on", "faulty\nPEs", "bypassed\nPEs", "accuracy", "95 %\ninterval", "changed\npredictions"]
        most = MOST_ROWS + len(references)
        return Table(self._title, heads, rows, most=most, sections=[len(references) - 1])

    def _retrained_accuracies(self, retrained: RetrainedLot) -> Table:
        manifest = retrained.manifest
        rows = []
        for chip, report in self.done:
            found, reached = manifest.chip_named[chip.id], report.accuracy
            row = [chip.id, found.group, _faulty(chip), str(report.bypassed_pes)]
            row += [f"{accuracy.value:.1%}" for accuracy in (self.fault_free[found.group], reached)]
            row.append(bound_text(reached.at_least))
            # What was measured on other images, and what is required of them, does not stand beside these.
            if retrained.same_images:
                row += [f"{count / manifest.images:.1%}" for count in (found.correct, manifest.required)]
                row.append("yes" if retrained.passes(report) else "no")
            rows.append(row)
        heads = [
            "chip",
            "weights of",
            "faulty\nPEs",
            "bypassed\nPEs",
            "weights,\nfault-free",
            "on\nthe chip",
            "at least",
        ]
        heads += ["at\nretraining", "required", "passes"] if retrained.same_images else []
        return Table(self._title, heads, rows, left=2)

    def _layers(self) -> Table:
        chips = len(self.reports)
        others = "" if self._same_cycles else ", cycles those of the slowest"
        rows = []
        for of_chips in zip(*(report.layers for report in self.reports), strict=True):
            # Where operands sit differs between chips that have weights of their own groups; with it the cycles.
            layer = max(of_chips, key=lambda report: report.serial_cycles)
            changed = sum(report.outputs_changed for report in of_chips)
            outputs = sum(report.outputs for report in of_chips)
            rows.append(
                (
                    layer.name,
                    f"{layer.m} x {layer.k} x {layer.n}",
                    layer.folds,
                    layer.serial_cycles,
                    layer.double_buffered_cycles,
                    f"{layer.utilisation(self.config):.1%}",
                    f"{changed / outputs:.2%}",
                    max(report.largest_change for report in of_chips),
                )
            )
        return Table(
            "Layers" + (f"; changes are those of all {chips} chips{others}" if chips > 1 else ""),
            [
                *("layer", "GEMM\nM x K x N", "folds", "cycles,\nserial", "double-\nbuffered"),
                *("utilisation", "outputs\nchanged", "largest\nchange"),
            ],
            rows,
            most=len(rows),
        )

    def _cycles(self) -> str:
        report = max(self.reports, key=lambda report: report.serial_cycles)
        named = ("serial", report.serial_cycles), ("double-buffered", report.double_buffered_cycles)
        parts = (f"{cycles:,} cycles {name} ({_duration(self.latency_ms(cycles))} per image)" for name, cycles in named)
        which = "Each chip" if self._same_cycles else "The slowest chip"
        return (
            f"{which}, {len(self.data)} images in batches of {self.batch}, at {self.clock_mhz:g} MHz:\n"
            f"{', '.join(parts)}.\n"
        )

    @property
    def _same_cycles(self) -> bool:
        return len({tuple(layer.serial_cycles for layer in report.layers) for report in self.reports}) == 1

    def latency_ms(self, cycles: int) -> float:
        """Milliseconds per image when `cycles` clock cycles classify all images."""
        return cycles / (self.clock_mhz * 1e3) / len(self.data)

    def _on_array(self) -> str:
        """How much of the network the chips are behind, and what computes in float without any faults."""
        share = self.share
        assert share is not None
        if not share.in_float:
            return "All multiply-accumulates run on the array."
        named = [f"{name or 'the forward of the network'} ({count:,})" for name, count in share.in_float.items()]
        more = len(named) - MOST_NAMED
        places = ", ".join(named[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        percent = f"{share.value:.1%}" if share.value < 0.9995 else "More than 99.9%"
        left = sum(share.in_float.values())
        return f"{percent} of the multiply-accumulates run on the array; {left:,} per image stay in float: {places}."

    def _how_computed(self) -> str:
        """Which engine the numbers are from, and what was compared with the other one."""
        if self.engine == "cycle":
            return "Computed on the cycle engine, register by register."
        images = self.cycle_images
        if not images:
            return "Emulated bit for bit; nothing was compared with the cycle engine."
        which = "all images" if images == len(self.data) else "the first image"
        if 1 < images < len(self.data):
            which = f"the first {images} images"
        of = "of each chip" if len(self.reports) > 1 else "of the chip"
        return f"Emulated bit for bit; the cycle engine gives the same outputs on {which} {of}."

    def _verdict(self) -> str:
        reference = self.fault_free_accuracy
        assert reference is not None
        chip, worst = min(self.done, key=lambda found: found[1].accuracy.value)
        values = [report.accuracy.value for report in self.reports]
        within = sum(reference.value - value <= 0.01 for value in values)
        how = "with broken PEs bypassed" if self.bypass else "as they are"
        if self.mitigation is not None:
            how = f"with {self.mitigation}"
        elif self.deployment is not None and not self.bypass:
            how = "with the PEs bypassed that the weights are for"
        text = (
            f"{within} of {len(values)} {'chip stays' if len(values) == 1 else 'chips stay'} within 1 point of the "
            f"fault-free {reference.value:.1%}, {how}.\n"
            f"Accuracy on them: {sum(values) / len(values):.1%} in the mean, {worst.accuracy.value:.1%} on the worst "
            f"({chip.id})."
        )
        if len(self.data) < 100:
            text += f"\nOf {len(self.data)} images one is more than a point: too few to tell chips apart so finely."
        unusable = sum(len(chip.faults.unusable_columns()) > 0 for chip, _ in self.done)
        if self.bypass and unusable:
            has = "chip has" if unusable == 1 else "chips have"
            text += f"\n{unusable} {has} broken column accumulators, which no bypass hides."
        return text

    def _retrained_verdict(self, retrained: RetrainedLot) -> str:
        manifest, done = retrained.manifest, self.done
        chip, worst = min(done, key=lambda found: found[1].accuracy.correct)
        mean = sum(report.accuracy.value for report in self.reports) / len(done)
        shown = (
            f"Accuracy on {len(self.data):,} images: {mean:.1%} in the mean, {worst.accuracy.value:.1%} on the worst "
            f"chip ({chip.id}), at least {bound_text(worst.accuracy.at_least)} with 95 % confidence."
        )
        if not retrained.same_images:
            others = (
                f"Other images than the {manifest.images:,} that verified the lot, of which the constraint is said."
            )
            return f"{shown}\n{others}"
        passing = sum(retrained.passes(report) is True for report in self.reports)
        changed = [c.id for c, report in done if report.accuracy.correct != manifest.chip_named[c.id].correct]
        classify_as = "chip classifies" if len(done) == 1 else "chips classify"
        return (
            f"{passing} of {len(done)} {classify_as} as many images correctly as required: {manifest.required:,} of "
            f"{manifest.images:,} unseen images.\n{shown}\n"
            + (f"Not as at the retraining: {_some(changed)}." if changed else "All as measured at the retraining.")
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, as JSON takes it."""
        return {
            "network": self.network_name,
            "data": self.data.name,
            "normalization": None if self.normalization is None else str(self.normalization),
            "split": None if self.split is None else self.split.as_dict(),
            "images": len(self.data),
            "batch": self.batch,
            "engine": self.engine,
            "cycle_images": self.cycle_images,
            "bypass": self.bypass,
            "mitigation": self.mitigation,
            "clock_mhz": self.clock_mhz,
            "array": self.config.as_dict(),
            "deployment": self.deployment_dict(),
            "manifest": self._manifest_dict(),
            "complete": len(self.reports) == len(self.chips),
            "float": None if self.float_accuracy is None else self.float_accuracy.as_dict(),
            "fault_free": None if self.fault_free_accuracy is None else self.fault_free_accuracy.as_dict(),
            "on_array": None if self.share is None else self.share.as_dict(),
            "groups": self._group_dicts(),
            "chips": [self._chip_dict(chip, report) for chip, report in self.done],
        }

    def _chip_dict(self, chip: Chip, report: ChipReport) -> dict[str, Any]:
        retraining: dict[str, Any] = {}
        if self.retrained is not None:
            found = self.retrained.manifest.chip_named[chip.id]
            retraining = {
                "group": found.group,
                "correct_at_retraining": found.correct,
                "required": self.retrained.manifest.required,
                "passes": self.retrained.passes(report),
            }
        return {
            "chip": chip.id,
            "faults": chip.faults.summary().as_dict(),
            "digest": chip.digest(),
            "bypassed_pes": report.bypassed_pes,
            **report.accuracy.as_dict(),
            "as_is": None if report.as_is is None else report.as_is.as_dict(),
            "changed_predictions": report.changed_predictions,
            "serial_cycles": report.serial_cycles,
            "double_buffered_cycles": report.double_buffered_cycles,
            "latency_ms_per_image": self.latency_ms(report.serial_cycles),
            "latency_ms_per_image_double_buffered": self.latency_ms(report.double_buffered_cycles),
            **retraining,
            "layers": [{**vars(layer), "utilisation": layer.utilisation(self.config)} for layer in report.layers],
        }

    def _manifest_dict(self) -> dict[str, Any] | None:
        if self.retrained is None:
            return None
        manifest = self.retrained.manifest
        return {
            "path": str(self.retrained.path),
            "strategy": manifest.strategy,
            "images": manifest.images,
            "required": manifest.required,
            "same_images": self.retrained.same_images,
        }

    def _group_dicts(self) -> list[dict[str, Any]] | None:
        if self.retrained is None:
            return None
        groups = self.retrained.manifest.group_named
        return [
            {
                "group": name,
                "chips": len(groups[name].chips),
                "iterations": groups[name].iterations,
                "fault_free": accuracy.as_dict(),
            }
            for name, accuracy in self.fault_free.items()
        ]

    def deployment_dict(self) -> dict[str, Any] | None:
        """What the weights were retrained for, as JSON takes it; None for weights of no chip."""
        if self.deployment is None:
            return None
        return {
            "about": dict(self.deployment.about),
            "bypassed_pes": int(self.deployment.bypass.sum()),
            "placed_layers": sorted(self.deployment.placements),
            "other_chips": self.other_chips(),
        }


def _union(config: ArrayConfig, *masks: BoolArray | None) -> BoolArray:
    """PEs of an array that any mask has, bool [R, C]."""
    none = np.zeros((config.rows, config.cols), np.bool_)
    return reduce(np.logical_or, (mask for mask in masks if mask is not None), none)


def _faulty(chip: Chip) -> str:
    faulty = int(chip.faults.faulty_pes().sum())
    return f"{faulty} ({faulty / chip.faults.config.pe_count:.2%})"


def _duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.3g} us"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MOST_NAMED]) + (", ..." if len(ids) > MOST_NAMED else "")
