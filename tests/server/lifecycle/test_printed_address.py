"""What a server prints as its address is what a client takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from embedserve import Client
from tests.running import ServerProcess


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_printed_address_can_be_pasted_into_a_client(encoder_file: Path, host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with ServerProcess(str(encoder_file), "--host", host, "--insecure") as server:
        with Client(server.address, token="a-token-of-this-test") as client:  # not sent to other machines without TLS
            assert client.server_info().provider
        assert server.terminate() == 0
