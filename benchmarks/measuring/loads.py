"""The loads of ``embedserve.loadtest`` on a client of any server; here a call that fails ends the measurement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from embedserve.loadtest import Measurements, Reply, closed_loop, open_loop, steady, stream_loop
from measuring.clients import Client, Failed, GrpcClient


@dataclass(frozen=True)
class Images:
    """What the calls of a load carry: ``per_call`` of the pictures, in rotation."""

    pictures: list[bytes]
    per_call: int = 1

    def of(self, number: int) -> list[bytes]:
        """The images of the call with this number."""
        start = number * self.per_call
        return [self.pictures[place % len(self.pictures)] for place in range(start, start + self.per_call)]

    def sender(self, client: Client, timeout_s: float = 60.0) -> Callable[[int], Awaitable[Reply]]:
        """The ``send`` of a loop."""

        async def send(number: int) -> Reply:
            await client.call(self.of(number), timeout_s)
            return Reply(images=self.per_call)

        return send


async def closed(client: Client, images: Images, *, clients: int, seconds: float, **options: Any) -> Measurements:
    """A closed loop whose window begins when every client has had an answer, and whose load is held to its end.

    ``options`` are those of ``closed_loop``.

    Raises:
        Failed, Refused, TooLate: a call was not answered.
    """
    stop = asyncio.Event()
    send = images.sender(client)
    failures: list[Exception] = []

    async def send_or_stop(number: int) -> Reply:
        try:
            return await send(number)
        except Exception as error:
            failures.append(error)
            stop.set()
            raise

    options = {"warmup_s": None, "hold_load": True, **options}
    measured = await closed_loop(send_or_stop, clients, seconds, stop=stop, **options)
    if failures:
        raise failures[0]
    return measured


async def streamed(client: GrpcClient, images: Images, *, seconds: float, **options: Any) -> Measurements:
    """One EmbedStream, written as fast as the server reads it. ``options`` are those of ``stream_loop``.

    Raises:
        Failed: the stream broke, or an image failed.
    """

    async def stream(numbers: Iterator[int], reply: Callable[[Reply], None]) -> None:
        async def messages() -> AsyncIterator[list[bytes]]:
            for number in numbers:
                yield images.of(number)

        await client.stream(messages(), lambda count: reply(Reply(images=count)))

    measured = await stream_loop(stream, seconds, **options)
    for message in measured.messages.values():
        raise Failed(message)
    return measured


async def offered(
    client: Client, pictures: list[bytes], *, per_s: float, warmup_s: float, seconds: float, within_s: float
) -> Measurements:
    """Single images at a steady rate, whatever the answers; each call is given up after ``within_s``."""
    return await open_loop(
        Images(pictures).sender(client, within_s),
        per_s,
        seconds,
        warmup_s=warmup_s,
        arrivals=steady(per_s, warmup_s + seconds),
        max_outstanding=1_000_000,
    )


def latencies_ms(measured: Measurements) -> list[float]:
    """Milliseconds of the answered calls that were sent in the window; of all calls if each takes longer than it."""
    found = measured.latencies_ms()
    return list(found if len(found) else measured.latencies_ms(whole_run=True))
