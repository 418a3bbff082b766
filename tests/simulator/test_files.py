"""Files are replaced whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.files import content_of_file, digest_of_file, replaced


def test_a_new_file_appears_when_it_is_done(tmp_path: Path) -> None:
    with replaced(tmp_path / "new.txt") as beside:
        beside.write_text("all of it")
        assert not (tmp_path / "new.txt").exists()
    assert (tmp_path / "new.txt").read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [tmp_path / "new.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_when_something_goes_wrong(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old.txt").write_text("old")

    def fail_midway() -> None:
        with replaced(tmp_path / "old.txt") as beside:
            beside.write_text("half of")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert (tmp_path / "old.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "old.txt"]


def test_a_copy_starts_from_the_content(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("one ")
    with replaced(tmp_path / "log.txt", copy=True) as beside, beside.open("a") as file:
        file.write("two")
    assert (tmp_path / "log.txt").read_text() == "one two"


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "shared.txt"
    path.write_text("old")
    path.chmod(0o640)
    with replaced(path) as beside:
        beside.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"), replaced(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="no such folder to write x into"), replaced(tmp_path / "no" / "x"):
        pass
    with pytest.raises(IsADirectoryError, match="not a regular file"), replaced(Path("/dev/null")):
        pass
    assert Path("/dev/null").is_char_device()


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="endless has 101 bytes: expected a small file, of at most 100"):
        content_of_file(tmp_path / "endless", 100, "a small file")
    with pytest.raises(InputError, match="endless is not a regular file: expected the name of a file to read"):
        digest_of_file(tmp_path / "endless")
    (tmp_path / "long").write_bytes(bytes(1001))
    with pytest.raises(InputError, match="long has 1,001 bytes: expected a small file, of at most 100"):
        content_of_file(tmp_path / "long", 100, "a small file")
    assert content_of_file(tmp_path / "long", 1001, "a small file") == bytes(1001)
