"""Threads exist from the beginning."""

from __future__ import annotations

import threading

from embedserve.engine.pools import started_pool


def test_the_threads_of_a_pool_run_before_there_is_any_work() -> None:
    pool = started_pool(5, "early")
    try:
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("early")}
        assert len(names) == 5
        assert pool.submit(threading.get_ident).result() in {thread.ident for thread in threading.enumerate()}
    finally:
        pool.shutdown()
