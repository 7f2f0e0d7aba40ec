"""The batcher in both forms: workers that prepare and encode, and separate threads for the two."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.engine.batcher import Batcher, Encoded
from embedserve.engine.embedder import best_batch
from embedserve.engine.timings import Timings
from embedserve.errors import DeadlineExceeded, ImageUndecodable, InternalError, Unavailable
from embedserve.observer import Observer, Outcome
from tests.waiting import until

BAD = 60_000
"""Images from this number on cannot be prepared."""
SHAPES = pytest.mark.parametrize("decode_threads", [0, 2], ids=["alone", "ahead"])


class Counting(Observer):
    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def on_image(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def on_batch(self, waits_s: Sequence[float], inference_s: float) -> None:
        with self._lock:
            self.batches.append(len(waits_s))


def prepare(number: int, row: np.ndarray) -> str:
    """Write the image's number, below 65,536, into the row."""
    if number >= BAD:
        raise ImageUndecodable(f"{number} is bad")
    row[0, 0] = number % 256, number // 256, 0
    return f"extra {number}"


def numbers_of(images: np.ndarray) -> np.ndarray:
    return (images[:, 0, 0, 0].astype(np.float32) + images[:, 0, 0, 1] * 256.0)[:, None]


def batcher_of(
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    runs: int = 1,
    max_batch: int = 8,
    decode_threads: int = 0,
    observer: Observer | None = None,
) -> Batcher[int, str]:
    return Batcher(
        prepare,
        encode,
        shape=(1, 1, 3),
        runs=runs,
        decode_threads=decode_threads,
        max_batch=max_batch,
        observer=observer or Observer(),
    )


def submit(
    batcher: Batcher[int, str], numbers: list[int], flow: object, deadline: float | None = None
) -> asyncio.Future[Any]:
    return batcher.submit(numbers, flow=flow, deadline=deadline, timings=Timings())


