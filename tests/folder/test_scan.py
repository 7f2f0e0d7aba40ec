"""Which files of a folder are taken for images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedserve.errors import DataError
from embedserve.folder.find import find
from embedserve.folder.scan import scan


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images(folder: Path) -> list[str]:
    return list(scan(folder).images)


def test_images_are_found_by_their_suffix_in_all_folders_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a/z.jpeg", "a/y/x.tiff", "c.webp", "notes.txt", "a/README", "jpg")
    assert images(tmp_path) == ["a/y/x.tiff", "a/z.jpeg", "b.PNG", "c.webp"]
    assert scan(tmp_path).passed_over == {".txt": 1, "without suffix": 2}


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.png", ".thumbs/a.png", "a/._b.jpg", "c.png")
    assert images(tmp_path) == ["c.png"]
    assert scan(tmp_path).passed_over == {"hidden": 3}


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/c.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(".")
    assert images(tmp_path) == ["a/b/c.png"]


def test_a_folder_is_named_by_its_real_place_if_that_is_inside(tmp_path: Path) -> None:
    touch(tmp_path, "m/c.png")
    for link in ("a", "z"):
        (tmp_path / link).symlink_to("m")
    assert images(tmp_path) == ["m/c.png"]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "outside/c.png", "inside/b.png")
    (tmp_path / "inside/more").symlink_to(tmp_path / "outside")
    (tmp_path / "inside/one.png").symlink_to(tmp_path / "outside/c.png")
    assert images(tmp_path / "inside") == ["b.png", "more/c.png", "one.png"]


def test_a_broken_link_is_kept_to_be_reported_later(tmp_path: Path) -> None:
    (tmp_path / "lost.png").symlink_to("gone.png")
    assert images(tmp_path) == ["lost.png"]


def test_a_pipe_is_kept_to_be_refused_when_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert images(tmp_path) == ["pipe.png"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "album.png/a.png")
    assert images(tmp_path) == ["album.png/a.png"]


def test_an_unreadable_folder_inside_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/b.png", "locked/c.png")
    real = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert images(tmp_path) == ["a/b.png"]
    assert scan(tmp_path).unreadable == [(tmp_path / "locked", "Permission denied")]


def test_an_unreadable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be read: No such file or directory"):
        scan(tmp_path / "gone")


def test_a_folder_without_images_is_described_by_what_it_has(tmp_path: Path) -> None:
    touch(tmp_path, "d.txt", "a.txt", "c.txt", "b.txt")
    with pytest.raises(DataError) as refused:
        find([tmp_path])
    assert refused.value.message == f"{tmp_path} has no images (passed over: 4 .txt, such as a.txt)"
    assert ".webp" in refused.value.hint
