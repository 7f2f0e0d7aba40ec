"""Searches that wait: which go through the store together, and that none suffers from another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.answer_size import AnswerSize
from embedserve.engine.searches import Searches
from embedserve.errors import CollectionNotFound, DeadlineExceeded, InvalidInput, LimitExceeded, Unavailable
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionIdentity, Eq, Hit, Keep, SearchOptions
from embedserve.wanted import Unwanted, Wanted

PLAIN = SearchOptions()


def identity(name: str) -> CollectionIdentity:
    return CollectionIdentity(
        name=name, fingerprint="f", encoder_name="e", dimension=1, keep=Keep.NONE, uid=f"uid of {name}"
    )


def query(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)[:, None]


class Store:
    """Answers a query with the item of its number. Number 0 waits until ``released``, negative ones are refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[float], SearchOptions]] = []
        self.threads: set[str] = set()
        self.released = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        """Searches that ended because nobody wanted them."""

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        uid: str,
        sizes: Sequence[AnswerSize],
        wanted: Wanted,
    ) -> list[list[Hit]]:
        assert uid == f"uid of {collection}"
        numbers = queries[:, 0].tolist()
        self.calls.append((collection, numbers, options))
        self.threads.add(threading.current_thread().name)
        if 0 in numbers:
            self.begun.release()
            while not self.released.wait(0.001):
                try:
                    wanted.check()
                except Unwanted:
                    self.ended.release()
                    raise
        if min(numbers) < 0:
            raise InvalidInput(f"{min(numbers)} is negative")
        return [
            [Hit(id=f"{collection} {number:g} {exclude}", score=1.0)]
            for number, exclude in zip(numbers, exclude_ids, strict=True)
        ]


def ids(found: list[list[Hit]]) -> list[str]:
    return [hit.id for hits in found for hit in hits]


def submit(searches: Searches, *of_call: Any, **more: Any) -> asyncio.Future[list[list[Hit]]]:
    """A call whose answer may have any size."""
    return searches.submit(*of_call, size=AnswerSize(1 << 40), **more)


def run(test: Callable[[Searches, Store], Awaitable[None]], *, threads: int = 1, are_long: bool = False) -> None:
    """Run a test with this many threads; all of them end."""

    async def life() -> None:
        store = Store()
        searches = Searches(cast("VectorStore", store), threads, are_long=are_long)
        try:
            async with asyncio.timeout(30):
                await test(searches, store)
        finally:
            store.released.set()
            await searches.close()

    asyncio.run(life())


async def kept_busy(searches: Searches, store: Store, threads: int = 1) -> list[asyncio.Future[Any]]:
    """Give every thread a search that ends when the store is released."""
    futures = []
    for _ in range(threads):
        futures.append(submit(searches, identity("busy"), query(0), PLAIN, [None]))
        assert await asyncio.to_thread(store.begun.acquire, timeout=30)
    store.calls.clear()
    return futures


def test_a_search_that_finds_a_free_thread_is_answered_while_others_are_busy() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        assert ids(await submit(searches, identity("a"), query(3), PLAIN, ["x"])) == ["a 3 x"]

    run(test, threads=2)


def test_searches_that_wait_go_through_the_store_together_and_each_gets_its_own_hits() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        futures = [submit(searches, identity("a"), query(n, n + 0.5), PLAIN, [f"x{n}", None]) for n in range(1, 9)]
        store.released.set()
        found = await asyncio.gather(*futures)
        assert [ids(hits) for hits in found] == [[f"a {n} x{n}", f"a {n}.5 None"] for n in range(1, 9)]
        assert len(store.calls) == 1

    run(test)


@pytest.mark.parametrize(
    ("collection", "options"),
    [
        ("b", SearchOptions(filter=Eq("n", 1))),
        ("a", SearchOptions(filter=Eq("n", True))),
        ("a", SearchOptions(filter=Eq("n", 1), k=11)),
        ("a", SearchOptions(filter=Eq("n", 1), exact=True)),
        ("a", SearchOptions()),
    ],
)
def test_searches_that_ask_for_something_else_are_not_joined(collection: str, options: SearchOptions) -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        first = SearchOptions(filter=Eq("n", 1))
        futures = [
            submit(searches, identity("a"), query(1), first, [None]),
            submit(searches, identity(collection), query(2), options, [None]),
        ]
        store.released.set()
        assert [ids(hits) for hits in await asyncio.gather(*futures)] == [["a 1 None"], [f"{collection} 2 None"]]
        # Compared as text, since 1 == True.
        assert str(store.calls) == str([("a", [1.0], first), (collection, [2.0], options)])

    run(test)


