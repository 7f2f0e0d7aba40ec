"""What is wrong usage exits with 2 and is found before anything else is tried; a "no" exits with 1 and says so."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.encoder import encoder_file
from embedserve.errors import InvalidInput
from tests.cli.outcome import Cli
from tests.encoders import write_encoder_file
from tests.fakes import picture

MISSING: list[Callable[[Path], list[object]]] = [
    lambda p: ["train", p],
    lambda p: ["preview", p],
    lambda p: ["export", p],
    lambda p: ["evaluate", p, "."],
    lambda p: ["evaluate", ".", p],
    lambda p: ["demo", p],
    lambda p: ["doctor", p],
    lambda p: ["serve", p],
    lambda p: ["serve", __file__, "--tokens", p],
    lambda p: ["serve", __file__, "--tls-cert", p, "--tls-key", p],
    lambda p: ["add", p, "--collection", "c"],
    lambda p: ["add", ".", "--collection", "c", "--metadata", p],
    lambda p: ["embed", p, "-o", "-"],
    lambda p: ["embed", ".", "-o", "-", "--encoder", p],
    lambda p: ["search", p, "--collection", "c"],
    lambda p: ["bench", "serve", p],
    lambda p: ["collection", "import", "c", p],
    lambda p: ["collection", "restore", "c", p],
    lambda p: ["collection", "list", "--token-file", p],
    lambda p: ["collection", "list", "--ca", p],
]


@pytest.mark.parametrize("words", MISSING, ids=lambda words: " ".join(map(str, words(Path("gone")))))
def test_a_path_that_is_not_there_is_wrong_usage_everywhere(
    cli: Cli, tmp_path: Path, words: Callable[[Path], list[object]]
) -> None:
    outcome = cli(*words(tmp_path / "gone"))
    assert outcome.exit_code == 2
    assert str(tmp_path / "gone") in outcome.err
    assert "does not exist" in outcome.err or "there is no encoder file" in outcome.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tls-cert", __file__], "TLS needs a certificate and its key, and --tls-key is missing"),
        (["--tls-key", __file__], "--tls-cert is missing"),
        (["--tls-client-ca", __file__], "--tls-client-ca asks clients for certificates"),
        (["--host", "0.0.0.0"], "on 0.0.0.0 other machines can reach this server"),
        (["--limit", "max_images=0"], "max_images is 0"),
        (["--limit", "max_images"], "has no value"),
    ],
    ids=lambda flags: str(flags[0]) if isinstance(flags, list) else "",
)
def test_flags_of_serve_that_contradict_each_other_are_wrong_usage(
    cli: Cli, tiny_encoder_file: Path, flags: list[str], says: str
) -> None:
    outcome = cli("serve", tiny_encoder_file, "--port", "0", "--no-http", *flags)
    assert outcome.exit_code == 2
    assert says in outcome.err


def test_an_encoder_file_that_is_not_there_is_named_before_a_port_that_is_taken(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = cli("serve", tmp_path / "nofile.onnx", "--port", taken.getsockname()[1], "--no-http")
    assert outcome.exit_code == 2
    assert f"error: there is no encoder file {tmp_path}/nofile.onnx\nhint:  make one: embedserve export" in outcome.err


@pytest.mark.parametrize("words", [["delete", "NAME"], ["delete-items", "NAME", "a"]], ids=" ".join)
def test_a_deletion_that_is_answered_with_no_deletes_nothing_and_says_so(
    cli: Cli, client: Client, collection: str, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    client.create_collection(collection)
    client.add(collection, [ItemInput(id="a", image=picture(1))])
    stdin = io.TextIOWrapper(io.BytesIO(b"n\n"))
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    outcome = cli("collection", *(collection if word == "NAME" else word for word in words))
    assert outcome.exit_code == 1
    assert outcome.err.endswith("nothing deleted\n")
    assert client.get_collection(collection).items == 1


# --- What `export` replaces ---


def test_export_replaces_an_encoder_file_and_nothing_else(tmp_path: Path) -> None:
    from embedserve.cli.export import _replaceable

    assert _replaceable(tmp_path / "new.onnx") is None
    (tmp_path / "empty.onnx").touch()
    assert _replaceable(tmp_path / "empty.onnx") is None
    ours = write_encoder_file(tmp_path / "encoder.onnx")
    replaced = _replaceable(ours)
    assert replaced is not None
    assert replaced.fingerprint == encoder_file.read(ours).fingerprint
    (tmp_path / "thesis.docx").write_bytes(b"three years of work")
    with pytest.raises(InvalidInput, match=r"thesis\.docx exists and would be replaced") as refused:
        _replaceable(tmp_path / "thesis.docx")
    assert "-o" in refused.value.hint


def test_a_file_that_is_no_encoder_is_refused_before_the_export_begins(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_bytes(b"three years of work")
    (tmp_path / "plan.json").write_text("{}")
    outcome = cli("export", tmp_path, "-o", tmp_path / "thesis.docx")
    assert outcome.exit_code == 2
    assert "is no encoder file that can be read" in outcome.err
    assert (tmp_path / "thesis.docx").read_bytes() == b"three years of work"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_finds_no_room_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "embedserve", "completion", "bash"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert "the output cannot be written: No space left on device" in ended.stderr
    assert "bug" not in ended.stderr
