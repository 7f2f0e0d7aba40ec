"""Connections to the gRPC port, beyond what the process can hold."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve import descriptors
from embedserve.server.calls import connections
from embedserve.server.calls.connections import ConnectionRoom, peer_of
from embedserve.types import Limits
from tests.fakes import FakeEncoder
from tests.running import ServerProcess, serving, wait_until
from tests.server.test_http import get

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="connections are found in /proc")

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
sys.argv[0] = "embedserve"
from embedserve.cli import main
main()
"""


def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def serves(address: str) -> bool:
    """A health check over a new connection."""
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        # Waiting for the moment that gRPC takes to see that a connection has been closed.
        answer = health(channel).Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
        return bool(answer.status == 1)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_1100_idle_connections_at_1024_files_leave_every_probe_answered_and_the_log_short(
    encoder_file: Path, tmp_path: Path
) -> None:
    arguments = (str(encoder_file), "--data", str(tmp_path / "data"))
    with ServerProcess(*arguments, program=("-c", FEW_FILES)) as server, ExitStack() as open_ones:
        pages = [f"{server.http_url}/{page}" for page in ("healthz", "readyz", "metrics")]
        with grpc.insecure_channel(server.address, OWN_CONNECTION) as channel:
            for number in range(1100):
                idle = open_ones.enter_context(connect(server.address))
                idle.sendall(PREFACE if number % 2 else b"")
                if number % 250 == 249:
                    assert health(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
                    assert [get(page)[0] for page in pages] == [200] * 3
            wait_until(lambda: files_of(server.pid) < 512)
            for _ in range(5):
                assert serves(server.address)
        assert server.terminate() == 0
    assert any("at most 512 connections" in line for line in server.said)
    assert len(server.said) < 20


def files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_the_soft_limit_is_raised_to_the_hard_one_at_the_start(encoder_file: Path) -> None:
    low = FEW_FILES.replace("(1024, 1024)", "(256, 4096)")
    with ServerProcess(str(encoder_file), program=("-c", low)) as server:
        [line] = [line for line in Path(f"/proc/{server.pid}/limits").read_text().splitlines() if "open files" in line]
        assert line.split()[3:5] == ["4096", "4096"]
        assert any("at most 2,048 connections" in line for line in server.said)
        assert server.terminate() == 0


def test_a_limit_that_is_high_enough_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: 20_000)
    assert descriptors.warning(4096) == ""
    assert descriptors.connections_allowed(4096) == 4096
    monkeypatch.setattr(descriptors, "limit", lambda: 1024)
    assert "ulimit -n 16384" in descriptors.warning(4096)
    assert descriptors.connections_allowed(4096) == 512
    assert descriptors.connections_allowed(100) == 100


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_with_a_call_in_flight_is_never_closed_and_a_peer_is_named_as_grpc_names_it(host: str) -> None:
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("there is no IPv6 here")
    limits = Limits(max_connections=16)
    with serving(FakeEncoder(), limits=limits, host=host) as address, ExitStack() as open_ones:
        address = address if host == "127.0.0.1" else f"[::1]:{address.rpartition(':')[2]}"
        with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
            watch = health(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == 1
            port = int(address.rpartition(":")[2])
            idle = [open_ones.enter_context(socket.create_connection((host, port), timeout=20)) for _ in range(60)]
            wait_until(lambda: sum(map(is_over, idle)) >= 48)
            assert watch.is_active()
            assert serves(address)
            watch.cancel()


def is_over(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


class Connected:
    """Both ends of a connection."""

    def __init__(self, listening: socket.socket) -> None:
        self.far = socket.create_connection(listening.getsockname(), timeout=20)
        self.near, address = listening.accept()
        self.peer = peer_of(address)

    def close(self) -> None:
        self.far.close()
        self.near.close()


def test_those_without_calls_give_way_first_then_those_idle_longest_and_none_in_use(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KNOWN_IDLE_MS", 50)
    monkeypatch.setattr(connections, "_LEAST_KEPT", 0)
    opened = [Connected(listening) for _ in range(4)]
    busy, known, fresh, new = opened
    wait_until(lambda: idle_ms(known.near) >= 50)
    fresh.far.sendall(b"x")  # it has had calls, and is in use

    def room(allowed: int) -> int:
        """A quarter is kept free."""
        port = listening.getsockname()[1]
        peers = {one.peer for one in (busy, known, fresh)}
        maker = ConnectionRoom(port, allowed, busy=lambda: {busy.peer}, known=lambda: peers)
        try:
            return maker.make()
        finally:
            for descriptor in maker._spare:
                os.close(descriptor)

    try:
        assert room(5) == 0
        assert room(4) == 1
        assert is_over(new.far)
        new.close()
        assert room(2) == 1
        assert is_over(known.far)
        assert not is_over(busy.far)
        assert not is_over(fresh.far)
    finally:
        for one in opened:
            one.close()


def idle_ms(connection: socket.socket) -> int:
    return connections._idle_ms(connection)


def test_when_something_else_takes_the_descriptors_connections_give_way_too(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [Connected(listening) for _ in range(20)]
    used = descriptors.in_use()
    assert used is not None
    monkeypatch.setattr(descriptors, "limit", lambda: used + descriptors.RESERVE - 10)
    maker = ConnectionRoom(listening.getsockname()[1], 4096, busy=set, known=set)
    try:
        assert maker.make() == 4  # of twenty, sixteen are kept
    finally:
        for descriptor in maker._spare:
            os.close(descriptor)
        for one in opened:
            one.close()


def test_a_peer_of_ipv4_on_a_socket_of_both_families_is_named_without_its_mapping() -> None:
    assert peer_of(("::ffff:10.0.0.1", 1234, 0, 0)) == "ipv4:10.0.0.1:1234"
    assert peer_of(("2001:db8::1", 1234, 0, 0)) == "ipv6:%5B2001:db8::1%5D:1234"
