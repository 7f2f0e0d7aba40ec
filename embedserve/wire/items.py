"""Items and hits ↔ messages."""

from __future__ import annotations

from collections.abc import Sequence

from embedserve.types import Hit, Item, Media
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import search_service_pb2 as search_pb
from embedserve.wire.metadata import metadata_from_proto, metadata_into
from embedserve.wire.vectors import fraction_from_proto, vector_from_proto, vector_to_proto


def item_to_proto(item: Item, encoding: int) -> collection_pb.Item:
    """A stored item as a message, with those of its parts that were read."""
    message = collection_pb.Item(id=item.id, content_sha256=item.content_sha256)
    metadata_into(message.metadata, item.metadata)
    if item.vector is not None:
        message.vector.CopyFrom(vector_to_proto(item.vector, encoding))
    if item.media is not None:
        message.media, message.media_type = item.media.data, item.media.media_type
    return message


def item_from_proto(message: collection_pb.Item) -> Item:
    """The stored item in a message."""
    return Item(
        id=message.id,
        metadata=metadata_from_proto(message.metadata),
        vector=vector_from_proto(message.vector) if message.HasField("vector") else None,
        content_sha256=message.content_sha256,
        media=Media(data=message.media, media_type=message.media_type) if message.media else None,
    )


def hits_to_proto(hits: Sequence[Hit], encoding: int) -> search_pb.SearchHits:
    """The hits of one query as a message."""
    message = search_pb.SearchHits()
    hits_into(message, hits, encoding)
    return message


def hits_into(message: search_pb.SearchHits, hits: Sequence[Hit], encoding: int) -> None:
    """Write the hits of one query into a message, which is faster than copying them there."""
    message.SetInParent()  # so that it is set even without hits
    add = message.hits.add
    for hit in hits:
        wire_hit = add()
        wire_hit.id, wire_hit.score = hit.id, hit.score  # twice as fast as keyword arguments of add()
        if hit.metadata:
            metadata_into(wire_hit.metadata, hit.metadata)
        if hit.vector is not None:
            wire_hit.vector.CopyFrom(vector_to_proto(hit.vector, encoding))


def hits_from_proto(message: search_pb.SearchHits, *, has_metadata: bool = True, has_vectors: bool = True) -> list[Hit]:
    """The hits in a message. Parts that were not requested are skipped, as looking for them dominates the cost."""
    if not has_metadata and not has_vectors:
        return [Hit(id=hit.id, score=fraction_from_proto(hit.score)) for hit in message.hits]
    return [
        Hit(
            id=hit.id,
            score=fraction_from_proto(hit.score),
            metadata=metadata_from_proto(hit.metadata),
            vector=vector_from_proto(hit.vector) if hit.HasField("vector") else None,
        )
        for hit in message.hits
    ]
