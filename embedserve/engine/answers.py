"""What all answers together hold in memory, from the reading of their rows until their callers have taken them.

An answer reserves room for the largest that its call may get before anything is read, and gives back what it did not
need as soon as it is known. Without room it waits for a moment and is then refused: nothing that holds room waits for
more of it. A quarter is left to small answers, which never queue behind large ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from embedserve.answer_size import AnswerSize
from embedserve.errors import Overloaded
from embedserve.types import Limits

_SMALL_BYTES = 1 << 20
_ENTRY_BYTES = 256
"""A hit or an item in memory, beside what it has on the wire."""
_LONGEST_WAIT_S = 5.0
_MOST_WAITING = 256
_RETRY_AFTER_MS = 1000


class Answer(AnswerSize):
    """One answer; ``Answers.begin`` makes it, ``close`` ends it."""

    __slots__ = ("_answers", "given_at", "held", "task")

    def __init__(self, answers: Answers, hint: str) -> None:
        self.bytes = self.held = 0
        self.most_bytes, self.hint = answers.most_bytes, hint
        self._answers = answers
        self.task: asyncio.Task[Any] | None = None
        """Of the call, to be cancelled if its caller does not take the answer."""
        self.given_at: float | None = None
        """When the answer was complete, on ``time.monotonic``'s clock."""

    async def reserve(self, entries: int, entry_bytes: int, *, deadline: float | None = None) -> None:
        """Hold room for so many hits or items of at most so many bytes each; before anything is read.

        Raises:
            Overloaded: other answers have held the room for too long.
        """
        cost = entries * _ENTRY_BYTES + min(entries * entry_bytes, self.most_bytes)
        if not self._answers.take(self, cost):
            await self._answers.wait(self, cost, deadline)

    def settle(self, entries: int) -> None:
        """Everything is read: hold no more than that."""
        self._answers.give_back(self, self.held - entries * _ENTRY_BYTES - self.bytes)

    def close(self, _: object = None) -> None:
        """The caller has taken it or left; also as a callback of the call's task."""
        self._answers.give_back(self, self.held)
        self._answers.open.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Answers:
    """All answers of an engine; for use on the event loop.

    Args:
        limits: max_answer_bytes, and max_message_bytes for each.
    """

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.max_answer_bytes
        self._for_large = self._limit * 3 // 4
        self.most_bytes = min(limits.max_message_bytes, self._for_large)
        """That one answer may have."""
        self.held = 0
        """By all of them."""
        self.open: dict[Answer, None] = {}
        """Those that have begun, in this order."""
        self._waiting: deque[tuple[Answer, int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    def begin(self, hint: str) -> Answer:
        """A new answer; ``hint`` says what to ask less of where it becomes too large."""
        answer = Answer(self, hint)
        self.open[answer] = None
        return answer

    def take(self, answer: Answer, cost: int) -> bool:
        """Hold room if there is some, and no other large answer waits for it; whether there was."""
        cost = min(cost, self._for_large)
        limit = self._limit if cost <= _SMALL_BYTES else self._for_large
        if self.held + cost > limit or (self._waiting and cost > _SMALL_BYTES):
            return False
        self.held += cost
        answer.held += cost
        return True

    async def wait(self, answer: Answer, cost: int, deadline: float | None) -> None:
        """Hold room once there is some.

        Raises:
            Overloaded: there was none within 5 s, or the deadline will have passed.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise self._overloaded()
        remaining_s = _LONGEST_WAIT_S if deadline is None else min(deadline - time.monotonic(), _LONGEST_WAIT_S)
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (answer, cost, given)
        self._waiting.append(place)
        try:
            async with asyncio.timeout(remaining_s):
                await given
        except TimeoutError:
            raise self._overloaded() from None
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                self._serve()

    def give_back(self, answer: Answer, size_bytes: int) -> None:
        """Hold so much less."""
        size_bytes = min(size_bytes, answer.held)
        if size_bytes > 0:
            answer.held -= size_bytes
            self.held -= size_bytes
            if self._waiting:
                self._serve()

    def _serve(self) -> None:
        """Give room to those that have waited longest."""
        waiting, self._waiting = self._waiting, deque()
        while waiting:
            answer, cost, given = waiting[0]
            if not given.done():
                if not self.take(answer, cost):
                    break
                given.set_result(None)
            waiting.popleft()
        self._waiting = waiting

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"the server is busy: answers that are read or sent hold {self.held} bytes; max_answer_bytes is"
            f" {self._limit}",
            hint=f"try again in {_RETRY_AFTER_MS} ms, or ask for less at once",
            retry_after_ms=_RETRY_AFTER_MS,
        )
