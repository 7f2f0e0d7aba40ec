"""Large responses, written to bytes piece by piece.

A message in memory takes up to ten times the bytes that it has on the wire, if its metadata have many short entries.
Here only one hit or item at a time is a message, each row is written once for all queries that found it, and the pieces
are joined at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from embedserve.answer_size import AnswerSize
from embedserve.errors import EmbedserveError
from embedserve.types import Hit, Item
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import search_service_pb2 as search_pb
from embedserve.wanted import Wanted
from embedserve.wire.errors import error_to_status
from embedserve.wire.items import item_to_proto
from embedserve.wire.metadata import metadata_into
from embedserve.wire.vectors import vector_to_proto

_LENGTH_DELIMITED = 2
"""The wire type of messages in messages."""


def encoded_search(
    results: Sequence[Sequence[Hit] | EmbedserveError],
    encoding: int,
    rest: search_pb.SearchResponse,
    size: AnswerSize,
    wanted: Wanted,
) -> bytes:
    """A SearchResponse with these results.

    Args:
        results: for each query its hits, or why there are none.
        encoding: of vectors.
        rest: the response without results.
        size: to which every piece is added.
        wanted: asked before every hit.

    Raises:
        LimitExceeded: it is larger than ``size`` allows.
    """
    of_results = _number(search_pb.SearchResponse, "results")
    of_result = _number(search_pb.SearchResult, "hits")
    of_hits = _number(search_pb.SearchHits, "hits")
    stored: dict[tuple[int, int], bytes] = {}
    pieces: list[bytes] = []
    for result in results:
        if isinstance(result, EmbedserveError):
            body = search_pb.SearchResult(error=error_to_status(result)).SerializeToString()
            pieces += _framed(of_results, [body], size)
            continue
        hits: list[bytes] = []
        for hit in result:
            wanted.check()
            key = id(hit.metadata), id(hit.vector)  # the hits, which live as long as this runs, share those of a row
            found = search_pb.SearchHit(id=hit.id, score=hit.score).SerializeToString()
            if key not in stored:
                stored[key] = _stored_parts(hit, encoding)
            hits += _framed(of_hits, [found, stored[key]], size)
        pieces += _framed(of_results, _framed(of_result, hits))
    return b"".join([*pieces, rest.SerializeToString()])


def encoded_items(
    results: Sequence[Item | EmbedserveError], encoding: int, encoder: Any, size: AnswerSize, wanted: Wanted
) -> bytes:
    """A GetItemsResponse with these results; the arguments are those of ``encoded_search``."""
    of_results = _number(collection_pb.GetItemsResponse, "results")
    of_result = _number(collection_pb.GetItemsResult, "item")
    stored: dict[int, bytes] = {}
    pieces: list[bytes] = []
    for result in results:
        wanted.check()
        if isinstance(result, EmbedserveError):
            body = collection_pb.GetItemsResult(error=error_to_status(result)).SerializeToString()
            pieces += _framed(of_results, [body], size)
            continue
        body = stored.get(id(result)) or item_to_proto(result, encoding).SerializeToString()
        stored[id(result)] = body
        pieces += _framed(of_results, _framed(of_result, [body], size))
    return b"".join([*pieces, collection_pb.GetItemsResponse(encoder=encoder).SerializeToString()])


def encoded_page(
    items: Sequence[Item], encoding: int, rest: collection_pb.ListItemsResponse, size: AnswerSize, wanted: Wanted
) -> bytes:
    """A ListItemsResponse with these items; the arguments are those of ``encoded_search``."""
    of_items = _number(collection_pb.ListItemsResponse, "items")
    pieces: list[bytes] = []
    for item in items:
        wanted.check()
        pieces += _framed(of_items, [item_to_proto(item, encoding).SerializeToString()], size)
    return b"".join([*pieces, rest.SerializeToString()])


def _stored_parts(hit: Hit, encoding: int) -> bytes:
    """Those fields of a hit that are the same for all queries. Messages are joined by joining their bytes."""
    message = search_pb.SearchHit()
    metadata_into(message.metadata, hit.metadata)
    if hit.vector is not None:
        message.vector.CopyFrom(vector_to_proto(hit.vector, encoding))
    return message.SerializeToString()


def _framed(number: int, pieces: list[bytes], size: AnswerSize | None = None) -> list[bytes]:
    """A field with a message of these pieces: its number and length before them."""
    length = sum(map(len, pieces))
    header = _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)
    if size is not None:
        size.add(len(header) + length)
    return [header, *pieces]


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _number(kind: type[Message], field: str) -> int:
    number: int = kind.DESCRIPTOR.fields_by_name[field].number
    return number
