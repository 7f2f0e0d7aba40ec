"""The closed loop of threads: who calls when, and what is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from embedserve.loadtest import threaded_closed_loop


def taking(seconds: float, seen: list[tuple[str, int]]) -> Callable[[int], Callable[[int], int]]:
    """Clients whose calls take this long; notes the thread and the number of each."""

    def client(_number: int) -> Callable[[int], int]:
        def call(number: int) -> int:
            seen.append((threading.current_thread().name, number))
            time.sleep(seconds)
            return 3

        return call

    return client


def test_every_client_is_a_thread_with_one_call_after_the_other() -> None:
    seen: list[tuple[str, int]] = []
    measured = threaded_closed_loop(taking(0.005, seen), 4, 0.2, warmup_s=0.1)
    names = {name for name, _ in seen}
    assert len(names) == 4
    for name in names:
        numbers = [number for other, number in seen if other == name]
        assert numbers == list(range(len(numbers)))
    assert measured.all_images == 3 * len(seen) == 3 * len(measured)


def test_calls_of_the_warmup_do_not_count() -> None:
    seen: list[tuple[str, int]] = []
    measured = threaded_closed_loop(taking(0.005, seen), 4, 0.2, warmup_s=0.1)
    latencies_ms = measured.latencies_ms()
    assert 0 < len(latencies_ms) < len(seen)
    assert min(latencies_ms) >= 5
    assert 0 < measured.steady_images_per_s <= 4 * 3 / 0.005


def test_a_client_that_cannot_begin_is_named_and_the_others_do_not_wait_for_it() -> None:
    def client(_number: int) -> Callable[[int], int]:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        threaded_closed_loop(client, 3, 0.1)


def test_a_failed_call_is_raised() -> None:
    def client(_number: int) -> Callable[[int], int]:
        def call(number: int) -> int:
            raise RuntimeError("full")

        return call

    with pytest.raises(RuntimeError, match="full"):
        threaded_closed_loop(client, 2, 0.1)


def test_a_begin_in_the_future_is_waited_for() -> None:
    begin_unix_s = time.time() + 0.1
    times: list[float] = []

    def client(_number: int) -> Callable[[int], int]:
        def call(number: int) -> int:
            times.append(time.time())
            return 1

        return call

    threaded_closed_loop(client, 1, 0.01, begin_unix_s=begin_unix_s)
    assert times[0] >= begin_unix_s - 0.005


def test_the_run_begins_when_all_clients_are_ready() -> None:
    def client(number: int) -> Callable[[int], int]:
        time.sleep(0.2 * number)

        def call(_: int) -> int:
            time.sleep(0.001)
            return 1

        return call

    measured = threaded_closed_loop(client, 2, 0.05)
    assert len(measured.latencies_ms()) == len(measured)
    assert 0 < measured.steady_images_per_s <= 2000
