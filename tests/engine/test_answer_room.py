"""What all answers together may hold: who waits, who is refused, and what is given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from embedserve.engine import answers as module
from embedserve.engine.answers import Answers
from embedserve.errors import LimitExceeded, Overloaded
from embedserve.types import Limits

MIB = 1 << 20
LIMITS = Limits(max_answer_bytes=40 * MIB, max_message_bytes=20 * MIB)
"""Large answers may hold 30 MiB together."""


def run(test: Callable[[Answers], Awaitable[None]]) -> None:
    async def life() -> None:
        answers = Answers(LIMITS)
        async with asyncio.timeout(20):
            await test(answers)

    asyncio.run(life())


def test_an_answer_holds_the_most_it_may_have_and_then_what_it_has() -> None:
    async def test(answers: Answers) -> None:
        with answers.begin("") as answer:
            await answer.reserve(1000, 1 << 20)
            assert answers.held == 20 * MIB + 1000 * 256
            answer.add(5000)
            answer.settle(10)
            assert answers.held == 5000 + 10 * 256
            with pytest.raises(LimitExceeded, match="max_message_bytes is 20971520"):
                answer.add(20 * MIB)
        assert answers.held == 0
        assert not answers.open

    run(test)


def test_a_large_answer_waits_until_others_are_taken_in_order() -> None:
    async def test(answers: Answers) -> None:
        first, second, third = (answers.begin("") for _ in range(3))
        await first.reserve(20, MIB)
        later = [asyncio.create_task(second.reserve(15, MIB)), asyncio.create_task(third.reserve(2, MIB))]
        await asyncio.sleep(0)
        assert answers.waiting == 2  # the third would fit, and does not overtake
        first.close()
        await asyncio.gather(*later)
        assert answers.held == 17 * MIB + 17 * 256

    run(test)


def test_a_small_answer_never_waits_behind_large_ones() -> None:
    async def test(answers: Answers) -> None:
        large = [answers.begin("") for _ in range(3)]
        await large[0].reserve(20, MIB)
        waiting = [asyncio.create_task(answer.reserve(20, MIB)) for answer in large[1:]]
        await asyncio.sleep(0)
        small = answers.begin("")
        await small.reserve(10, 1000)
        assert answers.waiting == 2
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert answers.waiting == 0
        assert answers.held == 20 * MIB + 20 * 256 + 10_000 + 10 * 256

    run(test)


def test_who_waits_too_long_is_refused_with_a_time_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.01)

    async def test(answers: Answers) -> None:
        first, second, third = (answers.begin("") for _ in range(3))
        await first.reserve(20, MIB)
        with pytest.raises(Overloaded, match="max_answer_bytes is 41943040") as refused:
            await second.reserve(20, MIB)
        assert refused.value.retry_after_ms > 0
        with pytest.raises(Overloaded):
            await third.reserve(20, MIB, deadline=time.monotonic() - 1)
        assert answers.held == first.held
        assert answers.waiting == 0

    run(test)


def test_no_more_than_some_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)

    async def test(answers: Answers) -> None:
        await answers.begin("").reserve(20, MIB)
        tasks = [asyncio.create_task(answers.begin("").reserve(20, MIB)) for _ in range(3)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.exception()) for task in done] == [Overloaded]
        assert len(waiting) == answers.waiting == 2
        for task in waiting:
            task.cancel()

    run(test)
