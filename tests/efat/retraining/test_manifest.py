"""The manifest of a retrained lot: what is written is read again, and what others wrote is checked before use."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efat.confidence import at_least
from efat.planning.plan import FileOf
from efat.planning.selection import Constraint
from efat.records import replace
from efat.retraining.manifest import (
    Manifest,
    ManifestChip,
    ManifestGroup,
    ManifestTotals,
    ManifestTuning,
    ManifestWork,
    check_files,
    read_chip_deployment,
    read_group_weights,
)
from efat.setup import Setup
from simulator import ArrayConfig
from simulator.errors import InputError
from simulator.files import digest_of_file
from simulator.lots.chips import LONGEST_ID_BYTES
from tests.support.damaged_json import (
    NO_INTEGERS,
    Damage,
    assert_every_field_is_needed,
    assert_read_or_refused,
    assert_refused,
    changed,
)
from tests.support.resilience import constraints
from training.layers.deployment import Deployment, write_deployed
from training.layers.placement import Placement

CONFIG = ArrayConfig(4, 3)
COUNTS = st.integers(0, 10**9)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
IDS = TEXTS.filter(lambda text: 1 <= len(text.encode()) <= LONGEST_ID_BYTES)
DIGESTS = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
FILES = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
JSON_VALUES = st.none() | st.booleans() | COUNTS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of any small lot."""
    images = draw(st.integers(1, 1000))
    constraint, fault_free_correct = draw(constraints()), draw(st.integers(0, images))
    required = constraint.required_of(images, fault_free_correct)
    of_tuning = draw(st.sampled_from([(5, 5), (1000, 0)]))
    tuning = ManifestTuning(of_tuning[0], constraint.required_to_end(*of_tuning), of_tuning[1])
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    ids = draw(st.lists(IDS, min_size=len(names), max_size=6, unique=True))
    # Each group has a chip; the others go anywhere.
    places = [*names, *(draw(st.sampled_from(names)) for _ in ids[len(names) :])]
    chips = []
    for chip_id, group in zip(ids, places, strict=True):
        correct, cycle_images = draw(st.integers(0, images)), draw(st.integers(0, images))
        pes = st.integers(0, CONFIG.pe_count)
        chips.append(
            ManifestChip(
                id=chip_id,
                digest=draw(DIGESTS),
                group=group,
                deployment=draw(FILES),
                sha256=draw(DIGESTS),
                tuning_correct=draw(st.integers(0, tuning.images)),
                correct=correct,
                at_least=at_least(correct, images),
                passes=correct >= required,
                bypassed_pes=draw(pes),
                faulty_pes=draw(pes),
                cycle_images=cycle_images,
                cycle_same=draw(st.booleans()) if cycle_images else True,
            )
        )
    groups = []
    for name in names:
        iterations = draw(COUNTS)
        groups.append(
            ManifestGroup(
                name=name,
                chips=tuple(draw(st.permutations([chip.id for chip in chips if chip.group == name]))),
                weights=draw(FILES),
                sha256=draw(DIGESTS),
                planned=draw(COUNTS),
                iterations=iterations,
                top_ups=draw(st.integers(0, iterations)),
                split_from=draw(st.none() | NAMES),
                severity=draw(st.floats(0, 1)),
                tuning_correct=draw(st.integers(0, tuning.images)),
            )
        )
    iterations = sum(group.iterations for group in groups) + draw(COUNTS)
    return Manifest(
        strategy=draw(st.sampled_from(["fixed", "select", "merge-8", "efat"])),
        aligned=draw(st.booleans()),
        images=images,
        required=required,
        fault_free_correct=fault_free_correct,
        verification=draw(DIGESTS),
        tuning=tuning,
        work=ManifestWork(draw(st.integers(1, 10**9)), draw(COUNTS)),
        constraint=constraint,
        setup=Setup(
            draw(NAMES), weights=draw(st.none() | FILES.map(Path)), mitigation=draw(st.sampled_from(["fap+t", "fam+t"]))
        ),
        identity=draw(st.dictionaries(TEXTS, DIGESTS, max_size=2)),
        array=CONFIG.record,
        lot=FileOf(draw(TEXTS), draw(DIGESTS)),
        groups=tuple(groups),
        chips=tuple(draw(st.permutations(chips))),
        totals=ManifestTotals(
            iterations=iterations,
            top_up_iterations=draw(st.integers(0, iterations)),
            split_groups=draw(COUNTS),
            resilience_iterations=draw(COUNTS),
            harden_iterations=draw(COUNTS),
            seconds=draw(st.floats(0, 1e9)),
        ),
        versions=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
    )


