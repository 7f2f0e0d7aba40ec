"""Jobs in their own threads: pieces out, pieces in, and an end once the caller has gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest

from embedserve.engine.jobs import Ended, Jobs
from embedserve.errors import Overloaded


def test_pieces_come_in_order_and_never_more_than_two_wait() -> None:
    async def scenario() -> None:
        given: list[int] = []

        def count(give: Callable[[int], None], check: Callable[[], None]) -> None:
            for number in range(20):
                give(number)
                given.append(number)

        jobs = Jobs()
        taken = []
        async for number in jobs.produce(count):
            taken.append(number)
            await asyncio.sleep(0.005)
            assert len(given) <= len(taken) + 2
        assert taken == list(range(20))
        await jobs.close()

    asyncio.run(scenario())


def test_an_error_of_a_job_comes_after_its_pieces() -> None:
    async def scenario() -> None:
        def fail(give: Callable[[int], None], check: Callable[[], None]) -> None:
            give(1)
            give(2)
            raise ValueError("no more")

        jobs = Jobs()
        taken: list[int] = []

        async def take() -> None:
            async for number in jobs.produce(fail):
                taken.append(number)

        with pytest.raises(ValueError, match="no more"):
            await take()
        assert taken == [1, 2]
        await jobs.close()

    asyncio.run(scenario())


def test_closing_the_iterator_ends_the_job_at_its_next_piece() -> None:
    async def scenario() -> None:
        ended = threading.Event()

        def count(give: Callable[[int], None], check: Callable[[], None]) -> None:
            number = 0
            try:
                while True:
                    give(number)
                    number += 1
            except Ended:
                ended.set()
                raise

        jobs = Jobs(threads=1)
        async with aclosing(jobs.produce(count)) as pieces:
            assert await anext(pieces) == 0
        assert await asyncio.to_thread(ended.wait, 10)
        await asyncio.wait_for(jobs.close(), 10)

    asyncio.run(scenario())


def test_a_job_that_still_waits_is_never_begun_once_its_caller_has_gone() -> None:
    async def scenario() -> None:
        let_go, begun = threading.Event(), threading.Event()

        def hold(give: Callable[[int], None], check: Callable[[], None]) -> None:
            give(1)
            let_go.wait(10)

        def begin(give: Callable[[int], None], check: Callable[[], None]) -> None:
            begun.set()

        jobs = Jobs(threads=1)
        async with aclosing(jobs.produce(hold)) as first:
            assert await anext(first) == 1
            waiting = asyncio.create_task(anext(jobs.produce(begin), None))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            let_go.set()
        await jobs.close()
        assert not begun.is_set()

    asyncio.run(scenario())


async def counted(numbers: int, taken: list[int]) -> AsyncIterator[int]:
    for number in range(numbers):
        taken.append(number)
        yield number


def test_pieces_are_taken_only_as_the_job_asks_for_them() -> None:
    async def scenario() -> None:
        taken: list[int] = []

        def add(pieces: Iterator[int], check: Callable[[], None]) -> int:
            total = 0
            for number in pieces:
                assert taken == list(range(number + 1))
                total += number
            return total

        jobs = Jobs()
        assert await jobs.consume(add, counted(10, taken)) == 45
        await jobs.close()

    asyncio.run(scenario())


def test_what_the_pieces_raise_passes_through_the_job() -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def broken() -> AsyncIterator[int]:
            yield 1
            raise ValueError("torn")

        def add(pieces: Iterator[int], check: Callable[[], None]) -> int:
            try:
                return sum(pieces)
            except ValueError as error:
                seen.append(str(error))
                raise

        jobs = Jobs()
        with pytest.raises(ValueError, match="torn"):
            await jobs.consume(add, broken())
        assert seen == ["torn"]
        await jobs.close()

    asyncio.run(scenario())


def test_a_job_that_waits_for_a_piece_ends_when_its_caller_has_gone() -> None:
    async def scenario() -> None:
        begun, ended = asyncio.Event(), threading.Event()

        async def never() -> AsyncIterator[int]:
            begun.set()
            await asyncio.Event().wait()
            yield 1

        def add(pieces: Iterator[int], check: Callable[[], None]) -> int:
            try:
                return sum(pieces)
            except Ended:
                ended.set()
                raise

        jobs = Jobs(threads=1)
        call = asyncio.create_task(jobs.consume(add, never()))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(ended.wait, 10)
        await asyncio.wait_for(jobs.close(), 10)

    asyncio.run(scenario())


def test_a_job_between_two_pieces_ends_where_it_checks() -> None:
    async def scenario() -> None:
        begun, ended = threading.Semaphore(0), threading.Semaphore(0)

        def busy(check: Callable[[], None]) -> None:
            begun.release()
            try:
                while True:
                    time.sleep(0.001)
                    check()
            except Ended:
                ended.release()
                raise

        def count(give: Callable[[int], None], check: Callable[[], None]) -> None:
            give(1)
            busy(check)

        def add(pieces: Iterator[int], check: Callable[[], None]) -> None:
            assert list(pieces) == [0, 1, 2]
            busy(check)

        jobs = Jobs()
        async with aclosing(jobs.produce(count)) as given:
            assert await anext(given) == 1
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        assert await asyncio.to_thread(ended.acquire, timeout=10)
        call = asyncio.create_task(jobs.consume(add, counted(3, [])))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended.acquire(blocking=False)  # the call ends after its job, and not before
        await asyncio.wait_for(jobs.close(), 10)

    asyncio.run(scenario())


def test_a_job_that_was_past_its_last_check_is_not_reported_as_ended() -> None:
    async def scenario() -> None:
        received, let_go = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def add(pieces: Iterator[int], check: Callable[[], None]) -> int:
            total = sum(pieces)
            loop.call_soon_threadsafe(received.set)
            assert let_go.wait(10)
            return total

        jobs = Jobs()
        call = asyncio.create_task(jobs.consume(add, counted(3, [])))
        await received.wait()
        call.cancel()
        await asyncio.sleep(0.01)
        let_go.set()
        assert await call == 3
        await jobs.close()

    asyncio.run(scenario())


def test_where_too_many_jobs_wait_the_next_is_refused_until_one_has_gone() -> None:
    async def scenario() -> None:
        let_go = threading.Event()

        def hold(give: Callable[[int], None], check: Callable[[], None]) -> None:
            let_go.wait(10)

        def add(pieces: Iterator[int], check: Callable[[], None]) -> int:
            return sum(pieces)

        jobs = Jobs(threads=1, most_waiting=2)
        calls = [asyncio.create_task(anext(jobs.produce(hold), None)) for _ in range(3)]
        await asyncio.sleep(0)
        taken: list[int] = []
        with pytest.raises(Overloaded) as refused:
            await jobs.consume(add, counted(3, taken))
        assert refused.value.retry_after_ms >= 1000
        with pytest.raises(Overloaded):
            await anext(jobs.produce(hold))
        assert taken == []
        calls[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[-1]
        call = asyncio.create_task(jobs.consume(add, counted(3, taken)))
        await asyncio.sleep(0)
        let_go.set()
        assert await call == 3
        assert await asyncio.gather(*calls[:2]) == [None, None]
        await jobs.close()

    asyncio.run(scenario())
