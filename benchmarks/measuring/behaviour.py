"""How a server behaves under failure: a bad image, cancelled calls, a bulk client, overload, SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from dataclasses import dataclass
from typing import Any

from embedserve.loadtest import OK, closed_loop
from measuring.clients import Client, Failed, Refused, TooLate
from measuring.loads import Images, closed, latencies_ms, offered
from measuring.machine import spent_s
from measuring.rounds import percentile
from measuring.servers import Running, kill

POISON_REPEATS = 5
DROPPED = 40
DROPPED_AFTER_S = 0.4
BULK = 64
OVERLOAD = 4.0
CLIENTS = 16
HOUR_S = 3600.0
"""Longer than any measurement."""
ACCEPTED_AFTER_S = 0.1
"""A call that was sent this long ago has reached the server."""


@dataclass(frozen=True)
class Times:
    """Lengths of the measurements, in seconds."""

    window: float
    overload: float


def truncated(image: bytes) -> bytes:
    """The first half of an image: the header is intact, the pixels are not."""
    return image[: len(image) // 2]


async def poison(client: Client, pictures: list[bytes]) -> dict[str, Any]:
    """16 good images and a truncated one at once, several times: how many good ones failed, and if that one did."""
    failed, bad_answered = [], 0
    for _ in range(POISON_REPEATS):
        good = [pictures[number % len(pictures)] for number in range(16)]
        # Among the good ones, so that it may share a batch with them.
        sent = [*good[:8], truncated(pictures[0]), *good[8:]]
        answers = await asyncio.gather(*[client.call([image]) for image in sent], return_exceptions=True)
        bad_answered += answers[8] is None
        failed.append(sum(answer is not None for number, answer in enumerate(answers) if number != 8))
    return {"good": 16, "failed": failed, "bad_answered": bad_answered}


async def cancel(server: Running, client: Client, pictures: list[bytes], cpu_ms_per_image: float) -> dict[str, Any]:
    """40 calls cancelled at once after 0.4 s: CPU time from then until the server is idle again."""
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
    await wait_until_idle(server, idle_share)
    burnt = max(spent_s(before, server.tree.cpu()) - idle_share * (time.perf_counter() - begun), 0.0)
    return {
        "dropped": sum(isinstance(answer, asyncio.CancelledError) for answer in answers),
        "answered_before": sum(answer is None for answer in answers),
        "burnt_cpu_s": round(burnt, 3),
        "burnt_images": round(1000 * burnt / cpu_ms_per_image, 1),
        "idle_cpu_share": round(idle_share, 4),
    }


async def wait_until_idle(server: Running, idle_share: float = 0.05, limit_s: float = 20.0) -> None:
    """Wait until the server takes hardly more CPU time than without requests, up to a limit."""
    last, begun = server.tree.cpu(), time.perf_counter()
    while time.perf_counter() - begun < limit_s:
        await asyncio.sleep(0.5)
        now = server.tree.cpu()
        if spent_s(last, now) <= 0.5 * idle_share + 0.03:
            return
        last = now


async def fairness(client: Client, pictures: list[bytes], times: Times) -> dict[str, Any]:
    """A caller of single images, alone and beside a client that always has two calls of 64 images in flight."""
    single = Images(pictures)
    alone = await closed(client, single, clients=1, seconds=times.window)
    ended = asyncio.Event()
    send = Images(pictures, BULK).sender(client, 120)
    bulk = asyncio.create_task(closed_loop(send, 2, HOUR_S, stop=ended))
    try:
        await asyncio.sleep(1)
        beside = await closed(client, single, clients=1, seconds=2 * times.window)
    finally:
        ended.set()
        bulk_measured = await bulk
    for problem in bulk_measured.messages.values():
        raise Failed(f"the bulk client: {problem}")
    alone_ms, beside_ms = latencies_ms(alone), latencies_ms(beside)
    alone_p99_ms, beside_p99_ms = percentile(alone_ms, 99), percentile(beside_ms, 99)
    assert alone_p99_ms is not None
    assert beside_p99_ms is not None
    return {
        "alone_p50_ms": percentile(alone_ms, 50),
        "alone_p99_ms": alone_p99_ms,
        "beside_p50_ms": percentile(beside_ms, 50),
        "beside_p99_ms": beside_p99_ms,
        "ratio": round(beside_p99_ms / alone_p99_ms, 2),
        "calls": len(beside_ms),
        "bulk_images_per_s": round(bulk_measured.images_per_s, 1),
    }


async def overload(server: Running, client: Client, pictures: list[bytes], times: Times) -> dict[str, Any]:
    """Four times its capacity, each call given up after its deadline: what is answered in time, how it refuses."""
    most = await closed(client, Images(pictures), clients=CLIENTS, seconds=times.window)
    usual_ms = percentile(latencies_ms(most), 50)
    assert usual_ms is not None
    most_images_per_s = most.steady_images_per_s
    within_s = max(4 * usual_ms / 1000, 1.0)
    memory = server.tree.pss_mb()
    measured = await offered(
        client,
        pictures,
        per_s=OVERLOAD * most_images_per_s,
        warmup_s=within_s,  # the window begins when the queue is full
        seconds=times.overload,
        within_s=within_s,
    )
    # Latency from when a call was sent, without the time that this process was late.
    accepted_ms, refused_ms = (list(measured.latencies_ms(code, from_sent=True)) for code in (OK, Refused.__name__))
    return {
        "most_images_per_s": round(most_images_per_s, 2),
        "deadline_s": round(within_s, 2),
        "goodput_ratio": round(measured.images_per_s / most_images_per_s, 3),
        "accepted_p99_ms": percentile(accepted_ms, 99),
        "refused": len(refused_ms),
        "refused_p50_ms": percentile(refused_ms, 50),
        "refused_p99_ms": percentile(refused_ms, 99),
        "outcomes": {"answered" if code == OK else code: count for code, count in measured.codes().items()},
        "memory_before_mb": memory,
        "memory_after_mb": server.tree.pss_mb(),
    }


async def terminate(server: Running, client: Client, pictures: list[bytes]) -> dict[str, Any]:
    """SIGTERM while 16 clients wait: calls sent at least 100 ms before have been accepted, and must be answered."""
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
    await kill(everything, server.tree)  # as in a container, which ends with its first process
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
