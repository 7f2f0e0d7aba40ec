"""The encoder file: what it contains, what its fingerprint covers, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedserve.encoder import encoder_file, reference
from embedserve.encoder.encoder_file import EncoderFile, EncoderMetadata
from embedserve.errors import EncoderFileError
from embedserve.images.pixel_rule import STORED
from embedserve.images.preprocess import PreprocessSpec

WEIGHTS = np.array([[0.5, -1.0], [0.25, 2.0], [1.0, 0.125]], np.float32)
VECTORS = np.arange(16, dtype=np.float32).reshape(8, 2) / np.float32(7)
METADATA = EncoderMetadata(
    name="tiny",
    dimension=2,
    preprocess=PreprocessSpec(size_px=4, resize_px=5),
    method="simclr",
    backbone="one-layer",
    training={"epochs": 3, "lr": 0.1},
    data={"images": 12, "sha256": "0" * 64},
    versions={"torch": "2.9"},
    licence="für alle",
    reference=VECTORS,
)


def onnx_model(weights: NDArray[np.float32] = WEIGHTS) -> onnx.ModelProto:
    """Mean colour times a 3 × 2 matrix."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def packed(metadata: EncoderMetadata = METADATA, weights: NDArray[np.float32] = WEIGHTS) -> EncoderFile:
    return encoder_file.pack(onnx_model(weights).SerializeToString(), metadata)


def write_with_document(path: Path, document: str) -> None:
    """An ONNX file whose self-description is the given text."""
    model = onnx_model()
    model.metadata_props.add(key="embedserve", value=document)
    path.write_bytes(model.SerializeToString())


# --- There and back ------------------------------------------------------------------------------------------------


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = packed()
    encoder_file.write(written, tmp_path / "encoder.onnx")
    read = encoder_file.read(tmp_path / "encoder.onnx")

    assert read.model == written.model
    assert read.fingerprint == written.fingerprint
    assert read.metadata.reference is not None
    np.testing.assert_array_equal(read.metadata.reference, VECTORS)
    without: dict[str, Any] = {"reference": None}
    assert dataclasses.replace(read.metadata, **without) == dataclasses.replace(METADATA, **without)


def test_the_file_is_an_onnx_model_with_the_same_graph() -> None:
    model = onnx.load_from_string(packed().model)
    onnx.checker.check_model(model)
    assert model.graph == onnx_model().graph
    assert (model.ir_version, model.opset_import) == (10, onnx_model().opset_import)


def test_other_metadata_of_the_model_is_kept_and_ours_is_replaced() -> None:
    model = onnx_model()
    model.metadata_props.add(key="author", value="someone")
    once = encoder_file.pack(model.SerializeToString(), METADATA)
    twice = encoder_file.pack(once.model, dataclasses.replace(METADATA, name="other"))
    entries = {entry.key: entry.value for entry in onnx.load_from_string(twice.model).metadata_props}
    assert entries.keys() == {"author", "embedserve"}
    assert json.loads(entries["embedserve"])["name"] == "other"


def test_packing_twice_gives_the_same_bytes() -> None:
    assert packed().model == packed().model


# --- The fingerprint -----------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_change_with_the_self_description() -> None:
    renamed = dataclasses.replace(METADATA, name="other", training={}, licence="", reference=None)
    assert packed(renamed).fingerprint == packed().fingerprint


def test_the_fingerprint_changes_with_one_bit_of_one_weight() -> None:
    weights = WEIGHTS.copy()
    weights.view(np.uint32)[1, 1] ^= 1
    assert packed(weights=weights).fingerprint != packed().fingerprint


@pytest.mark.parametrize(
    "change",
    [{"resize_px": 6}, {"resize_px": 0, "fit": "squeeze"}, {"resize_px": 0, "fit": "pad"}, {"filter": "bicubic"}],
    ids=str,
)
def test_the_fingerprint_changes_with_the_preprocess_rule(change: dict[str, Any]) -> None:
    rule = dataclasses.replace(METADATA.preprocess, **change)
    assert packed(dataclasses.replace(METADATA, preprocess=rule)).fingerprint != packed().fingerprint


def test_the_fingerprint_changes_with_the_version_of_the_operators() -> None:
    model = onnx_model()
    model.opset_import[0].version = 19
    assert encoder_file.pack(model.SerializeToString(), METADATA).fingerprint != packed().fingerprint


def test_the_fingerprint_changes_with_a_function_of_the_model() -> None:
    model = onnx_model()
    body = [helper.make_node("Relu", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "Clamp", ["x"], ["y"], body, opsets))
    assert encoder_file.pack(model.SerializeToString(), METADATA).fingerprint != packed().fingerprint


def test_the_fingerprint_of_a_known_file_is_known() -> None:
    # Collections are bound to it: a change of this number separates all of them from their encoders.
    parts = [
        helper.make_opsetid("", 18).SerializeToString(),
        onnx_model().graph.SerializeToString(),
        b'{"filter":"bilinear","resize_px":5,"size_px":4}',
    ]
    by_hand = hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()
    stored = dataclasses.replace(METADATA, preprocess=dataclasses.replace(METADATA.preprocess, pixels=STORED))
    assert encoder_file.pack(onnx_model().SerializeToString(), stored).fingerprint == by_hand
    assert packed().fingerprint != by_hand  # with the rule of new files


