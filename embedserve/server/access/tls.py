"""The server's side of TLS: certificates from files, checked, and taken over anew when the files are renewed."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from embedserve import pem
from embedserve.errors import SetupError
from embedserve.server.access.reload_files import state_of

_log = logging.getLogger("embedserve.server")
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which ``ssl`` does not name."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What was made of the files at one time."""

    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext
    valid_until_s: float


class ServerTls:
    """Certificate, key and the CA that clients need a certificate of.

    Args:
        certificate: PEM file with the server's certificate and what leads from there to the CA, in this order.
        key: PEM file with its private key, without a password.
        client_ca: PEM file with the CAs whose certificates clients must show; None: clients need none.

    Raises:
        SetupError: a file cannot be used; says which and why.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = [path for path in (certificate, key, client_ca) if path is not None]
        self._state = state_of(*self._files)
        self._now = self._load()
        self._given = self._now
        self._warn_if_expired()

    @property
    def valid_until_s(self) -> float:
        """When the certificate expires, in seconds since 1970."""
        return self._now.valid_until_s

    def refresh(self) -> None:
        """Read the files again if they changed. Files that cannot be used change nothing and are logged, once."""
        state = state_of(*self._files)
        if state == self._state:
            return
        self._state = state
        try:
            self._now = self._load()
        except SetupError as error:
            _log.error("the old certificate stays in use: %s", error.message)
            return
        _log.warning("certificate read again from %s, valid until %s", self._certificate, _day(self.valid_until_s))
        self._warn_if_expired()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one gRPC port. Connections that are made after a renewal get the new certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._now.grpc,
            self._changed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """For the HTTP port: the same certificate, renewed in the same way. It asks nobody for a certificate."""
        context = _context(self._certificate, self._key)

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            connection.context = self._now.http  # called for every handshake, whether it names a server or not

        context.sni_callback = choose
        return context

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks before each handshake, in a thread of its own: something new, or None."""
        now = self._now
        if now is self._given:
            return None
        self._given = now
        return now.grpc

    def _load(self) -> _Loaded:
        pair = pem.read_pair(self._certificate, self._key)
        roots = None if self._client_ca is None else pem.read_certificates(self._client_ca, "the CA of clients")
        configuration = grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], roots)
        try:
            context = _context(self._certificate, self._key)
            return _Loaded(configuration, context, _valid_until_s(context, pair))
        except (ssl.SSLError, OSError) as error:  # both were fine a moment ago
            raise SetupError(f"{self._certificate} is being replaced right now", hint="try again") from error

    def _warn_if_expired(self) -> None:
        if self.valid_until_s < time.time():
            _log.error("the certificate %s has expired on %s", self._certificate, _day(self.valid_until_s))


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _valid_until_s(server: ssl.SSLContext, pair: pem.KeyPair) -> float:
    """When the certificate expires; ``ssl`` tells that only of a certificate that it has been shown in a handshake."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(cadata=pair.certificate.decode("ascii"))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    for side in (asking, answering, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = asking.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def _day(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))
