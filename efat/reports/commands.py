"""The commands that a retrained lot was made with, put together from what its files say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from efat.reports.folder import PLAN_NAME, ReportData
from efat.resilience.table import FILE_NAME as TABLE_NAME

_LINE = 88
"""Characters after which a command goes on in another line."""

_DOUBTED = 0.5
"""Options for fractions may doubt that plain numbers from here on are not meant in percent."""

_DEFAULTS = {"weight_bits": 8, "act_bits": 8, "acc_bits": 32, "multiplier": "array"}
_NO_AUGMENTATION = {"flip": False, "crop_padding": 0}

Option = tuple[str, ...]
"""Its name, and its value if it has one."""


def commands(data: ReportData) -> list[str]:
    """The commands, in order, each over as many lines as it takes."""
    plan, manifest = data.plan, data.manifest
    table = PurePath(plan.resilience.path)
    measured = table.parent if table.name == TABLE_NAME else table
    lot = manifest.lot.path
    retrained = f"{data.name}/"
    cycle_images = max(chip.cycle_images for chip in manifest.chips)
    own = own_network(str(plan.setup["network"]))
    return [
        command("resilience", [*_resilience(data), ("-o", f"{table.parent}/")]),
        command("plan", [("--resilience", str(measured)), ("--lot", lot), *_plan(data), *own, ("-o", PLAN_NAME)]),
        command("retrain", [("--plan", PLAN_NAME), ("--cycle-images", str(cycle_images)), *own, ("-o", retrained)]),
        command("simulate", [("--manifest", f"{retrained}manifest.json"), ("--lot", lot), *own]),
        command("report", [(retrained,)]),
    ]


def own_network(network: str) -> list[Option]:
    """What commands must be told again of a network whose code is the user's: they run none that only a file names."""
    return [("--network", network)] if ":" in network else []


def cautions(data: ReportData) -> list[str]:
    """What the commands do not say."""
    found = []
    if data.table.harden_iterations:
        found.append(
            "The network was hardened first: campaign.json in the folder of efat resilience says for which fault rates."
        )
    multiplier = str(data.plan.array.get("multiplier"))
    if " " in multiplier:
        found.append(f"The multiplier was read from files, and its name and digest are {multiplier}.")
    return found


def _resilience(data: ReportData) -> Iterator[Option]:
    setup, table, array = data.plan.setup, data.table, data.plan.array
    recipe = setup["recipe"]
    yield "--network", str(setup["network"])
    for name in ("weights", "data"):
        if setup[name] is not None:
            yield f"--{name}", str(setup[name])
    if setup["normalization"] is not None:
        yield "--normalize", str(setup["normalization"])
    yield from array_options(array)
    yield "--mitigation", str(setup["mitigation"])
    yield "--rates", ",".join(map(fraction_text, table.rates.tolist()))
    yield "--repeats", str(table.repeats)
    yield "--levels", ",".join(map(str, table.levels.tolist()))
    yield from _faults(table.fault_model)
    if table.harden_iterations:
        yield "--harden", str(table.harden_iterations)
    yield "--batch", str(recipe["batch"])
    yield "--optimizer", str(recipe["optimizer"])
    yield "--learning-rate", number_text(recipe["learning_rate"])
    for name, value in (recipe["options"] or {}).items():
        # Pairs of numbers can only be given from Python.
        if not isinstance(value, list):
            yield "--option", f"{name}={number_text(value)}"
    if recipe["label_smoothing"]:
        yield "--label-smoothing", number_text(recipe["label_smoothing"])
    yield ("--no-augment",) if recipe["augmentation"] == _NO_AUGMENTATION else _augmentation(recipe["augmentation"])
    yield "--calibration", str(setup["calibration"])
    if setup["learn_scales"]:
        yield ("--learn-scales",)
    split = setup["split"]
    if split["verify_images"] is not None:
        yield "--verify-images", "{}:{}".format(*split["verify_images"])
    for name in ("tune_images", "verify_data"):
        if split[name] is not None:
            yield f"--{name.replace('_', '-')}", str(split[name])
    yield "--seed", str(table.seed)


def _augmentation(found: Mapping[str, Any]) -> Option:
    crop = [f"crop={found['crop_padding']}"] if found["crop_padding"] else []
    return "--augment", ",".join([*["flip"] * bool(found["flip"]), *crop])


def array_options(array: Mapping[str, Any]) -> Iterator[Option]:
    """The options that describe an array, from `ArrayConfig.as_dict()`."""
    yield "--array", f"{array['rows']}x{array['cols']}"
    for name, default in _DEFAULTS.items():
        if array[name] != default:
            yield f"--{name.replace('_', '-')}", str(array[name]).split(" ", maxsplit=1)[0]
    if not array["act_signed"]:
        yield ("--unsigned-acts",)


def _faults(model: Mapping[str, Any]) -> Iterator[Option]:
    for option, name in (("--site", "sites"), ("--kind", "kinds")):
        for chosen, weight in dict(model.get(name) or {}).items():
            yield option, f"{chosen.lower()}={number_text(weight)}"
    if "pattern" in model:
        yield "--pattern", str(model["pattern"])
    if model.get("pattern") == "clustered":
        yield "--cluster-alpha", number_text(model["cluster_alpha"])


def _plan(data: ReportData) -> Iterator[Option]:
    plan = data.plan
    for name, value in plan.constraint.as_dict().items():
        # A margin of 0 is the default.
        if value is not None and (value or name != "margin"):
            yield f"--{name.replace('_', '-')}", fraction_text(value)
    yield "--strategy", plan.strategy
    yield "--statistic", plan.statistic
    yield "--predictor", plan.predictor
    if plan.strategy == "efat":
        yield ("--align",) if plan.aligned else ("--no-align",)
    yield "--step", str(plan.step)
    yield "--budget", str(plan.budget)


def fraction_text(value: float) -> str:
    """A fraction as one gives it to an option: in percent where options doubt that a plain number is meant."""
    return f"{number_text(float(Decimal(str(value)) * 100))}%" if value >= _DOUBTED else number_text(value)


def number_text(value: object) -> str:
    """A value as one gives it to an option."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0")


def command_line(name: str, options: Iterable[Option]) -> str:
    """A command of `efat` in one line."""
    return " ".join([f"efat {name}", *map(_words, options)])


def command(name: str, options: Iterable[Option]) -> str:
    """A command of `efat`, over as many lines as it takes; each option stays in one."""
    lines = [f"efat {name}"]
    for words in map(_words, options):
        if len(lines[-1]) + 1 + len(words) > _LINE and lines[-1].strip():
            lines.append(f"    {words}")
        else:
            lines[-1] += f" {words}"
    return " \\\n".join(lines)


def _words(option: Option) -> str:
    # A value that begins with a hyphen would be taken for an option.
    joined = len(option) == 2 and option[1].startswith("-")
    return shlex.join(["=".join(option)] if joined else option)
