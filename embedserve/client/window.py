"""How much one method has in flight: chunks that are sent ahead of their answers, in order, and again if need be."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from embedserve.client import failures, hints, retry
from embedserve.client.chunks import Chunk
from embedserve.errors import DeadlineExceeded, EmbedserveError, ProtocolError

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

CALLS_IN_FLIGHT = 4
"""Calls that one method has in flight: the server works on some while the next ones are read and sent."""

MESSAGES_AHEAD = 8
"""Messages of a stream whose results have not been taken yet: 128 images, of which the server has 32 in flight."""

BYTES_AHEAD = 32 << 20
"""Bytes of inputs in these messages; only the message that exceeds it is still sent."""

_MAX_CUTS = 5
"""Streams that are cut one after the other without an answer before the client gives up."""

_MANY_CUTS = 3
"""Streams of one method that are cut before the log says so: it costs time, and a proxy's settings end it."""

_log = logging.getLogger("embedserve.client")


class Window(Generic[RequestT, ResponseT]):
    """The chunks of one bulk method that are sent over streams and not yet answered. Does no I/O.

    Args:
        is_answer: whether a response answers a request that follows this many inputs on its stream.
        target: of the channel, for messages.
        timeout_s: how long to wait for the next answer while chunks are in flight, new streams included.
    """

    def __init__(self, is_answer: Callable[[RequestT, ResponseT, int], bool], target: str, timeout_s: float) -> None:
        self._is_answer = is_answer
        self._target, self._timeout_s = target, timeout_s
        self._chunks: deque[Chunk[RequestT]] = deque()
        self._bytes = 0
        self._position = 0
        self._attempt = 0
        self._cuts, self._all_cuts = 0, 0
        self._failure: EmbedserveError | None = None
        self._has_worked = False
        self._deadline_s: float | None = None
        self.ended = False
        """All inputs have been taken."""

    @property
    def has_room(self) -> bool:
        """Another chunk may be added."""
        return not self.ended and len(self._chunks) < MESSAGES_AHEAD and self._bytes < BYTES_AHEAD

    @property
    def done(self) -> bool:
        """Everything has been answered."""
        return self.ended and not self._chunks

    @property
    def idle(self) -> bool:
        """Nothing is in flight."""
        return not self._chunks

    def add(self, chunk: Chunk[RequestT] | None) -> None:
        """A chunk is in flight; None: there are no more."""
        if chunk is None:
            self.ended = True
        else:
            self._chunks.append(chunk)
            self._bytes += chunk.size_bytes

    def pop_unsendable(self) -> Chunk[RequestT] | None:
        """The first chunk, if it has nothing to send and therefore needs no answer."""
        return self._pop() if self._chunks and self._chunks[0].request is None else None

    def pop_answered(self, response: ResponseT) -> Chunk[RequestT]:
        """The chunk that a response answers.

        Raises:
            ProtocolError: the response does not answer the first chunk.
        """
        request = self._chunks[0].request if self._chunks else None
        if request is None or not self._is_answer(request, response, self._position):
            raise ProtocolError(f"the server at {self._target} answered out of order")
        chunk = self._pop()
        self._position += chunk.sent
        self._attempt, self._cuts, self._failure, self._has_worked, self._deadline_s = 0, 0, None, True, None
        return chunk

    def begin(self) -> None:
        """A new stream begins, on which nothing has been sent."""
        self._position = 0

    def requests_again(self) -> list[RequestT | None]:
        """What to send first on a new stream: the requests without an answer, and None if there will be no others."""
        self.begin()
        requests: list[RequestT | None] = [chunk.request for chunk in self._chunks if chunk.request is not None]
        return [*requests, None] if self.ended else requests

    def remaining_s(self) -> float:
        """How long the next answer may still take, in seconds."""
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._timeout_s
        return max(0.0, self._deadline_s - time.monotonic())

    def timeout_error(self) -> EmbedserveError:
        """What to raise when no time remains: why the last stream broke, if one did since the last answer."""
        return self._failure or DeadlineExceeded(
            f"the server at {self._target} gave no answer for {self._timeout_s:g} s",
            hint=hints.LATE,
        )

    def early_end_error(self) -> ProtocolError:
        """What to raise when the server ends a stream with status OK before it has answered everything."""
        return ProtocolError(f"the server at {self._target} ended the stream before it had answered")

    def pause_before_reopening_s(self, error: grpc.RpcError | None) -> float:
        """How long to wait before a new stream replaces one that broke, in seconds.

        Args:
            error: how it broke; None if that is not known, which counts as a lost connection.

        Raises:
            EmbedserveError: a new stream would not help, or no time remains for one.
        """
        self._attempt += 1
        if error is None:
            failure = failures.connection_lost(self._target)
        else:
            failure = failures.failure_of(error, self._target, self._timeout_s)
        self._failure = failure.error
        self._cuts += failure.is_cut
        self._all_cuts += failure.is_cut
        # A stream that is cut again and again before it is answered has met a limit, which waiting does not change.
        patient = self._has_worked and self._cuts < _MAX_CUTS
        attempt = max(self._attempt, _MAX_CUTS) if self._cuts >= _MAX_CUTS else self._attempt
        pause_s = retry.pause_s(failure, attempt, self.remaining_s(), patient=patient)
        if pause_s is None:
            raise failure.error from error
        if self._all_cuts == _MANY_CUTS and failure.is_cut:
            _log.warning("streams are cut again and again: %s", failure.error.hint)
        _log.info("stream broke (%s); reopened in %.1f s", failure.error.message, pause_s)
        return pause_s

    def _pop(self) -> Chunk[RequestT]:
        chunk = self._chunks.popleft()
        self._bytes -= chunk.size_bytes
        return chunk
