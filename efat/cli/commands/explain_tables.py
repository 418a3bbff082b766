"""What `efat explain` shows: faults by what they cost, and for each image those behind it and the way of the error."""

from __future__ import annotations

from rich.console import Console

from efat import Comparison, Explanation, FaultCost, ImageExplanation
from efat.cli.commands.bypass_tables import show_bypass
from efat.cli.printing import this_command
from efat.cli.render import ResultsTable, results_table
from efat.explanation.first_action import FirstAction
from simulator.faults import Fault, Kind, Site

SURE = 0.05
"""Chance that a fault is said to cost something and does not."""

MOST_FAULTS_SHOWN = 20
MOST_IMAGES_SHOWN = 12

_NETS = {
    Site.WEIGHT: "the weight",
    Site.WEIGHT_LOAD: "the weight being loaded",
    Site.ACTIVATION: "the activation",
    Site.PRODUCT: "the product",
    Site.PSUM: "the sum",
    Site.MULTIPLIER: "the product",
    Site.ACCUMULATOR: "the sum to be stored",
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

    >>> fault_name(Fault(3, 5, Site.PSUM, 23, Kind.STUCK_AT_1))
    'PE 3,5 PSUM bit 23 stuck at 1'
    """
    return f"{_place(fault)} {fault.site.name} {_bit(fault)} {_kind(fault)}"


def _place(fault: Fault) -> str:
    return f"column {fault.col}" if fault.site is Site.ACCUMULATOR else f"PE {fault.row},{fault.col}"


def _bit(fault: Fault) -> str:
    return f"{'location' if fault.site is Site.MULTIPLIER else 'bit'} {fault.bit}"


def _kind(fault: Fault) -> str:
    return f"stuck at {int(fault.kind is Kind.STUCK_AT_1)}"


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


def _first_lines(fault: Fault, first: FirstAction) -> str:
    group = f", group {first.group}" if first.group else ""
    stored = first.stored
    return (
        f"    first acts in layer {first.layer}{group}, fold {first.fold}, clock cycle {first.cycle:,}: "
        f"{_NETS[fault.site]} is {first.became:,} instead of {first.was:,};\n"
        f"    in cycle {stored.cycle:,} output {stored.output} of row {stored.row_of_x} of X is stored as "
        f"{stored.became:,} instead of {stored.was:,}"
    )


def _travel_table(explanation: Explanation, found: ImageExplanation) -> ResultsTable:
    """What the faults change in each layer, and what each of them does beside the others."""
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
