"""When the loops send, and what they measure; in simulated time, so that it is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import grpc
import pytest

from embedserve.errors import Overloaded
from embedserve.loadtest import (
    NOT_SENT,
    UNANSWERED,
    CallFailed,
    Measurements,
    Reply,
    closed_loop,
    open_loop,
    stream_loop,
)
from embedserve.loadtest.schedule import poisson
from tests.loadtest.clock import run

Send = Callable[[int], Awaitable[Reply | None]]


def taking(seconds: float) -> Send:
    """A server without limits whose answers each take this long."""

    async def send(number: int) -> None:
        await asyncio.sleep(seconds)

    return send


def every(*times_ms: int) -> list[float]:
    return [time_ms / 1000 for time_ms in times_ms]


# --- Closed loop ---


def test_each_client_of_a_closed_loop_has_one_call_in_flight() -> None:
    in_flight, most = 0, 0

    async def send(number: int) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.1)
        in_flight -= 1

    measured = run(closed_loop(send, clients=3, seconds=0.95))
    assert most == 3
    assert measured.codes() == {"OK": 30}
    assert measured.latencies_ms() == pytest.approx([100] * 30)


def test_a_closed_loop_counts_answers_within_the_window_and_not_those_of_the_warmup() -> None:
    measured = run(closed_loop(taking(0.1), clients=2, seconds=1, warmup_s=0.55))
    assert measured.calls_per_s == 20
    assert len(measured) > sum(measured.codes().values()) == 20


def test_calls_are_numbered_from_0_without_a_gap() -> None:
    numbers: list[int] = []

    async def send(number: int) -> None:
        numbers.append(number)
        await asyncio.sleep(0.1)

    run(closed_loop(send, clients=4, seconds=0.5))
    assert numbers == list(range(20))


def test_a_client_whose_call_failed_pauses_before_its_next_one() -> None:
    async def refuse(number: int) -> None:
        raise Overloaded("full")

    measured = run(closed_loop(refuse, clients=1, seconds=1, pause_after_failure_s=0.125))
    assert measured.codes() == {"OVERLOADED": 8}


def test_a_closed_loop_ends_after_so_many_calls_and_says_so() -> None:
    measured = run(closed_loop(taking(0.1), clients=2, seconds=60, max_calls=5))
    assert measured.codes() == {"OK": 5}
    assert measured.cut_short == "5 calls were made"
    assert measured.seconds < 1


def test_a_window_without_a_fixed_warmup_begins_when_every_client_has_had_an_answer() -> None:
    async def send(number: int) -> None:
        await asyncio.sleep(2 if number == 1 else 0.1)

    edges: list[float] = []
    measured = run(closed_loop(send, 3, 1, warmup_s=None, edge=lambda: edges.append(asyncio.get_running_loop().time())))
    assert measured.warmup_s == pytest.approx(2)
    assert edges[1] - edges[0] == pytest.approx(1)
    assert measured.images_per_s == pytest.approx(30, abs=3)


def test_a_window_begins_after_the_drain_if_a_client_never_has_an_answer() -> None:
    async def send(number: int) -> None:
        await asyncio.sleep(3600 if number == 1 else 0.1)

    measured = run(closed_loop(send, 2, 1, warmup_s=None, drain_s=5))
    assert measured.warmup_s == pytest.approx(5)
    assert measured.codes() == {"OK": 10}
    assert len(measured.latencies_ms(UNANSWERED, whole_run=True)) == 1


def shared_capacity(per_call_s: float) -> Send:
    """A server whose capacity the calls in flight share: alone, a call takes ``per_call_s``. Clients start apart."""
    in_flight = 0

    async def send(number: int) -> None:
        nonlocal in_flight
        if number < 4:
            await asyncio.sleep(0.4 * number)
        in_flight += 1
        done = 0.0
        while done < per_call_s - 1e-9:
            await asyncio.sleep(0.01)
            done += 0.01 / in_flight
        in_flight -= 1

    return send


def test_a_held_load_keeps_the_last_calls_as_slow_as_the_others() -> None:
    held = run(closed_loop(shared_capacity(0.5), 4, 3, warmup_s=4, hold_load=True))
    dropped = run(closed_loop(shared_capacity(0.5), 4, 3, warmup_s=4))
    assert held.steady_images_per_s == pytest.approx(2, rel=0.02)
    assert dropped.steady_images_per_s > 1.03 * held.steady_images_per_s
    assert min(held.latencies_ms()) == pytest.approx(2000, rel=0.05)
    assert min(dropped.latencies_ms()) < 1800


def test_steady_throughput_counts_a_call_with_the_part_that_lies_in_the_window() -> None:
    measured = Measurements(warmup_s=1, seconds=2)
    for sent_s, done_s, images in ((0, 2, 16), (2, 4, 16), (10, 12, 16), (0, 1, 1)):
        measured.add(due_s=sent_s, sent_s=sent_s, done_s=done_s, outcome=Reply(images=images))
    assert measured.steady_images == 8 + 8
    assert measured.steady_images_per_s == 8
    assert measured.all_images == 49


def test_a_window_between_calls_has_no_throughput() -> None:
    measured = Measurements(warmup_s=5, seconds=4)
    measured.add(due_s=10, sent_s=10, done_s=12, outcome=Reply(images=16))
    assert measured.steady_images == 0


# --- Stream ---


def test_a_stream_is_measured_from_reply_to_reply_after_the_first_ones() -> None:
    async def stream(numbers: Iterator[int], reply: Callable[[Reply], None]) -> None:
        for _ in numbers:
            await asyncio.sleep(0.1)
            reply(Reply(images=4))

    measured = run(stream_loop(stream, 2))
    assert measured.warmup_s == pytest.approx(0.5)
    assert measured.steady_images_per_s == pytest.approx(40)
    whole = run(stream_loop(stream, 3600, warmup_s=0, max_messages=20))
    assert whole.steady_images == pytest.approx(80)
    assert whole.steady_images_per_s == pytest.approx(40)
    assert whole.cut_short == "20 messages were sent"


def test_a_stream_that_breaks_ends_the_run_with_the_failure() -> None:
    async def stream(numbers: Iterator[int], reply: Callable[[Reply], None]) -> None:
        next(numbers)
        raise CallFailed("HTTP_503", "busy")

    measured = run(stream_loop(stream, 1))
    assert measured.messages == {"HTTP_503": "busy"}


# --- Open loop ---


def test_an_open_loop_sends_when_calls_are_due_whatever_the_answers() -> None:
    loop_times: list[float] = []

    async def send(number: int) -> None:
        loop_times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(5)

    measured = run(open_loop(send, rate=20, seconds=3, seed=7))
    due = list(poisson(20, 3, seed=7))
    assert [time - loop_times[0] for time in loop_times] == pytest.approx([time - due[0] for time in due])
    assert measured.codes() == {"OK": len(due)}


def test_a_server_that_stalls_is_charged_for_every_call_that_was_due_meanwhile() -> None:
    # One that answers at once, one after the other, and stands still for 300 ms with the third call.
    lock = asyncio.Lock()

    async def send(number: int) -> None:
        async with lock:
            await asyncio.sleep(0.3 if number == 2 else 0)

    due = every(*range(0, 1000, 10))  # 100 calls, 10 ms apart: 30 of them are due while it stands still
    measured = run(open_loop(send, rate=100, seconds=1, arrivals=due))
    late = [latency for latency in measured.latencies_ms() if latency > 1]
    assert len(late) == 30
    assert sorted(late) == pytest.approx([10.0 * number for number in range(1, 31)])


def test_a_call_that_this_process_sends_late_is_counted_from_when_it_was_due() -> None:
    async def block(number: int) -> None:
        # What a busy event loop does: while this call computes, no other one can be sent.
        if number == 0:
            asyncio.get_running_loop()._selector.now_s += 0.3  # type: ignore[attr-defined]

    measured = run(open_loop(block, rate=100, seconds=1, arrivals=every(*range(0, 500, 10))))
    assert sum(measured.latencies_ms() > 1) == 30
    assert sum(measured.late_ms() > 1) == 29, "the first one was sent in time"


def test_a_call_beyond_those_allowed_is_not_sent_and_counted() -> None:
    sent: list[int] = []

    async def send(number: int) -> None:
        sent.append(number)
        await asyncio.sleep(1)

    measured = run(open_loop(send, rate=100, seconds=0.5, arrivals=every(0, 10, 20, 30, 40), max_outstanding=3))
    assert sent == [0, 1, 2]
    assert measured.codes() == {"OK": 3, NOT_SENT: 2}
    assert measured.due_calls_per_s == 10


def test_calls_that_a_slow_client_never_got_to_are_counted_as_not_sent() -> None:
    async def block(number: int) -> None:
        asyncio.get_running_loop()._selector.now_s += 1  # type: ignore[attr-defined]

    measured = run(open_loop(block, rate=100, seconds=1, arrivals=every(*range(0, 1000, 10)), drain_s=5))
    counts = measured.codes()
    assert sum(counts.values()) == 100, "none is lost"
    assert 5 <= counts["OK"] <= 7
    assert counts[NOT_SENT] == 100 - counts["OK"]


def test_times_beyond_the_window_are_not_waited_for() -> None:
    measured = run(open_loop(taking(0.1), rate=1, seconds=1, arrivals=every(0, 500, 3_600_000)))
    assert measured.codes() == {"OK": 2}
    assert len(measured) == 2


def test_what_is_offered_and_what_is_achieved_are_counted_apart() -> None:
    # One call at a time, 100 ms each: ten a second, of twenty that are due.
    lock = asyncio.Lock()

    async def send(number: int) -> Reply:
        async with lock:
            await asyncio.sleep(0.1)
        return Reply(images=4)

    measured = run(open_loop(send, rate=20, seconds=10, arrivals=every(*range(0, 10_000, 50)), warmup_s=0))
    assert measured.due_calls_per_s == 20
    assert measured.calls_per_s == pytest.approx(10, abs=0.2)
    assert measured.images_per_s == pytest.approx(40, abs=0.8)
    assert measured.codes() == {"OK": 200}, "those answered after the window are answered too"


# --- Both: ends and failures ---


def test_a_call_that_is_never_answered_is_given_up_after_the_drain() -> None:
    measured = run(open_loop(taking(3600), rate=1, seconds=1, arrivals=every(0, 500), drain_s=10))
    assert measured.codes() == {UNANSWERED: 2}
    assert sorted(measured.latencies_ms(UNANSWERED)) == pytest.approx([10_500, 11_000])


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_run_that_is_stopped_gives_what_was_measured_until_then(loop: str) -> None:
    async def stopped() -> Measurements:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(2.25, stop.set)
        if loop == "closed":
            return await closed_loop(taking(0.5), clients=1, seconds=60, stop=stop)
        return await open_loop(taking(0.5), rate=1, seconds=60, arrivals=every(*range(0, 60_000, 500)), stop=stop)

    measured = run(stopped())
    assert measured.codes() == {"OK": 4}, "the call that was in flight says nothing"
    assert measured.cut_short == "stopped"
    assert measured.seconds == pytest.approx(2.25)
    assert measured.calls_per_s == pytest.approx(4 / 2.25)


def test_a_run_stopped_in_its_warmup_has_measured_nothing() -> None:
    async def stopped() -> Measurements:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(1, stop.set)
        return await closed_loop(taking(0.1), clients=1, seconds=60, warmup_s=5, stop=stop)

    measured = run(stopped())
    assert (measured.seconds, measured.calls_per_s, measured.codes()) == (0, 0, {})


def test_failures_are_counted_by_code_with_their_first_message() -> None:
    class Http(Exception):
        pass

    failures = [
        Overloaded("64 images wait"),
        CallFailed("HTTP_503", "busy"),
        CallFailed("HTTP_503", "busy again"),
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone"),
        TimeoutError(),
        asyncio.CancelledError(),
        Http("reset"),
    ]

    async def send(number: int) -> None:
        if number < len(failures):
            raise failures[number]

    measured = run(open_loop(send, rate=1, seconds=1, arrivals=every(*range(0, 100, 10))))
    assert measured.codes() == {
        "OK": 3,
        "HTTP_503": 2,
        "OVERLOADED": 1,
        "UNAVAILABLE": 1,
        "DEADLINE_EXCEEDED": 1,
        "CANCELLED": 1,
        "Http": 1,
    }
    assert measured.messages["HTTP_503"] == "busy"
    assert measured.messages["Http"] == "reset"


def test_a_call_with_a_failed_image_counts_as_failed_and_its_other_images_as_answered() -> None:
    async def send(number: int) -> Reply:
        await asyncio.sleep(0.1)
        return Reply(images=7, failed={"IMAGE_UNDECODABLE": 1}) if number == 3 else Reply(images=8)

    measured = run(closed_loop(send, clients=1, seconds=1.05))
    assert measured.codes() == {"OK": 10, "IMAGE_UNDECODABLE": 1}
    assert measured.failed_images() == {"IMAGE_UNDECODABLE": 1}
    assert measured.images_per_s * 1.05 == pytest.approx(9 * 8 + 7)


def test_the_parts_of_the_time_on_the_server_are_medians_of_the_answers_that_name_them() -> None:
    async def send(number: int) -> Reply:
        await asyncio.sleep(0.1)
        return Reply() if number == 0 else Reply(server_ms=(number, 2, 3, 0, 9))

    measured = run(closed_loop(send, clients=1, seconds=0.35))
    assert measured.server_ms() == {"decode": 2, "queue": 2, "inference": 3, "store": 0, "total": 9}
    assert run(closed_loop(taking(0.1), clients=1, seconds=0.5)).server_ms() == {}


def test_a_watcher_sees_the_run_while_it_goes_on() -> None:
    seen: list[int] = []
    run(closed_loop(taking(0.1), clients=1, seconds=2, watch=lambda measured: seen.append(len(measured))))
    assert seen == sorted(seen)
    assert len(set(seen)) >= 4