@settings(max_examples=30)
@given(manifests())
def test_what_is_written_is_read_again(manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "manifest.json", Path(folder) / "again.json"
        manifest.save(path)
        found = Manifest.load(path)
        found.save(again)
        assert path.read_bytes() == again.read_bytes()
    assert found == manifest
    assert found.passing == sum(chip.correct >= found.required for chip in found.chips)
    assert [found.chip_named[chip.id] for chip in manifest.chips] == list(manifest.chips)
    assert {chip.id for group in found.groups for chip in found.chips if chip.group == group.name} == set(
        found.chip_named
    )


def small() -> Manifest:
    """Two chips that share weights, and one with its own."""
    chips = [
        ManifestChip(
            name, 64 * "a", group, f"chips/{name}.safetensors", 64 * "b", 5, 8, at_least(8, 10), True, 2, 1, 4, True
        )
        for name, group in (("one", "first"), ("two", "second"), ("three", "first"))
    ]
    groups = [
        ManifestGroup(name, members, f"weights/{name}.safetensors", 64 * "c", 10, 12, 1, None, 0.5, 5)
        for name, members in (("first", ("one", "three")), ("second", ("two",)))
    ]
    return Manifest(
        strategy="efat",
        aligned=False,
        images=10,
        required=8,
        fault_free_correct=8,
        verification=64 * "f",
        tuning=ManifestTuning(6, 5, 5),
        work=ManifestWork(100, 0),
        constraint=Constraint(0.8),
        setup=Setup("digits-cnn"),
        identity={"network": 64 * "d"},
        array=CONFIG.record,
        lot=FileOf("lot.h5", 64 * "e"),
        groups=tuple(groups),
        chips=tuple(chips),
        totals=ManifestTotals(24, 4, 0, 100, 0, 2.5),
        versions={"python": "3"},
    )


OUTSIDE = ["../a", "a/../b", "/etc/passwd", "a//b", "./a", "a/.", "", "a\\b", "C:a", "a\x00", "a b", "~/a", 401 * "a"]
DAMAGES: list[tuple[Damage, str]] = [
    *((changed("groups", 1, "weights", to=path), r"groups\[1\]: weights is ") for path in OUTSIDE),
    *((changed("chips", 0, "deployment", to=path), r"chips\[0\]: deployment is ") for path in OUTSIDE),
    *((changed("groups", 0, "planned", to=value), r"groups\[0\]: planned is ") for value in NO_INTEGERS),
    *((changed("chips", 2, "correct", to=value), r"chips\[2\]: correct is ") for value in [*NO_INTEGERS, 11]),
    (changed("images", to=0), "images is 0: expected an integer from 1"),
    (changed("required", to=11), r"required is 11: expected an integer of 0\.\.10"),
    (changed("groups", 0, "severity", to=1.5), r"severity is 1\.5: expected a number within 0\.\.1"),
    (changed("groups", 0, "severity", to=10**400), "severity is an integer of more than 30 digits: expected a number"),
    (changed("groups", 0, "top_ups", to=13), r"top_ups is 13: expected an integer of 0\.\.12"),
    (changed("groups", 0, "sha256", to=64 * "G"), "expected 64 hexadecimal digits"),
    (changed("groups", 0, "chips", to=[]), r"groups\[0\]: chips is a list of 0: expected one or more ids"),
    (changed("groups", 0, "chips", to=["one", "one"]), "group 'first' does not list chip 'three'"),
    (changed("groups", 0, "chips", to=["one", "three", "three"]), "a group lists a chip twice"),
    (changed("groups", 0, "chips", to=["one", "three", "four"]), "group 'first' lists chip 'four'"),
    (changed("groups", 1, "name", to="first"), "group 'first' is there twice"),
    (changed("groups", 1, "name", to="../first"), "name is '../first': expected up to 100 letters"),
    (changed("groups", to={}), "groups is an object of 0: expected a list"),
    (changed("chips", 0, "group", to="third"), "group 'first' lists chip 'one', which says otherwise"),
    (changed("chips", 1, "id", to="one"), "chip 'one' is there twice"),
    (changed("chips", 1, "id", to="a\nb"), r"id is 'a\\nb': expected printable text"),
    (changed("chips", 1, "id", to=65 * "a"), "expected 1 to 64 bytes"),
    (changed("chips", 1, "id", to=""), "expected 1 to 64 bytes"),
    (changed("chips", 0, "passes", to=False), "passes is False: expected true, as 8 images are correct and 8 required"),
    (changed("chips", 0, "passes", to="yes"), "passes is 'yes': expected true or false"),
    (changed("chips", 0, "bypassed_pes", to=13), r"bypassed_pes is 13: expected an integer of 0\.\.12"),
    (changed("chips", 0, "cycle_images", to=11), "cycle_images is 11"),
    (changed("chips", 0, "tuning_correct", to=7), "tuning_correct is 7"),
    (changed("groups", 0, "tuning_correct", to=7), "tuning_correct is 7"),
    (changed("chips", 0, "at_least", to=0.8), "at_least is 0.8: expected 0.49.*, as 8 of 10 images are correct"),
    (changed("tuning", "required", to=7), "tuning: required is 7"),
    (changed("tuning", "required", to=4), "tuning: required is 4: expected 5, which the constraint takes of 6 images"),
    (changed("required", to=7), "required is 7: expected 8, which the constraint takes of 10 images"),
    (changed("constraint", to={"accuracy": 0.8}), "constraint has no 'max_drop'"),
    (changed("work", "on_array", to=0), "work: on_array is 0"),
    (changed("verification", to="f"), "verification is 'f'"),
    (changed("chips", 0, "more", to=1), "chips.0. has a field 'more': expected id, digest, "),
    (changed("chips", 0, to=None), r"chips\[0\] is null: expected an object"),
    (changed("chips", to=[]), r"chips is a list of 0: expected 1\.\."),
    (changed("array", "rows", to=0), r"array: rows is 0: expected 1\.\.1024"),
    (changed("array", "act_signed", to=1), "array: act_signed is 1"),
    (changed("array", "multiplier", to=3), "array: multiplier is 3"),
    (changed("totals", "iterations", to=23), "totals: iterations is 23: expected 24 or more, which its groups took"),
    (changed("totals", "seconds", to=-1), "seconds is -1"),
    (changed("lot", "sha256", to="e"), "lot: sha256 is 'e'"),
    (changed("setup", to=[]), "setup is a list of 0: expected an object"),
    (changed("identity", to={"network": 3}), "identity: network is 3"),
    (changed("versions", to={"python": 3}), "versions: python is 3"),
    (changed("strategy", to="the best"), "strategy is 'the best'"),
    (changed("format", to="efat-plan"), "is no efat-manifest file: expected one that efat retrain wrote"),
    (changed("version", to=1), "is of version 1, and this program reads 2: write it anew with efat retrain"),
    (changed("version", to=True), "is of version True, and this program reads 2"),
    (changed("unknown", to=1), "has a field 'unknown'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[str(number) for number in range(len(DAMAGES))])
def test_a_damaged_manifest_is_refused_in_a_line_that_names_it(tmp_path: Path, damage: Damage, message: str) -> None:
    assert_refused(Manifest.load, tmp_path / "manifest.json", small().as_dict(), damage, message)


def test_every_field_is_needed(tmp_path: Path) -> None:
    places: list[tuple[str | int, ...]] = [(), ("groups", 0), ("chips", 1), ("totals",), ("lot",), ("array",)]
    assert_every_field_is_needed(Manifest.load, tmp_path / "manifest.json", small().as_dict(), places)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", 10_000 * "[", '{"format": NaN}', '{"format": 1e999}', "\udcff", "\ufeff{}", "4" * 5000],
    ids=range(10),
)
def test_what_is_no_manifest_at_all_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"is no (JSON|efat-manifest)"):
        Manifest.load(path)


@given(st.data())
def test_a_manifest_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    assert_read_or_refused(Manifest.load, small().as_dict(), data)


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for wrong in (
        replace(small(), required=11),
        replace(small(), chips=small().chips[:2]),
        replace(small(), groups=(replace(small().groups[0], weights="../first"), small().groups[1])),
    ):
        with pytest.raises(InputError, match=re.escape(str(path))):
            wrong.save(path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="efat retrain writes it"):
        Manifest.load(path)


def with_files(folder: Path, random: np.random.Generator) -> Manifest:
    """The small manifest with files that it names."""
    manifest = small()
    none = np.zeros((CONFIG.rows, CONFIG.cols), np.bool_)
    start = Deployment(CONFIG.record, none, {"layer": 0.5}, {})
    (folder / "weights").mkdir()
    (folder / "chips").mkdir()
    groups, chips = [], []
    for group in manifest.groups:
        weights = {"layer.weight": torch.from_numpy(random.normal(size=(3, 5)).astype(np.float32))}
        write_deployed(folder / group.weights, weights, start, {})
        groups.append(replace(group, sha256=digest_of_file(folder / group.weights)))
    for chip in manifest.chips:
        bypass = random.random(none.shape) < 0.3
        placement = Placement(random.permutation(5)[None], random.permutation(3)[None])
        deployment = Deployment(CONFIG.record, bypass, {"layer": 0.5}, {"layer": placement})
        write_deployed(folder / chip.deployment, {}, deployment, {"chip": chip.id})
        chips.append(replace(chip, sha256=digest_of_file(folder / chip.deployment), bypassed_pes=int(bypass.sum())))
    return replace(manifest, groups=tuple(groups), chips=tuple(chips))


def test_files_are_read_as_they_were_written(tmp_path: Path, seed: int) -> None:
    manifest = with_files(tmp_path, np.random.default_rng(seed))
    check_files(manifest, tmp_path)
    random = np.random.default_rng(seed)
    for group in manifest.groups:
        weights, deployment = read_group_weights(tmp_path, group)
        expected = random.normal(size=(3, 5)).astype(np.float32)
        assert np.array_equal(weights["layer.weight"].numpy(), expected)
        assert (deployment.bypass.any(), dict(deployment.placements)) == (False, {})
        assert deployment.activation_scales == {"layer": 0.5}
    for chip in manifest.chips:
        deployment = read_chip_deployment(tmp_path, chip)
        assert np.array_equal(deployment.bypass, random.random(deployment.bypass.shape) < 0.3)
        assert np.array_equal(deployment.placements["layer"].rows[0], random.permutation(5))
        assert np.array_equal(deployment.placements["layer"].columns[0], random.permutation(3))
        assert deployment.about["chip"] == chip.id


def test_files_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path, seed: int) -> None:
    manifest = with_files(tmp_path, np.random.default_rng(seed))
    group, chip = manifest.groups[1], manifest.chips[2]
    for path, read in (
        (tmp_path / group.weights, lambda: read_group_weights(tmp_path, group)),
        (tmp_path / chip.deployment, lambda: read_chip_deployment(tmp_path, chip)),
    ):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        for function in (read, lambda: check_files(manifest, tmp_path)):
            path.write_bytes(content)
            with pytest.raises(InputError, match=f"{re.escape(str(path))} is not the file that the manifest was made"):
                function()
            path.unlink()
            with pytest.raises(FileNotFoundError, match=f"{re.escape(str(path))}: no such file"):
                function()
        content[-1] ^= 1
        path.write_bytes(content)
    check_files(manifest, tmp_path)


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path: Path, seed: int) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    manifest = with_files(inside, np.random.default_rng(seed))
    shutil.move(inside / "weights", outside)
    (inside / "weights").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the folder of the manifest"):
        read_group_weights(inside, manifest.groups[0])
    with pytest.raises(InputError, match="leads out of the folder of the manifest"):
        check_files(manifest, inside)


