"""Load for servers: closed loops, open loops and streams over any function, and what they measured.

Used by ``embedserve bench serve`` and by the benchmarks; ``loops`` shows how to use it from a program.
"""

from __future__ import annotations

from embedserve.loadtest.latencies import histogram, percentiles
from embedserve.loadtest.loops import closed_loop, open_loop, run, stream_loop
from embedserve.loadtest.measurements import NOT_SENT, OK, UNANSWERED, CallFailed, Measurements, Reply
from embedserve.loadtest.schedule import poisson, steady
from embedserve.loadtest.threads import threaded_closed_loop

__all__ = [
    "NOT_SENT",
    "OK",
    "UNANSWERED",
    "CallFailed",
    "Measurements",
    "Reply",
    "closed_loop",
    "histogram",
    "open_loop",
    "percentiles",
    "poisson",
    "run",
    "steady",
    "stream_loop",
    "threaded_closed_loop",
]