def test_a_search_that_fails_fails_alone() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        futures = [submit(searches, identity("a"), query(n), PLAIN, [None]) for n in (1, -2, 3)]
        store.released.set()
        first, second, third = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(first, list)
        assert isinstance(third, list)
        assert ids(first) + ids(third) == ["a 1 None", "a 3 None"]
        assert isinstance(second, InvalidInput)
        assert second.message == "-2.0 is negative"

    run(test)


def test_the_other_queries_of_a_call_that_failed_are_not_searched() -> None:
    async def test(searches: Searches, store: Store) -> None:
        with pytest.raises(InvalidInput):
            await submit(searches, identity("a"), query(*[-1] * 200), PLAIN, [None] * 200)
        searched = sum(len(numbers) for _, numbers, _ in store.calls)
        assert ids(await submit(searches, identity("a"), query(5), PLAIN, [None])) == ["a 5 None"]
        assert sum(len(numbers) for _, numbers, _ in store.calls) == searched + 1
        assert searched <= 128

    run(test)


def test_a_search_that_is_cancelled_while_it_waits_is_never_begun() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        gone = submit(searches, identity("a"), query(1), PLAIN, [None])
        stays = submit(searches, identity("a"), query(2), PLAIN, [None])
        alone = submit(searches, identity("b"), query(3), PLAIN, [None])
        gone.cancel()
        alone.cancel()
        await asyncio.sleep(0)
        store.released.set()
        assert ids(await stays) == ["a 2 None"]
        assert [numbers for _, numbers, _ in store.calls] == [[2.0]]

    run(test)


def test_a_search_that_waited_beyond_its_deadline_fails_alone() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        late = submit(searches, identity("a"), query(1), PLAIN, [None], deadline=time.monotonic() - 1)
        good = submit(searches, identity("a"), query(2), PLAIN, [None], deadline=time.monotonic() + 60)
        store.released.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert ids(await good) == ["a 2 None"]
        assert [numbers for _, numbers, _ in store.calls] == [[2.0]]

    run(test)


def test_a_small_call_does_not_wait_for_all_queries_of_the_large_ones_before_it() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        large = [submit(searches, identity("a"), query(*range(1, 201)), PLAIN, [None] * 200) for _ in range(3)]
        small = submit(searches, identity("a"), query(999), PLAIN, [None])
        other = submit(searches, identity("b"), query(999), PLAIN, [None])
        store.released.set()
        assert ids(await small) == ["a 999 None"]
        assert ids(await other) == ["b 999 None"]
        searched = [(name, numbers) for name, numbers, _ in store.calls]
        assert 999 in searched[0][1]
        assert searched[1] == ("b", [999.0])
        for future in large:
            assert ids(await future) == [f"a {n} None" for n in range(1, 201)]
        assert max(len(numbers) for _, numbers in searched) <= 64

    run(test)


def test_the_queries_of_one_call_are_shared_out_among_the_free_threads() -> None:
    async def test(searches: Searches, store: Store) -> None:
        numbers = [0, *range(1, 40), 0, *range(41, 64)]  # so that no thread ends before the other has begun
        answer = submit(searches, identity("a"), query(*numbers), PLAIN, [f"x{place}" for place in range(64)])
        for _ in range(2):
            assert await asyncio.to_thread(store.begun.acquire, timeout=30)
        store.released.set()
        assert ids(await answer) == [f"a {number} x{place}" for place, number in enumerate(numbers)]
        assert [len(searched) for _, searched, _ in store.calls] == [32, 32]
        assert len(store.threads) == 2

    run(test, threads=2)


@pytest.mark.parametrize("threads", [2, 4, 8, 32])
@pytest.mark.parametrize("size", [1, 16, 33, 64])
def test_many_calls_at_once_are_all_answered_however_many_threads_there_are(threads: int, size: int) -> None:
    async def test(searches: Searches, store: Store) -> None:
        for calls in (1, 9, 10, 40):
            numbers = [list(range(call * 1000 + 1, call * 1000 + 1 + size)) for call in range(calls)]
            found = await asyncio.wait_for(
                asyncio.gather(
                    *(submit(searches, identity("a"), query(*some), PLAIN, [None] * size) for some in numbers)
                ),
                30,
            )
            assert [ids(hits) for hits in found] == [[f"a {number} None" for number in some] for some in numbers]

    run(test, threads=threads)


