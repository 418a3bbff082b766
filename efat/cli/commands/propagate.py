"""`efat propagate`: what single faults of an array do on their way through a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import efat
from efat.cli.group import resumable
from efat.cli.learning_options import WorkerRequest, worker_options
from efat.cli.machine_options import ArrayRequest, array_options
from efat.cli.options import (
    NetworkRequest,
    array_of_lot_option,
    calibration_option,
    check_json,
    fail,
    gathered,
    json_option,
    network_options,
    write_json,
)
from efat.cli.parameters import INPUT_FILE, KINDS, SITES, FractionText, OneOf, SiteBits
from efat.cli.printing import note, say, warn_of_guessing

if TYPE_CHECKING:
    from training.calibration import Method


def _checked(
    *,
    sites: tuple[str, ...],
    kinds: tuple[str, ...],
    bits: tuple[tuple[str, tuple[int, ...]], ...],
    **others: Any,
) -> dict[str, Any]:
    """Arguments of `efat.propagate`: those that were given, and do not contradict each other."""
    names = [f"--{name}" for name in ("samples", "exhaustive", "margin") if others[name] not in (None, False)]
    if len(names) > 1:
        fail(f"{' and '.join(names)} are given: choose one")
    named = [site for site, _ in bits]
    for site in named:
        if named.count(site) > 1:
            fail(f"--bit {site.lower()} is given twice: give all bits of a net at once, such as 0-3,7")
    lists = {"sites": sites, "kinds": kinds, "bits": dict(bits)}
    return {**others, **{name: values for name, values in lists.items() if values}}


propagation_options = gathered(
    "asked",
    _checked,
    click.option(
        "--site",
        "sites",
        multiple=True,
        type=OneOf("site", SITES),
        help=f"Net that can be faulty; repeatable: {', '.join(name.lower() for name in SITES)}.  "
        "[default: all but multiplier]",
    ),
    click.option(
        "--bit",
        "bits",
        multiple=True,
        type=SiteBits(),
        help="Bits of a net that can be faulty, such as psum=0-7,31; repeatable.  [default: all]",
    ),
    click.option(
        "--kind",
        "kinds",
        multiple=True,
        type=OneOf("kind", KINDS),
        help=f"How nets are faulty; repeatable: {', '.join(name.lower() for name in KINDS)}.  "
        "[default: both stuck values]",
    ),
    click.option("--samples", type=int, metavar="N", help="Try N faults, drawn at random."),
    click.option("--exhaustive", is_flag=True, help="Try all faults."),
    click.option(
        "--margin",
        type=FractionText("the share may be off by {}"),
        metavar="E",
        help="Try as many faults as it takes to know the share of critical ones to within E.  [default: 0.02]",
    ),
    click.option(
        "--confidence",
        type=FractionText(),
        metavar="C",
        default=0.95,
        show_default=True,
        help="Confidence of intervals.",
    ),
    click.option(
        "--stratify/--no-stratify",
        default=True,
        show_default=True,
        help="Give each bit of each net its part of the sample.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0, max=2**53),
        metavar="S",
        default=0,
        show_default=True,
        help="Seed of the sample.",
    ),
)
"""Options for the faults that are tried; the command gets them as one argument `asked`, a dictionary."""


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
    asked: dict[str, Any],
    images: int | None,
    calibration: Method,
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
    if described is not None and lot is not None:
        fail("--array and --lot are both given: choose one")
    if described is not None and described.faulty_multipliers and "MULTIPLIER" not in asked.get("sites", ()):
        fail("--faulty-multiplier: no fault would use it: add --site multiplier")
    array = lot if described is None else described.config()
    if array is None:
        fail("give the array with --array, or a lot of chips that has it with --lot")
    check_json(json_path, inputs=[lot, *subject.inputs])
    subject.warn()
    from efat.cli.render import console, show, stages_bar

    ran, so_far = False, ""

    def estimated(found: efat.PropagationSummary) -> None:
        nonlocal so_far
        critical = found.overall.critical
        assert critical is not None
        shares = [f"{100 * share:.1f}" for share in (critical.value, critical.low, critical.high)]
        so_far = f" ({found.overall.faults:,} faults: {shares[0]}% critical, {shares[1]}-{shares[2]}%)"

    with resumable(), stages_bar() as bar:
        bar(loading := "loading and checking", 0, 1)

        def progress(done: int, of: int) -> None:
            nonlocal ran
            ran |= done < of
            bar(loading, 1, 1)
            bar("units of work", done, of, so_far)

        found = efat.propagate(
            output,
            subject.name,
            array,
            weights=subject.weights,
            data=subject.data,
            normalization=subject.normalize,
            images=images,
            calibration=calibration,
            **asked,
            workers=workers.where,
            progress=progress,
            estimated=estimated,
            notes=note,
        )
    if not ran:
        say(f"All of it is in {output} already: nothing is run.", err=True)
    if found.classes is not None:
        correct = efat.Accuracy(found.fault_free_correct, found.images)
        warn_of_guessing("the quantised network", correct, found.classes)
    if json_path is not None:
        write_json(json_path, found.summary.as_dict())
    show(found)
    paths = [str(output / name) for name in found.FILES if (output / name).exists()]
    console().print(f"\nIn {', '.join(paths[:-1])} and {paths[-1]}.", soft_wrap=True)
