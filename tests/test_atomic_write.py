"""A file appears under its name once it is complete; otherwise nothing is left of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from embedserve.atomic_write import atomic_write, check_writable
from embedserve.errors import DataError


def test_a_file_has_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("raised", [ValueError("no"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path, raised: BaseException) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")

    def write() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"abc")
            raise raised

    with pytest.raises(type(raised)):
        write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")
    with pytest.raises(DataError, match="f already exists"), atomic_write(path):
        pass
    assert path.read_bytes() == b"before"
    with atomic_write(path, overwrite=True) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "f") as file:
            file.write(b"abc")
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_a_replaced_file_keeps_its_permissions_even_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with atomic_write(path, overwrite=True) as file:
        file.write(b"after")
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"after"


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path(os.devnull)):
        with (
            pytest.raises(DataError, match="already exists, and is not a regular file"),
            atomic_write(path, overwrite=True),
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
    assert Path(os.devnull).is_char_device()


def test_a_link_is_kept_and_the_file_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "of-today", tmp_path / "latest"
    path.write_bytes(b"before")
    link.symlink_to(path)
    with atomic_write(link, overwrite=True) as file:
        file.write(b"after")
    assert link.is_symlink()
    assert path.read_bytes() == b"after"


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "f"):
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="f cannot be written: No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_into_the_data_directory_of_a_server(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "collections").mkdir(parents=True)
    for name in ("catalog.sqlite", "LOCK", "collections/items.sqlite"):
        (data / name).write_text("of the server")
    (tmp_path / "link").symlink_to(data / "LOCK")
    for path in (data / "LOCK", data / "new.bak", data / "collections" / "items.sqlite", tmp_path / "link"):
        with pytest.raises(DataError, match="the data directory of a server"):
            check_writable(path, overwrite=True)
        with pytest.raises(DataError, match="the data directory of a server"), atomic_write(path, overwrite=True):
            pass
    assert (data / "LOCK").read_text() == "of the server"
    assert not (data / "new.bak").exists()
