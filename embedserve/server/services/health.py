"""Health: whether the server and each of its services serve, as grpc.health.v1 defines it.

The library's own service holds a lock while it writes to a watcher, so that one that does not read would hold up every
change of the status, and forgets all watchers of a name when one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch.

    Args:
        names: of the services; the empty one is the whole server's.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._serving = False
        self._changed = asyncio.Event()

    def set(self, *, serving: bool) -> None:
        """From now on the server and its services serve, or do not. Never waits for a watcher."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """The status of one name."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse]:
        """The status of one name, and again whenever it has changed."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await changed.wait()

    def _status(self, name: str) -> Any:
        response = health_pb2.HealthCheckResponse
        if name not in self._names:
            return response.SERVICE_UNKNOWN
        return response.SERVING if self._serving else response.NOT_SERVING
