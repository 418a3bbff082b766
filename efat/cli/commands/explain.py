"""`efat explain`: which faults of a chip cost accuracy, and which ones spoil an image, where and when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

import efat
from efat.cli.options import (
    NetworkRequest,
    calibration_option,
    check_json,
    fail,
    json_option,
    lot_option,
    manifest_option,
    network_options,
    write_json,
)
from efat.cli.parameters import complete_chips
from efat.cli.printing import say, this_command, warn_of_guessing

if TYPE_CHECKING:
    from rich.console import Console

    from efat import Comparison, Explanation, FaultCost, ImageExplanation
    from efat.cli.render import ResultsTable
    from efat.explanation.bypass_costs import BypassCosts
    from efat.explanation.first_divergence import FirstDivergence
    from simulator.faults import Fault
    from training.calibration import Method


@click.command(
    epilog="""\b
Examples:
  efat chips generate --array 32x32 --count 5 --fault-rate 0.01 -o lot.h5
  efat explain --network digits-cnn --lot lot.h5 --chip chip-0003
  efat explain --network digits-cnn --lot lot.h5 --chip chip-0003 --image 17 --image 40
  efat explain --network digits-cnn --lot lot.h5 --chip chip-0003 --bypass --images 360 --json why.json
  efat explain --manifest out/manifest.json --lot lot.h5 --chip chip-0003
