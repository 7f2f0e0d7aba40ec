"""What a store writes can be read by its owner only, whatever the umask; what an operator made looser is named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.store.local.store import LocalStore
from embedserve.types import Item
from tests.logged import logged
from tests.sizes import small_seals
from tests.store.store_cases import new_collection, unit


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("index", ["hnsw:m=4", "ivf:nlist=4"])
def test_all_files_are_0600_and_all_directories_0700(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    small_seals(monkeypatch, few_bytes=1)
    with LocalStore.open(data, background=False) as store:
        new_collection(store, index=index)
        store.upsert("photos", [Item(id=str(n), vector=unit(1, n, n * n, 0)) for n in range(200)])
        store.maintain()
        with store.backup_collection("photos") as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
            store.restore_collection("restored", [file.read()])
        found = modes(data)
        assert any(name.endswith("items.sqlite-wal") for name in found)
        assert any(name.endswith("index.faiss") for name in found)
    found |= modes(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert {name: f"{mode:o}" for name, mode in found.items() if mode not in (0o600, 0o700)} == {}
    assert {name for name, mode in modes(data).items() if mode == 0o700} == {
        name for name in modes(data) if (data / name).is_dir()
    }


@pytest.mark.parametrize(("mode", "named"), [(0o700, False), (0o750, True), (0o755, True)])
def test_a_looser_directory_is_left_as_it_is_and_named_once(
    data: Path, caplog: pytest.LogCaptureFixture, mode: int, named: bool
) -> None:
    data.mkdir()
    data.chmod(mode)
    with LocalStore.open(data, background=False) as store:
        new_collection(store)
    assert stat.S_IMODE(data.stat().st_mode) == mode
    text = f"other users may enter the data directory  path={data} mode={mode:o}"
    assert [text in line for line in logged(caplog).splitlines()] == [True] * named
