"""Reading a user's own multiplier: a netlist of gates, as Yosys writes it in Verilog or BLIF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from simulator.files import BLIF, VERILOG, other_kind
from simulator.gates.blif import parse_blif
from simulator.gates.cells import NetlistError
from simulator.gates.netlist import Netlist, netlist_products
from simulator.gates.signs import OtherSignsError, Signs, check_signs, error_note
from simulator.gates.verilog import parse_verilog
from simulator.gates.wiring import assemble, choose_ports

LARGEST_FILE_BYTES = 8 << 20

_KINDS = {".v": VERILOG, ".sv": VERILOG, ".blif": BLIF}


class NetlistFile(NamedTuple):
    """A netlist that was read; and the names of its module or model, and of the ports that were taken."""

    netlist: Netlist
    model: str
    weight_port: str
    act_port: str
    product_port: str

    def __str__(self) -> str:
        # Files say neither which ports these are, nor what signs they have.
        netlist, note = self.netlist, error_note(netlist_products(self.netlist), self.netlist.signs)
        return (
            f"{self.model}: {len(netlist.gates)} gates; weight is port {self.weight_port} ({netlist.weight_bits} bits),"
            f" activation {self.act_port} ({netlist.act_bits} bits), product {self.product_port};\n"
            f"{netlist.signs}: {note}"
        )


def is_netlist_name(name: str | Path) -> bool:
    """Whether a file of this name is read as a netlist."""
    return Path(name).suffix.lower() in _KINDS


def read_netlist(
    path: str | Path,
    *,
    weight_port: str | None = None,
    act_port: str | None = None,
    product_port: str | None = None,
    weight_signed: bool = True,
    act_signed: bool = True,
) -> Netlist:
    """Read a multiplier's gates.

    The gates are those of the file, in an order in which each comes after those that drive it. Connections without a
    gate (`assign y = a`, a `.names` that only copies) make no gate.

    Args:
        path: structural Verilog or BLIF.
        weight_port: name of the weight's port; None for one named weight, w or b, or else the first input that is left.
        act_port: name of the activation's port; None for one named activation, act, a or x, or else the input left.
        product_port: name of the product's port; None for the only output.
        weight_signed: whether weights are two's complement; files do not say.
        act_signed: whether activations are two's complement; files do not say.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it has no multiplier made of gates, or one that is far nearer to other signs than these.
    """
    return read_netlist_file(
        path, weight_port, act_port, product_port, weight_signed=weight_signed, act_signed=act_signed
    ).netlist


def read_netlist_file(
    path: str | Path,
    weight_port: str | None = None,
    act_port: str | None = None,
    product_port: str | None = None,
    *,
    weight_signed: bool = True,
    act_signed: bool = True,
) -> NetlistFile:
    """As `read_netlist`, and tells which ports were taken."""
    path = Path(path)
    text = _text(path)
    kind = _KINDS.get(path.suffix.lower())
    is_blif = kind == BLIF if kind else re.search(r"^\s*\.model\b", text, re.MULTILINE)
    try:
        wiring = parse_blif(text) if is_blif else parse_verilog(text)
        ports = choose_ports(wiring, weight_port, act_port, product_port)
        netlist = assemble(wiring, ports, weight_signed=weight_signed, act_signed=act_signed)
        _check_signs(netlist, path)
    except NetlistError as error:
        raise NetlistError(f"{path}: {error}") from error
    return NetlistFile(netlist, wiring.model, ports.weight.name, ports.act.name, ports.product.name)


def _text(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a netlist in Verilog or BLIF")
    kind = _KINDS.get(path.suffix.lower())
    expected = f"{kind}, as its name ends in {path.suffix}" if kind else f"{VERILOG} or BLIF"
    wrong = other_kind(path, expected, own=(kind,) if kind else (VERILOG, BLIF))
    if wrong is not None:
        raise NetlistError(wrong)
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise NetlistError(
            f"{path} is larger than {LARGEST_FILE_BYTES >> 20} MiB: expected the netlist of a multiplier"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NetlistError(f"{path} is no text (byte {error.start}): expected a netlist in Verilog or BLIF") from None


_ADVICE = {
    Signs(True, True): "take an array of signed activations (without --unsigned-acts)",
    Signs(True, False): "take an array of unsigned activations (--unsigned-acts)",
    Signs(False, True): "weights of an array are signed: exchange the names of its ports",
    Signs(False, False): "weights of an array are signed: synthesise a signed multiplier, or make a table of signs and "
    "magnitudes of this one with 'efat multiplier table {path} --table-unsigned --sign-magnitude --write TABLE.npy'",
}
"""What to do with the netlist of a file for these signs."""


def _check_signs(netlist: Netlist, path: Path) -> None:
    """Refuse a netlist whose products are, or are far nearer to, those of other signs than stated."""
    try:
        check_signs(netlist_products(netlist) & ((1 << netlist.product_bits) - 1), netlist.signs)
    except OtherSignsError as error:
        raise NetlistError(f"{error}: {_ADVICE[error.nearest].format(path=path)}") from None
