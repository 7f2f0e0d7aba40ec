"""CollectionService: messages in, engine called, messages out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from embedserve import wire
from embedserve.answer_size import AnswerSize
from embedserve.engine.embedder import Embedded, Results
from embedserve.engine.inputs import BackupPart, NewItem
from embedserve.engine.timings import Timings
from embedserve.errors import DeadlineExceeded, EmbedserveError, InvalidInput, Unavailable
from embedserve.server.calls.minimum_rate import MIN_BYTES_PER_S, MinimumRate
from embedserve.server.calls.responses import (
    begin_answer,
    build,
    check_size,
    collection_encoder_ref,
    deadline_of,
    timings_to_proto,
)
from embedserve.server.calls.streams import Cost, ReadAhead, ordered, until_drained
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.services.item_changes import ItemChanges
from embedserve.types import (
    DEFAULT_TARGET_RECALL,
    CheckProgress,
    CheckReport,
    CollectionIdentity,
    Include,
    Limits,
)
from embedserve.v1 import collection_service_pb2 as pb
from embedserve.v1 import collection_service_pb2_grpc as pb_grpc
from embedserve.wanted import Wanted

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_KEEP_ALIVE_S = 10.0
"""A check or a backup that has nothing to send for this long sends a message that it is still running."""
_UPLOAD_TIMEOUT_S = 60.0
"""A client that sends nothing of a backup for this long is considered gone."""
_MAX_CHUNK_BYTES = 2 << 20
"""Of an uploaded backup. A message may have 32 MiB, which a restore would hold while it waits in the queue."""

_FEWER_IDS = "ask for fewer ids at once, or leave media, vectors or metadata out"
_FEWER_ITEMS = "ask for fewer items on a page, or leave vectors or metadata out"

_STREAM_WINDOW = 128
"""Items of one stream in flight at a time. Embedded ones are written while others are embedded."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A message of a stream whose images are being embedded."""

    items: list[NewItem | EmbedserveError]
    refusal: EmbedserveError | None
    """Why all of its items are refused; None if they are not."""
    inputs: int
    has_several: bool
    """Whether it holds a list of items, so that the response holds a list."""


