"""`embedserve embed` against a real server, and in this process with a real encoder file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from embedserve import Client
from embedserve.encoder import encoder_file
from embedserve.encoder.encoder_file import EncoderMetadata
from embedserve.images import codec, preprocess
from embedserve.images.preprocess import PreprocessSpec, load
from tests.cli.outcome import Cli
from tests.fakes import DIMENSION, FakeEncoder, picture

NAMES = ["cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp", "top.png"]


def expected(path: Path) -> np.ndarray:
    """The fake encoder's vector of one file, made here."""
    encoder = FakeEncoder()
    return encoder.encode(load(encoder.metadata.preprocess, path.read_bytes())[None])[0]


def test_an_array_holds_a_row_for_each_image_and_a_document_names_them(cli: Cli, photos: Path, tmp_path: Path) -> None:
    outcome = cli("embed", photos, "-o", tmp_path / "out.npy")
    assert outcome.exit_code == 0
    vectors = np.load(tmp_path / "out.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, DIMENSION))
    document = json.loads((tmp_path / "out.json").read_text())
    assert document == {
        "encoder": {"name": "fake", "fingerprint": "fa" * 32, "dimension": DIMENSION},
        "paths": [f"{photos}/{name}" for name in NAMES],
        "failed": [],
        "passed_over": {},
    }
    for path, vector in zip(document["paths"], vectors, strict=True):
        assert vector == pytest.approx(expected(Path(path)), abs=1e-6)
    assert re.search(
        r"embedded 5 of 5 with fake \(fafafafafafa\), 16 numbers per image, in [\d.]+ s \([\d.]+ images/s\),"
        rf" to {tmp_path}/out\.npy",
        outcome.err,
    )
    assert outcome.out == ""


def test_json_lines_hold_path_vector_and_encoder(cli: Cli, photos: Path, tmp_path: Path) -> None:
    assert cli("embed", photos / "cats", photos / "top.png", "-o", tmp_path / "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{photos}/{name}" for name in ("cats/a.png", "cats/b.jpg", "top.png")]
    assert {row["encoder_fingerprint"] for row in rows} == {"fa" * 32}
    for row in rows:
        assert row["vector"] == pytest.approx(expected(Path(row["path"])).tolist(), abs=1e-6)


def test_a_dash_prints_the_same_lines(cli: Cli, photos: Path, tmp_path: Path) -> None:
    cli("embed", photos, "-o", tmp_path / "out.jsonl")
    outcome = cli("embed", photos, "-o", "-")
    assert outcome.out == (tmp_path / "out.jsonl").read_text()


def test_printed_numbers_are_exactly_the_vector(cli: Cli, photos: Path, tmp_path: Path) -> None:
    cli("embed", photos, "-o", tmp_path / "out.npy")
    printed = [row["vector"] for row in cli("embed", photos, "-o", "-").json_lines]
    assert np.array_equal(np.array(printed, dtype=np.float32), np.load(tmp_path / "out.npy"))
    assert max(len(str(number)) for row in printed for number in row) <= len("-1.2345679e-05")


def test_an_image_that_is_named_twice_is_embedded_once(cli: Cli, photos: Path) -> None:
    rows = cli("embed", photos / "top.png", photos, "-o", "-").json_lines
    assert [row["path"] for row in rows] == [f"{photos}/{name}" for name in ("top.png", *NAMES[:-1])]


def test_files_that_cannot_be_used_are_named_and_left_out(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "cats/text.png").write_text("no picture")
    (photos / "lost.png").symlink_to("gone.png")
    outcome = cli("embed", photos, "-o", tmp_path / "out.npy")
    assert outcome.exit_code == 1
    assert f"failed  {photos}/cats/text.png: the bytes are not a readable image" in outcome.err
    assert f"failed  {photos}/lost.png: cannot be read: No such file or directory" in outcome.err
    assert "embedded 5 of 7" in outcome.err
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["paths"] == [f"{photos}/{name}" for name in NAMES]
    assert [failure["code"] for failure in document["failed"]] == ["IMAGE_FORMAT", "DATA"]
    assert len(np.load(tmp_path / "out.npy")) == 5


def test_where_nothing_can_be_used_the_array_has_no_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    outcome = cli("embed", tmp_path / "a.png", "-o", tmp_path / "out.npy")
    assert outcome.exit_code == 1
    assert np.load(tmp_path / "out.npy").shape == (0, DIMENSION)


def test_a_folder_without_images_is_an_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = cli("embed", tmp_path / "empty", "-o", tmp_path / "out.npy")
    assert outcome.exit_code == 1
    assert outcome.err.splitlines()[0] == f"error: {tmp_path}/empty has no images"
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("out", ["out", "out.csv", "out.npz"])
def test_an_output_of_another_kind_is_refused_before_anything_is_embedded(cli: Cli, photos: Path, out: str) -> None:
    outcome = cli("embed", photos, "-o", out)
    assert outcome.exit_code == 2
    assert f"{out!r} is neither NAME.npy, NAME.jsonl nor -" in outcome.err


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_an_output_that_cannot_be_written_is_an_error(cli: Cli, photos: Path, tmp_path: Path, name: str) -> None:
    outcome = cli("embed", photos, "-o", tmp_path / "gone" / name)
    assert outcome.exit_code == 1
    assert f"error: {tmp_path}/gone/{name} cannot be written: No such file or directory" in outcome.err


def test_a_run_that_breaks_off_leaves_the_earlier_output_as_it_was(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("from yesterday")

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedserve.client.bulk.read_image", interrupted)
    assert cli("embed", photos, "-o", out, "--overwrite").exit_code == 130
    assert out.read_text() == "from yesterday"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.jsonl"]


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "-"])
def test_an_interrupted_run_says_how_far_it_came(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real: Callable[..., Any] = Client.embed_each

    def interrupted(self: Client, images: Any, **options: Any) -> Iterator[Any]:
        yield from real(self, images[:2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "embed_each", interrupted)
    outcome = cli("embed", photos, "-o", name if name == "-" else tmp_path / name)
    assert outcome.exit_code == 130
    ending = "" if name == "-" else "; nothing was written"
    assert re.search(rf"^stopped: embedded 2 of 5, in [\d.]+ s \([\d.]+ images/s\){ending}$", outcome.err, re.M)
    assert len(outcome.out.splitlines()) == (2 if name == "-" else 0)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_undecodable_file_name_is_written_as_an_escape(cli: Cli, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(picture(1))
    [row] = cli("embed", os.fsdecode(path), "-o", "-").json_lines
    assert os.fsencode(row["path"]) == path


# --- Without a server ---


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    """A real encoder file: a vector is the mean colour, red and green, at unit norm."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "red-green",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array([[1, 0], [0, 1], [0, 0]], np.float32), "weights"),
            numpy_helper.from_array(np.array([1, 2]), "axes"),
        ],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = EncoderMetadata(name="red-green", dimension=2, preprocess=PreprocessSpec(size_px=8))
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder_file.pack(model.SerializeToString(), metadata).model)
    return path


def test_an_encoder_file_embeds_without_a_server(cli: Cli, encoder_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    folder.mkdir()
    for name, colour in {"a": (30, 40, 7), "b": (200, 0, 9), "c": (0, 50, 255)}.items():
        Image.new("RGB", (12, 10), colour).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")
    (folder / "lost.png").symlink_to("gone.png")
    outcome = cli("embed", folder, "-o", "-", "--encoder", encoder_path, "--server", "127.0.0.1:1")
    assert outcome.exit_code == 1
    rows = outcome.json_lines
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [row["vector"] for row in rows] == [pytest.approx(vector) for vector in ([0.6, 0.8], [1, 0], [0, 1])]
    assert {row["encoder_fingerprint"] for row in rows} == {encoder_file.read(encoder_path).fingerprint}
    assert f"failed  {folder}/text.png: the bytes are not a readable image" in outcome.err
    assert f"failed  {folder}/lost.png: the image cannot be read: No such file or directory" in outcome.err
    assert "embedded 3 of 5 with red-green" in outcome.err


def test_with_overwrite_an_earlier_output_is_replaced(
    cli: Cli, photos: Path, encoder_path: Path, tmp_path: Path
) -> None:
    words = ("embed", photos, "-o", tmp_path / "out.npy", "--encoder", encoder_path)
    assert cli(*words).exit_code == 0
    assert cli(*words, "--overwrite").exit_code == 0


def test_what_was_decided_for_single_images_is_counted(
    cli: Cli, photos: Path, encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = codec.decode

    def noting(*args: Any, notes: list[str], **options: Any) -> Any:
        notes += ["the fourth band was left out"] * 2
        return decode(*args, notes=notes, **options)

    monkeypatch.setattr(preprocess, "decode", noting)
    outcome = cli("embed", photos, "-o", tmp_path / "out.npy", "--encoder", encoder_path)
    assert outcome.exit_code == 0
    assert "in 5 images: the fourth band was left out" in outcome.err


def test_an_image_beyond_the_limits_is_left_out_without_a_server(
    cli: Cli, photos: Path, encoder_path: Path, tmp_path: Path
) -> None:
    limits = ("--max-image-pixels", 50 * 40 - 1)
    Image.new("RGB", (50, 40)).save(photos / "large.png")
    outcome = cli("embed", photos / "large.png", "-o", "-", "--encoder", encoder_path, *limits)
    assert (outcome.exit_code, outcome.out) == (1, "")
    assert "max_image_pixels is 1999" in outcome.err
    outcome = cli("embed", photos / "large.png", "-o", "-", "--encoder", encoder_path, "--max-image-bytes", 10)
    assert "max_image_bytes is 10" in outcome.err


def test_a_file_that_is_not_an_encoder_is_an_error(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_text("no encoder")
    outcome = cli("embed", photos, "-o", "-", "--encoder", tmp_path / "encoder.onnx")
    assert outcome.exit_code == 2
    assert outcome.err.startswith("error: ")