"""
)
@network_options()
@manifest_option
@lot_option
@click.option("--chip", shell_complete=complete_chips, required=True, metavar="ID", help="Chip to explain.")
@click.option(
    "--image",
    "chosen",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="K",
    help="Test image to explain, counted from 0; repeatable. Without --images nothing else is done.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave out each fault on the first N test images.  [default: 100, or none with --image]",
)
@click.option(
    "--bypass",
    is_flag=True,
    help="Bypass the PEs that the faults require, beside those that the chip's fuses bypass already.",
)
@calibration_option(
    "How the activations' scales are chosen; retrained weights bring theirs.  [default: max]", default=None
)
@json_option("everything found")
def explain(
    subject: NetworkRequest,
    manifest: Path | None,
    lot: Path,
    chip: str,
    chosen: tuple[int, ...],
    images: int | None,
    bypass: bool,
    calibration: str | None,
    json_path: Path | None,
) -> None:
    """Find out which faults of a chip cause what it does wrong.

    Shown is first what each fault costs: the accuracy of the chip without this one fault, and that of a chip which has
    no other, with the images that are classified otherwise.

    If PEs are bypassed, those are ranked next by what their bypass costs: the accuracy of the chip with this one PE in
    use, faults and all, and the margin by which the right class wins; and the accuracy with the first of them in use.

    With --image it is asked why this one image is classified otherwise than on a fault-free array. Shown is a set of
    faults that by themselves give the same prediction and none of which can be left out; for each of them the layer,
    fold and clock cycle in which it first acts, and what is on its net then; and what the error does in every layer.

    Networks run on the emulation, which computes what the array does, bit for bit. What is bypassed stays bypassed
    whatever is left out. Ctrl-C stops and still shows what was found so far.
    """
    check_json(json_path, inputs=[lot, *subject.inputs, *([] if manifest is None else [manifest])])
    if manifest is None:
        subject.warn()
    from efat.cli.render import console, working

    with working("Loading, quantising and calibrating"):
        from efat.cli.commands.simulate import deployment_line

        _check_manifest(subject, manifest, bypass, calibration)
        explanation = efat.explain(
            subject.network,
            lot,
            chip,
            image=chosen,
            images=images,
            manifest=manifest,
            weights=subject.weights,
            data=subject.data,
            normalization=None if manifest is not None else subject.normalization,
            bypass=bypass,
            calibration=cast("Method | None", calibration),
            run=False,
        )
        simulation = explanation.simulation
    line = deployment_line(simulation)
    if line is not None:
        say(line)
    interrupted = False
    try:
        _run(explanation, tuple(dict.fromkeys(chosen)), measured=images is not None or not chosen)
    except KeyboardInterrupt:
        interrupted = True
    clean = explanation.fault_free
    warn_of_guessing("the quantised network", None if clean is None else clean.accuracy, simulation.classes)
    show_explanation(explanation, console(), complete=not interrupted)
    if json_path is not None:
        write_json(json_path, explanation.as_dict(complete=not interrupted))
    if interrupted:
        raise KeyboardInterrupt


def _check_manifest(subject: NetworkRequest, manifest: Path | None, bypass: bool, calibration: str | None) -> None:
    if manifest is not None:
        given = {
            "--weights": subject.weights is not None,
            "--calibration": calibration is not None,
            "--bypass": bypass,
            "--normalize": subject.normalize is not None,
        }
        for option in (option for option, is_given in given.items() if is_given):
            fail(f"--manifest says what each chip runs and what is bypassed for it: leave out {option}")
    elif subject.network is None:
        fail("choose a network with --network, or a lot that was retrained with --manifest")


def _run(explanation: Explanation, chosen: tuple[int, ...], *, measured: bool) -> None:
    from efat.cli.render import progress_bar, rate_bar

    if measured:
        with progress_bar("images", explanation.steps) as progress:
            explanation.measure(progress)
        if explanation.bypass.places:
            with progress_bar("images with a bypassed PE in use", explanation.bypass.steps) as progress:
                explanation.bypass.measure(progress)
    for image in chosen:
        with rate_bar(f"sets of faults for image {image}", None) as tried:
            explanation.explain(image, tried)


SURE = 0.05
"""Chance that a fault is said to cost something and does not."""

MOST_FAULTS_SHOWN = 20
MOST_IMAGES_SHOWN = 12

_NETS = {
    "WEIGHT": "the weight",
    "WEIGHT_LOAD": "the weight being loaded",
    "ACTIVATION": "the activation",
    "PRODUCT": "the product",
    "PSUM": "the sum",
    "MULTIPLIER": "the product",
    "ACCUMULATOR": "the sum to be stored",
}


def show_explanation(explanation: Explanation, console: Console, *, complete: bool) -> None:
    """Print everything found; `complete` says whether it is all that was asked for."""
    console.print(_chip_line(explanation), soft_wrap=True)
    if explanation.on_chip is not None:
        console.print(_accuracy_table(explanation))
        if explanation.costs:
            console.print(_cost_table(explanation))
        more = len(explanation.costs) - MOST_FAULTS_SHOWN
        if more > 0:
            console.print(f"... and {more:,} more: --json has them all\n")
        console.print(_verdict(explanation, explanation.on_chip), style="bold", soft_wrap=True)
        show_bypass(explanation.bypass, console)
    for found in explanation.explained:
        console.print()
        _show_image(explanation, found, console)
    if not complete:
        console.print(_stopped(explanation), style="yellow", soft_wrap=True)


def fault_name(fault: Fault) -> str:
    """A fault in words.

    >>> from simulator import Fault, Kind, Site
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


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _chip_line(explanation: Explanation) -> str:
    config, subsets = explanation.subsets.config, explanation.subsets
    line = f"Chip {explanation.chip_id}, {config.rows}x{config.cols}: {_counted(len(explanation.faults), 'fault')}"
    bypassed, unused = (subsets.hidden.count(why) for why in ("bypassed", "unused column"))
    if bypassed:
        line += f", {bypassed:,} of them hidden by the bypass of {_counted(subsets.bypassed_pes, 'PE')}"
    elif subsets.bypassed_pes:
        line += f", {_counted(subsets.bypassed_pes, 'PE')} bypassed"
    if unused:
        line += f", {unused:,} in columns that no layer uses"
    return f"{line}."


def _accuracy_table(explanation: Explanation) -> ResultsTable:
    from efat.cli.render import results_table

    simulation = explanation.simulation
    table = results_table(
        f"{simulation.network_name} on {simulation.data_name}, {_counted(explanation.images, 'image')}",
        left=["runs on"],
        right=["accuracy", "95 %\ninterval", "predictions changed\nfrom the row above"],
    )
    named = {"a fault-free array": explanation.fault_free}
    if explanation.subsets.bypassed_pes:
        named["the chip without faults, PEs bypassed"] = explanation.without_faults
    named["the chip"] = explanation.on_chip
    for name, found in named.items():
        assert found is not None
        low, high = found.accuracy.interval
        changed = "" if found is explanation.fault_free else str(len(found.changed))
        table.add_row(name, f"{found.accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}", changed)
    return table


