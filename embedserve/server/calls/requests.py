"""Requests whose bytes are not a message: gRPC itself would answer UNKNOWN with a Python repr."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from embedserve.errors import InvalidInput


@dataclass(frozen=True)
class _Undecodable:
    """Takes the place of such a request."""

    error: Exception


def tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that never raises; ``checked`` tells what it could not decode."""

    def try_deserialize(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:  # DecodeError, also for text that is not UTF-8 and for too deep nesting
            return _Undecodable(error)

    return try_deserialize


def checked(request: Any) -> Any:
    """The request.

    Raises:
        InvalidInput: its bytes are not a message of its type.
    """
    if isinstance(request, _Undecodable):
        raise InvalidInput("the request cannot be decoded as its message type") from request.error
    return request


async def checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream.

    Raises:
        InvalidInput: the bytes of one are not a message of its type.
    """
    async for request in requests:
        yield checked(request)
        del request  # free it during the wait for the next one, which may be long
