"""The files that a manifest names: read only when they are in its folder and have the digest that it says."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from efat.retraining.manifest import SOURCE, Manifest, ManifestChip, ManifestGroup
from simulator.errors import InputError
from simulator.files import digest_of_file
from training.layers.deployment import Deployment, read_deployed


def check_files(manifest: Manifest, folder: Path) -> None:
    """Check that every file that a manifest names is in its folder and is the one that it was made with.

    Args:
        manifest: the manifest.
        folder: where it is.

    Raises:
        FileNotFoundError: one is not there.
        InputError: one has another digest, or leads out of the folder.
    """
    named = dict.fromkeys((group.weights, group.sha256) for group in manifest.groups)
    named.update(dict.fromkeys((chip.deployment, chip.sha256) for chip in manifest.chips))
    for path, sha256 in named:
        _checked(folder, path, sha256)


def read_group_weights(folder: Path, group: ManifestGroup) -> tuple[dict[str, Tensor], Deployment]:
    """Weights of a group, and the deployment in their file, which bypasses and rearranges nothing.

    Args:
        folder: where the manifest is.
        group: of the manifest.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it has another digest than the manifest says, or is no such file.
    """
    path = _checked(folder, group.weights, group.sha256)
    weights, deployment = read_deployed(path)
    if deployment is None or not weights:
        raise InputError(f"{path} has no weights with the steps of activations: write it anew with {SOURCE}")
    if deployment.bypass.any() or deployment.placements:
        raise InputError(f"{path} is for one chip: expected weights of a group, with nothing bypassed or rearranged")
    return weights, deployment


def read_chip_deployment(folder: Path, chip: ManifestChip) -> Deployment:
    """How the weights of its group sit on a chip.

    Args:
        folder: where the manifest is.
        chip: of the manifest.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it has another digest than the manifest says, or is no such file.
    """
    path = _checked(folder, chip.deployment, chip.sha256)
    weights, deployment = read_deployed(path)
    if deployment is None or weights:
        raise InputError(f"{path} is no deployment without weights: write it anew with {SOURCE}")
    if int(deployment.bypass.sum()) != chip.bypassed_pes:
        raise InputError(
            f"{path} bypasses {int(deployment.bypass.sum())} PEs and the manifest says {chip.bypassed_pes} for chip "
            f"{chip.id}: write both anew with {SOURCE}"
        )
    return deployment


def _checked(folder: Path, path: str, sha256: str) -> Path:
    """The file that a path leads to, once it is known to be in the folder and to have the digest."""
    file = folder / path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the manifest names it")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} leads out of the folder of the manifest: expected a file in it, no link to others")
    if digest_of_file(file) != sha256:
        raise InputError(f"{file} is not the file that the manifest was made with: its SHA-256 is not {sha256[:12]}...")
    return file