def _cost_table(explanation: Explanation) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table(
        "Faults that may act; left out: the chip without this one; alone: without the others",
        left=["place", "net", "bit", "value"],
        right=["left out:\naccuracy", "images\ngained", "\nlost", "alone:\naccuracy", "images\ngained", "\nlost"],
    )
    for cost in explanation.ranked[:MOST_FAULTS_SHOWN]:
        fault = explanation.faults[cost.index]
        table.add_row(
            _place(fault),
            fault.site.name,
            _bit(fault),
            _kind(fault),
            *(cell for found in (cost.left_out, cost.alone) for cell in _cells(found)),
        )
    return table


def _cells(found: Comparison) -> list[str]:
    return [f"{found.accuracy.value:.1%}", str(found.gained), str(found.lost)]


def _verdict(explanation: Explanation, on_chip: Comparison) -> str:
    if not explanation.subsets.acting:
        why = "The chip has no faults" if not explanation.faults else "No fault of the chip can act"
        return f"{why}: there is nothing to leave out."
    images = [each.image for each in on_chip.changed]
    if not images:
        return "The faults change no prediction."
    shown = ", ".join(map(str, images[:MOST_IMAGES_SHOWN])) + (", ..." if len(images) > MOST_IMAGES_SHOWN else "")
    lines = [f"The faults change the predictions of images {shown}."]
    if images[0] not in [found.image for found in explanation.explained]:
        lines.append(f"To see how: {this_command('--image', str(images[0]))}")
    if explanation.costs:
        lines.insert(0, _costliest(explanation, explanation.ranked[0]))
    return "\n".join(lines)


def _costliest(explanation: Explanation, cost: FaultCost) -> str:
    net = cost.left_out.gained - cost.left_out.lost
    if net <= 0:
        return "Leaving out one fault alone makes nothing better: what is lost, several of them cost together."
    name = fault_name(explanation.faults[cost.index])
    gain = f"without it {net} more of {explanation.images} images would be right"
    # The best of many is good by chance, too.
    if cost.left_out.better_by_chance() * len(explanation.costs) > SURE:
        return f"{name} costs most on these images: {gain}. Too few to be sure that it costs anything on others."
    return f"{name} costs most: {gain}."


def _show_image(explanation: Explanation, found: ImageExplanation, console: Console) -> None:
    console.print(_image_line(found), style="bold", soft_wrap=True)
    if found.cause != "faults":
        return
    count = len(found.faults)
    which = "this one alone gives" if count == 1 else f"these {count} by themselves give"
    console.print(
        f"Of {_counted(len(explanation.subsets.acting), 'fault')} that may act {which} class {found.on_chip}, "
        f"and {'it cannot' if count == 1 else 'none of them can'} be left out ({found.runs} sets were tried):",
        soft_wrap=True,
    )
    for action in found.actions:
        fault = explanation.faults[action.index]
        console.print(f"  {fault_name(fault)}", style="bold")
        if action.first is not None:
            console.print(_first_lines(fault, action.first), soft_wrap=True)
        if count > 1:
            console.print(f"    without it the others give class {action.travel.before}")
    console.print(_travel_table(explanation, found))


def _image_line(found: ImageExplanation) -> str:
    line = f"Image {found.image} of class {found.label}: class {found.on_chip} on the chip"
    if found.cause == "none":
        right = "right" if found.on_chip == found.label else "wrong, but not because of faults"
        return f"{line}, as on a fault-free array: {right}. There is nothing to explain."
    line += f", class {found.fault_free} on a fault-free array"
    if found.cause == "bypass":
        return f"{line}. So it is without any fault: the bypassed PEs are the cause."
    if found.without_faults != found.fault_free:
        line += f", class {found.without_faults} on the chip without its faults but with its PEs bypassed"
    return f"{line}."


