"""Bulk over a stream: parts sent ahead up to a bound, answered in order, and sent again where the stream breaks.

``Exchange`` keeps the books for both clients and does no I/O; ``answers`` is the client that blocks.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from embedserve.client import calls
from embedserve.client.parts import Part
from embedserve.errors import DeadlineExceeded, EmbedserveError, InternalError, Unavailable

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

MESSAGES_AHEAD = 8
"""Messages that are sent and not yet taken from the results: 128 images, of which the server has 32 in work."""

BYTES_AHEAD = 32 << 20
"""Bytes of inputs in them, beyond which only the message that goes over it is sent."""

_log = logging.getLogger("embedserve.client")


class Exchange(Generic[RequestT, ResponseT]):
    """What of one bulk method is on its way.

    Args:
        is_answer: whether a response answers a request before which so many inputs have been sent over its stream.
        target: where the server is, for what is said of it.
        timeout_s: how long to wait for an answer while something is on its way, new streams included.
    """

    def __init__(self, is_answer: Callable[[RequestT, ResponseT, int], bool], target: str, timeout_s: float) -> None:
        self._is_answer = is_answer
        self._target, self._timeout_s = target, timeout_s
        self._parts: deque[Part[RequestT]] = deque()
        self._bytes = 0
        self._position = 0
        self._attempt = 0
        self._failure: EmbedserveError | None = None
        self._has_worked = False
        self._deadline_s: float | None = None
        self.ended = False
        """All inputs have been taken."""

    @property
    def has_room(self) -> bool:
        """Another part may be taken."""
        return not self.ended and len(self._parts) < MESSAGES_AHEAD and self._bytes < BYTES_AHEAD

    @property
    def done(self) -> bool:
        """Everything has been answered."""
        return self.ended and not self._parts

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self._parts

    def take(self, part: Part[RequestT] | None) -> None:
        """A part is on its way; None: that was the last one."""
        if part is None:
            self.ended = True
        else:
            self._parts.append(part)
            self._bytes += part.size_bytes

    def refused(self) -> Part[RequestT] | None:
        """The first part, if it has nothing to send and therefore needs no answer."""
        return self._leave() if self._parts and self._parts[0].request is None else None

    def answered(self, response: ResponseT) -> Part[RequestT]:
        """The part that a response answers.

        Raises:
            InternalError: it is not the one whose turn it is.
        """
        request = self._parts[0].request if self._parts else None
        if request is None or not self._is_answer(request, response, self._position):
            raise InternalError(f"the server at {self._target} gave an answer out of turn")
        part = self._leave()
        self._position += part.sent
        self._attempt, self._failure, self._has_worked, self._deadline_s = 0, None, True, None
        return part

    def unanswered(self) -> list[RequestT]:
        """What a new stream begins with."""
        self._position = 0
        return [part.request for part in self._parts if part.request is not None]

    def remaining_s(self) -> float:
        """How long the next answer may still take, in seconds."""
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._timeout_s
        return max(0.0, self._deadline_s - time.monotonic())

    def late(self) -> EmbedserveError:
        """What to raise when no time remains: why the last stream broke, if one did since the last answer."""
        return self._failure or DeadlineExceeded(
            f"the server at {self._target} gave no answer for {self._timeout_s:g} s",
            hint="allow more: Client(timeout_s=…)",
        )

    def pause_s(self, error: grpc.RpcError | None) -> float:
        """How long to wait before a new stream, after one that broke.

        Args:
            error: how it broke; None where nobody knows, which is taken for a lost connection.

        Raises:
            EmbedserveError: a new one would not help, or has not for too long.
        """
        self._attempt += 1
        if error is None:
            failure = calls.connection_lost(self._target)
        else:
            failure = calls.failure_of(error, self._target, self._timeout_s)
        self._failure = failure.error
        pause_s = calls.pause_before_retry_s(failure, self._attempt, self.remaining_s(), patient=self._has_worked)
        if pause_s is None:
            raise failure.error from error
        _log.info("stream broke (%s); again in %.1f s", failure.error.message, pause_s)
        return pause_s

    def cut_short(self) -> InternalError:
        """What to raise when a stream ends well, but too early."""
        return InternalError(f"the server at {self._target} ended the stream before it had answered")

    def _leave(self) -> Part[RequestT]:
        part = self._parts.popleft()
        self._bytes -= part.size_bytes
        return part


def answers(
    method: Any,
    parts: Iterator[Part[RequestT]],
    exchange: Exchange[RequestT, ResponseT],
    is_closed: Callable[[], bool],
) -> Iterator[tuple[Part[RequestT], ResponseT | None]]:
    """Each part with its response, or None if it had nothing to send, in order.

    Args:
        method: the stream's method of a stub.
        parts: taken in the caller's thread, as far ahead as ``exchange`` has room.
        exchange: a new one.
        is_closed: whether the client has been closed.
    """
    stream: _Stream[RequestT, ResponseT] | None = None
    try:
        while True:
            if exchange.has_room:
                part = next(parts, None)
                exchange.take(part)
                if part is None and stream is not None:
                    stream.send(None)
                elif part is not None and part.request is not None:
                    if stream is None:
                        stream = _Stream(method)
                    stream.send(part.request)
            while (refused := exchange.refused()) is not None:
                yield refused, None
            if exchange.done:
                if stream is not None:
                    stream.finish(exchange.remaining_s())
                return
            if stream is None:
                continue
            try:
                response = stream.receive(0 if exchange.has_room else exchange.remaining_s())
            except grpc.RpcError as error:
                if is_closed():
                    raise Unavailable("the call was cancelled: the client was closed") from error
                stream.close()
                stream = None
                if not exchange.idle:
                    time.sleep(exchange.pause_s(error))
                    stream = _Stream(method)
                    for request in exchange.unanswered():
                        stream.send(request)
                    if exchange.ended:
                        stream.send(None)
            except EOFError:
                raise exchange.cut_short() from None
            else:
                if response is not None:
                    yield exchange.answered(response), response
                elif not exchange.has_room:
                    raise exchange.late()
    finally:
        if stream is not None:
            stream.close()


class _Stream(Generic[RequestT, ResponseT]):
    """One stream with a thread that reads it, so that waiting for a response can end; gRPC has one that writes."""

    def __init__(self, method: Any) -> None:
        self._outbox: queue.SimpleQueue[RequestT | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[ResponseT | grpc.RpcError | EOFError] = queue.SimpleQueue()
        self._call = method(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, name="embedserve-stream", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._inbox.put(response)
        except grpc.RpcError as error:
            self._inbox.put(error)
        else:
            self._inbox.put(EOFError())

    def send(self, request: RequestT | None) -> None:
        """Send a request; None: there are no more."""
        self._outbox.put(request)

    def receive(self, timeout_s: float) -> ResponseT | None:
        """The next response; None if there is none within the time.

        Raises:
            grpc.RpcError: the stream broke.
            EOFError: the server ended it.
        """
        try:
            response = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return None
        if isinstance(response, (grpc.RpcError, EOFError)):
            raise response
        return response

    def finish(self, timeout_s: float) -> None:
        """Let the server end a stream that has been answered, rather than cancel it; how it ends does not matter."""
        self._reader.join(timeout_s)

    def close(self) -> None:
        """Cancel the stream, if it has not ended, and end its threads."""
        self._call.cancel()
        self._outbox.put(None)
        if threading.current_thread() is not self._reader:  # where the garbage collector closes it
            self._reader.join()
