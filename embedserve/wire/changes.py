"""Changes of metadata ↔ messages."""

from __future__ import annotations

from embedserve.changes import MetadataChange
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.wire.metadata import metadata_from_proto, metadata_into


def change_to_proto(change: MetadataChange) -> collection_pb.MetadataChange:
    """A change as a message."""
    message = collection_pb.MetadataChange(id=change.id, remove=change.remove, replace=change.replace)
    metadata_into(message.set, change.set)
    return message


def change_from_proto(message: collection_pb.MetadataChange) -> MetadataChange:
    """The change in a message.

    Raises:
        InvalidInput: a value has no field set; names its key.
    """
    return MetadataChange(
        id=message.id, set=metadata_from_proto(message.set), remove=tuple(message.remove), replace=message.replace
    )
