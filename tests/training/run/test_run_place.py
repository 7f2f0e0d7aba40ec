"""Where a run may be kept: nothing that it did not write is ever removed or replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve.errors import DataError, TrainingError
from embedserve_training.run import image_list, run_folder

OURS = (run_folder.CHECKPOINT, run_folder.PLAN, run_folder.METRICS, run_folder.SAMPLES, run_folder.SKIPPED)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images, with subfolders of the names that a run uses for its own."""
    for name in ("a.png", "cache/b.png", "tensorboard/c.png", "2026/d.png"):
        path = tmp_path / "home" / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a picture")
    return tmp_path / "home" / "photos"


def a_run(folder: Path) -> Path:
    (folder / run_folder.CACHE).mkdir(parents=True)
    (folder / run_folder.TENSORBOARD).mkdir()
    (folder / run_folder.LOCK).touch()
    (folder / run_folder.PLAN).write_text('{"format": 2, "settings": {}, "preprocess": {}}')
    (folder / run_folder.CACHE / "0123456789abcdef.u8").write_bytes(b"pixels")
    (folder / run_folder.CACHE / "0123456789abcdef.json").write_bytes(b"{}")
    (folder / run_folder.TENSORBOARD / "events.out.tfevents.1.host.1.0").write_bytes(b"events")
    for name in (run_folder.CHECKPOINT, run_folder.METRICS, run_folder.SAMPLES):
        (folder / name).write_bytes(b"of the run")
    return folder


@pytest.mark.parametrize(
    "place",
    [
        lambda photos: photos,
        lambda photos: photos.parent,
        lambda photos: photos.parent.parent,
        lambda photos: photos / "2026" / "..",
        lambda photos: photos / "cache",
        lambda photos: photos / "2026",
    ],
    ids=["the images", "above them", "further above", "by another name", "images in a folder", "in another"],
)
def test_a_folder_with_images_is_no_place_for_a_run(place: Callable[[Path], Path], photos: Path) -> None:
    before = contents(photos.parent)
    with pytest.raises(TrainingError, match="the run folder") as caught:
        run_folder.check_place(place(photos), [photos])
    assert "-o FOLDER" in caught.value.hint
    assert contents(photos.parent) == before


def test_a_link_to_the_images_is_no_place_for_a_run(photos: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos)
    with pytest.raises(TrainingError, match="is the folder of the images"):
        run_folder.check_place(link, [photos])
    with pytest.raises(TrainingError, match="is the folder of the images"):
        run_folder.check_place(photos, [link])


def test_what_lies_above_the_folder_that_a_link_leads_to_is_no_place_for_a_run(photos: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos)
    with pytest.raises(TrainingError, match="has the images in it"):
        run_folder.check_place(photos.parent, [link])


def test_even_a_plan_among_the_images_does_not_make_their_folder_a_run(photos: Path) -> None:
    (photos / run_folder.PLAN).write_text('{"format": 2, "settings": {}, "preprocess": {}}')
    with pytest.raises(TrainingError, match="is the folder of the images"):
        run_folder.check_place(photos, [photos])


@pytest.mark.parametrize("name", [*OURS, "cache", "tensorboard", ".lock", "notes.md", ".hidden"])
def test_a_folder_with_anything_in_it_is_refused_whatever_its_name(name: str, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_bytes(b"mine")
    if name == ".lock":
        (other / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(TrainingError, match="is not empty and holds no run"):
        run_folder.check_place(other, [photos])


def test_a_file_is_no_place_for_a_run(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="is not a folder"):
        run_folder.check_place(tmp_path / "file", [photos])


def test_a_new_folder_an_empty_one_and_a_run_are_places(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new" / "run", tmp_path / "empty", a_run(tmp_path / "run"), photos / "new"):
        run_folder.check_place(place, [photos])


def test_a_run_that_was_killed_before_it_had_a_plan_is_a_place(photos: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for name in (run_folder.CHECKPOINT, run_folder.PLAN, run_folder.METRICS, run_folder.SAMPLES):
        (run / name).unlink()
    (run / run_folder.TENSORBOARD / "events.out.tfevents.1.host.1.0").unlink()
    (run / run_folder.TENSORBOARD).rmdir()
    (run / run_folder.CACHE / "0123456789abcdef.partial").touch()
    run_folder.check_place(run, [photos])
    (run / run_folder.CACHE / "holiday.jpg").touch()
    with pytest.raises(TrainingError, match="holds no run"):
        run_folder.check_place(run, [photos])


def test_only_files_of_the_run_are_removed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    mine = ["cache/holiday.jpg", "cache/0123456789abcdef.txt", "tensorboard/notes.md", "report.pdf", "cache/sub/a.u8"]
    for name in mine:
        path = run / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    run_folder.clear(run)
    run_folder.clear_cache(run)
    assert sorted(contents(run)) == sorted([*mine, run_folder.LOCK])


def test_nothing_is_left_of_the_folders_of_a_run_that_hold_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run_folder.clear(run)
    run_folder.clear_cache(run)
    assert [path.name for path in run.iterdir()] == [run_folder.LOCK]


def test_a_linked_folder_keeps_what_it_leads_to(photos: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run_folder.clear_cache(run)
    (run / run_folder.CACHE).symlink_to(photos)
    (photos / "0123456789abcdef.u8").write_bytes(b"not of this run")
    before = contents(photos)
    run_folder.clear_cache(run)
    assert contents(photos) == before


def test_what_a_run_writes_replaces_links_and_does_not_follow_them(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    names = (run_folder.SKIPPED, run_folder.NOTES, run_folder.LOCK)
    (run / run_folder.LOCK).unlink()
    for name in names:
        (tmp_path / name).write_text("mine")
        (run / name).symlink_to(tmp_path / name)
    with run_folder.locked(run):
        run_folder.write_skipped((), run, {".svg": 1})
        run_folder.write_notes((), run)
    assert [(tmp_path / name).read_text() for name in names] == ["mine"] * 3
    assert (run / run_folder.SKIPPED).read_text() == "passed over\t1 .svg\n"


def test_a_run_that_was_killed_while_it_was_cleared_is_still_a_place(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run")
    run_folder.write_skipped((), run)
    run_folder.write_notes((), run)
    (run / image_list.NAME).touch()
    removed: list[str] = []
    unlink = Path.unlink

    def checked(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        removed.append(path.name)
        run_folder.check_place(run, [photos])

    monkeypatch.setattr(Path, "unlink", checked)
    run_folder.clear(run)
    assert removed[-1] == run_folder.PLAN
    assert sorted(path.name for path in run.iterdir()) == [run_folder.LOCK, run_folder.CACHE, run_folder.SKIPPED]


def test_the_data_directory_of_a_server_is_no_place_for_a_run(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "catalog.sqlite").touch()
    with pytest.raises(DataError, match="the data directory of a server"):
        run_folder.check_place(tmp_path / "data" / "run", [photos])
