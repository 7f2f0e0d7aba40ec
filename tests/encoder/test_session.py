"""An encoder that runs on the CPU: what opening it refuses, and what it computes."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.cores import usable_cores
from embedserve.encoder import encoder_file, providers, reference
from embedserve.encoder.session import Encoder, check_reference, same_vector_cosine
from embedserve.errors import EncoderFileError, InternalError
from tests.encoders import write_encoder_file
from tests.running import ServerProcess

IMAGES = reference.draw(32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


def test_a_file_gives_the_same_vectors_from_its_path_and_from_memory(path: Path) -> None:
    from_path, from_memory = Encoder.open(path, device="cpu"), Encoder.from_file(encoder_file.read(path), device="cpu")
    assert from_path.fingerprint == from_memory.fingerprint
    np.testing.assert_array_equal(from_path.encode(IMAGES), from_memory.encode(IMAGES))


def test_a_path_that_is_not_utf_8_can_be_opened(path: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    odd.write_bytes(path.read_bytes())
    assert Encoder.open(odd, device="cpu").reference_cosine() > 0.9999


@pytest.mark.parametrize("change", ["replaced", "written over"])
def test_a_file_that_changes_while_it_is_opened_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    # The fingerprint would be that of the old file.
    copy, other = tmp_path / "encoder.onnx", tmp_path / "other.onnx"
    copy.write_bytes(path.read_bytes())
    real = providers.cpu_session

    def open_late(model: Any, **more: Any) -> Any:
        if change == "replaced":
            other.write_bytes(path.read_bytes())
            other.replace(copy)
        else:
            copy.write_bytes(path.read_bytes() + b"\x78\x00")
        return real(model, **more)

    monkeypatch.setattr(providers, "cpu_session", open_late)
    with pytest.raises(EncoderFileError, match="changed while it was loaded"):
        Encoder.open(copy, device="cpu")


def test_the_cpu_has_one_run_per_core(path: Path) -> None:
    assert Encoder.open(path, device="cpu").parallel_runs == usable_cores()
    assert Encoder.open(path, device="cpu", threads=3).parallel_runs == 3


def test_many_threads_get_the_vectors_of_one(path: Path) -> None:
    encoder = Encoder.open(path, device="cpu")
    expected = encoder.encode(IMAGES)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(encoder.encode, [IMAGES] * 100):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_images_that_the_graph_does_not_accept_are_an_internal_error(path: Path) -> None:
    with pytest.raises(InternalError, match="could not run"):
        Encoder.open(path, device="cpu").encode(IMAGES[:, :16])


def test_an_encoder_of_lower_precision_may_give_slightly_different_vectors_on_another_device(path: Path) -> None:
    metadata = encoder_file.read(path).metadata
    assert same_vector_cosine(metadata) == 0.9999
    assert same_vector_cosine(replace(metadata, precision="fp16")) == 0.999


def drifted(path: Path, target: Path, degrees: float, precision: str = "fp32") -> Path:
    """The same encoder with reference vectors that are turned by an angle, as if it had computed others at export."""
    file = encoder_file.read(path)
    vectors = file.metadata.reference
    assert vectors is not None
    aside = np.roll(vectors, 1, axis=1)
    aside -= (aside * vectors).sum(axis=1, keepdims=True) * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    turned = vectors * np.cos(np.radians(degrees)) + aside * np.sin(np.radians(degrees))
    metadata = replace(file.metadata, reference=turned.astype(np.float32), precision=precision)
    encoder_file.write(encoder_file.pack(file.model, metadata), target)
    return target


@pytest.mark.parametrize(
    ("degrees", "precision", "passes"),
    [(0.5, "fp32", True), (1.0, "fp32", False), (2.0, "int8", True), (2.0, "fp16", True), (3.0, "int8", False)],
)
def test_drift_beyond_the_tolerance_of_the_precision_is_refused_with_the_figure(
    path: Path, tmp_path: Path, degrees: float, precision: str, passes: bool
) -> None:
    encoder = Encoder.open(drifted(path, tmp_path / "drifted.onnx", degrees, precision), device="cpu")
    if passes:
        check_reference(encoder)
        return
    with pytest.raises(EncoderFileError) as caught:
        check_reference(encoder)
    least = 0.9999 if precision == "fp32" else 0.999
    assert caught.value.message == (
        "encoder test does not reproduce the reference vectors of its file on CPUExecutionProvider:"
        f" lowest cosine {np.cos(np.radians(degrees)):.6f}, at least {least} is expected"
    )


def test_a_file_without_reference_vectors_is_used_and_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = encoder_file.read(path)
    bare = encoder_file.pack(file.model, replace(file.metadata, reference=None))
    with caplog.at_level(logging.WARNING):
        check_reference(Encoder.from_file(bare, device="cpu"))
    assert caplog.messages == ["no reference vectors in the encoder file: drift would go unnoticed"]


def test_a_server_does_not_start_with_an_encoder_that_has_drifted(path: Path, tmp_path: Path) -> None:
    file = drifted(path, tmp_path / "drifted.onnx", 5)
    with ServerProcess(str(file), "--no-http") as running:
        assert running.wait() == 1
    said = "\n".join(running.said)
    assert "does not reproduce the reference vectors of its file" in said
    assert "lowest cosine 0.996195" in said
    assert "ready" not in said