class CollectionService(ItemChanges, pb_grpc.CollectionServiceServicer):
    """Collections, aliases and items."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        """Create a collection."""
        info = await self._state.engine.collections.create(
            request.name,
            keep=wire.keep_from_proto(request.keep_media),
            external=request.external,
            dimension=request.dimension,
            index=request.index or "auto",
            target_recall=(
                wire.fraction_from_proto(request.target_recall)
                if request.HasField("target_recall")
                else DEFAULT_TARGET_RECALL
            ),
            filter_keys=request.filter_keys,
            encoder_fingerprint=request.encoder_fingerprint,
            encoder_name=request.encoder_name,
        )
        return pb.CreateCollectionResponse(collection=wire.collection_to_proto(info))

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        """Read what a collection is and holds."""
        engine = self._state.engine
        info = await engine.collections.get(request.name)
        response = pb.GetCollectionResponse(collection=wire.collection_to_proto(info))
        return check_size(response, engine.limits, "remove some of its aliases")

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        """List all collections."""
        engine = self._state.engine
        infos = await engine.collections.list_all()
        response = pb.ListCollectionsResponse(collections=map(wire.listed_to_proto, infos))
        return check_size(response, engine.limits, "raise max_message_bytes on the server: there are many collections")

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        """Delete a collection."""
        await self._state.engine.collections.delete(request.name)
        return pb.DeleteCollectionResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """Point an alias to a collection."""
        await self._state.engine.collections.set_alias(request.alias, request.collection)
        return pb.SetAliasResponse()

    async def Upsert(self, request: pb.UpsertRequest, context: Context) -> pb.UpsertResponse:
        """Write the items of one call."""
        begun, engine, timings = time.monotonic(), self._state.engine, Timings()
        # Checked first: refusing costs less than converting.
        engine.limits.check("max_items", len(request.items), "items in one call")
        identity, results = await engine.items.upsert(
            request.collection,
            [_new_item(item) for item in request.items],
            encoder_fingerprint=request.encoder_fingerprint,
            deadline=deadline_of(context),
            timings=timings,
        )
        return pb.UpsertResponse(
            results=map(_upsert_result, results),
            encoder=collection_encoder_ref(identity),
            timings=timings_to_proto(timings, begun),
        )

    async def UpsertStream(
        self, request_iterator: AsyncIterator[pb.UpsertStreamRequest], context: Context
    ) -> AsyncIterator[pb.UpsertStreamResponse]:
        """Write the items of a stream, each group in one transaction, with responses in order."""
        engine, flow, deadline = self._state.engine, object(), deadline_of(context)
        limits = engine.limits
        identity: CollectionIdentity | None = None
        fingerprint, index = "", 0

        async def opened() -> AsyncIterator[pb.UpsertStreamRequest]:
            nonlocal identity, fingerprint
            async for request in request_iterator:
                if identity is None:
                    fingerprint = request.encoder_fingerprint
                    identity = engine.collections.identity(request.collection)
                yield request

        def begin(request: pb.UpsertStreamRequest) -> tuple[_Begun, Results]:
            assert identity is not None
            refusal = _refusal(request, limits)
            if refusal is not None:
                engine.refuse(_cost(request).images)
            items = [] if refusal else [_new_item(item) for item in _items(request)]
            checked, embedded = engine.items.begin_upsert(
                identity, items, encoder_fingerprint=fingerprint, deadline=deadline, flow=flow
            )
            return _Begun(checked, refusal, len(_items(request)), bool(request.items)), embedded

        async def finish(
            group: list[tuple[_Begun, list[Embedded | EmbedserveError]]],
        ) -> list[pb.UpsertStreamResponse]:
            nonlocal index
            assert identity is not None
            written = await engine.items.finish_upsert(identity, [(begun.items, embedded) for begun, embedded in group])
            responses = []
            for (begun, _), results in zip(group, written, strict=True):
                response = pb.UpsertStreamResponse(index=index)
                if begun.refusal is not None:
                    response.result.CopyFrom(_upsert_result(begun.refusal))
                elif begun.has_several:
                    response.results.extend(map(_upsert_result, results))
                else:
                    response.result.CopyFrom(_upsert_result(results[0]))
                responses.append(response)
                index += begun.inputs
            return responses

        read_ahead: ReadAhead[pb.UpsertStreamRequest] = ReadAhead(
            window=_STREAM_WINDOW, admission=engine.admission, cost_of=_cost, readers=self._state.readers
        )
        async for responses in ordered(opened(), begin, finish, read_ahead):
            for response in responses:
                yield response

    async def GetItems(self, request: pb.GetItemsRequest, context: Context) -> pb.GetItemsResponse:
        """Read items by id."""
        engine = self._state.engine
        wire.check_encoding(request.vector_encoding)
        include = Include(
            metadata=request.include_metadata, vectors=request.include_vectors, media=request.include_media
        )
        answer = begin_answer(engine, _FEWER_IDS)
        identity, results = await engine.items.get(
            request.collection, list(request.ids), include, answer=answer, deadline=deadline_of(context)
        )

        def rest() -> pb.GetItemsResponse:
            return pb.GetItemsResponse(encoder=collection_encoder_ref(identity))

        def response() -> pb.GetItemsResponse:
            made = rest()
            made.results.extend(
                pb.GetItemsResult(error=wire.error_to_status(result))
                if isinstance(result, EmbedserveError)
                else pb.GetItemsResult(item=wire.item_to_proto(result, request.vector_encoding))
                for result in results
            )
            return made

        def encoded(size: AnswerSize, wanted: Wanted) -> bytes:
            return wire.encoded_items(results, request.vector_encoding, collection_encoder_ref(identity), size, wanted)

        return await build(answer, response, encoded, rest)

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        """Read a page of items."""
        engine = self._state.engine
        wire.check_encoding(request.vector_encoding)
        answer = begin_answer(engine, _FEWER_ITEMS)
        identity, page = await engine.items.list_page(
            request.collection,
            page_size=request.page_size,
            page_token=request.page_token,
            filter=wire.filter_from_proto(request.filter, engine.limits) if request.HasField("filter") else None,
            include=Include(metadata=request.include_metadata, vectors=request.include_vectors),
            answer=answer,
            deadline=deadline_of(context),
        )

        def rest() -> pb.ListItemsResponse:
            return pb.ListItemsResponse(next_page_token=page.next_page_token, encoder=collection_encoder_ref(identity))

        def response() -> pb.ListItemsResponse:
            made = rest()
            made.items.extend(wire.item_to_proto(item, request.vector_encoding) for item in page.items)
            return made

        def encoded(size: AnswerSize, wanted: Wanted) -> bytes:
            return wire.encoded_page(page.items, request.vector_encoding, rest(), size, wanted)

        return await build(answer, response, encoded, rest)

    async def CheckCollection(
        self, request: pb.CheckCollectionRequest, context: Context
    ) -> AsyncIterator[pb.CheckCollectionResponse]:
        """Check a collection, sending progress and then the report."""
        last = CheckProgress("waiting", 0, 0)
        steps = self._state.engine.collections.check(request.name)
        told = until_drained(
            steps, self._state, idle_s=_KEEP_ALIVE_S, is_last=lambda step: isinstance(step, CheckReport)
        )
        async with aclosing(told):
            async for step in told:
                if isinstance(step, CheckProgress):
                    last = step
                yield wire.check_step_to_proto(last if step is None else step)

    async def BackupCollection(
        self, request: pb.BackupCollectionRequest, context: Context
    ) -> AsyncIterator[pb.BackupCollectionResponse]:
        """Send a collection as a backup file."""
        size_bytes = 0
        parts = self._state.engine.collections.backup(request.name)
        told = until_drained(parts, self._state, idle_s=_KEEP_ALIVE_S, is_last=lambda part: bool(part.sha256))
        async with aclosing(told):
            async for part in told:
                if part is None:
                    yield pb.BackupCollectionResponse()
                    continue
                size_bytes += len(part.chunk)
                yield pb.BackupCollectionResponse(
                    chunk=part.chunk, sha256=part.sha256, size_bytes=size_bytes if part.sha256 else 0
                )

    async def RestoreCollection(
        self, request_iterator: AsyncIterator[pb.RestoreCollectionRequest], context: Context
    ) -> pb.RestoreCollectionResponse:
        """Create a collection from a backup file."""
        requests = _in_time(until_drained(_each(request_iterator), self._state, idle_s=_UPLOAD_TIMEOUT_S))
        first = await anext(requests, None)
        if first is None:
            raise InvalidInput("the stream has no messages")

        async def parts() -> AsyncIterator[BackupPart]:
            with suppress(grpc.aio.BaseError):  # the client may have hung up
                await context.send_initial_metadata(())  # tells the client that its restore begins
            yield BackupPart(first.chunk, first.sha256)
            async for request in requests:
                yield BackupPart(request.chunk, request.sha256)

        restoring = asyncio.create_task(self._state.engine.collections.restore(first.name, parts()))
        self._state.readers.add(restoring)
        try:
            info = await restoring
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Unavailable("the server is shutting down", hint="send the backup again when it is back") from None
        finally:
            self._state.readers.discard(restoring)
        return pb.RestoreCollectionResponse(collection=wire.collection_to_proto(info))


async def _each(requests: AsyncIterator[pb.RestoreCollectionRequest]) -> AsyncGenerator[pb.RestoreCollectionRequest]:
    async for request in requests:
        yield request


async def _in_time(
    requests: AsyncIterator[pb.RestoreCollectionRequest | None],
) -> AsyncIterator[pb.RestoreCollectionRequest]:
    """The requests as long as they arrive fast enough; None among them means that none has arrived in time.

    Raises:
        DeadlineExceeded: they do not.
        InvalidInput: one is too large.
    """
    minimum_rate, begun = MinimumRate(_UPLOAD_TIMEOUT_S), time.monotonic()
    async for request in requests:
        if request is None:
            raise DeadlineExceeded(f"nothing of the backup has arrived for {_UPLOAD_TIMEOUT_S:g} s")
        if len(request.chunk) > _MAX_CHUNK_BYTES:
            raise InvalidInput(
                f"a chunk has {len(request.chunk)} bytes; at most {_MAX_CHUNK_BYTES} are allowed",
                hint="send the backup in smaller chunks",
            )
        if not minimum_rate.is_kept(len(request.chunk), time.monotonic() - begun):
            raise DeadlineExceeded(
                f"{minimum_rate.bytes} bytes of the backup have arrived in {minimum_rate.waited_s:.0f} s;"
                f" the client must send at least {MIN_BYTES_PER_S >> 10} KiB/s"
            )
        yield request
        begun = time.monotonic()


def _items(request: pb.UpsertStreamRequest) -> Sequence[pb.UpsertItem]:
    return request.items or [request.item]


def _cost(request: pb.UpsertStreamRequest) -> Cost:
    images = [item for item in _items(request) if item.HasField("image")]
    return Cost(len(_items(request)), len(images), request.ByteSize())


def _refusal(request: pb.UpsertStreamRequest, limits: Limits) -> EmbedserveError | None:
    """Why a message is refused as a whole; None if it is not."""
    cost = _cost(request)
    try:
        if request.items and request.HasField("item"):
            raise InvalidInput("the message has both item and items", hint="send one of the two")
        limits.check("max_items", cost.inputs, "items in one message")
        limits.check("max_images", cost.images, "images in one message")
    except EmbedserveError as error:
        return error
    return None


def _new_item(message: pb.UpsertItem) -> NewItem | EmbedserveError:
    try:
        return NewItem(
            id=message.id,
            image=message.image if message.HasField("image") else None,
            vector=wire.vector_from_proto(message.vector) if message.HasField("vector") else None,
            metadata=wire.metadata_from_proto(message.metadata),
        )
    except EmbedserveError as error:
        return error


def _upsert_result(result: str | EmbedserveError) -> pb.UpsertResult:
    if isinstance(result, EmbedserveError):
        return pb.UpsertResult(error=wire.error_to_status(result))
    return pb.UpsertResult(id=result)
