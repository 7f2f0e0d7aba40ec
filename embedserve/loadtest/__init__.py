"""Load for servers: closed and open loops over any coroutine function, and what they measured.

The library under ``embedserve bench serve``; ``loops`` says how to use it from a program.
"""

from __future__ import annotations

from embedserve.loadtest.latencies import histogram, percentiles
from embedserve.loadtest.loops import closed_loop, open_loop, run
from embedserve.loadtest.measurements import NOT_SENT, OK, UNANSWERED, CallFailed, Measurements, Reply
from embedserve.loadtest.schedule import poisson

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
]
