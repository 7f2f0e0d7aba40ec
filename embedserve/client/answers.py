"""Whether a server's answers can be right: what no embedserve server gives ends the call, and is named.

A server may be of another version, or another program; a silently short, endless or misplaced answer would be taken for
the truth. Each function gives what it has checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from embedserve import wire
from embedserve.client.values import EncoderRef
from embedserve.errors import EmbedserveError, InvalidInput, ProtocolError
from embedserve.types import CollectionInfo, Item, Limits
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import common_pb2 as common_pb
from embedserve.v1 import search_service_pb2 as search_pb

ResponseT = TypeVar("ResponseT")

_TOLERANCE = 1e-3
"""How far a cosine may be outside [−1, 1], and how far hits may be out of order: float32 and half precision."""


@contextmanager
def reading() -> Iterator[None]:
    """Turns what goes wrong while a response is read into ProtocolError."""
    try:
        yield
    except (InvalidInput, DecodeError, ValueError, TypeError, KeyError, OverflowError) as error:
        why = error.message if isinstance(error, EmbedserveError) else f"{type(error).__name__}: {error}"
        raise ProtocolError(f"the server's answer cannot be read: {why}") from error


def readable(response: ResponseT | None) -> ResponseT:
    """A response of grpc.aio, which gives None where the bytes are no such message."""
    if response is None:
        raise ProtocolError("the server's answer cannot be read: it is no message of the call")
    return response


def required(response: Any, field: str) -> Any:
    """A field of a response that every server sets."""
    if not response.HasField(field):
        raise ProtocolError(f"the server's {type(response).__name__} has no {field}")
    return getattr(response, field)


def error(status: Any) -> EmbedserveError:
    """The error in a result."""
    if not status.code and not status.details:
        raise ProtocolError("the server gave an error without a code")
    with reading():
        return wire.error_from_status(status)


def vector(message: common_pb.Vector, dimension: int | None) -> NDArray[np.float32]:
    """A vector, float32 [D], of this many finite numbers; None: of any number."""
    with reading():
        found = wire.vector_from_proto(message)
    if dimension is not None and found.size != dimension:
        raise ProtocolError(f"the server gave a vector of {found.size} numbers instead of {dimension}")
    if not np.isfinite(found).all():
        raise ProtocolError("the server gave a vector with numbers that are not finite")
    return found


def encoder(response: Any, field: str = "encoder", *, expected: str = "") -> EncoderRef:
    """The encoder that a response names; ``expected`` is the fingerprint that was asked for, empty for any."""
    message: common_pb.EncoderRef = required(response, field)
    if not message.fingerprint or not message.dimension:
        raise ProtocolError("the server names no encoder for its answer")
    if expected and message.fingerprint != expected:
        raise ProtocolError(
            f"the server answered with encoder {message.fingerprint[:12]}, not with {expected[:12]} as it was asked to"
        )
    return EncoderRef(message.name, message.fingerprint, message.dimension)


def limits(response: Any) -> Limits:
    """The limits in a GetServerInfoResponse."""
    with reading():
        return wire.limits_from_proto(required(response, "limits"))


def hits(found: search_pb.SearchHits, asked: search_pb.SearchRequest) -> search_pb.SearchHits:
    """The hits of one query: at most k, each item once, with scores that are cosines, closest first."""
    if len(found.hits) > asked.k:
        raise ProtocolError(f"the server gave {len(found.hits)} hits for k={asked.k}")
    last, given = math.inf, set[str]()
    dimension: int | None = None
    for hit in found.hits:
        if not -1 - _TOLERANCE <= hit.score <= 1 + _TOLERANCE:  # false for NaN
            raise ProtocolError(f"the server gave item {hit.id!r} the score {hit.score:g}, which is no cosine")
        if hit.score > last + _TOLERANCE:
            raise ProtocolError(f"the server gave hits out of order: {hit.score:g} after {last:g}")
        if asked.HasField("min_score") and hit.score < asked.min_score - _TOLERANCE:
            raise ProtocolError(f"the server gave a hit of {hit.score:g} for min_score={asked.min_score:g}")
        if not hit.id or hit.id in given:
            what = f"item {hit.id!r} twice" if hit.id else "a hit without an id"
            raise ProtocolError(f"the server gave {what}")
        if asked.include_vectors:
            dimension = vector(required(hit, "vector"), dimension).size
        last = hit.score
        given.add(hit.id)
    return found


def item(message: collection_pb.Item, *, include_vectors: bool) -> Item:
    """An item that has an id, and a vector if vectors were asked for."""
    if not message.id:
        raise ProtocolError("the server gave an item without an id")
    if include_vectors:
        vector(required(message, "vector"), None)
    with reading():
        return wire.item_from_proto(message)


def ids(expected: Sequence[str], found: Sequence[str]) -> Sequence[str]:
    """The ids of written items, which are those that were sent."""
    for sent, got in zip(expected, found, strict=False):
        if got not in (sent, ""):  # empty: an error stands there instead
            raise ProtocolError(f"the server answered for item {got!r} instead of {sent!r}")
    return found


def deleted_count(response: collection_pb.DeleteItemsResponse, asked: int) -> int:
    """How many items were removed, at most as many as were named."""
    if response.deleted_count > asked:
        raise ProtocolError(f"the server removed {response.deleted_count} items of {asked} that were named")
    return response.deleted_count


def collection(response: Any) -> CollectionInfo:
    """The collection in a response."""
    return collection_of(required(response, "collection"))


def collection_of(message: collection_pb.Collection) -> CollectionInfo:
    """A collection that has a name and a dimension."""
    if not message.name:
        raise ProtocolError("the server gave a collection without a name")
    if not required(message, "encoder").dimension:
        raise ProtocolError(f"the server gave collection {message.name!r} without a dimension")
    for value in (message.target_recall, message.recall.value):
        if not 0 <= value <= 1:
            raise ProtocolError(f"the server gave collection {message.name!r} the recall {value:g}")
    with reading():
        return wire.collection_from_proto(message)


def metadata_of_encoder(text: str) -> dict[str, Any]:
    """The self-description of an encoder."""
    with reading():
        found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        raise ProtocolError("the server's description of its encoder is no JSON object")
    return found


class Pages:
    """Checks that a list of items comes to its end: ids grow, and no page is given twice.

    Args:
        include_vectors: whether vectors were asked for.
    """

    def __init__(self, *, include_vectors: bool) -> None:
        self._include_vectors = include_vectors
        self._last_id = ""
        self._tokens: set[str] = set()

    def items(self, response: collection_pb.ListItemsResponse) -> Iterator[Item]:
        """The items of the next page."""
        if response.items:
            self._tokens.clear()  # ids grow, so no token of before can come again
        if (token := response.next_page_token) in self._tokens:
            raise ProtocolError("the server gave the same page of items twice: the list would never end")
        self._tokens.add(token)
        for message in response.items:
            found = item(message, include_vectors=self._include_vectors)
            if found.id <= self._last_id:
                raise ProtocolError(f"the server listed item {found.id!r} after {self._last_id!r}")
            self._last_id = found.id
            yield found
