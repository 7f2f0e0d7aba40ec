"""How a client authenticates itself and the server: TLS, certificates and the token of a connection."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from embedserve import pem
from embedserve.client import hints
from embedserve.client.rotation import ROUND_ROBIN, RotatingChannel
from embedserve.client.target import Target, addresses, is_this_machine
from embedserve.errors import InvalidInput

_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)


@dataclass(frozen=True, slots=True)
class Access:
    """What is needed to open a channel to a server, or to several that share the calls."""

    targets: tuple[str, ...]
    """The addresses of the servers, as gRPC takes them; calls go to them in turn."""
    credentials: grpc.ChannelCredentials | None
    """None for a connection without TLS."""
    token: str = field(default="", repr=False)

    @property
    def target(self) -> str:
        """The addresses, for messages."""
        return ", ".join(self.targets)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The header that carries the token; empty without a token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open(self, api: Any, *, own_connection: bool = False) -> Any:
        """A channel to the servers.

        Args:
            api: ``grpc`` or ``grpc.aio``, whose functions have the same names.
            own_connection: do not share a connection with other channels to the same target.
        """
        channels = [self._open(api, target, own_connection) for target in self.targets]
        channel = channels[0] if len(channels) == 1 else RotatingChannel(channels)
        return _TokenChannel(channel, self.metadata) if self.token else channel

    def _open(self, api: Any, target: str, own_connection: bool) -> Any:
        options: list[tuple[str, int | str]] = [*channel_options(target)]
        if own_connection:
            options.append(("grpc.use_local_subchannel_pool", 1))
        if len(self.targets) > 1:
            options.append(ROUND_ROBIN)
        if self.credentials is None:
            return api.insecure_channel(target, options)
        return api.secure_channel(target, self.credentials, options)


def channel_options(target: str) -> list[tuple[str, int]]:
    """Options of a channel to the target."""
    options = [
        # The server's limits decide: requests are cut to them, and no response is refused.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # By default, gRPC servers close a connection that is pinged more often than every 5 minutes.
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A restarted server is found again within our own retries; gRPC's default waits a second and then longer.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if is_this_machine(target):
        # With http_proxy set and no_proxy unset, gRPC would go through the proxy to reach this machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def access(
    target: Target,
    *,
    token: str = "",
    tls: bool = False,
    ca: str | Path | None = None,
    client_cert: str | Path | None = None,
    client_key: str | Path | None = None,
    allow_plain_token: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
) -> Access:
    """The validated connection settings of a client; ``Client`` explains the arguments.

    Raises:
        InvalidInput: an address is none, arguments contradict each other, the token is not allowed in a header or would
            be sent in clear text to another machine.
        SetupError: a file cannot be used.
    """
    targets = addresses(target)
    if (client_cert is None) != (client_key is None):
        raise InvalidInput(
            "a client certificate and its key belong together", hint="give both: client_cert=…, client_key=…"
        )
    with_tls = tls or ca is not None or client_cert is not None
    if credentials is not None and with_tls:
        raise InvalidInput("credentials= already says how TLS is done", hint="leave out tls, ca and client_cert")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InvalidInput("the token has characters that are not allowed in a header, such as spaces or line ends")
    if with_tls:
        roots = _system_roots() if ca is None else pem.read_certificates(Path(ca), "the CA")
        if client_cert is None or client_key is None:
            credentials = grpc.ssl_channel_credentials(roots)
        else:
            pair = pem.read_pair(Path(client_cert), Path(client_key))
            credentials = grpc.ssl_channel_credentials(roots, pair.key, pair.certificate)
    elif token and credentials is None and not allow_plain_token and not all(map(is_this_machine, targets)):
        raise InvalidInput(
            f"everyone on the way to {', '.join(targets)} could read the token: the connection has no TLS",
            hint=hints.PLAIN_TOKEN,
        )
    return Access(targets, credentials, token)


def _system_roots() -> bytes | None:
    """The CAs that this machine trusts; None: those of Mozilla, which come with gRPC."""
    if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        return None
    for path in (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS):
        if path is not None and Path(path).is_file():
            return Path(path).read_bytes()
    return None


class _TokenChannel:
    """A channel that sends the token with each call.

    gRPC's call credentials do not work without TLS, and its interceptors change what a call object can do.
    """

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return found
        return lambda *args, **options: _TokenCall(found(*args, **options), self._metadata)


class _TokenCall:
    """A method of a stub, sync or async, that sends the token with each call."""

    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, *args: Any, metadata: Any = (), **options: Any) -> Any:
        return self._method(*args, metadata=(*(metadata or ()), *self._metadata), **options)

    def future(self, *args: Any, metadata: Any = (), **options: Any) -> Any:
        return self._method.future(*args, metadata=(*(metadata or ()), *self._metadata), **options)
