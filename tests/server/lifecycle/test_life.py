"""Starting, draining, stopping, being killed: `embedserve serve` as a separate process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.errors import Unavailable
from tests.fakes import picture
from tests.running import ServerProcess


def serve_fails(*arguments: str, code: int = 1) -> str:
    """Standard error of an `embedserve serve` that cannot start and exits with this code."""
    done = subprocess.run(
        [sys.executable, "-m", "embedserve", "serve", "--http-port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_ready_server_is_healthy_for_every_service(encoder_file: Path, tmp_path: Path) -> None:
    with ServerProcess(str(encoder_file), "--data", str(tmp_path)) as server:
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            for service in ("", "embedserve.v1.EmbeddingService", "embedserve.v1.CollectionService"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert server.terminate() == 0
        assert server.said[-1] == "stopped"


def test_sigterm_exits_with_zero_and_keeps_acknowledged_items(encoder_file: Path, tmp_path: Path) -> None:
    with (
        ServerProcess(str(encoder_file), "--data", str(tmp_path)) as server,
        Client(server.address, timeout_s=5) as client,  # how long it waits for the server to come back
    ):
        client.create_collection("photos")
        adding = threading.Event()

        def items() -> Iterator[ItemInput]:
            for number in range(300):
                if number == 100:
                    adding.set()
                yield ItemInput(id=str(number), image=picture(number))

        def stop() -> None:
            adding.wait(30)
            exit_codes.append(server.terminate())

        exit_codes: list[int] = []
        thread = threading.Thread(target=stop)
        thread.start()
        acknowledged: list[str] = []
        with suppress(Unavailable):
            for result in client.add_each("photos", items()):
                assert result.error is None
                acknowledged.append(result.id)
        thread.join()
        assert exit_codes == [0]
    with ServerProcess(str(encoder_file), "--data", str(tmp_path)) as server, Client(server.address) as client:
        assert set(acknowledged) <= {item.id for item in client.list_items("photos")}


@pytest.mark.slow
def test_a_killed_server_has_every_acknowledged_item_after_a_restart(encoder_file: Path, tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    for round_number in range(3):
        with ServerProcess(str(encoder_file), "--data", str(tmp_path)) as server, Client(server.address) as client:
            if round_number == 0:
                client.create_collection("photos")
            stored = {item.id: item.metadata["seed"] for item in client.list_items("photos")}
            assert {id_: stored.get(id_) for id_ in acknowledged} == acknowledged
            kill_at = len(acknowledged) + 15
            killer: threading.Thread | None = None
            with suppress(Unavailable):
                for seed in range(1000 * round_number, 1000 * round_number + 400):
                    [result] = client.add(
                        "photos", [ItemInput(id=f"item {seed}", image=picture(seed), metadata={"seed": seed})]
                    )
                    assert result.error is None
                    acknowledged[f"item {seed}"] = seed
                    if len(acknowledged) == kill_at:
                        killer = threading.Thread(target=server.kill)
                        killer.start()
            assert killer is not None
            killer.join()
    with ServerProcess(str(encoder_file), "--data", str(tmp_path)) as server, Client(server.address) as client:
        stored = {item.id: item.metadata["seed"] for item in client.list_items("photos")}
        assert {id_: stored.get(id_) for id_ in acknowledged} == acknowledged
        assert len(acknowledged) >= 45
        for id_, seed in list(acknowledged.items())[::7]:
            assert client.search("photos", image=picture(seed), k=1)[0].id == id_


def test_a_taken_port_is_one_sentence_and_a_hint(encoder_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = serve_fails(str(encoder_file), "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert f"--port {port + 1}" in said


def test_two_servers_do_not_share_a_port(encoder_file: Path) -> None:
    with ServerProcess(str(encoder_file)) as server:
        assert "cannot listen" in serve_fails(str(encoder_file), "--port", server.address.rsplit(":", 1)[1])


def test_a_data_directory_in_use_names_the_process(encoder_file: Path, tmp_path: Path) -> None:
    with ServerProcess(str(encoder_file), "--data", str(tmp_path)):
        said = serve_fails(str(encoder_file), "--data", str(tmp_path), "--port", "0")
    assert "in use by process" in said


@pytest.mark.parametrize("content", [b"", b"no encoder", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_an_encoder_is_one_sentence_and_a_hint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    said = serve_fails(str(path), "--port", "0", code=2)  # bad input: another start would not help
    assert "is not an ONNX model" in said
    assert "hint:" in said


def test_a_missing_encoder_file_is_named(tmp_path: Path) -> None:
    assert f"there is no encoder file {tmp_path / 'none.onnx'}" in serve_fails(str(tmp_path / "none.onnx"), code=2)


def test_a_server_whose_standard_error_is_closed_stops_on_sigterm(encoder_file: Path) -> None:
    server = ServerProcess(str(encoder_file))
    server.close_standard_error()
    assert server.terminate() == 0
