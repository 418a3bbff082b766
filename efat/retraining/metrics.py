"""Everything that was measured in a retraining, as JSON: written, read again, and what of it is shown."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from efat.inference.classified import Accuracy
from efat.records import digest_of
from simulator.errors import InputError, first_line
from simulator.files import replaced
from training.layers.convert import quantized_layers

if TYPE_CHECKING:
    from efat.retraining.chip import Retraining

FORMAT = "efat-retraining"
VERSION = 2

Metrics = Mapping[str, Any]
"""What is in `metrics.json`; docs/formats.md says it field by field."""

_PACKAGES = ("efat", "torch", "numpy")

_Kind = TypeVar("_Kind")


def metrics_of(retraining: Retraining) -> dict[str, Any]:
    """Everything about a retraining that has run. But for `wall`, interruptions do not change it.

    Raises:
        ValueError: it has not run.
    """
    result, chip = retraining.result, retraining.chip
    float_accuracy, fault_free = retraining.float_accuracy, retraining.fault_free_accuracy
    if result is None or float_accuracy is None or fault_free is None or retraining.verified is None:
        raise ValueError("nothing was retrained: call run() first")
    before, after = (Accuracy(found.correct, found.images) for found in (result.evaluations[0], result.evaluations[-1]))
    verified = retraining.verified
    train, held_out = retraining.data.train, retraining.data.held_out
    bypass = result.deployment.bypass
    layers = quantized_layers(result.network).values()
    acting = [kept for layer in layers if (kept := layer.acting(bypass)) is not None]
    started_from = retraining.started_from
    return {
        "format": FORMAT,
        "version": VERSION,
        "identity": retraining.identity,
        "network": retraining.network_name,
        "weights": None if retraining.weights is None else str(retraining.weights),
        "weights_retrained_for": None if started_from is None else dict(started_from.about),
        "data": {
            "name": held_out.name,
            "source": None if retraining.source is None else str(retraining.source),
            "normalization": None if retraining.normalization is None else str(retraining.normalization),
            "training_images": len(train),
            "held_out_images": len(held_out),
            "decided_by_them": retraining.split is not None,
            "verification_images": len(retraining.verification),
        },
        "lot": str(retraining.lot),
        "chip": {
            "id": chip.id,
            "digest": chip.faults.digest(),
            "array": chip.faults.config.as_dict(),
            "faults": chip.faults.summary(),
            "bypassed_by_fuses": chip.bypassed_by_fuses,
        },
        "mitigation": retraining.mitigation,
        "recipe": retraining.recipe.as_dict(),
        "calibration": retraining.calibration,
        "learn_scales": retraining.learn_scales,
        "budget": {
            "iterations": retraining.prepared.iterations,
            "epochs": retraining.epochs,
            "iterations_per_epoch": retraining.per_epoch,
            "evaluate_at": list(retraining.evaluate_at),
            "target_accuracy": retraining.target_accuracy,
        },
        "bypassed_pes": int(bypass.sum()),
        "placed_layers": len(result.deployment.placements),
        "weights_on_chip": sum(layer.weight.numel() for layer in layers),
        "weights_pruned": sum(int((~kept).sum()) for kept in acting),
        "accuracy": {
            "float": float_accuracy.as_dict(),
            "fault_free": fault_free.as_dict(),
            "before": before.as_dict(),
            "after": after.as_dict(),
        },
        "verified": {
            "fault_free": verified[1].as_dict(),
            "after": verified[0].as_dict(),
        },
        "iterations": len(result.losses),
        "reached_target": result.reached_target,
        "diverged_at": None if retraining.diverged is None else retraining.diverged.iteration,
        "message": None if retraining.diverged is None else str(retraining.diverged),
        "evaluations": [{**asdict(found), "accuracy": found.accuracy} for found in result.evaluations],
        "losses": result.losses,
        "wall": {"seconds": retraining.seconds, "from_iteration": retraining.from_iteration},
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def about(metrics: Metrics) -> dict[str, str]:
    """What a file of weights says of where it is from: see `training.layers.deployment.write_deployed`."""
    after = metrics["verified"]["after"]
    return {
        "network": metrics["network"],
        "data": metrics["data"]["name"],
        "chip": metrics["chip"]["id"],
        "chip_digest": metrics["chip"]["digest"],
        "mitigation": metrics["mitigation"],
        "iterations": str(metrics["iterations"]),
        "accuracy": f"{after['correct']}/{metrics['data']['verification_images']}",
        "program": f"efat {metrics['versions']['efat']}",
        "run": digest_of_identity(metrics["identity"]),
    }


def digest_of_identity(identity: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what decides the result of a retraining."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def write_metrics(path: Path, metrics: Metrics, weights_sha256: str) -> None:
    """Write them in one piece, with the digest of the file of weights and of all of it."""
    content = {**metrics, "weights_sha256": weights_sha256}
    with replaced(path) as beside:
        beside.write_text(json.dumps({**content, "sha256": digest_of(content)}, indent=2, allow_nan=False) + "\n")


def read_metrics(path: Path) -> dict[str, Any]:
    """Read what `write_metrics` wrote.

    Raises:
        InputError: it is something else, of another version, or damaged.
    """
    found = _of_retraining(path)
    try:
        whole = found["sha256"] == digest_of({name: value for name, value in found.items() if name != "sha256"})
    except (KeyError, ValueError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged, as its digest is another")
    try:
        Summary.of(found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {first_line(error)})") from None
    return found


def read_identity(path: Path) -> dict[str, str]:
    """What the retraining was made from that a file says it is of, whether it is damaged or not.

    Raises:
        InputError: it is something else, or of another version.
    """
    identity: dict[str, str] = _of_retraining(path)["identity"]
    return identity


def _of_retraining(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({first_line(error)})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is not from efat retrain-chip")
    if found.get("version") != VERSION:
        raise InputError(f"{path} is of version {str(found.get('version'))[:20]}, and this program reads {VERSION}")
    identity = found.get("identity")
    if not isinstance(identity, dict) or not all(isinstance(value, str) for value in identity.values()):
        raise InputError(f"{path} does not say what it was made from")
    return found


@dataclass(frozen=True)
class Summary:
    """What people want to know of a retraining.

    Attributes:
        network: its name.
        data: name of the data.
        chip: id of the chip.
        array: rows and columns.
        mitigation: name of the strategy.
        faulty_pes: PEs with a fault.
        bypassed_pes: PEs that are bypassed.
        weights: weights of the layers on the chip.
        pruned: those of them that sit on bypassed PEs.
        in_float: accuracy of the float network.
        fault_free: accuracy of the quantised one without faults.
        before: accuracy on the chip before retraining.
        after: accuracy on the chip in the end.
        decided: whether these images decided when it ended.
        target: accuracy on them at which it was to end; None for none.
        verified: accuracy on the chip in the end, on images that decided nothing.
        verified_fault_free: that of the quantised network without faults, on the same.
        iterations: mini-batches learned from.
        reached_target: whether it ended early because the target accuracy was reached.
        message: how it diverged; None if it did not.
        seconds: that it took.
        from_iteration: where those seconds begin.
    """

    network: str
    data: str
    chip: str
    array: tuple[int, int]
    mitigation: str
    faulty_pes: int
    bypassed_pes: int
    weights: int
    pruned: int
    in_float: Accuracy
    fault_free: Accuracy
    before: Accuracy
    after: Accuracy
    decided: bool
    target: float | None
    verified: Accuracy
    verified_fault_free: Accuracy
    iterations: int
    reached_target: bool
    message: str | None
    seconds: float
    from_iteration: int

    @classmethod
    def of(cls, metrics: Metrics) -> Summary:
        """Take it from everything.

        Raises:
            KeyError: something is not there.
            TypeError: something is of another type.
            ValueError: counts that cannot be.
        """
        images = _get(metrics, int, "data", "held_out_images")
        unseen = _get(metrics, int, "data", "verification_images")

        def of_images(count: int, *names: str) -> Accuracy:
            correct = _get(metrics, int, *names, "correct")
            if not 0 <= correct <= count or not count:
                raise ValueError(f"{correct} of {count} images are correct: expected 0..images, and 1 or more images")
            return Accuracy(correct, count)

        def accuracy(name: str) -> Accuracy:
            return of_images(images, "accuracy", name)

        def verified(name: str) -> Accuracy:
            return of_images(unseen, "verified", name)

        message, target = metrics["message"], metrics["budget"]["target_accuracy"]
        return cls(
            network=_get(metrics, str, "network"),
            data=_get(metrics, str, "data", "name"),
            chip=_get(metrics, str, "chip", "id"),
            array=(_get(metrics, int, "chip", "array", "rows"), _get(metrics, int, "chip", "array", "cols")),
            mitigation=_get(metrics, str, "mitigation"),
            faulty_pes=_get(metrics, int, "chip", "faults", "faulty_pes"),
            bypassed_pes=_get(metrics, int, "bypassed_pes"),
            weights=_get(metrics, int, "weights_on_chip"),
            pruned=_get(metrics, int, "weights_pruned"),
            in_float=accuracy("float"),
            fault_free=accuracy("fault_free"),
            before=accuracy("before"),
            after=accuracy("after"),
            decided=_get(metrics, bool, "data", "decided_by_them"),
            target=None if target is None else float(target),
            verified=verified("after"),
            verified_fault_free=verified("fault_free"),
            iterations=_get(metrics, int, "iterations"),
            reached_target=_get(metrics, bool, "reached_target"),
            message=None if message is None else _get(metrics, str, "message"),
            seconds=float(_get(metrics, float, "wall", "seconds")),
            from_iteration=_get(metrics, int, "wall", "from_iteration"),
        )


def _get(metrics: Metrics, kind: type[_Kind], *names: str) -> _Kind:
    """What is at a path, if it is of a type."""
    found: Any = metrics
    for name in names:
        if not isinstance(found, Mapping):
            raise TypeError(f"no {name} in a {type(found).__name__}")
        found = found[name]
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise TypeError(f"{'.'.join(names)} is a {type(found).__name__}: expected {kind.__name__}")
    return found
