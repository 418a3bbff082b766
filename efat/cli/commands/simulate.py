"""`efat simulate`: a network classifies images on the chips of a lot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

import efat
from efat.cli.learning_options import SplitOptions, split_options
from efat.cli.options import (
    NetworkRequest,
    calibration_option,
    check_json,
    check_output,
    fail,
    json_option,
    lot_option,
    manifest_option,
    network_options,
    write_json,
)
from efat.cli.parameters import complete_chips, complete_deployments
from efat.cli.printing import say, warn, warn_of_guessing
from efat.cli.waveform import WaveformRequest, waveform_options, write_waveform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from efat import Accuracy, LayerReport, RetrainedLot, Simulation
    from efat.cli.render import ResultsTable
    from simulator.lots.chips import Chip
    from training.calibration import Method
    from training.layers.quantized import Engine

DEFAULT_CLOCK_MHZ = 700.0


@click.command(
    epilog="""\b
Examples:
  efat chips generate --array 32x32 --count 5 --fault-rate 0.01 -o lot.h5
  efat simulate --network digits-cnn --lot lot.h5
  efat simulate --network digits-cnn --lot lot.h5 --chip chip-0003 --bypass
  efat simulate --network digits-cnn --lot lot.h5 --mitigation fam
  efat simulate --network lenet5 --weights lenet5.safetensors --data fashion-mnist/ --lot lot.h5 --images 200
  efat simulate --network nets:mine --weights mine.pt --data cifar/ --normalize 0.5:0.25 --lot lot.h5
  efat simulate --manifest out/manifest.json --lot lot.h5
  efat simulate --network digits-cnn --lot lot.h5 --chip chip-0003 --vcd wave.vcd --layer 1 --fold 2 --pe 5,7
