"""What a server does when things go wrong: a bad image, callers that leave, a bulk client, too much load, SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from dataclasses import dataclass
from typing import Any

from measuring.clients import Client, Failed, Refused, TooLate
from measuring.loads import closed_loop, open_loop, percentile_ms
from measuring.machine import spent_s
from measuring.servers import Running, kill

POISON_REPEATS = 5
DROPPED = 40
DROPPED_AFTER_S = 0.4
BULK = 64
OVERLOAD = 4.0
CLIENTS = 16
ACCEPTED_AFTER_S = 0.1
"""A call that was sent so long ago has reached the server."""


@dataclass(frozen=True)
class Times:
    """How long each takes, in seconds."""

    window: float
    overload: float


def truncated(image: bytes) -> bytes:
    """The first half of an image: its header is right, its pixels end."""
    return image[: len(image) // 2]


async def poison(client: Client, pictures: list[bytes]) -> dict[str, Any]:
    """16 good images and a truncated one at once, several times: how many good ones failed, and whether the bad did."""
    failed, bad_answered = [], 0
    for _ in range(POISON_REPEATS):
        good = [pictures[number % len(pictures)] for number in range(16)]
        # In the midst of the good ones, so that it may come into a batch with them.
        sent = [*good[:8], truncated(pictures[0]), *good[8:]]
        answers = await asyncio.gather(*[client.call([image]) for image in sent], return_exceptions=True)
        bad_answered += answers[8] is None
        failed.append(sum(answer is not None for number, answer in enumerate(answers) if number != 8))
    return {"good": 16, "failed": failed, "bad_answered": bad_answered}


async def cancel(server: Running, client: Client, pictures: list[bytes], cpu_ms_per_image: float) -> dict[str, Any]:
    """40 calls dropped at once after 0.4 s: CPU time burnt from then until the server rests again."""
    await asyncio.sleep(1)
    before = server.tree.cpu()
    await asyncio.sleep(1.5)
    idle_share = spent_s(before, server.tree.cpu()) / 1.5
    calls = [asyncio.create_task(client.call([pictures[n % len(pictures)]])) for n in range(DROPPED)]
    await asyncio.sleep(DROPPED_AFTER_S)
    for call in calls:
        call.cancel()
    before, begun = server.tree.cpu(), time.perf_counter()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    await rest(server, idle_share)
    burnt = max(spent_s(before, server.tree.cpu()) - idle_share * (time.perf_counter() - begun), 0.0)
    return {
        "dropped": sum(isinstance(answer, asyncio.CancelledError) for answer in answers),
        "answered_before": sum(answer is None for answer in answers),
        "burnt_cpu_s": round(burnt, 3),
        "burnt_images": round(1000 * burnt / cpu_ms_per_image, 1),
        "idle_cpu_share": round(idle_share, 4),
    }


async def rest(server: Running, idle_share: float = 0.05, most_s: float = 20.0) -> None:
    """Wait until the server takes hardly more CPU time than without requests, but not for ever."""
    last, begun = server.tree.cpu(), time.perf_counter()
    while time.perf_counter() - begun < most_s:
        await asyncio.sleep(0.5)
        now = server.tree.cpu()
        if spent_s(last, now) <= 0.5 * idle_share + 0.03:
            return
        last = now


async def fairness(client: Client, pictures: list[bytes], times: Times) -> dict[str, Any]:
    """A caller of single images, alone and beside a client that always has two calls of 64 images under way."""
    alone = await closed_loop(client, pictures, clients=1, per_call=1, seconds=times.window)
    latencies: list[float] = []
    bulk_images = 0

    async def bulk() -> None:
        nonlocal bulk_images
        images = list(itertools.islice(itertools.cycle(pictures), BULK))
        while True:
            await client.call(images, timeout_s=120)
            bulk_images += BULK

    tasks = [asyncio.create_task(bulk()) for _ in range(2)]
    try:
        await asyncio.sleep(1)
        begun = time.perf_counter()
        while time.perf_counter() - begun < 2 * times.window:
            sent = time.perf_counter()
            await client.call([pictures[0]], timeout_s=120)
            latencies.append(time.perf_counter() - sent)
        seconds = time.perf_counter() - begun
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    problems = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    if problems:
        raise Failed(f"the bulk client: {problems[0]}")
    alone_ms, beside_ms = percentile_ms(alone.latencies_s, 99), percentile_ms(latencies, 99)
    assert alone_ms is not None
    assert beside_ms is not None
    return {
        "alone_p50_ms": percentile_ms(alone.latencies_s, 50),
        "alone_p99_ms": alone_ms,
        "beside_p50_ms": percentile_ms(latencies, 50),
        "beside_p99_ms": beside_ms,
        "ratio": round(beside_ms / alone_ms, 2),
        "calls": len(latencies),
        "bulk_images_per_s": round(bulk_images / (seconds + 1), 1),
    }


async def overload(server: Running, client: Client, pictures: list[bytes], times: Times) -> dict[str, Any]:
    """Four times what it can do, each call given up after its deadline: what is answered in time, how it refuses."""
    most = await closed_loop(client, pictures, clients=CLIENTS, per_call=1, seconds=times.window)
    usual_ms = percentile_ms(most.latencies_s, 50)
    assert usual_ms is not None
    within_s = max(4 * usual_ms / 1000, 1.0)
    memory = server.tree.pss_mb()
    tally, begun = await open_loop(
        client,
        pictures,
        per_s=OVERLOAD * most.images_per_s,
        seconds=times.overload + within_s,
        within_s=within_s,
    )
    # When the queue is full, which it is not at first.
    window = begun + within_s, begun + within_s + times.overload
    good = sum(window[0] <= sent + took < window[1] for sent, took in tally.good)
    return {
        "most_images_per_s": round(most.images_per_s, 2),
        "deadline_s": round(within_s, 2),
        "goodput_ratio": round(good / times.overload / most.images_per_s, 3),
        "accepted_p99_ms": percentile_ms([took for _, took in tally.good], 99),
        "refused": len(tally.refused_s),
        "refused_p50_ms": percentile_ms(tally.refused_s, 50),
        "refused_p99_ms": percentile_ms(tally.refused_s, 99),
        "outcomes": dict(tally.outcomes),
        "memory_before_mb": memory,
        "memory_after_mb": server.tree.pss_mb(),
    }


async def terminate(server: Running, client: Client, pictures: list[bytes]) -> dict[str, Any]:
    """SIGTERM while 16 clients wait: calls sent 100 ms before or earlier have been accepted, and may not be lost."""
    sent: dict[int, float] = {}
    ended: dict[int, float] = {}
    outcomes: dict[int, str] = {}
    numbers = itertools.count()
    stopped = False

    async def one() -> None:
        while not stopped:
            number = next(numbers)
            sent[number] = time.perf_counter()
            try:
                await client.call([pictures[number % len(pictures)]], timeout_s=30)
            except (Refused, Failed, TooLate) as error:
                outcomes[number] = f"{type(error).__name__}: {error}"
                return
            else:
                outcomes[number] = "answered"
            finally:
                ended[number] = time.perf_counter()

    tasks = [asyncio.create_task(one()) for _ in range(CLIENTS)]
    await asyncio.sleep(2)
    everything = set(server.tree.pids())
    signalled = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    exited = asyncio.create_task(server.process.wait())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(exited), 30)
    exit_s = time.perf_counter() - signalled
    stopped = True
    await kill(everything, server.tree)  # as in a container, where the end of the first process is that of all
    await asyncio.gather(*tasks)
    exited.cancel()
    accepted = [n for n, when in sent.items() if when < signalled - ACCEPTED_AFTER_S and ended[n] > signalled]
    lost = [number for number in accepted if outcomes[number] != "answered"]
    return {
        "in_flight": len(accepted),
        "lost": len(lost),
        "how": sorted({outcomes[number][:120] for number in lost}),
        "exit_s": round(exit_s, 2),
        "exit_code": server.process.returncode,
    }