# --- What is refused -----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(EncoderFileError, match="there is no encoder file") as caught:
        encoder_file.read(tmp_path / "nothing.onnx")
    assert "embedserve export" in caught.value.hint


def test_a_folder_is_not_an_encoder_file(tmp_path: Path) -> None:
    with pytest.raises(EncoderFileError, match="cannot be read"):
        encoder_file.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(range(256))], ids=repr
)
def test_a_file_that_is_not_an_onnx_model_is_refused_with_a_hint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(EncoderFileError, match="is not an ONNX model") as caught:
        encoder_file.read(path)
    assert "embedserve export" in caught.value.hint


def test_a_foreign_onnx_model_is_distinguished_from_bytes_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(onnx_model().SerializeToString())
    with pytest.raises(EncoderFileError, match="not one that embedserve exported") as caught:
        encoder_file.read(path)
    assert "embedserve export" in caught.value.hint


def test_a_newer_format_is_refused_with_the_command_that_upgrades(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    write_with_document(path, json.dumps({**METADATA.to_json(), "format": 2}))
    with pytest.raises(EncoderFileError, match="format 2; this embedserve reads up to 1") as caught:
        encoder_file.read(path)
    assert "pip install -U embedserve" in caught.value.hint


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, percent: int) -> None:
    whole = packed().model
    path = tmp_path / "encoder.onnx"
    path.write_bytes(whole[: len(whole) * percent // 100])
    with pytest.raises(EncoderFileError) as caught:
        encoder_file.read(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "document",
    [
        "",
        "not JSON",
        "[1]",
        "null",
        "{}",
        '{"format": "1"}',
        '{"format": 1}',
        "[" * 100_000,
        json.dumps({**METADATA.to_json(), "dimension": "many"}),
        json.dumps({**METADATA.to_json(), "dimension": float("inf")}),
        json.dumps({**METADATA.to_json(), "dimension": 3}),
        json.dumps({**METADATA.to_json(), "training": 7}),
        json.dumps({**METADATA.to_json(), "preprocess": {"size_px": 4, "mean": 0.5}}),
        json.dumps({**METADATA.to_json(), "reference_f32_base64": "!"}),
        json.dumps({**METADATA.to_json(), "reference_f32_base64": "AAAAAAAAAAA="}),
    ],
    ids=range(15),
)
def test_a_damaged_self_description_is_refused(tmp_path: Path, document: str) -> None:
    path = tmp_path / "encoder.onnx"
    write_with_document(path, document)
    with pytest.raises(EncoderFileError):
        encoder_file.read(path)


def test_bytes_that_are_not_a_model_cannot_be_packed() -> None:
    with pytest.raises(EncoderFileError, match="the model is not an ONNX model"):
        encoder_file.pack(b"hello", METADATA)


# --- Writing -------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"the old file")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(EncoderFileError, match="No space left on device"):
        encoder_file.write(packed(), path)
    assert path.read_bytes() == b"the old file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"the old file")
    encoder_file.write(packed(), path)
    assert path.read_bytes() == packed().model
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_folder_that_does_not_exist_or_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing/encoder.onnx", tmp_path / "file/encoder.onnx"):
        with pytest.raises(EncoderFileError, match="cannot be written"):
            encoder_file.write(packed(), path)


# --- The reference images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size_px", "sha256_start"), [(1, "aa7ed81e7ea542ce"), (28, "85e680d15ba4ec1e"), (224, "63e6c8d9fc49a159")]
)
def test_the_reference_images_never_change(size_px: int, sha256_start: str) -> None:
    drawn = reference.draw(size_px)
    assert drawn.shape == (8, size_px, size_px, 3)
    assert drawn.dtype == np.uint8
    assert hashlib.sha256(drawn.tobytes()).hexdigest().startswith(sha256_start)


def test_the_lowest_cosine_is_1_for_the_same_vectors_and_falls_with_the_worst_row() -> None:
    ours = np.array([[1, 0], [0, 2]], np.float32)
    assert reference.lowest_cosine(ours, ours) == 1.0
    assert reference.lowest_cosine(ours, np.array([[1, 0], [3, 4]], np.float32)) == pytest.approx(0.8)


def test_a_vector_that_is_not_a_number_or_zero_counts_as_the_opposite() -> None:
    ours = np.array([[1, 0]], np.float32)
    assert reference.lowest_cosine(ours, np.array([[np.nan, 0]], np.float32)) == -1.0
    assert reference.lowest_cosine(ours, np.array([[0, 0]], np.float32)) == -1.0


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_those_of_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "encoder.onnx"
    before = os.umask(0o027)
    try:
        encoder_file.write(packed(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(mode)
    encoder_file.write(packed(), path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_larger_than_any_model_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(EncoderFileError, match="more than 2 GiB"):
        encoder_file.read(path)
