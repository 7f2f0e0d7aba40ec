"""Folders of images: the files found, their order and labels, and the files left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedserve.errors import DataError
from embedserve.images import preprocess
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.data import cache, folders, survey

SPEC = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")


def put(path: Path, side: int = 16, value: int = 100) -> Path:
    """A grey PNG of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path)
    return path


def test_flat_and_nested_files_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "x/y/z/c.png", "x/a.jpeg"):
        put(tmp_path / name)
    assert folders.scan(tmp_path).paths == ("a.PNG", "b.png", "x/a.jpeg", "x/y/z/c.png")


def test_hidden_files_and_other_suffixes_are_ignored(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / ".hidden.png")
    put(tmp_path / ".thumbnails/a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert folders.scan(tmp_path).paths == ("a.png",)


def test_a_missing_folder_is_a_data_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        folders.scan(tmp_path / "nowhere")
    assert caught.value.hint


def test_a_folder_without_images_names_the_files_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"has no images .*notes\.txt") as caught:
        folders.scan(tmp_path)
    assert ".png" in caught.value.hint


def test_labels_are_the_top_level_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2.png", "dog/1.png"):
        put(tmp_path / name)
    assert folders.scan(tmp_path).labels == ("cat", "cat", "dog")


@pytest.mark.parametrize("names", [("1.png", "dog/1.png"), ("dog/1.png", "dog/2.png")])
def test_files_beside_subfolders_or_in_a_single_one_have_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / name)
    assert folders.scan(tmp_path).labels is None


def test_unreadable_files_are_left_out_with_their_reason(tmp_path: Path) -> None:
    put(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no image")
    cut = put(tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[:-40])
    decoded = cache.open_cache(folders.scan(tmp_path), SPEC, tmp_path / "cache", workers=2)
    assert len(decoded.pixels_NTTC) == 1
    reasons = {entry.path: entry.reason for entry in decoded.skipped}
    assert set(reasons) == {"empty.png", "text.jpg", "cut.png"}
    assert reasons["empty.png"] == "the image has zero bytes"


def test_a_folder_of_unreadable_files_only_is_a_data_error_that_quotes_the_first(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: the image has zero bytes"):
        cache.open_cache(folders.scan(tmp_path), SPEC, tmp_path / "cache", workers=1)


def test_images_of_every_kind_are_decoded_as_by_the_server(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    folder = folders.scan(tmp_path)
    decoded = cache.open_cache(folder, SPEC, tmp_path / "cache", workers=2)
    assert decoded.skipped == ()
    spec = SPEC
    for position, pixels in zip(decoded.positions, decoded.pixels_NTTC, strict=True):
        expected = preprocess.load(spec, (tmp_path / folder.paths[position]).read_bytes())
        np.testing.assert_array_equal(pixels, expected)


def test_a_second_run_reads_the_cache_and_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "images/a.png")
    folder = folders.scan(tmp_path / "images")
    first = cache.open_cache(folder, SPEC, tmp_path / "cache", workers=1)
    monkeypatch.setattr(cache, "load_all", None)  # calling it would fail
    second = cache.open_cache(folder, SPEC, tmp_path / "cache", workers=1)
    np.testing.assert_array_equal(first.pixels_NTTC, second.pixels_NTTC)
    assert second.fingerprint == first.fingerprint


def test_a_changed_file_changes_pixels_and_fingerprint(tmp_path: Path) -> None:
    path = put(tmp_path / "images/a.png", value=100)
    before = cache.open_cache(folders.scan(tmp_path / "images"), SPEC, tmp_path / "cache", workers=1)
    put(path, value=200)
    after = cache.open_cache(folders.scan(tmp_path / "images"), SPEC, tmp_path / "cache", workers=1)
    assert after.pixels_NTTC.max() == 200
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    put(tmp_path / "images/a.png")
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    found = {
        cache.open_cache(folders.scan(tmp_path / name), SPEC, tmp_path / "cache", workers=1).fingerprint
        for name in ("images", "elsewhere")
    }
    assert len(found) == 1


def test_the_number_of_threads_changes_neither_order_nor_pixels(tmp_path: Path) -> None:
    for i in range(30):
        put(tmp_path / f"images/{i:02d}.png", side=16 + i % 5, value=8 * i)
    folder = folders.scan(tmp_path / "images")
    one = cache.open_cache(folder, SPEC, tmp_path / "one", workers=1)
    four = cache.open_cache(folder, SPEC, tmp_path / "four", workers=4)
    np.testing.assert_array_equal(one.pixels_NTTC, four.pixels_NTTC)
    assert [int(pixels[0, 0, 0]) for pixels in one.pixels_NTTC] == [8 * i for i in range(30)]


@pytest.mark.parametrize(
    ("size_px", "median", "expected"), [(224, 500, 258), (224, 240, 240), (28, 28, 28), (64, 28, 28)]
)
def test_cached_images_have_a_margin_but_no_invented_pixels(size_px: int, median: int, expected: int) -> None:
    assert cache.cached_side_px(size_px, median) == expected


def test_the_median_side_is_that_of_the_shorter_sides(tmp_path: Path) -> None:
    for i, size in enumerate([(10, 50), (30, 20), (90, 80)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    assert survey.summarise(folders.scan(tmp_path)).median_side_px == 20


def test_images_are_grey_only_if_none_has_colour(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"{i}.png", value=50 * i)
    assert survey.summarise(folders.scan(tmp_path)).grey
    Image.new("RGB", (16, 16), (10, 20, 30)).save(tmp_path / "colour.png")
    assert not survey.summarise(folders.scan(tmp_path)).grey
