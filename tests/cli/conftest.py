"""A real server with a fake encoder for all tests of commands, and a folder of pictures."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.cli import run
from tests.cli.outcome import Cli, Outcome
from tests.encoders import write_encoder_file
from tests.fakes import FakeEncoder, picture
from tests.running import serving

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that all tests share; each uses its own collections."""
    with serving(FakeEncoder(), tmp_path_factory.mktemp("server") / "data") as address:
        yield address


@pytest.fixture(scope="session")
def tiny_encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real encoder file with random weights."""
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture
def cli(server: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line against the shared server."""
    monkeypatch.setenv("EMBEDSERVE_SERVER", server)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["embedserve", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def collection(request: pytest.FixtureRequest, client: Client) -> Iterator[str]:
    """A name that no other test uses; a collection of that name is removed afterwards."""
    name = f"c{zlib.crc32(request.node.nodeid.encode()):08x}"
    yield name
    if name in [info.name for info in client.list_collections()]:
        client.delete_collection(name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures: one at the top, two cats, and two dogs one folder deeper."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["top.png", "cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, format=FORMATS[path.suffix]))
    return folder