def _first_lines(fault: Fault, first: FirstDivergence) -> str:
    group = f", group {first.group}" if first.group else ""
    stored = first.stored
    return (
        f"    first acts in layer {first.layer}{group}, fold {first.fold}, clock cycle {first.cycle:,}: "
        f"{_NETS[fault.site.name]} is {first.became:,} instead of {first.was:,};\n"
        f"    in cycle {stored.cycle:,} output {stored.output} of row {stored.row_of_x} of X is stored as "
        f"{stored.became:,} instead of {stored.was:,}"
    )


def _travel_table(explanation: Explanation, found: ImageExplanation) -> ResultsTable:
    """What the faults change in each layer, and what each of them does beside the others."""
    from efat.cli.render import results_table

    assert found.travel is not None
    scores = _counted(found.travel.scores_changed, "score")
    table = results_table(
        f"The way of the error, which changes {scores} of {found.travel.scores} in the end",
        left=["changed by", "layer"],
        right=["outputs\nchanged", "of", "pattern", "largest\nerror"],
    )
    named = {"them, against no faults": found.travel}
    if len(found.actions) == 1:
        named = {fault_name(explanation.faults[found.faults[0]]): found.travel}
    else:
        named |= {fault_name(explanation.faults[action.index]): action.travel for action in found.actions}
    for name, way in named.items():
        for place, layer in enumerate(way.layers):
            table.add_row(
                "" if place else name,
                layer.layer,
                f"{layer.changed:,}",
                f"{layer.outputs:,}",
                layer.pattern,
                f"{layer.largest_error:,}",
                end_section=place == len(way.layers) - 1,
            )
    return table


def _stopped(explanation: Explanation) -> str:
    if explanation.on_chip is None and not explanation.explained:
        return "Stopped before anything was found."
    left = len(explanation.subsets.acting) - len(explanation.costs)
    if explanation.on_chip is not None and left:
        return f"Stopped early: {_counted(left, 'fault')} of {len(explanation.subsets.acting)} not left out yet."
    unknown = len(explanation.bypass.places) - len(explanation.bypass.costs)
    if explanation.on_chip is not None and unknown:
        return f"Stopped early: {unknown:,} of {_counted(len(explanation.bypass.places), 'bypassed PE')} not tried yet."
    return "Stopped early: not all images are explained."


MOST_PES_SHOWN = 20


def show_bypass(found: BypassCosts, console: Console) -> None:
    """Print all that was found of them."""
    if not found.costs:
        return
    console.print()
    console.print(_bypass_cost_table(found))
    if found.releases:
        console.print(_release_table(found))
    console.print(_bypass_verdict(found), style="bold", soft_wrap=True)


def _bypass_cost_table(found: BypassCosts) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table(
        "Bypassed PEs; in use: the chip with this one not bypassed",
        left=["place", "bypassed for"],
        right=["in use:\naccuracy", "images\ngained", "\nlost", "margin\ngained"],
    )
    for cost in found.ranked[:MOST_PES_SHOWN]:
        margin = "-" if cost.margin is None else f"{cost.margin:+.3g}"
        table.add_row(f"PE {cost.row},{cost.col}", cost.reason, *_cells(cost.in_use), margin)
    more = len(found.costs) - MOST_PES_SHOWN
    if more > 0:
        table.add_note(f"... and {more:,} more: --json has them all")
    return table


def _release_table(found: BypassCosts) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table(
        "The first of them in use together", left=["PEs in use"], right=["accuracy", "images\ngained", "\nlost"]
    )
    for release in found.releases:
        table.add_row(f"{release.pes:,}", *_cells(release.in_use))
    return table


def _bypass_verdict(found: BypassCosts) -> str:
    worst, best = found.ranked[0], found.best
    images = worst.in_use.accuracy.images
    if best is None:
        return "No bypass costs images: none of the PEs tried does better in use."
    before = best.in_use.accuracy.correct - best.in_use.gained + best.in_use.lost
    which = f"the first {best.pes:,} PEs" if best.pes > 1 else f"PE {worst.row},{worst.col}"
    return (
        f"With {which} in use instead of bypassed, {best.in_use.accuracy.value:.1%} of {images:,} images are right "
        f"instead of {before / images:.1%}."
    )