class HeldEncoder:
    """An encoder that waits until it is released, so that a test can fill the queue."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(numbers_of(images)[:, 0].astype(int).tolist())
        self.entered.set()
        assert self.released.wait(20)
        return numbers_of(images)


async def busy(encoder: HeldEncoder, batcher: Batcher[int, str]) -> asyncio.Future[Any]:
    """Image 0 keeps the only worker busy."""
    first = submit(batcher, [0], "first")
    await asyncio.to_thread(encoder.entered.wait, 20)
    return first


def test_images_that_wait_while_the_encoder_is_busy_become_one_batch() -> None:
    async def scenario() -> list[list[int]]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode)
        calls = [await busy(encoder, batcher), *(submit(batcher, [number], number) for number in (1, 2, 3))]
        encoder.released.set()
        await asyncio.gather(*calls)
        await batcher.close()
        return encoder.batches

    assert asyncio.run(scenario()) == [[0], [1, 2, 3]]


def test_a_large_call_and_a_small_one_take_turns() -> None:
    async def scenario() -> list[list[int]]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode, max_batch=2)
        calls = [await busy(encoder, batcher), submit(batcher, [1, 2, 3, 4, 5, 6], "large")]
        calls.append(submit(batcher, [9], "small"))
        encoder.released.set()
        await asyncio.gather(*calls)
        await batcher.close()
        return encoder.batches

    assert asyncio.run(scenario()) == [[0], [1, 9], [2, 3], [4, 5], [6]]


def test_calls_of_one_stream_share_one_turn() -> None:
    async def scenario() -> list[list[int]]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode, max_batch=2)
        calls = [await busy(encoder, batcher), *(submit(batcher, [number], "stream") for number in (1, 2, 3))]
        calls.append(submit(batcher, [9], "small"))
        encoder.released.set()
        await asyncio.gather(*calls)
        await batcher.close()
        return encoder.batches

    assert asyncio.run(scenario()) == [[0], [1, 9], [2, 3]]


def test_a_cancelled_call_is_neither_prepared_nor_encoded() -> None:
    async def scenario() -> tuple[list[list[int]], int, Counter[Outcome]]:
        encoder, observer = HeldEncoder(), Counting()
        batcher = batcher_of(encoder.encode, observer=observer)
        first = await busy(encoder, batcher)
        gone, stays = submit(batcher, [1, 2, 3], "a"), submit(batcher, [4], "b")
        gone.cancel()
        await asyncio.sleep(0)
        waiting = batcher.queue.waiting
        encoder.released.set()
        await asyncio.gather(first, stays)
        await batcher.close()
        return encoder.batches, waiting, observer.outcomes

    batches, waiting, outcomes = asyncio.run(scenario())
    assert batches == [[0], [4]]
    assert waiting == 1
    assert outcomes == {"embedded": 2, "cancelled": 3}


@SHAPES
def test_an_image_whose_deadline_has_passed_is_not_encoded(decode_threads: int) -> None:
    async def scenario() -> tuple[list[list[int]], Any]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode, decode_threads=decode_threads)
        first = await busy(encoder, batcher)
        late = submit(batcher, [1], "late", deadline=time.monotonic())
        encoder.released.set()
        await first
        [error] = await late
        await batcher.close()
        return encoder.batches, error

    batches, error = asyncio.run(scenario())
    assert batches == [[0]]
    assert isinstance(error, DeadlineExceeded)


def test_an_image_whose_deadline_passed_after_it_was_prepared_is_left_out_of_the_batch() -> None:
    async def scenario() -> tuple[list[list[int]], Any, Any]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode, decode_threads=1)
        first = await busy(encoder, batcher)
        deadline = time.monotonic() + 0.2
        late, stays = submit(batcher, [1], "late", deadline=deadline), submit(batcher, [2], "stays")
        await until(lambda: not batcher.queue.waiting)  # both are prepared, and wait for the encoder
        await asyncio.sleep(max(deadline - time.monotonic(), 0) + 0.01)
        encoder.released.set()
        results = await asyncio.gather(first, late, stays)
        await batcher.close()
        return encoder.batches, results[1][0], results[2][0]

    batches, late, stays = asyncio.run(scenario())
    assert batches == [[0], [2]]
    assert isinstance(late, DeadlineExceeded)
    assert stays.vector[0] == 2


@SHAPES
def test_an_image_that_the_encoder_fails_on_fails_alone(decode_threads: int) -> None:
    def encode(images: np.ndarray) -> np.ndarray:
        if 5.0 in numbers_of(images):
            raise RuntimeError("five fails")
        return numbers_of(images)

    async def scenario() -> list[Any]:
        batcher = batcher_of(encode, max_batch=16, decode_threads=decode_threads)
        results = await submit(batcher, list(range(10)), "call")
        await batcher.close()
        return results

    results = asyncio.run(scenario())
    assert isinstance(results.pop(5), InternalError)
    assert [result.vector[0] for result in results] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@SHAPES
def test_an_image_that_cannot_be_prepared_keeps_its_place_and_fails_alone(decode_threads: int) -> None:
    async def scenario() -> tuple[list[Any], Counter[Outcome], list[int]]:
        observer = Counting()
        batcher = batcher_of(numbers_of, decode_threads=decode_threads, observer=observer)
        results = await submit(batcher, [1, BAD, 2, BAD + 1, 3], "call")
        await batcher.close()
        return results, observer.outcomes, observer.batches

    results, outcomes, batches = asyncio.run(scenario())
    assert [result.vector[0] if isinstance(result, Encoded) else result.code for result in results] == [
        *(1, "IMAGE_UNDECODABLE", 2, "IMAGE_UNDECODABLE", 3)
    ]
    assert [result.extra for result in results if isinstance(result, Encoded)] == ["extra 1", "extra 2", "extra 3"]
    assert outcomes == {"embedded": 3, "refused": 2}
    assert sum(batches) == 3


def test_a_call_without_images_is_answered_at_once() -> None:
    async def scenario() -> list[Any]:
        batcher = batcher_of(numbers_of)
        results = await submit(batcher, [], "call")
        await batcher.close()
        return results

    assert asyncio.run(scenario()) == []


@SHAPES
def test_closing_answers_everything_that_was_submitted_and_refuses_later_calls(decode_threads: int) -> None:
    async def scenario() -> list[float]:
        batcher = batcher_of(numbers_of, runs=2, max_batch=4, decode_threads=decode_threads)
        calls = [submit(batcher, [number], number) for number in range(50)]
        await batcher.close()
        with pytest.raises(Unavailable):
            submit(batcher, [1], "late")
        return [(await call)[0].vector[0] for call in calls]

    assert asyncio.run(scenario()) == list(range(50))


@pytest.mark.parametrize(("decode_threads", "runs", "max_batch"), [(16, 2, 2), (16, 1, 1), (3, 2, 1)])
def test_closing_ends_every_thread_however_many_there_are(decode_threads: int, runs: int, max_batch: int) -> None:
    async def scenario() -> int:
        batcher = batcher_of(numbers_of, runs=runs, max_batch=max_batch, decode_threads=decode_threads)
        calls = [submit(batcher, list(range(number, number + 5)), number) for number in range(20)]
        calls[3].cancel()
        async with asyncio.timeout(20):
            await batcher.close()
        return sum(call.done() for call in calls)

    assert asyncio.run(scenario()) == 20


@SHAPES
def test_nothing_of_a_request_is_kept_when_it_is_answered(decode_threads: int) -> None:
    class Request:
        """An object whose end can be observed."""

    def prepare_request(request: Request, row: np.ndarray) -> None:
        row[:] = 0
        if len(alive) % 2:
            raise ImageUndecodable("bad")

    alive: list[weakref.ref[Request]] = []

    async def scenario() -> None:
        batcher: Batcher[Request, None] = Batcher(
            prepare_request,
            numbers_of,
            shape=(1, 1, 3),
            runs=1,
            decode_threads=decode_threads,
            max_batch=4,
            observer=Observer(),
        )
        for _ in range(10):
            request = Request()
            alive.append(weakref.ref(request))
            await batcher.submit([request], flow=object(), deadline=None, timings=Timings())
            del request
        await until(lambda: not any(reference() for reference in alive))
        await batcher.close()

    gc.disable()  # reference counts alone must free it: the collector counts objects, not bytes
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_no_more_images_are_prepared_ahead_than_the_next_batches_need() -> None:
    prepared = []

    def slowly(number: int, row: np.ndarray) -> str:
        prepared.append(number)
        return prepare(number, row)

    async def scenario() -> int:
        encoder = HeldEncoder()
        batcher = Batcher(
            slowly, encoder.encode, shape=(1, 1, 3), runs=1, decode_threads=3, max_batch=4, observer=Observer()
        )
        first = await busy(encoder, batcher)
        call = submit(batcher, list(range(1, 101)), "large")
        await until(lambda: len(prepared) >= 9)
        await asyncio.sleep(0.05)
        ahead = len(prepared)
        encoder.released.set()
        await asyncio.gather(first, call)
        await batcher.close()
        return ahead

    assert asyncio.run(scenario()) == 1 + 2 * 4
    assert sorted(prepared) == list(range(101))


def test_the_expected_time_counts_the_turns_of_other_flows_and_not_the_length_of_their_calls() -> None:
    async def scenario() -> tuple[float, float, float]:
        encoder = HeldEncoder()
        batcher = batcher_of(encoder.encode, max_batch=2)
        first = await busy(encoder, batcher)
        batcher.ms_per_image = 10.0
        large = submit(batcher, list(range(1, 101)), "large")
        small, same = batcher.expected_ms(1, "small"), batcher.expected_ms(1, "large")
        other = batcher.expected_ms(60, "other")
        encoder.released.set()
        await asyncio.gather(first, large)
        await batcher.close()
        return small, same, other

    # One image is with the encoder. A single one then waits for one of the large call; 60 for 60 of them.
    assert asyncio.run(scenario()) == (10.0 * (1 + 1 + 1), 10.0 * (1 + 100 + 1), 10.0 * (1 + 60 + 60))


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 2),  # flow
            st.lists(st.sampled_from(["good", "bad", "poison"]), min_size=1, max_size=9),
            st.sampled_from(["wait", "cancel at once", "cancel later", "no time"]),
        ),
        min_size=1,
        max_size=14,
    ),
    runs=st.integers(1, 3),
    decode_threads=st.integers(0, 2),
    max_batch=st.integers(1, 9),
    closes_early=st.booleans(),
)
def test_no_image_is_lost_or_encoded_twice_whatever_is_bad_late_or_cancelled(
    calls: list[tuple[int, list[str], str]], runs: int, decode_threads: int, max_batch: int, closes_early: bool
) -> None:
    kind_of: dict[int, str] = {}
    numbered = []
    for flow, kinds, fate in calls:
        numbers = [len(kind_of) + place + (BAD if kind == "bad" else 0) for place, kind in enumerate(kinds)]
        kind_of.update(zip(numbers, kinds, strict=True))
        numbered.append((flow, numbers, fate))
    encoded: Counter[int] = Counter()
    lock = threading.Lock()

    def encode(images: np.ndarray) -> np.ndarray:
        numbers = numbers_of(images)[:, 0].astype(int).tolist()
        assert len(images) <= max_batch
        if len(numbers) > 1 and any(kind_of[number] == "poison" for number in numbers):
            raise RuntimeError("one of them is poison")
        with lock:
            encoded.update(numbers)
        if kind_of[numbers[0]] == "poison":
            raise RuntimeError("poison")
        return numbers_of(images)

    async def scenario() -> tuple[list[Any], Counter[Outcome], tuple[int, int]]:
        observer = Counting()
        batcher = batcher_of(encode, runs=runs, max_batch=max_batch, decode_threads=decode_threads, observer=observer)
        futures = []
        for flow, numbers, fate in numbered:
            future = submit(batcher, numbers, flow, deadline=0.0 if fate == "no time" else None)
            if fate == "cancel at once":
                future.cancel()
            futures.append(future)
        await asyncio.sleep(0.001)
        for future, (_, _, fate) in zip(futures, numbered, strict=True):
            if fate == "cancel later":
                future.cancel()
        if closes_early:
            await batcher.close()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*futures, return_exceptions=True)
        await batcher.close()
        return results, observer.outcomes, (batcher.queue.waiting, batcher.queue.in_flight)

    results, outcomes, left = asyncio.run(scenario())
    assert max(encoded.values(), default=1) == 1
    assert left == (0, 0)
    assert outcomes.total() == len(kind_of)
    for (_, numbers, fate), result in zip(numbered, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            assert fate.startswith("cancel")
            continue
        assert fate != "cancel at once"
        assert len(result) == len(numbers)
        for number, answer in zip(numbers, result, strict=True):
            if fate == "no time":
                assert isinstance(answer, DeadlineExceeded)
                assert number not in encoded
            elif kind_of[number] == "bad":
                assert isinstance(answer, ImageUndecodable)
            elif kind_of[number] == "poison":
                assert isinstance(answer, InternalError)
            else:
                assert answer.vector[0] == number
                assert answer.extra == f"extra {number}"
                assert encoded[number] == 1


@pytest.mark.parametrize(
    ("setup_ms", "ms_per_image", "best"),
    [
        (0.0, 33.0, 1),  # a large network on a CPU: a larger batch gains nothing, and all its images wait
        (0.05, 0.2, 16),  # a small one: 16 images take 3 ms
        (8.0, 0.25, 64),  # a GPU: a run costs more than its images
        (2.0, 20.0, 1),
    ],
)
def test_a_batch_grows_while_it_is_short_or_lowers_the_time_per_image(
    setup_ms: float, ms_per_image: float, best: int
) -> None:
    assert best_batch(lambda size: (setup_ms + size * ms_per_image) / 1000) == best
