"""Addresses as people write them: taken, or explained with what to write instead."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from embedserve.client.hints import Hint
from embedserve.client.target import addresses, host_and_port
from embedserve.errors import InvalidInput
from tests.client.fake_server import Connect, FakeServer


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("gpu-box", "gpu-box:50051"),
        ("gpu-box:443", "gpu-box:443"),
        ("  gpu-box:443\n", "gpu-box:443"),
        ("gpu-box:443/", "gpu-box:443"),
        ("embed_server.ns.svc.cluster.local.", "embed_server.ns.svc.cluster.local.:50051"),
        ("bücher.example", "xn--bcher-kva.example:50051"),
        ("127.0.0.1", "127.0.0.1:50051"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:443", "[::1]:443"),
        ("2001:db8::5", "[2001:db8::5]:50051"),
        ("2001:db8:0:0:0:0:0:1234", "[2001:db8:0:0:0:0:0:1234]:50051"),
        ("fe80::1%eth0", "[fe80::1%eth0]:50051"),
        ("grpc://gpu-box", "gpu-box:50051"),
        ("grpc://gpu-box:443/", "gpu-box:443"),
        ("dns:///gpu-box", "dns:///gpu-box:50051"),
        ("dns:gpu-box:443", "dns:gpu-box:443"),
        ("dns://8.8.8.8/gpu-box", "dns://8.8.8.8/gpu-box:50051"),
        ("unix:///run/embedserve.sock", "unix:///run/embedserve.sock"),
        ("unix:relative,with,commas", "unix:relative,with,commas"),
        ("unix-abstract:name", "unix-abstract:name"),
        ("ipv4:10.0.0.1:443,10.0.0.2:443", "ipv4:10.0.0.1:443,10.0.0.2:443"),
        ("0.0.0.0:50051", "localhost:50051"),
        ("[::]:50051", "localhost:50051"),
    ],
)
def test_an_address_is_taken(written: str, taken: str) -> None:
    assert addresses(written) == (taken,)
    assert addresses(taken) == (taken,)
    assert addresses([written]) == (taken,)


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("", "is empty", "localhost:50051"),
        ("  ", "is empty", "localhost:50051"),
        ("gpu-box:", "no port after its colon", "HOST:PORT"),
        (":50051", "names no host", "HOST:PORT"),
        ("gpu-box:0", "ports are 1 to 65535", "HOST:PORT"),
        ("gpu-box:99999", "ports are 1 to 65535", "HOST:PORT"),
        ("gpu-box:5e4", "port '5e4'", "HOST:PORT"),
        ("gpu-box:٥٠٠٥١", "port", "HOST:PORT"),
        ("gpu-box:-1", "port '-1'", "HOST:PORT"),
        ("gpu box:50051", "is no name of a host", "HOST:PORT"),
        ("gpu\tbox", "is no name of a host", "HOST:PORT"),
        ("-gpu", "is no name of a host", "HOST:PORT"),
        ("300.1.1.1", "is no IPv4 address", "HOST:PORT"),
        ("1.2.3", "is no IPv4 address", "HOST:PORT"),
        ("50051", "is no IPv4 address", "localhost:50051"),
        ("::1:50051", "without brackets", "write [::1]:50051"),
        ("fe80::1:8080", "without brackets", "write [fe80::1:8080]:50051 or [fe80::1]:8080"),
        ("a:b:c", "is no IPv6 address", "HOST:PORT"),
        ("[::1", "one bracket too few", "[::1]:50051"),
        ("[::1]50051", "one bracket too few", "[::1]:50051"),
        ("[gpu-box]:50051x", "port '50051x'", "HOST:PORT"),
        ("http://gpu-box:50051", "http:// is not part of", "write gpu-box:50051"),
        ("HTTP://gpu-box/", "http:// is not part of", "write gpu-box:50051"),
        ("https://gpu-box:443/", "https:// is not part of", "write Client('gpu-box:443', tls=True)"),
        ("grpcs://gpu-box", "grpcs:// is not part of", "write Client('gpu-box:50051', tls=True)"),
        ("ftp://gpu-box", "begins with ftp://", "HOST:PORT"),
        ("gpu-box:50051/embed", "has a path", "leave out what follows the port"),
        ("/run/embedserve.sock", "has a path", "unix:/path"),
        ("unix:", "names nothing", "unix:/path"),
        ("dns://8.8.8.8", "names no host", "dns:///HOST:PORT"),
        ([], "the list of addresses is empty", "HOST:PORT"),
        (["a:1", ""], "is empty", "HOST:PORT"),
        ("a:1,,b:2", "is empty", "HOST:PORT"),
        (["a", "a:50051"], "a:50051 is given twice", "once"),
        (50051, "an address is a str, not a int", "localhost:50051"),
        (None, "an address is a str, not a NoneType", "localhost:50051"),
        (b"gpu-box", "an address is a str, not a bytes", "localhost:50051"),
        (["a", 7], "an address is a str, not a int", "localhost:50051"),
    ],
)
def test_what_is_no_address_is_explained(written: Any, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        addresses(written)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_password_in_an_address_is_not_repeated(connect: Connect) -> None:
    for written in ("user:secret@gpu-box:50051", "https://user:secret@gpu-box", ["a", "secret@b"]):
        with pytest.raises(InvalidInput, match="before its @") as caught:
            connect(written)
        assert "secret" not in caught.value.message + caught.value.hint


def test_several_addresses_are_a_list_or_one_text_with_commas() -> None:
    assert addresses("a, b:443,[::1]") == ("a:50051", "b:443", "[::1]:50051")
    assert addresses(("a", "unix:/run/b")) == ("a:50051", "unix:/run/b")


@pytest.mark.parametrize("spelled", [str, lambda target: f"grpc://{target}/", lambda target: [target]])
def test_a_client_takes_each_way_of_writing(
    connect: Connect, server: FakeServer, spelled: Callable[[str], Any]
) -> None:
    assert connect(spelled(server.target)).server_info().version == "1.2.3"


def test_a_host_is_printed_as_a_client_takes_it() -> None:
    assert [host_and_port(host, 1) for host in ("a", "::1", "[::1]")] == ["a:1", "[::1]:1", "[::1]:1"]


def test_a_hint_keeps_both_wordings_when_it_is_sent_to_another_process() -> None:
    hint = pickle.loads(pickle.dumps(Hint("in Python", "as flags")))
    assert (hint, hint.on_command_line) == ("in Python", "as flags")
