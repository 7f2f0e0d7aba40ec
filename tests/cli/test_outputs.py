"""What commands write: where it goes is checked first, and nothing is replaced unless the user says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from embedserve.cli import main
from embedserve.errors import DataError, InvalidInput


def invoke(*words: str | Path) -> Exception | None:
    """The error that a command ends with; None if it does not."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exception if isinstance(result.exception, Exception) else None


@pytest.fixture
def photos(tmp_path: Path, png_bytes: object) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png_bytes(seed=seed))  # type: ignore[operator]
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("train", ""),
        ("train", "PHOTOS", "-o", ""),
        ("evaluate", "", "PHOTOS"),
        ("preview", "PHOTOS", "-o", ""),
        ("embed", "", "-o", "x.npy"),
        ("export", ""),
        ("add", "", "--collection", "c"),
        ("demo", ""),
        ("demo", "-o", ""),
        ("serve", "encoder.onnx", "--data", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_does_not_stand_for_the_current_folder(
    words: tuple[str, ...], photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder.onnx").touch()
    error = invoke(*[str(photos) if word == "PHOTOS" else word for word in words])
    assert isinstance(error, InvalidInput)
    assert "is empty" in error.message


@pytest.mark.parametrize("name", ["photos.npy", "photos.json", "photos.jsonl"])
def test_embed_replaces_no_file_without_being_told(name: str, photos: Path, tmp_path: Path) -> None:
    before = b'{"my": "settings"}'
    (tmp_path / name).write_bytes(before)
    out = tmp_path / ("photos.jsonl" if name.endswith("jsonl") else "photos.npy")
    # No server is there: the outputs are looked at before anything else.
    error = invoke("embed", photos, "-o", out, "--server", "localhost:1")
    assert isinstance(error, DataError)
    assert f"{name} already exists" in error.message
    assert (tmp_path / name).read_bytes() == before


def test_embed_never_replaces_a_json_file_of_something_else(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.json").write_text('{"my": "settings"}')
    error = invoke("embed", photos, "-o", tmp_path / "photos.npy", "--overwrite", "--server", "localhost:1")
    assert isinstance(error, DataError)
    assert "is another file" in error.message
    assert json.loads((tmp_path / "photos.json").read_text()) == {"my": "settings"}


@pytest.mark.parametrize("name", ["picture.npy", "list.jsonl", "encoder.npy", "encoder.json"])
def test_embed_never_replaces_what_it_reads(name: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("a.png")
    out = path.with_suffix(".npy") if name == "encoder.json" else path
    (tmp_path / "link.npy").symlink_to(path)
    given: list[str | Path] = [photos, "--encoder", path]
    if name in ("picture.npy", "list.jsonl"):
        given = [tmp_path / "link.npy"] if name == "picture.npy" else [f"@{path}"]
    error = invoke("embed", *given, "-o", out, "--overwrite", "--server", "localhost:1")
    assert isinstance(error, InvalidInput)
    assert f"{name} is read, and would be replaced" in error.message
    assert path.read_text() == "a.png"


@pytest.mark.parametrize("words", [("embed", "-o", "no/such.npy"), ("preview", "-o", "no/such.png")], ids=" ".join)
def test_a_folder_that_does_not_exist_is_named_before_the_first_image(
    words: tuple[str, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words[0] == "preview":
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    error = invoke(words[0], photos, *words[1:])
    assert isinstance(error, DataError)
    assert "no/such" in error.message
    assert "cannot be written: No such file or directory" in error.message


def test_preview_replaces_no_picture_without_being_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preview.png").write_bytes(b"mine")
    error = invoke("preview", photos)
    assert isinstance(error, DataError)
    assert "preview.png already exists" in error.message
    assert (tmp_path / "preview.png").read_bytes() == b"mine"
    assert invoke("preview", photos, "--images", "1", "--views", "1", "--overwrite") is None
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("out", ["preview.png", "new.png", "../photos/x.png"])
def test_preview_does_not_write_into_the_folder_that_it_reads(
    out: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(photos)
    error = invoke("preview", ".", "-o", out)
    assert isinstance(error, InvalidInput)
    assert "would be one of the images" in error.message
    assert len(list(photos.iterdir())) == 3


def test_bench_looks_at_its_outputs_before_it_puts_load_on_a_server(tmp_path: Path) -> None:
    (tmp_path / "plot.svg").write_text("mine")
    error = invoke("bench", "serve", "--plot", tmp_path / "plot.svg", "--server", "localhost:1")
    assert isinstance(error, DataError)
    assert "plot.svg already exists" in error.message
    error = invoke("bench", "serve", "--json", tmp_path / "no" / "x.json", "--server", "localhost:1")
    assert isinstance(error, DataError)
    assert "cannot be written" in error.message


def test_a_demo_keeps_to_a_folder_of_its_own(photos: Path) -> None:
    error = invoke("demo", "-o", photos)
    assert isinstance(error, DataError)
    assert "0.png" in error.message
    assert len(list(photos.iterdir())) == 3
