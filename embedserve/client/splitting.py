"""Calls whose answer does not fit one message, cut into smaller ones.

How large an answer is, only the server knows. So a call that is refused for it is made again in halves, down to single
inputs, and later calls of the same list ask for no more inputs than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from embedserve.client.chunks import Chunk
from embedserve.errors import LimitExceeded

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")

_OF_THE_MESSAGE = ("max_message_bytes", "larger than max")
"""In the text of an error that smaller answers avoid: the server's own, and that of gRPC."""


class Splitter(Generic[RequestT, ResultT]):
    """For the chunks of one list of inputs.

    Args:
        field: the repeated field of a request that holds its inputs.
        alone: the results of a chunk whose only input that is sent has too large an answer; or it raises the error.
    """

    def __init__(self, field: str, alone: Callable[[Chunk[RequestT], LimitExceeded], list[ResultT]]) -> None:
        self.alone = alone
        self._field = field
        self._most: int | None = None
        """Inputs in a call, once one was refused; never rises, so that splitting ends."""

    def fitting(self, chunk: Chunk[RequestT]) -> Sequence[Chunk[RequestT]]:
        """A chunk cut so that none of the pieces is as large as those that were refused."""
        if self._most is None or chunk.request is None or chunk.sent <= self._most:
            return [chunk]
        return list(self._pieces(chunk, self._most))

    def smaller(self, chunk: Chunk[RequestT], error: LimitExceeded) -> Sequence[Chunk[RequestT]] | None:
        """What to send in place of a chunk that was refused; None if it cannot be cut.

        Raises:
            LimitExceeded: the error itself, if it is not about the size of the answer.
        """
        if not any(text in error.message for text in _OF_THE_MESSAGE):
            raise error
        if chunk.sent <= 1:
            return None
        self._most = min(chunk.sent // 2, self._most or chunk.sent)
        return list(self._pieces(chunk, self._most))

    def _pieces(self, chunk: Chunk[RequestT], most: int) -> Iterator[Chunk[RequestT]]:
        """Neighbouring inputs of a chunk, at most so many sent ones in each piece."""
        assert chunk.request is not None
        inputs: list[Any] = list(getattr(chunk.request, self._field))
        rest = type(chunk.request)()
        rest.CopyFrom(chunk.request)
        rest.ClearField(self._field)
        start = 0
        while start < len(chunk.refused):
            stop, sent = start, 0
            while stop < len(chunk.refused) and (sent < most or chunk.refused[stop] is not None):
                sent += chunk.refused[stop] is None
                stop += 1
            request = type(chunk.request)()
            request.CopyFrom(rest)
            getattr(request, self._field).extend(inputs[:sent])
            del inputs[:sent]
            yield Chunk(request if sent else None, chunk.refused[start:stop], chunk.ids[start:stop])
            start = stop
