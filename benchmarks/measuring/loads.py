"""Load on a server and what came of it: clients that wait for their answers, and calls at a given rate."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np

from measuring.clients import Client, Failed, GrpcClient, Refused, TooLate


@dataclass(frozen=True)
class Call:
    """One call that was answered."""

    sent: float
    answered: float
    images: int


def images_within(calls: list[Call], begin: float, end: float) -> float:
    """Images embedded between two moments, each call spread evenly over the time from its sending to its answer.

    In a steady load this is exact in the mean, and unlike a count of answers it does not jump where calls are long.
    """
    total = 0.0
    for call in calls:
        overlap = min(call.answered, end) - max(call.sent, begin)
        if overlap > 0:
            total += call.images * overlap / (call.answered - call.sent)
    return total


def percentile_ms(seconds: list[float], percent: float) -> float | None:
    """A percentile in milliseconds; None of nothing."""
    return round(1000 * float(np.percentile(seconds, percent)), 3) if seconds else None


@dataclass
class Window:
    """The part of a load that is measured: from when every client had an answer, for some seconds."""

    begin: float
    end: float
    calls: list[Call]

    @property
    def images(self) -> float:
        """Images embedded in it."""
        return images_within(self.calls, self.begin, self.end)

    @property
    def images_per_s(self) -> float:
        """Images embedded in a second."""
        return self.images / (self.end - self.begin)

    @property
    def latencies_s(self) -> list[float]:
        """Of the calls that were answered in it; of all where each takes longer than it."""
        within = [call for call in self.calls if self.begin <= call.answered <= self.end]
        return [call.answered - call.sent for call in within or self.calls]


async def closed_loop(
    client: Client,
    pictures: list[bytes],
    *,
    clients: int,
    per_call: int,
    seconds: float,
    edge: Callable[[], None] = lambda: None,
) -> Window:
    """Every client sends its next call when it has its answer. ``edge`` is called at the window's begin and end.

    The load stays the same until all calls that began in the window are answered: otherwise the last would be quicker.

    Raises:
        Failed, Refused, TooLate: a call was not answered.
    """
    calls: list[Call] = []
    numbers = itertools.count()
    cold = set(range(clients))  # clients without an answer yet
    warm, ended = asyncio.Event(), False
    tail = set(range(clients))  # clients whose call of the window's end is not answered

    async def one(me: int) -> None:
        while True:
            start = next(numbers) * per_call
            images = [pictures[number % len(pictures)] for number in range(start, start + per_call)]
            sent = time.perf_counter()
            await client.call(images)
            calls.append(Call(sent, time.perf_counter(), per_call))
            cold.discard(me)
            if not cold:
                warm.set()
            if ended:
                tail.discard(me)
                if not tail:
                    return

    async with asyncio.TaskGroup() as group:
        for me in range(clients):
            group.create_task(one(me))
        await warm.wait()
        edge()
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        ended, end = True, time.perf_counter()
        edge()
    return Window(begin, end, calls)


async def stream_loop(
    client: GrpcClient,
    pictures: list[bytes],
    *,
    per_message: int,
    seconds: float,
    edge: Callable[[], None] = lambda: None,
) -> Window:
    """One stream, written as fast as the server reads it; images wait in it, so there are no latencies."""
    answers: list[tuple[float, int]] = []
    warm, ended = asyncio.Event(), False

    async def messages() -> AsyncIterator[list[bytes]]:
        for start in itertools.count(0, per_message):
            if ended:
                return
            yield [pictures[number % len(pictures)] for number in range(start, start + per_message)]

    def answered(images: int) -> None:
        answers.append((time.perf_counter(), images))
        if len(answers) > 4:
            warm.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(client.stream(messages(), answered))
        await warm.wait()
        edge()
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        ended, end = True, time.perf_counter()
        edge()
    # An answer stands for the time since the one before.
    calls = [Call(before, now, images) for (before, _), (now, images) in itertools.pairwise(answers) if now > before]
    return Window(begin, end, calls)


@dataclass
class Tally:
    """What became of calls that were sent at a given rate."""

    sent: list[float] = field(default_factory=list)
    good: list[tuple[float, float]] = field(default_factory=list)
    """When it was sent, and seconds until the answer."""
    refused_s: list[float] = field(default_factory=list)
    """Seconds until the server said that it is full."""
    outcomes: Counter[str] = field(default_factory=Counter)


async def open_loop(
    client: Client, pictures: list[bytes], *, per_s: float, seconds: float, within_s: float
) -> tuple[Tally, float]:
    """Single images at a steady rate, whatever comes back; each is given up after ``within_s``. Also when it began."""
    tally = Tally()

    async def one(image: bytes) -> None:
        sent = time.perf_counter()
        tally.sent.append(sent)
        try:
            await client.call([image], timeout_s=within_s)
        except (Refused, TooLate, Failed) as error:
            tally.outcomes[type(error).__name__] += 1
            if isinstance(error, Refused):
                tally.refused_s.append(time.perf_counter() - sent)
        else:
            tally.outcomes["answered"] += 1
            tally.good.append((sent, time.perf_counter() - sent))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(per_s * seconds)):
            group.create_task(one(pictures[number % len(pictures)]))
            await asyncio.sleep(max(begun + (number + 1) / per_s - time.perf_counter(), 0))
    return tally, begun
