"""The `efat` command. Commands are imported when they run, so that help and completion answer at once."""

from __future__ import annotations

import click

from efat.cli.group import LazyGroup


@click.group(
    cls=LazyGroup,
    commands={
        "chips": ("efat.cli.commands.chips:chips", "Make, show, import and export lots of faulty chips."),
        "cycles": ("efat.cli.commands.cycles:cycles", "Count clock cycles and memory traffic of a network's layers."),
        "explain": ("efat.cli.commands.explain:explain", "Find the faults of a chip that cause what it does wrong."),
        "multiplier": ("efat.cli.commands.multiplier:multiplier", "Show multipliers and what faults inside them do."),
        "plan": (
            "efat.cli.commands.plan:plan",
            "Plan the retraining of a lot: which chips share one, and how long it is.",
        ),
        "propagate": (
            "efat.cli.commands.propagate:propagate",
            "Inject single faults, and follow them through a network.",
        ),
        "report": (
            "efat.cli.commands.report:report",
            "Write a page about a retrained lot, or about how faults travel.",
        ),
        "retrain": ("efat.cli.commands.retrain:retrain", "Carry out a plan for a lot, and verify every chip."),
        "resilience": (
            "efat.cli.commands.resilience:resilience",
            "Measure how much retraining random faulty chips need.",
        ),
        "retrain-chip": (
            "efat.cli.commands.retrain_chip:retrain_chip",
            "Retrain a network for one faulty chip, and prove it works there.",
        ),
        "simulate": (
            "efat.cli.commands.simulate:simulate",
            "Classify images on faulty chips, and show what the faults change.",
        ),
        "validate": ("efat.cli.commands.validate:validate", "Compare emulation, cycle engine and RTL, bit for bit."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Start here:
  efat chips generate --array 32x32 --count 5 --fault-rate 0.001:0.05 -o lot.h5
  efat chips show lot.h5
  efat simulate --network digits-cnn --lot lot.h5

\b
Completion in the shell (bash; zsh and fish likewise):
  eval "$(_EFAT_COMPLETE=bash_source efat)"
""",
)
@click.version_option(package_name="efat", message="efat %(version)s")
def main() -> None:
    """Neural networks on accelerators with broken processing elements.

    Chips with systolic arrays come back from test with broken processing elements (PEs). efat simulates such chips bit
    by bit and shows what their faults do to a network.
    """
