"""The server side of TLS: certificates from files, checked, and reloaded when the files change."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from embedserve import pem
from embedserve.errors import SetupError
from embedserve.server.access.reload_files import file_state

_log = logging.getLogger("embedserve.server")
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which ``ssl`` does not name."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The certificates as the files held them at one time."""

    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext
    valid_until_s: float


class ServerTls:
    """The server's certificate and key, and the CAs of client certificates.

    Args:
        certificate: PEM file with the server's certificate, followed by the chain up to the CA.
        key: PEM file with its private key, without a password.
        client_ca: PEM file with the CAs, one of which must have signed a client's certificate; None: clients need none.

    Raises:
        SetupError: a file cannot be used; says which and why.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = [path for path in (certificate, key, client_ca) if path is not None]
        self._state = file_state(*self._files)
        self._loaded = self._load()
        self._used_by_grpc = self._loaded
        self._warn_if_expired()

    @property
    def valid_until_s(self) -> float:
        """When the certificate expires, in seconds since 1970."""
        return self._loaded.valid_until_s

    def refresh(self) -> None:
        """Read the files again if they changed. Files that cannot be used change nothing and are logged, once."""
        state = file_state(*self._files)
        if state == self._state:
            return
        self._state = state
        try:
            self._loaded = self._load()
        except SetupError as error:
            _log.error("the old certificate stays in use", extra={"fields": {"reason": error.message}})
            return
        _log.warning("certificate reloaded", extra={"fields": self._fields()})
        self._warn_if_expired()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for one gRPC port. Connections made after a reload get the new certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.grpc,
            self._changed_configuration,  # type: ignore[arg-type]  # the stubs do not know that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """The context of the HTTP port: the same certificate, reloaded likewise. Clients need no certificate."""
        context = _context(self._certificate, self._key)

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            connection.context = self._loaded.http  # called for every handshake, whether it names a server or not

        context.sni_callback = choose
        return context

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """A new configuration, or None. gRPC calls it before each handshake, in its own thread."""
        loaded = self._loaded
        if loaded is self._used_by_grpc:
            return None
        self._used_by_grpc = loaded
        return loaded.grpc

    def _load(self) -> _Loaded:
        pair = pem.read_pair(self._certificate, self._key)
        roots = None if self._client_ca is None else pem.read_certificates(self._client_ca, "the CA of clients")
        configuration = grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], roots)
        try:
            context = _context(self._certificate, self._key)
            return _Loaded(configuration, context, _valid_until_s(context, pair))
        except (ssl.SSLError, OSError) as error:  # both files were valid a moment ago
            raise SetupError(f"{self._certificate} is being replaced right now", hint="try again") from error

    def _fields(self) -> dict[str, str]:
        return {"certificate": str(self._certificate), "valid_until": _day(self.valid_until_s)}

    def _warn_if_expired(self) -> None:
        if self.valid_until_s < time.time():
            _log.error("the certificate has expired", extra={"fields": self._fields()})


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _valid_until_s(server: ssl.SSLContext, pair: pem.KeyPair) -> float:
    """When the certificate expires. ``ssl`` tells that only of a certificate received in a handshake."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(cadata=pair.certificate.decode("ascii"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client_side, server_side, client_side):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    received = client_side.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(received["notAfter"])))


def _day(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))
