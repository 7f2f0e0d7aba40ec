"""Who may call what: the role that each call needs, and the interceptor that asks for it."""

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
        Role.READ: "GetCollection ListCollections GetItems ListItems CheckCollection BackupCollection",
        Role.WRITE: "CreateCollection DeleteCollection SetAlias Upsert UpsertStream DeleteItems RestoreCollection",
    },
    "embedserve.v1.AdminService": {Role.WRITE: "ReplaceEncoder"},
    # Whoever starts and stops servers has to ask without a token. Reflection tells what can be called, and no data.
    "grpc.health.v1.Health": {None: "Check List Watch"},
    "grpc.reflection.v1alpha.ServerReflection": {Role.READ: "ServerReflectionInfo"},
}

NEEDED: Final[dict[str, Role | None]] = {
    f"/{service}/{method}": role
    for service, methods in _SERVICES.items()
    for role, names in methods.items()
    for method in names.split()
}
"""The role that each call needs; None: anybody may. A call that is not in here is refused."""

caller: ContextVar[str] = ContextVar("caller", default="")
"""The name of who makes the call under way, for the log; empty where no tokens are asked for."""

_HINT = "Client(…, token=…); on the command line --token-file FILE or EMBEDSERVE_TOKEN"


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a token of the role that they need, before anything of their request is read.

    Comes after the interceptor that counts calls, so that refused ones are counted as well.
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
                self._admit(given, needed, method)
            except EmbedserveError as error:
                return _refusal(error)
        handler = await continuation(handler_call_details)
        if handler is not None and method not in NEEDED:
            return _refusal(PermissionDenied(f"{method} is not among the calls that tokens allow"))
        return handler

    def _admit(self, given: list[str | bytes], needed: Role, method: str) -> None:
        if not given:
            raise Unauthenticated("this server asks for a token, and the call has none", hint=_HINT)
        found = self._tokens.find_bearer(str(given[0])) if len(given) == 1 else None
        if found is None:
            raise Unauthenticated("the token of the call is none that this server knows", hint=_HINT)
        caller.set(found.name)  # also of one who is refused: the log shall name him
        if not found.role.covers(needed):
            raise PermissionDenied(
                f"{method.rpartition('/')[2]} needs a token of the role {needed}; the call has one of {found.role}",
                hint="ask whoever runs the server for one",
            )


def _refusal(error: EmbedserveError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that ends a call of any kind. As one of streams it need not read a request first."""

    async def refuse(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await abort(error, context)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)
