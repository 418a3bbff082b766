"""`efat propagate`: what single faults of an array do on their way through a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from efat.cli.group import INTERRUPTED
from efat.cli.learning_options import WorkerRequest, worker_options
from efat.cli.machine_options import ArrayRequest, array_options
from efat.cli.options import (
    NetworkRequest,
    array_of_lot_option,
    calibration_option,
    check_json,
    fail,
    json_option,
    network_options,
    write_json,
)
from efat.cli.parameters import INPUT_FILE
from efat.cli.printing import note, say, warn_of_guessing
from efat.cli.propagation_options import PropagationRequest, propagation_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from efat.campaigns.campaign import Executor, Outcome, Unit, Work
    from efat.propagation.request import Request
    from simulator import ArrayConfig
    from training.calibration import Method


@click.command(
    epilog="""\b
Examples:
  efat propagate --network digits-cnn --array 16x16 -o prop/
  efat propagate --network digits-cnn --array 16x16 --site psum --bit psum=0-15 --exhaustive -o psum/
  efat propagate --network digits-cnn --array 16x16 --kind flip --images 100 --margin 0.01 -o flips/
  efat propagate --network lenet5 --weights lenet5.safetensors --lot lot.h5 --samples 20000 --json - -o lenet/
"""
)
@network_options(
    weights="Its weights.  [default: the network's]", data="Images to classify, as for efat simulate.", required=True
)
@array_options(required=False)
@array_of_lot_option
@propagation_options
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Test images to classify, the first ones.  [default: 64, or all if there are fewer]",
)
@calibration_option("How the activations' scales are chosen; retrained weights bring theirs.")
@worker_options
@click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FOLDER", help="Folder to write into.")
@json_option("the summary")
def propagate(
    subject: NetworkRequest,
    described: ArrayRequest | None,
    lot: Path | None,
    asked: PropagationRequest,
    images: int | None,
    calibration: str,
    workers: WorkerRequest,
    output: Path,
    json_path: Path | None,
) -> None:
    """Inject single faults into an array, and follow what they do to a network.

    Faults are drawn at random from all bits of all nets, or all of them are taken. Each is injected by itself, and what
    differs is followed bit for bit: through the array, each layer, and the network up to its scores. A stuck bit is
    there all the time; a flip is one clock cycle of one GEMM of one image. Faults that provably do nothing, or the same
    as another one, are not run.

    FOLDER gets propagation.h5, summary.json, pictures and files for each unit of work that is done: the same command
    goes on after Ctrl-C, a crash or a power cut. Results do not depend on the number of workers, bit for bit.
    """
    if (described is None) == (lot is None):
        fail(
            "give the array with --array, or a lot of chips that has it with --lot"
            if lot is None
            else "--array and --lot are both given: choose one"
        )
    check_json(json_path)
    subject.warn()
    from efat.cli.render import console, working

    with working("Loading and checking"):
        from efat.cli.commands.propagate_tables import show_propagation
        from efat.confidence import Accuracy
        from efat.propagation.subject import Subject

        executor = workers.executor()
        config = _array(described, lot, asked)
        request = asked.of(
            Subject(
                subject.name,
                subject.weights,
                subject.data,
                images,
                config,
                cast("Method", calibration),
                subject.normalization,
            )
        )
        request.subject.load()
    found = _run(output, request, executor)
    fault_free = Accuracy(found["fault_free"]["correct"], found["images"])
    warn_of_guessing("the quantised network", fault_free, request.subject.load().classes)
    if json_path is not None:
        write_json(json_path, found)
    show_propagation(found, _files(output), console())


def _array(described: ArrayRequest | None, lot: Path | None, asked: PropagationRequest) -> ArrayConfig:
    if described is not None:
        if described.faulty_multipliers and "MULTIPLIER" not in asked.sites:
            fail("--faulty-multiplier: no fault would use it: add --site multiplier")
        return described.config()
    from simulator.lots.chips import ChipLot

    assert lot is not None
    with ChipLot(lot) as opened:
        return opened.config


def _run(folder: Path, request: Request, executor: Executor) -> dict[str, Any]:
    from efat.campaigns.workers import WorkerDiedError
    from efat.cli.render import stages_bar
    from efat.figures.propagation import PICTURES, draw_pictures
    from efat.propagation.campaign import run_propagation
    from efat.propagation.summary import summary

    ran, so_far = 0, ""

    def estimated(found: Mapping[str, Any]) -> None:
        nonlocal so_far
        critical, faults = found["overall"]["critical"], found["overall"]["faults"]
        shares = [f"{100 * critical[name]:.1f}" for name in ("value", "low", "high")]
        so_far = f" ({faults:,} faults: {shares[0]}% critical, {shares[1]}-{shares[2]}%)"

    def counted(work: Work, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
        nonlocal ran
        for done in executor(work, units):
            ran += 1
            yield done

    try:
        with stages_bar() as show:
            propagation = run_propagation(
                folder, request, counted, lambda done, of: show("units of work", done, of, so_far), estimated, note
            )
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except WorkerDiedError as error:
        raise click.ClickException(f"{error}; run the same command to go on") from None
    if not ran:
        say(f"All of it is in {folder} already: nothing is run.", err=True)
    found = summary(propagation, request.confidence)
    if ran or not all((folder / name).exists() for name in PICTURES):
        draw_pictures(folder, propagation, request.confidence)
    return found


def _files(folder: Path) -> list[Path]:
    from efat.figures.propagation import PICTURES
    from efat.propagation.campaign import SUMMARY
    from efat.propagation.tables import FILE_NAME

    return [path for path in (folder / name for name in (FILE_NAME, SUMMARY, *PICTURES)) if path.exists()]
