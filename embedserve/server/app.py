"""The life of a server: listen, load, warm up, be ready, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedserve.encoder.session import Encoder, ImageEncoder
from embedserve.engine.engine import Engine
from embedserve.errors import EmbedserveError, SetupError
from embedserve.server.access.reload_files import watch
from embedserve.server.calls.call_limits import CallLimits
from embedserve.server.config import ServerConfig
from embedserve.server.http import HttpServer, application
from embedserve.server.interceptor import CallInterceptor
from embedserve.server.lifecycle import encoder_health, memory
from embedserve.server.lifecycle.replacing import EncoderReplacer
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.security import Security
from embedserve.server.services.admin import AdminService
from embedserve.server.services.collections import CollectionService
from embedserve.server.services.embedding import EmbeddingService
from embedserve.server.services.search import SearchService
from embedserve.server.telemetry.metrics import Metrics
from embedserve.server.telemetry.tracing import Traces
from embedserve.store.local.store import LocalStore
from embedserve.types import Limits
from embedserve.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    collection_service_pb2,
    collection_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)

SERVICES = (
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name,
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name,
    collection_service_pb2.DESCRIPTOR.services_by_name["CollectionService"].full_name,
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)

_LAST_BYTES_S = 0.5
_UNASKED_BYTES = 1 << 20
"""20 MB/s from a client that is 50 ms away, on each of its connections."""
_log = logging.getLogger("embedserve.server")


class Server:
    """A gRPC server for one encoder. ``listen``, then ``load``, and in the end ``stop``; all on one event loop.

    Args:
        config: how it is set up.
        open_encoder: makes the encoder, instead of reading the configured file.
        traces: where spans go, instead of where the configuration says.

    Raises:
        SetupError: the files for TLS and tokens cannot be used, strangers would reach an open port, or traces are
            asked for and OpenTelemetry is not installed.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        open_encoder: Callable[[], ImageEncoder] | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._config = config
        self._open_encoder = open_encoder or partial(
            Encoder.open,
            config.encoder,
            device=config.device,
            threads=config.threads,
            max_batch=config.max_batch,
            gpu_memory_bytes=config.gpu_memory_mib << 20,
        )
        self.security = Security(config)
        """Who may call."""
        self._watching: list[asyncio.Task[None]] = []
        self._state = ServerState()
        self._gate = CallLimits(config.limits)
        self._replacer = EncoderReplacer(self._open_encoder, self._state)
        self._traces = Traces() if traces is None and config.traces else traces
        self.metrics = Metrics(_methods())
        """What is counted, whether or not it can be read over HTTP."""
        self._http: HttpServer | None = None
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(
            interceptors=[
                CallInterceptor(self._state, self._gate, self.metrics, self._traces),
                *self.security.interceptors,
            ],
            options=_grpc_options(config.limits),
        )
        self.port = 0
        """The port that is listened on."""

    @property
    def http_url(self) -> str | None:
        """Where metrics and probes are; None without HTTP."""
        return None if self._http is None else self._http.url

    async def listen(self) -> None:
        """Take the ports and answer health checks with NOT_SERVING; all other calls are UNAVAILABLE still.

        Raises:
            SetupError: a port is taken or not allowed.
        """
        host = self._config.host
        if self._config.http:
            tls, tokens = self.security.tls, self.security.tokens
            app = application(self._state, self.metrics, tokens)
            context = None if tls is None else tls.http_context()
            self._http = HttpServer(app, host=host, port=self._config.http_port, tls=context)
        address = f"{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self._config.port}"
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingService(self._state), self._grpc)
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(SearchService(self._state), self._grpc)
        collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(CollectionService(self._state), self._grpc)
        admin = AdminService(self._replacer, has_tokens=self.security.tokens is not None)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if self._config.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            if self.security.tls is None:
                self.port = self._grpc.add_insecure_port(address)
            else:
                self.port = self._grpc.add_secure_port(address, self.security.tls.grpc_credentials())
        except RuntimeError as error:
            if self._http is not None:
                await self._http.stop()
            raise SetupError(
                f"cannot listen on {address}: the port is taken, or the address is not this machine's",
                hint=f"choose another: embedserve serve … --port {self._config.port + 1}",
            ) from error
        await self._grpc.start()
        self._watching.append(asyncio.create_task(self._gate.watch(), name="gate"))
        if (trim := memory.trimmer()) is not None:
            self._watching.append(asyncio.create_task(memory.give_back(trim), name="memory"))
        self._watching.append(asyncio.create_task(encoder_health.watch(self._state, self._tell_health), name="canary"))
        if self.security.watched:
            self._watching.append(asyncio.create_task(watch(self.security.watched), name="watch"))
        if self._http is not None:
            self._http.start()

    async def load(self, encoder: ImageEncoder | None = None) -> Engine:
        """Open encoder and collections, warm up, and be ready.

        Args:
            encoder: an encoder to use instead of the configured file.

        Raises:
            EncoderFileError, SetupError, StoreError: with what to do about it.
        """
        config = self._config
        if encoder is None:
            encoder = await asyncio.to_thread(self._open_encoder)
        store = None if config.data is None else await asyncio.to_thread(self._open_store, config.data)
        try:
            engine = await Engine.start(
                encoder,
                store,
                limits=config.limits,
                decode_threads=config.decode_threads,
                max_batch=config.max_batch,
                observer=self.metrics,
            )
        except BaseException:
            if store is not None:  # no engine owns it, so nobody else gives its directory free
                store.close()
            raise
        self.metrics.read_from(engine, ready=lambda: self._state.phase == "ready")
        self._state.ready(engine)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return engine

    def _open_store(self, data: Path) -> LocalStore:
        return LocalStore.open(data, memory_bytes=self._config.index_memory_mib << 20, observer=self.metrics)

    async def replace_encoder(self) -> None:
        """Serve what the encoder file holds now; see ``EncoderReplacer.replace``."""
        await self._replacer.replace()

    async def stop(self) -> None:
        """Say NOT_SERVING, let running calls finish within the grace time, flush and close."""
        for watching in self._watching:
            watching.cancel()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        engine = await self._state.drain(self._config.grace_s)
        # Our own calls are done; their last bytes are sent now. Health watches and reflection would stay open for ever.
        await self._grpc.stop(_LAST_BYTES_S)
        if engine is not None:
            await engine.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        if self._http is not None:  # last, so that whoever asks is told until the end that no calls are taken
            await self._http.stop()

    async def _tell_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        await self._set_health(status.SERVING if self._state.phase == "ready" else status.NOT_SERVING)

    async def _set_health(self, status: int) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def _grpc_options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # More than we let in: what HTTP/2 itself refuses has neither a reason nor a time to try again.
        ("grpc.max_concurrent_streams", 2 * limits.max_calls),
        # Otherwise a second server on the same port would silently get a share of the connections.
        ("grpc.so_reuseport", 0),
        # A connection whose other end is gone is found and closed within a minute and a half; its calls are cancelled.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ask as often as every 10 seconds, also between calls; who asks more often is disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 3),
        # A stranger who connects and says nothing, or only half of a TLS handshake.
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.max_metadata_size", 16 << 10),
        # What a connection may send before anybody has asked for it. By default gRPC measures how much fits the line
        # and lets every connection send several MiB, however many there are.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _UNASKED_BYTES),
    ]


