"""Requests and responses of single calls, as pure functions that both clients share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from embedserve import wire
from embedserve.client import answers
from embedserve.client.chunks import Chunk, Entry, chunk_of, images_per_call, pack, read_results, room_bytes_for
from embedserve.client.images import read_image
from embedserve.client.inputs import vector_to_proto, writing
from embedserve.client.splitting import Splitter
from embedserve.client.values import EncoderInfo, Query, ServerInfo
from embedserve.errors import EmbedserveError, InvalidInput, ItemNotFound, LimitExceeded, ProtocolError
from embedserve.metadata import plain_id, shown
from embedserve.types import Filter, Hit, Item, Keep, Limits, SearchOptions
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb

RequestT = TypeVar("RequestT", bound=Message)


def message(kind: type[RequestT], **fields: Any) -> RequestT:
    """A small request of the given kind.

    Raises:
        InvalidInput: a value is of the wrong type, out of range or not valid UTF-8.
    """
    with writing():
        return kind(**fields)


# --- Search ----------------------------------------------------------------


def search_chunks(
    collection: str, queries: Iterable[Query], options: SearchOptions, limits: Limits, encoder_fingerprint: str
) -> Iterator[Chunk[search_pb.SearchRequest]]:
    """Search requests for any number of queries, with options that have been checked."""
    with writing():
        empty = search_pb.SearchRequest(
            collection=collection,
            k=options.k,
            min_score=options.min_score,
            filter=wire.filter_to_proto(options.filter) if options.filter is not None else None,
            group_by=options.group_by,
            exact=options.exact,
            ef=options.ef,
            nprobe=options.nprobe,
            target_recall=options.target_recall,
            include_metadata=options.include_metadata,
            include_vectors=options.include_vectors,
            vector_encoding=wire.PACKED_F32,
            encoder_fingerprint=encoder_fingerprint,
        )
    packed = pack(
        (_query_entry(query, limits) for query in queries),
        room_bytes=room_bytes_for(limits, empty),
        max_entries=limits.max_queries,
        max_images=images_per_call(limits),
    )

    def build(messages: list[search_pb.SearchQuery]) -> search_pb.SearchRequest:
        request = search_pb.SearchRequest(queries=messages)
        request.MergeFrom(empty)
        return request

    for group in packed:
        yield chunk_of(group, build)


def _query_entry(query: Query, limits: Limits) -> Entry[search_pb.SearchQuery]:
    message = search_pb.SearchQuery()
    try:
        if not isinstance(query, Query):
            raise InvalidInput(
                f"one of queries is {shown(query)}", hint="write Query(image=…), Query(vector=…) or Query(id=…)"
            )
        if query.image is not None:
            message.image = read_image(query.image, limits)
        elif query.vector is not None:
            message.vector.CopyFrom(vector_to_proto(query.vector))
        elif query.id is not None:
            message.item_id = plain_id(query.id, "id")
    except EmbedserveError as error:
        return Entry(error)
    return Entry(message, message.ByteSize(), is_image=query.image is not None)


def search_results(
    chunk: Chunk[search_pb.SearchRequest], response: search_pb.SearchResponse | None
) -> list[list[Hit] | EmbedserveError]:
    """The hits of each query of the chunk, or the error that says why there are none."""
    results = response.results if response is not None else ()
    asked = chunk.request or search_pb.SearchRequest()
    has_metadata, has_vectors = asked.include_metadata, asked.include_vectors

    def hits(result: search_pb.SearchResult) -> list[Hit]:
        found = answers.hits(result.hits, asked)
        with answers.reading():
            return wire.hits_from_proto(found, has_metadata=has_metadata, has_vectors=has_vectors)

    return chunk.merge(read_results("query", results, "hits", hits))


def raise_first(results: Sequence[list[Hit] | EmbedserveError]) -> None:
    """Raise the error of the first query that has one; its message says which."""
    for position, result in enumerate(results, start=1):
        if isinstance(result, EmbedserveError):
            raise result.at(f"query {position} of {len(results)}")


def search_splitter() -> Splitter[search_pb.SearchRequest, list[Hit] | EmbedserveError]:
    """For searches with too large answers; a query whose answer alone is too large has the error in its place."""
    return Splitter("queries", lambda chunk, error: [error if bad is None else bad for bad in chunk.refused])


# --- Items -----------------------------------------------------------------


def get_items_chunks(
    collection: str,
    ids: Sequence[str],
    limits: Limits,
    *,
    include_metadata: bool,
    include_vectors: bool,
    include_media: bool,
) -> Iterator[Chunk[collection_pb.GetItemsRequest]]:
    """GetItems requests for any number of ids."""
    # One original may fill half a message, and its size is known only from the response.
    media_per_call = max(1, (limits.max_message_bytes - (1 << 20)) // limits.max_image_bytes)
    for start in range(0, len(ids), step := media_per_call if include_media else _items_per_call(limits)):
        with writing():
            request = collection_pb.GetItemsRequest(
                collection=collection,
                ids=ids[start : start + step],
                include_metadata=include_metadata,
                include_vectors=include_vectors,
                include_media=include_media,
                vector_encoding=wire.PACKED_F32,
            )
        yield Chunk(request, [None] * len(request.ids))


def get_items_results(
    chunk: Chunk[collection_pb.GetItemsRequest], response: collection_pb.GetItemsResponse | None
) -> list[Item | None]:
    """The items of the chunk, None where there is none.

    Raises:
        EmbedserveError: an id that is refused.
    """
    results = response.results if response is not None else ()
    items: list[Item | None] = []
    asked = chunk.request or collection_pb.GetItemsRequest()
    expected = iter(asked.ids)

    def item(result: collection_pb.GetItemsResult) -> Item:
        return answers.item(result.item, include_vectors=asked.include_vectors)

    for answer in chunk.merge(read_results("id", results, "item", item)):
        id = next(expected)
        if isinstance(answer, Item) and answer.id != id:
            raise ProtocolError(f"the server gave item {answer.id!r} instead of {id!r}")
        if not isinstance(answer, EmbedserveError):
            items.append(answer)
        elif isinstance(answer, ItemNotFound):
            items.append(None)
        else:
            raise answer
    return items


def get_items_splitter() -> Splitter[collection_pb.GetItemsRequest, Item | None]:
    """For ids with too large answers; an item that alone does not fit a message is an error of the whole call."""

    def alone(_chunk: Chunk[collection_pb.GetItemsRequest], error: LimitExceeded) -> list[Item | None]:
        raise error

    return Splitter("ids", alone)


def delete_items_chunks(
    collection: str, ids: Sequence[str], limits: Limits
) -> Iterator[Chunk[collection_pb.DeleteItemsRequest]]:
    """DeleteItems requests for any number of ids."""
    for start in range(0, len(ids), step := limits.max_items):
        with writing():
            request = collection_pb.DeleteItemsRequest(collection=collection, ids=ids[start : start + step])
        yield Chunk(request, [None] * len(request.ids))


def deleted_counts(
    chunk: Chunk[collection_pb.DeleteItemsRequest], response: collection_pb.DeleteItemsResponse | None
) -> list[int]:
    """How many items of the chunk were there, as a list of one number."""
    return [answers.deleted_count(response, chunk.sent)] if response is not None else []


def _items_per_call(limits: Limits) -> int:
    # Items with metadata of the largest size and vectors of a few thousand numbers still fit one message.
    return max(1, min(limits.max_items, limits.max_message_bytes // (2 * limits.max_metadata_bytes)))


def list_items_request(
    collection: str,
    *,
    filter: Filter | None,
    include_metadata: bool,
    include_vectors: bool,
    page_size: int,
) -> collection_pb.ListItemsRequest:
    """The request for the first page, with arguments that have been checked."""
    with writing():
        return collection_pb.ListItemsRequest(
            collection=collection,
            page_size=page_size,
            filter=wire.filter_to_proto(filter) if filter is not None else None,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            vector_encoding=wire.PACKED_F32,
        )


def next_page_request(
    request: collection_pb.ListItemsRequest, response: collection_pb.ListItemsResponse
) -> collection_pb.ListItemsRequest | None:
    """The request for the next page; None if the response has the last one."""
    if not response.next_page_token:
        return None
    following = collection_pb.ListItemsRequest()
    following.CopyFrom(request)
    following.page_token = response.next_page_token
    return following


# --- Collections, encoder, server ------------------------------------------


def create_collection_request(name: str, *, keep: Keep, **fields: Any) -> collection_pb.CreateCollectionRequest:
    """The request for a new collection; ``fields`` are those of the message."""
    return message(collection_pb.CreateCollectionRequest, name=name, keep_media=wire.keep_to_proto(keep), **fields)


def encoder_info(response: embedding_pb.GetEncoderResponse) -> EncoderInfo:
    """The description of the encoder in a response."""
    encoder = answers.required(response, "encoder")
    rule = encoder.preprocess
    return EncoderInfo(
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        dimension=encoder.dimension,
        size_px=encoder.size_px,
        resize_px=encoder.preprocess.resize_px,
        filter=encoder.preprocess.filter,
        fit=rule.fit or ("crop" if rule.resize_px else "squeeze"),
        pad_colour=tuple(rule.pad_colour),
        colour=rule.colour or "stored",
        value_range=(
            (rule.lowest_value, rule.highest_value) if rule.value_range == "given" else rule.value_range or "full"
        ),
        bands=tuple(rule.bands),
        channels=encoder.channels,
        method=encoder.method,
        backbone=encoder.backbone,
        precision=encoder.precision,
        metadata=answers.metadata_of_encoder(encoder.metadata_json),
    )


def server_info(response: embedding_pb.GetServerInfoResponse) -> ServerInfo:
    """The description of the server in a response."""
    return ServerInfo(
        version=response.version,
        started_unix_s=response.started_at.ToNanoseconds() / 1e9,
        provider=response.provider,
        encoder=answers.encoder(response),
        limits=answers.limits(response),
        images_in_flight=response.images_in_flight,
        has_collections=response.has_collections,
    )
