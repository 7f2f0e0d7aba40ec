"""TLS and tokens of a server: made from its configuration, refused if it is unsafe, and summed up in one line."""

from __future__ import annotations

import ipaddress
import socket
import time

from embedserve.errors import SetupError
from embedserve.server.access.reload_files import Reloadable
from embedserve.server.access.roles import AccessInterceptor
from embedserve.server.access.tls import ServerTls
from embedserve.server.access.tokens import TokenFile
from embedserve.server.config import ServerConfig


class WrongFlags(SetupError):
    """Flags of `serve` that contradict each other, or leave a port open: wrong usage, before anything was tried."""

    exit_code = 2


class Security:
    """TLS and tokens of a server, as far as the configuration asks for them.

    Raises:
        SetupError: a file cannot be used.
        WrongFlags: flags contradict each other, or other machines would reach an open port.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.tls = _tls(config)
        self.tokens = None if config.tokens is None else TokenFile(config.tokens)
        self._config = config
        if not config.insecure and not self._closed and not is_loopback(config.host):
            raise WrongFlags(
                f"on {config.host} other machines can reach this server, and {self._open_because}",
                hint="listen on this machine only: --host 127.0.0.1; or check callers: --tls-cert FILE --tls-key FILE"
                " with --tokens FILE (or --tls-client-ca FILE); or leave it open, behind something that checks"
                " callers: --insecure",
            )

    @property
    def interceptors(self) -> list[AccessInterceptor]:
        """Run right after the interceptor that counts calls, and before all others."""
        return [] if self.tokens is None else [AccessInterceptor(self.tokens)]

    @property
    def reloadable(self) -> list[Reloadable]:
        """What to reload when its files change."""
        return [part for part in (self.tls, self.tokens) if part is not None]

    @property
    def summary(self) -> str:
        """Who may call, for the lines that a server prints when it is ready."""
        config = self._config
        encrypted = "no TLS"
        if self.tls is not None:
            encrypted = f"TLS, certificate until {time.strftime('%Y-%m-%d', time.gmtime(self.tls.valid_until_s))}"
            if config.tls_client_ca is not None:
                encrypted += f", clients need one of {config.tls_client_ca}"
        known = f"{len(self.tokens)} tokens in {config.tokens}" if self.tokens is not None else "no tokens"
        return f"{encrypted}; {known}"

    @property
    def warning(self) -> str:
        """The risk that the operator should know of; empty if there is none."""
        if self._closed or is_loopback(self._config.host):
            return ""
        return f"other machines can reach {self._config.host}, and {self._open_because}"

    @property
    def _closed(self) -> bool:
        """Whether connections are encrypted and callers are checked."""
        return self.tls is not None and (self.tokens is not None or self._config.tls_client_ca is not None)

    @property
    def _open_because(self) -> str:
        if self.tokens is not None:
            return "without TLS anyone on the network path can read images and tokens"
        return "without tokens anyone who reaches it may read, write and delete"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False  # listening on it reports what is wrong
    return bool(found) and all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def _tls(config: ServerConfig) -> ServerTls | None:
    if config.tls_cert is None and config.tls_key is None:
        if config.tls_client_ca is not None:
            raise WrongFlags(
                "--tls-client-ca asks clients for certificates, but the server itself has none",
                hint="add --tls-cert FILE --tls-key FILE",
            )
        return None
    if config.tls_cert is None or config.tls_key is None:
        missing = "--tls-cert" if config.tls_cert is None else "--tls-key"
        raise WrongFlags(f"TLS needs a certificate and its key, and {missing} is missing", hint=f"add {missing} FILE")
    return ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca)
