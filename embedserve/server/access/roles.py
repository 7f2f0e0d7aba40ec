"""Who may call what: the role that each call needs, and the interceptor that checks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import grpc

from embedserve.errors import EmbedserveError, PermissionDenied, Unauthenticated
from embedserve.server.access.tokens import Role, TokenFile
from embedserve.server.calls.responses import abort

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_SERVICES: dict[str, dict[Role | None, str]] = {
    "embedserve.v1.EmbeddingService": {Role.READ: "Embed EmbedStream GetEncoder GetServerInfo"},
    "embedserve.v1.SearchService": {Role.READ: "Search"},
    "embedserve.v1.CollectionService": {
        Role.READ: "GetCollection ListCollections GetItems ListItems CountItems CheckCollection BackupCollection",
        Role.WRITE: "CreateCollection DeleteCollection SetAlias Upsert UpsertStream DeleteItems UpdateMetadata"
        " RestoreCollection",
    },
    "embedserve.v1.AdminService": {Role.WRITE: "ReplaceEncoder"},
    # Orchestrators check health without a token. Reflection tells which calls there are, and no data.
    "grpc.health.v1.Health": {None: "Check List Watch"},
    "grpc.reflection.v1alpha.ServerReflection": {Role.READ: "ServerReflectionInfo"},
}

NEEDED: Final[dict[str, Role | None]] = {
    f"/{service}/{method}": role
    for service, methods in _SERVICES.items()
    for role, names in methods.items()
    for method in names.split()
}
"""The role that each call needs; None: no token is needed. A call that is not listed is refused."""

caller: ContextVar[str] = ContextVar("caller", default="")
"""The name of the current call's token, for the log; empty on a server without tokens."""

_HINT = "send one in the header authorization: Bearer TOKEN"


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a token of the role that they need, before their request is read.

    It comes after the interceptor that counts calls, so that refused calls are counted as well.
    """

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_In, _Out] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_In, _Out] | None:
        """The handler of a call, or one that refuses it."""
        method = handler_call_details.method
        needed = NEEDED.get(method, Role.READ)
        if needed is not None:
            given = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
            try:
                self._authorize(given, needed, method)
            except EmbedserveError as error:
                return _refusal(error)
        handler = await continuation(handler_call_details)
        if handler is not None and method not in NEEDED:
            return _refusal(PermissionDenied(f"{method} is not among the calls that tokens allow"))
        return handler

    def _authorize(self, given: list[str | bytes], needed: Role, method: str) -> None:
        if not given:
            raise Unauthenticated("this server asks for a token, and the call has none", hint=_HINT)
        found = self._tokens.find_bearer(str(given[0])) if len(given) == 1 else None
        if found is None:
            raise Unauthenticated("the call has a token that this server does not know", hint=_HINT)
        caller.set(found.name)  # before a refusal, so that the log names the caller
        if not found.role.covers(needed):
            raise PermissionDenied(
                f"{method.rpartition('/')[2]} needs a token of the role {needed}; the call has one of {found.role}",
                hint="ask the operator of the server for one",
            )


def _refusal(error: EmbedserveError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that ends a call of any kind. As a stream handler it need not read a request first."""

    async def refuse(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await abort(error, context)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)
