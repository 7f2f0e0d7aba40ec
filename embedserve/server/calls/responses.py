"""What responses of all services have in common: deadline, size, room, encoder, timings, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Generic, NoReturn, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from embedserve import wire
from embedserve.answer_size import AnswerSize, too_large
from embedserve.encoder.session import ImageEncoder
from embedserve.engine.answers import Answer
from embedserve.engine.engine import Engine
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError
from embedserve.types import CollectionIdentity, Limits
from embedserve.v1 import common_pb2
from embedserve.wanted import Wanted

_Response = TypeVar("_Response", bound=Message)

_LARGE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class EncodedResponse(Generic[_Response]):
    """A large response, as it goes over the wire."""

    data: bytes
    outline: _Response
    """What traces tell of it."""

    def SerializeToString(self) -> bytes:
        """The bytes, as of a message."""
        return self.data


def begin_answer(engine: Engine, hint: str) -> Answer:
    """Room for the answer of the current call, held until its task ends, which is after the client has taken it.

    Args:
        engine: holds it.
        hint: what to ask less of if the answer becomes too large.
    """
    answer, task = engine.answers.begin(hint), asyncio.current_task()
    assert task is not None
    answer.task = task
    task.add_done_callback(answer.close)
    return answer


async def build(
    answer: Answer,
    make: Callable[[], _Response],
    encode: Callable[[AnswerSize, Wanted], bytes],
    outline: Callable[[], _Response],
) -> _Response:
    """The response of a call whose answer has been read. gRPC is given what this returns, whatever its type says.

    A large one is written to bytes in a thread: as a message it would take too much memory, and block all other calls.

    Args:
        answer: what was read.
        make: the response as a message.
        encode: the same as bytes; stops where it becomes too large, or is not wanted any more.
        outline: what traces tell of a large one.

    Raises:
        LimitExceeded: it does not fit one message.
    """
    if answer.bytes < _LARGE_BYTES:
        response = make()
        if response.ByteSize() > answer.most_bytes:
            raise too_large(answer.most_bytes, answer.hint)
        answer.given_at = time.monotonic()
        return response
    wanted = Wanted()
    try:
        data = await asyncio.to_thread(encode, AnswerSize(answer.most_bytes, answer.hint), wanted)
    except asyncio.CancelledError:
        wanted.cancel()
        raise
    if len(data) > answer.most_bytes:
        raise too_large(answer.most_bytes, answer.hint)
    answer.given_at = time.monotonic()
    return cast("_Response", EncodedResponse(data, outline()))


SERIALIZE = methodcaller("SerializeToString")
"""The serializer of calls whose responses may be encoded already; without a frame of Python for each."""


def check_size(response: _Response, limits: Limits, hint: str) -> _Response:
    """A response that was small enough to be made, if it fits one message, too.

    Raises:
        LimitExceeded: it does not.
    """
    if response.ByteSize() > limits.max_message_bytes:
        raise too_large(limits.max_message_bytes, hint)
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
