"""What responses of all services have in common: deadline, size, encoder, timings, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from embedserve import wire
from embedserve.encoder.session import ImageEncoder
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError
from embedserve.types import CollectionIdentity, Limits, Media, Metadata
from embedserve.v1 import common_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Response = TypeVar("_Response", bound=Message)

_LARGE_BYTES = 256 << 10
_ENTRY_BYTES = 8
"""An entry in a map of a message, without its key and text."""


def stored_bytes(metadata: Metadata, vector: NDArray[np.float32] | None, media: Media | None = None) -> int:
    """Estimated bytes of the parts of an item or a hit in a response; rarely more than they really take."""
    size_bytes = 0 if vector is None else 2 * len(vector)
    for key, value in metadata.items():
        size_bytes += _ENTRY_BYTES + len(key)
        if isinstance(value, str):
            size_bytes += len(value)
        elif isinstance(value, Sequence):
            size_bytes += sum(map(len, value)) + 2 * len(value)
    return size_bytes if media is None else size_bytes + len(media.data)


async def build(size_bytes: int, limits: Limits, make: Callable[[], _Response]) -> _Response:
    """A response of about ``size_bytes``; a large one is made in a thread, as it would block all other calls.

    Raises:
        LimitExceeded: it does not fit one message.
    """
    what = "bytes in the response; ask for less at once"
    limits.check("max_message_bytes", size_bytes, what)  # before memory is spent on it
    response = make() if size_bytes < _LARGE_BYTES else await asyncio.to_thread(make)
    limits.check("max_message_bytes", response.ByteSize(), what)
    return response


async def abort(error: EmbedserveError, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    """End a call with the status of an error, and with the trailing metadata that has been set."""
    status = rpc_status.to_status(wire.error_to_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, *context.trailing_metadata()))
    raise AssertionError("abort always raises")


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """When the caller stops waiting, on ``time.monotonic``'s clock; None for never."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


def encoder_ref_of(encoder: ImageEncoder) -> common_pb2.EncoderRef:
    """The encoder that the server runs."""
    return wire.encoder_ref(encoder.metadata.name, encoder.fingerprint, encoder.metadata.dimension)


def collection_encoder_ref(identity: CollectionIdentity) -> common_pb2.EncoderRef:
    """The encoder that the collection is bound to."""
    return wire.encoder_ref(identity.encoder_name, identity.fingerprint, identity.dimension)


def timings_to_proto(timings: Timings, begun: float) -> common_pb2.Timings:
    """The durations of a call's parts, and of the whole since ``begun`` on ``time.monotonic``'s clock."""
    return common_pb2.Timings(
        decode_ms=timings.decode_ms,
        queue_ms=timings.queue_ms,
        inference_ms=timings.inference_ms,
        store_ms=timings.store_ms,
        total_ms=(time.monotonic() - begun) * 1000,
    )
