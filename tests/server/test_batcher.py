from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.batcher import Batcher
from embedserve.errors import DeadlineExceeded, InternalError, Unavailable


def numbered(number: int) -> np.ndarray:
    """An image that says which one it is, below 65,536."""
    return np.array([[[number % 256, number // 256, 0]]], dtype=np.uint8)


def numbers_of(images: np.ndarray) -> np.ndarray:
    return (images[:, 0, 0, 0].astype(np.float32) + images[:, 0, 0, 1] * 256.0)[:, None]


class Gate:
    """An encoder that waits, in its first batch, until it is opened; so that a test can fill the queue."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(numbers_of(images)[:, 0].astype(int).tolist())
        self.entered.set()
        assert self.opened.wait(20)
        return numbers_of(images)


async def fill(gate: Gate, batcher: Batcher, images: list[tuple[object, int]]) -> list[asyncio.Task]:
    """Submit image 0, and once it keeps the only worker busy, the others as (call, number)."""
    first = asyncio.create_task(batcher.submit(numbered(0), call="first"))
    await asyncio.to_thread(gate.entered.wait, 20)
    tasks = [asyncio.create_task(batcher.submit(numbered(number), call=call)) for call, number in images]
    await asyncio.sleep(0)  # let each of them enter the queue
    return [first, *tasks]


def test_what_waits_while_the_encoder_is_busy_becomes_one_batch() -> None:
    async def scenario() -> list[list[int]]:
        gate = Gate()
        batcher = Batcher(gate.encode, workers=1, max_batch=8)
        tasks = await fill(gate, batcher, [("a", 1), ("b", 2), ("c", 3)])
        gate.opened.set()
        await asyncio.gather(*tasks)
        await batcher.close()
        return gate.batches

    assert asyncio.run(scenario()) == [[0], [1, 2, 3]]


def test_a_large_call_and_a_small_one_take_turns() -> None:
    async def scenario() -> list[list[int]]:
        gate = Gate()
        batcher = Batcher(gate.encode, workers=1, max_batch=2)
        tasks = await fill(gate, batcher, [*(("large", number) for number in range(1, 7)), ("small", 9)])
        gate.opened.set()
        await asyncio.gather(*tasks)
        await batcher.close()
        return gate.batches

    assert asyncio.run(scenario()) == [[0], [1, 9], [2, 3], [4, 5], [6]]


def test_an_image_whose_caller_has_gone_is_not_encoded() -> None:
    async def scenario() -> list[list[int]]:
        gate = Gate()
        batcher = Batcher(gate.encode, workers=1, max_batch=8)
        first, gone, stays = await fill(gate, batcher, [("a", 1), ("b", 2)])
        gone.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(first, stays)
        await batcher.close()
        return gate.batches

    assert asyncio.run(scenario()) == [[0], [2]]


def test_an_image_whose_deadline_has_passed_is_not_encoded() -> None:
    async def scenario() -> tuple[list[list[int]], object]:
        gate = Gate()
        batcher = Batcher(gate.encode, workers=1, max_batch=8)
        [first] = await fill(gate, batcher, [])
        late = asyncio.create_task(batcher.submit(numbered(1), call="late", deadline=time.monotonic()))
        await asyncio.sleep(0)
        gate.opened.set()
        await first
        [error] = await asyncio.gather(late, return_exceptions=True)
        await batcher.close()
        return gate.batches, error

    batches, error = asyncio.run(scenario())
    assert batches == [[0]]
    assert isinstance(error, DeadlineExceeded)


def test_an_image_that_the_encoder_fails_on_fails_alone() -> None:
    def encode(images: np.ndarray) -> np.ndarray:
        if 5.0 in numbers_of(images):
            raise RuntimeError("five is not for me")
        return numbers_of(images)

    async def scenario() -> list[object]:
        batcher = Batcher(encode, workers=1, max_batch=16)
        results = await asyncio.gather(
            *(batcher.submit(numbered(number), call=number) for number in range(10)), return_exceptions=True
        )
        await batcher.close()
        return results

    results = asyncio.run(scenario())
    assert isinstance(results.pop(5), InternalError)
    assert [result.vector[0] for result in results] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_closing_answers_everything_that_was_submitted_and_takes_no_more() -> None:
    async def scenario() -> tuple[list[float], object]:
        batcher = Batcher(numbers_of, workers=2, max_batch=4)
        tasks = [asyncio.create_task(batcher.submit(numbered(number), call=number)) for number in range(50)]
        await asyncio.sleep(0)
        await batcher.close()
        [late] = await asyncio.gather(batcher.submit(numbered(1), call="late"), return_exceptions=True)
        return [task.result().vector[0] for task in tasks], late

    values, late = asyncio.run(scenario())
    assert values == list(range(50))
    assert isinstance(late, Unavailable)


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    cancelled=st.sets(st.integers(0, 143)),
    workers=st.integers(1, 3),
    max_batch=st.integers(1, 9),
)
def test_nothing_is_lost_or_done_twice_whatever_is_cancelled(
    calls: list[int], cancelled: set[int], workers: int, max_batch: int
) -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def encode(images: np.ndarray) -> np.ndarray:
        numbers = numbers_of(images)
        with lock:
            assert len(images) <= max_batch
            seen.extend(numbers[:, 0].astype(int).tolist())
        return numbers

    async def scenario() -> list[object]:
        batcher = Batcher(encode, workers=workers, max_batch=max_batch)
        owners = [call for call, size in enumerate(calls) for _ in range(size)]
        tasks = [asyncio.create_task(batcher.submit(numbered(number), call=call)) for number, call in enumerate(owners)]
        await asyncio.sleep(0)
        for number in cancelled:
            if number < len(tasks):
                tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return results

    results = asyncio.run(scenario())
    assert len(seen) == len(set(seen))
    for number, result in enumerate(results):
        if number in cancelled:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert result.vector[0] == number
            assert number in seen
