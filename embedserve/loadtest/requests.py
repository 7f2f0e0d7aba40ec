"""The requests to an embedserve server, serialised once before anything is measured.

Of a response only the outcome of the images is read, so that the load costs this process little.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedserve import wire
from embedserve.errors import InvalidInput
from embedserve.loadtest.measurements import Reply
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import common_pb2 as common_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb

MAX_BYTES = 256 << 20
"""Limit on the bytes of all requests of a load; they are sent in rotation."""
_MAX_REQUESTS = 256
_ThingT = TypeVar("_ThingT")


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one kind, to be sent in rotation."""

    method: str
    """Full name of the gRPC method, as in "/embedserve.v1.EmbeddingService/Embed"."""
    requests: Sequence[bytes]
    read: Callable[[bytes], Reply]
    """Reads a serialised response."""
    per_call: int
    """Images, queries or items in each request."""
    noun: str
    """What is counted: "images", "queries" or "items"."""
    ids: Sequence[str] = ()
    """Ids of the items that are written."""


def embed(images: Sequence[bytes], per_call: int) -> Load:
    """Calls of Embed, with packed vectors as the Python client requests them."""
    requests = (
        embedding_pb.EmbedRequest(images=group, vector_encoding=wire.PACKED_F32) for group in _groups(images, per_call)
    )
    return Load(
        "/embedserve.v1.EmbeddingService/Embed",
        _serialised(requests),
        lambda data: _reply(embedding_pb.EmbedResponse.FromString(data)),
        per_call,
        "images",
    )


def embed_stream(images: Sequence[bytes], per_message: int) -> Load:
    """Messages of EmbedStream."""

    def read(data: bytes) -> Reply:
        answer = embedding_pb.EmbedStreamResponse.FromString(data)
        if answer.results:
            return _reply_of(answer.results, None)
        # Of a message with several images, a single error stands for all of them.
        return _reply_of([answer.result] * (per_message if answer.result.HasField("error") else 1), None)

    def request(group: list[bytes]) -> embedding_pb.EmbedStreamRequest:
        if len(group) == 1:
            return embedding_pb.EmbedStreamRequest(image=group[0], vector_encoding=wire.PACKED_F32)
        return embedding_pb.EmbedStreamRequest(images=group, vector_encoding=wire.PACKED_F32)

    requests = map(request, _groups(images, per_message))
    return Load("/embedserve.v1.EmbeddingService/EmbedStream", _serialised(requests), read, per_message, "images")


def search(queries: Sequence[search_pb.SearchQuery], per_call: int, *, collection: str, k: int, made_by: str) -> Load:
    """Calls of Search.

    Args:
        queries: images or vectors, searched for in rotation.
        per_call: queries in a call.
        collection: where to search.
        k: hits for each query.
        made_by: fingerprint of the encoder that made the vectors.
    """
    requests = (
        search_pb.SearchRequest(collection=collection, queries=group, k=k, encoder_fingerprint=made_by)
        for group in _groups(queries, per_call)
    )
    return Load(
        "/embedserve.v1.SearchService/Search",
        _serialised(requests),
        lambda data: _reply(search_pb.SearchResponse.FromString(data)),
        per_call,
        "queries",
    )


def upsert(
    items: Sequence[collection_pb.UpsertItem], per_call: int, *, collection: str, made_by: str, prefix: str
) -> Load:
    """Calls of Upsert. The ids repeat with the requests, so the collection does not grow without bound.

    Args:
        items: images or vectors, written in rotation; they receive ids.
        per_call: items in a call.
        collection: where to write.
        made_by: fingerprint of the encoder that made the vectors.
        prefix: of the ids.
    """
    numbers = itertools.count()
    ids: list[str] = []

    def request(group: list[collection_pb.UpsertItem]) -> collection_pb.UpsertRequest:
        message = collection_pb.UpsertRequest(collection=collection, encoder_fingerprint=made_by, items=group)
        for item in message.items:
            item.id = f"{prefix}{next(numbers)}"
            ids.append(item.id)
        return message

    return Load(
        "/embedserve.v1.CollectionService/Upsert",
        _serialised(map(request, _groups(items, per_call))),
        lambda data: _reply(collection_pb.UpsertResponse.FromString(data)),
        per_call,
        "items",
        ids,
    )


def _groups(things: Sequence[_ThingT], per_call: int) -> Iterator[list[_ThingT]]:
    """Groups in which each thing occurs equally often, in rotation."""
    # Enough groups that the next would begin with the first thing again.
    count = min(_MAX_REQUESTS, len(things)) if per_call == 1 else _MAX_REQUESTS
    for number in range(count):
        yield [things[(number * per_call + place) % len(things)] for place in range(per_call)]


def _serialised(
    messages: Iterable[
        embedding_pb.EmbedRequest
        | embedding_pb.EmbedStreamRequest
        | search_pb.SearchRequest
        | collection_pb.UpsertRequest
    ],
) -> list[bytes]:
    found: list[bytes] = []
    size_bytes = 0
    for message in messages:
        data = message.SerializeToString()
        size_bytes += len(data)
        if found and size_bytes > MAX_BYTES:
            break
        found.append(data)
    if not found:
        raise InvalidInput("there is nothing to send")
    return found


_Response = embedding_pb.EmbedResponse | search_pb.SearchResponse | collection_pb.UpsertResponse
_Result = embedding_pb.EmbedResult | search_pb.SearchResult | collection_pb.UpsertResult


def _reply(response: _Response) -> Reply:
    return _reply_of(response.results, response.timings)


def _reply_of(results: Sequence[_Result], timings: common_pb.Timings | None) -> Reply:
    failed = [wire.error_from_status(result.error).code for result in results if result.HasField("error")]
    answered = len(results) - len(failed)
    if timings is None:
        return Reply(answered, Counter(failed))
    parts = (timings.decode_ms, timings.queue_ms, timings.inference_ms, timings.store_ms, timings.total_ms)
    return Reply(answered, Counter(failed), parts)
