"""Requests and responses of the calls that count, change and remove items where they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from embedserve import wire
from embedserve.changes import MetadataChange, check_change
from embedserve.client.chunks import Chunk, Entry, chunk_of, pack, read_results, room_bytes_for
from embedserve.client.inputs import writing
from embedserve.client.values import AddResult
from embedserve.errors import EmbedserveError, FailedPrecondition, InvalidInput
from embedserve.metadata import plain_id, plain_metadata, shown
from embedserve.types import Filter, Limits, check_filter, has_condition
from embedserve.v1 import collection_service_pb2 as collection_pb

_UNLIMITED = Limits(max_filter_depth=2**32 - 1, max_filter_nodes=2**32 - 1)
"""The server has the limits of a filter; the rest is checked here, before anything is sent."""


def delete_matching_request(collection: str, filter: Filter) -> collection_pb.DeleteItemsRequest:
    """The request to remove the items that match a filter.

    Raises:
        InvalidInput: the filter is not allowed, or has no condition on any key.
    """
    check_filter(filter, _UNLIMITED)
    if not has_condition(filter):
        raise InvalidInput(
            "the filter has no condition, so that all items would be deleted, or none",
            hint="name a condition on a key; to delete everything, delete the collection",
        )
    with writing():
        return collection_pb.DeleteItemsRequest(collection=collection, filter=wire.filter_to_proto(filter))


def deleted_matching(response: collection_pb.DeleteItemsResponse) -> int:
    """How many items a deletion by filter removed.

    Raises:
        FailedPrecondition: the server did not read the filter.
    """
    if not response.filtered:
        raise FailedPrecondition(
            "the server cannot delete by filter, and nothing was deleted",
            hint="upgrade the server, or list the items that match and delete them by id",
        )
    return response.deleted_count


def count_request(collection: str, filter: Filter | None) -> collection_pb.CountItemsRequest:
    """The request to count items.

    Raises:
        InvalidInput: the filter cannot be written.
    """
    with writing():
        return collection_pb.CountItemsRequest(
            collection=collection, filter=wire.filter_to_proto(filter) if filter is not None else None
        )


def counted(response: collection_pb.CountItemsResponse) -> int:
    """How many items a response says there are."""
    return response.count


def update_chunks(
    collection: str, changes: Iterable[MetadataChange], limits: Limits
) -> Iterator[Chunk[collection_pb.UpdateMetadataRequest]]:
    """UpdateMetadata requests for any number of changes."""
    with writing():
        empty = collection_pb.UpdateMetadataRequest(collection=collection)

    def build(messages: list[collection_pb.MetadataChange]) -> collection_pb.UpdateMetadataRequest:
        request = collection_pb.UpdateMetadataRequest(items=messages)
        request.MergeFrom(empty)
        return request

    groups = pack(
        map(_entry, changes), room_bytes=room_bytes_for(limits, empty), max_entries=limits.max_items, max_images=1
    )
    for group in groups:
        yield chunk_of(group, build)


def _entry(change: MetadataChange) -> Entry[collection_pb.MetadataChange]:
    if not isinstance(change, MetadataChange):
        return Entry(
            InvalidInput(f"one of changes is {shown(change)}", hint="write MetadataChange(id, set={…}, remove=[…])")
        )
    id = ""
    try:
        id = plain_id(change.id, "id")
        # Not None, which is no metadata elsewhere: with ``replace`` it would remove all that the item has.
        metadata = plain_metadata(change.set) if isinstance(change.set, Mapping) else change.set
        change = replace(change, id=id, set=metadata)
        check_change(change)
        with writing():
            message = wire.change_to_proto(change)
    except EmbedserveError as error:
        return Entry(error, id=id)
    return Entry(message, message.ByteSize(), id=id)


def update_results(
    chunk: Chunk[collection_pb.UpdateMetadataRequest], response: collection_pb.UpdateMetadataResponse | None
) -> list[AddResult]:
    """The outcome for each change of the chunk."""
    results = response.results if response is not None else ()
    answers = chunk.merge(read_results("change", results, "id", lambda result: str(result.id)))
    return [
        AddResult(id, answer if isinstance(answer, EmbedserveError) else None)
        for id, answer in zip(chunk.ids, answers, strict=True)
    ]