def test_closing_answers_waiting_searches_and_refuses_later_ones() -> None:
    async def test(searches: Searches, store: Store) -> None:
        busy = await kept_busy(searches, store)
        waiting = submit(searches, identity("a"), query(1), PLAIN, [None])
        closing = asyncio.create_task(searches.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            submit(searches, identity("a"), query(2), PLAIN, [None])
        store.released.set()
        await closing
        assert ids(await waiting) == ["a 1 None"]
        assert ids(await busy[0]) == ["busy 0 None"]

    run(test)


def test_an_error_of_the_store_reaches_every_call_that_causes_it() -> None:
    class Empty(Store):
        def search(self, collection: str, *args: Any, **more: Any) -> list[list[Hit]]:
            if collection == "missing":
                raise CollectionNotFound("there is no collection 'missing'")
            return super().search(collection, *args, **more)

    async def life() -> None:
        store = Empty()
        searches = Searches(cast("VectorStore", store), 1)
        await kept_busy(searches, store)
        futures = [submit(searches, identity("missing"), query(n), PLAIN, [None]) for n in (1, 2)]
        store.released.set()
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(error) for error in found] == [CollectionNotFound] * 2
        assert found[0] is not found[1]
        await searches.close()

    asyncio.run(life())


def test_a_search_ends_once_its_caller_has_left() -> None:
    async def test(searches: Searches, store: Store) -> None:
        (call,) = await kept_busy(searches, store)
        call.cancel()
        assert await asyncio.to_thread(store.ended.acquire, timeout=20)
        assert ids(await submit(searches, identity("a"), query(3), PLAIN, [None])) == ["a 3 None"]

    run(test)


def test_what_is_searched_together_ends_only_once_all_callers_have_left() -> None:
    async def test(searches: Searches, store: Store) -> None:
        (busy,) = await kept_busy(searches, store)
        calls = [submit(searches, identity("a"), query(0), PLAIN, [None]) for _ in range(3)]
        busy.cancel()
        assert await asyncio.to_thread(store.begun.acquire, timeout=20)
        assert [len(numbers) for _, numbers, _ in store.calls] == [3]
        assert store.ended.acquire(timeout=20)
        calls[0].cancel()
        calls[2].cancel()
        await asyncio.sleep(0.02)
        assert not store.ended.acquire(blocking=False)
        calls[1].cancel()
        assert await asyncio.to_thread(store.ended.acquire, timeout=20)

    run(test)


def test_those_that_stay_are_answered_when_others_of_their_search_have_left() -> None:
    async def test(searches: Searches, store: Store) -> None:
        (busy,) = await kept_busy(searches, store)
        calls = [submit(searches, identity("a"), query(0, n), PLAIN, [None] * 2) for n in (1, 2)]
        busy.cancel()
        assert await asyncio.to_thread(store.begun.acquire, timeout=20)
        calls[0].cancel()
        await asyncio.sleep(0)
        store.released.set()
        assert ids(await calls[1]) == ["a 0 None", "a 2 None"]

    run(test)


def test_long_searches_of_one_flow_never_take_the_last_thread() -> None:
    async def test(searches: Searches, store: Store) -> None:
        many = submit(searches, identity("a"), query(*[0] * 64), PLAIN, [None] * 64)
        for _ in range(2):
            assert await asyncio.to_thread(store.begun.acquire, timeout=20)
        other = submit(searches, identity("b"), query(7), PLAIN, [None])
        assert ids(await other) == ["b 7 None"]
        assert not many.done()
        assert len(store.calls) == 3
        assert max(len(numbers) for _, numbers, _ in store.calls) == 16
        store.released.set()
        assert len(await many) == 64

    run(test, threads=3, are_long=True)


def test_with_one_thread_a_long_search_of_others_has_its_turn_after_some_queries() -> None:
    async def test(searches: Searches, store: Store) -> None:
        await kept_busy(searches, store)
        many = submit(searches, identity("a"), query(*range(1, 65)), PLAIN, [None] * 64)
        other = submit(searches, identity("b"), query(7), PLAIN, [None])
        store.released.set()
        await asyncio.gather(many, other)
        assert [(name, len(numbers)) for name, numbers, _ in store.calls[:2]] == [("a", 16), ("b", 1)]

    run(test, are_long=True)


def test_an_answer_that_is_too_large_fails_alone_and_the_others_count_once() -> None:
    class Sized(Store):
        def search(self, collection: str, queries: Any, *args: Any, sizes: Any, **more: Any) -> list[list[Hit]]:
            found = super().search(collection, queries, *args, sizes=sizes, **more)
            for size, number in zip(sizes, queries[:, 0].tolist(), strict=True):
                size.add(int(number))
            return found

    async def life() -> None:
        store = Sized()
        searches = Searches(cast("VectorStore", store), 1)
        await kept_busy(searches, store)
        sizes = [AnswerSize(100) for _ in range(3)]
        futures = [
            searches.submit(identity("a"), query(*numbers), PLAIN, [None] * 2, size=size)
            for numbers, size in zip([(10, 20), (60, 70), (1, 2)], sizes, strict=True)
        ]
        store.released.set()
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer) for answer in found] == [list, LimitExceeded, list]
        assert [size.bytes for size in sizes] == [30, 0, 3]
        await searches.close()

    asyncio.run(life())
