"""Lots of chips on disk: what is written is read, and a file that is wrong says so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.errors import InputError
from simulator.gates.designs import build_netlist
from simulator.lots.chips import Chip, ChipLot, append_chips, write_lot
from simulator.multipliers.multiplier import Multiplier, exact_products
from tests.support.strategies import configs, fault_maps

CONFIG = ArrayConfig(5, 9)

ids = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@st.composite
def lots(draw: st.DrawFn) -> tuple[ArrayConfig, list[Chip]]:
    config = draw(configs())
    chips = []
    for chip_id in draw(st.lists(ids, unique=True, max_size=5)):
        bypass = None
        if draw(st.booleans()):
            bypass = np.random.default_rng(draw(st.integers(0, 99))).random((config.rows, config.cols)) < 0.4
        chips.append(Chip(chip_id, draw(fault_maps(config, 100)), bypass))
    return config, chips


def some_chips(count: int, prefix: str = "chip") -> list[Chip]:
    return [Chip(f"{prefix}-{i}", sample_faults(CONFIG, FaultModel(0.3), i)) for i in range(count)]


@pytest.fixture
def lot(tmp_path: Path) -> Path:
    write_lot(tmp_path / "lot.h5", CONFIG, some_chips(6), provenance={"source": "a test", "seed": "0"})
    return tmp_path / "lot.h5"


def read(path: Path) -> list[Chip]:
    with ChipLot(path) as opened:
        return list(opened)


@settings(max_examples=60)
@given(lots())
def test_what_is_written_is_read(made: tuple[ArrayConfig, list[Chip]]) -> None:
    config, chips = made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lot.h5"
        assert write_lot(path, config, chips) == len(chips)
        with ChipLot(path) as opened:
            assert opened.config == config
            assert opened.chip_ids == [chip.id for chip in chips]
            assert len(opened) == len(chips)
            assert list(opened) == chips
            for chip in reversed(chips):
                assert opened[chip.id] == chip


@settings(max_examples=20)
@given(lots(), st.integers(0, 5))
def test_appending_is_writing_together(made: tuple[ArrayConfig, list[Chip]], split: int) -> None:
    config, chips = made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lot.h5"
        write_lot(path, config, chips[:split])
        assert append_chips(path, chips[split:]) == len(chips[split:])
        assert read(path) == chips


def multiplier_of_gates() -> Multiplier:
    return Multiplier("mine", build_netlist("wallace", 8, 8), act_signed=True)


def multiplier_of_tables() -> Multiplier:
    exact = exact_products(8, 8)
    return Multiplier.from_tables("mine \x1b[2J", exact, [exact // 2, exact - 1])


@pytest.mark.parametrize("multiplier", ["array", "dadda", multiplier_of_gates(), multiplier_of_tables()])
def test_a_lot_carries_its_multiplier(tmp_path: Path, multiplier: str | Multiplier) -> None:
    config = ArrayConfig(3, 3, multiplier=multiplier)
    chips = [Chip("one", FaultMap.from_faults(config, [Fault(1, 2, Site.MULTIPLIER, 1, Kind.STUCK_AT_1)]))]
    write_lot(tmp_path / "lot.h5", config, chips)
    append_chips(tmp_path / "lot.h5", [Chip("two", FaultMap(config))])
    with ChipLot(tmp_path / "lot.h5") as opened:
        assert opened.config == config
        assert opened["one"] == chips[0]
        name = opened.config.multiplier if isinstance(multiplier, str) else opened.config.pe_multiplier.name
        assert name == multiplier if isinstance(multiplier, str) else str(name).startswith("mine")
        assert str(name).isprintable()


def test_lots_of_version_1_have_the_default_multiplier(lot: Path) -> None:
    before = read(lot)
    with h5py.File(lot, "r+") as file:
        file.attrs["version"] = 1
        del file.attrs["multiplier"]
    assert read(lot) == before


def remade(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


@pytest.mark.parametrize(
    ("multiplier", "change", "message"),
    [
        ("dadda", lambda file: file.attrs.__delitem__("multiplier"), "attribute multiplier is missing"),
        (
            "dadda",
            lambda file: file.attrs.__setitem__("multiplier", np.bytes_("x")),
            "'x', and its gates or tables are",
        ),
        (multiplier_of_gates(), remade("multiplier_inputs", None), "'multiplier_inputs' is missing"),
        (multiplier_of_gates(), remade("multiplier_outputs", np.zeros(3, np.int32)), r"outputs \(3,\): expected"),
        (multiplier_of_gates(), remade("multiplier_gates", np.full(336, 99, np.uint8)), "gate code 99"),
        (multiplier_of_gates(), remade("multiplier_gates", np.zeros((2, 2), np.uint8)), r"uint8 \(2, 2\): expected"),
        (multiplier_of_tables(), remade("multiplier_tables", np.zeros((3, 256, 255), np.int16)), "expected int16"),
        (multiplier_of_tables(), remade("multiplier_tables", np.zeros((0, 256, 256), np.int16)), "expected int16"),
        (multiplier_of_tables(), remade("multiplier_tables", np.zeros((3, 256, 256), np.int32)), "expected int16"),
    ],
)
def test_tampered_multipliers_are_refused(
    tmp_path: Path, multiplier: str | Multiplier, change: Callable[[h5py.File], None], message: str
) -> None:
    path = tmp_path / "lot.h5"
    write_lot(path, ArrayConfig(2, 2, multiplier=multiplier), [])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        ChipLot(path)


def test_long_lots_are_written_and_read_in_blocks(tmp_path: Path) -> None:
    config = ArrayConfig(3, 3)
    chips = [Chip(str(i), sample_faults(config, FaultModel(0.5), i)) for i in range(700)]
    done: list[int] = []
    write_lot(tmp_path / "lot.h5", config, iter(chips), progress=done.append)
    assert sum(done) == 700
    assert len(done) > 1
    assert read(tmp_path / "lot.h5") == chips


def test_blocks_are_of_chips_and_of_faults(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips = read(lot)
    for most in (0, 1, len(chips[0].faults), len(chips[0].faults) + len(chips[1].faults), 1 << 40):
        monkeypatch.setattr("simulator.lots.chips._BLOCK_FAULTS", most)
        assert read(lot) == chips


def test_one_chip_is_read_without_the_others(lot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChipLot(lot) as opened:
        touched: list[slice] = []
        faults = opened._faults

        class Watched:
            def __getitem__(self, window: slice) -> Any:
                touched.append(window)
                return faults[window]

        monkeypatch.setattr(opened, "_faults", Watched())
        chip = opened["chip-3"]
    assert [window.stop - window.start for window in touched] == [len(chip.faults)]


def test_provenance_is_kept(lot: Path) -> None:
    with ChipLot(lot) as opened:
        assert opened.provenance == {"source": "a test", "seed": "0"}


def test_provenance_cannot_steer_the_terminal(tmp_path: Path) -> None:
    strange = {"source": "\x1b[2J[red]\udcff \N{GREEK SMALL LETTER ALPHA}", "note": ""}
    write_lot(tmp_path / "lot.h5", CONFIG, [], provenance=strange)
    with ChipLot(tmp_path / "lot.h5") as opened:
        cleaned = "\N{REPLACEMENT CHARACTER}[2J[red]\\udcff \N{GREEK SMALL LETTER ALPHA}"
        assert opened.provenance == {"source": cleaned, "note": ""}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("write", ["new", "append"])
def test_an_interrupted_write_leaves_what_was_there(lot: Path, error: type[BaseException], write: str) -> None:
    before = lot.read_bytes()

    def broken() -> Iterator[Chip]:
        yield from some_chips(3, "more")
        raise error

    def interrupted() -> None:
        if write == "new":
            write_lot(lot, CONFIG, broken())
        else:
            append_chips(lot, broken())

    with pytest.raises(error):
        interrupted()
    assert lot.read_bytes() == before
    assert list(lot.parent.iterdir()) == [lot]


def test_ids_must_differ(lot: Path) -> None:
    twice = some_chips(1) * 2
    with pytest.raises(InputError, match="chip id 'chip-0' is there twice"):
        write_lot(lot, CONFIG, twice)
    with pytest.raises(InputError, match="chip id 'chip-0' is there twice"):
        append_chips(lot, some_chips(1))
    assert len(read(lot)) == 6


def test_chips_must_be_of_the_lots_array(lot: Path) -> None:
    other = Chip("other", FaultMap(ArrayConfig(5, 8)))
    with pytest.raises(InputError, match="chip 'other' is of another array"):
        append_chips(lot, [other])


@pytest.mark.parametrize("chip_id", ["", " a", "a\n", "a\tb", "x" * 65, "\N{GREEK SMALL LETTER ALPHA}" * 33])
def test_ids_that_cannot_be_stored_are_refused(chip_id: str) -> None:
    with pytest.raises(InputError, match="expected 1 to 64 bytes of printable text"):
        Chip(chip_id, FaultMap(CONFIG))


def test_digests_cover_faults_and_bypassed_pes() -> None:
    faults = FaultMap.from_faults(CONFIG, [Fault(1, 2, Site.PSUM, 3, Kind.STUCK_AT_0)])
    none = np.zeros((CONFIG.rows, CONFIG.cols), np.bool_)
    one, other = none.copy(), none.copy()
    one[0, 1] = other[1, 0] = True
    plain = Chip("a", faults)
    assert plain.digest() == faults.digest() == Chip("b", faults, none).digest()
    assert len({chip.digest() for chip in (plain, Chip("a", faults, one), Chip("a", faults, other))}) == 3
    assert Chip("a", faults, one).digest() == Chip("b", faults, one.copy()).digest()
    # Older files have the digest of the faults.
    assert Chip("a", faults, one).has_digest(faults.digest())
    assert Chip("a", faults, one).has_digest(Chip("a", faults, one).digest())
    assert not Chip("a", faults, one).has_digest(Chip("a", faults, other).digest())
    assert not plain.has_digest(Chip("a", faults, one).digest())
    assert not plain.has_digest(None)


def test_a_bypass_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"bypass is bool \(5, 8\): expected bool \(5, 9\)"):
        Chip("a", FaultMap(CONFIG), np.zeros((5, 8), bool))
    with pytest.raises(InputError, match="bypass is int64"):
        Chip("a", FaultMap(CONFIG), np.zeros((5, 9), int))  # type: ignore[arg-type]


def test_unknown_chips_are_refused_with_near_names(lot: Path) -> None:
    with ChipLot(lot) as opened:
        with pytest.raises(InputError, match="no chip 'chip3' among its 6 chips; did you mean chip-3"):
            opened["chip3"]
        with pytest.raises(InputError, match=r"it has chip-0, chip-1, chip-2, \.\.\."):
            opened["Z"]


def test_files_that_are_no_lot_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; make it with `efat chips generate`"):
        ChipLot(tmp_path / "nothing.h5")
    with pytest.raises(InputError, match="is a folder"):
        ChipLot(tmp_path)
    for content in (b"text", b"\x89HDF\r\n\x1a\n", bytes(4096)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(InputError, match="is not an HDF5 file or is damaged"):
            ChipLot(tmp_path / "other")
    with h5py.File(tmp_path / "kind.h5", "w") as file:
        file.attrs["format"] = "something else"
    with pytest.raises(InputError, match="of another kind: expected attribute format='efat-chips'"):
        ChipLot(tmp_path / "kind.h5")


def test_a_file_cut_short_anywhere_is_refused(lot: Path, tmp_path: Path) -> None:
    whole = lot.read_bytes()
    for length in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        (tmp_path / "short.h5").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read(tmp_path / "short.h5")


def test_damaged_bytes_never_get_past_the_reader(lot: Path, tmp_path: Path, seed: int) -> None:
    """Whatever is damaged, a lot is read or refused with a `InputError`; what is read is made of legal faults."""
    random = np.random.default_rng(seed)
    whole = np.frombuffer(lot.read_bytes(), np.uint8)
    for _ in range(300):
        damaged = whole.copy()
        places = random.integers(0, len(whole), random.integers(1, 30))
        damaged[places] = random.integers(0, 256, len(places))
        (tmp_path / "damaged.h5").write_bytes(damaged.tobytes())
        try:
            chips = read(tmp_path / "damaged.h5")
        except InputError:
            continue
        for chip in chips:
            assert FaultMap(chip.faults.config, chip.faults.table) == chip.faults


def in_table(field: str, value: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        table = file["faults"][:]
        table[field][3] = value
        file["faults"][:] = table

    return change


def soft_link(file: h5py.File) -> None:
    del file["faults"]
    file["faults"] = h5py.SoftLink("/offsets")


def external_link(file: h5py.File) -> None:
    del file["faults"]
    file["faults"] = h5py.ExternalLink("other.h5", "faults")


def virtual(file: h5py.File) -> None:
    faults = file["faults"]
    layout = h5py.VirtualLayout(faults.shape, faults.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "faults", faults.shape, faults.dtype)
    del file["faults"]
    file.create_virtual_dataset("faults", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.__setitem__("version", 3), "format version 3: this program reads 1 to 2"),
        (lambda file: file.attrs.__setitem__("version", "one"), "attribute version is object"),
        (lambda file: file.attrs.__delitem__("version"), "attribute version is missing"),
        (lambda file: file.attrs.__setitem__("rows", 4), "do not fit 6 chips of 4x9 PEs"),
        (lambda file: file.attrs.__setitem__("rows", 0), r"rows is 0: expected 1\.\.1024"),
        (lambda file: file.attrs.__setitem__("rows", "many"), r"attribute rows is object \(\): expected one integer"),
        (lambda file: file.attrs.__setitem__("cols", np.bytes_(b"9" * 60_000)), r"attribute cols is \|S60000 \(\): e"),
        (lambda file: file.attrs.__setitem__("multiplier", np.bytes_(b"x" * 60_000)), "multiplier is 'x{79}, and its"),
        (lambda file: file.attrs.__delitem__("act_signed"), "attribute act_signed is missing"),
        (lambda file: file.attrs.__setitem__("act_signed", 1), "attribute act_signed is int64"),
        (remade("faults", None), "dataset 'faults' is missing"),
        (remade("faults", np.zeros(3)), r"dataset 'faults' is float64 \(3,\): expected its columns"),
        (remade("offsets", np.zeros(7, np.int32)), "dataset 'offsets' is int32"),
        (remade("offsets", np.zeros(3, np.int64)), r"offsets \(3,\) and bypass"),
        (remade("bypass", np.zeros((6, 2), np.uint8)), r"bypass \(6, 2\) do not fit"),
        (remade("chip_ids", np.array([b"a"] * 6, "S64")), "chip ids are not unique"),
        (remade("chip_ids", np.array([b"\xff"] * 6, "S64")), "a chip id is not UTF-8"),
        (remade("chip_ids", np.array([b"a\x1b[2J", *b"bcdef"], "S64")), "a chip id is not printable"),
        (lambda file: file.__setitem__("x", 1) or file.move("x", "y"), None),
        (lambda file: file["offsets"].__setitem__(1, -4), "offsets do not divide"),
        (lambda file: file["offsets"].__setitem__(6, 1 << 50), "offsets do not divide"),
        (lambda file: file["offsets"].__setitem__(0, 1), "offsets do not divide"),
        (lambda file: file["chip_ids"].__setitem__(2, b" "), "expected 1 to 64 bytes of printable text"),
        (in_table("row", 5), "chip 'chip-0': fault 3 .*expected row 0..4"),
        (in_table("col", 9), "expected col 0..8"),
        (in_table("site", 7), "unknown site"),
        (in_table("kind", 9), "unknown kind"),
        (in_table("bit", 32), "beyond the width"),
        (in_table("cycle", 7), "only a FLIP has a cycle"),
        (soft_link, "dataset 'faults' is missing"),
        (external_link, "dataset 'faults' is missing"),
        (virtual, "dataset 'faults' is missing"),
    ],
)
def test_tampered_files_are_refused(lot: Path, change: Callable[[h5py.File], None], message: str | None) -> None:
    (lot.parent / "other.h5").write_bytes(lot.read_bytes())
    before = read(lot)
    with h5py.File(lot, "r+") as file:
        change(file)
    if message is None:
        assert read(lot) == before
    else:
        with pytest.raises(InputError, match=message):
            read(lot)


def test_faults_that_are_not_in_the_file_are_refused(lot: Path) -> None:
    """A table of any size that nobody wrote takes no place in a file, and gigabytes of memory."""
    with h5py.File(lot, "r+") as file:
        dtype = file["faults"].dtype
        del file["faults"]
        file.create_dataset("faults", (6 * 45_000,), dtype, chunks=(1000,), compression=1)
        file["offsets"][:] = np.arange(7) * 45_000
    assert lot.stat().st_size < 20_000
    with pytest.raises(InputError, match="dataset 'faults' takes 270000 values, of which some are not in the file"):
        ChipLot(lot)


def test_ids_as_python_objects_are_refused(lot: Path) -> None:
    with h5py.File(lot, "r+") as file:
        del file["chip_ids"]
        file.create_dataset("chip_ids", data=["a"] * 6, dtype=h5py.string_dtype())
    with pytest.raises(InputError, match="dataset 'chip_ids' is object"):
        read(lot)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder to write lot\.h5 into"):
        write_lot(tmp_path / "no" / "lot.h5", CONFIG, [])


def test_chips_compare_by_content() -> None:
    faults = FaultMap.from_faults(CONFIG, [Fault(0, 0, Site.PSUM, 1, Kind.STUCK_AT_0)])
    assert Chip("a", faults) == Chip("a", faults, np.zeros((5, 9), bool))
    assert Chip("a", faults) != Chip("b", faults)
    assert Chip("a", faults) != Chip("a", FaultMap(CONFIG))
    assert Chip("a", faults) != "a"
