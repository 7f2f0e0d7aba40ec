"""TLS over real sockets: trust on both sides, renewed certificates, and files that cannot be used."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import AsyncClient, Client
from embedserve.client import ItemInput
from embedserve.client.hints import Hint
from embedserve.errors import EmbedserveError, PermissionDenied, SetupError, Unauthenticated, Unavailable
from embedserve.server.access.tls import ServerTls
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.server.security import is_loopback
from tests.certificates import Authority, Pair
from tests.fakes import FakeEncoder, picture
from tests.logged import logged
from tests.running import ServerProcess, serving
from tests.sizes import fast_retries
from tests.waiting import wait_until

TOKEN = "write-token-of-a-test"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_retries(monkeypatch)


def local(address: str) -> str:
    """The address by the name in the certificates."""
    return address.replace("127.0.0.1", "localhost")


def refusal(address: str, **options: Any) -> EmbedserveError:
    """The error of both clients, which is the same."""

    async def ask() -> None:
        async with AsyncClient(address, **options) as client:
            await client.server_info()

    with Client(address, **options) as client, pytest.raises(EmbedserveError) as caught:
        client.server_info()
    with pytest.raises(EmbedserveError) as caught_async:
        asyncio.run(ask())
    assert str(caught_async.value) == str(caught.value)
    return caught.value


# --- Certificates of the server ---


def test_everything_works_over_tls_with_a_token(tmp_path: Path, authority: Authority) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"write {TOKEN}\n")
    with serving(FakeEncoder(), tmp_path / "data", tokens=tokens, **authority.issue().server) as address:
        for target in (address, local(address)):
            with Client(target, ca=authority.file, token=TOKEN) as client:
                client.wait_ready(20)
                assert client.embed([picture(1), picture(2)]).vectors.shape == (2, 16)

        async def work() -> list[str]:
            async with AsyncClient(address, ca=str(authority.file), token=TOKEN) as client:
                await client.wait_ready(20)
                await client.create_collection("photos")
                await client.add("photos", [ItemInput(id="one", image=picture(1))])
                return [hit.id for hit in await client.search("photos", image=picture(1))]

        assert asyncio.run(work()) == ["one"]
        assert type(refusal(address, ca=authority.file)) is Unauthenticated
        assert type(refusal(address, ca=authority.file, token="another-token-of-a-test")) is Unauthenticated


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("expired", "the certificate of the server at {} has expired"),
        ("early", "the certificate of the server at {} is not valid yet"),
        ("foreign", "the certificate of the server at {} is not trusted"),
        ("other-name", "the certificate of the server at {} was issued for another name"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_refused_at_once_with_the_reason(
    tmp_path: Path, authority: Authority, stranger: Authority, flaw: str, says: str
) -> None:
    pair = {
        "expired": lambda: authority.issue(expired=True),
        "early": lambda: authority.issue(early=True),
        "foreign": stranger.issue,
        "other-name": lambda: authority.issue("elsewhere.example"),
    }[flaw]()
    with serving(FakeEncoder(), tmp_path / "data", **pair.server) as address:
        error = refusal(local(address), ca=authority.file, timeout_s=20)
        assert type(error) is Unavailable
        assert error.message.startswith(says.format(local(address)))
        assert error.hint
        # Waiting does not help against a wrong certificate.
        with Client(local(address), ca=authority.file) as client, pytest.raises(Unavailable) as caught:
            client.wait_ready(60)
        assert caught.value.message == error.message


def test_without_a_ca_only_those_of_the_system_are_trusted(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    with serving(FakeEncoder(), tmp_path / "data", **authority.issue().server) as address:
        assert "is not trusted" in refusal(address, tls=True).message
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        with Client(address, tls=True) as client:
            assert client.server_info().provider == FakeEncoder.provider


def test_a_client_without_tls_is_told_that_the_server_may_want_it(tmp_path: Path, authority: Authority) -> None:
    with serving(FakeEncoder(), tmp_path / "data", **authority.issue().server) as address:
        error = refusal(address)
        assert type(error) is Unavailable
        assert "ends the connection before it is used" in error.message
        assert isinstance(error.hint, Hint)
        assert "ca='ca.pem'" in error.hint
        assert "--ca ca.pem" in error.hint.on_command_line
        with Client(address) as client, pytest.raises(Unavailable, match="ends the connection"):
            client.wait_ready(0.3)


def test_a_client_with_tls_is_told_that_the_server_has_none(address: str, authority: Authority) -> None:
    error = refusal(address, ca=authority.file)
    assert type(error) is Unavailable
    assert error.message == f"the server at {address} does not speak TLS"


# --- Certificates of clients ---


def test_with_mutual_tls_only_a_client_with_a_certificate_of_the_ca_is_admitted(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    clients = Authority(tmp_path, "clients")
    config = {**authority.issue().server, "tls_client_ca": clients.file}
    with serving(FakeEncoder(), tmp_path / "data", **config) as address:
        with Client(address, ca=authority.file, **clients.issue("importer").client) as client:
            assert client.embed([picture(1)]).vectors.shape == (1, 16)
        refused = {
            "none": {},
            "foreign": stranger.issue("importer").client,
            "expired": clients.issue("importer", expired=True).client,
            "the server's own": authority.issue("importer").client,
        }
        for name, certificate in refused.items():
            error = refusal(address, ca=authority.file, **certificate)
            assert type(error) is Unavailable, name
            assert "ends the connection before it is used" in error.message, name
            assert "client_cert and client_key" in error.hint, name


# --- Renewal ---


def test_a_renewed_certificate_is_used_for_new_connections_and_open_ones_continue(
    tmp_path: Path, authority: Authority, stranger: Authority, quick_reload: None
) -> None:
    pair = authority.issue()
    with serving(FakeEncoder(), tmp_path / "data", **pair.server) as address:
        with Client(address, ca=authority.file) as before:
            before.server_info()
            pair.become(stranger.issue())
            wait_until(lambda: _answers(address, ca=stranger.file))
            before.server_info()
        assert not _answers(address, ca=authority.file)


def test_a_renewed_ca_of_clients_is_used(
    tmp_path: Path, authority: Authority, stranger: Authority, quick_reload: None
) -> None:
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(authority.file.read_bytes())
    theirs = stranger.issue("importer").client
    with serving(FakeEncoder(), tmp_path / "data", tls_client_ca=client_ca, **authority.issue().server) as address:
        assert not _answers(address, ca=authority.file, **theirs)
        client_ca.write_bytes(authority.file.read_bytes() + stranger.file.read_bytes())
        wait_until(lambda: _answers(address, ca=authority.file, **theirs))


def test_a_renewal_that_cannot_be_used_changes_nothing_and_is_logged_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair, other = authority.issue(), authority.issue()
    tls = ServerTls(pair.certificate, pair.key)
    until_s = tls.valid_until_s
    pair.key.write_bytes(other.key.read_bytes())  # half of a renewal
    tls.refresh()
    tls.refresh()
    assert caplog.text.count("the old certificate stays in use") == 1
    assert tls.valid_until_s == until_s
    with caplog.at_level(logging.WARNING, "embedserve.server"):
        pair.certificate.write_bytes(other.certificate.read_bytes())
        tls.refresh()
    assert "certificate reloaded" in caplog.text


def test_an_expired_certificate_is_logged_at_the_start(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair = authority.issue(expired=True)
    assert ServerTls(pair.certificate, pair.key).valid_until_s < time.time()
    assert f"the certificate has expired  certificate={pair.certificate}" in logged(caplog)


def _answers(address: str, **options: Any) -> bool:
    with Client(address, **options) as client:
        try:
            client.server_info()
        except Unavailable:
            return False
    return True


def test_the_http_port_uses_the_same_certificate_and_its_renewal(authority: Authority, stranger: Authority) -> None:
    pair = authority.issue()
    tls = ServerTls(pair.certificate, pair.key, authority.file)
    context = tls.http_context()
    assert _handshakes(context, authority.file)
    pair.become(stranger.issue())
    tls.refresh()
    assert _handshakes(context, stranger.file)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshakes(context, authority.file)


def _handshakes(context: ssl.SSLContext, ca: Path) -> bool:
    client_context = ssl.create_default_context(cafile=ca)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.getpeercert() is not None


# --- Files and flags that cannot be used ---


def locked(pair: Pair) -> Path:
    """A copy of its key with a password."""
    out = pair.key.with_suffix(".locked")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    out.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return out


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (lambda a, p, tmp: (tmp / "none.pem", p.key, None), "the certificate .*none.pem cannot be read: No such file"),
        (lambda a, p, tmp: (p.certificate, tmp / "none.pem", None), "the private key .*none.pem cannot be read"),
        (lambda a, p, tmp: (p.certificate, p.key, tmp / "none.pem"), "the CA of clients .*none.pem cannot be read"),
        (lambda a, p, tmp: (tmp, p.key, None), "the certificate .* cannot be read: Is a directory"),
        (lambda a, p, tmp: (p.key, p.key, None), "the certificate .* is not a PEM certificate"),
        (lambda a, p, tmp: (p.certificate, p.certificate, None), "the private key .* is not a PEM key"),
        (lambda a, p, tmp: (p.certificate, p.key, p.key), "the CA of clients .* is not a PEM certificate"),
        (lambda a, p, tmp: (p.certificate, a.issue().key, None), "the private key .* does not belong to the certific"),
        (lambda a, p, tmp: (p.certificate, locked(p), None), "the private key .* is protected by a password"),
    ],
    ids=["no-cert", "no-key", "no-ca", "folder", "key-as-cert", "cert-as-key", "key-as-ca", "other-key", "password"],
)
def test_a_file_that_cannot_be_used_is_refused_at_the_start_with_the_reason(
    tmp_path: Path, authority: Authority, files: Callable[..., tuple[Path, Path, Path | None]], says: str
) -> None:
    certificate, key, client_ca = files(authority, authority.issue(), tmp_path)
    config = ServerConfig(encoder=Path("unused"), tls_cert=certificate, tls_key=key, tls_client_ca=client_ca)
    with pytest.raises(SetupError, match=says) as caught:
        Server(config)
    assert caught.value.hint


def test_a_certificate_without_a_key_and_the_like_are_refused(authority: Authority) -> None:
    pair = authority.issue()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tls_cert": pair.certificate}, "--tls-key"),
        ({"tls_key": pair.key}, "--tls-cert"),
        ({"tls_client_ca": authority.file}, "--tls-cert FILE --tls-key FILE"),
    ]
    for given, missing in cases:
        with pytest.raises(SetupError) as caught:
            Server(ServerConfig(encoder=Path("unused"), **given))
        assert missing in caught.value.hint


# --- Open ports ---


def start(**config: Any) -> str:
    """The warning of a server that is allowed to start."""

    async def make() -> str:
        return Server(ServerConfig(encoder=Path("unused"), **config)).security.warning

    return asyncio.run(make())


def test_a_port_that_other_machines_reach_needs_tls_and_a_check_of_callers_or_insecure(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.issue().server
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {TOKEN}\n")
    for given in ({}, tls, {"tokens": tokens}):
        with pytest.raises(SetupError) as caught:
            start(host="0.0.0.0", **given)
        for way in ("--host 127.0.0.1", "--tls-cert", "--tokens", "--insecure"):
            assert way in caught.value.hint
        assert "0.0.0.0" in start(host="0.0.0.0", insecure=True, **given)
    assert start(host="0.0.0.0", **tls, tokens=tokens) == ""
    assert start(host="0.0.0.0", **tls, tls_client_ca=authority.file) == ""
    assert start(host="127.0.0.1") == ""


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("nowhere.invalid", False),
    ],
)
def test_only_addresses_of_the_machine_itself_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_command_reports_who_may_call(tmp_path: Path, authority: Authority, encoder_file: Path) -> None:
    pair, tokens = authority.issue(), tmp_path / "tokens"
    tokens.write_text(f"read {TOKEN}\nwrite {TOKEN}-2\n")
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--tokens", str(tokens)]
    with ServerProcess(str(encoder_file), "--host", "0.0.0.0", *flags) as server:
        (said,) = [line for line in server.said if line.startswith("callers")]
        assert "TLS, certificate until 20" in said
        assert "; 2 tokens in " in said
        port = server.address.rpartition(":")[2]
        with Client(f"localhost:{port}", ca=authority.file, token=TOKEN) as client:
            client.server_info()
            with pytest.raises(PermissionDenied):
                client.create_collection("photos")
        assert server.terminate() == 0
    assert TOKEN not in "".join(server.said)


def test_the_command_refuses_a_port_that_is_open_to_everyone(encoder_file: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "embedserve",
        "serve",
        str(encoder_file),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--no-http",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error: on 0.0.0.0 other machines can reach this server" in done.stderr


def test_custom_credentials_can_be_combined_with_a_token(tmp_path: Path, authority: Authority) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {TOKEN}\n")
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with (
        serving(FakeEncoder(), tmp_path / "data", tokens=tokens, **authority.issue().server) as address,
        Client(address, credentials=credentials, token=TOKEN) as client,
    ):
        client.server_info()
