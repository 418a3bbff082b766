"""`efat propagate`: what single faults of an array do on their way through a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import efat
from efat.cli.group import INTERRUPTED
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
from efat.cli.parameters import INPUT_FILE, KINDS, SITES, Fraction, OneOf, SiteBits
from efat.cli.printing import note, say, warn_of_guessing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from efat.campaigns.campaign import Executor, Outcome, Unit, Work
    from efat.cli.render import ResultsTable
    from efat.propagation.tables import Propagation
    from simulator import ArrayConfig


_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class PropagationRequest:
    """The faults that a user wants to be tried.

    Attributes:
        sites: nets that can be faulty; empty for the default.
        kinds: how; empty for the default.
        bits: bits of nets that can be faulty.
        samples: how many are tried; None if it is said otherwise.
        exhaustive: whether all are.
        margin: as many as it takes to know the share of critical ones so well; None if it is said otherwise.
        confidence: of intervals.
        stratify: whether each bit of each net has its part.
        seed: of the sample.
    """

    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    bits: tuple[tuple[str, tuple[int, ...]], ...]
    samples: int | None
    exhaustive: bool
    margin: float | None
    confidence: float
    stratify: bool
    seed: int

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            click.ClickException: so they do.
        """
        given = {
            "--samples": self.samples is not None,
            "--exhaustive": self.exhaustive,
            "--margin": self.margin is not None,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            fail(f"{' and '.join(names)} are given: choose one")
        sites = [site for site, _ in self.bits]
        for site in sites:
            if sites.count(site) > 1:
                fail(f"--bit {site.lower()} is given twice: give all bits of a net at once, such as 0-3,7")

    def options(self) -> dict[str, Any]:
        """The same as arguments of `efat.propagate` and `Request`."""
        from efat.propagation.request import DEFAULT_KINDS, DEFAULT_SITES
        from simulator import Kind, Site

        return {
            "sites": [Site[name] for name in self.sites] or DEFAULT_SITES,
            "kinds": [Kind[name] for name in self.kinds] or DEFAULT_KINDS,
            "bits": {Site[name]: bits for name, bits in self.bits},
            "samples": self.samples,
            "exhaustive": self.exhaustive,
            "margin": self.margin,
            "confidence": self.confidence,
            "stratify": self.stratify,
            "seed": self.seed,
        }


def _checked(**values: Any) -> PropagationRequest:
    asked = PropagationRequest(**values)
    asked.check()
    return asked


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
        type=Fraction("the share may be off by {}"),
        metavar="E",
        help="Try as many faults as it takes to know the share of critical ones to within E.  [default: 0.02]",
    ),
    click.option(
        "--confidence",
        type=Fraction(),
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
"""Options for the faults that are tried; the command gets them as one argument `asked`, a `PropagationRequest`."""


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
        from efat.confidence import Accuracy
        from efat.propagation.request import Subject
        from efat.propagation.summary import summary

        executor = workers.executor()
        config = _array(described, lot, asked)
        described_subject: dict[str, Any] = {
            "weights": subject.weights,
            "data": subject.data,
            "images": images,
            "calibration": calibration,
            "normalization": subject.normalization,
        }
        loaded = Subject(subject.name, config=config, **described_subject).load()
    propagation = _run(output, executor, network=subject.name, array=config, **described_subject, **asked.options())
    found = summary(propagation, asked.confidence)
    fault_free = Accuracy(propagation.fault_free_correct, propagation.images)
    warn_of_guessing("the quantised network", fault_free, loaded.classes)
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


def _run(folder: Path, executor: Executor, **options: Any) -> Propagation:
    from efat.campaigns.workers import WorkerDiedError
    from efat.cli.render import stages_bar

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
            propagation = efat.propagate(
                folder,
                **options,
                workers=counted,
                progress=lambda done, of: show("units of work", done, of, so_far),
                estimated=estimated,
                notes=note,
            )
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except WorkerDiedError as error:
        raise click.ClickException(f"{error}; run the same command to go on") from None
    if not ran:
        say(f"All of it is in {folder} already: nothing is run.", err=True)
    return propagation


def _files(folder: Path) -> list[Path]:
    from efat.figures.propagation import PICTURES
    from efat.propagation.campaign import SUMMARY
    from efat.propagation.tables import FILE_NAME

    return [path for path in (folder / name for name in (FILE_NAME, SUMMARY, *PICTURES)) if path.exists()]


_COLLAPSED = (
    ("provably unused", "unused"),
    ("provably the same value", "same_value"),
    ("the same as another fault", "equivalent"),
)


def show_propagation(found: Mapping[str, Any], files: list[Path], console: Console) -> None:
    """Print what was found.

    Args:
        found: the summary, as `efat.propagation.summary.summary` gives it.
        files: where all of it is.
        console: where to.
    """
    array, sample, population = found["array"], found["sample"], found["population"]
    console.print(
        f"{found['subject']['network']} on {array['rows']}x{array['cols']} PEs, {found['images']:,} images: "
        f"{sample['faults']:,} of {population['faults']:,} faults tried",
        style="bold",
    )
    console.print(_effects(found))
    console.print(_layers(found))
    console.print(_masking(found))
    console.print(_facts(found))
    console.print(f"\nIn {_listed([str(path) for path in files])}.", soft_wrap=True)


def _effects(found: Mapping[str, Any]) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table(
        f"What they do, in % (with {100 * found['confidence']:g} % intervals)",
        left=["faults of"],
        right=[
            "tried",
            "critical\nfaults",
            "images with\nanother class",
            "images with\nother scores",
            "accuracy\nlost",
        ],
    )
    rows = [(_kind(row["kind"]), row) for row in found["by_kind"]] if len(found["by_kind"]) > 1 else []
    rows = [*((row["site"].lower(), row) for row in found["by_site"]), *rows]
    for place, (name, row) in enumerate(rows):
        last = place == len(rows) - 1 or place == len(found["by_site"]) - 1
        _add_effects(table, name, row, end_section=last)
    _add_effects(table, "all", found["overall"])
    return table


def _add_effects(table: ResultsTable, name: str, row: Mapping[str, Any], *, end_section: bool = False) -> None:
    lost = row["accuracy_lost"]
    table.add_row(
        name,
        f"{row['faults']:,}",
        _interval(row["critical"]),
        _interval(row["avf"]),
        _interval(row["scores_changed"]),
        "" if lost is None else f"{100 * lost['value']:.2f}",
        end_section=end_section,
    )


def _layers(found: Mapping[str, Any]) -> ResultsTable:
    """Images whose outputs of a layer change, and the patterns of the outputs that do."""
    from efat.cli.render import results_table
    from efat.propagation.tables import PATTERNS

    table = results_table(
        "How they leave layers: images with other outputs, and which outputs, in %",
        left=["layer"],
        right=["images", *PATTERNS],
    )
    for row in found["layers"]:
        shares = (row["pattern_shares"][name] for name in PATTERNS)
        table.add_row(row["layer"], _interval(row["reached"]), *map(_share, shares))
    return table


def _masking(found: Mapping[str, Any]) -> ResultsTable:
    from efat.cli.render import results_table

    table = results_table(
        "What ends differences: images that differ before an operation, not after it",
        left=["operation"],
        right=["differ", "end there\nin %"],
    )
    for row in found["masking"]["by_kind"]:
        table.add_row(row["kind"], f"{row['images_in']:,}", _share(row["masked_share"]))
    return table


def _facts(found: Mapping[str, Any]) -> ResultsTable:
    from efat.cli.render import facts_table

    facts = facts_table("Of all faults, and without faults")
    rules = found["population"]["rules"]
    for name, rule in _COLLAPSED if rules is not None else ():
        facts.add_row(f"faults that are {name}", f"{rules[rule]['faults']:,} ({_percent(rules[rule]['share'])})")
    facts.add_row("accuracy quantised, fault-free", _percent(found["fault_free"]["accuracy"]))
    return facts


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    # All faults were tried where both ends are the same.
    return f"{value:.1f}" if low == high else f"{value:.1f} ({low:.1f}-{high:.1f})"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _kind(name: str) -> str:
    return name.lower().replace("_", "-")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
