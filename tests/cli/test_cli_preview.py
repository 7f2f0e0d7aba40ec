"""`embedserve preview` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.outcome import Cli

pytest.importorskip("torch")


def test_help_shows_an_example_and_the_presets(cli: Cli) -> None:
    outcome = cli("preview", "--help")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "\n  embedserve preview photos/ -o preview.png" in outcome.out
    assert "microscopy" in outcome.out


def test_a_picture_is_written_and_its_path_printed(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "views.png"
    outcome = cli("preview", photos, "-o", out, "--augmentation", "product", "--images", 2, "--views", 3)
    assert (outcome.exit_code, outcome.out) == (0, "")
    assert f"{out}: 2 images, 3 views of each" in outcome.err
    assert "product: crop 30–100 %" in outcome.err
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_json_names_what_was_drawn(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "views.png"
    document = cli("preview", photos, "-o", out, "--images", 6, "--views", 1, "--size-px", 16, "--json").json
    assert document == {
        "path": str(out),
        "size_px": 16,
        "augmentations": ["small"],
        "images": ["cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp", "top.png"],
        "found": 6,
        "passed_over": {},
        "skipped": [{"path": "broken.png", "reason": document["skipped"][0]["reason"]}],
        "notes": {},
    }


def test_all_presets_with_two_images_each(cli: Cli, photos: Path, tmp_path: Path) -> None:
    outcome = cli("preview", photos, "-o", tmp_path / "all.png", "--all", "--views", 1, "--size-px", 16)
    assert outcome.exit_code == 0
    assert "2 images, 1 views" not in outcome.err
    assert "2 images, 1 view of each" in outcome.err


def test_other_settings_of_training_are_given_as_there(cli: Cli, photos: Path, tmp_path: Path) -> None:
    outcome = cli("preview", photos, "-o", tmp_path / "p.png", "--set", "crop_min=0.5")
    assert "crop 50–100 %" in outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--augmentation", "sepia"], "augmentation is 'sepia'"),
        (["--set", "speed=11"], "there is no setting 'speed'"),
        (["-o", "nowhere/p.png"], "nowhere/p.png cannot be written"),
        (["-o", "file.txt/p.png"], "file.txt/p.png cannot be written"),
        (["-o", "."], "has no file name"),
        (["-o", "/"], "has no file name"),
        (["-o", ""], "is empty"),
    ],
)
def test_a_slip_is_answered_with_one_sentence_and_a_hint(
    words: list[str], expected: str, cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("no folder")
    outcome = cli("preview", photos, *words)
    assert outcome.exit_code in (1, 2)
    [error] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert expected in error
    assert "\nhint:  " in outcome.err


def test_one_preset_and_all_of_them_cannot_be_asked_for_together(cli: Cli, photos: Path) -> None:
    outcome = cli("preview", photos, "--all", "--augmentation", "photo")
    assert outcome.exit_code == 2
    assert "leave out --augmentation" in outcome.err


def test_no_image_at_all_is_wrong_usage(cli: Cli, photos: Path) -> None:
    assert cli("preview", photos, "--images", 0).exit_code == 2
