"""A pipe, a device or a socket where a file is read is refused at once, with its kind, by every command."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from embedserve import Client, regular_file
from embedserve.errors import DataError
from tests.cli.outcome import Cli
from tests.fakes import picture

BLOCKED_S = 10.0


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe without a writer; a command that waits for one is released after a while, and then the test fails."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    waited = threading.Event()

    def release() -> None:
        waited.set()
        os.close(os.open(path, os.O_RDWR))

    timer = threading.Timer(BLOCKED_S, release)
    timer.start()
    yield path
    timer.cancel()
    assert not waited.is_set(), "it waited for a writer"


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "the encoder of serve": lambda pipe, file: ["serve", pipe, "--port", 0, "--no-http"],
    "the encoder of doctor": lambda pipe, file: ["doctor", pipe],
    "the encoder of embed": lambda pipe, file: ["embed", file, "--encoder", pipe, "-o", "-"],
    "tokens": lambda pipe, file: ["serve", file, "--port", 0, "--no-http", "--tokens", pipe],
    "a certificate": lambda pipe, file: ["serve", file, "--port", 0, "--tls-cert", pipe, "--tls-key", pipe],
    "the token of a client": lambda pipe, file: ["collection", "list", "--token-file", pipe],
    "a CA": lambda pipe, file: ["collection", "list", "--ca", pipe],
    "an image to embed": lambda pipe, file: ["embed", pipe, "-o", "-"],
    "an image to search": lambda pipe, file: ["search", pipe, "--collection", "c"],
    "a table of metadata": lambda pipe, file: ["add", file.parent, "--collection", "c", "--metadata", pipe],
    "a Parquet file": lambda pipe, file: ["collection", "import", "c", pipe, "--external"],
    "a backup": lambda pipe, file: ["collection", "restore", "restored", pipe],
    "an image for bench": lambda pipe, file: ["bench", "serve", pipe, "--seconds", 1],
    "a recipe": lambda pipe, file: ["train", file.parent, "--recipe", pipe],
}


@pytest.mark.parametrize("use", COMMANDS)
def test_a_command_does_not_wait_for_the_writer_of_a_pipe(use: str, cli: Cli, pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / "a.png"
    file.write_bytes(picture(1))
    if use == "a recipe":
        pytest.importorskip("torch")
        pipe = pipe.rename(pipe.with_suffix(".toml"))
    outcome = cli(*COMMANDS[use](pipe, file))
    assert outcome.exit_code in (1, 2)
    assert "it is a pipe, not a regular file" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_image_from_standard_input_is_still_searched_for(
    cli: Cli, client: Client, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection(collection)
    (tmp_path / "a.png").write_bytes(picture(1))
    with (tmp_path / "a.png").open() as opened:
        monkeypatch.setattr("sys.stdin", opened)
        assert cli("search", "-", "--collection", collection).exit_code == 0


def test_each_kind_is_named(tmp_path: Path, pipe: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path, why in (
            (pipe, "it is a pipe, not a regular file"),
            (Path(os.devnull), "it is a device, not a regular file"),
            (Path("/dev/zero"), "it is a device, not a regular file"),
            (tmp_path, "Is a directory"),
            (tmp_path / "socket", "No such device or address"),
            (tmp_path / "none", "No such file or directory"),
        ):
            for read in (regular_file.read_bytes, regular_file.read_text):
                with pytest.raises(OSError, match=r".") as caught:
                    read(path)
                assert (caught.value.strerror, caught.value.filename) == (why, str(path))


@pytest.mark.parametrize("kind", [str, Path])
def test_the_python_client_refuses_a_pipe(client: Client, pipe: Path, kind: type[Any]) -> None:
    with pytest.raises(DataError, match="it is a pipe, not a regular file"):
        client.embed([kind(pipe)])
