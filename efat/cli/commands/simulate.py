"""`efat simulate`: a network classifies images on the chips of a lot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import efat
from efat.cli.learning_options import SplitOptions, split_options
from efat.cli.options import (
    NetworkRequest,
    bypass_option,
    calibration_or_weights_option,
    check_json,
    check_manifest_alone,
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
from efat.cli.waveform import waveform_options, write_waveform

if TYPE_CHECKING:
    from efat import Simulation

MOST_NAMED = 3


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
@bypass_option
@click.option(
    "--mitigation",
    shell_complete=complete_deployments,
    metavar="NAME",
    help="What is done about the broken PEs of each chip without retraining, as for efat retrain-chip: none, fap, fam, "
    "fam-rows or fam-columns, and then +bn.",
)
@calibration_or_weights_option
@click.option(
    "--clock-mhz",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MHZ",
    default=700.0,
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
    json_path: Path | None,
    waveform: dict[str, Any] | None,
    **how: Any,
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
    check_manifest_alone(
        manifest,
        subject,
        {
            **{f"--{name}": how[name] for name in ("calibration", "bypass", "mitigation")},
            **dict.fromkeys(split.given, True),
        },
    )
    if how["cycle_images"] is not None and how["engine"] == "cycle":
        fail("--engine cycle runs all images on the cycle engine: leave out --cycle-images")
    inputs = [lot, manifest, *subject.inputs]
    check_json(json_path, inputs=inputs)
    if waveform is not None:
        if json_path is not None:
            fail("--vcd writes a waveform and measures nothing for --json: leave one of them out")
        if how["cycle_images"] is not None:
            fail("--vcd writes a waveform and compares nothing: leave out --cycle-images")
        check_output(waveform["path"], inputs=inputs)
    from efat.cli.render import progress_bars, show, working

    with working("Loading, quantising and calibrating"):
        simulation = efat.simulate(
            lot=lot,
            manifest=manifest,
            split=split.request() if split.given else None,
            **subject.arguments,
            **how,
            run=False,
        )
    if how["threads"] is not None:
        import torch

        # The emulation has as many threads as torch.
        torch.set_num_threads(how["threads"])
    if waveform is not None:
        for line in simulation.about_weights():
            say(line)
        write_waveform(simulation, waveform)
        return
    interrupted = False
    bars = {"images": simulation.steps, "on the cycle engine": simulation.cycle_steps}
    with progress_bars(bars) as (progress, checked):
        try:
            simulation.run(progress, checked)
        except KeyboardInterrupt:
            interrupted = True
        except efat.EngineMismatchError as error:
            raise click.ClickException(f"{error}: a bug in eFAT; do not trust its results") from None
    _warn_of_guessing(simulation)
    _warn_of_harm(simulation)
    show(simulation)
    if json_path is not None:
        write_json(json_path, simulation.as_dict())
    if interrupted:
        raise KeyboardInterrupt


def _warn_of_guessing(simulation: Simulation) -> None:
    classes = simulation.data.classes
    if warn_of_guessing("the float network", simulation.float_accuracy, classes):
        return
    for group, accuracy in simulation.fault_free.items():
        what = f"the quantised network of group {group}" if group else "the quantised network"
        warn_of_guessing(what, accuracy, classes)


def _warn_of_harm(simulation: Simulation) -> None:
    """Say which chips are worse for what was done about their faults."""
    worse = [
        (chip, as_is, report.accuracy)
        for chip, report in simulation.done
        if (as_is := report.as_is) is not None and as_is.correct > report.accuracy.correct
    ]
    if not worse:
        return
    worse.sort(key=lambda found: found[2].correct - found[1].correct)
    named = [f"{chip.id} {as_is.value:.1%} -> {accuracy.value:.1%}" for chip, as_is, accuracy in worse]
    more = len(worse) - MOST_NAMED
    listed = ", ".join(named[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    treatment, done = str(simulation.treatment), len(simulation.reports)
    advice = "take them as they are" + ("" if treatment.startswith("fam") else ", or try --mitigation fam")
    warn(
        f"{treatment} makes {len(worse)} of {done} {'chip' if done == 1 else 'chips'} worse than leaving their faults "
        f"in: {listed}; {advice}"
    )
