"""Load on a server from coroutines: closed loops, open loops and streams.

``send(number)`` makes the call with that number, from 0, and returns a ``Reply`` (or None for one answered image) or
raises; every exception is a failed call, counted by its code. The transport is up to it: gRPC, HTTP or in process.

    measured = await open_loop(send, rate=200, seconds=10, warmup_s=2)
    print(measured.images_per_s, percentiles(measured.latencies_ms(), [50, 99]), measured.codes())

Closed loop: a number of clients, each with one call in flight; what they get done is the capacity. Open loop: calls are
due at given times whatever the server does, as independent callers make them; how long they wait is the latency. A
call's latency begins when it was due, so a server that stalls is charged for every call that was due meanwhile.
``threads`` has the closed loop for functions that block.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from embedserve.loadtest.measurements import NOT_SENT, STOPPED, UNANSWERED, Measurements, Reply
from embedserve.loadtest.schedule import poisson

Send = Callable[[int], Awaitable[Reply | None]]
"""Makes the call with this number."""
Stream = Callable[[Iterator[int], Callable[[Reply], None]], Awaitable[None]]
"""Sends messages with these numbers as fast as they are read, and passes on the reply to each, in order."""
Watch = Callable[[Measurements], None]
"""Receives what has been measured so far."""

MAX_CALLS = 2_000_000
"""Calls of one run, by default: about 100 bytes each."""
_WATCH_INTERVAL_S = 0.5
_WARM_REPLIES = 5
_ResultT = TypeVar("_ResultT")


def run(main: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """``asyncio.run`` with a clock that is fine enough for open loops.

    asyncio's default on Linux, epoll, wakes up to a millisecond late; select does not, and is as fast with the few
    descriptors that gRPC registers.
    """
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


async def closed_loop(
    send: Send,
    clients: int,
    seconds: float,
    *,
    warmup_s: float | None = 0,
    hold_load: bool = False,
    pause_after_failure_s: float = 0.01,
    max_calls: int = MAX_CALLS,
    drain_s: float = 60,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
    edge: Callable[[], None] | None = None,
) -> Measurements:
    """Clients that each make their next call when the previous one is over.

    Args:
        send: makes one call.
        clients: calls in flight.
        seconds: length of the measured window.
        warmup_s: seconds of load before the window; None: until the first call of every client is over.
        hold_load: keep the load up until all calls of the window are over. Otherwise the last calls meet fewer others
            and are faster, which matters if calls are about as long as the window.
        pause_after_failure_s: pause of a client whose call failed; without it, failures would add to the load.
        max_calls: the run ends after this many calls.
        drain_s: limit on the time that calls may take beyond the window before they are given up; and on the warm-up
            if ``warmup_s`` is None.
        stop: ends the run early; what was measured is kept.
        watch: called about twice a second.
        edge: called when the window begins and when it ends.
    """
    run = _Run(send, warmup_s, seconds, drain_s, stop, watch, edge)
    numbers = iter(range(max_calls))
    cold, busy = set(range(clients)), set(range(clients))

    async def client(me: int) -> None:
        while True:
            due_s = run.now_s()
            if due_s >= run.ends_s:
                busy.discard(me)  # its last call of the window is over
                if not (hold_load and busy):
                    return
            number = next(numbers, None)
            if number is None:
                run.used_up = f"{max_calls:,} calls were made"
                run.open_window()
                return
            answered = await run.call(number, due_s)
            if cold:
                cold.discard(me)
                if not cold:
                    run.open_window()
            if not answered:
                await asyncio.sleep(pause_after_failure_s)

    async def begin() -> None:
        for me in range(clients):
            run.start(client(me))

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
    edge: Callable[[], None] | None = None,
) -> Measurements:
    """Calls that are due at given times, whatever the answers to previous ones.

    Args:
        send: makes one call.
        rate: calls per second, on average.
        seconds: length of the measured window.
        warmup_s: seconds of load before the window, at the same rate.
        seed: of the times.
        arrivals: other times, ascending, in seconds from the start (default: ``schedule.poisson``).
        max_outstanding: limit on calls in flight. A call that is due beyond it is not sent, and counted as NOT_SENT; so
            is a call that this process, too slow for the rate, has not sent when the run is over.
        max_calls: the run ends after this many calls.
        drain_s: limit on the time that calls may take beyond the window before they are given up.
        stop: ends the run early; what was measured is kept.
        watch: called about twice a second.
        edge: called when the window begins and when it ends.
    """
    run = _Run(send, warmup_s, seconds, drain_s, stop, watch, edge)
    times = poisson(rate, warmup_s + seconds, seed) if arrivals is None else arrivals

    async def dispatch() -> None:
        for number, due_s in enumerate(times):
            if due_s >= run.ends_s:
                return
            if number >= max_calls:
                run.used_up = f"{max_calls:,} calls were made"
                return
            # Yields to the event loop at least once, so that answers are read even if the schedule is behind.
            await asyncio.sleep(max(0, due_s - run.now_s()))
            if run.in_flight >= max_outstanding or run.is_over:
                run.measured.add(due_s=due_s, sent_s=due_s, done_s=due_s, outcome=NOT_SENT)
            else:
                run.start(run.call(number, due_s))

    return await run.result(dispatch())


async def stream_loop(
    stream: Stream,
    seconds: float,
    *,
    warmup_s: float | None = None,
    max_messages: int = MAX_CALLS,
    drain_s: float = 60,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
    edge: Callable[[], None] | None = None,
) -> Measurements:
    """One stream, written as fast as the server reads it.

    Messages wait in the stream for as long as flow control lets them, so a latency means nothing here: each reply is
    measured from the reply before it.

    Args:
        stream: sends the messages.
        seconds: length of the measured window.
        warmup_s: seconds of load before the window; None: until the first replies.
        max_messages: the run ends after this many messages.
        drain_s: limit on the time that replies may take beyond the window, and on the warm-up.
        stop: ends the run early; what was measured is kept.
        watch: called about twice a second.
        edge: called when the window begins and when it ends.

    Returns:
        Measurements whose calls are the messages.
    """
    run = _Run(None, warmup_s, seconds, drain_s, stop, watch, edge)
    last_s = 0.0

    def numbers() -> Iterator[int]:
        for number in range(max_messages):
            if run.now_s() >= run.ends_s:
                return
            yield number
        run.used_up = f"{max_messages:,} messages were sent"

    def note(outcome: Reply | Exception) -> None:
        nonlocal last_s
        now_s = run.now_s()
        run.measured.add(due_s=last_s, sent_s=last_s, done_s=now_s, outcome=outcome)
        last_s = now_s
        if len(run.measured) == _WARM_REPLIES:
            run.open_window()

    async def converse() -> None:
        try:
            await stream(numbers(), note)
        except Exception as error:
            note(error)
        run.open_window()

    async def begin() -> None:
        run.start(converse())

    return await run.result(begin())


class _Run:
    """What the loops share: the clock, the calls in flight, the window and the end."""

    def __init__(
        self,
        send: Send | None,
        warmup_s: float | None,
        seconds: float,
        drain_s: float,
        stop: asyncio.Event | None,
        watch: Watch | None,
        edge: Callable[[], None] | None,
    ) -> None:
        begins_s = math.inf if warmup_s is None else warmup_s
        self.measured = Measurements(warmup_s=begins_s, seconds=seconds)
        self.ends_s = begins_s + seconds
        self._send, self._drain_s, self._watch, self._edge = send, drain_s, watch, edge
        self._stop = stop or asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._cpu_began_s: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._window_known = asyncio.Event()
        self._closing = False
        self.used_up = ""
        """Why nothing more is sent before the window ends."""

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._loop.time() - self._began

    @property
    def is_over(self) -> bool:
        """True if the calls that are still in flight are given up."""
        return self.now_s() >= self.ends_s + self._drain_s

    @property
    def in_flight(self) -> int:
        """Tasks that are not over."""
        return len(self._tasks)

    def start(self, task: Coroutine[Any, Any, Any]) -> None:
        """Run it beside the others."""
        started = self._loop.create_task(task)
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)

    def open_window(self) -> None:
        """Begin the window now, unless its time is known already."""
        if self._window_known.is_set():
            return
        self._window_begins()  # before the clock is read: its time is not part of the window
        seconds, self.measured.warmup_s = self.measured.seconds, self.now_s()
        self.ends_s = self.measured.warmup_s + seconds
        self._timers.append(self._loop.call_at(self._began + self.ends_s, self._window_ends))
        self._window_known.set()

    async def call(self, number: int, due_s: float) -> bool:
        """Make one call and record it; True if it was answered."""
        assert self._send is not None
        sent_s = self.now_s()
        outcome: Reply | BaseException | str
        try:
            outcome = await self._send(number) or Reply()
        except asyncio.CancelledError as error:
            if not self._closing:
                outcome = error  # the call was cancelled by others, not the task by us
            elif self._stop.is_set():
                raise  # calls that were in flight when the user stopped the run say nothing about the server
            else:
                outcome = UNANSWERED
        except Exception as error:
            outcome = error
        self.measured.add(due_s=due_s, sent_s=sent_s, done_s=self.now_s(), outcome=outcome)
        return isinstance(outcome, Reply)

    async def result(self, begin: Coroutine[Any, Any, None]) -> Measurements:
        """Run ``begin`` and the tasks that it starts, until the window has ended and its calls are over."""

        async def whole() -> None:
            await begin
            await self._window_known.wait()
            await asyncio.sleep(0)
            while self._tasks and (left_s := self.ends_s + self._drain_s - self.now_s()) > 0:
                await asyncio.wait(set(self._tasks), timeout=left_s)
            if self.used_up:
                self._cut_short(self.used_up)
            await asyncio.sleep(max(0, self.ends_s - self.now_s()))

        if math.isinf(self.ends_s):
            self._timers = [self._loop.call_at(self._began + self._drain_s, self.open_window)]
        else:
            self._timers = [
                self._loop.call_at(self._began + self.measured.warmup_s, self._window_begins),
                self._loop.call_at(self._began + self.ends_s, self._window_ends),
            ]
            self._window_known.set()
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
            for timer in self._timers:
                timer.cancel()
            for task in remaining:
                task.cancel()
            await asyncio.gather(*remaining, return_exceptions=True)

    def _cut_short(self, reason: str) -> None:
        if self.now_s() < self.ends_s:
            self.measured.cut_short = reason
            self.measured.seconds = max(0.0, self.now_s() - self.measured.warmup_s)
            self.ends_s = self.now_s()
            self._window_ends()

    def _window_begins(self) -> None:
        self._cpu_began_s = time.process_time()
        if self._edge is not None:
            self._edge()

    def _window_ends(self) -> None:
        if self._cpu_began_s is not None:
            self.measured.client_cpu_s = time.process_time() - self._cpu_began_s
            self._cpu_began_s = None
            if self._edge is not None:
                self._edge()

    async def _attend(self) -> None:
        assert self._watch is not None
        while True:
            self._watch(self.measured)
            await asyncio.sleep(_WATCH_INTERVAL_S)
