"""The two ways to put load on a server. Both take ``send``, a coroutine function that makes one call.

``send(number)`` gets the number of the call, from 0, and gives a ``Reply`` (or None for one answered image) or raises;
every exception is a call that failed, counted by its code. Whatever it drives, over gRPC, HTTP or in process, is its
own affair:

    measured = await open_loop(send, rate=200, seconds=10, warmup_s=2)
    print(measured.images_per_s, percentiles(measured.latencies_ms(), [50, 99]), measured.codes())

Closed loop: so many clients, each with one call under way; how much they get done is the capacity. Open loop: calls are
due at given times whatever the server does, as callers who know nothing of each other make them; how long they wait is
the latency. The time of a call begins when it was due, so a server that stalls is charged for every call that should
have been sent meanwhile.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from embedserve.loadtest.measurements import NOT_SENT, STOPPED, UNANSWERED, Measurements, Reply
from embedserve.loadtest.schedule import poisson

Send = Callable[[int], Awaitable[Reply | None]]
"""Makes the call with this number."""
Watch = Callable[[Measurements], None]
"""Looks at what was measured until now."""

MAX_CALLS = 2_000_000
"""Calls of one run, by default: about 100 bytes each."""
_WATCH_EVERY_S = 0.5
_ResultT = TypeVar("_ResultT")


def run(main: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """``asyncio.run`` with a clock that is fine enough for open loops.

    asyncio's usual loop on Linux, epoll, wakes up to a millisecond late; select does not, and is as quick with the few
    descriptors that gRPC registers.
    """
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


async def closed_loop(
    send: Send,
    clients: int,
    seconds: float,
    *,
    warmup_s: float = 0,
    pause_after_failure_s: float = 0.01,
    max_calls: int = MAX_CALLS,
    drain_s: float = 60,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurements:
    """Clients that each make their next call when the one before is over.

    Args:
        send: makes one call.
        clients: calls under way at a time.
        seconds: length of the window that counts.
        warmup_s: how long calls are made before it.
        pause_after_failure_s: a client whose call failed waits so long; at once, it would only make the load worse.
        max_calls: the run ends after so many.
        drain_s: how long calls may still take after the window before they are given up.
        stop: ends the run early, with what was measured until then.
        watch: called about twice a second.
    """
    run = _Run(send, warmup_s, seconds, drain_s, stop, watch)
    numbers = iter(range(max_calls))

    async def client() -> None:
        while run.now_s() < run.ends_s:
            number = next(numbers, None)
            if number is None:
                run.used_up = f"{max_calls:,} calls were made"
                return
            if not await run.call(number, run.now_s()):
                await asyncio.sleep(pause_after_failure_s)

    async def begin() -> None:
        for _ in range(clients):
            run.start(client())

    return await run.result(begin())


async def open_loop(
    send: Send,
    rate: float,
    seconds: float,
    *,
    warmup_s: float = 0,
    seed: int = 0,
    arrivals: Iterable[float] | None = None,
    max_outstanding: int = 1000,
    max_calls: int = MAX_CALLS,
    drain_s: float = 60,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurements:
    """Calls that are due at random times, whatever becomes of those before.

    Args:
        send: makes one call.
        rate: calls a second, on average.
        seconds: length of the window that counts.
        warmup_s: how long calls are made before it, at the same rate.
        seed: of the times.
        arrivals: other times, ascending, in seconds from the start (default: ``schedule.poisson``).
        max_outstanding: calls under way at a time. One that is due beyond is not sent, and counted as NOT_SENT; so is
            one that this process, being too slow for the rate, has not sent when the run is over.
        max_calls: the run ends after so many.
        drain_s: how long calls may still take after the window before they are given up.
        stop: ends the run early, with what was measured until then.
        watch: called about twice a second.
    """
    run = _Run(send, warmup_s, seconds, drain_s, stop, watch)
    times = poisson(rate, warmup_s + seconds, seed) if arrivals is None else arrivals

    async def dispatch() -> None:
        for number, due_s in enumerate(times):
            if due_s >= run.ends_s:
                return
            if number >= max_calls:
                run.used_up = f"{max_calls:,} calls were made"
                return
            # At least one turn of the event loop each, so that answers are taken even when the schedule is behind.
            await asyncio.sleep(max(0, due_s - run.now_s()))
            if run.under_way >= max_outstanding or run.is_over:
                run.measured.add(due_s=due_s, sent_s=due_s, done_s=due_s, outcome=NOT_SENT)
            else:
                run.start(run.call(number, due_s))

    return await run.result(dispatch())


class _Run:
    """What both loops share: the clock, the calls under way, the end."""

    def __init__(
        self,
        send: Send,
        warmup_s: float,
        seconds: float,
        drain_s: float,
        stop: asyncio.Event | None,
        watch: Watch | None,
    ) -> None:
        self.measured = Measurements(warmup_s=warmup_s, seconds=seconds)
        self.ends_s = warmup_s + seconds
        self._send, self._drain_s, self._watch = send, drain_s, watch
        self._stop = stop or asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._cpu_began_s: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.used_up = ""
        """Why nothing more is sent, although the window has not ended."""

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._loop.time() - self._began

    @property
    def is_over(self) -> bool:
        """True if calls that are still under way are given up."""
        return self.now_s() >= self.ends_s + self._drain_s

    @property
    def under_way(self) -> int:
        """Tasks that are not over."""
        return len(self._tasks)

    def start(self, task: Coroutine[Any, Any, Any]) -> None:
        """Let it run beside the others."""
        started = self._loop.create_task(task)
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)

    async def call(self, number: int, due_s: float) -> bool:
        """Make one call and note it; True if it was answered."""
        sent_s = self.now_s()
        outcome: Reply | BaseException | str
        try:
            outcome = await self._send(number) or Reply()
        except asyncio.CancelledError as error:
            if not self._closing:
                outcome = error  # the call was cancelled by others, not the task by us
            elif self._stop.is_set():
                raise  # what was under way when a person stopped the run says nothing about the server
            else:
                outcome = UNANSWERED
        except Exception as error:
            outcome = error
        self.measured.add(due_s=due_s, sent_s=sent_s, done_s=self.now_s(), outcome=outcome)
        return isinstance(outcome, Reply)

    def _cut_short(self, reason: str) -> None:
        if self.now_s() < self.ends_s:
            self.measured.cut_short = reason
            self.measured.seconds = max(0.0, self.now_s() - self.measured.warmup_s)
            self.ends_s = self.now_s()
            self._window_ends()

    async def result(self, begin: Coroutine[Any, Any, None]) -> Measurements:
        """Run ``begin`` and the tasks that it starts, until the window has ended and its calls are over."""

        async def whole() -> None:
            await begin
            await asyncio.sleep(0)
            while self._tasks and (left_s := self.ends_s + self._drain_s - self.now_s()) > 0:
                await asyncio.wait(set(self._tasks), timeout=left_s)
            if self.used_up:
                self._cut_short(self.used_up)
            await asyncio.sleep(max(0, self.ends_s - self.now_s()))

        timers = [
            self._loop.call_at(self._began + self.measured.warmup_s, self._window_begins),
            self._loop.call_at(self._began + self.ends_s, self._window_ends),
        ]
        running, stopped = self._loop.create_task(whole()), self._loop.create_task(self._stop.wait())
        helpers = [running, stopped, *([self._loop.create_task(self._attend())] if self._watch is not None else [])]
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            else:
                self._cut_short(STOPPED)
            return self.measured
        finally:
            self._window_ends()
            self._closing = True
            remaining = [*self._tasks, *helpers]
            for timer in timers:
                timer.cancel()
            for task in remaining:
                task.cancel()
            await asyncio.gather(*remaining, return_exceptions=True)

    def _window_begins(self) -> None:
        self._cpu_began_s = time.process_time()

    def _window_ends(self) -> None:
        if self._cpu_began_s is not None:
            self.measured.client_cpu_s = time.process_time() - self._cpu_began_s
            self._cpu_began_s = None

    async def _attend(self) -> None:
        assert self._watch is not None
        while True:
            self._watch(self.measured)
            await asyncio.sleep(_WATCH_EVERY_S)
