"""Runs against one server: closed loops, then open loops at rates that may be shares of the best closed loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from embedserve.client.access import Access
from embedserve.errors import FailedPrecondition
from embedserve.loadtest import senders
from embedserve.loadtest.loops import Send, Watch, closed_loop, open_loop
from embedserve.loadtest.report import Run, amount
from embedserve.loadtest.requests import Load


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of an open loop."""

    value: float
    is_share: bool = False
    """Of the highest rate of the closed loops; otherwise images per second."""

    @staticmethod
    def of(text: str) -> Rate:
        """The rate written as "200" or "80%"."""
        is_share = text.endswith("%")
        return Rate(float(text.removesuffix("%")) / (100 if is_share else 1), is_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The runs to make, and their parameters."""

    clients: Sequence[int]
    """Calls in flight of each closed loop."""
    rates: Sequence[Rate]
    """Rate of each open loop."""
    seconds: float
    warmup_s: float
    timeout_s: float
    """Deadline of each call."""
    connections: int
    stream: bool
    """One EmbedStream on each connection instead of single calls."""
    max_outstanding: int
    max_calls: int
    seed: int


Look = Callable[[str], AbstractContextManager[Watch]]
"""Observes the run with this name."""


async def sweep(server: Access, load: Load, plan: Plan, *, stop: asyncio.Event, look: Look) -> list[Run]:
    """Make all runs; if ``stop`` is set, the current run is the last, and is cut short.

    Raises:
        Unavailable: the server cannot be reached.
        FailedPrecondition: a rate is a share of the closed loops, which got no answer.
    """
    channels = await senders.connect(server, plan.connections)
    streams = senders.Streams(channels, load, server, timeout_s=plan.timeout_s) if plan.stream else None
    send: Send = (
        streams.send if streams is not None else senders.unary(channels, load, server, timeout_s=plan.timeout_s)
    )
    runs: list[Run] = []
    try:
        for clients in plan.clients:
            if not stop.is_set():
                runs.append(await _closed(send, load, plan, clients, stop, look))
        most = max((run.measured.images_per_s for run in runs), default=0.0)
        for rate in plan.rates:
            if not stop.is_set():
                runs.append(await _open(send, load, plan, rate, most, stop, look))
        return runs
    finally:
        if streams is not None:
            await streams.close()
        await senders.close(channels)


async def _closed(send: Send, load: Load, plan: Plan, clients: int, stop: asyncio.Event, look: Look) -> Run:
    with look(f"{clients} client{'s' * (clients > 1)}") as watch:
        measured = await closed_loop(
            send,
            clients,
            plan.seconds,
            warmup_s=plan.warmup_s,
            max_calls=plan.max_calls,
            drain_s=plan.timeout_s + 1,
            stop=stop,
            watch=watch,
        )
    return Run(measured=measured, clients=clients, noun=load.noun, per_call=load.per_call)


async def _open(send: Send, load: Load, plan: Plan, rate: Rate, most: float, stop: asyncio.Event, look: Look) -> Run:
    images_per_s = rate.value * most if rate.is_share else rate.value
    if not images_per_s:
        raise FailedPrecondition(
            f"the closed loops got no answer, so there is no rate that is {rate.value:.0%} of theirs",
            hint="run without --rate to see what fails, or give numbers: --rate 100",
        )
    with look(f"{amount(images_per_s)} {load.noun}/s") as watch:
        measured = await open_loop(
            send,
            images_per_s / load.per_call,
            plan.seconds,
            warmup_s=plan.warmup_s,
            seed=plan.seed,
            max_outstanding=plan.max_outstanding,
            max_calls=plan.max_calls,
            drain_s=plan.timeout_s + 1,
            stop=stop,
            watch=watch,
        )
    share = rate.value if rate.is_share else None
    return Run(measured=measured, rate=images_per_s, of_capacity=share, noun=load.noun, per_call=load.per_call)
