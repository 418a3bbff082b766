"""`efat validate`: the implementations of the array against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

import efat
from efat.cli.options import NetworkRequest, check_json, fail, json_option, network_options, write_json
from efat.cli.parameters import INPUT_FILE, SITES, ArraySize, SomeOf
from efat.cli.printing import say

Against = Literal["cycle", "rtl"]


@click.command(
    epilog="""\b
Examples:
  efat validate
  efat validate --array 16x16 --sites psum,activation --minutes 5 --seed 1
  efat validate --against rtl --cases 100
  efat validate --lot lot.h5 --network digits-cnn
  efat validate --replay mismatch-1-17.json
"""
)
@click.option("--array", type=ArraySize(), help="Size of the arrays.  [default: many sizes up to 24x24]")
@click.option(
    "--sites", type=SomeOf("site", SITES), metavar="SITE,...", help="Nets that may be faulty.  [default: all]"
)
@click.option(
    "--against",
    type=click.Choice(["cycle", "rtl"]),
    default="cycle",
    show_default=True,
    help="The emulation against the cycle engine, or both against the reference RTL in Icarus Verilog.",
)
@click.option(
    "--cases",
    type=click.IntRange(min=1),
    metavar="N",
    help="Random cases.  [default: 2000, or 500 with --against rtl]",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), metavar="T", help="Go on for this long instead."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Seed of the cases.  [default: a fresh one]")
@click.option("--lot", type=INPUT_FILE, metavar="FILE", help="Compare a network on these chips instead.")
@network_options("Network to run on the chips, as for efat simulate.", "Its weights.", "Its images.")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="Images for each chip.  [default: 64]")
@click.option("--replay", type=INPUT_FILE, metavar="FILE", help="Run one saved case instead.")
@json_option("what was counted")
def validate(
    array: tuple[int, int] | None,
    sites: tuple[str, ...] | None,
    against: Against,
    cases: int | None,
    minutes: float | None,
    seed: int | None,
    lot: Path | None,
    subject: NetworkRequest,
    images: int | None,
    replay: Path | None,
    json_path: Path | None,
) -> None:
    """Compare the emulation with the cycle engine, and both with the RTL, bit for bit.

    Random faulty GEMMs run on both: fresh sizes, widths, faults and operands, extreme ones among them. The first case
    on which they differ is made as small as it gets, shown, and saved for --replay.

    With --against rtl the array's SystemVerilog is compared as well, simulated cycle by cycle: keep arrays small.

    With --lot and --network, a whole network runs on both, and every logit is compared, chip by chip.

    Exit code 1 if there is any difference.
    """
    of_cases = {"--array": array, "--sites": sites, "--cases": cases, "--minutes": minutes, "--seed": seed}
    of_networks = {
        "--lot": lot,
        "--network": subject.network,
        "--weights": subject.weights,
        "--data": subject.data,
        "--normalize": subject.normalize,
        "--images": images,
    }
    if replay is not None:
        _refuse_together("--replay", {**of_cases, **of_networks, "--json": json_path})
        _replay(replay, against)
        return
    check_json(json_path, inputs=[lot, *subject.inputs])
    given = next((name for name, value in of_networks.items() if value is not None), None)
    if given is None:
        _compare_cases(array, sites, against, cases, minutes, seed, json_path)
        return
    _refuse_together(given, {**of_cases, "--against rtl": against if against != "cycle" else None})
    if lot is None or subject.network is None:
        fail(f"{given} is given without {'--lot' if lot is None else '--network'}: a comparison of logits needs both")
    _compare_networks(subject, lot, images, json_path)


def _refuse_together(option: str, others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value is not None:
            fail(f"{name} does not go with {option}: leave one of them out")


def _compare_cases(
    array: tuple[int, int] | None,
    sites: tuple[str, ...] | None,
    against: Against,
    cases: int | None,
    minutes: float | None,
    seed: int | None,
    json_path: Path | None,
) -> None:
    from efat.cli.render import rate_bar, show, working

    with working("Loading and compiling"):
        from simulator import Site

        validation = efat.validate(
            cases,
            minutes=minutes,
            seed=seed,
            array=array,
            sites=[Site[name] for name in sites or SITES],
            against=against,
            run=False,
        )
    interrupted = False
    with rate_bar("cases", validation.most_cases) as progress:
        try:
            validation.run(progress)
        except KeyboardInterrupt:
            interrupted = True
    show(validation)
    if json_path is not None:
        write_json(json_path, validation.as_dict())
    if validation.mismatch is not None:
        path = Path(f"mismatch-{validation.seed}-{validation.mismatching_case}.json")
        validation.mismatch.case.save(path)
        say(f"Saved: efat validate --replay {path}{' --against rtl' if against == 'rtl' else ''}")
        raise SystemExit(1)
    if interrupted:
        raise KeyboardInterrupt


def _replay(path: Path, against: Against) -> None:
    found = efat.replay_case(path, against=against)
    say(f"{found}\n{'They differ.' if found.differs else 'They agree.'}")
    if found.differs:
        raise SystemExit(1)


def _compare_networks(subject: NetworkRequest, lot: Path, images: int | None, json_path: Path | None) -> None:
    from efat.cli.render import progress_bar, show, working

    with working("Loading, quantising and calibrating"):
        validation = efat.validate_network(lot=lot, images=images, **subject.arguments, run=False)
    interrupted = False
    with progress_bar("chips", len(validation.simulation.chips)) as progress:
        try:
            validation.run(progress)
        except KeyboardInterrupt:
            interrupted = True
    if validation.comparisons:
        show(validation)
    if json_path is not None:
        write_json(json_path, validation.as_dict())
    if validation.differing:
        raise SystemExit(1)
    if interrupted:
        raise KeyboardInterrupt
