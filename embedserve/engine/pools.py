"""Thread pools whose threads exist from the beginning.

The standard pool starts a thread when one more task is there than ever before: hours after the start, in the worst
moment, or never. So neither the number of threads of a server nor its memory would be known before.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def started_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads run already.

    Args:
        threads: how many.
        name: begins the name of each.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    all_there = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_there.wait)
    all_there.wait()
    return pool
