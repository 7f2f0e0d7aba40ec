"""Messages of ``embedserve.v1`` ↔ values of ``embedserve.types``, for server and client.

Nothing behind the services of the server and the calls of the client sees a message.
"""

from embedserve.wire.changes import change_from_proto, change_to_proto
from embedserve.wire.collections import (
    check_step_from_proto,
    check_step_to_proto,
    collection_from_proto,
    collection_to_proto,
    keep_from_proto,
    keep_to_proto,
    listed_to_proto,
    recall_from_proto,
    recall_to_proto,
)
from embedserve.wire.encoded import encoded_items, encoded_page, encoded_search
from embedserve.wire.errors import ERROR_DOMAIN, error_from_status, error_to_status
from embedserve.wire.filters import filter_from_proto, filter_to_proto
from embedserve.wire.items import hits_from_proto, hits_into, hits_to_proto, item_from_proto, item_to_proto
from embedserve.wire.metadata import metadata_from_proto, metadata_into, value_from_proto, value_to_proto
from embedserve.wire.server import encoder_ref, limits_from_proto, limits_to_proto
from embedserve.wire.vectors import (
    FLOATS,
    PACKED_F16,
    PACKED_F32,
    check_encoding,
    fraction_from_proto,
    vector_from_proto,
    vector_to_proto,
)

__all__ = [
    "ERROR_DOMAIN",
    "FLOATS",
    "PACKED_F16",
    "PACKED_F32",
    "change_from_proto",
    "change_to_proto",
    "check_encoding",
    "check_step_from_proto",
    "check_step_to_proto",
    "collection_from_proto",
    "collection_to_proto",
    "encoded_items",
    "encoded_page",
    "encoded_search",
    "encoder_ref",
    "error_from_status",
    "error_to_status",
    "filter_from_proto",
    "filter_to_proto",
    "fraction_from_proto",
    "hits_from_proto",
    "hits_into",
    "hits_to_proto",
    "item_from_proto",
    "item_to_proto",
    "keep_from_proto",
    "keep_to_proto",
    "limits_from_proto",
    "limits_to_proto",
    "listed_to_proto",
    "metadata_from_proto",
    "metadata_into",
    "recall_from_proto",
    "recall_to_proto",
    "value_from_proto",
    "value_to_proto",
    "vector_from_proto",
    "vector_to_proto",
]
