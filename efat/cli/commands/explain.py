"""`efat explain`: which faults of a chip cost accuracy, and which ones spoil an image, where and when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import efat
from efat.cli.options import (
    NetworkRequest,
    bypass_option,
    calibration_or_weights_option,
    check_json,
    check_manifest_alone,
    json_option,
    lot_option,
    manifest_option,
    network_options,
    write_json,
)
from efat.cli.parameters import complete_chips
from efat.cli.printing import this_command, warn_of_guessing

if TYPE_CHECKING:
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
@bypass_option
@calibration_or_weights_option
@json_option("everything found")
def explain(
    subject: NetworkRequest,
    manifest: Path | None,
    lot: Path,
    chip: str,
    chosen: tuple[int, ...],
    images: int | None,
    bypass: bool,
    calibration: Method | None,
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
    check_json(json_path, inputs=[lot, manifest, *subject.inputs])
    check_manifest_alone(manifest, subject, {"--calibration": calibration, "--bypass": bypass})
    from efat.cli.render import console, show, stages_bar, working

    with working("Loading, quantising and calibrating"):
        explanation = efat.explain(
            lot=lot,
            chip=chip,
            image=chosen,
            images=images,
            manifest=manifest,
            **subject.arguments,
            bypass=bypass,
            calibration=calibration,
            run=False,
        )
    interrupted = False
    try:
        with stages_bar() as progress:
            explanation.run(progress)
    except KeyboardInterrupt:
        interrupted = True
    clean = explanation.fault_free
    warn_of_guessing(
        "the quantised network", None if clean is None else clean.accuracy, explanation.simulation.data.classes
    )
    show(explanation)
    if explanation.changed_images and explanation.changed_images[0] not in chosen:
        console().print(f"To see how: {this_command('--image', str(explanation.changed_images[0]))}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, explanation.as_dict())
    if interrupted:
        raise KeyboardInterrupt
