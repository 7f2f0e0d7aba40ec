from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.server.access import reload_files
from tests.certificates import Authority
from tests.encoders import write_encoder_file
from tests.fakes import FakeEncoder
from tests.running import serving


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server with a fake encoder and an empty data directory."""
    with serving(FakeEncoder(), tmp_path / "data") as found:
        yield found


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real encoder file with random weights; D is 24, S is 32."""
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The CA that clients trust."""
    return Authority(tmp_path, "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """A CA that clients do not trust."""
    return Authority(tmp_path, "strange")


@pytest.fixture
def quick_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed files are reloaded at once."""
    monkeypatch.setattr(reload_files, "EVERY_S", 0.01)