def test_files_of_the_wrong_kind_are_refused(tmp_path: Path, seed: int) -> None:
    manifest = with_files(tmp_path, np.random.default_rng(seed))
    group, chip = manifest.groups[0], manifest.chips[0]
    swapped = replace(group, weights=chip.deployment, sha256=chip.sha256)
    with pytest.raises(InputError, match="has no weights with the steps of activations"):
        read_group_weights(tmp_path, swapped)
    with pytest.raises(InputError, match="is no deployment without weights"):
        read_chip_deployment(tmp_path, replace(chip, deployment=group.weights, sha256=group.sha256))
    with pytest.raises(InputError, match=f"the manifest says {chip.bypassed_pes + 1} for chip one"):
        read_chip_deployment(tmp_path, replace(chip, bypassed_pes=chip.bypassed_pes + 1))
    deployment = read_chip_deployment(tmp_path, chip).with_bypass(np.ones((CONFIG.rows, CONFIG.cols), np.bool_))
    both = tmp_path / "weights" / "both"
    write_deployed(both, {"layer.weight": torch.zeros(3, 5)}, deployment, {})
    with pytest.raises(InputError, match="is for one chip: expected weights of a group"):
        read_group_weights(tmp_path, replace(group, weights="weights/both", sha256=digest_of_file(both)))
