"""Bulk over a stream for ``Client``: chunks are taken in the caller's thread, and responses read in another one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from embedserve.client import failures
from embedserve.client.chunks import Chunk
from embedserve.client.window import Window

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


def answers(
    method: Any,
    chunks: Iterator[Chunk[RequestT]],
    window: Window[RequestT, ResponseT],
    is_closed: Callable[[], bool],
) -> Iterator[tuple[Chunk[RequestT], ResponseT | None]]:
    """Each chunk with its response, or None if it had nothing to send, in order.

    Args:
        method: the stream's method of a stub.
        chunks: taken in the caller's thread, as far ahead as ``window`` has room.
        window: a new one.
        is_closed: whether the client has been closed.
    """
    stream: _Stream[RequestT, ResponseT] | None = None
    try:
        while True:
            if window.has_room:
                chunk = next(chunks, None)
                window.add(chunk)
                if chunk is None and stream is not None:
                    stream.send(None)
                elif chunk is not None and chunk.request is not None:
                    if stream is None:
                        window.begin()
                        stream = _Stream(method)
                    stream.send(chunk.request)
            while (unsendable := window.pop_unsendable()) is not None:
                yield unsendable, None
            if window.done:
                if stream is not None:
                    stream.finish(window.remaining_s())
                return
            if stream is None:
                continue
            try:
                response = stream.receive(0 if window.has_room else window.remaining_s())
            except grpc.RpcError as error:
                if is_closed():
                    raise failures.closed_client() from error
                stream.close()
                stream = None
                if not window.idle:
                    time.sleep(window.pause_before_reopening_s(error))
                    stream = _Stream(method, window.requests_again())
            except EOFError:
                raise window.early_end_error() from None
            else:
                if response is not None:
                    yield window.pop_answered(response), response
                elif not window.has_room:
                    raise window.timeout_error()
    finally:
        if stream is not None:
            stream.close()


class _Stream(Generic[RequestT, ResponseT]):
    """One stream with a thread that reads it, so that waiting can time out; gRPC has a thread that writes.

    A stream that replaces a broken one sends the first of ``first``, and the others once that has been answered: even
    where a proxy cuts streams at a size, each of them gets somewhere.

    Args:
        method: the stream's method of a stub.
        first: requests to begin with.
    """

    def __init__(self, method: Any, first: Sequence[RequestT | None] = ()) -> None:
        self._outbox: queue.SimpleQueue[RequestT | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[ResponseT | grpc.RpcError | EOFError] = queue.SimpleQueue()
        self._held: list[RequestT | None] | None = None
        for request in first:
            self.send(request)
            if self._held is None:
                self._held = []
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
        if self._held is None:
            self._outbox.put(request)
        else:
            self._held.append(request)

    def receive(self, timeout_s: float) -> ResponseT | None:
        """The next response; None if none comes in time.

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
        held, self._held = self._held, None
        for request in held or ():
            self.send(request)
        return response

    def finish(self, timeout_s: float) -> None:
        """Let the server end a stream that has been answered rather than cancel it; its status does not matter."""
        self._reader.join(timeout_s)

    def close(self) -> None:
        """Cancel the stream, if it has not ended, and end its threads."""
        self._call.cancel()
        self._outbox.put(None)
        if threading.current_thread() is not self._reader:  # the garbage collector may run there
            self._reader.join()
