"""What `efat simulate` shows: accuracy by chip, a row for each layer, totals, and the result in a sentence."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from efat.cli.render import results_table
from efat.inference import Accuracy, LayerReport
from efat.simulation import Simulation

MOST_CHIPS_SHOWN = 40
MOST_OTHERS_SHOWN = 3
LONGEST_TEXT = 64


def show_simulation(simulation: Simulation, clock_mhz: float, console: Console) -> None:
    """Print everything measured so far."""
    line = deployment_line(simulation)
    if line is not None:
        console.print(line, soft_wrap=True)
    console.print(_accuracy_table(simulation))
    if simulation.reports:
        console.print(_layer_table(simulation))
        console.print(_totals(simulation, clock_mhz))
        console.print(_verdict(simulation), style="bold")
    left = len(simulation.chips) - len(simulation.reports)
    if left:
        console.print(f"Stopped early: {left} of {len(simulation.chips)} chips were not simulated.", style="yellow")


def deployment_line(simulation: Simulation) -> str | None:
    """Which chip the weights were made for, and whether others are simulated; None for weights of no chip."""
    deployment = simulation.deployment
    if deployment is None:
        return None
    chip, mitigation = (_shown(deployment.about.get(name)) for name in ("chip", "mitigation"))
    bypassed, placed = int(deployment.bypass.sum()), len(deployment.placements)
    line = (
        f"Weights made for {chip or 'a chip without a name'}"
        f"{f' with {mitigation}' if mitigation else ''}: {bypassed:,} PEs bypassed, {placed} layers rearranged"
    )
    others = simulation.other_chips()
    if others:
        named = ", ".join(others[:MOST_OTHERS_SHOWN]) + (", ..." if len(others) > MOST_OTHERS_SHOWN else "")
        line += f"; {'this is another chip' if len(others) == 1 else f'{len(others)} other chips'}: {named}"
    return f"{line}."


def _shown(text: str | None) -> str:
    """A text from a file, fit for a line on a terminal."""
    found = "".join(character if character.isprintable() else "?" for character in text or "")
    return found if len(found) <= LONGEST_TEXT else f"{found[:LONGEST_TEXT]}..."


def _accuracy_table(simulation: Simulation) -> Table:
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
        faulty = int(chip.faults.faulty_pes().sum())
        _add_accuracy(
            table,
            chip.id,
            f"{faulty} ({faulty / config.pe_count:.2%})",
            str(simulation.bypassed(chip)),
            report.accuracy,
            f"{report.changed_predictions} ({report.changed_predictions / len(simulation.images):.1%})",
        )
    if len(done) > MOST_CHIPS_SHOWN:
        table.add_row(f"... and {len(done) - MOST_CHIPS_SHOWN} more chips: --json has them all")
    return table


def _add_accuracy(
    table: Table,
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


def _layer_table(simulation: Simulation) -> Table:
    chips = len(simulation.reports)
    table = results_table(
        "Layers" + (f"; changes are those of all {chips} chips" if chips > 1 else ""),
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
        layer: LayerReport = of_chips[0]
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
    report = simulation.reports[0]
    parts = []
    for name, cycles in (("serial", report.serial_cycles), ("double-buffered", report.double_buffered_cycles)):
        parts.append(f"{cycles:,} cycles {name} ({_duration(simulation.latency_ms(cycles, clock_mhz))} per image)")
    return (
        f"Each chip, {len(simulation.images)} images in batches of {simulation.batch}, at {clock_mhz:g} MHz:\n"
        f"{', '.join(parts)}.\n"
    )


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
    how = "with their broken PEs bypassed" if simulation.bypass else "as they are"
    if simulation.deployment is not None and not simulation.bypass:
        how = "with the PEs bypassed that the weights are for"
    unusable = sum(len(chip.faults.unusable_columns()) > 0 for chip in simulation.chips[: len(drops)])
    chips = "chip stays" if len(drops) == 1 else "chips stay"
    text = (
        f"{within} of {len(drops)} {chips} within 1 point of the fault-free {reference.value:.1%}, {how}.\n"
        f"Accuracy on them: {mean:.1%} in the mean, {reference.value - drops[worst]:.1%} on the worst "
        f"({simulation.chips[worst].id})."
    )
    if simulation.bypass and unusable:
        text += f"\n{unusable} chips have broken column accumulators, which no bypass hides."
    return text
