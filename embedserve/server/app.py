"""The life cycle of a server: listen, load, warm up, be ready, drain, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedserve import descriptors
from embedserve.encoder.session import Encoder, ImageEncoder, check_reference
from embedserve.engine.engine import Engine
from embedserve.errors import SetupError
from embedserve.server.access.reload_files import reload_when_changed
from embedserve.server.calls.call_limits import CallLimits
from embedserve.server.calls.connections import ConnectionRoom
from embedserve.server.calls.open_calls import OpenCalls
from embedserve.server.calls.untaken import end_untaken
from embedserve.server.config import ServerConfig
from embedserve.server.http import HttpServer, application
from embedserve.server.imports import import_now
from embedserve.server.interceptor import CallInterceptor
from embedserve.server.lifecycle import encoder_health, memory
from embedserve.server.lifecycle.replacing import EncoderReplacer
from embedserve.server.lifecycle.state import ServerState, shutting_down
from embedserve.server.security import Security
from embedserve.server.services.admin import AdminService
from embedserve.server.services.collections import CollectionService
from embedserve.server.services.embedding import EmbeddingService
from embedserve.server.services.health import HealthService
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

_FLUSH_S = 5.0
"""How long the last responses and refusals may take to be sent; all calls have ended by themselves long before."""
_UNREAD_BYTES = 1 << 20
"""What a connection may send before a call reads it: 20 MB/s from a client that is 50 ms away."""


class Server:
    """A gRPC server for one encoder. Call ``listen``, ``load`` and finally ``stop``, all on one event loop.

    Args:
        config: its configuration.
        open_encoder: makes the encoder, instead of reading the configured file.
        traces: where spans go, instead of where the configuration says.

    Raises:
        SetupError: the files for TLS and tokens cannot be used, other machines would reach an open port, or traces
            are asked for and OpenTelemetry is not installed.
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
        self._background: list[asyncio.Task[None]] = []
        self._state = ServerState()
        self._call_limits = CallLimits(config.limits)
        self._open_calls = OpenCalls()
        self._replacer = EncoderReplacer(self._open_encoder, self._state)
        self._traces = Traces() if traces is None and config.traces else traces
        self.metrics = Metrics(_methods())
        """Kept even if they cannot be read over HTTP."""
        self._http: HttpServer | None = None
        self._health = HealthService(("", *SERVICES))
        self._connections_allowed = descriptors.connections_allowed(config.limits.max_connections)
        self._grpc = grpc.aio.server(
            interceptors=[
                CallInterceptor(self._state, self._call_limits, self._open_calls, self.metrics, self._traces),
                *self.security.interceptors,
            ],
            options=_grpc_options(config.limits, connections=self._connections_allowed),
        )
        self.port = 0
        """The port that the server listens on."""

    @property
    def http_url(self) -> str | None:
        """The address of metrics and probes; None without HTTP."""
        return None if self._http is None else self._http.url

    async def listen(self) -> None:
        """Open the ports and answer health checks with NOT_SERVING; all other calls are still UNAVAILABLE.

        Raises:
            SetupError: a port is taken or not allowed.
        """
        import_now()
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
        try:
            if self.security.tls is None:
                self.port = self._grpc.add_insecure_port(address)
            else:
                self.port = self._grpc.add_secure_port(address, self.security.tls.grpc_credentials())
        except RuntimeError as error:
            if self._http is not None:
                await self._http.stop()
            raise SetupError(
                f"cannot listen on {address}: the port is taken, or the address is not one of this machine",
                hint=f"choose another: embedserve serve … --port {self._config.port + 1}",
            ) from error
        await self._grpc.start()
        self._run_in_background("call limits", self._call_limits.end_slow_calls())
        self._run_in_background("open calls", self._open_calls.end_slow())
        room = ConnectionRoom(
            self.port,
            self._connections_allowed,
            busy=lambda: self._call_limits.peers | self._open_calls.peers,
            known=lambda: self._call_limits.known_peers | self._open_calls.known_peers,
        )
        self._run_in_background("connections", room.keep())
        if (trim := memory.heap_trimmer()) is not None:
            self._run_in_background("memory", memory.trim_after_growth(trim))
        self._run_in_background(
            "encoder health", encoder_health.watch_encoder_health(self._state, self._publish_health)
        )
        if self.security.reloadable:
            self._run_in_background("reload files", reload_when_changed(self.security.reloadable))
        if self._http is not None:
            self._http.start()

    async def load(self, encoder: ImageEncoder | None = None) -> Engine:
        """Open encoder and collections, warm up, and become ready.

        Args:
            encoder: an encoder to use instead of the configured file.

        Raises:
            EncoderFileError, SetupError, StoreError: something cannot be opened; the hint says what to do.
        """
        config = self._config
        if encoder is None:
            encoder = await asyncio.to_thread(self._open_encoder)
            await asyncio.to_thread(check_reference, encoder)
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
            if store is not None:  # no engine owns it, so nothing else releases its directory
                store.close()
            raise
        self._run_in_background("untaken answers", end_untaken(engine.answers))
        self.metrics.read_from(engine, ready=lambda: self._state.phase == "ready")
        self._state.ready(engine)
        await self._publish_health()
        return engine

    def _open_store(self, data: Path) -> LocalStore:
        config = self._config
        return LocalStore.open(
            data, memory_bytes=config.index_memory_mib << 20, observer=self.metrics, limits=config.limits
        )

    async def replace_encoder(self) -> None:
        """Serve what the encoder file holds now, see ``EncoderReplacer.replace``."""
        await self._replacer.replace()

    async def stop(self) -> None:
        """Report NOT_SERVING, let calls in flight finish within the grace time, flush and close."""
        for task in self._background:
            task.cancel()
        self._health.set(serving=False)
        engine = await self._state.drain(self._config.grace_s)
        # From here on new calls are held, until gRPC has said goodbye: see ``Arrivals``.
        await self._state.arrivals.hold()
        goodbye = asyncio.create_task(self._grpc.stop(_FLUSH_S))
        await asyncio.sleep(0)  # it is said in the task's first step
        self._state.arrivals.release()
        # What never ends by itself, or not soon: health watches and reflection, and calls whose request is on its way.
        self._open_calls.end_all(shutting_down())
        self._call_limits.end_unreceived(shutting_down())
        await goodbye
        if engine is not None:
            await engine.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        if self._http is not None:  # last, so that probes are answered until the end
            await self._http.stop()

    def _run_in_background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work, name=name))

    async def _publish_health(self) -> None:
        self._health.set(serving=self._state.phase == "ready")


def _grpc_options(limits: Limits, *, connections: int) -> list[tuple[str, Any]]:
    return [
        # Counted before their handshake; one more is closed at once.
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # More than we admit: what HTTP/2 itself refuses carries neither a reason nor a retry time.
        ("grpc.max_concurrent_streams", 2 * limits.max_calls),
        # Otherwise a second server on the same port would silently get a share of the connections.
        ("grpc.so_reuseport", 0),
        # A connection whose client is gone is found and closed within 80 seconds; its calls are cancelled.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping every 10 seconds, even between calls; one that pings more often is disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 3),
        # For a client that connects and sends nothing, or only half of a TLS handshake.
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.max_metadata_size", 16 << 10),
        # By default gRPC measures the bandwidth-delay product and lets every connection send several MiB that no call
        # has read yet, however many connections there are.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
    ]


def _methods() -> list[str]:
    services = map(descriptor_pool.Default().FindServiceByName, SERVICES)
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
