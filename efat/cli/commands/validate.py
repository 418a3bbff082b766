"""`efat validate`: the implementations of the array against each other."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efat.cli.options import NetworkRequest, check_json, fail, input_errors, json_option, network_options, write_json
from efat.cli.parameters import INPUT_FILE, SITES, ArraySize, SomeOf
from efat.cli.printing import say
from efat.validation import DEFAULT_CASES, DEFAULT_IMAGES, DEFAULT_RTL_CASES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from efat import ChipComparison, Mismatch, Validation
    from efat.validation.campaign import Engine


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
    help=f"Random cases.  [default: {DEFAULT_CASES}, or {DEFAULT_RTL_CASES} with --against rtl]",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), metavar="T", help="Go on for this long instead."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Seed of the cases.  [default: a fresh one]")
@click.option("--lot", type=INPUT_FILE, metavar="FILE", help="Compare a network on these chips instead.")
@network_options("Network to run on the chips, as for efat simulate.", "Its weights.", "Its images.")
@click.option(
    "--images", type=click.IntRange(min=1), metavar="N", help=f"Images for each chip.  [default: {DEFAULT_IMAGES}]"
)
@click.option("--replay", type=INPUT_FILE, metavar="FILE", help="Run one saved case instead.")
@json_option("what was counted")
def validate(
    array: tuple[int, int] | None,
    sites: tuple[str, ...] | None,
    against: str,
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
    check_json(json_path)
    if any(value is not None for value in of_networks.values()):
        given = next(name for name, value in of_networks.items() if value is not None)
        _refuse_together(given, {**of_cases, "--against rtl": against if against != "cycle" else None})
        if lot is None or subject.network is None:
            fail(
                f"{given} is given without {'--lot' if lot is None else '--network'}: a comparison of logits needs both"
            )
        _compare_networks(subject, lot, images, json_path)
        return
    if cases is not None and minutes is not None:
        fail("--cases and --minutes are both given: choose one")
    if cases is None and minutes is None:
        cases = DEFAULT_CASES if against == "cycle" else DEFAULT_RTL_CASES
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    _compare_cases(array, list(sites or SITES), against, cases, minutes, seed, json_path)


def _refuse_together(option: str, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is not None:
            fail(f"{name} does not go with {option}: leave one of them out")


def _compare_cases(
    array: tuple[int, int] | None,
    sites: list[str],
    against: str,
    cases: int | None,
    minutes: float | None,
    seed: int,
    json_path: Path | None,
) -> None:
    from efat.cli.render import console, rate_bar, working

    with working("Loading"):
        from efat import Validation
        from simulator import ArrayConfig, Site

        if array is not None:
            with input_errors():
                ArrayConfig(*array)
        validation = Validation(seed, array, [Site[name] for name in sites], _engines(against))
    with working("Compiling"):
        validation.warm_up()
    interrupted = False
    seconds = None if minutes is None else minutes * 60
    with rate_bar("cases", cases) as progress:
        try:
            validation.run(cases=cases, seconds=seconds, progress=progress)
        except KeyboardInterrupt:
            interrupted = True
    show_cases(validation, console())
    if json_path is not None:
        write_json(json_path, validation.as_dict())
    if validation.mismatch is not None:
        _report_mismatch(validation, validation.mismatch)
        raise SystemExit(1)
    if interrupted:
        raise KeyboardInterrupt


def _engines(against: str) -> Mapping[str, Engine]:
    """What to compare; the RTL only where it can be run."""
    from efat.validation.campaign import ENGINES, RTL_ENGINES

    if against == "cycle":
        return ENGINES
    from simulator.rtl import unavailable

    reason = unavailable()
    if reason is not None:
        fail(f"--against rtl: {reason}")
    return RTL_ENGINES


def _report_mismatch(validation: Validation, mismatch: Mismatch) -> None:
    from efat.validation.replay import save_case

    path = Path(f"mismatch-{validation.seed}-{mismatch.number}.json")
    save_case(path, mismatch.case)
    say(f"Case {mismatch.number} of seed {validation.seed} differs. Made small:\n{mismatch.case}")
    for answer in mismatch.answers:
        say(str(answer))
    option = " --against rtl" if "rtl" in validation.engines else ""
    say(f"Saved: efat validate --replay {path}{option}")


def _replay(path: Path, against: str) -> None:
    from efat.validation.campaign import answers, differ
    from efat.validation.replay import load_case

    case = load_case(path)
    engines = _engines(against)
    say(str(case))
    for answer in answers(case, engines):
        say(str(answer))
    if differ(case, engines):
        say("They differ.")
        raise SystemExit(1)
    say("They agree.")


def _compare_networks(
    subject: NetworkRequest,
    lot: Path,
    images: int | None,
    json_path: Path | None,
) -> None:
    from efat.cli.render import console, counted, progress_bar, working

    network = subject.name
    with working("Loading, quantising and calibrating"):
        from efat import NetworkValidation
        from efat.cli.commands.simulate import deployment_line

        validation = NetworkValidation(network, lot, subject.weights, subject.data, images, subject.normalization)
    line = deployment_line(validation.simulation)
    if line is not None:
        say(line)
    comparisons: list[ChipComparison] = []
    interrupted = False
    with progress_bar("chips", len(validation.chips)) as progress:
        try:
            comparisons.extend(counted(validation.run(), progress))
        except KeyboardInterrupt:
            interrupted = True
    images = validation.images_per_chip
    if comparisons:
        show_chips(network, images, comparisons, console())
    if json_path is not None:
        from dataclasses import asdict

        chips = [asdict(comparison) for comparison in comparisons]
        complete = len(chips) == len(validation.chips)
        deployment = validation.simulation.deployment_dict()
        content = {"network": network, "images": images, "deployment": deployment, "complete": complete, "chips": chips}
        write_json(json_path, content)
    if any(comparison.mismatches for comparison in comparisons):
        raise SystemExit(1)
    if interrupted:
        raise KeyboardInterrupt


def show_cases(validation: Validation, console: Console) -> None:
    """Cases, outputs and mismatches by site."""
    from efat.cli.render import results_table

    title = f"{' against '.join(reversed(list(validation.engines)))}: random faulty GEMMs, seed {validation.seed}"
    table = results_table(title, ["faults at"], ["cases", "outputs", "mismatches"])
    for site in (*validation.sites, None):
        count = validation.counts.get(site)
        if count is not None:
            name = "no faults" if site is None else site.name.lower()
            table.add_row(name, f"{count.cases:,}", f"{count.outputs:,}", f"{count.mismatches:,}")
    console.print(table)
    found = "1 mismatch" if validation.mismatch else "no mismatch"
    rate = validation.cases / validation.seconds if validation.seconds else 0.0
    console.print(
        f"{validation.cases:,} cases, {validation.outputs:,} outputs compared, {found}; {rate:,.0f} cases/s. "
        "A case counts for each site it has faults at."
    )


def show_chips(network: str, images: int, comparisons: Sequence[ChipComparison], console: Console) -> None:
    """Logits and mismatches by chip."""
    from efat.cli.render import results_table

    title = f"emulation against cycle: {network}, {images} images a chip"
    table = results_table(title, ["chip"], ["logits", "mismatches"])
    for comparison in comparisons:
        table.add_row(comparison.chip, f"{comparison.logits:,}", f"{comparison.mismatches:,}")
    console.print(table)
    different = sum(comparison.mismatches > 0 for comparison in comparisons)
    verdict = "All logits are identical." if not different else f"{_chips(different)} differ{'s' * (different == 1)}."
    console.print(f"{_chips(len(comparisons))}. {verdict}")


def _chips(count: int) -> str:
    return f"{count} chip" if count == 1 else f"{count} chips"
