"""``send`` functions for the loops, which make the calls of a load on gRPC channels."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from embedserve.client import failures
from embedserve.client.access import Access
from embedserve.errors import EmbedserveError, Unavailable
from embedserve.loadtest.loops import Send
from embedserve.loadtest.measurements import Reply
from embedserve.loadtest.requests import Load


async def connect(server: Access, connections: int, *, timeout_s: float = 10) -> list[grpc.aio.Channel]:
    """Channels with a connection each, established before anything is measured.

    Raises:
        Unavailable: a connection was not established in time.
    """
    made = [server.open(grpc.aio, own_connection=True) for _ in range(connections)]
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(channel.channel_ready() for channel in made))
    except TimeoutError:
        await close(made)
        raise Unavailable(
            f"{server.target} did not accept {connections} connections within {timeout_s:g} s",
            hint="ask for fewer: --connections",
        ) from None
    return made


async def close(channels: Sequence[grpc.aio.Channel]) -> None:
    """End the connections."""
    await asyncio.gather(*(channel.close() for channel in channels))


def unary(channels: Sequence[grpc.aio.Channel], load: Load, server: Access, *, timeout_s: float) -> Send:
    """Makes one call for each number, on the channels in rotation, with a deadline of ``timeout_s``."""
    methods: list[Any] = [channel.unary_unary(load.method, response_deserializer=load.read) for channel in channels]
    requests = load.requests

    async def send(number: int) -> Reply:
        method = methods[number % len(methods)]
        try:
            reply: Reply = await method(requests[number % len(requests)], timeout=timeout_s)
        except grpc.RpcError as error:
            raise failures.failure_of(error, server.target, timeout_s).error from None
        return reply

    return send


class Streams:
    """One stream on each channel; ``send`` writes a message to one of them and waits for its answer.

    If a stream fails, so do its messages; the next message opens another stream.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], load: Load, server: Access, *, timeout_s: float) -> None:
        self._load, self._timeout_s = load, timeout_s
        self._streams = [_Stream(channel, load, server) for channel in channels]

    async def send(self, number: int) -> Reply:
        """Send one message; the answer, if it comes in time."""
        stream = self._streams[number % len(self._streams)]
        async with asyncio.timeout(self._timeout_s):
            return await stream.answer(self._load.requests[number % len(self._load.requests)])

    async def close(self) -> None:
        """Half-close the streams and wait for their ends."""
        await asyncio.gather(*(stream.close() for stream in self._streams))


class _Stream:
    def __init__(self, channel: grpc.aio.Channel, load: Load, server: Access) -> None:
        self._method: Any = channel.stream_stream(load.method, response_deserializer=load.read)
        self._target = server.target
        self._unsent: asyncio.Queue[tuple[bytes, asyncio.Future[Reply]] | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def answer(self, request: bytes) -> Reply:
        if self._reader is None:
            self._unsent = asyncio.Queue()
            self._reader = asyncio.create_task(self._converse(self._unsent))
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._unsent.put_nowait((request, answer))
        return await answer

    async def close(self) -> None:
        reader = self._reader
        if reader is not None:
            self._unsent.put_nowait(None)
            await asyncio.wait({reader}, timeout=1)
            reader.cancel()

    async def _converse(self, unsent: asyncio.Queue[tuple[bytes, asyncio.Future[Reply]] | None]) -> None:
        waiting: deque[asyncio.Future[Reply]] = deque()

        async def requests() -> AsyncIterator[bytes]:
            while (entry := await unsent.get()) is not None:
                if not entry[1].done():  # else it timed out before the server read it
                    waiting.append(entry[1])
                    yield entry[0]

        failure: EmbedserveError = Unavailable("the server ended the stream")
        try:
            # Answers come in the order of the requests.
            async for reply in self._method(requests()):
                answer = waiting.popleft()
                if not answer.done():
                    answer.set_result(reply)
        except grpc.RpcError as error:
            failure = failures.failure_of(error, self._target, 0).error
        finally:
            self._reader = None
            while not unsent.empty():
                if (entry := unsent.get_nowait()) is not None:
                    waiting.append(entry[1])
            for answer in waiting:
                with suppress(asyncio.InvalidStateError):  # given up meanwhile
                    answer.set_exception(failure)
