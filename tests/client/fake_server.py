"""A gRPC server with scripted answers that records its requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from embedserve import wire
from embedserve.client import bulk
from embedserve.errors import EmbedserveError
from embedserve.types import Limits
from embedserve.v1 import (
    admin_service_pb2_grpc as admin_grpc,
)
from embedserve.v1 import (
    collection_service_pb2 as collection_pb,
)
from embedserve.v1 import (
    collection_service_pb2_grpc as collection_grpc,
)
from embedserve.v1 import (
    embedding_service_pb2 as embedding_pb,
)
from embedserve.v1 import (
    embedding_service_pb2_grpc as embedding_grpc,
)
from embedserve.v1 import (
    search_service_pb2_grpc as search_grpc,
)

FINGERPRINT = "ab" * 32
DIMENSION = 4

Answer = Callable[..., Any]
Connect = Callable[..., Any]
"""Makes a client for a target, with the options of its class."""
METHODS = {
    embedding_grpc.EmbeddingServiceServicer: ("Embed", "EmbedStream", "GetEncoder", "GetServerInfo"),
    search_grpc.SearchServiceServicer: ("Search",),
    admin_grpc.AdminServiceServicer: ("ReplaceEncoder",),
    collection_grpc.CollectionServiceServicer: (
        "CreateCollection",
        "GetCollection",
        "ListCollections",
        "DeleteCollection",
        "SetAlias",
        "Upsert",
        "UpsertStream",
        "GetItems",
        "DeleteItems",
        "ListItems",
        "CountItems",
        "UpdateMetadata",
        "CheckCollection",
        "BackupCollection",
        "RestoreCollection",
    ),
    health_pb2_grpc.HealthServicer: ("Check",),
}


def encoder_ref(fingerprint: str = FINGERPRINT) -> Any:
    return wire.encoder_ref("fake", fingerprint, DIMENSION)


def vector_of(image: bytes) -> np.ndarray:
    """The vector that the scripted encoder gives an image: its length and its first byte."""
    return np.array([len(image), image[0], 0, 0], dtype=np.float32)


def status(error: EmbedserveError) -> Any:
    return wire.error_to_status(error)


@dataclass
class FakeServer:
    """Answers each call with what its script returns; an EmbedserveError that the script raises fails the call."""

    limits: Limits
    port: int = 0
    requests: list[tuple[str, Any]] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    scripts: dict[str, Answer] = field(default_factory=dict)
    streams: list[tuple[str, float | None]] = field(default_factory=list)
    """The method of each stream that was opened, and its deadline in seconds."""
    max_in_flight: int = 0
    begins_restores: bool = True
    """Whether a restore begins, and sends its headers, at once."""
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once by each call that has ended for the client, whether it was answered or cancelled."""
    _in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def asked(self, method: str) -> list[Any]:
        """The requests of a method, in the order of their arrival."""
        return [request for name, request in self.requests if name == method]

    def on(self, method: str, script: Answer) -> None:
        self.scripts[method] = script

    def handle(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(self.ended.release)
        with self._lock:
            self.requests.append((method, request))
            self.timeouts_s.append(context.time_remaining())
            self.authorizations += [
                str(value) for key, value in context.invocation_metadata() if key == "authorization"
            ]
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        if method == "RestoreCollection" and self.begins_restores:
            context.send_initial_metadata(())
        try:
            with refusing(context):
                return self.scripts[method](request)
        finally:
            with self._lock:
                self._in_flight -= 1

    def converse(self, method: str, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """A stream: the script of its method answers each message as it arrives."""
        context.send_initial_metadata(())  # as our server does; the client waits for it
        context.add_callback(self.ended.release)
        with self._lock:
            self.streams.append((method, context.time_remaining()))
        inputs_before = 0
        for request in requests:
            with self._lock:
                self.requests.append((method, request))
            with refusing(context):
                yield self.scripts[method](request, inputs_before)
            inputs_before += len(request.images if method == "EmbedStream" else request.items)


@contextmanager
def refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends a call with the error that its script raises."""
    try:
        yield
    except EmbedserveError as error:
        context.abort_with_status(rpc_status.to_status(status(error)))
    except PlainAbort as abort:
        context.abort(abort.code, abort.text)


class PlainAbort(Exception):
    """A failure without our details, as gRPC itself or a proxy makes it."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@contextmanager
def serving(limits: Limits | None = None, port: int = 0) -> Iterator[FakeServer]:
    """A running scripted server."""
    fake = FakeServer(limits or Limits())
    fake.scripts.update(
        GetServerInfo=lambda _: embedding_pb.GetServerInfoResponse(
            version="1.2.3",
            provider="FakeProvider",
            encoder=encoder_ref(),
            limits=wire.limits_to_proto(fake.limits),
            images_in_flight=7,
            has_collections=True,
        ),
        Embed=lambda request: embedding_pb.EmbedResponse(
            results=[
                embedding_pb.EmbedResult(vector=wire.vector_to_proto(vector_of(image), request.vector_encoding))
                for image in request.images
            ],
            encoder=encoder_ref(),
        ),
        Upsert=lambda request: collection_pb.UpsertResponse(
            results=[collection_pb.UpsertResult(id=item.id) for item in request.items], encoder=encoder_ref()
        ),
        # A message of a stream gets the answer of a call with the same inputs.
        EmbedStream=lambda request, _: embedding_pb.EmbedStreamResponse(
            key=request.key, **fields_of(fake.scripts["Embed"](bulk.EMBED.as_call(request)))
        ),
        UpsertStream=lambda request, index: collection_pb.UpsertStreamResponse(
            index=index, results=fake.scripts["Upsert"](bulk.ADD.as_call(request)).results
        ),
        Check=lambda _: health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
    )
    server = grpc.server(
        ThreadPoolExecutor(16, thread_name_prefix="fake"),
        options=[
            ("grpc.max_receive_message_length", fake.limits.max_message_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    for base, methods in METHODS.items():
        servicer: Any = type("Servicer", (base,), {name: _method(fake, name) for name in methods})
        servicer.__abstractmethods__ = frozenset()
        _register(servicer(), server)
    fake.port = server.add_insecure_port(f"localhost:{port}")
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()


def fields_of(response: Any) -> dict[str, Any]:
    return {"results": response.results, "encoder": response.encoder}


def _method(fake: FakeServer, name: str) -> Any:
    if name.endswith("Stream"):

        def stream(self: object, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            return fake.converse(name, requests, context)

        return stream

    if name in ("CheckCollection", "BackupCollection"):

        def tell(self: object, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with refusing(context):
                yield from fake.handle(name, request, context)

        return tell

    def call(self: object, request: Any, context: grpc.ServicerContext) -> Any:
        return fake.handle(name, request, context)

    return call


def _register(servicer: Any, server: grpc.Server) -> None:
    if isinstance(servicer, embedding_grpc.EmbeddingServiceServicer):
        embedding_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
    elif isinstance(servicer, search_grpc.SearchServiceServicer):
        search_grpc.add_SearchServiceServicer_to_server(servicer, server)
    elif isinstance(servicer, collection_grpc.CollectionServiceServicer):
        collection_grpc.add_CollectionServiceServicer_to_server(servicer, server)
    elif isinstance(servicer, admin_grpc.AdminServiceServicer):
        admin_grpc.add_AdminServiceServicer_to_server(servicer, server)
    else:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