"""
)
@network_options()
@manifest_option
@split_options
@lot_option
@click.option(
    "--chip",
    "chips",
    shell_complete=complete_chips,
    multiple=True,
    metavar="ID",
    help="Chip to simulate; repeatable.  [default: all]",
)
@click.option(
    "--engine",
    type=click.Choice(["cycle", "emulation"]),
    default="emulation",
    show_default=True,
    help="emulation: what the array computes, bit for bit, in closed form; cycle: the same by every register of every "
    "PE in every clock cycle.",
)
@click.option(
    "--cycle-images",
    type=click.IntRange(min=0),
    metavar="N",
    help="Images that each chip runs on the cycle engine, too, for the same outputs.  [default: 8]",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Test images to classify.  [default: all; with --manifest those that chips were measured on]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", default=64, show_default=True, help="Images per GEMM."
)
@click.option(
    "--bypass",
    is_flag=True,
    help="Bypass the PEs that the faults require, beside those that a chip's fuses bypass already.",
)
@click.option(
    "--mitigation",
    shell_complete=complete_deployments,
    metavar="NAME",
    help="What is done about the broken PEs of each chip without retraining, as for efat retrain-chip: none, fap, fam, "
    "fam-rows or fam-columns, and then +bn.",
)
@calibration_option(
    "How the activations' scales are chosen; retrained weights bring theirs.  [default: max]", default=None
)
@click.option(
    "--clock-mhz",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MHZ",
    default=DEFAULT_CLOCK_MHZ,
    show_default=True,
    help="Clock frequency that latencies are given for.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of the engine.  [default: one per core]"
)
@json_option("everything measured")
@waveform_options
def simulate(
    subject: NetworkRequest,
    manifest: Path | None,
    split: SplitOptions,
    lot: Path,
    chips: tuple[str, ...],
    engine: str,
    cycle_images: int | None,
    images: int | None,
    batch: int,
    bypass: bool,
    mitigation: str | None,
    calibration: str | None,
    clock_mhz: float,
    threads: int | None,
    json_path: Path | None,
    waveform: WaveformRequest | None,
) -> None:
    """Classify images on faulty chips, and show what the faults change.

    The network is quantised, and every GEMM of its convolutions and linear layers runs on the simulated array of each
    chip. Shown are the accuracy in float, on a fault-free array and on each chip, and for each layer its GEMM, clock
    cycles and the outputs that the faults changed.

    Chips are emulated bit for bit; the first images of each run on the cycle engine, too, and every output must be the
    same. --engine cycle runs them all there.

    An output counts as changed when it differs from the exact result for the same inputs of that layer. Ctrl-C stops
    the run and still shows the chips that are done.

    With --bypass or --mitigation each chip is also run with its faults left in, and it is said which chips that serves
    better.

    With --tune-images, --verify-images or --verify-data only those images are classified that judge: those that decided
    nothing in a retraining with the same options.

    With --vcd the network runs only up to one layer, with its first batch of images, and a waveform of what the PEs do
    there is written instead of a report, with fault-free values beside the faulty ones.

    With --manifest each chip of a lot runs what `efat retrain` made for it: the weights of its group, with its own PEs
    bypassed and its own arrangement of operands. Beside its accuracy stand that of the weights without faults, that
    measured at the retraining, and that required.
    """
    from efat.cli.render import console, progress_bars, working

    if manifest is not None:
        given = {
            "--weights": subject.weights is not None,
            "--calibration": calibration is not None,
            "--bypass": bypass,
            "--normalize": subject.normalize is not None,
            **dict.fromkeys(split.given, True),
            "--mitigation": mitigation is not None,
        }
        for option in (option for option, is_given in given.items() if is_given):
            fail(f"--manifest says what each chip runs and what is bypassed for it: leave out {option}")
    elif subject.network is None:
        fail("choose a network with --network, or a lot that was retrained with --manifest")
    if cycle_images is not None and engine == "cycle":
        fail("--engine cycle runs all images on the cycle engine: leave out --cycle-images")
    check_json(json_path)
    if waveform is not None:
        if json_path is not None:
            fail("--vcd writes a waveform and measures nothing for --json: leave one of them out")
        if cycle_images is not None:
            fail("--vcd writes a waveform and compares nothing: leave out --cycle-images")
        check_output(waveform.path, inputs=[lot, *subject.inputs, *([] if manifest is None else [manifest])])
    if manifest is None:
        subject.warn()

    with working("Loading, quantising and calibrating"):
        from efat import EngineMismatchError

        simulation = efat.simulate(
            subject.network,
            lot,
            manifest=manifest,
            weights=subject.weights,
            data=subject.data,
            normalization=subject.normalization,
            split=split.request() if split.given else None,
            chips=chips,
            engine=cast("Engine", engine),
            cycle_images=cycle_images,
            images=images,
            batch=batch,
            bypass=bypass,
            mitigation=mitigation,
            calibration=cast("Method | None", calibration),
            threads=threads,
            run=False,
        )
    if threads is not None:
        import torch

        # The emulation has as many threads as torch.
        torch.set_num_threads(threads)
    if waveform is not None:
        line = deployment_line(simulation)
        if line is not None:
            say(line)
        write_waveform(waveform, simulation, clock_mhz)
        return
    interrupted = False
    bars = {"images": simulation.steps, "on the cycle engine": simulation.cycle_steps}
    with progress_bars(bars) as (progress, checked):
        try:
            simulation.run(progress, checked)
        except KeyboardInterrupt:
            interrupted = True
        except EngineMismatchError as error:
            raise click.ClickException(f"{error}: a bug in eFAT; do not trust its results") from None
    _warn_of_guessing(simulation)
    harm = harm_line(simulation)
    if harm is not None:
        warn(harm)
    show_simulation(simulation, clock_mhz, console())
    if json_path is not None:
        write_json(json_path, simulation.as_dict(clock_mhz))
    if interrupted:
        raise KeyboardInterrupt


def _warn_of_guessing(simulation: Simulation) -> None:
    if warn_of_guessing("the float network", simulation.float_accuracy, simulation.classes):
        return
    for group, accuracy in simulation.fault_free.items():
        what = f"the quantised network of group {group}" if group else "the quantised network"
        warn_of_guessing(what, accuracy, simulation.classes)


MOST_CHIPS_SHOWN = 40
MOST_OTHERS_SHOWN = 3
MOST_MODULES_SHOWN = 3


def show_simulation(simulation: Simulation, clock_mhz: float, console: Console) -> None:
    """Print everything measured so far."""
    line = deployment_line(simulation)
    if line is not None:
        console.print(line, soft_wrap=True)
    retrained = simulation.retrained
    console.print(_accuracy_table(simulation) if retrained is None else _retrained_table(simulation, retrained))
    if simulation.reports:
        console.print(_layer_table(simulation))
        console.print(_totals(simulation, clock_mhz))
        verdict = _verdict(simulation) if retrained is None else _retrained_verdict(simulation, retrained)
        console.print(_on_array(simulation), soft_wrap=True)
        console.print(_how_computed(simulation), soft_wrap=True)
        console.print(verdict, style="bold")
    left = len(simulation.chips) - len(simulation.reports)
    if left:
        console.print(f"Stopped early: {left} of {len(simulation.chips)} chips were not simulated.", style="yellow")


def deployment_line(simulation: Simulation) -> str | None:
    """What the weights were made for, and whether other chips are simulated; None for weights of no chip."""
    if simulation.retrained is not None:
        manifest = simulation.retrained.manifest
        chips, groups = _counted(len(manifest.chips), "chip"), _counted(len(manifest.groups), "group")
        return f"Weights of {simulation.retrained.path}: {chips} in {groups}, planned by {manifest.strategy}."
    deployment = simulation.deployment
    if deployment is None:
        return None
    chip, mitigation = (deployment.about.get(name) for name in ("chip", "mitigation"))
    bypassed, placed = int(deployment.bypass.sum()), len(deployment.placements)
    line = (
        f"Weights made for {chip or 'a chip without a name'}"
        f"{f' with {mitigation}' if mitigation else ''}: {bypassed:,} PEs bypassed, {placed} layers rearranged"
    )
    others = simulation.other_chips()
    if others:
        line += f"; {'this is another chip' if len(others) == 1 else f'{len(others)} other chips'}: {_some(others)}"
    return f"{line}."


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def harm_line(simulation: Simulation) -> str | None:
    """Which chips are worse for what was done about their faults; None for none of them."""
    done = list(zip(simulation.chips, simulation.reports, strict=False))
    worse = [(chip, report, report.as_is) for chip, report in done if report.made_worse and report.as_is is not None]
    if not worse:
        return None
    worse.sort(key=lambda found: found[1].accuracy.correct - found[2].correct)
    named = [f"{chip.id} {as_is.value:.1%} -> {report.accuracy.value:.1%}" for chip, report, as_is in worse]
    more = len(worse) - MOST_OTHERS_SHOWN
    listed = ", ".join(named[:MOST_OTHERS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    treatment = str(simulation.treatment)
    advice = "take them as they are" + ("" if treatment.startswith("fam") else ", or try --mitigation fam")
    chips = "chip" if len(done) == 1 else "chips"
    return (
        f"{treatment} makes {len(worse)} of {len(done)} {chips} worse than leaving their faults in: {listed}; {advice}"
    )


def _accuracy_table(simulation: Simulation) -> ResultsTable:
    from efat.cli.render import results_table

    config = simulation.config
    table = results_table(
        f"{simulation.network_name} on {simulation.data_name}, {len(simulation.images)} images; "
        f"{config.rows}x{config.cols} array, {simulation.engine} engine",
        left=["runs on"],
        right=["faulty\nPEs", "bypassed\nPEs", "accuracy", "95 %\ninterval", "changed\npredictions"],
    )
    _add_accuracy(table, "float32", "", "", simulation.float_accuracy, "")
    sign = "" if config.act_signed else "u"
    widths = f"int{config.weight_bits} x {sign}int{config.act_bits}, fault-free"
    _add_accuracy(table, widths, "0", "0", simulation.fault_free_accuracy, "0", end_section=True)
    done = list(zip(simulation.chips, simulation.reports, strict=False))
    for chip, report in done[:MOST_CHIPS_SHOWN]:
        _add_accuracy(
            table,
            chip.id,
            _faulty(chip),
            str(report.bypassed_pes),
            report.accuracy,
            f"{report.changed_predictions} ({report.changed_predictions / len(simulation.images):.1%})",
        )
    _add_rest(table, len(done))
    return table


def _retrained_table(simulation: Simulation, retrained: RetrainedLot) -> ResultsTable:
    from efat.cli.render import results_table
    from efat.confidence import bound_text

    manifest = retrained.manifest
    config = simulation.config
    # What was measured on other images, and what is required of them, does not stand beside these.
    at_retraining = ["at\nretraining", "required", "passes"] if retrained.same_images else []
    table = results_table(
        f"{simulation.network_name} on {simulation.data_name}, {len(simulation.images)} images; "
        f"{config.rows}x{config.cols} array, {simulation.engine} engine",
        left=["chip", "weights of"],
        right=["faulty\nPEs", "bypassed\nPEs", "weights,\nfault-free", "on\nthe chip", "at least", *at_retraining],
    )
    done = list(zip(simulation.chips, simulation.reports, strict=False))
    for chip, report in done[:MOST_CHIPS_SHOWN]:
        found = manifest.chip_named[chip.id]
        row = [
            chip.id,
            found.group,
            _faulty(chip),
            str(report.bypassed_pes),
            f"{simulation.fault_free[found.group].value:.1%}",
            f"{report.accuracy.value:.1%}",
            bound_text(report.accuracy.at_least),
        ]
        if retrained.same_images:
            fractions = (count / manifest.images for count in (found.correct, manifest.required))
            row += [*(f"{fraction:.1%}" for fraction in fractions), "yes" if retrained.passes(report) else "no"]
        table.add_row(*row)
    _add_rest(table, len(done))
    return table


def _faulty(chip: Chip) -> str:
    faulty = int(chip.faults.faulty_pes().sum())
    return f"{faulty} ({faulty / chip.faults.config.pe_count:.2%})"


def _add_rest(table: ResultsTable, done: int) -> None:
    if done > MOST_CHIPS_SHOWN:
        table.add_note(f"... and {done - MOST_CHIPS_SHOWN:,} more chips: --json has them all")


def _add_accuracy(
    table: ResultsTable,
    name: str,
    faulty: str,
    bypassed: str,
    accuracy: Accuracy | None,
    changed: str,
    *,
    end_section: bool = False,
) -> None:
    if accuracy is not None:
        low, high = accuracy.interval
        interval = f"{low:.1%} .. {high:.1%}"
        table.add_row(name, faulty, bypassed, f"{accuracy.value:.1%}", interval, changed, end_section=end_section)


def _layer_table(simulation: Simulation) -> ResultsTable:
    from efat.cli.render import results_table

    chips = len(simulation.reports)
    others = "" if _same_cycles(simulation) else ", cycles those of the slowest"
    table = results_table(
        "Layers" + (f"; changes are those of all {chips} chips{others}" if chips > 1 else ""),
        left=["layer"],
        right=[
            "GEMM\nM x K x N",
            "folds",
            "cycles,\nserial",
            "double-\nbuffered",
            "utilisation",
            "outputs\nchanged",
            "largest\nchange",
        ],
    )
    for of_chips in zip(*(report.layers for report in simulation.reports), strict=True):
        # Where operands sit differs between chips that have weights of their own groups; with it the cycles.
        layer: LayerReport = max(of_chips, key=lambda report: report.serial_cycles)
        changed = sum(report.outputs_changed for report in of_chips)
        outputs = sum(report.outputs for report in of_chips)
        table.add_row(
            layer.name,
            f"{layer.m} x {layer.k} x {layer.n}",
            str(layer.folds),
            f"{layer.serial_cycles:,}",
            f"{layer.double_buffered_cycles:,}",
            f"{layer.utilisation(simulation.config):.1%}",
            f"{changed / outputs:.2%}",
            f"{max(report.largest_change for report in of_chips):,}",
        )
    return table


def _totals(simulation: Simulation, clock_mhz: float) -> str:
    report = max(simulation.reports, key=lambda report: report.serial_cycles)
    parts = []
    for name, cycles in (("serial", report.serial_cycles), ("double-buffered", report.double_buffered_cycles)):
        parts.append(f"{cycles:,} cycles {name} ({_duration(simulation.latency_ms(cycles, clock_mhz))} per image)")
    which = "Each chip" if _same_cycles(simulation) else "The slowest chip"
    return (
        f"{which}, {len(simulation.images)} images in batches of {simulation.batch}, at {clock_mhz:g} MHz:\n"
        f"{', '.join(parts)}.\n"
    )


def _same_cycles(simulation: Simulation) -> bool:
    return len({tuple(layer.serial_cycles for layer in report.layers) for report in simulation.reports}) == 1


def _duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.3g} us"


def _verdict(simulation: Simulation) -> str:
    reference = simulation.fault_free_accuracy
    assert reference is not None
    drops = [reference.value - report.accuracy.value for report in simulation.reports]
    worst = max(range(len(drops)), key=drops.__getitem__)
    mean = sum(report.accuracy.value for report in simulation.reports) / len(drops)
    within = sum(drop <= 0.01 for drop in drops)
    how = "with broken PEs bypassed" if simulation.bypass else "as they are"
    if simulation.mitigation is not None:
        how = f"with {simulation.mitigation}"
    if simulation.deployment is not None and not simulation.bypass:
        how = "with the PEs bypassed that the weights are for"
    unusable = sum(len(chip.faults.unusable_columns()) > 0 for chip in simulation.chips[: len(drops)])
    chips = "chip stays" if len(drops) == 1 else "chips stay"
    text = (
        f"{within} of {len(drops)} {chips} within 1 point of the fault-free {reference.value:.1%}, {how}.\n"
        f"Accuracy on them: {mean:.1%} in the mean, {reference.value - drops[worst]:.1%} on the worst "
        f"({simulation.chips[worst].id})."
    )
    if len(simulation.images) < 100:
        text += f"\nOf {len(simulation.images)} images one is more than a point: too few to tell chips apart so finely."
    if simulation.bypass and unusable:
        has = "chip has" if unusable == 1 else "chips have"
        text += f"\n{unusable} {has} broken column accumulators, which no bypass hides."
    return text


def _retrained_verdict(simulation: Simulation, retrained: RetrainedLot) -> str:
    from efat.confidence import bound_text

    manifest, reports = retrained.manifest, simulation.reports
    chips = simulation.chips[: len(reports)]
    worst = min(range(len(reports)), key=lambda number: reports[number].accuracy.correct)
    mean = sum(report.accuracy.value for report in reports) / len(reports)
    found = reports[worst].accuracy
    shown = (
        f"Accuracy on {found.images:,} images: {mean:.1%} in the mean, {found.value:.1%} on the worst chip "
        f"({chips[worst].id}), at least {bound_text(found.at_least)} with 95 % confidence."
    )
    if not retrained.same_images:
        others = f"Other images than the {manifest.images:,} that verified the lot, of which the constraint is said."
        return f"{shown}\n{others}"
    passing = sum(retrained.passes(report) is True for report in reports)
    different = [
        chip.id
        for chip, report in zip(chips, reports, strict=True)
        if report.accuracy.correct != manifest.chip_named[chip.id].correct
    ]
    verb = "classifies" if len(reports) == 1 else "classify"
    return (
        f"{passing} of {len(reports)} {'chip' if len(reports) == 1 else 'chips'} {verb} as many images correctly as "
        f"required: {manifest.required:,} of {manifest.images:,} unseen images.\n{shown}\n"
        + (f"Not as at the retraining: {_some(different)}." if different else "All as measured at the retraining.")
    )


def _on_array(simulation: Simulation) -> str:
    """How much of the network the chips are behind, and what computes in float without any faults."""
    share = simulation.share
    assert share is not None
    if not share.in_float:
        return "All multiply-accumulates run on the array."
    named = [f"{name or 'the forward of the network'} ({count:,})" for name, count in share.in_float.items()]
    more = len(named) - MOST_MODULES_SHOWN
    places = ", ".join(named[:MOST_MODULES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    percent = f"{share.value:.1%}" if share.value < 0.9995 else "More than 99.9%"
    left = sum(share.in_float.values())
    return f"{percent} of the multiply-accumulates run on the array; {left:,} per image stay in float: {places}."


def _how_computed(simulation: Simulation) -> str:
    """Which engine the numbers are from, and what was compared with the other one."""
    if simulation.engine == "cycle":
        return "Computed on the cycle engine, register by register."
    images = simulation.cycle_images
    if not images:
        return "Emulated bit for bit; nothing was compared with the cycle engine."
    chips, which = len(simulation.reports), "all images" if images == len(simulation.images) else "the first image"
    if 1 < images < len(simulation.images):
        which = f"the first {images} images"
    of = "of each chip" if chips > 1 else "of the chip"
    return f"Emulated bit for bit; the cycle engine gives the same outputs on {which} {of}."


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MOST_OTHERS_SHOWN]) + (", ..." if len(ids) > MOST_OTHERS_SHOWN else "")
