"""Everything that a folder may have beside ordinary images: what is found, and what is counted and how."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import DataError, InvalidInput
from embedserve.folder import kinds
from embedserve.folder import scan as scanner
from embedserve.folder.exclude import Exclude
from embedserve.folder.find import find
from embedserve.folder.scan import OLDER, scan
from embedserve.regular_file import regular as open_regular
from tests.fakes import picture
from tests.folder.everything import IMAGES, PASSED_OVER, write_everything


def names(*sources: Path | str, **options: Any) -> list[str]:
    return [file.name for file in find([Path(source) for source in sources], **options).files]


def test_a_folder_that_has_everything(tmp_path: Path) -> None:
    write_everything(tmp_path)
    found = find([tmp_path])
    assert [file.name for file in found.files] == IMAGES
    assert found.passed_over == PASSED_OVER
    assert found.broken == [tmp_path / "circle", tmp_path / "drive"]
    assert found.unreadable == []


def test_a_run_that_began_before_keeps_the_names_that_it_had(tmp_path: Path) -> None:
    write_everything(tmp_path)
    assert scan(tmp_path, rule=OLDER).images == [
        *("#recycle/x.png", "@eaDir/thumb.jpg", "Mine.lrdata/c.jpg", "Mine.photoslibrary/originals/1/a.jpg"),
        *("Mine.photoslibrary/resources/derivatives/b.jpg", "__MACOSX/y.png", "cats/@EADIR/thumb.jpg", "cats/a.png"),
        *("lost+found/x.png", "top.png"),
    ]


def test_files_with_a_known_suffix_are_not_opened_and_no_pipe_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_everything(tmp_path)
    opened = []
    real = open_regular

    def regular(path: str, flags: int) -> int:
        assert stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
        opened.append(os.path.relpath(path, tmp_path))
        return real(path, flags)

    monkeypatch.setattr(scanner, "regular", regular)
    scan(tmp_path)
    unknown = ["IMG.0001", "LICENSE", "avatar", "bitmap", "data.bin", "photo.JPG_large", "sound", "words.zzz"]
    assert sorted(opened) == unknown


def test_a_file_without_suffix_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "closed").touch()

    def regular(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scanner, "regular", regular)
    assert scan(tmp_path).unreadable == [(tmp_path / "closed", "Permission denied")]


@pytest.mark.parametrize(
    ("head", "is_image"),
    [
        (picture(0, format="JPEG"), True),
        (picture(0, format="PNG"), True),
        (picture(0, format="WEBP"), True),
        (picture(0, format="BMP"), True),
        (picture(0, format="GIF"), True),
        (picture(0, format="TIFF"), True),
        (b"RIFF\x24\0\0\0WAVEfmt ", False),
        (b"BM is how this text begins, and it goes on", False),
        (b"MM\0", False),
        (b"", False),
    ],
)
def test_what_is_an_image_by_its_first_bytes(head: bytes, is_image: bool) -> None:
    assert kinds.is_image(head[: kinds.HEAD_BYTES]) == is_image


def test_many_kinds_of_names_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for number in range(80):
        (tmp_path / f"x.z{number}").touch()
    counts = scan(tmp_path).passed_over
    assert len(counts) <= 51
    assert counts.total() == 80


def test_what_is_missing_is_said_with_its_remedy() -> None:
    if kinds.remedy(".heic"):
        assert kinds.passed_over_text({".svg": 3, ".heic": 7, "hidden": 2}) == (
            "7 .heic (pip install 'embedserve[heic]'), 3 .svg, 2 hidden"
        )
    assert kinds.passed_over_text({".svg": 1200, "@eaDir": 1200}) == "1,200 .svg, 1,200 @eaDir"


# --- Several folders, and lists ---


def test_names_are_relative_to_the_folder_of_each(tmp_path: Path) -> None:
    for name in ("a/cats/1.png", "b/cats/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path / "a", tmp_path / "b") == ["cats/1.png", "3.png", "cats/2.png"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=r"a/1\.png and .*/b/1\.png would both get the name '1\.png'"):
        names(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a", tmp_path / "b", unique=False) == ["1.png", "1.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_names_files_relative_to_its_folder(tmp_path: Path, mark: str, end: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for path in (here / "a b.png", here / "no suffix", here / "#1.png", there / "c.png"):
        path.touch()
    lines = [
        "# mine",
        "a b.png",
        "",
        "./no suffix",
        str(here / "a b.png"),
        "./#1.png",
        str(there / "c.png"),
        "gone.png",
    ]
    (here / "list.txt").write_bytes((mark + end.join([*lines, "gone.png", "../here"])).encode())
    found = find([Path(f"@{here}/list.txt")])
    outside = str(there / "c.png").lstrip("/")
    assert [file.name for file in found.files] == ["a b.png", "no suffix", "#1.png", outside]
    assert [file.path.read_bytes() for file in found.files] == [b""] * 4
    [gone, folder] = found.unreadable
    assert gone == (here / "gone.png", f"there is no such file, and {here}/list.txt names it")
    assert folder[1] == f"it is a folder, and {here}/list.txt is a list of files"


def test_exclude_leaves_out_lines_of_a_list_and_what_is_in_a_folder(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "b/3.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list").write_text("a/1.png\nb/2.png\nb/3.gif\n")
    exclude = Exclude(["a/", "*.gif", "nothing"])
    assert names(f"@{tmp_path}/list", exclude=exclude) == ["b/2.png"]
    assert exclude.unused == ["nothing"]


def test_a_folder_whose_name_begins_with_an_at_sign_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("@holiday").mkdir()
    Path("@holiday/a.png").touch()
    assert names("@holiday") == ["a.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no file"),
        (b"# only this\n\n", "names no file"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"a\0b\n", "line 1 .* has a zero byte"),
    ],
)
def test_a_list_that_means_nothing_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match=message):
        names(f"@{tmp_path}/list")


def test_a_list_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    with pytest.raises(DataError, match="it is a pipe, not a regular file"):
        names(f"@{tmp_path}/list")
