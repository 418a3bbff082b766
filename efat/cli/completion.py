"""What the shell offers for values of options; see `efat --help` for how to switch it on."""

from __future__ import annotations

from pathlib import Path

import click

NETWORK_NAMES = ("digits-cnn", "lenet5", "vgg11", "resnet20", "resnet18")
"""Names of `training.data.workloads.WORKLOADS`, without importing torch for them; a test keeps the two equal."""

MITIGATION_NAMES = tuple(
    f"{name}{after}"
    for name in ("none", "fap", "fam", "fam-columns", "fam-rows")
    for after in ("", "+t", "+bn", "+bn+t", "+t+gradual", "+bn+t+gradual")
)
"""Those of `training.learning.mitigations.combination.NAMES`, likewise."""


def complete_networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Networks by name."""
    return [name for name in NETWORK_NAMES if name.startswith(incomplete.lower())]


def complete_mitigations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Mitigations by name."""
    return [name for name in MITIGATION_NAMES if name.startswith(incomplete.lower())]


def complete_deployments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those of them that do not retrain."""
    return [name for name in complete_mitigations(context, parameter, incomplete) if "t" not in name.split("+")]


def complete_chips(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the chips of the lot that is given before; none if there is no such lot."""
    from simulator.lots.chips import ChipLot, LotError

    # As long as the option has no value, Click leaves arguments before it aside.
    lot = context.params.get("lot") or next(iter(context.args), None)
    if lot is None:
        return []
    try:
        with ChipLot(Path(lot)) as opened:
            return [chip_id for chip_id in opened.chip_ids if chip_id.startswith(incomplete)]
    except (OSError, LotError):
        return []
