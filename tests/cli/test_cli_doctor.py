from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.encoder.session import Encoder
from tests.cli.outcome import Cli
from tests.fakes import FakeEncoder
from tests.running import serving


def subjects(out: str) -> dict[str, str]:
    """The text of each subject, without its mark."""
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    return {row[1]: row[2] for row in rows}


def test_the_machine_is_described_in_one_line_for_each_part(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.exit_code == 0
    said = subjects(outcome.out)
    assert said["python"].startswith(sys.version.split()[0])
    assert {"embedserve", "cores", "gpu", "onnxruntime", "faiss-cpu", "grpcio", "training"} <= said.keys()


def test_for_a_program_the_same_is_json(cli: Cli) -> None:
    findings = cli("doctor", "--json").json
    assert all(finding["ok"] for finding in findings)
    assert "onnxruntime" in [finding["subject"] for finding in findings]


def test_a_server_is_described_with_its_encoder_and_collections(cli: Cli, tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address:
        with Client(address) as client:
            client.create_collection("photos")
        outcome = cli("doctor", "--server", address, "--wait", "10")
    said = subjects(outcome.out)
    assert outcome.exit_code == 0
    assert said["encoder"] == "fake, 16 numbers per image"
    assert said["collections"] == "1 with 0 items"


def test_a_collection_of_another_encoder_is_pointed_out(cli: Cli, tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
    with serving(FakeEncoder(fingerprint="0b" * 32), tmp_path) as address:
        outcome = cli("doctor", "--server", address)
    assert "photos is bound to another encoder" in subjects(outcome.out)["binding"]


def test_an_unreachable_server_is_an_error(cli: Cli) -> None:
    outcome = cli("doctor", "--server", "127.0.0.1:1")
    assert outcome.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in outcome.err


def test_drift_of_the_reference_vectors_is_a_failure(
    cli: Cli, tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("doctor", tiny_encoder_file).exit_code == 0
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, images: encode(self, 255 - images))
    outcome = cli("doctor", tiny_encoder_file)
    assert outcome.exit_code == 1
    assert "DRIFT" in subjects(outcome.out)["reference"]


@pytest.mark.parametrize("content", [b"", b"no encoder"])
def test_a_file_that_is_not_an_encoder_is_one_sentence_and_a_hint(cli: Cli, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "encoder.onnx").write_bytes(content)
    outcome = cli("doctor", tmp_path / "encoder.onnx")
    assert outcome.exit_code == 2
    assert "is not an ONNX model" in outcome.err
    assert "hint:" in outcome.err
