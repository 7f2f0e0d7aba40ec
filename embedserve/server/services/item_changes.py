"""The part of CollectionService that counts, changes and removes items where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from embedserve import wire
from embedserve.changes import MetadataChange
from embedserve.errors import EmbedserveError, InvalidInput, Unavailable
from embedserve.server.lifecycle.state import ServerState
from embedserve.v1 import collection_service_pb2 as pb

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_T = TypeVar("_T")


class ItemChanges:
    """DeleteItems, CountItems and UpdateMetadata."""

    _state: ServerState

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: Context) -> pb.DeleteItemsResponse:
        """Delete items by id, or those that fit a filter."""
        engine = self._state.engine
        if not request.HasField("filter"):
            deleted = await engine.items.delete(request.collection, request.ids)
            return pb.DeleteItemsResponse(deleted_count=deleted)
        if request.ids:
            raise InvalidInput("the request has both ids and a filter", hint="send one of the two")
        condition = wire.filter_from_proto(request.filter, engine.limits)
        deleted = await self._until_drained(engine.item_changes.delete_matching(request.collection, condition))
        return pb.DeleteItemsResponse(deleted_count=deleted, filtered=True)

    async def CountItems(self, request: pb.CountItemsRequest, context: Context) -> pb.CountItemsResponse:
        """Count all items, or those that fit a filter."""
        engine = self._state.engine
        condition = wire.filter_from_proto(request.filter, engine.limits) if request.HasField("filter") else None
        count = await self._until_drained(engine.item_changes.count(request.collection, condition))
        return pb.CountItemsResponse(count=count)

    async def UpdateMetadata(self, request: pb.UpdateMetadataRequest, context: Context) -> pb.UpdateMetadataResponse:
        """Change the metadata of items."""
        engine = self._state.engine
        # Checked first: refusing costs less than converting.
        engine.limits.check("max_items", len(request.items), "changes in one call")
        results = await engine.item_changes.update_metadata(
            request.collection, [_change(item) for item in request.items]
        )
        return pb.UpdateMetadataResponse(results=map(_result, results))

    async def _until_drained(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What long work returns, unless the server drains first.

        Raises:
            Unavailable: it drains.
        """
        working = asyncio.create_task(work)
        self._state.readers.add(working)
        try:
            return await working
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Unavailable("the server is shutting down", hint="make the call again when it is back") from None
        finally:
            self._state.readers.discard(working)


def _change(message: pb.MetadataChange) -> MetadataChange | EmbedserveError:
    try:
        return wire.change_from_proto(message)
    except EmbedserveError as error:
        return error


def _result(result: str | EmbedserveError) -> pb.UpdateMetadataResult:
    if isinstance(result, EmbedserveError):
        return pb.UpdateMetadataResult(error=wire.error_to_status(result))
    return pb.UpdateMetadataResult(id=result)
