"""The HTTP port: metrics and probes, on the event loop of the gRPC server.

``/healthz`` answers 200 as long as the event loop runs, ``/readyz`` only while calls are accepted; ``/metrics`` is for
Prometheus. No page reads a request body. Connections are few and short-lived, see ``http_door``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import embedserve
from embedserve.errors import SetupError
from embedserve.server.http_door import Door, HttpConnection

if TYPE_CHECKING:
    from embedserve.server.access.tokens import TokenFile
    from embedserve.server.lifecycle.state import ServerState
    from embedserve.server.telemetry.metrics import Metrics

_BACKLOG = 1024
_MAX_HEADER_BYTES = 16 * 1024

_NOT_READY_REASONS = {
    "starting": "the encoder and the collections are being opened",
    "failing": "the encoder fails on every image; it is tried again every second",
    "draining": "the server is stopping and finishes the calls in flight",
}


def application(state: ServerState, metrics: Metrics, tokens: TokenFile | None = None) -> Starlette:
    """The pages of the HTTP port. With tokens, the metrics need one of them; probes need none."""

    async def index(request: Request) -> Response:
        return PlainTextResponse(
            f"embedserve {embedserve.__version__}\n\n"
            "/healthz  200 while the process lives\n"
            "/readyz   200 while calls are accepted\n"
            "/metrics  for Prometheus\n"
        )

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        phase = state.phase
        if phase == "ready":
            return JSONResponse({"status": phase})
        return JSONResponse({"status": phase, "reason": _NOT_READY_REASONS[phase]}, status_code=503)

    async def read_metrics(request: Request) -> Response:
        if tokens is not None and tokens.find_bearer(request.headers.get("authorization", "")) is None:
            return PlainTextResponse("a token is needed\n", 401, {"www-authenticate": "Bearer"})
        await metrics.refresh_collections()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})

    pages = {"/": index, "/healthz": healthz, "/readyz": readyz, "/metrics": read_metrics}
    return Starlette(routes=[Route(path, page) for path, page in pages.items()])


class HttpServer:
    """Serves an application. The port is open from the beginning; requests are answered after ``start``.

    Args:
        app: the pages.
        host: the address to listen on.
        port: 0 for any free one.
        tls: the context for HTTPS; None for HTTP.

    Raises:
        SetupError: the port is taken or not allowed.
    """

    def __init__(self, app: Starlette, *, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        config.load()
        self._sockets = _listen(host, port)
        self._server = _Server(config)
        state = self._server.server_state
        self._door = Door(self._sockets, lambda: HttpConnection(config, state, {}), tls)
        self._serving: asyncio.Task[None] | None = None
        self._scheme = "http" if tls is None else "https"
        self.port: int = self._sockets[0].getsockname()[1]
        """The port that the server listens on."""

    @property
    def url(self) -> str:
        """The address of the pages."""
        host = self._sockets[0].getsockname()[0]
        return f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Answer requests."""
        # No sockets for uvicorn: the door takes the connections.
        self._serving = asyncio.create_task(self._server.serve([]), name="http")
        self._door.open()

    async def stop(self) -> None:
        """Answer the requests in flight, and close the port."""
        await self._door.close()
        for listening in self._sockets:
            listening.close()
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the gRPC server, which stops this one last."""
        yield


def _listen(host: str, port: int) -> list[socket.socket]:
    """A socket on each address that the host resolves to, all with the same port."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(socket.create_server((address[0], port), family=family, backlog=_BACKLOG))
            port = port or sockets[0].getsockname()[1]
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise SetupError(
            f"cannot listen on {host}:{port} for HTTP: {error.strerror}",
            hint=f"choose another: embedserve serve … --http-port {port + 1}, or do without HTTP: --no-http",
        ) from error
    return sockets
