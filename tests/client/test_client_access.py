"""Tokens and certificates: what a client refuses before it connects, and what it sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve.client.access import access
from embedserve.client.target import is_this_machine
from embedserve.errors import InvalidInput, SetupError
from tests.certificates import Authority
from tests.client.fake_server import Connect, FakeServer

TOKEN = "a-token-of-this-test"


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.1.2.3:50051", True),
        ("[::1]:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("unix:///run/embedserve.sock", True),
        ("gpu-box:50051", False),
        ("192.0.2.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("localhost.example.com:50051", False),
        ("127.0.0.1.example.com:50051", False),
        ("ipv4:127.0.0.1:50051,192.0.2.1:50051", False),
        ("dns://192.0.2.53/gpu-box:50051", False),
    ],
)
def test_only_a_target_that_cannot_lead_elsewhere_counts_as_this_machine(target: str, here: bool) -> None:
    assert is_this_machine(target) is here


def test_a_token_is_sent_without_tls_only_to_this_machine_or_if_allowed(connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="everyone on the way to gpu-box:50051 could read the token") as caught:
        connect("gpu-box", token=TOKEN)
    assert TOKEN not in caught.value.message + caught.value.hint
    assert "allow_plain_token=True" in caught.value.hint
    connect("gpu-box", token=TOKEN, allow_plain_token=True)
    connect("gpu-box", token=TOKEN, tls=True)
    connect("gpu-box", token=TOKEN, credentials=grpc.ssl_channel_credentials())


@pytest.mark.parametrize("token", ["two words", "line\nend", "grün-grün-grün-grün"])
def test_a_token_that_is_not_allowed_in_a_header_is_refused(connect: Connect, token: str) -> None:
    with pytest.raises(InvalidInput, match="are not allowed in a header"):
        connect("localhost", token=token)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"client_cert": "c.pem"}, "belong together"),
        ({"client_key": "k.pem"}, "belong together"),
        ({"tls": True, "credentials": grpc.ssl_channel_credentials()}, "already says how TLS is done"),
        ({"ca": "ca.pem", "credentials": grpc.ssl_channel_credentials()}, "already says how TLS is done"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(connect: Connect, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        connect("localhost", **options)


def test_files_that_cannot_be_used_are_refused_when_the_client_is_made(connect: Connect, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    pair, other = authority.issue("importer"), authority.issue("another")
    with pytest.raises(SetupError, match=r"the CA .*none\.pem cannot be read"):
        connect("localhost", ca=tmp_path / "none.pem")
    with pytest.raises(SetupError, match="does not belong to the certificate"):
        connect("localhost", client_cert=str(pair.certificate), client_key=other.key)


def test_the_token_is_sent_with_every_call_and_shown_in_no_repr(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target, token=TOKEN)
    client.embed([b"1", b"22"])
    client.server_info()
    client.wait_ready(5)
    assert server.authorizations == [f"Bearer {TOKEN}"] * len(server.requests)
    assert TOKEN not in repr(access(server.target, token=TOKEN))
