"""Whether the numbers of a propagation campaign can be, and fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from efat.propagation.columns import OPERATION_KINDS, OUTCOMES, PATTERNS, Rule
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError, first_line
from simulator.faults import BoolArray, Int64Array

if TYPE_CHECKING:
    from efat.propagation.tables import Propagation

MOST_IMAGES = 10_000_000
MOST_SIZE = (1 << 31) - 1
"""Of each size of a GEMM."""
MOST_POPULATION = (1 << 63) - 1
"""Faults; places in the population are int64."""
LONGEST_NAME_BYTES = 256
"""Of a layer or an operation, in UTF-8."""

_Table = npt.NDArray[np.void]


def check_tables(found: Propagation) -> None:
    """Check everything that was found.

    Raises:
        InputError: a value that cannot be, or that others contradict.
    """
    _check_range("images", np.array(found.images), 1, MOST_IMAGES)
    _check_range("fault_free_correct", np.array(found.fault_free_correct), 0, found.images)
    if not all(isinstance(value, str) for value in found.versions.values()):
        raise InputError("versions has a value that is not a text: expected texts by name")
    config = _config(found.array)
    _check_network(found)
    stratum = _check_strata(found, config)
    _check_population(found.population, int(found.strata["population"].sum()))
    _check_where(found, config)
    _check_outcomes(found)
    _check_layers(found)
    _check_reach(found)
    _check_operations(found, np.bincount(stratum, found.faults["images"], len(found.strata)).astype(np.int64))


def _config(array: Mapping[str, Any]) -> ArrayConfig:
    sizes = ("rows", "cols", "weight_bits", "act_bits", "act_signed", "acc_bits")
    missing = [name for name in sizes if name not in array]
    if missing:
        raise InputError(f"array has no {missing[0]}: expected what ArrayConfig.as_dict() gives")
    try:
        return ArrayConfig(**{name: array[name] for name in sizes})
    except (TypeError, ValueError) as error:
        raise InputError(f"array: {first_line(error)}") from None


def _check_network(found: Propagation) -> None:
    for what, names in (("layer", [x.name for x in found.layer_shapes]), ("operation", [x.name for x in found.graph])):
        if not names:
            raise InputError(f"there are no {what}s: expected those of a network")
        for name in names:
            if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name.encode()) <= LONGEST_NAME_BYTES:
                raise InputError(
                    f"{what} is {name!r:.80}: expected a printable name of at most {LONGEST_NAME_BYTES} bytes"
                )
    for shape in found.layer_shapes:
        for name in ("groups", "m", "k", "n"):
            value = getattr(shape, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SIZE:
                raise InputError(f"{name} of layer {shape.name!r} is {value!r}: expected an integer of 1..{MOST_SIZE}")
    last = len(found.layer_shapes) - 1
    for operation in found.graph:
        if operation.kind not in OPERATION_KINDS:
            raise InputError(
                f"kind of operation {operation.name!r} is {operation.kind!r:.80}: expected {', '.join(OPERATION_KINDS)}"
            )
        if not isinstance(operation.layer, int) or not -1 <= operation.layer <= last:
            raise InputError(f"layer of operation {operation.name!r} is {operation.layer!r}: expected -1..{last}")


def _check_strata(found: Propagation, config: ArrayConfig) -> Int64Array:
    """Check them, and say in which one each fault is."""
    strata = found.strata
    if not len(strata):
        raise InputError("strata is empty: expected all strata of the population")
    for name, table in (("strata", strata), ("faults", found.faults)):
        _check_range(f"site in {name}", table["site"], 0, max(Site))
        _check_range(f"kind in {name}", table["kind"], 0, max(Kind))
        for site in set(Site) - {Site.MULTIPLIER}:
            of_site = table["bit"][table["site"] == site]
            _check_range(f"bit of {site.name} in {name}", of_site, 0, site.bits(config) - 1)
    _check_range("population in strata", strata["population"], 0, MOST_POPULATION)
    if sum(strata["population"].tolist()) > MOST_POPULATION:
        raise InputError(f"strata have more than {MOST_POPULATION} faults: expected a population that int64 counts")
    if len(np.unique(_stratum_key(strata))) < len(strata):
        raise InputError("strata has one of site, bit and kind twice: expected each of them once")
    place = stratum_places(strata, found.faults)
    if (place < 0).any():
        fault = found.faults[place < 0][0]
        raise InputError(
            f"faults has site {fault['site']}, bit {fault['bit']}, kind {fault['kind']}: expected those of a stratum"
        )
    counts = np.bincount(place, minlength=len(strata))
    sampled = strata["sampled"].astype(np.int64)
    _refuse("sampled in strata", sampled, sampled != counts, "the number of its rows in faults")
    _refuse("sampled in strata", sampled, sampled > strata["population"], "at most its population")
    return place


def stratum_places(strata: _Table, faults: _Table) -> Int64Array:
    """In which stratum each fault is, int64 [faults], -1 for none.

    Args:
        strata: `STRATA_DTYPE` [strata], one or more, each once.
        faults: `FAULTS_DTYPE` [faults].
    """
    keys, wanted = _stratum_key(strata), _stratum_key(faults)
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], wanted), len(strata) - 1)]
    found: Int64Array = np.where(keys[place] == wanted, place, -1).astype(np.int64)
    return found


def _stratum_key(table: _Table) -> Int64Array:
    return _wide(table, "site") << 32 | _wide(table, "bit") << 8 | _wide(table, "kind")


def _check_population(population: Mapping[str, Any], in_strata: int) -> None:
    rules = [rule.name.lower() for rule in Rule]
    unknown = [name for name in population if name not in ("size", *rules)]
    if unknown or set(population) not in ({"size"}, {"size", *rules}):
        raise InputError(
            f"population has {', '.join(population) or 'nothing'!s:.80}: expected size, and either all or none of "
            f"{', '.join(rules)}"
        )
    for name, value in population.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_POPULATION:
            raise InputError(f"{name} of the population is {value!r:.80}: expected an integer of 0..{MOST_POPULATION}")
    if population["size"] != in_strata:
        raise InputError(f"size of the population is {population['size']}: expected {in_strata}, as its strata have")
    if len(population) > 1 and sum(population[name] for name in rules) != in_strata:
        raise InputError(f"the rules are for {sum(population[name] for name in rules)} faults: expected {in_strata}")


def _check_where(found: Propagation, config: ArrayConfig) -> None:
    faults, layers = found.faults, len(found.layer_shapes)
    _check_range("index in faults", faults["index"], 0, found.population["size"] - 1)
    _refuse("index in faults", faults["index"][1:], np.diff(faults["index"]) <= 0, "more than the index before")
    _check_range("row in faults", faults["row"], 0, config.rows - 1)
    _check_range("col in faults", faults["col"], 0, config.cols - 1)
    _check_range("row of ACCUMULATOR in faults", faults["row"][faults["site"] == Site.ACCUMULATOR], 0, 0)
    flips = faults["kind"] == Kind.FLIP
    for name in ("layer", "group", "cycle", "image"):
        _check_range(f"{name} of permanent faults", faults[name][~flips], -1, -1)
    upsets = faults[flips]
    _check_range("layer of flips", upsets["layer"], 0, layers - 1)
    groups = np.array([shape.groups for shape in found.layer_shapes])[upsets["layer"]]
    _refuse("group of flips", upsets["group"], (upsets["group"] < 0) | (upsets["group"] >= groups), "one of the layer")
    _check_range("cycle of flips", upsets["cycle"], 0, MOST_POPULATION)
    _check_range("image of flips", upsets["image"], 0, found.images - 1)
    _check_range("rule in faults", faults["rule"], 0, max(Rule))
    same_as, equivalent = faults["same_as"], faults["rule"] == Rule.EQUIVALENT
    _check_range("same_as of faults that are no equivalents", same_as[~equivalent], -1, -1)
    _check_range("same_as in faults", same_as, -1, found.population["size"] - 1)
    _refuse("same_as in faults", same_as, same_as == faults["index"], "another fault")


def _check_outcomes(found: Propagation) -> None:
    faults = found.faults
    flips = faults["kind"] == Kind.FLIP
    _check_range("images of flips", faults["images"][flips], 1, 1)
    _check_range("images of permanent faults", faults["images"][~flips], found.images, found.images)
    images = _wide(faults, "images")
    _refuse("images in faults", images, _sum(faults, OUTCOMES) != images, f"the sum of {', '.join(OUTCOMES)}")
    lost, gained = _wide(faults, "correct_lost"), _wide(faults, "correct_gained")
    changed = _sum(faults, ("top1", "top5"))
    _refuse("correct_lost in faults", lost, lost + gained > changed, "with correct_gained at most top1 + top5")
    _check_range("correct_lost in faults", lost, 0, found.fault_free_correct)
    _check_range("correct_gained in faults", gained, 0, found.images - found.fault_free_correct)
    by_rule = np.isin(faults["rule"], (Rule.UNUSED, Rule.SAME_VALUE))
    inactive = _wide(faults, "inactive")
    _refuse("inactive in faults", inactive, by_rule & (inactive != images), "all images of a fault that never acts")
    first, last = faults["first_layer"], faults["last_layer"]
    never = inactive == images
    _check_range("first_layer of faults that never acted", first[never], -1, -1)
    _check_range("last_layer of faults that never acted", last[never], -1, -1)
    _check_range("last_layer in faults", last[~never], 0, len(found.layer_shapes) - 1)
    least = np.maximum(faults["layer"], 0)
    _refuse("first_layer in faults", first, ~never & ((first < least) | (first > last)), "layer to last_layer")


def _check_layers(found: Propagation) -> None:
    layers, faults = found.layers, found.faults
    _check_range("fault in layers", layers["fault"], 0, len(faults) - 1)
    _check_range("layer in layers", layers["layer"], 0, len(found.layer_shapes) - 1)
    key = _wide(layers, "fault") << 16 | _wide(layers, "layer")
    _refuse("fault in layers", layers["fault"][1:], np.diff(key) <= 0, "rows by fault and layer, each once")
    most = _wide(faults, "images")[layers["fault"]]
    for name in ("images_in", "images_acted", "images_out"):
        _refuse(f"{name} in layers", layers[name], layers[name] > most, "at most the images of the fault")
    there, acted, out = (_wide(layers, name) for name in ("images_in", "images_acted", "images_out"))
    _refuse("images_in in layers", there, there + acted == 0, "an image that something arrived at or happened in")
    _refuse("images_out in layers", out, out > there + acted, "at most images_in + images_acted")
    _refuse("images_out in layers", out, _sum(layers, PATTERNS) != out, f"the sum of {', '.join(PATTERNS)}")
    outputs = np.array([min(x.groups * x.n * x.m, 1 << 40) for x in found.layer_shapes])[layers["layer"]]
    changed = _wide(layers, "outputs_changed")
    wrong = (changed < out) | (changed > out * outputs)
    _refuse("outputs_changed in layers", changed, wrong, "one or more of each image of images_out, at most all")
    largest, total = layers["largest_error"], layers["error_sum"]
    _check_range("largest_error in layers", largest, 0, (1 << 32) - 1)
    _refuse("largest_error in layers", largest, (largest > 0) != (out > 0), "0 only where no output changed")
    _check_range("error_sum in layers", total, 0, float(1 << 120))
    wrong = (total < np.maximum(largest, changed)) | (total > largest * changed.astype(np.float64) * (1 + 1e-9))
    _refuse("error_sum in layers", total, wrong, "as much as outputs_changed and largest_error allow")


def _check_reach(found: Propagation) -> None:
    """The first and the last layer that changed are those of which the table of layers says so."""
    changed = found.layers[found.layers["images_out"] > 0]
    unreached = len(found.layer_shapes)
    first, last = np.full(len(found.faults), unreached), np.full(len(found.faults), -1)
    np.minimum.at(first, changed["fault"], changed["layer"])
    np.maximum.at(last, changed["fault"], changed["layer"])
    first[first == unreached] = -1
    for name, expected in (("first_layer", first), ("last_layer", last)):
        stated = found.faults[name]
        _refuse(f"{name} in faults", stated, stated != expected, "the one that its rows in layers say")


def _check_operations(found: Propagation, pairs: Int64Array) -> None:
    """`pairs`: int64 [strata], of a fault and an image."""
    table = found.operations
    _check_range("stratum in operations", table["stratum"], 0, len(found.strata) - 1)
    _check_range("operation in operations", table["operation"], 0, len(found.graph) - 1)
    key = _wide(table, "stratum") << 16 | _wide(table, "operation")
    _refuse(
        "stratum in operations", table["stratum"][1:], np.diff(key) <= 0, "rows by stratum and operation, each once"
    )
    there, masked, out = (_wide(table, name) for name in ("images_in", "images_masked", "images_out"))
    for name, counts in (("images_in", there), ("images_masked", masked), ("images_out", out)):
        wrong = (counts < 0) | (counts > pairs[table["stratum"]])
        _refuse(f"{name} in operations", counts, wrong, "at most faults times images of the stratum")
    multiplies = np.array([operation.kind == "multiply" for operation in found.graph])[table["operation"]]
    quantises = np.array([operation.kind == "quantise" for operation in found.graph])[table["operation"]]
    wrong = (masked > there) | (there - masked > out) | (~multiplies & (there - masked != out))
    _refuse("images_masked in operations", masked, wrong, "images_in - images_out, but for what a fault itself changes")
    elements, left = _wide(table, "elements_in"), _wide(table, "elements_out")
    _refuse("elements_in in operations", elements, elements < there, "one or more of each image of images_in")
    _refuse("elements_out in operations", left, left < out, "one or more of each image of images_out")
    stopped = [_wide(table, name) for name in ("rounded", "saturated")]
    for name, counts in zip(("rounded", "saturated"), stopped, strict=True):
        _refuse(
            f"{name} in operations", counts, (counts < 0) | (~quantises & (counts > 0)), "0 but for quantised inputs"
        )
    wrong = quantises & (stopped[0] + stopped[1] != elements - left)
    _refuse("rounded in operations", stopped[0], wrong, "with saturated elements_in - elements_out")


def _wide(table: _Table, name: str) -> Int64Array:
    """A column whose differences and sums do not wrap."""
    column: Int64Array = table[name].astype(np.int64)
    return column


def _sum(table: _Table, names: tuple[str, ...]) -> Int64Array:
    total: Int64Array = np.sum([_wide(table, name) for name in names], axis=0, dtype=np.int64)
    return total


def _check_range(name: str, values: npt.NDArray[Any], least: float, most: float) -> None:
    expected = f"{least}" if least == most else f"{least}..{most}"
    _refuse(name, values, ~((values >= least) & (values <= most)), expected)


def _refuse(name: str, values: npt.NDArray[Any], wrong: BoolArray, expected: str) -> None:
    if wrong.any():
        raise InputError(f"{name} is {values[wrong].flat[0]}: expected {expected}")
