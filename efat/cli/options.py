"""Options that several commands have, and how a group of them becomes one argument."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from efat.cli.group import InputProblem
from efat.cli.parameters import INPUT_FILE, complete_networks
from efat.cli.printing import json_alone, print_json, warn_of_own_weights

if TYPE_CHECKING:
    from training import Normalization

_Command = TypeVar("_Command", bound=Callable[..., Any])

NETWORKS = "digits-cnn, lenet5, vgg11, resnet20, resnet18, or package.module:function for your own"
"""Networks by name, for help texts."""


def bundled(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Options that a command gets as they are, in the order of the help."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def gathered(
    name: str, gather: Callable[..., object], *options: Callable[[Any], Any]
) -> Callable[[_Command], _Command]:
    """Options that a command gets as one argument `name`, which `gather` makes of their values by name."""
    declared: Any = lambda: None  # noqa: E731
    names = [parameter.name for parameter in bundled(*options)(declared).__click_params__]

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_group(**values: Any) -> Any:
            group = {option: values.pop(option) for option in names}
            return command(**{name: gather(**group)}, **values)

        decorated: Any = bundled(*options)(with_group)
        return decorated  # type: ignore[no-any-return]

    return decorate


ARRAY_HELP = "The array: rows x columns, such as 64x64, a preset (see efat cycles --list-presets), or a SCALE-Sim .cfg."
"""Help of the option `--array`."""


@dataclass(frozen=True)
class NetworkRequest:
    """The network that a user names, and its data; the fields are the values of `network_options`."""

    network: str | None
    weights: Path | None
    data: Path | None
    normalize: str | None

    @property
    def normalization(self) -> Normalization | None:
        """What `--normalize` says."""
        from training import Normalization

        return None if self.normalize is None else Normalization.parse(self.normalize)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `efat.simulate` and its like take."""
        found = {"network": self.network, "weights": self.weights, "data": self.data}
        return {**found, "normalization": self.normalization}

    @property
    def inputs(self) -> list[Path]:
        """Files and folders that it names."""
        return [path for path in (self.weights, self.data) if path is not None]

    @property
    def name(self) -> str:
        """Of the network, which was required, or asked for with `--network`."""
        if self.network is None:
            fail("choose a network with --network")
        return self.network

    def warn(self) -> None:
        """Warn if a network of the user's own runs without a file of weights."""
        warn_of_own_weights(self.network, self.weights)


def network_options(
    network: str = f"Network to run: {NETWORKS}.",
    weights: str = "Weights: safetensors, those of efat retrain-chip, or a state dict.",
    data: str = "Images: folder of IDX files or CIFAR-10 python batches, or an .npz with images and labels.",
    *,
    required: bool = False,
) -> Callable[[_Command], _Command]:
    """Options for a network and its data, with the help given; the command gets `subject`, a `NetworkRequest`."""
    return gathered(
        "subject",
        NetworkRequest,
        click.option("--network", shell_complete=complete_networks, required=required, metavar="NAME", help=network),
        click.option("--weights", type=INPUT_FILE, metavar="FILE", help=weights),
        click.option("--data", type=INPUT_FILE, metavar="PATH", help=data),
        click.option(
            "--normalize",
            metavar="MEAN:STD",
            help="Normalise pixels of 0 to 1 for your own network: a mean and a deviation for each channel, such as "
            "0.485,0.456,0.406:0.229,0.224,0.225, or 0.5:0.5 for all.",
        ),
    )


manifest_option = click.option(
    "--manifest",
    type=INPUT_FILE,
    metavar="FILE",
    help="Lot that efat retrain retrained, its folder or manifest.json: it says which network and weights each chip "
    "runs.",
)


def check_manifest_alone(manifest: Path | None, subject: NetworkRequest, others: Mapping[str, object]) -> None:
    """Refuse options that a manifest answers, and no network where there is no manifest.

    Args:
        manifest: its file; None for none.
        subject: the network; it is warned of if its weights may be random.
        others: what other options say by their names, None or false if they are not given.
    """
    if manifest is None:
        if subject.network is None:
            fail("choose a network with --network, or a lot that was retrained with --manifest")
        warn_of_own_weights(subject.network, subject.weights)
        return
    for option, value in {"--weights": subject.weights, "--normalize": subject.normalize, **others}.items():
        if value is not None and value is not False:
            fail(f"--manifest says what each chip runs and what is bypassed for it: leave out {option}")


lot_option = click.option("--lot", required=True, type=INPUT_FILE, metavar="FILE", help="Lot of chips (HDF5).")
array_of_lot_option = click.option(
    "--lot", type=INPUT_FILE, metavar="FILE", help="Lot of chips (HDF5) that has the array, instead of it."
)


def calibration_option(
    help_text: str = "How the activations' scales are chosen.", *, default: str | None = "max"
) -> Callable[[_Command], _Command]:
    """The option `--calibration`; with the default None the command decides."""
    return click.option(
        "--calibration",
        type=click.Choice(["max", "percentile", "mse"]),
        default=default,
        show_default=default is not None,
        help=help_text,
    )


calibration_or_weights_option = calibration_option(
    "How the activations' scales are chosen; retrained weights bring theirs.  [default: max]", default=None
)
bypass_option = click.option(
    "--bypass",
    is_flag=True,
    help="Bypass the PEs that the faults require, beside those that a chip's fuses bypass already.",
)

force_option = click.option("--force", is_flag=True, help="Replace a file that is there already.")


def output_option(help_text: str) -> Callable[[_Command], _Command]:
    """The option `-o FILE`."""
    return click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FILE", help=help_text)


def check_output(path: Path, *, force: bool = True, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse an output file before any work is done; inputs are never replaced, not even with `force`."""
    import os

    if path.is_dir():
        fail(f"{path} is a folder: expected the name of a file")
    if path.exists() and not path.is_file():
        fail(f"{path} is not a regular file: expected the name of a file to write")
    if path.exists() and not force:
        fail(f"{path} is there already: choose another name, or replace it with --force")
    read = [given for given in inputs if given is not None and given.exists()]
    if any(path.exists() and path.samefile(given) for given in read):
        fail(f"{path} is the file to read: choose another name to write")
    if not path.parent.is_dir():
        fail(f"{path.parent}: no such folder to write {path.name} into; make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        fail(f"{path}: no permission to write it")


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """The option `--json FILE` for what the help says, such as "everything found"; `-` is standard output."""
    option = click.option(
        "--json",
        "json_path",
        type=INPUT_FILE,
        metavar="FILE",
        help=f"Write {help_text} to this file, too; - prints it on standard output, and nothing else there.",
    )

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_json(*arguments: Any, json_path: Path | None, **others: Any) -> Any:
            with json_alone() if _is_stdout(json_path) else nullcontext():
                return command(*arguments, json_path=json_path, **others)

        decorated: _Command = option(with_json)  # type: ignore[assignment]
        return decorated

    return decorate


def check_json(path: Path | None, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse what `--json` names, before any work is done, if it cannot be written."""
    if path is not None and not _is_stdout(path):
        check_output(path, inputs=inputs)


def _is_stdout(path: Path | None) -> bool:
    return str(path) == "-"


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece; `-` is standard output."""
    from simulator.files import replaced

    text = json.dumps(content, indent=2, allow_nan=False)
    if _is_stdout(path):
        print_json(text)
        return
    with replaced(path) as beside:
        beside.write_text(text + "\n")


def fail(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    raise InputProblem(message)