def _methods() -> list[str]:
    services = map(descriptor_pool.Default().FindServiceByName, SERVICES)
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def run(config: ServerConfig, *, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Raises:
        EmbedserveError: the server could not start.
    """
    asyncio.run(_run(config, say))


async def _run(config: ServerConfig, say: Callable[[str], None]) -> None:
    stopping = asyncio.Event()

    def tell(line: str) -> None:
        with suppress(OSError):  # whoever read standard error may be gone, which is no reason to do anything else
            say(line)

    def stop(name: str) -> None:
        if stopping.is_set():
            os._exit(130)
        stopping.set()
        tell(f"{name}: finishing what is running (at most {config.grace_s:g} s)")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    server = Server(config)
    await server.listen()
    replacing: set[asyncio.Task[None]] = set()

    def replace_encoder() -> None:
        task = loop.create_task(_replace_encoder(server))
        replacing.add(task)
        task.add_done_callback(replacing.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, replace_encoder)
    try:
        loading = asyncio.create_task(server.load())
        interrupted = asyncio.create_task(stopping.wait())
        await asyncio.wait([loading, interrupted], return_when=asyncio.FIRST_COMPLETED)
        # A load that was interrupted is let finish: it holds the data directory.
        engine = await loading
        if not stopping.is_set():
            await _say_ready(config, server, engine, tell)
        await interrupted
    finally:
        await server.stop()
    tell("stopped")


async def _replace_encoder(server: Server) -> None:
    try:
        await server.replace_encoder()
    except EmbedserveError as error:
        _log.error("encoder not replaced: %s%s", error.message, f"; {error.hint}" if error.hint else "")
    except Exception:
        _log.exception("encoder not replaced: bug")


async def _say_ready(config: ServerConfig, server: Server, engine: Engine, say: Callable[[str], None]) -> None:
    metadata, encoder = engine.encoder.metadata, engine.encoder
    say(
        f"encoder      {metadata.name}  {metadata.dimension} numbers per image  {metadata.preprocess.size_px} px"
        f"  {encoder.provider}, batches up to {engine.embedder.batcher.max_batch}  {encoder.fingerprint[:12]}"
    )
    if isinstance(encoder, Encoder) and encoder.note:
        say(f"warning      on the CPU although there is a GPU: {encoder.note}")
    if config.data is None:
        say("collections  none: started without --data")
    else:
        collections = await engine.collections.list_all()
        items = sum(info.items for info in collections)
        say(f"collections  {len(collections)} with {items:,} items in {config.data}")
        for info in collections:
            if not info.external and info.fingerprint != encoder.fingerprint:
                say(
                    f"warning      collection {info.name!r} is bound to another encoder ({info.fingerprint[:12]}):"
                    " it answers vectors and ids, not images"
                )
    say(f"callers      {server.security.summary}")
    if server.security.warning:
        say(f"warning      {server.security.warning}")
    http = "" if server.http_url is None else f"  HTTP on {server.http_url}"
    say(f"ready        gRPC on {config.host}:{server.port}{http}")
